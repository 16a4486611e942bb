package inflate

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/s2"
)

// BenchmarkLayer decodes a layer of this machine's Go toolchain, or the gzip
// file that INFLATE_LAYER names: one after another with klauspost/compress, the
// standard library, our decoder, and ours that records and packs windows as
// package tarindex does. It reports ratios of the least processor time over all rounds.
func BenchmarkLayer(b *testing.B) {
	stored := layer(b)
	var plain int64
	var packed int
	systems := []func(){
		func() { plain = decodeOurs(b, NewGzip(&runs{stored, 128 << 10})) },
		func() {
			g := NewGzip(&runs{stored, 128 << 10})
			var buf []byte
			packed = 0
			g.Record(RecordOptions{Keep: func(_ int, w []byte) {
				buf = s2.Encode(buf[:cap(buf)], w)
				packed += len(buf)
			}})
			decodeOurs(b, g)
		},
		func() { r, err := kgzip.NewReader(bytes.NewReader(stored)); discard(b, r, err) },
		func() { r, err := gzip.NewReader(bytes.NewReader(stored)); discard(b, r, err) },
	}
	least := make([]float64, len(systems)) // other load only adds
	for rounds := 0; b.Loop(); rounds++ {
		for i := range systems {
			i = (i + rounds) % len(systems)
			begin := cpuTime(b)
			systems[i]()
			if t := cpuTime(b) - begin; rounds == 0 || t < least[i] {
				least[i] = t
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(plain)/least[0]/1e6, "MB/s")
	b.ReportMetric(least[1]/least[0], "recording/plain")
	b.ReportMetric(least[2]/least[0], "klauspost/plain")
	b.ReportMetric(least[3]/least[0], "stdlib/plain")
	b.ReportMetric(100*float64(packed)/float64(len(stored)), "%windows")
}

func cpuTime(b *testing.B) float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

func decodeOurs(b *testing.B, g *Gzip) (total int64) {
	buf, n := make([]byte, Window+384<<10), 0
	for {
		n = copy(buf, buf[max(0, n-Window):n])
		from := n
		var err error
		n, err = g.Decode(buf, n)
		total += int64(n - from)
		if err == io.EOF {
			return total
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func discard(b *testing.B, r io.Reader, err error) {
	if err == nil {
		_, err = io.CopyBuffer(struct{ io.Writer }{io.Discard}, r, make([]byte, 384<<10))
	}
	if err != nil {
		b.Fatal(err)
	}
}

// layer is a gzip layer of the Go toolchain, about 100 MB plain.
func layer(b *testing.B) []byte {
	if name := os.Getenv("INFLATE_LAYER"); name != "" {
		p, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		return p
	}
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		b.Skip("no go command: ", err)
	}
	root := strings.TrimSpace(string(out))
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := tar.NewWriter(z)
	for _, dir := range []string{"bin", "src"} {
		err = filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			p, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := w.WriteHeader(&tar.Header{Name: path[1:], Mode: 0o644, Size: int64(len(p))}); err != nil {
				return err
			}
			_, err = w.Write(p)
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
	if err := z.Close(); err != nil {
		b.Fatal(err)
	}
	return buf.Bytes()
}

package tarindex

import (
	"archive/tar"
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
	"github.com/snapfs/snapfs/layers/layerstest"
	"github.com/snapfs/snapfs/layers/objects"
)

// unpacked unpacks stored, whose tar is plain, and checks what that gives.
func unpacked(t testing.TB, stored, plain []byte) *Unpacked {
	t.Helper()
	u, err := Unpack(t.Context(), bytes.NewReader(stored), describe(stored), digest.FromBytes(plain), testStore, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	checkUnpacked(t, u, stored, plain)
	return u
}

// checkUnpacked checks what Unpacked promises, against the bytes themselves.
func checkUnpacked(t testing.TB, u *Unpacked, stored, plain []byte) {
	t.Helper()
	layerstest.Index(t, u.Index, int64(len(plain)))
	for i := range u.Index.Entries {
		checkChunks(t, &u.Index.Entries[i], plain)
	}
	m := u.Map
	if err := m.Check(); err != nil || m.Plain != int64(len(plain)) || m.Stored != int64(len(stored)) {
		t.Fatalf("map of %d bytes, stored %d: %v; want %d, %d", m.Plain, m.Stored, err, len(plain), len(stored))
	}
	rnd := rand.New(rand.NewPCG(1, uint64(len(plain))))
	for i := range 20 {
		if m.Plain == 0 {
			break
		}
		off := rnd.Int64N(m.Plain)
		if i < len(m.Points) && m.Points[i].Plain < m.Plain {
			off = m.Points[i].Plain
		}
		n := 1 + rnd.Int64N(min(m.Plain-off, 200_000))
		if got := readMapped(t, u, stored, off, n); !bytes.Equal(got, plain[off:off+n]) {
			t.Fatalf("%d bytes at %d are wrong", n, off)
		}
	}
}

// checkChunks checks that the chunks of a file are its bytes.
func checkChunks(t testing.TB, e *layers.Entry, plain []byte) {
	t.Helper()
	if (e.Size > 0) != (len(e.Chunks) > 0) {
		t.Fatalf("%s: %d bytes, %d chunks", e.Name, e.Size, len(e.Chunks))
	}
	if e.Size == 0 {
		return
	}
	data := []byte(content(t, testStore, *e))
	for _, ck := range e.Chunks {
		p := make([]byte, ck.Size)
		if ck.BlobLen > 0 {
			copy(p, plain[ck.BlobOff:ck.BlobOff+ck.BlobLen])
			if ck.Size > layers.ChunkSize || ck.BlobLen != ck.Size || ck.Inner != 0 {
				t.Fatalf("%s: chunk %+v", e.Name, ck)
			}
		}
		if layers.SumOf(p) != ck.Sum || !bytes.Equal(p, data[ck.Off:ck.Off+ck.Size]) {
			t.Fatalf("%s: chunk %+v is not of the file", e.Name, ck)
		}
	}
	if layers.SumOf(data) != e.Object || len(e.Chunks) == 1 && e.Chunks[0].Sum != e.Object {
		t.Fatalf("%s: object %s, first chunk %+v", e.Name, e.Object, e.Chunks[0])
	}
}

// readMapped reads plain bytes from no more stored ones than the map says.
func readMapped(t testing.TB, u *Unpacked, stored []byte, off, n int64) []byte {
	t.Helper()
	first, from, to := u.Map.Locate(off, n)
	run := bytes.NewReader(stored[from:to])
	got := make([]byte, n)
	switch u.Map.Compression {
	case layers.None:
		if _, err := io.ReadFull(run, got); err != nil {
			t.Fatal(err)
		}
	case layers.Gzip:
		p := u.Map.Points[first]
		window, err := u.Windows.Window(t.Context(), first)
		if err != nil || len(window) != int(p.Window) {
			t.Fatalf("window %d of %d bytes: %d, %v", first, p.Window, len(window), err)
		}
		r := inflate.NewReader(&source{r: run}, p, window)
		if err := r.Discard(off - p.Plain); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(r, got); err != nil {
			t.Fatal(err)
		}
	case layers.Zstd:
		z, err := zstd.NewReader(run, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(1<<28))
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		if _, err := io.CopyN(io.Discard, z, off-u.Map.Points[first].Plain); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(z, got); err != nil {
			t.Fatal(err)
		}
	}
	return got
}

type source struct {
	r   io.Reader
	buf [1000]byte
}

func (s *source) Next() ([]byte, error) {
	n, err := s.r.Read(s.buf[:])
	return s.buf[:n], err
}

// words is text that compresses a little, the same for the same n.
func words(n int) string {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	p := make([]byte, n)
	for i := range p {
		p[i] = "etaoin shrdlu\n"[min(rnd.IntN(14), rnd.IntN(14))]
	}
	return string(p)
}

// sizes are files whose sizes are at the edges of chunks.
func sizes() (list []file) {
	for _, n := range []int{1, objects.MaxPacked, objects.MaxPacked + 1, layers.ChunkSize - 1, layers.ChunkSize, layers.ChunkSize + 1,
		2 * layers.ChunkSize, 2*layers.ChunkSize + 1, 5_000_000} {
		list = append(list, file{Header: tar.Header{Name: "f" + strings.Repeat("x", len(list)), Mode: 0o644}, data: words(n)})
	}
	return append(list,
		file{Header: tar.Header{Name: "empty"}},
		file{Header: tar.Header{Name: "again"}, data: words(300_000)}, // replaced below
		file{Header: tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "again"}},
		file{Header: tar.Header{Name: "again"}, data: words(400_000)},
	)
}

func TestMap(t *testing.T) {
	plain := archive(t, sizes()...)
	cut := func(each int, pack func([]byte) []byte) (p []byte) {
		for rest := plain; len(rest) > 0; rest = rest[min(each, len(rest)):] {
			p = append(p, pack(rest[:min(each, len(rest))])...)
		}
		return p
	}
	gz := func(p []byte) []byte { return gzipped(t, p) }
	zs := func(p []byte) []byte { return zstded(t, p) }
	skip := []byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}
	for name, tt := range map[string]struct {
		stored      []byte
		points, max int // least and most
	}{
		"plain":                  {plain, 1, 1},
		"gzip":                   {gz(plain), 4, 8},
		"gzip members":           {cut(100_000, gz), len(plain) / 100_000, len(plain)/100_000 + 1},
		"gzip, small members":    {cut(5_000, gz), len(plain) / 50_000, len(plain) / 32_000},
		"zstd":                   {zs(plain), 1, 1},
		"zstd frames":            {cut(100_000, zs), len(plain) / 100_000, len(plain)/100_000 + 1},
		"zstd, small frames":     {cut(5_000, zs), len(plain) / 50_000, len(plain) / 32_000},
		"zstd, empty frames":     {cut(100_000, func(p []byte) []byte { return append(zs(nil), zs(p)...) }), len(plain) / 100_000, len(plain)/100_000 + 1},
		"zstd, skippable frames": {cut(100_000, func(p []byte) []byte { return append(append(bytes.Clone(skip), zs(p)...), skip...) }), len(plain) / 100_000, len(plain)/100_000 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			u := unpacked(t, tt.stored, plain)
			if n := len(u.Map.Points); n < tt.points || n > tt.max {
				t.Errorf("%d points, want %d to %d", n, tt.points, tt.max)
			}
			stored, plainSpan := u.Map.Span()
			switch {
			case name == "plain":
				if stored != 0 {
					t.Errorf("span %d, want 0", stored)
				}
			case tt.max == 1:
				if stored != int64(len(tt.stored)) || plainSpan != int64(len(plain)) {
					t.Errorf("span %d, %d; want all", stored, plainSpan)
				}
			case plainSpan > 2*inflate.DefaultSpacing:
				t.Errorf("span of %d plain bytes", plainSpan)
			}
			for _, e := range u.Index.Entries {
				if e.Name == "hard" && (e.Kind != layers.Reg || e.Size != 300_000 || len(e.Chunks) != 5) {
					t.Errorf("the heir of a file that was replaced: %+v", e)
				}
			}
		})
	}
}

// zstd's own programs write frames of other forms: with checksums, without sizes.
func TestMapZstdProgram(t *testing.T) {
	if _, err := exec.LookPath("zstd"); err != nil {
		t.Skip("zstd is not installed")
	}
	plain := archive(t, sizes()[:8]...)
	for _, args := range [][]string{{"-1"}, {"-3", "--check"}, {"-3", "--no-check", "--no-content-size"}, {"-19"}, {"--long=27"}} {
		cmd := exec.Command("zstd", append(args, "-c")...)
		cmd.Stdin = bytes.NewReader(plain)
		stored, err := cmd.Output()
		if err != nil {
			t.Fatal(args, err)
		}
		unpacked(t, stored, plain)
		unpacked(t, append(stored, stored...), append(bytes.Clone(plain), plain...))
	}
}

// The standard library's archives: sparse files of all formats, and broken ones.
func TestMapTestdata(t *testing.T) {
	for name, p := range testArchives(t) {
		u, err := Unpack(t.Context(), bytes.NewReader(p), describe(p), digest.FromBytes(p), testStore, Options{MaxPlain: 64 << 20})
		if err != nil {
			continue // TestDifferentialTestdata knows better
		}
		t.Log(name)
		checkUnpacked(t, u, p, p)
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Sparse files as GNU tar writes them, of every format, with holes larger than a chunk.
func TestMapSparse(t *testing.T) {
	if out, err := exec.Command("tar", "--version").Output(); err != nil || !strings.Contains(string(out), "GNU tar") {
		t.Skip("no GNU tar")
	}
	dir := t.TempDir()
	for name, at := range map[string][]int64{
		"hole": nil, "data": {0}, "begin": {0, 15 << 20}, "amid": {9_000_000}, "many": {0, 1 << 20, 5_000_000, 6_000_000, 20_800_000},
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		size := int64(300_000)
		if name != "data" {
			size = 21_000_001
		}
		for _, off := range at {
			if _, err := f.WriteAt([]byte(words(300_000)), off); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, format := range [][]string{{"--format=gnu"}, {"--format=pax", "--sparse-version=0.0"}, {"--format=pax", "--sparse-version=0.1"}, {"--format=pax", "--sparse-version=1.0"}} {
		cmd := exec.Command("tar", append(format, "-S", "-C", dir, "-c", ".")...)
		plain, err := cmd.Output()
		if err != nil {
			t.Fatal(format, err)
		}
		if len(plain) > 10<<20 {
			t.Skipf("%s: %d bytes: this file system has no holes", format, len(plain))
		}
		u := unpacked(t, gzipped(t, plain), plain)
		holes := 0
		for _, e := range u.Index.Entries {
			for _, ck := range e.Chunks {
				if ck.BlobLen == 0 {
					holes++
				}
			}
		}
		if holes < 12 {
			t.Errorf("%s: %d holes", format, holes)
		}
	}
}

// A layer of more chunks than there may be is unpacked, but not mapped.
func TestTooManyChunks(t *testing.T) {
	c := cutter{count: maxChunks - 2, sum: func([]byte, bool) error { return nil }}
	c.whole(layers.Sum{1}, 1, 0)
	c.whole(layers.Sum{1}, 1, 0)
	if got := c.take(); c.full || len(got) != 2 {
		t.Fatalf("%d chunks, full: %v", len(got), c.full)
	}
	c.begin(0, 300_000)
	if err := c.data(make([]byte, 300_000)); err != nil {
		t.Fatal(err)
	}
	c.hole(1 << 40)
	if got := c.take(); !c.full || len(got) != 0 {
		t.Fatalf("%d chunks, full: %v", len(got), c.full)
	}
}

// Windows beyond what memory may hold are in a file.
func TestWindowsSpilled(t *testing.T) {
	w := newWindows(testStore)
	rnd := rand.New(rand.NewPCG(1, 2))
	var want [][]byte
	for i := range 500 {
		p := make([]byte, 1+rnd.IntN(inflate.Window))
		for j := range p {
			p[j] = byte(rnd.Uint32())
		}
		if i%7 == 3 {
			p = nil
		} else {
			w.add(i, p)
		}
		want = append(want, p)
	}
	if w.err != nil || w.file == nil || len(w.mem) > maxHeap {
		t.Fatalf("%v, file %v, %d bytes in memory", w.err, w.file, len(w.mem))
	}
	for i, p := range want {
		if got, err := w.Window(t.Context(), i); err != nil || !bytes.Equal(got, p) {
			t.Fatalf("window %d: %d bytes, %v; want %d", i, len(got), err, len(p))
		}
	}
	if p, err := w.Window(t.Context(), len(want)); p != nil || err != nil {
		t.Errorf("window of no point: %d bytes, %v", len(p), err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

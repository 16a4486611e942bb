package toc

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"

	"github.com/snapfs/snapfs/layers"
)

// makeTOC writes a TOC of n regular files in some directories as Go's encoder
// does, and returns it with the end of its chunks.
func makeTOC(t testing.TB, n int) ([]byte, int64) {
	t.Helper()
	var d estargz.JTOC
	d.Version = 1
	off := int64(512)
	for i := range n {
		if i%20 == 0 {
			d.Entries = append(d.Entries, &estargz.TOCEntry{Name: fmt.Sprintf("usr/lib/package%d/", i/20), Type: "dir", Mode: 0o755, ModTime3339: "2024-05-01T10:20:30Z"})
		}
		sum := layers.SumOf(fmt.Append(nil, i)).String()
		d.Entries = append(d.Entries, &estargz.TOCEntry{
			Name: fmt.Sprintf("usr/lib/package%d/some_module_name_%d.py", i/20, i), Type: "reg", Mode: 0o644, Size: 5000,
			ModTime3339: "2024-05-01T10:20:30Z", UID: 1000, GID: 1000, Digest: sum, ChunkDigest: sum, Offset: off,
		})
		off += 2000
	}
	p, err := json.MarshalIndent(d, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return p, off
}

func BenchmarkDecode(b *testing.B) {
	for _, n := range []int{30_000, 300_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p, end := makeTOC(b, n)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			var ix *layers.Index
			var before, after runtime.MemStats
			for b.Loop() {
				ix = nil
				var err error
				if ix, err = Decode(bytes.NewReader(p), Options{Compression: layers.Gzip, End: end, Size: int64(len(p))}); err != nil {
					b.Fatal(err)
				}
			}
			runtime.GC()
			runtime.ReadMemStats(&after)
			runtime.KeepAlive(ix)
			ix = nil
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB-kept")
		})
	}
}

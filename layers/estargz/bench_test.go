package estargz

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

// manyFiles is a blob whose TOC has n files in directories of 20, with the TOC's digest.
func manyFiles(t testing.TB, n int) (*blob, digest.Digest) {
	t.Helper()
	doc := &estargz.JTOC{Version: 1}
	off := int64(512)
	for i := range n {
		if i%20 == 0 {
			doc.Entries = append(doc.Entries, &estargz.TOCEntry{Name: fmt.Sprintf("usr/lib/package%d/", i/20), Type: "dir", Mode: 0o755, ModTime3339: "2024-05-01T10:20:30Z"})
		}
		sum := layers.SumOf(fmt.Append(nil, i)).String()
		doc.Entries = append(doc.Entries, &estargz.TOCEntry{
			Name: fmt.Sprintf("usr/lib/package%d/some_module_name_%d.py", i/20, i), Type: "reg", Mode: 0o644, Size: 5000,
			ModTime3339: "2024-05-01T10:20:30Z", Digest: sum, ChunkDigest: sum, Offset: off,
		})
		off += 2000
	}
	b := bytes.NewBuffer(make([]byte, off))
	d, err := estargz.NewGzipCompressorWithLevel(1).WriteTOCAndFooter(b, off, doc, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &blob{p: b.Bytes()}, d
}

func BenchmarkOpen(b *testing.B) {
	for _, n := range []int{30_000, 300_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bl, d := manyFiles(b, n)
			b.ReportAllocs()
			var ix *layers.Index
			for b.Loop() {
				ix = nil
				var err error
				if ix, err = Open(b.Context(), bl, d); err != nil {
					b.Fatal(err)
				}
			}
			kept := heap()
			runtime.KeepAlive(ix)
			ix = nil
			b.ReportMetric(float64(kept-heap())/(1<<20), "MiB-kept")
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

package registry

import (
	"io"
	"testing"
)

// BenchmarkStream reads a blob of 64 MiB from loopback: the cost of one request
// against that of several ranges at once.
func BenchmarkStream(b *testing.B) {
	s := newServer(b)
	img := makeImage(b, "amd64", 64<<20)
	ref := mustRef(b, s.put(b, "a/b", "v1", img))
	for _, c := range []struct {
		name string
		n    int
	}{{"one", 1}, {"four", 4}} {
		b.Run(c.name, func(b *testing.B) {
			r := newRegistry(b, Options{Parallel: c.n})
			b.SetBytes(64 << 20)
			b.ReportAllocs()
			for b.Loop() {
				rc, err := r.Stream(b.Context(), ref, img.layer(0))
				if err != nil {
					b.Fatal(err)
				}
				if n, err := io.Copy(io.Discard, rc); n != 64<<20 || err != nil {
					b.Fatal(n, err)
				}
				rc.Close()
			}
		})
	}
}

// BenchmarkRange reads 64 KiB at a time: what a request costs us.
func BenchmarkRange(b *testing.B) {
	s := newServer(b)
	img := makeImage(b, "amd64", 1<<20)
	ref := mustRef(b, s.put(b, "a/b", "v1", img))
	blob, err := newRegistry(b, Options{}).Blob(ref, img.layer(0))
	if err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 64<<10)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := blob.ReadAt(b.Context(), p, 300_000); err != nil {
			b.Fatal(err)
		}
	}
}

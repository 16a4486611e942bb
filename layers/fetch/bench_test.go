package fetch

import (
	"fmt"
	"io"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// What a FUSE read of bytes that are there costs before its answer.
func BenchmarkReadAtCached(b *testing.B) {
	for _, n := range []int{4 << 10, 128 << 10} {
		b.Run(fmt.Sprintf("complete/%dK", n>>10), func(b *testing.B) {
			f := newFetcher(b, Options{})
			data := random(1 << 20)
			if err := f.store.Put(layers.SumOf(data), data); err != nil {
				b.Fatal(err)
			}
			benchRead(b, f, data, n)
		})
		b.Run(fmt.Sprintf("partial/%dK", n>>10), func(b *testing.B) {
			f := newFetcher(b, Options{})
			data := random(1 << 20)
			fx := build(b, [][]byte{data, random(1 << 20)}, 512<<10, 0)
			f.Add("a", fx.layer())
			benchRead(b, f, data[:512<<10], n) // not all of it
		})
	}
}

func benchRead(b *testing.B, f *Fetcher, data []byte, n int) {
	sum := layers.SumOf(data)
	if len(data) < 1<<20 {
		sum = f.layers[0].inOrder().sums[0]
	}
	p := make([]byte, n)
	ctx := b.Context()
	b.SetBytes(int64(n))
	b.ReportAllocs()
	off := 0
	for b.Loop() {
		if _, err := f.ReadAt(ctx, sum, p, int64(off)); err != nil && err != io.EOF {
			b.Fatal(err)
		}
		if off += n; off >= len(data) {
			off = 0
		}
	}
}

// A layer of many small files on a fast link: what completion costs by itself.
func BenchmarkComplete(b *testing.B) {
	var files [][]byte
	total := 0
	for i := range 2000 {
		files = append(files, random(2000+i%8000))
		total += len(files[i])
	}
	files = append(files, random(16<<20))
	fx := build(b, files, 4<<20, 0)
	b.SetBytes(int64(total + 16<<20))
	b.ReportAllocs()
	for b.Loop() {
		f := newFetcher(b, Options{})
		f.Add("a", fx.layer())
		if err := f.Complete(b.Context(), []string{"a"}, nil); err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

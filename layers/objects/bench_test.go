package objects

import (
	"testing"

	"github.com/snapfs/snapfs/layers"
)

func BenchmarkPut8K(b *testing.B) {
	s := open(b, b.TempDir(), "a")
	data := random(8 << 10)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		data[0], data[1], data[2], data[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		if err := s.Put(layers.SumOf(data), data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPackAdd4K(b *testing.B) {
	s := open(b, b.TempDir(), "a")
	p, err := s.NewPack("p")
	if err != nil {
		b.Fatal(err)
	}
	defer p.Abort()
	data := random(4 << 10)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		data[0], data[1], data[2], data[3] = byte(i), byte(i>>8), byte(i>>16), byte(i>>24)
		if _, err := p.Add(data); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkWriter(b *testing.B) {
	s := open(b, b.TempDir(), "a")
	data := random(8 << 20)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		data[0], data[1], data[2] = byte(i), byte(i>>8), byte(i>>16)
		w, err := s.Create()
		if err != nil {
			b.Fatal(err)
		}
		for p := data; len(p) > 0; p = p[64<<10:] {
			if _, err := w.Write(p[:64<<10]); err != nil {
				b.Fatal(err)
			}
		}
		sum, err := w.Commit(nil)
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Remove(sum); err != nil {
			b.Fatal(err)
		}
	}
}

// What a lookup costs that finds nothing, with many packs.
func BenchmarkMiss(b *testing.B) {
	s := open(b, b.TempDir(), "a")
	for range 50 {
		putPack(b, s, many(500, 100)...)
	}
	sum := layers.SumOf([]byte("no"))
	b.ReportAllocs()
	for b.Loop() {
		if s.Has(sum) {
			b.Fatal("found")
		}
	}
}

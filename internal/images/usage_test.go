package images

import (
	"fmt"
	"slices"
	"testing"

	"github.com/snapfs/snapfs/internal/images/imagestest"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// usage is what a layer has on disk, counted now.
func (b *book) usage(l Layer) objects.Space {
	b.Helper()
	b.used.mu.Lock()
	b.used.of = nil
	b.used.mu.Unlock()
	u, err := b.Usage(b.Context(), l)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

func TestUsage(t *testing.T) {
	b := newBook(t)
	shared, own := imagestest.Files(1, "a", 40), imagestest.Files(2, "b", 40)
	one := b.hub.Push(t, "one", imagestest.Gzip, imagestest.Native, shared)
	two := b.hub.Push(t, "two", imagestest.Gzip, imagestest.Native, slices.Concat(shared, own))
	l1 := b.take(one)[0]
	alone := b.usage(l1)
	if alone.Bytes == 0 || alone.Files == 0 {
		t.Fatalf("Usage = %+v", alone)
	}
	l2 := b.take(two)[0]
	b.hold(l1, l2)
	b.done()
	b.settle()
	b.collected()
	sum := b.usage(l1)
	sum.Add(b.usage(l2))
	disk, err := b.Store.Usage()
	if err != nil {
		t.Fatal(err)
	}
	meta := objects.Space{}
	for _, d := range []string{"layers", "images"} {
		for _, name := range b.ls(d) {
			meta.Add(space(b.root + "/" + d + "/" + name))
		}
	}
	// Packs have a header, a footer and half a block that no object has.
	if slack := disk.Bytes() + meta.Bytes - sum.Bytes; slack < 0 || slack > int64(disk.Packs)*(8<<10) {
		t.Errorf("two layers have %d bytes together, on disk are %d", sum.Bytes, disk.Bytes()+meta.Bytes)
	}
	if want := disk.Objects + disk.Partials + meta.Files; sum.Files != want {
		t.Errorf("two layers have %d files together, on disk are %d", sum.Files, want)
	}
	b.hold(l2)
	if u := b.usage(l2); u.Bytes < alone.Bytes {
		t.Errorf("alone, the second layer has %+v, the first had %+v", u, alone)
	}
}

// TestUsageOfParts: of what is lazily there only that counts which is there.
func TestUsageOfParts(t *testing.T) {
	b := newBook(t)
	big := imagestest.Reg("big", imagestest.Noise(7, 1<<20))
	im := b.hub.Push(t, "a", imagestest.EStargz, imagestest.Native, []imagestest.File{big})
	l := b.take(im)[0]
	b.done()
	before := b.usage(l)
	if before.Bytes > 100<<10 {
		t.Errorf("nothing was read, and there are %d bytes", before.Bytes)
	}
	if _, err := b.opt.Files.ReadAt(t.Context(), layers.SumOf(big.Data), make([]byte, 1), 0); err != nil {
		t.Fatal(err)
	}
	b.waitFor(func() bool { return b.usage(l).Bytes >= before.Bytes+64<<10 })
	if u, err := b.Usage(t.Context(), l); err != nil || u.Bytes > 2<<20 {
		t.Errorf("Usage = %+v, %v", u, err)
	}
	if _, ok := b.used.get(l.Key, b.used.at); !ok {
		t.Error("it is counted each time")
	}
}

// TestUsageOfNothing: a layer that is not there takes nothing.
func TestUsageOfNothing(t *testing.T) {
	b := newBook(t)
	if u, err := b.Usage(t.Context(), Layer{Key: "gone", Blob: "x"}); err != nil || u != (objects.Space{}) {
		t.Errorf("Usage = %+v, %v", u, err)
	}
}

// BenchmarkUsage counts what 60 layers of 300 files each have on disk, of which
// a half are shared.
func BenchmarkUsage(b *testing.B) {
	bk := newBook(b)
	var list [][]imagestest.File
	for i := range 60 {
		list = append(list, imagestest.Files(uint64(i/2), fmt.Sprint(i), 300))
	}
	all := bk.take(bk.hub.Push(b, "a", imagestest.Gzip, imagestest.Native, list...))
	for b.Loop() {
		if err := bk.countUsage(b.Context(), all[0]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/60/300, "ns/file")
}

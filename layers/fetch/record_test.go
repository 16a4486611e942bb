package fetch

import (
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers"
)

func TestRecord(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetcher(t, Options{})
		files := mappedFiles()
		fx := buildMapped(t, files, layers.Gzip)
		f.Add("a", fx.layer())
		local := random(300_000)
		if err := f.store.Put(layers.SumOf(local), local); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 10_000)
		read := func(data []byte, off int64) {
			if _, err := f.ReadAt(t.Context(), layers.SumOf(data), p, off); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		read(files[0], 0) // before it began
		a := f.Record()
		time.Sleep(time.Second)
		read(files[3], 300_000)
		b := f.Record()
		time.Sleep(time.Second)
		read(local, layers.ChunkSize-100) // two chunks
		read(files[3], 310_000)
		read(files[0], 0)
		read(files[3], 1<<20) // the end
		got, dropped := a.Stop()
		read(files[2], 0)
		c := fx.entries[3].Chunks[300_000/layers.ChunkSize]
		want := []Touch{
			{layers.SumOf(files[3]), c.Off, c.Size, c.Sum, time.Second},
			{layers.SumOf(local), 0, layers.ChunkSize, layers.Sum{}, 2 * time.Second},
			{layers.SumOf(local), layers.ChunkSize, layers.ChunkSize, layers.Sum{}, 2 * time.Second},
			{layers.SumOf(files[0]), 0, 100, layers.SumOf(files[0]), 2 * time.Second},
		}
		if len(got) != len(want) || dropped != 0 {
			t.Fatalf("Stop = %+v, %d", got, dropped)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("touch %d is %+v, want %+v", i, got[i], want[i])
			}
		}
		if again, _ := a.Stop(); len(again) != 0 {
			t.Errorf("second Stop = %d touches", len(again))
		}
		if got, _ := b.Stop(); len(got) != 5 || got[2].Object != layers.SumOf(files[3]) || got[0].At != time.Second {
			t.Errorf("the other recording has %+v", got)
		}
		if f.recordings.Load() != nil {
			t.Error("recordings go on")
		}
	})
}

func TestRecordBounded(t *testing.T) {
	r := newFetcher(t, Options{}).Record()
	for i := range int64(maxNoted + 100) {
		r.touch(&layers.Sum{1}, i*recordBlock, 1)
	}
	r.touch(&layers.Sum{1}, -5, 1)
	r.touch(&layers.Sum{1}, 5, 0)
	if len(r.log) != maxNoted {
		t.Errorf("%d places are remembered", len(r.log))
	}
	if _, dropped := r.Stop(); dropped != 100 {
		t.Errorf("%d were dropped, want 100", dropped)
	}
}

func TestRecordConcurrently(t *testing.T) {
	f := newFetcher(t, Options{})
	data := random(1 << 20)
	if err := f.store.Put(layers.SumOf(data), data); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r := f.Record()
			check(t, f, data, 5000)
			if got, _ := r.Stop(); len(got) != len(data)/layers.ChunkSize {
				t.Errorf("%d touches, want %d", len(got), len(data)/layers.ChunkSize)
			}
		})
	}
	wg.Wait()
}

// What a recording costs a read.
func BenchmarkRecord(b *testing.B) {
	for _, on := range []string{"off", "seen", "new"} {
		b.Run(on, func(b *testing.B) {
			f := New(Options{Store: newStore(b)})
			defer f.Close()
			var r *Recording
			if on != "off" {
				r = f.Record()
			}
			sum := layers.SumOf(nil)
			i := int64(0)
			for b.Loop() {
				if rs := f.recordings.Load(); rs != nil {
					for _, r := range *rs {
						r.touch(&sum, i, 100)
					}
				}
				if on == "new" {
					if i += recordBlock; i > recordBlock*maxNoted/2 {
						b.StopTimer()
						r.Stop()
						r, i = f.Record(), 0
						b.StartTimer()
					}
				}
			}
		})
	}
}

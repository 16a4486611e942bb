package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/snapfs/snapfs/layers"
)

// itemsOf returns all chunks of a fixture, in the order of the layer.
func itemsOf(fx *fixture) (items []Item) {
	for _, e := range fx.entries {
		for _, c := range e.Chunks {
			items = append(items, Item{e.Object, c.Off, c.Size})
		}
	}
	return items
}

func TestPrefetch(t *testing.T) {
	for _, mapped := range []bool{true, false} {
		f := newFetcher(t, Options{})
		files := mappedFiles()
		var fx *fixture
		if mapped {
			m := buildMapped(t, files, layers.Gzip)
			f.Add("a", m.layer())
			fx = m.fixture
		} else {
			fx = build(t, files, 128<<10, 100)
			f.Add("a", fx.layer())
		}
		items := itemsOf(fx)
		rand.Shuffle(len(items), func(i, j int) { items[i], items[j] = items[j], items[i] })
		items = append([]Item{{layers.SumOf([]byte("no such")), 0, 10}, {items[0].Object, -1, 10}, {items[0].Object, 1 << 40, 10}}, items...)
		if err := f.Prefetch(t.Context(), items); err != nil {
			t.Fatal(err)
		}
		quiet(f)
		before := fx.reads.Load()
		if before > int64(len(items))/2 {
			t.Errorf("mapped %v: %d requests for %d items", mapped, before, len(items))
		}
		for _, p := range files {
			check(t, f, p, 1<<20)
		}
		if n := fx.reads.Load() - before; n != 0 {
			t.Errorf("mapped %v: %d requests for what was fetched before", mapped, n)
		}
		// Of a mapped layer, each request pays for the rest of a mark at both
		// ends, and this layer is small.
		if n := fx.bytes.Load(); n > fx.Size()*3/2 {
			t.Errorf("mapped %v: %d bytes fetched of %d", mapped, n, fx.Size())
		}
	}
}

// What is first in the list is asked for first, and what is far from everything
// in the list is not asked for.
func TestPrefetchOrder(t *testing.T) {
	f := newFetcher(t, Options{Parallel: 1})
	var files [][]byte
	for range 40 {
		files = append(files, random(300_000))
	}
	fx := build(t, files, 1<<20, 0)
	f.Add("a", fx.layer())
	var mu sync.Mutex
	var offs []int64
	fx.hook = func(_ context.Context, off, n int64) error {
		mu.Lock()
		defer mu.Unlock()
		offs = append(offs, off)
		return nil
	}
	order := []int{30, 10, 20, 0}
	var items []Item
	var want int64
	for _, i := range order {
		items = append(items, Item{fx.entries[i].Object, 0, 300_000})
		want += fx.entries[i].Chunks[0].BlobLen
	}
	if err := f.Prefetch(t.Context(), items); err != nil {
		t.Fatal(err)
	}
	if n := fx.bytes.Load(); n != want || len(offs) != len(order) {
		t.Fatalf("%d requests for %d bytes, want %d, %d", len(offs), n, len(order), want)
	}
	for k, i := range order[:2] { // two workers: the last ones may pass each other
		if at := fx.entries[i].Chunks[0].BlobOff; offs[k] != at && offs[1-k] != at {
			t.Errorf("request %d is for %d, want %d", k, offs[k], at)
		}
	}
}

// A reader's miss goes before what is left of a profile.
func TestPrefetchYields(t *testing.T) {
	f := newFetcher(t, Options{})
	var files [][]byte
	for range 60 {
		files = append(files, random(500_000))
	}
	fx := build(t, files, 1<<20, 0)
	fg := build(t, [][]byte{random(1000)}, 1<<20, 0)
	f.Add("a", fx.layer())
	f.Add("b", fg.layer())
	begun, goOn := make(chan struct{}, 99), make(chan struct{})
	var sent atomic.Int64
	fx.hook = func(context.Context, int64, int64) error {
		sent.Add(1)
		begun <- struct{}{}
		<-goOn
		return nil
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Prefetch(t.Context(), itemsOf(fx)); err != nil {
			t.Error(err)
		}
	})
	<-begun
	check(t, f, []byte(fileOf(t, f, fg)), 100) // while all requests of the profile are stuck
	if n := sent.Load(); n > 3 {
		t.Errorf("%d requests of a profile at once", n)
	}
	close(goOn)
	wg.Wait()
}

// fileOf reads the only file of a fixture.
func fileOf(t *testing.T, f *Fetcher, fx *fixture) []byte {
	t.Helper()
	p := make([]byte, fx.entries[0].Size)
	if _, err := f.ReadAt(t.Context(), fx.entries[0].Object, p, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	return p
}

func TestPrefetchFails(t *testing.T) {
	f := newFetcher(t, Options{})
	fx := build(t, someFiles(), 64<<10, 0)
	want := errors.New("down")
	fx.hook = func(context.Context, int64, int64) error { return want }
	f.Add("a", fx.layer())
	if err := f.Prefetch(t.Context(), itemsOf(fx)); !errors.Is(err, want) {
		t.Errorf("Prefetch = %v, want %v", err, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Prefetch(ctx, itemsOf(fx)); !errors.Is(err, context.Canceled) {
		t.Errorf("Prefetch = %v, want Canceled", err)
	}
	quiet(f)
	fx.hook = nil
	if err := f.Prefetch(t.Context(), itemsOf(fx)); err != nil {
		t.Errorf("Prefetch when the network is back = %v", err)
	}
}

// delivered makes a mapped layer of which everything is expected.
func delivered(t *testing.T) (f *Fetcher, files [][]byte, fx *mappedFixture, done func()) {
	f = newFetcher(t, Options{})
	files = mappedFiles()
	fx = buildMapped(t, files, layers.Gzip)
	f.Add("a", fx.layer())
	return f, files, fx, f.Expect(itemsOf(fx.fixture))
}

// insert delivers chunks [first, end) of all items.
func insert(t *testing.T, f *Fetcher, files [][]byte, items []Item) {
	t.Helper()
	data := make(map[layers.Sum][]byte)
	for _, p := range files {
		data[layers.SumOf(p)] = p
	}
	for _, it := range items {
		if _, err := f.Insert(it.Object, it.Off, data[it.Object][it.Off:][:it.Size]); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExpect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, files, fx, done := delivered(t)
		var wg sync.WaitGroup
		for _, i := range []int{3, 10, 20} {
			wg.Go(func() { check(t, f, files[i], 1<<20) })
		}
		synctest.Wait() // they all wait
		if n := fx.reads.Load(); n != 0 {
			t.Fatalf("%d requests for what is to be delivered", n)
		}
		insert(t, f, files, itemsOf(fx.fixture))
		wg.Wait()
		done()
		for _, p := range files {
			check(t, f, p, 1<<20)
			if !f.store.Has(layers.SumOf(p)) {
				t.Fatal("an object is not complete")
			}
		}
		if n := fx.reads.Load(); n != 0 {
			t.Errorf("%d requests", n)
		}
		if got, want := f.stats.Inserted.Load(), f.stats.Kept.Load(); got != want || got == 0 {
			t.Errorf("%d bytes inserted, %d kept", got, want)
		}
	})
}

// A delivery that does not come: the reader waits a bounded time, and is served.
func TestExpectStalls(t *testing.T) {
	for _, after := range []int{0, 12} {
		synctest.Test(t, func(t *testing.T) {
			f, files, fx, done := delivered(t)
			items := itemsOf(fx.fixture)
			time.Sleep(10 * time.Millisecond)
			insert(t, f, files, items[:after]) // and then no more
			began := time.Now()
			check(t, f, files[8], 1<<20)
			if took := time.Since(began); took > patience {
				t.Errorf("a reader waited %v", took)
			}
			if fx.reads.Load() == 0 || f.stats.Late.Load() == 0 {
				t.Errorf("%d requests, %d late", fx.reads.Load(), f.stats.Late.Load())
			}
			// It comes after all, while other chunks are still waited for.
			insert(t, f, files, items)
			done()
			check(t, f, files[3], 1<<20)
		})
	}
}

// A chunk at the end of a slow delivery is not waited for.
func TestExpectFar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, files, fx, done := delivered(t)
		defer done()
		time.Sleep(time.Second)
		insert(t, f, files, itemsOf(fx.fixture)[:5]) // a second for a few KiB
		began := time.Now()
		check(t, f, files[len(files)-1], 1<<20)
		if took := time.Since(began); took > 10*time.Millisecond || fx.reads.Load() != 1 {
			t.Errorf("it took %v, with %d requests", took, fx.reads.Load())
		}
	})
}

// A delivery that ends early: who waits asks by himself, and nobody else is asked for.
func TestExpectEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, files, fx, done := delivered(t)
		var wg sync.WaitGroup
		wg.Go(func() { check(t, f, files[10], 1<<20) })
		synctest.Wait()
		began := time.Now()
		done()
		done()
		wg.Wait()
		if took := time.Since(began); took > 0 || fx.reads.Load() != 1 {
			t.Errorf("it took %v, with %d requests", took, fx.reads.Load())
		}
		quiet(f)
		f.mu.RLock()
		defer f.mu.RUnlock()
		for _, o := range f.objs {
			if o.refs != 0 || len(o.flights) != 0 {
				t.Errorf("object %s has %d references, %d flights", o.sum, o.refs, len(o.flights))
			}
		}
	})
}

func TestInsert(t *testing.T) {
	f := newFetcher(t, Options{})
	files := mappedFiles()
	fx := buildMapped(t, files, layers.Gzip)
	f.Add("a", fx.layer())
	big, small := files[3], files[10]
	for _, c := range []struct {
		name  string
		sum   layers.Sum
		off   int64
		plain []byte
		want  bool
		bad   bool
	}{
		{"unknown", layers.SumOf([]byte("x")), 0, []byte("x"), false, false},
		{"not a chunk", layers.SumOf(big), 5, big[5:100], false, false},
		{"part of a chunk", layers.SumOf(big), 0, big[:100], false, false},
		{"wrong bytes", layers.SumOf(big), 0, random(layers.ChunkSize), false, true},
		{"wrong small file", layers.SumOf(small), 0, random(len(small)), false, true},
		{"chunk", layers.SumOf(big), 0, big[:layers.ChunkSize], true, false},
		{"again", layers.SumOf(big), 0, big[:layers.ChunkSize], false, false},
		{"small file", layers.SumOf(small), 0, small, true, false},
		{"small file again", layers.SumOf(small), 0, small, false, false},
	} {
		got, err := f.Insert(c.sum, c.off, c.plain)
		if got != c.want || isDigest(err) != c.bad || !c.bad && err != nil {
			t.Errorf("%s: Insert = %v, %v", c.name, got, err)
		}
	}
	if f.stats.Lies.Load() != 0 {
		t.Error("the layer is blamed for what was delivered")
	}
	check(t, f, small, 100)
	p := make([]byte, layers.ChunkSize)
	if _, err := f.ReadAt(t.Context(), layers.SumOf(big), p, 0); err != nil || !bytes.Equal(p, big[:len(p)]) {
		t.Errorf("ReadAt = %v", err)
	}
	if n := fx.reads.Load(); n != 0 {
		t.Errorf("%d requests for what was inserted", n)
	}
	check(t, f, big, 1<<20)
}

// Readers, a delivery and a profile all at once.
func TestBootStorm(t *testing.T) {
	f, files, fx, done := delivered(t)
	items := itemsOf(fx.fixture)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer done()
		insert(t, f, files, items[:len(items)*2/3])
	})
	wg.Go(func() {
		if err := f.Prefetch(t.Context(), items); err != nil {
			t.Error(err)
		}
	})
	for range 4 {
		wg.Go(func() {
			for _, i := range rand.Perm(len(files)) {
				check(t, f, files[i], 100_000)
			}
		})
	}
	wg.Wait()
}

package fetch

import (
	"bytes"
	"context"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

// plainLayer is a layer of which only the stored bytes matter.
func plainLayer(t testing.TB, data []byte) *fixture {
	t.Helper()
	fx := &fixture{blob: &blob{data: data}}
	fx.write(t)
	return fx
}

func TestStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetcher(t, Options{})
		fx := plainLayer(t, random(20<<20+7))
		// They overtake each other, and each twentieth fails. Not by chance: the pace, and
		// so the number of requests, follows the fastest of them.
		var asked atomic.Int64
		fx.hook = func(context.Context, int64, int64) error {
			n := asked.Add(1)
			time.Sleep(time.Duration(20+n*37%80) * time.Millisecond)
			if n%20 == 0 {
				return errors.New("reset")
			}
			return nil
		}
		f.Add("a", fx.layer())
		r, err := f.Stream(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, fx.data) {
			t.Fatalf("ReadAll = %d bytes, %v, want %d", len(got), err, len(fx.data))
		}
		if n := f.stats.Fetched.Load(); n != fx.Size() {
			t.Errorf("%d bytes fetched of %d", n, fx.Size())
		}
		if n := fx.reads.Load(); n > 24 { // it is 18
			t.Errorf("%d requests for 20 MiB", n)
		}
	})
}

func TestStreamEnds(t *testing.T) {
	read := func(r io.ReadCloser) error {
		defer r.Close()
		_, err := io.Copy(io.Discard, r)
		return err
	}
	lost := errors.New("404")
	for _, c := range []struct {
		name string
		want error
		make func(f *Fetcher, fx *fixture, cancel func())
	}{
		{"ctx", context.Canceled, func(_ *Fetcher, fx *fixture, cancel func()) {
			fx.hook = func(ctx context.Context, _, _ int64) error { cancel(); <-ctx.Done(); return ctx.Err() }
		}},
		{"layer removed", context.Canceled, func(f *Fetcher, fx *fixture, _ func()) {
			fx.hook = func(ctx context.Context, _, _ int64) error { f.Remove("a"); <-ctx.Done(); return ctx.Err() }
		}},
		{"blob lost", lost, func(_ *Fetcher, fx *fixture, _ func()) {
			fx.hook = func(_ context.Context, off, _ int64) error {
				if off > 1<<20 {
					return lost
				}
				return nil
			}
		}},
		{"broken disk of a mirror", unix.EIO, func(_ *Fetcher, fx *fixture, _ func()) {
			fx.hook = func(context.Context, int64, int64) error { return unix.EIO }
		}},
		{"no room", ErrNoRoom, func(f *Fetcher, fx *fixture, _ func()) {
			var n atomic.Int64
			f.o.Room = func() bool { return n.Add(1) < 4 }
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFetcher(t, Options{})
				fx := plainLayer(t, random(8<<20))
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				c.make(f, fx, cancel)
				f.Add("a", fx.layer())
				r, err := f.Stream(ctx, "a")
				if err == nil {
					err = read(r)
				}
				if !errors.Is(err, c.want) {
					t.Errorf("Read = %v, want %v", err, c.want)
				}
				synctest.Wait()
				if q := f.Queues()[background]; q.Open+q.Waiting != 0 {
					t.Errorf("it left %+v", q)
				}
			})
		})
	}
	t.Run("short blob", func(t *testing.T) {
		f := newFetcher(t, Options{})
		fx := plainLayer(t, random(1<<20))
		l := fx.layer()
		l.Blob = claims{fx, 2 << 20}
		f.Add("a", l)
		r, err := f.Stream(t.Context(), "a")
		if err == nil {
			err = read(r)
		}
		if !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Read = %v, want ErrBadLayer", err)
		}
	})
	t.Run("unknown layer", func(t *testing.T) {
		if _, err := newFetcher(t, Options{}).Stream(t.Context(), "a"); err == nil {
			t.Error("Stream = nil")
		}
	})
	t.Run("closed", func(t *testing.T) {
		f := New(Options{Store: newStore(t)})
		f.Add("a", plainLayer(t, random(10)).layer())
		f.Close()
		if _, err := f.Stream(t.Context(), "a"); err == nil {
			t.Error("Stream = nil")
		}
	})
}

// claims is a blob that says it is larger than it is.
type claims struct {
	layers.Blob
	size int64
}

func (c claims) Size() int64 { return c.size }

// Who does not read is not sent the whole layer, and Close ends what is under way.
func TestStreamUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFetcher(t, Options{})
		fx := plainLayer(t, make([]byte, 64<<20))
		f.Add("a", fx.layer())
		r, err := f.Stream(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := fx.bytes.Load(); n > 8*maxUnit {
			t.Errorf("%d bytes wait for who does not read", n)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if _, err := r.Read(make([]byte, 1<<30)); err == nil {
			_, err = io.Copy(io.Discard, r)
			if err == nil {
				t.Error("Read to the end after Close")
			}
		}
	})
}

// A reader's miss goes before what a stream asks for next.
func TestStreamYields(t *testing.T) {
	f := newFetcher(t, Options{})
	bg, fg := plainLayer(t, random(4<<20)), build(t, [][]byte{random(100_000)}, 1<<20, 0)
	inDemand, goOn := make(chan struct{}), make(chan struct{})
	fg.hook = func(context.Context, int64, int64) error { close(inDemand); <-goOn; return nil }
	var waiting atomic.Bool
	bg.hook = func(context.Context, int64, int64) error {
		if waiting.Load() {
			t.Error("the stream asked for more while a reader waited")
		}
		return nil
	}
	f.Add("bg", bg.layer())
	f.Add("fg", fg.layer())
	var wg sync.WaitGroup
	wg.Go(func() { f.ReadAt(t.Context(), fg.entries[0].Object, make([]byte, 10), 0) })
	<-inDemand
	waiting.Store(true)
	r, err := f.Stream(t.Context(), "bg")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for f.gate.waiting(background) == 0 {
		runtime.Gosched()
	}
	waiting.Store(false)
	close(goOn)
	wg.Wait()
	if n, err := io.Copy(io.Discard, r); n != bg.Size() || err != nil {
		t.Errorf("Copy = %d, %v", n, err)
	}
}

// The registry loses a blob while containers run on it: what is local is read,
// what is not fails and is told of, and when a mirror has it all is well.
func TestBlobLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log watchLog
		f := newFetcher(t, Options{Watch: log.watch()})
		files := mappedFiles()
		fx := buildMapped(t, files, layers.Gzip)
		f.Add("a", fx.layer())
		check(t, f, files[3], 1<<20)
		quiet(f)
		lost := errors.New("404")
		fx.hook = func(context.Context, int64, int64) error { return lost }
		r, err := f.Stream(t.Context(), "a")
		if err == nil {
			_, err = io.Copy(io.Discard, r)
			r.Close()
		}
		if !errors.Is(err, lost) {
			t.Errorf("Stream = %v, want %v", err, lost)
		}
		check(t, f, files[3], 1<<20)
		last := files[len(files)-3]
		if _, err := f.ReadAt(t.Context(), layers.SumOf(last), make([]byte, 10), 1<<20); !errors.Is(err, lost) {
			t.Errorf("ReadAt = %v, want %v", err, lost)
		}
		log.mu.Lock()
		if w := log.waits[len(log.waits)-1]; !errors.Is(w.Err, lost) || w.Object != layers.SumOf(last) || len(log.lies) > 0 {
			t.Errorf("told of %+v, lies %v", w, log.lies)
		}
		log.mu.Unlock()
		fx.hook = nil
		check(t, f, last, 1<<20)
	})
}

// A mapped layer becomes complete by another way, while somebody reads.
func TestDone(t *testing.T) {
	f := newFetcher(t, Options{Whole: -1})
	files := mappedFiles()
	fx := buildMapped(t, files, layers.Gzip)
	f.Add("a", fx.layer())
	if err := f.Done("b"); err == nil {
		t.Error("Done with an unknown layer = nil")
	}
	big := len(files) - 3
	p := make([]byte, 100)
	for _, i := range []int{3, big} { // a part of each
		if _, err := f.ReadAt(t.Context(), layers.SumOf(files[i]), p, 700_000); err != nil {
			t.Fatal(err)
		}
	}
	quiet(f)
	for i, data := range files {
		if i != big {
			if err := f.store.Put(layers.SumOf(data), data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := f.Done("a"); err != nil {
		t.Fatal(err)
	}
	if sums, err := f.store.Partials(); err != nil || len(sums) != 1 || sums[0] != layers.SumOf(files[big]) {
		t.Errorf("Partials = %v, %v", sums, err)
	}
	before := fx.reads.Load()
	check(t, f, files[3], 1<<20)
	if n := fx.reads.Load() - before; n != 0 {
		t.Errorf("%d requests for what is there", n)
	}
	check(t, f, files[big], 1<<20)
}

func TestNoRoom(t *testing.T) {
	f := newFetcher(t, Options{Room: func() bool { return false }})
	files := mappedFiles()
	fx := buildMapped(t, files, layers.Gzip)
	f.Add("a", fx.layer())
	if err := f.Complete(t.Context(), []string{"a"}, nil); !errors.Is(err, ErrNoRoom) {
		t.Errorf("Complete = %v, want ErrNoRoom", err)
	}
	if err := f.Prefetch(t.Context(), []Item{{layers.SumOf(files[3]), 0, 1 << 20}}); !errors.Is(err, ErrNoRoom) {
		t.Errorf("Prefetch = %v, want ErrNoRoom", err)
	}
	if n := fx.reads.Load(); n != 0 {
		t.Errorf("%d requests", n)
	}
	check(t, f, files[10], 1<<20)
	quiet(f)
	for i, p := range files {
		if f.store.Has(layers.SumOf(p)) != (i == 10) {
			t.Errorf("file %d: Has = %v", i, i != 10)
		}
	}
}

// A part of a library that is missed brings the rest of it, once.
func TestWhole(t *testing.T) {
	files := mappedFiles()
	mapped := buildMapped(t, files, layers.Gzip)
	data := random(1 << 20)
	chunked := build(t, [][]byte{random(100), data, random(50)}, 64<<10, 0)
	for _, tc := range []struct {
		name  string
		layer Layer
		data  []byte
		reads *atomic.Int64
	}{
		{"mapped", mapped.layer(), files[3], &mapped.reads},
		{"with a TOC", chunked.layer(), data, &chunked.reads},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFetcher(t, Options{})
			f.Add("a", tc.layer)
			if _, err := f.ReadAt(t.Context(), layers.SumOf(tc.data), make([]byte, 100), 500_000); err != nil {
				t.Fatal(err)
			}
			quiet(f)
			if !f.store.Has(layers.SumOf(tc.data)) {
				t.Error("the object is not complete")
			}
			if n := tc.reads.Load(); n > 8 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

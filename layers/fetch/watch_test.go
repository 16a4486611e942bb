package fetch

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// A log is a Watch that remembers.
type watchLog struct {
	mu    sync.Mutex
	waits []Wait
	lies  []string // layer keys
}

func (l *watchLog) watch() Watch {
	return Watch{
		Waited: func(w Wait) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.waits = append(l.waits, w)
		},
		Lied: func(layer string, _ layers.Sum, err error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if err != nil {
				l.lies = append(l.lies, layer)
			}
		},
	}
}

func TestWatchTellsOfMisses(t *testing.T) {
	var log watchLog
	f := newFetcher(t, Options{Watch: log.watch()})
	data := random(300_000)
	a, b := build(t, [][]byte{data}, 64<<10, 0), build(t, [][]byte{data}, 64<<10, 0)
	f.Add("a", a.layer())
	f.Add("b", b.layer())
	check(t, f, data, 1<<20)
	check(t, f, data, 1<<20) // not a miss
	if len(log.waits) != 1 {
		t.Fatalf("told of %d waits, want 1", len(log.waits))
	}
	w := log.waits[0]
	if w.Object != layers.SumOf(data) || w.N != len(data) || w.Err != nil || w.Took <= 0 || !slices.Equal(w.Layers, []string{"a", "b"}) {
		t.Errorf("told of %+v", w)
	}
	if got := f.Holders(layers.SumOf(data)); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("Holders = %v", got)
	}
	if got := f.Traffic(); len(got) != 2 || got["a"] != a.bytes.Load() || got["b"] != 0 {
		t.Errorf("Traffic = %v, the blob of a gave %d bytes", got, a.bytes.Load())
	}
}

func TestWatchTellsOfFailures(t *testing.T) {
	var log watchLog
	f := newFetcher(t, Options{Watch: log.watch()})
	data := random(1000)
	fx := build(t, [][]byte{data}, 1<<20, 0)
	refused := errors.New("refused")
	fx.hook = func(context.Context, int64, int64) error { return refused }
	f.Add("a", fx.layer())
	if _, err := f.ReadAt(t.Context(), layers.SumOf(data), make([]byte, 10), 0); err == nil {
		t.Fatal("a blob that fails was read")
	}
	if len(log.waits) != 1 || !errors.Is(log.waits[0].Err, refused) || log.waits[0].N != 0 {
		t.Errorf("told of %+v", log.waits)
	}
}

// A disputed object is waited for as well: all of it.
func TestWatchTellsOfProofs(t *testing.T) {
	var log watchLog
	f := newFetcher(t, Options{Watch: log.watch()})
	good, evil := random(300_000), random(300_000)
	a, b := build(t, [][]byte{evil}, 64<<10, 0), build(t, [][]byte{good}, 64<<10, 0)
	a.entries[0].Object = layers.SumOf(good)
	a.write(t)
	f.Add("liar", a.layer())
	f.Add("honest", b.layer())
	if n, err := f.ReadAt(t.Context(), layers.SumOf(good), make([]byte, 400_000), 0); n != len(good) || err != io.EOF {
		t.Fatalf("ReadAt = %d, %v", n, err)
	}
	if len(log.waits) != 1 || log.waits[0].N != len(good) || log.waits[0].Err != nil {
		t.Errorf("told of %+v", log.waits)
	}
	if !slices.Equal(log.lies, []string{"liar"}) {
		t.Errorf("liars: %v", log.lies)
	}
	if got := f.Holders(layers.SumOf(good)); !slices.Equal(got, []string{"liar", "honest"}) {
		t.Errorf("Holders = %v", got)
	}
}

func TestQueues(t *testing.T) {
	f := newFetcher(t, Options{})
	fx := build(t, [][]byte{random(1000)}, 1<<20, 0)
	began, goOn := make(chan struct{}), make(chan struct{})
	fx.hook = func(context.Context, int64, int64) error { close(began); <-goOn; return nil }
	f.Add("a", fx.layer())
	var wg sync.WaitGroup
	wg.Go(func() { f.ReadAt(t.Context(), fx.entries[0].Object, make([]byte, 10), 0) })
	<-began
	qs := f.Queues()
	close(goOn)
	wg.Wait()
	if !slices.Contains(qs, Queue{Class: "demand", Open: 1}) || !slices.ContainsFunc(qs, func(q Queue) bool { return q.Class == "background" && q.Open == 0 }) {
		t.Errorf("Queues = %+v", qs)
	}
}

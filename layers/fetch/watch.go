package fetch

import (
	"io"
	"time"

	"github.com/snapfs/snapfs/layers"
)

// A Watch is told what happens in a Fetcher. Its functions are called by whoever
// reads or fetches, without a lock, so they must return at once. Any may be nil.
type Watch struct {
	// Waited is told of every read that waited for the network, when it ends.
	Waited func(Wait)
	// Lied is told when a layer is found to have other bytes for an object than
	// it promised; once for each object and layer.
	Lied func(layer string, object layers.Sum, err error)
	// Unkept is told of chunks that could not be stored: the disk is full, or broken.
	Unkept func(err error)
}

// A Wait is a read that waited for the network.
type Wait struct {
	Object layers.Sum
	Layers []string // keys of those that have the object
	Off    int64    // in the object
	N      int      // bytes that the reader got
	Began  time.Time
	Took   time.Duration
	Err    error // why it got none; that of its context if it gave up
}

// waited tells of a read that has waited; src has its object.
func (f *Fetcher) waited(w Wait, src []source) {
	if f.o.Watch.Waited == nil {
		return
	}
	if w.Err == io.EOF {
		w.Err = nil
	}
	w.Took = time.Since(w.Began)
	w.Layers = make([]string, 0, len(src))
	for _, s := range src {
		w.Layers = append(w.Layers, s.l.key)
	}
	f.o.Watch.Waited(w)
}

// Holders returns the keys of the layers that have an object, also of those
// whose bytes for it are wrong.
func (f *Fetcher) Holders(sum layers.Sum) (keys []string) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.layers {
		if _, ok := l.Index.Lookup(sum); ok {
			keys = append(keys, l.key)
		}
	}
	return keys
}

// Traffic tells how many stored bytes came of each layer since it was added.
func (f *Fetcher) Traffic() map[string]int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := make(map[string]int64, len(f.layers))
	for _, l := range f.layers {
		n[l.key] = l.fetched.Load()
	}
	return n
}

// A Queue is what requests of one class are doing.
type Queue struct {
	Class   string // "demand", "ahead", "boot" or "background"
	Waiting int    // for their turn
	Open    int    // under way
}

// Queues returns the state of all classes, the most urgent first.
func (f *Fetcher) Queues() []Queue {
	qs := make([]Queue, classes)
	f.gate.mu.Lock()
	defer f.gate.mu.Unlock()
	for c := range classes {
		qs[c] = Queue{c.String(), len(f.gate.queue[c]), f.gate.open[c]}
	}
	return qs
}

// String is the class's name in metrics.
func (c class) String() string {
	switch c {
	case demand:
		return "demand"
	case ahead:
		return "ahead"
	case boot:
		return "boot"
	}
	return "background"
}

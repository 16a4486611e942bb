// Package fetch brings chunks in: what a reader asks for and the store lacks is
// read from a layer's blob, decoded, verified, and kept.
//
// A flight is one chunk on its way; whoever else wants that chunk waits for the
// same flight, each on its own context. A request is one range of a blob with
// the flights that it serves. Requests pass a gate in the order of their class:
// a reader waits for it, a reader will probably want it next, a start is known to
// want it, or it completes a layer in the background.
//
// A mapped layer is a gzip or zstd layer without a table of contents, for which
// somebody has recorded where its plain bytes are ([layers.Map]).
//
// Trust: an image vouches for the chunks of its own layers, but objects are
// shared by their sum. An object of one chunk proves itself, since the chunk's
// sum is the object's. Of an object of several chunks nothing is served before
// all of it was verified, if two layers disagree on how it is cut: one of them
// lies (see Options.Disputed).
package fetch

import (
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/mapped"
	"github.com/snapfs/snapfs/layers/objects"
)

// An Index finds the objects of one layer. *indexfile.File is one.
type Index interface {
	Lookup(sum layers.Sum) (indexfile.Ref, bool)
	Chunks(ref indexfile.Ref) []layers.Chunk // in the order of the file
	Objects() iter.Seq2[layers.Sum, indexfile.Ref]
}

// A Layer is where objects can be had.
type Layer struct {
	Blob        layers.Blob // the stored bytes
	Index       Index
	Compression layers.Compression // of chunks; None with a Map
	// Map, if not nil, makes the layer a mapped one: the chunks in Index are
	// those of its plain tar, and Map says where that is in Blob. It has passed
	// Check.
	Map     *layers.Map
	Windows layers.Windows // of Map; nil if no point has one
}

// Options of a Fetcher. Store is required.
type Options struct {
	Store *objects.Store
	Log   *slog.Logger // nil discards
	// Timeout bounds one try to read a range, apart from the time its bytes
	// take on a slow link; 0 is 14 s. A chunk is tried twice, and once more
	// for every further layer that has it.
	Timeout time.Duration
	// Parallel is how many requests the background has under way when nobody
	// reads; 0 is 3: while one waits for its answer, two fill the line.
	Parallel int
	// Whole is up to how many stored bytes all of a file is fetched when a part
	// of it is missed; 0 is 16 MiB, less is never. Who maps a library reads here
	// and there in it, and each such read would wait for a round trip and, in a
	// mapped layer, fetch from the point before.
	Whole int64
	// Room says whether what nobody waits for may still be stored; nil is always.
	// It is asked before every request of the background. What readers wait for is
	// fetched in any case, and kept if the disk takes it.
	Room func() bool
	// Disputed is told of an object of which parts may have been served, when
	// a layer is added that cuts it in another way. What the kernel caches of
	// it must be dropped before an image with that layer is mounted: it was
	// vouched for by another image only. From then on the object is served
	// after all of it was verified.
	Disputed func(layers.Sum)
	// Watch is told what happens.
	Watch Watch
}

// A Fetcher serves objects from a store and fetches what that lacks.
//
// Lock order: an object's mu, then mu.
type Fetcher struct {
	o      Options
	store  *shelf
	log    *slog.Logger
	base   context.Context // ends with Close: the lifetime of requests
	cancel context.CancelFunc
	wg     sync.WaitGroup // requests
	gate   *gate
	tails  *tails
	stats  Stats
	gen    atomic.Uint64 // counts changes of layers and lies

	recordings atomic.Pointer[[]*Recording] // nil: none

	mu      sync.RWMutex
	closed  bool
	layers  []*layer // in the order in which they were added
	objs    map[layers.Sum]*object
	evictAt int           // how many there are when evict is worth its while
	lies    map[lie]error // how it was found out
	proofs  map[layers.Sum]*proof
}

// New returns a Fetcher without layers. Close ends it.
func New(o Options) *Fetcher {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Timeout == 0 {
		o.Timeout = 14 * time.Second
	}
	if o.Whole == 0 {
		o.Whole = defaultWhole
	}
	if o.Parallel == 0 {
		o.Parallel = 3
	}
	f := &Fetcher{o: o, store: &shelf{Store: o.Store}, log: o.Log, gate: newGate(o.Parallel), tails: new(tails),
		objs: make(map[layers.Sum]*object), lies: make(map[lie]error), proofs: make(map[layers.Sum]*proof)}
	f.store.later, f.store.failed = f.later, f.unkept
	f.gen.Store(1) // not that of a new object
	f.base, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends all requests, and with them every wait, and returns when they have ended.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
	if err := f.store.Flush(); err != nil {
		f.log.Warn("keep small objects", "err", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, o := range f.objs {
		f.drop(o)
	}
}

// start runs work that outlives its caller. It says false after Close.
func (f *Fetcher) start(work func()) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.closed {
		return false
	}
	f.wg.Go(work)
	return true
}

// later is start for who does not need to know.
func (f *Fetcher) later(work func()) { f.start(work) }

// Add makes the objects of a layer available, in place of an earlier one with
// the same key. The Blob and Index must work until Remove.
func (f *Fetcher) Add(key string, l Layer) {
	f.Remove(key)
	ctx, cancel := context.WithCancel(f.base)
	n := &layer{Layer: l, key: key, base: ctx, cancel: cancel, tails: f.tails}
	if l.Map != nil && l.Map.Compression != layers.None {
		n.m = mapped.New(l.Blob, l.Map, l.Windows)
	}
	f.mu.Lock()
	f.layers = append(f.layers, n)
	f.mu.Unlock()
	f.gen.Add(1)
	f.dispute(n)
}

// Remove ends the requests to a layer and forgets it.
func (f *Fetcher) Remove(key string) {
	f.mu.Lock()
	defer f.gen.Add(1)
	defer f.mu.Unlock()
	f.layers = slices.DeleteFunc(slices.Clone(f.layers), func(l *layer) bool {
		if l.key != key {
			return false
		}
		l.cancel()
		f.tails.drop(l)
		for k := range f.lies {
			if k.l == l {
				delete(f.lies, k)
			}
		}
		return true
	})
}

// Size returns the size of an object in bytes, and whether it is in the store
// or a layer. Where layers disagree it fetches the object, to know.
func (f *Fetcher) Size(sum layers.Sum) (int64, bool) {
	if n, ok := f.store.Size(sum); ok {
		return n, true
	}
	src := f.sources(sum)
	if len(src) == 0 {
		if n, ok := f.store.Size(sum); ok { // the last chunk may just have come
			return n, true
		}
		return f.promised(sum)
	}
	for _, s := range src[1:] {
		if s.size != src[0].size {
			if err := f.prove(f.base, sum); err != nil {
				f.log.Warn("layers disagree on the size of an object", "object", sum, "err", err)
				return 0, false
			}
			return f.store.Size(sum)
		}
	}
	return src[0].size, true
}

// promised is the size of an object of which all layers have other bytes than
// they promised: it is there, and cannot be read.
func (f *Fetcher) promised(sum layers.Sum) (int64, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.layers {
		if ref, ok := l.Index.Lookup(sum); ok && f.lies[lie{sum, l}] != nil {
			return ref.Size, true
		}
	}
	return 0, false
}

// ReadAt reads from an object like [io.ReaderAt]. What is missing is fetched; it
// returns when ctx ends, and the fetch goes on for others. The error is
// objects.ErrNotCached if no layer has the object.
func (f *Fetcher) ReadAt(ctx context.Context, sum layers.Sum, p []byte, off int64) (n int, err error) {
	f.stats.Reads.Add(1)
	if rs := f.recordings.Load(); rs != nil {
		for _, r := range *rs {
			r.touch(&sum, off, int64(len(p)))
		}
	}
	defer func() {
		f.stats.Served.Add(int64(n))
		if err != nil && err != io.EOF && ctx.Err() == nil {
			f.stats.Errors.Add(1)
		}
	}()
	o := f.known(sum)
	if o == nil {
		n, err = f.store.ReadAt(sum, p, off)
		if !isNotCached(err) {
			return n, err
		}
		var disputed bool
		o, disputed, err = f.object(sum)
		if err != nil {
			return 0, err
		}
		if disputed {
			f.stats.Misses.Add(1)
			began := time.Now()
			if err = f.prove(ctx, sum); err == nil {
				n, err = f.store.ReadAt(sum, p, off)
			} else {
				err = fmt.Errorf("object %s: %w", sum, err)
			}
			f.waited(Wait{Object: sum, Off: off, N: n, Began: began, Err: err}, f.sources(sum))
			return n, err
		}
	}
	defer f.release(o)
	return f.read(ctx, o, p, off)
}

// Stats counts what a Fetcher did. All fields only grow.
type Stats struct {
	Reads    atomic.Int64 // calls of ReadAt
	Misses   atomic.Int64 // of those, how many had to wait for the network
	Waits    atomic.Int64 // flights that somebody else had begun
	Served   atomic.Int64 // bytes that ReadAt returned
	Requests atomic.Int64 // ranges asked for
	Fetched  atomic.Int64 // stored bytes that came
	Kept     atomic.Int64 // plain bytes that went into the store
	Inserted atomic.Int64 // of those, how many somebody delivered
	Late     atomic.Int64 // chunks that were to be delivered, and fetched after all
	Unkept   atomic.Int64 // chunks that could not be stored
	Errors   atomic.Int64 // calls of ReadAt that failed
	Lies     atomic.Int64 // objects of a layer with other bytes than promised
}

// Stats returns the counters.
func (f *Fetcher) Stats() *Stats { return &f.stats }

// Touched returns how many objects of a layer were missing when they were read.
func (f *Fetcher) Touched(key string) int64 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.layers {
		if l.key == key {
			return l.touched.Load()
		}
	}
	return 0
}

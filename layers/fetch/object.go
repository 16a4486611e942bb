package fetch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// An object is one that is being fetched, or of which a part is there.
type object struct {
	sum    layers.Sum
	size   int64
	chunks []layers.Chunk // sizes and sums; where they lie differs between layers
	layout [16]byte
	store  *shelf

	// Under Fetcher.mu.
	refs    int  // readers and flights
	gone    bool // not in Fetcher.objs any more
	touched bool

	wanted atomic.Bool // all of it: see rest

	part *objects.Partial // nil: of one chunk, or could not be opened

	mu      sync.Mutex
	flights map[int]*flight // by chunk
	src     []source        // that cut it so
	gen     uint64          // of Fetcher.gen, when src was found

	once     sync.Once // Promote
	promoted error
}

// A flight is one chunk on its way.
type flight struct {
	done    chan struct{}
	r       *request  // nil if it began because a reader asked
	x       *expected // nil if nobody said that he would deliver it
	outcome           // when done is closed

	began time.Time
	errs  []error // of tries that failed
	tried map[*layer]int
}

// An outcome is how a flight ended.
type outcome struct {
	err  error
	weak bool   // err is of a request that nobody waited for: try again
	data []byte // only if it could not be kept,
	lost error  // and why
}

// A source is a layer that has an object.
type source struct {
	l      *layer
	size   int64
	chunks []layers.Chunk
	layout [16]byte
}

// A lie is an object of a layer with other bytes than promised.
type lie struct {
	sum layers.Sum
	l   *layer
}

func isNotCached(err error) bool { return errors.Is(err, objects.ErrNotCached) }

// sources returns the layers that have an object, without those that lied about it.
func (f *Fetcher) sources(sum layers.Sum) (src []source) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.layers {
		if _, lied := f.lies[lie{sum, l}]; lied {
			continue
		}
		ref, ok := l.Index.Lookup(sum)
		if !ok {
			continue
		}
		// Without chunks, the layer has no stored form of it.
		if chunks := l.Index.Chunks(ref); len(chunks) > 0 && l.holds(chunks) {
			src = append(src, source{l, ref.Size, chunks, objects.Layout(chunks)})
		}
	}
	return src
}

// none says why no layer has an object.
func (f *Fetcher) none(sum layers.Sum) error {
	f.mu.RLock()
	defer f.mu.RUnlock()
	var errs []error
	for _, l := range f.layers {
		if err := f.lies[lie{sum, l}]; err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		errs = []error{objects.ErrNotCached}
	}
	return fmt.Errorf("object %s: %w", sum, errors.Join(errs...))
}

// inside says whether all chunks are in the blob and within limits.
func inside(chunks []layers.Chunk, size int64) bool {
	return !slices.ContainsFunc(chunks, func(c layers.Chunk) bool {
		return c.BlobLen < 0 || c.BlobLen > layers.MaxChunk || c.BlobOff < 0 || c.BlobOff > size-c.BlobLen ||
			c.Size < 1 || c.Size > layers.MaxChunk
	})
}

// from returns the layers that have o, cut as o is.
func (f *Fetcher) from(o *object) []source {
	gen := f.gen.Load()
	o.mu.Lock()
	src, fresh := o.src, o.gen == gen
	o.mu.Unlock()
	if fresh {
		return src
	}
	src = slices.DeleteFunc(f.sources(o.sum), func(s source) bool { return s.layout != o.layout })
	o.mu.Lock()
	o.src, o.gen = src, gen
	o.mu.Unlock()
	return src
}

// disputed says whether layers cut an object in different ways.
func disputed(src []source) bool {
	return slices.ContainsFunc(src, func(s source) bool { return s.layout != src[0].layout })
}

// known returns the object if it is in use. The caller releases it.
func (f *Fetcher) known(sum layers.Sum) *object {
	f.mu.RLock()
	o := f.objs[sum]
	f.mu.RUnlock()
	if o == nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if o = f.objs[sum]; o != nil {
		o.refs++
	}
	return o
}

// maxObjects is about how many objects of which a part is there stay open.
const maxObjects = 256

// object returns an object that some layer has. The caller releases it. If it is
// disputed it is nil. It is objects.ErrNotCached if no layer has it.
func (f *Fetcher) object(sum layers.Sum) (o *object, isDisputed bool, err error) {
	if o := f.known(sum); o != nil {
		return o, false, nil
	}
	src := f.sources(sum)
	if len(src) == 0 {
		return nil, false, f.none(sum)
	}
	if disputed(src) {
		return nil, true, nil
	}
	o, err = f.newObject(sum, src[0])
	return o, false, err
}

// newObject opens what is there of an object.
func (f *Fetcher) newObject(sum layers.Sum, s source) (*object, error) {
	o := &object{sum: sum, size: s.size, chunks: s.chunks, layout: s.layout, store: f.store, flights: make(map[int]*flight)}
	if len(o.chunks) == 1 && (o.chunks[0].Sum != sum || o.chunks[0].Size != o.size || o.chunks[0].Off != 0) {
		return nil, fmt.Errorf("object %s: %w: its only chunk has another sum or size", sum, layers.ErrBadLayer)
	}
	if err := o.open(); err != nil {
		if errors.Is(err, layers.ErrBadLayer) {
			return nil, err
		}
		f.log.Warn("open partial object", "object", sum, "err", err) // served without being kept
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, errors.Join(context.Canceled, o.close())
	}
	if other := f.objs[sum]; other != nil {
		if other.layout == o.layout {
			other.refs++
			return other, o.close()
		}
		f.drop(other) // a lie, by now
	}
	if len(f.objs) >= max(maxObjects, f.evictAt) {
		f.evict()
		f.evictAt = 2 * len(f.objs) // most of them are in use: not again soon
	}
	f.objs[sum] = o
	o.refs = 1
	return o, nil
}

// evict closes objects that nobody uses. f.mu is held.
func (f *Fetcher) evict() {
	for _, o := range f.objs {
		if o.refs == 0 {
			f.drop(o)
		}
	}
}

// drop takes an object out of sight; who uses it goes on. f.mu is held.
func (f *Fetcher) drop(o *object) {
	if f.objs[o.sum] == o {
		delete(f.objs, o.sum)
	}
	if o.gone {
		return
	}
	o.gone = true
	if o.refs == 0 {
		f.closeObject(o)
	}
}

func (f *Fetcher) closeObject(o *object) {
	if err := o.close(); err != nil {
		f.log.Warn("close partial object", "object", o.sum, "err", err)
	}
}

// retire is drop for those who do not hold f.mu.
func (f *Fetcher) retire(o *object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(o)
}

func (f *Fetcher) hold(o *object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.refs++
}

func (f *Fetcher) release(o *object) {
	f.mu.Lock()
	defer f.mu.Unlock()
	o.refs--
	if o.refs > 0 || len(o.chunks) > 1 && !o.gone && o.part != nil {
		return
	}
	if f.objs[o.sum] == o {
		delete(f.objs, o.sum)
	}
	o.gone = true
	f.closeObject(o)
}

func (o *object) open() (err error) {
	if len(o.chunks) > 1 {
		o.part, err = o.store.Partial(o.sum, o.size, o.chunks)
	}
	return err
}

func (o *object) close() error {
	if o.part == nil {
		return nil
	}
	return o.part.Close()
}

// has says whether chunk i is there.
func (o *object) has(i int) bool {
	if o.part != nil {
		return o.part.Has(i)
	}
	return o.store.Has(o.sum)
}

// readAt reads what is there; it is objects.ErrNotCached otherwise.
func (o *object) readAt(p []byte, off int64) (int, error) {
	if o.part != nil {
		return o.part.ReadAt(p, off)
	}
	return o.store.ReadAt(o.sum, p, off)
}

// keep stores chunk i, a small object with others if nobody waits for it. It is a *layers.DigestError if the bytes are wrong; any
// other error means that they are right but could not be kept.
func (o *object) keep(i int, plain []byte, gather bool) (last bool, err error) {
	switch {
	case o.part != nil:
		return o.part.Put(i, plain)
	case len(o.chunks) == 1 && gather:
		return false, o.store.Gather(o.sum, plain)
	case len(o.chunks) == 1:
		return false, o.store.Put(o.sum, plain)
	}
	if got := layers.SumOf(plain); got != o.chunks[i].Sum {
		return false, &layers.DigestError{Want: o.chunks[i].Sum.Digest(), Got: got.Digest(), From: fmt.Sprintf("object %s: chunk %d", o.sum, i)}
	}
	return false, errNoPart
}

var errNoPart = errors.New("partial object could not be opened")

// lied notes that a layer has other bytes for an object than it promised.
func (f *Fetcher) lied(sum layers.Sum, l *layer, err error) {
	f.mu.Lock()
	_, known := f.lies[lie{sum, l}]
	f.lies[lie{sum, l}] = cmp.Or(f.lies[lie{sum, l}], err)
	f.mu.Unlock()
	f.gen.Add(1)
	f.orphan(sum)
	if !known {
		f.stats.Lies.Add(1)
		f.log.Warn("layer has wrong bytes", "layer", l.key, "object", sum, "err", err)
		if f.o.Watch.Lied != nil {
			f.o.Watch.Lied(l.key, sum, err)
		}
	}
}

// orphan takes an object out of sight that no layer cuts as it is cut any more:
// the next reader finds another way.
func (f *Fetcher) orphan(sum layers.Sum) {
	f.mu.RLock()
	o := f.objs[sum]
	f.mu.RUnlock()
	if o != nil && len(f.from(o)) == 0 {
		f.retire(o)
	}
}

// promote makes an object complete whose chunks are all there. If they are not
// the object, the layers that cut it so have lied.
func (f *Fetcher) promote(o *object) error {
	o.once.Do(func() {
		o.promoted = o.part.Promote()
		if isDigest(o.promoted) {
			for _, s := range f.from(o) {
				f.lied(o.sum, s.l, o.promoted)
			}
		}
		f.retire(o)
	})
	return o.promoted
}

// A proof is the work of fetching and verifying all of a disputed object.
type proof struct {
	done chan struct{}
	err  error
}

// prove makes a disputed object complete, or fails.
func (f *Fetcher) prove(ctx context.Context, sum layers.Sum) error {
	f.mu.Lock()
	p := f.proofs[sum]
	mine := p == nil
	if mine {
		p = &proof{done: make(chan struct{})}
		f.proofs[sum] = p
	}
	f.mu.Unlock()
	if mine && !f.start(func() {
		p.err = f.proveAny(sum)
		f.mu.Lock()
		delete(f.proofs, sum)
		f.mu.Unlock()
		close(p.done)
	}) {
		return context.Canceled
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// proveAny tries one way to cut the object after another, until one gives its bytes.
func (f *Fetcher) proveAny(sum layers.Sum) (err error) {
	tried := make(map[[16]byte]bool)
	for _, s := range f.sources(sum) {
		if tried[s.layout] {
			continue
		}
		tried[s.layout] = true
		if e := f.proveOne(sum, s); e != nil {
			err = errors.Join(err, e)
			continue
		}
		return nil
	}
	if f.store.Has(sum) {
		return nil
	}
	return cmp.Or(err, f.none(sum))
}

func (f *Fetcher) proveOne(sum layers.Sum, s source) error {
	o := &object{sum: sum, size: s.size, chunks: s.chunks, layout: s.layout, store: f.store,
		flights: make(map[int]*flight), refs: 1, gone: true}
	if len(o.chunks) == 1 && (o.chunks[0].Sum != sum || o.chunks[0].Size != o.size) {
		return fmt.Errorf("%w: its only chunk has another sum or size", layers.ErrBadLayer)
	}
	if err := o.open(); err != nil {
		return err
	}
	defer f.release(o)
	return f.whole(f.base, o, demand)
}

// dispute finds objects of which a part may have been served on the word of
// other layers than l, and which l cuts in another way.
func (f *Fetcher) dispute(l *layer) {
	sums, err := f.store.Partials()
	if err != nil {
		f.log.Warn("list partial objects", "err", err)
	}
	f.mu.RLock()
	for sum := range f.objs {
		sums = append(sums, sum)
	}
	f.mu.RUnlock()
	slices.SortFunc(sums, func(a, b layers.Sum) int { return bytes.Compare(a[:], b[:]) })
	for _, sum := range slices.Compact(sums) {
		if _, ok := l.Index.Lookup(sum); !ok || !disputed(f.sources(sum)) {
			continue
		}
		f.mu.RLock()
		o := f.objs[sum]
		f.mu.RUnlock()
		if o != nil {
			f.retire(o)
		}
		if f.o.Disputed != nil {
			f.o.Disputed(sum)
		}
	}
}

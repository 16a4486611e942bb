package fetch

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// read reads from an object of which something may be missing.
func (f *Fetcher) read(ctx context.Context, o *object, p []byte, off int64) (int, error) {
	if off < 0 || off >= o.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > o.size-off {
		p, eof = p[:o.size-off], io.EOF
	}
	n, err := o.readAt(p, off)
	if isNotCached(err) && o.part != nil {
		// It may have become complete while its partial was opened anew.
		if m, serr := o.store.ReadAt(o.sum, p, off); m == len(p) {
			f.retire(o)
			n, err = m, nil
		} else if !isNotCached(serr) {
			err = serr
		}
	}
	if isNotCached(err) {
		f.stats.Misses.Add(1)
		began := time.Now()
		n, err = f.miss(ctx, o, p, off)
		f.waited(Wait{Object: o.sum, Off: off, N: n, Began: began, Err: err}, f.from(o))
	}
	if err != nil {
		return n, err
	}
	return n, eof
}

// miss fetches what a read needs and answers it.
func (f *Fetcher) miss(ctx context.Context, o *object, p []byte, off int64) (int, error) {
	first, end := objects.Covering(o.chunks, off, int64(len(p)))
	// What comes in may be removed before it is read, and a request that
	// nobody waited for may fail; not again and again.
	for range 4 {
		flights := f.want(o, first, end, demand)
		again := false
		for _, fl := range flights {
			if fl == nil {
				continue
			}
			select {
			case <-fl.done:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
			if fl.err != nil && !fl.weak {
				return 0, fl.err
			}
			again = again || fl.err != nil
		}
		if again {
			continue
		}
		n, err := o.assemble(p, off, first, flights)
		if !isNotCached(err) {
			return n, err
		}
	}
	return 0, fmt.Errorf("object %s: removed while it was read: %w", o.sum, objects.ErrNotCached)
}

// assemble reads from the store, and from flights whose bytes could not be kept.
func (o *object) assemble(p []byte, off int64, first int, flights []*flight) (int, error) {
	if !slices.ContainsFunc(flights, func(fl *flight) bool { return fl != nil && fl.data != nil }) {
		return o.readAt(p, off)
	}
	n := 0
	for i, fl := range flights {
		c := &o.chunks[first+i]
		in := off + int64(n) - c.Off
		q := p[n:min(len(p), n+int(c.Size-in))]
		if fl != nil && fl.data != nil {
			copy(q, fl.data[in:])
		} else if _, err := o.readAt(q, off+int64(n)); err != nil {
			return 0, err
		}
		n += len(q)
	}
	return n, nil
}

// want returns the flights of chunks [first, end); nil for a chunk that is
// there. New ones are sent, with what is near them.
func (f *Fetcher) want(o *object, first, end int, c class) []*flight {
	flights := make([]*flight, end-first)
	var mine []int
	for i := range flights {
		fl, isNew := f.claim(o, first+i, nil, nil)
		flights[i] = fl
		switch {
		case isNew:
			mine = append(mine, first+i)
		case fl != nil:
			f.stats.Waits.Add(1)
			if c == demand {
				fl.rush()
			}
		}
	}
	if len(mine) > 0 {
		f.launch(o, mine, flights[mine[0]-first:], c)
	}
	return flights
}

// rush says that a reader waits.
func (fl *flight) rush() {
	if fl.r != nil {
		fl.r.rush()
	}
	if fl.x != nil {
		fl.x.rush()
	}
}

// launch sends the requests for new flights of an object; flights begins with
// that of the first of mine.
func (f *Fetcher) launch(o *object, mine []int, flights []*flight, c class) {
	var parts []part
	for _, i := range mine {
		parts = append(parts, part{o: o, i: i, fl: flights[i-mine[0]]})
	}
	src := f.from(o)
	if len(src) == 0 {
		for _, p := range parts {
			f.land(p, outcome{err: f.none(o.sum)})
		}
		return
	}
	l := src[0].l
	if err := l.outage(); err != nil && c == demand {
		for _, p := range parts {
			f.land(p, outcome{err: err})
		}
		return
	}
	reqs := []*request{newRequest(l, c)}
	for _, p := range parts {
		p.ck = src[0].chunks[p.i]
		r := reqs[len(reqs)-1]
		if !r.fits(p.ck.BlobOff, p.ck.BlobLen, maxWindow) {
			r = newRequest(l, c)
			reqs = append(reqs, r)
		}
		r.add(p)
	}
	if l.m != nil {
		for _, r := range reqs {
			f.along(r)
		}
	}
	if c == demand {
		f.touch(o, l)
		if last := reqs[len(reqs)-1]; last.to > 0 {
			f.around(last)
		}
	}
	for _, r := range reqs {
		if !f.start(func() { f.sendLogged(r) }) {
			f.fail(r, r.parts, context.Canceled)
		}
	}
}

func (f *Fetcher) sendLogged(r *request) {
	if err := f.send(r); err != nil && f.base.Err() == nil {
		f.log.Warn("keep what was fetched", "layer", r.l.key, "err", err)
	}
}

// touch counts an object that was missing when it was read.
func (f *Fetcher) touch(o *object, l *layer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !o.touched {
		o.touched = true
		l.touched.Add(1)
	}
}

// around takes what is near a reader's request along, and begins to read ahead
// of a reader that goes through the blob in order.
func (f *Fetcher) around(r *request) {
	if !f.room() {
		return
	}
	ord := r.l.inOrder()
	window := r.l.sequential(max(r.from, r.l.near(r.parts[0].ck.BlobOff)), r.to)
	next := ord.after(r.first())
	if r.to-r.from < near {
		f.fill(r, ord, next, extent{limit: near, end: r.from + near})
	}
	r.seal()
	end := int64(0)
	if window > 0 {
		end = r.to + window
	}
	before, behind := f.rest(r)
	if end = max(end, behind); end > r.to {
		f.start(func() { f.readAhead(r.l, ord, next, end) })
	}
	if before < r.first() {
		end := r.l.near(r.first()) + 1 // with the chunk that reaches over it
		f.start(func() { f.readAhead(r.l, ord, ord.after(before), end) })
	}
}

// defaultWhole is large, since a start whose profile is not known reads here and
// there in its libraries, and they all come sooner or later. From nothing to ready
// at 100 Mbit/s and 20 ms, known by an index alone, with 2, 6 and 16 MiB: node 5.6,
// 5.5, 4.0 s; postgres 6.4, 5.3, 5.2 s (go run ./bench/coldstart, snapfs-index).
const defaultWhole = 16 << 20

// rest says what else of the object that r begins with is worth fetching: from
// where on, as chunks count, and up to which stored byte. It is once for each object.
func (f *Fetcher) rest(r *request) (before, behind int64) {
	p := r.parts[0]
	none := r.first()
	if len(p.o.chunks) == 1 {
		return none, 0
	}
	src := f.from(p.o)
	at := slices.IndexFunc(src, func(s source) bool { return s.l == r.l })
	if at < 0 {
		return none, 0
	}
	stored := slices.DeleteFunc(slices.Clone(src[at].chunks), func(c layers.Chunk) bool { return c.BlobLen == 0 })
	first, last := stored[0], stored[len(stored)-1]
	lo := r.l.near(first.BlobOff)
	_, hi := r.l.place(last.BlobOff, last.BlobLen)
	if hi-lo > f.o.Whole || !p.o.wanted.CompareAndSwap(false, true) {
		return none, 0
	}
	return first.BlobOff, hi
}

// aheadUnit bounds a request that reads ahead, so that a reader's does not wait long for it.
const aheadUnit = 1 << 20

func (f *Fetcher) readAhead(l *layer, ord *order, next int, end int64) {
	for next < len(ord.items) && l.near(ord.items[next].off) < end {
		leave, err := f.gate.enter(l.base, ahead, nil)
		if err != nil {
			return
		}
		r := newRequest(l, ahead)
		next = f.fill(r, ord, next, extent{limit: aheadUnit, end: end, multi: true})
		if len(r.parts) == 0 {
			leave()
			return
		}
		if err := f.transfer(r, leave); err != nil {
			return
		}
	}
}

// An extent bounds what fill takes.
type extent struct {
	limit int64 // stored bytes of the request, unless one chunk has more
	end   int64 // in the stored bytes: no chunk that begins there or behind
	multi bool  // also objects of several chunks
}

// fill adds missing chunks to a request, in the order of the blob from item
// next on. It begins flights for them and returns the item that it came to.
func (f *Fetcher) fill(r *request, ord *order, next int, x extent) int {
	for ; next < len(ord.items) && r.l.near(ord.items[next].off) < x.end; next++ {
		it := ord.items[next]
		if !r.fits(it.off, int64(it.n), x.limit) {
			break
		}
		if it.chunk > 0 && !x.multi {
			continue
		}
		if p, ok := f.missing(r, ord.sums[it.obj], int(it.chunk), x.multi); ok {
			p.gather = true
			r.add(p)
		}
	}
	return next
}

// missing begins a flight for a chunk that is neither there nor on its way.
func (f *Fetcher) missing(r *request, sum layers.Sum, i int, multi bool) (part, bool) {
	if f.store.Has(sum) {
		return part{}, false
	}
	o := f.known(sum)
	if o == nil {
		var err error
		if o, _, err = f.object(sum); o == nil || err != nil {
			return part{}, false // disputed or malformed: only when it is asked for
		}
	}
	defer f.release(o)
	src := f.from(o)
	at := slices.IndexFunc(src, func(s source) bool { return s.l == r.l })
	if at < 0 || len(o.chunks) > 1 && !multi {
		return part{}, false
	}
	fl, isNew := f.claim(o, i, r, nil)
	return part{o: o, i: i, ck: src[at].chunks[i], fl: fl, extra: true}, isNew
}

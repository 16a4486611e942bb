package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
	"github.com/snapfs/snapfs/layers/mapped"
)

// A request is one range of a layer's blob, for the flights that it serves.
type request struct {
	l        *layer
	base     context.Context // that of the layer, or shorter
	class    class
	from, to int64 // in the blob; to is 0 if nothing is stored
	parts    []part

	// Of a mapped layer: where decoding begins and ends in the plain bytes, the
	// tail that it goes on from if it does not begin at a point, and its own.
	begin   int64
	reach   int64 // end of the last chunk
	after   *tail
	end     *tail
	settled bool
	fresh   bool // begin at a point

	// unit, of background requests, says how many bytes to read before they
	// give way again. It is nil for others, which are read in one go.
	unit  func() int64
	pace  func(n int64, took time.Duration) // is told of each unit
	once  sync.Once
	hurry chan struct{} // closed when a reader waits for it after all
}

func newRequest(l *layer, c class) *request {
	return &request{l: l, base: l.base, class: c, hurry: make(chan struct{})}
}

// rush tells a request that a reader waits for it.
func (r *request) rush() { r.once.Do(func() { close(r.hurry) }) }

// A part is a chunk that a request brings. It holds a reference to its object.
type part struct {
	o  *object
	i  int
	ck layers.Chunk // as the request's layer has it
	fl *flight

	extra  bool // nobody asked for it
	gather bool // nor will anybody soon
}

func (r *request) add(p part) {
	if p.ck.BlobLen > 0 {
		r.cover(p.ck.BlobOff, p.ck.BlobLen)
	}
	r.parts = append(r.parts, p)
}

// cover extends the request to a chunk that is stored at off.
func (r *request) cover(off, n int64) {
	from, to := r.l.place(off, n)
	switch {
	case r.l.m != nil && (r.to == 0 || off < r.begin):
		r.start(off)
	case r.l.m != nil: // on the way
	case r.to == 0:
		r.from = from
	default:
		r.from = min(r.from, from)
	}
	r.to, r.reach = max(r.to, to), max(r.reach, off+n)
}

// first is where the request begins, as chunks count.
func (r *request) first() int64 {
	if r.l.m != nil {
		return r.begin
	}
	return r.from
}

// fits says whether a chunk can join the request, with at most limit stored bytes in all.
func (r *request) fits(off, n, limit int64) bool {
	if n == 0 || r.to == 0 {
		return true
	}
	from, to := r.l.place(off, n)
	if r.l.m != nil && off >= r.begin {
		from = max(from, r.from)
		if gap := r.l.near(off) - r.to; gap > hole && r.l.tails.between(r.l, r.reach, off) {
			return false // another request begins nearer
		}
	}
	return from <= r.to+hole && to >= r.from-hole && max(r.to, to)-min(r.from, from) <= limit
}

// claim begins a flight for chunk i of o, or returns the one that there is. It
// is nil, false if the chunk is there. The caller holds a reference to o; one
// more belongs to a new flight. r is the request that the flight is for, if
// that begins without being asked for; x is not nil if it is to be delivered.
func (f *Fetcher) claim(o *object, i int, r *request, x *expected) (fl *flight, isNew bool) {
	if o.part != nil {
		o.has(i) // verifies a claim, if it is one, without the lock
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if fl := o.flights[i]; fl != nil {
		return fl, false
	}
	// Whoever has a request has looked into the store just now.
	if (r == nil || o.part != nil) && o.has(i) {
		return nil, false
	}
	fl = &flight{done: make(chan struct{}), r: r, x: x, began: time.Now(), tried: make(map[*layer]int)}
	o.flights[i] = fl
	if x != nil {
		x.part = part{o: o, i: i, fl: fl}
	}
	f.hold(o)
	return fl, true
}

// land ends a flight. Only the first time counts: a chunk may be delivered and
// fetched at once.
func (f *Fetcher) land(p part, out outcome) {
	p.o.mu.Lock()
	landed := p.o.flights[p.i] != p.fl
	if !landed {
		delete(p.o.flights, p.i)
		p.fl.outcome = out
		close(p.fl.done)
	}
	p.o.mu.Unlock()
	if landed {
		return
	}
	f.release(p.o)
}

// send runs a request when its turn comes.
func (f *Fetcher) send(r *request) error {
	leave, err := f.gate.enter(r.l.base, r.class, r.hurry)
	if err != nil {
		r.settle(nil)
		f.fail(r, r.parts, err)
		return err
	}
	return f.transfer(r, leave)
}

// transfer reads the range, leaves the gate, and decodes what came. The flights of
// the request land, or go on with another request. The error is the first that
// hinders a layer from becoming complete: of the blob, or of the store. Bytes
// that are wrong are none, other layers may have the right ones.
func (f *Fetcher) transfer(r *request, leave func()) error {
	defer func() { leave() }()
	r.seal()
	defer r.settle(nil)
	open := f.opening(r)
	buf := getBuf(r.to - r.from)
	defer putBuf(buf)
	stored := (*buf)[:r.to-r.from]
	if len(stored) == 0 {
		leave()
		return f.decode(r, stored, nil, open)
	}
	n, err := f.readRange(r, stored, &leave)
	if n == len(stored) {
		err = nil
	} else if err == nil || err == io.EOF {
		err = fmt.Errorf("%w: blob ends at %d", layers.ErrBadLayer, r.from+int64(n))
	}
	return f.decode(r, stored[:n], err, open)
}

// readRange reads what r asks for. In the background it gives way after each
// unit, and leave becomes that of the next one.
func (f *Fetcher) readRange(r *request, stored []byte, leave *func()) (n int, err error) {
	for n < len(stored) && err == nil {
		p := stored[n:]
		if r.unit != nil {
			p = p[:min(int64(len(p)), r.unit())]
		}
		base := r.base
		if r.class == background {
			base = layers.Background(base, r.hurry)
		}
		ctx, cancel := context.WithTimeout(base, f.timeoutOf(int64(len(p))))
		f.stats.Requests.Add(1)
		var m int
		begin := time.Now()
		m, err = r.l.Blob.ReadAt(ctx, p, r.from+int64(n))
		cancel()
		f.stats.Fetched.Add(int64(m))
		r.l.fetched.Add(int64(m))
		(*leave)()
		*leave = func() {}
		if r.pace != nil {
			r.pace(int64(m), time.Since(begin))
		}
		if n += m; m == len(p) {
			err = nil // it may be io.EOF
		}
		if n < len(stored) && err == nil {
			*leave, err = f.gate.enter(r.base, r.class, r.hurry)
		}
	}
	return n, err
}

// decode decodes, verifies and keeps the chunks in what came of a request;
// short is why it is less than was asked for, open gives the decoder of a mapped layer.
func (f *Fetcher) decode(r *request, stored []byte, short error, open func() (*mapped.Cursor, error)) (err error) {
	if open != nil {
		return f.decodeMapped(r, stored, short, open)
	}
	slices.SortStableFunc(r.parts, func(a, b part) int {
		return cmp.Or(cmp.Compare(a.ck.BlobOff, b.ck.BlobOff), cmp.Compare(a.ck.BlobLen, b.ck.BlobLen), cmp.Compare(a.ck.Inner, b.ck.Inner))
	})
	for rest := r.parts; len(rest) > 0; {
		n := 1
		for n < len(rest) && sameRun(rest[n-1].ck, rest[n].ck) {
			n++
		}
		run := rest[:n]
		rest = rest[n:]
		begin, end := run[0].ck.BlobOff-r.from, run[0].ck.BlobOff-r.from+run[0].ck.BlobLen
		switch {
		case run[0].ck.BlobLen == 0:
			err = cmp.Or(err, f.accept(r, run[0], make([]byte, run[0].ck.Size)))
		case end > int64(len(stored)):
			f.fail(r, run, short)
			if !isBad(short) {
				err = cmp.Or(err, short)
			}
		default:
			err = cmp.Or(err, f.decodeRun(r, stored[begin:end], run))
		}
	}
	return err
}

// sameRun says whether b can be decoded in one go with a, which is before it.
func sameRun(a, b layers.Chunk) bool {
	return a.BlobLen > 0 && a.BlobOff == b.BlobOff && a.BlobLen == b.BlobLen && b.Inner >= a.Inner+a.Size
}

func (f *Fetcher) decodeRun(r *request, stored []byte, run []part) error {
	cks := make([]layers.Chunk, len(run))
	for i := range run {
		cks[i] = run[i].ck
	}
	var kept error
	done := 0
	err := decode.Run(r.l.Compression, stored, cks, func(i int, plain []byte) error {
		done = i + 1
		kept = cmp.Or(kept, f.accept(r, run[i], plain))
		return nil
	})
	if err != nil {
		f.fail(r, run[done:], err)
	}
	return kept
}

// accept takes the decoded bytes of a chunk. Nobody sees them before they were verified.
func (f *Fetcher) accept(r *request, p part, plain []byte) error {
	last, err := p.o.keep(p.i, plain, p.gather)
	if isDigest(err) {
		f.fail(r, []part{p}, err)
		return nil
	}
	if err != nil {
		f.unkept(err)
		f.land(p, outcome{data: slices.Clone(plain), lost: err})
		return err
	}
	f.stats.Kept.Add(int64(len(plain)))
	if last {
		f.hold(p.o)
		defer f.release(p.o)
	}
	f.land(p, outcome{}) // before promote, which takes its time
	if !last {
		return nil
	}
	if err := f.promote(p.o); !isBad(err) {
		return err
	}
	return nil
}

// fail tries the chunks elsewhere, or gives them up. Bytes that were wrong are
// not asked for again where they came from.
func (f *Fetcher) fail(r *request, parts []part, err error) {
	bad := isBad(err)
	err = fmt.Errorf("layer %s: %w", r.l.key, err)
	for _, p := range parts {
		if bad {
			f.lied(p.o.sum, r.l, err)
		}
		if p.extra {
			f.land(p, outcome{err: err, weak: true})
			continue
		}
		p.fl.errs = append(p.fl.errs, err)
		p.fl.tried[r.l]++
		if !f.start(func() { f.retry(r.class, p) }) {
			f.land(p, outcome{err: context.Canceled})
		}
	}
}

// isBad says whether an error is the fault of bytes that are not what was promised.
func isBad(err error) bool { return isDigest(err) || errors.Is(err, layers.ErrBadLayer) }

func isDigest(err error) bool {
	_, is := errors.AsType[*layers.DigestError](err)
	return is
}

// unkept notes that something could not be stored.
func (f *Fetcher) unkept(err error) {
	f.stats.Unkept.Add(1)
	if f.o.Watch.Unkept != nil {
		f.o.Watch.Unkept(err)
	}
}

// pause is how long to wait before a layer is tried again.
const pause = 200 * time.Millisecond

// retry sends one chunk's request to the layer that was tried least, at most twice to each.
func (f *Fetcher) retry(c class, p part) {
	src := slices.DeleteFunc(slices.Clone(f.from(p.o)), func(s source) bool { return p.fl.tried[s.l] > 1 })
	if len(src) == 0 || f.base.Err() != nil {
		err := fmt.Errorf("object %s: chunk %d: %w", p.o.sum, p.i, errors.Join(p.fl.errs...))
		if time.Since(p.fl.began) > longWait {
			for l := range p.fl.tried {
				l.down.Store(&outage{time.Now().Add(memory), err})
			}
		}
		f.land(p, outcome{err: err})
		return
	}
	s := slices.MinFunc(src, func(a, b source) int { return cmp.Compare(p.fl.tried[a.l], p.fl.tried[b.l]) })
	if p.fl.tried[s.l] > 0 {
		select {
		case <-time.After(pause):
		case <-f.base.Done():
		}
	}
	p.ck = s.chunks[p.i]
	r := newRequest(s.l, c)
	r.fresh = true
	r.add(p)
	if err := f.send(r); err != nil && f.base.Err() == nil {
		f.log.Warn("keep chunk", "object", p.o.sum, "err", err)
	}
}

// buffers of stored bytes, by power of two of their capacity.
var buffers [64]sync.Pool

func getBuf(n int64) *[]byte {
	c := bits.Len64(uint64(max(n, 4096) - 1))
	if b, ok := buffers[c].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<c)
	return &b
}

func putBuf(b *[]byte) { buffers[bits.Len64(uint64(cap(*b)-1))].Put(b) }

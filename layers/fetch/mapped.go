package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/mapped"
)

// Requests of a mapped layer. Its chunks are runs of the plain tar, its requests
// ranges of the stored bytes, and decoding begins at a point or where another
// request ended:
//
//	plain   ....|point........[chunk]|............
//	stored  ....|from................|to..........
//	                                 ^ tail: where the next request may go on
//
// All whole chunks between from and to are kept, since they were paid for.

// place is which stored bytes are needed for n > 0 bytes of a chunk at off, as
// chunks count: of the blob or of the plain tar.
func (l *layer) place(off, n int64) (from, to int64) {
	if l.m == nil {
		return off, off + n
	}
	_, from, to = l.m.Map().Locate(off, n)
	return from, to
}

// near is about where the stored bytes of what begins at off begin.
func (l *layer) near(off int64) int64 {
	if l.m == nil {
		return off
	}
	return l.m.Map().StoredEnd(off)
}

// holds says whether all chunks are in the layer and within limits.
func (l *layer) holds(chunks []layers.Chunk) bool {
	if l.m == nil {
		return inside(chunks, l.Blob.Size())
	}
	return !slices.ContainsFunc(chunks, func(c layers.Chunk) bool {
		return c.Size < 1 || c.Size > layers.MaxChunk ||
			c.BlobLen != 0 && (c.BlobLen != c.Size || c.Inner != 0 || !l.m.Affordable(c.BlobOff, c.BlobLen))
	})
}

// A tail is where a request ended, or will end, with the decoder that stands there.
// Nothing is as cheap as to go on from it, but only one request can.
type tail struct {
	l             *layer
	plain, stored int64
	ready         chan struct{}
	cur           *mapped.Cursor // when ready; nil if it came to nothing

	req *request // under tails.mu: whose end it is, until it is ready
}

// maxTails bounds memory: a decoder that rests has about 64 KiB.
const maxTails = 48

// tails are those that no request goes on from yet, the oldest first.
type tails struct {
	mu   sync.Mutex
	list []*tail
}

// take returns the last tail in (least, off] of the plain bytes of l, or nil. A
// reader does not wait behind those who can wait.
func (t *tails) take(l *layer, least, off int64, c class) *tail {
	t.mu.Lock()
	defer t.mu.Unlock()
	best := -1
	for i, x := range t.list {
		if x.l == l && x.plain > least && x.plain <= off && (best < 0 || x.plain > t.list[best].plain) {
			best = i
		}
	}
	if best < 0 {
		return nil
	}
	x := t.list[best]
	t.list = slices.Delete(t.list, best, best+1)
	if x.req != nil && c == demand {
		x.req.rush()
	}
	return x
}

// between says whether there is a tail in (least, off].
func (t *tails) between(l *layer, least, off int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.ContainsFunc(t.list, func(x *tail) bool { return x.l == l && x.plain > least && x.plain <= off })
}

func (t *tails) put(x *tail) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.list) >= maxTails {
		t.list = slices.Delete(t.list, 0, 1)
	}
	t.list = append(t.list, x)
}

// settle makes a tail ready. One that came to nothing is not offered any more.
func (t *tails) settle(x *tail, cur *mapped.Cursor) {
	t.mu.Lock()
	defer t.mu.Unlock()
	x.req = nil
	if cur != nil && !cur.Spent() && cur.Plain() == x.plain && cur.Stored() == x.stored {
		x.cur = cur
	} else if i := slices.Index(t.list, x); i >= 0 {
		t.list = slices.Delete(t.list, i, i+1)
	}
	close(x.ready)
}

// drop forgets the tails of a layer.
func (t *tails) drop(l *layer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.list = slices.DeleteFunc(t.list, func(x *tail) bool { return x.l == l })
}

// start decides where a request begins whose first chunk is at off.
func (r *request) start(off int64) {
	m := r.l.m.Map()
	p := m.Points[m.Point(off)]
	if r.after != nil {
		r.l.tails.put(r.after)
	}
	r.begin, r.from, r.after = p.Plain, p.Stored, nil
	if r.fresh || m.Compression != layers.Gzip {
		return
	}
	if r.after = r.l.tails.take(r.l, p.Plain, off, r.class); r.after != nil {
		r.begin, r.from = r.after.plain, r.after.stored
	}
}

// seal says that nothing will be added: others may go on where the request ends.
func (r *request) seal() {
	if r.l.m == nil || r.l.m.Map().Compression != layers.Gzip || r.to == 0 || r.end != nil {
		return
	}
	r.end = &tail{l: r.l, plain: r.reach, stored: r.to, ready: make(chan struct{}), req: r}
	r.l.tails.put(r.end)
}

// settle says where the decoder of a sealed request is; nil if it failed. Only
// the first call counts.
func (r *request) settle(cur *mapped.Cursor) {
	if r.end != nil && !r.settled {
		r.settled = true
		r.l.tails.settle(r.end, cur)
	}
}

var errBefore = errors.New("the request before it failed")

// opening begins to get the decoder of a request and returns how to wait for it,
// which is done once, after the stored bytes came. So the window of a point and
// the stored bytes behind it are on their way at the same time.
func (f *Fetcher) opening(r *request) func() (*mapped.Cursor, error) {
	if r.l.m == nil || r.to == 0 {
		return nil
	}
	if r.after != nil {
		return func() (*mapped.Cursor, error) {
			select {
			case <-r.after.ready:
			case <-r.l.base.Done():
				return nil, r.l.base.Err()
			}
			if r.after.cur == nil {
				return nil, errBefore
			}
			return r.after.cur, nil
		}
	}
	i := r.l.m.Map().Point(r.begin)
	type result struct {
		cur *mapped.Cursor
		err error
	}
	done := make(chan result, 1)
	get := func() {
		ctx, cancel := context.WithTimeout(r.l.base, f.o.Timeout)
		defer cancel()
		w, err := r.l.m.Window(ctx, i)
		if err != nil {
			done <- result{nil, err}
			return
		}
		done <- result{r.l.m.At(i, w), nil}
	}
	if r.l.m.Map().Points[i].Window == 0 || !f.start(get) {
		get()
	}
	return func() (*mapped.Cursor, error) {
		got := <-done
		return got.cur, got.err
	}
}

// maxLate bounds what is put aside of a reader's request until the reader has his bytes.
const maxLate = 8 << 20

// A late part is one that nobody waits for.
type late struct {
	p     part
	plain []byte
}

var errOverlap = errors.New("chunk overlaps another")

// decodeMapped is decode for a request of a mapped layer.
func (f *Fetcher) decodeMapped(r *request, stored []byte, short error, open func() (*mapped.Cursor, error)) (err error) {
	run, cuts, err := f.cuts(r, int64(len(stored)), short)
	if len(run) == 0 {
		return err
	}
	cur, oerr := open()
	switch {
	case oerr == errBefore:
		return cmp.Or(err, f.again(r, run))
	case oerr != nil:
		f.fail(r, run, oerr)
		return cmp.Or(err, ifPassing(oerr))
	}
	var aside []late
	size, done := 0, 0
	derr := cur.Decode(stored, cuts, func(i int, plain []byte) error {
		done = i + 1
		if r.class == demand && run[i].extra && size+len(plain) <= maxLate {
			size += len(plain)
			aside = append(aside, late{run[i], slices.Clone(plain)})
			return nil
		}
		err = cmp.Or(err, f.accept(r, run[i], plain))
		return nil
	})
	if derr == nil && short == nil {
		r.settle(cur)
	}
	r.settle(nil)
	if derr != nil {
		f.failDecode(r, run[done:], derr)
	}
	for _, x := range aside {
		err = cmp.Or(err, f.accept(r, x.p, x.plain))
	}
	return err
}

// ifPassing is an error that is not the bytes' fault, else nil.
func ifPassing(err error) error {
	if isBad(err) {
		return nil
	}
	return err
}

// cuts returns the parts that n stored bytes suffice for, and where they are.
// Holes are kept, and all others fail.
func (f *Fetcher) cuts(r *request, n int64, short error) (run []part, cuts []mapped.Cut, err error) {
	slices.SortStableFunc(r.parts, func(a, b part) int { return cmp.Compare(a.ck.BlobOff, b.ck.BlobOff) })
	pos := r.begin
	for _, p := range r.parts {
		if p.ck.BlobLen == 0 {
			err = cmp.Or(err, f.accept(r, p, make([]byte, p.ck.Size)))
			continue
		}
		_, to := r.l.place(p.ck.BlobOff, p.ck.BlobLen)
		switch {
		case to > r.from+n:
			f.fail(r, []part{p}, short)
			err = cmp.Or(err, ifPassing(short))
		case p.ck.BlobOff < pos:
			f.fail(r, []part{p}, errOverlap)
		default:
			run, cuts = append(run, p), append(cuts, mapped.Cut{Off: p.ck.BlobOff, N: p.ck.Size})
			pos = p.ck.BlobOff + p.ck.Size
		}
	}
	return run, cuts, err
}

// again sends parts in a request that begins at a point.
func (f *Fetcher) again(r *request, parts []part) error {
	n := newRequest(r.l, r.class)
	n.unit, n.pace, n.fresh = r.unit, r.pace, true
	for _, p := range parts {
		n.add(p)
	}
	return f.send(n)
}

// failDecode fails what could not be decoded. That is the fault of the bytes for
// those chunks only which have no better place to begin at; the others are tried
// by themselves.
func (f *Fetcher) failDecode(r *request, parts []part, err error) {
	m := r.l.m.Map()
	for _, p := range parts {
		if r.after != nil || m.Points[m.Point(p.ck.BlobOff)].Plain != r.begin {
			f.fail(r, []part{p}, fmt.Errorf("not decoded: %v", err)) // not %w: it is no lie yet
			continue
		}
		f.fail(r, []part{p}, err)
	}
}

// along adds all chunks to a request that it brings without one more stored byte.
func (f *Fetcher) along(r *request) {
	if r.to == 0 || !f.room() {
		return
	}
	ord := r.l.inOrder()
	f.fill(r, ord, ord.after(r.first()), extent{limit: r.to - r.from, end: r.to + 1, multi: true})
}

// timeoutOf is how long one try to read n bytes may take. The link may be slow:
// 32 KiB/s is as bad as it may get.
func (f *Fetcher) timeoutOf(n int64) time.Duration {
	return f.o.Timeout + time.Duration(n>>15)*time.Second
}

package fetch

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// An Item is a part of an object that a start is known to read.
type Item struct {
	Object    layers.Sum
	Off, Size int64
}

// Prefetch fetches what is missing of items, in their order as far as that is
// cheap: what is near to an item in its layer comes along with it, also if it is
// further down the list. It gives way to readers, but keeps the line full while
// none waits. It returns when all is there or under way, and with the error that
// hinders it; what no layer has is passed over.
func (f *Fetcher) Prefetch(ctx context.Context, items []Item) error {
	p := &prefetch{f: f, pacer: newPacer(f), items: items}
	var wg sync.WaitGroup
	// One more than the gate lets through: it decodes meanwhile.
	for range f.o.Parallel + 1 {
		wg.Go(func() { p.work(ctx) })
	}
	wg.Wait()
	return p.err
}

// A prefetch is a call of Prefetch.
type prefetch struct {
	f     *Fetcher
	pacer *pacer

	mu    sync.Mutex
	items []Item // that were not looked at yet
	open  []wish // that were, in order
	err   error  // ends it
}

// A wish is a chunk that is missing.
type wish struct {
	l        *layer
	sum      layers.Sum
	i        int
	off      int64 // as chunks count
	from, to int64 // stored bytes that it needs
}

const (
	// lookAhead is how many missing chunks are looked at for what is near the first.
	lookAhead = 512
	// bootUnit bounds a request: nothing of it can be used before all has come.
	bootUnit = 1 << 20
)

func (p *prefetch) work(ctx context.Context) {
	for {
		leave, err := p.f.gate.enter(ctx, boot, nil)
		if err != nil {
			p.end(err)
			return
		}
		r := p.take(ctx)
		if r == nil {
			leave()
			return
		}
		if err := p.f.transfer(r, leave); err != nil {
			p.end(err)
			return
		}
	}
}

func (p *prefetch) end(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = cmp.Or(p.err, err)
}

// take makes the next request; nil at the end.
func (p *prefetch) take(ctx context.Context) *request {
	limit := min(p.pacer.limit(), bootUnit)
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		if !p.f.room() {
			p.err = cmp.Or(p.err, ErrNoRoom)
		}
		p.err = cmp.Or(p.err, ctx.Err(), p.f.base.Err())
		if p.err != nil {
			return nil
		}
		p.look()
		if len(p.open) == 0 {
			return nil
		}
		r := newRequest(p.open[0].l, boot)
		r.pace = p.pacer.pace
		for _, w := range p.gather(limit) {
			if part, ok := p.f.missing(r, w.sum, w.i, true); ok {
				r.add(part)
			}
		}
		if len(r.parts) > 0 {
			p.f.along(r)
			r.seal()
			return r
		}
	}
}

// look fills open.
func (p *prefetch) look() {
	for len(p.items) > 0 && len(p.open) < lookAhead {
		p.open = append(p.open, p.f.wishes(p.items[0])...)
		p.items = p.items[1:]
	}
}

// gather takes the first wish out of open, and those near to it. They are in the
// order of their layer.
func (p *prefetch) gather(limit int64) []wish {
	first := p.open[0]
	same := slices.DeleteFunc(slices.Clone(p.open), func(w wish) bool { return w.l != first.l })
	slices.SortStableFunc(same, func(a, b wish) int { return cmp.Compare(a.off, b.off) })
	lo := slices.Index(same, first)
	hi := lo + 1
	from, to := first.from, first.to
	grow := func(w wish) bool {
		a, b := min(from, w.from), max(to, w.to)
		if w.from > to+hole || w.to < from-hole || b-a > max(limit, to-from) {
			return false
		}
		from, to = a, b
		return true
	}
	for more := true; more; {
		more = false
		for hi < len(same) && grow(same[hi]) {
			hi, more = hi+1, true
		}
		for lo > 0 && grow(same[lo-1]) {
			lo, more = lo-1, true
		}
	}
	taken := same[lo:hi]
	p.open = slices.DeleteFunc(p.open, func(w wish) bool { return slices.Contains(taken, w) })
	return taken
}

// wishes returns the chunks of an item that are missing.
func (f *Fetcher) wishes(it Item) (ws []wish) {
	if it.Off < 0 || it.Size <= 0 || f.store.Has(it.Object) {
		return nil
	}
	src := f.sources(it.Object)
	if len(src) == 0 || disputed(src) {
		return nil
	}
	o := f.known(it.Object)
	if o != nil {
		defer f.release(o)
	}
	s := src[0]
	first, end := objects.Covering(s.chunks, it.Off, it.Size)
	for i := first; i < end; i++ {
		c := &s.chunks[i]
		if c.BlobLen == 0 || o != nil && o.layout == s.layout && o.has(i) {
			continue
		}
		w := wish{l: s.l, sum: it.Object, i: i, off: c.BlobOff}
		w.from, w.to = s.l.place(c.BlobOff, c.BlobLen)
		ws = append(ws, w)
	}
	return ws
}

package fetch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	goruntime "runtime"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
	"golang.org/x/sys/unix"
)

// Complete fetches everything that is missing of layers, in the order of their
// blobs, and returns when all is in the store and durable. It always gives way
// to readers. Progress is told how far it is and how far it goes, in bytes of
// the blobs, from one goroutine at a time; it may be nil. What is there already is not
// fetched, so after an error Complete goes on where it ended. It is ErrNoRoom when
// there shall not be more on disk.
func (f *Fetcher) Complete(ctx context.Context, keys []string, progress func(have, total int64)) error {
	ls, err := f.find(keys)
	if err != nil {
		return err
	}
	c := &completion{f: f, progress: progress, pacer: newPacer(f)}
	for _, l := range ls {
		c.total += l.Blob.Size()
	}
	for _, l := range ls {
		if err := c.layer(ctx, l); err != nil {
			return fmt.Errorf("complete layer %s: %w", l.key, err)
		}
	}
	if err := f.store.Flush(); err != nil {
		return err
	}
	return f.store.Barrier(ctx)
}

func (f *Fetcher) find(keys []string) ([]*layer, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	var ls []*layer
next:
	for _, key := range keys {
		for _, l := range f.layers {
			if l.key == key {
				ls = append(ls, l)
				continue next
			}
		}
		return nil, fmt.Errorf("layer %s is not there: %w", key, fs.ErrNotExist)
	}
	return ls, nil
}

// A completion is a call of Complete.
type completion struct {
	f        *Fetcher
	pacer    *pacer
	progress func(have, total int64)
	total    int64

	mu     sync.Mutex
	before int64 // blob bytes of the layers that are done
	seen   int64 // end of the last request that ended, in the current layer
	next   int   // item of the current layer
	err    error // ends the pass
}

// decoders is how many requests are decoded at once, while the line is full.
var decoders = min(4, goruntime.GOMAXPROCS(0)+1)

// passes is how often a layer is gone through before its errors are believed.
// Between two there is a pause, each twice as long as the one before: 3 s in all.
const passes = 5

// layer streams one layer, and then looks for what is still missing: what others
// had under way, objects that are disputed, and objects without stored bytes.
func (c *completion) layer(ctx context.Context, l *layer) error {
	ord := l.inOrder()
	for n := range passes {
		c.pass(ctx, l, ord)
		if c.err == nil {
			break
		}
		if n == passes-1 || !passing(c.err) {
			return c.err
		}
		select {
		case <-time.After(pause << n):
		case <-ctx.Done():
			return ctx.Err()
		case <-l.base.Done():
			return l.base.Err()
		}
	}
	for _, sum := range ord.sums {
		if err := cmp.Or(ctx.Err(), l.base.Err()); err != nil {
			return err
		}
		if err := c.f.ensure(ctx, sum); err != nil {
			return err
		}
	}
	c.mu.Lock()
	c.before += l.Blob.Size()
	c.seen = 0
	c.mu.Unlock()
	c.tell(0)
	l.forget()
	return nil
}

// passing says whether an error may be gone the next time.
func passing(err error) bool {
	return !errors.Is(err, context.Canceled) && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) &&
		!errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EIO) && !errors.Is(err, ErrNoRoom)
}

func (c *completion) pass(ctx context.Context, l *layer, ord *order) {
	c.next, c.err = 0, nil
	var wg sync.WaitGroup
	// More than the gate lets through: they decode meanwhile.
	for range c.f.o.Parallel + decoders {
		wg.Go(func() { c.work(ctx, l, ord) })
	}
	wg.Wait()
}

// work sends one request after another until there are no more items.
func (c *completion) work(ctx context.Context, l *layer, ord *order) {
	for {
		leave, err := c.f.gate.enter(ctx, background, nil)
		if err != nil {
			c.end(err)
			return
		}
		r := c.take(l, ord)
		if r == nil {
			leave()
			return
		}
		if err := c.f.transfer(r, leave); err != nil {
			c.end(err)
			return
		}
		c.tell(r.to)
	}
}

func (c *completion) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = cmp.Or(c.err, err)
}

// take makes the next request; nil at the end. Its flights begin now, when it
// may be sent at once: a reader who joins one does not wait for the gate.
func (c *completion) take(l *layer, ord *order) *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.f.room() {
		c.err = cmp.Or(c.err, ErrNoRoom)
	}
	if c.err != nil || l.base.Err() != nil {
		return nil
	}
	r := newRequest(l, background)
	r.unit, r.pace = c.pacer.limit, c.pacer.pace
	c.next = c.f.fill(r, ord, c.next, extent{limit: c.pacer.limit(), end: math.MaxInt64, multi: true})
	if len(r.parts) == 0 {
		return nil
	}
	r.seal()
	return r
}

func (c *completion) tell(end int64) {
	if c.progress == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = max(c.seen, end)
	c.progress(min(c.before+c.seen, c.total), c.total)
}

// ensure makes an object complete, whatever state it is in.
func (f *Fetcher) ensure(ctx context.Context, sum layers.Sum) error {
	if f.store.Has(sum) {
		return nil
	}
	o, disputed, err := f.object(sum)
	if err != nil {
		if isNotCached(err) && f.store.Has(sum) {
			return nil
		}
		return err
	}
	if disputed {
		return f.prove(ctx, sum)
	}
	defer f.release(o)
	return f.whole(ctx, o, background)
}

// whole fetches all of an object and makes it complete.
func (f *Fetcher) whole(ctx context.Context, o *object, c class) error {
	const batch = 16 // chunks, which bounds what is under way at once
	for i := 0; i < len(o.chunks); i += batch {
		if err := f.bring(ctx, o, i, min(i+batch, len(o.chunks)), c); err != nil {
			return err
		}
	}
	if o.part == nil {
		return nil
	}
	return f.promote(o)
}

// bring fetches chunks [first, end) and returns when they are in the store.
func (f *Fetcher) bring(ctx context.Context, o *object, first, end int, c class) error {
	for range 2 { // the second time if it joined a request that nobody waited for
		again := false
		for _, fl := range f.want(o, first, end, c) {
			if fl == nil {
				continue
			}
			select {
			case <-fl.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if fl.lost != nil {
				return fl.lost
			}
			if fl.err != nil && !fl.weak {
				return fl.err
			}
			again = again || fl.err != nil
		}
		if !again {
			return nil
		}
	}
	return fmt.Errorf("object %s: %w", o.sum, objects.ErrNotCached)
}

package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers"
)

// Stream reads the stored bytes of a layer from front to back, as the background
// does: by range requests, several at once, that give way to readers. It is for
// whoever makes a mapped layer complete, and proves the digests of all of it
// meanwhile. It fails when ctx ends, and with ErrNoRoom when there shall not be
// more on disk. The caller closes it.
func (f *Fetcher) Stream(ctx context.Context, key string) (io.ReadCloser, error) {
	ls, err := f.find([]string{key})
	if err != nil {
		return nil, err
	}
	d := &download{f: f, l: ls[0], pacer: newPacer(f), size: ls[0].Blob.Size()}
	d.more.L = &d.mu
	d.ctx, d.cancel = context.WithCancel(ctx)
	context.AfterFunc(d.ctx, func() { d.end(d.ctx.Err()) })
	stop := context.AfterFunc(d.l.base, d.cancel)
	d.stop = func() { stop(); d.cancel() }
	// One more than the gate lets through: it waits for its turn.
	for range f.o.Parallel + 1 {
		d.wg.Add(1)
		if !f.start(func() { defer d.wg.Done(); d.work() }) {
			d.wg.Done()
			return nil, errors.Join(context.Canceled, d.Close())
		}
	}
	return d, nil
}

// A download is a layer on its way to one who reads it in order.
//
//	0 ..... read ..... next ........ size
//	         | pieces   | not asked for
type download struct {
	f      *Fetcher
	l      *layer
	pacer  *pacer
	ctx    context.Context // of the call of Stream; ends with the layer and Close
	cancel context.CancelFunc
	stop   func()
	wg     sync.WaitGroup
	size   int64

	cur []byte // of the first piece, for Read only

	mu     sync.Mutex
	more   sync.Cond // of mu: something below has changed
	read   int64
	next   int64
	pieces []*piece // in order, the first is being read
	err    error    // ends everything
}

// A piece is a run of the blob.
type piece struct {
	off  int64
	buf  *[]byte
	data []byte // the buffer's part that is used
	done bool
}

func (d *download) end(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil {
		d.err = err
	}
	d.more.Broadcast()
}

// work fetches one piece after another.
func (d *download) work() {
	for d.wait() {
		leave, err := d.f.gate.enter(d.ctx, background, nil)
		if err != nil {
			d.end(err)
			return
		}
		p := d.take()
		if p == nil {
			leave()
			return
		}
		if err := d.fetch(p, leave); err != nil {
			d.end(fmt.Errorf("layer %s: %w", d.l.key, err))
			return
		}
		d.mu.Lock()
		p.done = true
		d.more.Broadcast()
		d.mu.Unlock()
	}
}

// wait waits until more may be asked for. It is false at the end.
func (d *download) wait() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.err == nil && d.next < d.size && d.next-d.read >= d.pacer.ahead() {
		d.more.Wait()
	}
	return d.err == nil && d.next < d.size
}

// take begins the next piece; nil at the end.
func (d *download) take() *piece {
	n := d.pacer.limit()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err == nil && !d.f.room() {
		d.err = ErrNoRoom
		d.more.Broadcast()
	}
	if d.err != nil || d.next == d.size {
		return nil
	}
	n = min(n, d.size-d.next)
	p := &piece{off: d.next, buf: getBuf(n)}
	p.data = (*p.buf)[:n]
	d.pieces = append(d.pieces, p)
	d.next += n
	return p
}

// fetch fills a piece. After an error there is a pause, each twice as long as
// the one before, like that of Complete.
func (d *download) fetch(p *piece, leave func()) (err error) {
	defer func() { leave() }()
	have := 0
	for n := range passes {
		r := newRequest(d.l, background)
		r.from, r.to = p.off+int64(have), p.off+int64(len(p.data))
		r.base, r.unit, r.pace = d.ctx, d.pacer.limit, d.pacer.pace
		var m int
		m, err = d.f.readRange(r, p.data[have:], &leave)
		leave()
		if have += m; have == len(p.data) {
			return nil
		}
		if err == nil || err == io.EOF {
			return fmt.Errorf("%w: blob ends at %d", layers.ErrBadLayer, p.off+int64(have))
		}
		if n == passes-1 || !passing(err) || d.ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(pause << n):
		case <-d.ctx.Done():
			return d.ctx.Err()
		}
		if leave, err = d.f.gate.enter(d.ctx, background, nil); err != nil {
			return err
		}
	}
	return err
}

// Read is of [io.Reader].
func (d *download) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if len(d.cur) == 0 {
		if err := d.advance(); err != nil {
			return 0, err
		}
	}
	n := copy(p, d.cur)
	d.cur = d.cur[n:]
	return n, nil
}

// advance waits for the next piece.
func (d *download) advance() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.pieces) > 0 && d.pieces[0].off < d.read {
		putBuf(d.pieces[0].buf)
		d.pieces = d.pieces[1:]
	}
	for d.err == nil && d.read < d.size && (len(d.pieces) == 0 || !d.pieces[0].done) {
		d.more.Wait()
	}
	if d.read == d.size {
		return io.EOF
	}
	if d.err != nil {
		return d.err
	}
	d.cur = d.pieces[0].data
	d.read += int64(len(d.cur))
	d.more.Broadcast()
	return nil
}

// Close ends the requests and returns when they have ended.
func (d *download) Close() error {
	d.stop()
	d.wg.Wait()
	return nil
}

var _ io.ReadCloser = (*download)(nil)

// Done says that all objects of a layer have come into the store by another way,
// as those of a Stream do. What was kept of them in parts is dropped.
func (f *Fetcher) Done(key string) error {
	ls, err := f.find([]string{key})
	if err != nil {
		return err
	}
	f.mu.RLock()
	objs := slices.Collect(maps.Values(f.objs))
	f.mu.RUnlock()
	for _, o := range objs {
		if f.store.Has(o.sum) {
			f.retire(o)
		}
	}
	ls[0].forget()
	_, err = f.store.SweepPartials()
	return err
}

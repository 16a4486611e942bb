package blobs

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// flights runs one fetch per blob, however many wait for it. It ends when the
// last of them has left.
type flights struct {
	base context.Context // lifetime of fetches
	end  context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	m    map[digest.Digest]*flight
}

type flight struct {
	done    chan struct{}
	err     error // when done is closed
	cancel  context.CancelFunc
	waiters int // under flights.mu
}

func (f *flights) open(base context.Context) {
	f.base, f.end = context.WithCancel(base)
	f.m = map[digest.Digest]*flight{}
}

// errClosing is for those who read on while the daemon ends, or is replaced.
var errClosing = fmt.Errorf("the content store is closing: %w", errdefs.ErrUnavailable)

// close ends all fetches and waits for them.
func (f *flights) close() {
	f.mu.Lock()
	f.end() // nobody joins any more
	f.mu.Unlock()
	f.wg.Wait()
}

// do runs fn, or waits for the fn that is under way. The next one begins only
// when that has returned, also if all who waited for it have left.
func (f *flights) do(ctx context.Context, key digest.Digest, fn func(context.Context) error) error {
	for {
		c, ended, err := f.join(key, fn)
		switch {
		case err != nil:
			return err
		case ended != nil: // it is on its way out; then begin another
			select {
			case <-ended:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		defer f.leave(c)
		select {
		case <-c.done:
			if errors.Is(c.err, context.Canceled) { // not for want of waiters
				return errClosing
			}
			return c.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (f *flights) join(key digest.Digest, fn func(context.Context) error) (c *flight, ended chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.base.Err() != nil {
		return nil, nil, errClosing
	}
	if c = f.m[key]; c != nil {
		if c.waiters == 0 {
			return nil, c.done, nil
		}
		c.waiters++
		return c, nil, nil
	}
	ctx, cancel := context.WithCancel(f.base)
	c = &flight{done: make(chan struct{}), cancel: cancel, waiters: 1}
	f.m[key] = c
	f.wg.Go(func() {
		defer cancel()
		c.err = fn(ctx)
		f.mu.Lock()
		delete(f.m, key)
		f.mu.Unlock()
		close(c.done)
	})
	return c, nil, nil
}

func (f *flights) leave(c *flight) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c.waiters--; c.waiters == 0 {
		c.cancel()
	}
}

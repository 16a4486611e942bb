package images

import (
	"context"
	"sync"

	"github.com/snapfs/snapfs/internal/control"
)

// flights runs one piece of work per key however many ask for it. The work
// ends early when the last of them has left.
type flights[T any] struct {
	mu    sync.Mutex
	calls map[string]*flight[T]
}

type flight[T any] struct {
	done   chan struct{}
	val    T
	err    error
	cancel context.CancelFunc

	mu      sync.Mutex
	waiters map[*waiter]bool
	last    map[string]control.Progress // newest event of each line, for those who come later
	order   []string
}

// A waiter's events are delivered under its own lock and never after it has left.
type waiter struct {
	mu       sync.Mutex
	left     bool
	progress func(control.Progress)
}

func (w *waiter) send(p control.Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.left && w.progress != nil {
		w.progress(p)
	}
}

// do returns fn's result, from a run under base that may already be going on.
// progress hears its events. A caller whose ctx ends leaves with ctx's error.
func (f *flights[T]) do(ctx, base context.Context, key string, progress func(control.Progress),
	fn func(context.Context, func(control.Progress)) (T, error)) (T, error) {
	w := &waiter{progress: progress}
	c := f.join(base, key, w, fn)
	defer f.leave(key, c, w)
	select {
	case <-c.done:
		return c.val, c.err
	case <-ctx.Done():
		var zero T
		return zero, context.Cause(ctx)
	}
}

func (f *flights[T]) join(base context.Context, key string, w *waiter,
	fn func(context.Context, func(control.Progress)) (T, error)) *flight[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.calls[key]; c != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.waiters[w] = true
		for _, id := range c.order {
			w.send(c.last[id])
		}
		return c
	}
	ctx, cancel := context.WithCancel(base)
	c := &flight[T]{done: make(chan struct{}), cancel: cancel,
		waiters: map[*waiter]bool{w: true}, last: map[string]control.Progress{}}
	if f.calls == nil {
		f.calls = map[string]*flight[T]{}
	}
	f.calls[key] = c
	go func() { // ends with fn; leave waits for it when the last waiter goes
		defer close(c.done)
		defer cancel()
		c.val, c.err = fn(ctx, c.publish)
		f.mu.Lock()
		if f.calls[key] == c {
			delete(f.calls, key)
		}
		f.mu.Unlock()
	}()
	return c
}

func (c *flight[T]) publish(p control.Progress) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id := p.ID + "\x00" + p.Action
	if _, known := c.last[id]; !known {
		c.order = append(c.order, id)
	}
	c.last[id] = p
	for w := range c.waiters {
		w.send(p)
	}
}

func (f *flights[T]) leave(key string, c *flight[T], w *waiter) {
	w.mu.Lock()
	w.left = true
	w.mu.Unlock()
	f.mu.Lock()
	c.mu.Lock()
	delete(c.waiters, w)
	last := len(c.waiters) == 0
	c.mu.Unlock()
	if last && f.calls[key] == c {
		delete(f.calls, key) // the next caller begins anew
	}
	f.mu.Unlock()
	if last {
		c.cancel()
		<-c.done
	}
}

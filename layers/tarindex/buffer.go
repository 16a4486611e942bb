package tarindex

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
)

// Sizes of the buffers between the stages, in bytes, and how many of each one
// layer has at most: with eight layers at once 24 MiB in all. Larger ones fall
// out of the L2 cache between inflating and hashing; smaller ones cost switches.
const (
	storedSize  = 128 << 10
	storedCount = 4
	plainSize   = 384 << 10
	plainCount  = 6
	window      = 32 << 10 // of DEFLATE: the bytes before that matches refer to
)

// A buffer is a run of the stream between two stages. Of a plain one the first
// window bytes are room for the end of the buffer before.
type buffer struct {
	b     []byte
	lo, n int // the run is b[lo:n]
	refs  atomic.Int32
}

func (b *buffer) data() []byte { return b.b[b.lo:b.n] }

// A pool hands out buffers of one size, made when they are first needed.
type pool struct {
	lo    int
	queue chan *buffer
	spare *sync.Pool
}

// Buffers outlive the layer they were made for: a pull of many small layers
// would else spend its time clearing new ones.
var (
	storedBuffers = sync.Pool{New: func() any { return &buffer{b: make([]byte, storedSize)} }}
	plainBuffers  = sync.Pool{New: func() any { return &buffer{b: make([]byte, window+plainSize)} }}
)

func newPool(spare *sync.Pool, lo, count int) *pool {
	p := &pool{lo: lo, queue: make(chan *buffer, count), spare: spare}
	for range count {
		p.queue <- nil
	}
	return p
}

// get waits for a free buffer. It is put back after refs calls of put.
func (p *pool) get(ctx context.Context, refs int32) (*buffer, error) {
	select {
	case b := <-p.queue:
		if b == nil {
			b = p.spare.Get().(*buffer)
		}
		b.lo, b.n = p.lo, p.lo
		b.refs.Store(refs)
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *pool) put(b *buffer) {
	if b.refs.Add(-1) == 0 {
		p.queue <- b // never blocks: there are no more buffers than room
	}
}

// close keeps the buffers for another layer. All must have been put back or lost.
func (p *pool) close() {
	for {
		select {
		case b := <-p.queue:
			if b != nil {
				p.spare.Put(b)
			}
		default:
			return
		}
	}
}

// receive returns the next element of a channel, io.EOF when it is closed.
func receive[T any](ctx context.Context, ch <-chan T) (v T, err error) {
	select {
	case v, ok := <-ch:
		if !ok {
			return v, io.EOF
		}
		return v, nil
	case <-ctx.Done():
		return v, context.Cause(ctx)
	}
}

// send passes an element on.
func send[T any](ctx context.Context, ch chan<- T, v T) error {
	select {
	case ch <- v:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

package toc

import (
	"context"
	"fmt"
	"io"

	"github.com/snapfs/snapfs/layers"
)

// step is how much of a blob is asked for at once: most TOCs are one request,
// and a large one is never in memory whole.
const step = 4 << 20

// A Range reads a part of a blob as a stream.
type Range struct {
	ctx  context.Context
	blob layers.Blob
	off  int64
	end  int64
	buf  []byte // not yet read
	err  error  // of the blob
}

// NewRange returns the bytes of b from off up to end, of which head holds the
// first already. The stream is read under ctx.
func NewRange(ctx context.Context, b layers.Blob, off, end int64, head []byte) *Range {
	return &Range{ctx: ctx, blob: b, off: off + int64(len(head)), end: end, buf: head}
}

// Err is the error of the blob, if it failed: what came of it since, like a
// decoder that missed its bytes, is only its consequence.
func (r *Range) Err() error { return r.err }

func (r *Range) Read(p []byte) (int, error) {
	if len(r.buf) == 0 {
		if err := r.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

// ReadByte keeps decoders from wrapping the stream in a buffer of their own.
func (r *Range) ReadByte() (byte, error) {
	var b [1]byte
	_, err := r.Read(b[:])
	return b[0], err
}

func (r *Range) fill() error {
	if r.err != nil {
		return r.err
	}
	if r.off >= r.end {
		return io.EOF
	}
	buf, err := ReadRange(r.ctx, r.blob, r.off, min(r.off+step, r.end))
	if err != nil {
		r.err = err
		return err
	}
	r.off += int64(len(buf))
	r.buf = buf
	return nil
}

// ReadRange returns the bytes of b from off up to end.
func ReadRange(ctx context.Context, b layers.Blob, off, end int64) ([]byte, error) {
	p := make([]byte, end-off)
	n, err := b.ReadAt(ctx, p, off)
	if n < len(p) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read blob at %d: %w", off, err)
	}
	return p, nil
}

package mapped

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
	"github.com/snapfs/snapfs/layers/inflate"
)

// A Cut is a run of plain bytes that is wanted: n of them from off in the tar.
type Cut struct{ Off, N int64 }

// A Cursor is a decoder that stands somewhere in a layer. Of a gzip layer it can
// be kept, at a cost of about 64 KiB, and goes on where it is. It is for one
// goroutine at a time.
type Cursor struct {
	m             *layers.Map
	plain, stored int64 // where it stands; what it was given
	spent         bool
	err           error // that its decoder met after the bytes that were asked for

	z       *inflate.Gzip
	in      feed
	history []byte // the plain bytes before, up to 32 KiB
}

// Plain is the offset of the first plain byte that it makes next.
func (c *Cursor) Plain() int64 { return c.plain }

// Stored is the offset of the first stored byte that it needs next.
func (c *Cursor) Stored() int64 { return c.stored }

// Spent says that it cannot go on: it has met an error, or its format does not allow it.
func (c *Cursor) Spent() bool { return c.spent }

// Decode takes the stored bytes that follow those it was given before, makes
// plain ones up to the end of the last cut, and calls put for each cut with its
// bytes, which are good during the call. Cuts are in order, do not overlap, and
// begin at Plain or later; each has 1 to layers.MaxChunk bytes. An error of put
// ends it and is returned as it is; all others wrap layers.ErrBadLayer, or
// layers.ErrTooLarge if a zstd frame takes too much memory.
func (c *Cursor) Decode(stored []byte, cuts []Cut, put func(i int, plain []byte) error) error {
	largest, err := c.check(cuts)
	if err != nil {
		c.spent = true
		return err
	}
	if c.z == nil {
		c.spent = true
		return c.frames(stored, cuts, put)
	}
	c.in.give(stored)
	if err := c.run(cuts, largest, put); err != nil {
		c.spent = true
		return err
	}
	c.stored += int64(len(stored))
	c.spent = c.err != nil
	c.in.keep()
	return nil
}

func (c *Cursor) check(cuts []Cut) (largest int64, err error) {
	pos := c.plain
	for _, k := range cuts {
		if k.Off < pos || k.Off-pos > MaxSkip || k.N < 1 || k.N > layers.MaxChunk || k.Off > c.m.Plain-k.N {
			return 0, fmt.Errorf("%w: %d bytes at %d of the tar, behind %d", layers.ErrBadLayer, k.N, k.Off, pos)
		}
		pos, largest = k.Off+k.N, max(largest, k.N)
	}
	if c.spent {
		return 0, fmt.Errorf("%w: decoder at %d cannot go on", layers.ErrBadLayer, c.plain)
	}
	return largest, nil
}

// frames decodes zstd frames, each from its start.
func (c *Cursor) frames(stored []byte, cuts []Cut, put func(int, []byte) error) error {
	run := make([]layers.Chunk, len(cuts))
	for i, k := range cuts {
		run[i] = layers.Chunk{Size: k.N, BlobLen: int64(len(stored)), Inner: k.Off - c.plain}
	}
	if len(stored) == 0 && len(cuts) > 0 {
		return fmt.Errorf("%w: no stored bytes", layers.ErrBadLayer)
	}
	return decode.Run(c.m.Compression, stored, run, put)
}

// skipUnit is how much is made at once of what nobody wants.
const skipUnit = 96 << 10

// run decodes through a buffer that begins with the history:
//
//	... | 32 KiB before pos | what is made now
func (c *Cursor) run(cuts []Cut, largest int64, put func(int, []byte) error) error {
	buf := getBuf(inflate.Window + max(largest, skipUnit))
	defer putBuf(buf)
	b := *buf
	n := copy(b, c.history)
	for i, k := range cuts {
		for c.plain < k.Off {
			n = slide(b, n, min(skipUnit, k.Off-c.plain))
			m := n + int(min(skipUnit, k.Off-c.plain))
			if err := c.full(b[:m], n); err != nil {
				return err
			}
			n = m
		}
		n = slide(b, n, k.N)
		if err := c.full(b[:n+int(k.N)], n); err != nil {
			return err
		}
		n += int(k.N)
		if err := put(i, b[n-int(k.N):n]); err != nil {
			return err
		}
	}
	c.history = append(c.history[:0:0], b[max(0, n-inflate.Window):n]...)
	return nil
}

// slide makes room for want bytes behind b[:n] and returns the new n.
func slide(b []byte, n int, want int64) int {
	if int64(len(b)-n) >= want {
		return n
	}
	return copy(b, b[max(0, n-inflate.Window):n])
}

// full fills b from n on.
func (c *Cursor) full(b []byte, n int) error {
	m, err := n, c.err
	if err == nil {
		m, err = c.z.Decode(b, n)
	}
	c.plain += int64(m - n)
	switch {
	case m == len(b):
		c.err = err // it looked further than it was asked to
		return nil
	case err == nil || err == io.EOF || errors.Is(err, errStarved):
		return fmt.Errorf("%w: stored bytes end early, at %d of the tar", layers.ErrBadLayer, c.plain)
	case errors.Is(err, layers.ErrBadLayer):
		return fmt.Errorf("at %d of the tar: %w", c.plain, err)
	}
	return fmt.Errorf("%w: at %d of the tar: %w", layers.ErrBadLayer, c.plain, err)
}

// feed is what a decoder takes its stored bytes from. They come through a small
// buffer of its own, so that nothing of the caller's is held when it rests.
type feed struct {
	left, given []byte
	buf         []byte
}

// feedSize is how many stored bytes a decoder gets at once.
const feedSize = 8 << 10

// errStarved is not io.EOF: a decoder would take that for the end of the layer.
var errStarved = errors.New("no more stored bytes")

func (f *feed) give(p []byte) { f.given = p }

// Next is of [inflate.Source].
func (f *feed) Next() ([]byte, error) {
	from := &f.left
	if len(f.left) == 0 {
		if from = &f.given; len(f.given) == 0 {
			return nil, errStarved
		}
	}
	if f.buf == nil {
		f.buf = make([]byte, feedSize)
	}
	n := copy(f.buf, *from)
	*from = (*from)[n:]
	return f.buf[:n], nil
}

// keep copies what was given and is not taken yet.
func (f *feed) keep() {
	f.left = append(append([]byte(nil), f.left...), f.given...)
	f.given = nil
}

// buffers are by power of two of their capacity.
var buffers [64]sync.Pool

func getBuf(n int64) *[]byte {
	c := bits.Len64(uint64(n - 1))
	if b, ok := buffers[c].Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 1<<c)
	return &b
}

func putBuf(b *[]byte) { buffers[bits.Len64(uint64(cap(*b)-1))].Put(b) }

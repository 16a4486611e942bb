// Package mapped makes plain bytes of a compressed layer from its stored ones,
// with a [layers.Map] that says where: the layer looks like its uncompressed tar.
//
//	stored  ....|P........|m..|m......|P.....
//	plain   ....|P........|===|m......|P.....
//
// To have the bytes === it takes the stored ones from the point P before them
// to the mark m behind. A [Cursor] decodes them, and then stands behind them:
// whoever wants the next bytes goes on there, and needs no byte twice.
//
// Nothing is verified here: maps, windows and stored bytes may all lie, and cost
// no more than [MaxStored] stored and [MaxSkip] plain bytes, whatever they say.
// Whoever keeps or serves the bytes checks their sum.
package mapped

import (
	"context"
	"fmt"
	"io"
	"io/fs"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
	"github.com/snapfs/snapfs/layers/inflate"
)

// Limits of what lies between a point and the bytes that are wanted, so that a
// map without points does not make one read cost a whole layer.
const (
	MaxStored = layers.MaxChunk
	MaxSkip   = decode.MaxInner
)

// A Blob is the plain tar of a layer. It is a [layers.Blob] for those who want
// some bytes of it now and then: it keeps nothing between two reads.
type Blob struct {
	stored  layers.Blob
	m       *layers.Map
	windows layers.Windows
}

var _ layers.Blob = (*Blob)(nil)

// New returns the plain bytes of stored. m has passed [layers.Map.Check]; w may
// be nil if no point of m has a window.
func New(stored layers.Blob, m *layers.Map, w layers.Windows) *Blob {
	return &Blob{stored: stored, m: m, windows: w}
}

// Size is the number of plain bytes.
func (b *Blob) Size() int64 { return b.m.Plain }

// Map is where they are in the stored ones.
func (b *Blob) Map() *layers.Map { return b.m }

// Affordable says whether the plain bytes [off, off+n) are in the layer and can
// be made within the limits.
func (b *Blob) Affordable(off, n int64) bool {
	if off < 0 || n < 1 || n > layers.MaxChunk || off > b.m.Plain-n {
		return false
	}
	first, from, to := b.m.Locate(off, n)
	return to > from && to-from <= MaxStored && (b.m.Compression == layers.None || off-b.m.Points[first].Plain <= MaxSkip)
}

// unit is how many plain bytes ReadAt makes at once, where it can go on.
const unit = 1 << 20

// ReadAt is that of [layers.Blob]. Where the stored bytes, the map or a window
// are malformed the error wraps layers.ErrBadLayer; where too much has to be
// decoded for the first byte, or takes too much memory, layers.ErrTooLarge.
func (b *Blob) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	case len(p) == 0:
		return 0, nil
	case off >= b.m.Plain:
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > b.m.Plain-off {
		p, eof = p[:b.m.Plain-off], io.EOF
	}
	if b.m.Compression == layers.None {
		n, err = b.stored.ReadAt(ctx, p, off)
	} else {
		n, err = b.decode(ctx, p, off)
	}
	if err != nil && !(err == io.EOF && n == len(p)) {
		return n, err
	}
	return n, eof
}

func (b *Blob) decode(ctx context.Context, p []byte, off int64) (n int, err error) {
	c, err := b.begin(ctx, off)
	if err != nil {
		return 0, err
	}
	for n < len(p) {
		q := p[n:]
		if b.m.Compression == layers.Gzip {
			q = q[:min(len(q), unit)]
		}
		q = q[:min(len(q), layers.MaxChunk)]
		if c.Spent() {
			if c, err = b.begin(ctx, off+int64(n)); err != nil {
				return n, err
			}
		}
		if err := b.piece(ctx, c, q, off+int64(n)); err != nil {
			return n, err
		}
		n += len(q)
	}
	return n, nil
}

func (b *Blob) begin(ctx context.Context, off int64) (*Cursor, error) {
	i := b.m.Point(off)
	w, err := b.Window(ctx, i)
	if err != nil {
		return nil, err
	}
	return b.At(i, w), nil
}

// piece fills q from off with what c makes.
func (b *Blob) piece(ctx context.Context, c *Cursor, q []byte, off int64) error {
	from, to := c.Stored(), b.m.StoredEnd(off+int64(len(q)))
	if to < from || to-from > MaxStored || off-c.Plain() > MaxSkip {
		return fmt.Errorf("plain bytes at %d take %d stored ones, after %d others: %w", off, to-from, off-c.Plain(), layers.ErrTooLarge)
	}
	buf := make([]byte, to-from)
	m, err := b.stored.ReadAt(ctx, buf, from)
	if m < len(buf) {
		if err == nil || err == io.EOF {
			err = fmt.Errorf("%w: blob ends at %d", layers.ErrBadLayer, from+int64(m))
		}
		return err
	}
	return c.Decode(buf, []Cut{{off, int64(len(q))}}, func(_ int, plain []byte) error {
		copy(q, plain)
		return nil
	})
}

// Window returns what a cursor at point i begins with: nil if it needs nothing.
// It may block on the network.
func (b *Blob) Window(ctx context.Context, i int) ([]byte, error) {
	want := int(b.m.Points[i].Window)
	if want == 0 {
		return nil, nil
	}
	if b.windows == nil {
		return nil, fmt.Errorf("%w: no window of point %d", layers.ErrBadLayer, i)
	}
	w, err := b.windows.Window(ctx, i)
	if err != nil {
		return nil, fmt.Errorf("window of point %d: %w", i, err)
	}
	if len(w) != want {
		return nil, fmt.Errorf("%w: window of point %d has %d bytes, not %d", layers.ErrBadLayer, i, len(w), want)
	}
	return w, nil
}

// At returns a cursor that stands at point i, whose window is w.
func (b *Blob) At(i int, w []byte) *Cursor {
	p := b.m.Points[i]
	c := &Cursor{m: b.m, plain: p.Plain, stored: p.Stored}
	if b.m.Compression == layers.Gzip {
		c.z = inflate.Resume(&c.in, p)
		c.history = w
	}
	return c
}

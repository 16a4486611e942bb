package index

import (
	"context"
	"fmt"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// A window is stored as a zstd frame; as it is where that is not smaller; not at
// all if it is all zeros, as that of a place to which nothing refers back is.

// seal returns a window as it is stored.
func seal(z *zstd.Encoder, window []byte) []byte {
	for _, b := range window {
		if b != 0 {
			return shrink(z, window)
		}
	}
	return nil
}

// open makes the plain window of point i of its stored bytes.
func (w Window) open(i int, plain int32, stored []byte) ([]byte, error) {
	if err := w.check(i, stored); err != nil {
		return nil, err
	}
	switch w.Len {
	case 0:
		return make([]byte, plain), nil
	case plain:
		return stored, nil
	}
	p := make([]byte, plain)
	if err := expand(p, stored); err != nil {
		return nil, fmt.Errorf("window %d: %w", i, err)
	}
	return p, nil
}

// check checks the stored bytes of window i.
func (w Window) check(i int, stored []byte) error {
	if len(stored) != int(w.Len) {
		return fmt.Errorf("%w: window %d: %d stored bytes, want %d", ErrCorrupt, i, len(stored), w.Len)
	}
	if w.Len == 0 {
		return nil
	}
	if got := layers.SumOf(stored); got != w.Sum {
		return fmt.Errorf("%w: %w", ErrCorrupt, &layers.DigestError{Want: w.Sum.Digest(), Got: got.Digest(), From: fmt.Sprintf("window %d", i)})
	}
	return nil
}

// storedWindows is what has windows in their stored form.
type storedWindows interface {
	Stored(ctx context.Context, i int) ([]byte, error)
}

// sealed calls put with the windows of m in their stored form, in order, and
// returns their table, as if the first were at 0.
func sealed(ctx context.Context, z *zstd.Encoder, m *layers.Map, w layers.Windows, put func([]byte) error) ([]Window, error) {
	table := make([]Window, len(m.Points))
	var off int64
	for i, p := range m.Points {
		if p.Window == 0 {
			continue
		}
		if w == nil {
			return nil, fmt.Errorf("%w: point %d needs %d bytes", ErrNoWindow, i, p.Window)
		}
		stored, err := sealedOne(ctx, z, p.Window, w, i)
		if err != nil {
			return nil, fmt.Errorf("window %d: %w", i, err)
		}
		table[i] = Window{Off: off, Len: int32(len(stored))}
		if off += int64(len(stored)); len(stored) > 0 {
			table[i].Sum = layers.SumOf(stored)
		}
		if err := put(stored); err != nil {
			return nil, err
		}
	}
	return table, nil
}

func sealedOne(ctx context.Context, z *zstd.Encoder, plain int32, w layers.Windows, i int) ([]byte, error) {
	if s, ok := w.(storedWindows); ok {
		return s.Stored(ctx, i)
	}
	p, err := w.Window(ctx, i)
	if err != nil {
		return nil, err
	}
	if len(p) != int(plain) {
		return nil, fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, len(p), plain)
	}
	return seal(z, p), nil
}

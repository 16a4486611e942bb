package layers

import (
	"context"
	"fmt"
	"sort"
)

// ChunkSize is how the files of a layer without a table of contents are cut,
// plain bytes. A chunk is what a miss, and a boot bundle, brings at the least; its
// sum costs a 2048th of it. Recorded with 128, 64 and 32 KiB, the bundle of a
// start of redis-server has 5.3, 4.5 and 4.5 MB, and what a node fetches before it
// can start grows by 31 and 101 KB.
const ChunkSize = 64 << 10

// Limits of a Map.
const (
	MaxPoints = 1 << 20
	MaxMarks  = 8 << 20
	MaxWindow = 32 << 10 // how far back DEFLATE refers (RFC 1951, section 2)
)

// A Map says where the plain bytes of a whole layer, its tar, are in its stored
// bytes, so that any run of them can be had without all that come before. With
// it a layer is read like the uncompressed tar: in an Index that goes with a
// Map, Compression is None and the offsets of chunks are those in the tar.
// It is immutable.
type Map struct {
	Compression Compression
	Plain       int64 // bytes of the tar and what follows its end: what the diff ID is of
	Stored      int64 // bytes of the blob
	// Points are where decoding can begin, in order of Plain and of Stored; the
	// first at plain byte 0. An uncompressed layer has that one only: it can be
	// read from any byte on.
	Points []Point
	// Marks are where decoding can end before the next point, in order. They
	// save stored bytes, nothing else needs them.
	Marks []Mark
}

// A Point is a place where decoding can begin.
type Point struct {
	Plain  int64 // offset of the next plain byte
	Stored int64 // offset of the stored byte that holds the next bit
	Bits   uint8 // how many low bits of that byte are before the point, 0 to 7; gzip only
	// Window is how many plain bytes before the point decoding needs: up to
	// MaxWindow at the start of a DEFLATE block. With 0 the point is the header
	// of a gzip member or zstd frame, and Bits is 0.
	Window int32
}

// A Mark says that all plain bytes before Plain can be made from the stored
// bytes before Stored.
type Mark struct{ Plain, Stored int64 }

// Windows gives what has to be known before decoding can begin at a point.
type Windows interface {
	// Window returns the Points[i].Window plain bytes before that point. Those
	// that nothing refers to may be zeros. It may block on the network, and
	// returns when ctx ends. The caller must not change the bytes.
	Window(ctx context.Context, i int) ([]byte, error)
}

// Point returns the index of the last point at or before plain byte off ≥ 0.
func (m *Map) Point(off int64) int {
	return sort.Search(len(m.Points), func(i int) bool { return m.Points[i].Plain > off }) - 1
}

// Locate says what is needed to make the plain bytes [off, off+n), which must be
// inside the layer, n > 0: decoding begins at point first, and takes the stored
// bytes [from, to).
func (m *Map) Locate(off, n int64) (first int, from, to int64) {
	if m.Compression == None {
		return 0, off, off + n
	}
	first = m.Point(off)
	return first, m.Points[first].Stored, m.StoredEnd(off + n)
}

// StoredEnd returns how many stored bytes suffice to make all plain bytes before end.
func (m *Map) StoredEnd(end int64) int64 {
	if m.Compression == None {
		return end
	}
	to := m.Stored
	if i := sort.Search(len(m.Points), func(i int) bool { return m.Points[i].Plain >= end }); i < len(m.Points) {
		to = m.Points[i].Stored
		if m.Points[i].Bits > 0 {
			to++
		}
	}
	if i := sort.Search(len(m.Marks), func(i int) bool { return m.Marks[i].Plain >= end }); i < len(m.Marks) {
		to = min(to, m.Marks[i].Stored)
	}
	return to
}

// Span returns how many bytes, stored and plain, are between those two points
// that are farthest apart: what reading one byte may cost. It is zero where
// decoding can begin anywhere.
func (m *Map) Span() (stored, plain int64) {
	if m.Compression == None {
		return 0, 0
	}
	last := Point{Plain: m.Plain, Stored: m.Stored}
	for i := len(m.Points) - 1; i >= 0; i-- {
		stored, plain = max(stored, last.Stored-m.Points[i].Stored), max(plain, last.Plain-m.Points[i].Plain)
		last = m.Points[i]
	}
	return stored, plain
}

// Check returns an error that wraps ErrBadLayer or ErrTooLarge if m, which came
// from outside, is not as its comments say.
func (m *Map) Check() error {
	switch {
	case m.Compression > Zstd:
		return fmt.Errorf("map: compression %d: %w", m.Compression, ErrBadLayer)
	case m.Plain < 0 || m.Plain > MaxFile || m.Stored < 0 || m.Stored > MaxFile:
		return fmt.Errorf("map: layer of %d bytes, stored in %d: %w", m.Plain, m.Stored, ErrTooLarge)
	case len(m.Points) > MaxPoints || len(m.Marks) > MaxMarks:
		return fmt.Errorf("map: %d points, %d marks: %w", len(m.Points), len(m.Marks), ErrTooLarge)
	case len(m.Points) == 0 || m.Points[0].Plain != 0 || m.Points[0].Window != 0:
		return fmt.Errorf("map: does not begin at byte 0: %w", ErrBadLayer)
	case m.Compression == None && (m.Plain != m.Stored || len(m.Points) > 1 || m.Points[0] != Point{}):
		return fmt.Errorf("map: uncompressed layer of %d bytes, stored in %d from %d points: %w", m.Plain, m.Stored, len(m.Points), ErrBadLayer)
	}
	var last Point
	for i, p := range m.Points {
		switch {
		case i > 0 && (p.Plain <= last.Plain || p.Stored < last.Stored):
			return fmt.Errorf("map: point %d is out of order: %w", i, ErrBadLayer)
		case p.Stored < 0 || p.Plain > m.Plain || p.Stored > m.Stored:
			return fmt.Errorf("map: point %d is outside of the layer: %w", i, ErrBadLayer)
		case p.Bits > 7 || p.Window < 0 || p.Window > MaxWindow || int64(p.Window) > p.Plain ||
			m.Compression != Gzip && (p.Window > 0 || p.Bits > 0) || p.Window == 0 && p.Bits > 0:
			return fmt.Errorf("map: point %d has %d bits, a window of %d: %w", i, p.Bits, p.Window, ErrBadLayer)
		}
		last = p
	}
	var mark Mark
	for i, k := range m.Marks {
		if k.Plain < mark.Plain || k.Stored < mark.Stored || k.Plain > m.Plain || k.Stored > m.Stored {
			return fmt.Errorf("map: mark %d is out of order or outside of the layer: %w", i, ErrBadLayer)
		}
		mark = k
	}
	return nil
}

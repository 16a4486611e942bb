package inflate

import (
	"io"

	"github.com/snapfs/snapfs/layers"
)

// Resume returns a decoder that begins at a point: src gives the stored bytes
// from p.Stored on, and the first call of Decode gets the point's window at the
// end of b[:n]. It goes on to the end of the stream, through further members.
// The checksum of a member that was not begun at its header is not looked at.
//
// A point or window that lies is an error or wrong bytes, as any other stream.
func Resume(src Source, p layers.Point) *Gzip {
	g := NewGzip(src)
	if p.Window > 0 {
		g.state, g.skip, g.partial = atPoint, uint(p.Bits&7), true
		g.made = int64(p.Window)
	}
	return g
}

// point skips what is before the first block.
func (g *Gzip) point() error {
	_, err := g.bits(g.skip)
	if err == nil {
		g.state = atBlock
	}
	return err
}

// readerSize is how many bytes a Reader decodes at once.
const readerSize = 96 << 10

// A Reader reads the plain bytes from a point on.
type Reader struct {
	g    *Gzip
	b    []byte
	r, n int // b[r:n] is not read yet
	err  error
}

// NewReader returns a reader of what [Resume] decodes, with the point's window.
func NewReader(src Source, p layers.Point, window []byte) *Reader {
	r := &Reader{g: Resume(src, p), b: make([]byte, Window+readerSize)}
	window = window[max(0, len(window)-Window):]
	r.n = copy(r.b, window)
	r.r = r.n
	return r
}

// fill makes b[r:n] not empty, or returns an error.
func (r *Reader) fill() error {
	if r.r < r.n {
		return nil
	}
	if r.err != nil {
		return r.err
	}
	if r.n == len(r.b) {
		r.r = copy(r.b, r.b[r.n-Window:])
		r.n = r.r
	}
	r.n, r.err = r.g.Decode(r.b, r.n)
	if r.r == r.n {
		return r.err
	}
	return nil
}

// Read is of [io.Reader]. At the end of src it is io.ErrUnexpectedEOF, unless
// that is the end of the stream, too.
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if err := r.fill(); err != nil {
		return 0, err
	}
	n := copy(p, r.b[r.r:r.n])
	r.r += n
	return n, nil
}

// Discard skips n bytes.
func (r *Reader) Discard(n int64) error {
	for n > 0 {
		if err := r.fill(); err != nil {
			return err
		}
		m := min(n, int64(r.n-r.r))
		r.r += int(m)
		n -= m
	}
	return nil
}

var _ io.Reader = (*Reader)(nil)

package toc

import (
	"fmt"
	"io"

	"github.com/snapfs/snapfs/layers"
)

// maxAtom bounds the text of one entry: names, and extended attributes as base64.
const maxAtom = 2 << 20

// A scanner walks a document in a sliding window. What it hands out as a cursor
// (an entry, a number) is whole in the window: an atom that meets the window's
// end is read again from its start once there is more, which at this size of
// window is one entry in some hundreds.
type scanner struct {
	r    io.Reader
	buf  []byte // the window
	pos  int    // next byte in buf
	read int64  // bytes taken from r so far
	err  error  // of r, once it has ended
	keys []byte

	cursor cursor
}

const window = 128 << 10

func newScanner(r io.Reader) *scanner { return &scanner{r: r, buf: make([]byte, 0, window)} }

// offset is the place of the next byte in the document.
func (s *scanner) offset() int64 { return s.read - int64(len(s.buf)-s.pos) }

// fill gets at least one more byte into the window.
func (s *scanner) fill() error {
	if s.pos > 0 {
		s.buf = s.buf[:copy(s.buf, s.buf[s.pos:])]
		s.pos = 0
	}
	if len(s.buf) == cap(s.buf) {
		if len(s.buf) >= maxAtom {
			return fmt.Errorf("%w: entry of more than %d bytes", layers.ErrTooLarge, maxAtom)
		}
		s.buf = append(make([]byte, 0, 2*cap(s.buf)), s.buf...)
	}
	for range 100 { // as bufio: a reader that never gives anything is broken
		if s.err != nil {
			return s.err
		}
		var n int
		n, s.err = s.r.Read(s.buf[len(s.buf):cap(s.buf)])
		s.buf = s.buf[:len(s.buf)+n]
		s.read += int64(n)
		if s.read > layers.MaxTOC {
			return fmt.Errorf("%w: document of more than %d bytes", layers.ErrTooLarge, int64(layers.MaxTOC))
		}
		if n > 0 {
			return nil
		}
	}
	return io.ErrNoProgress
}

// more is fill where the document must go on.
func (s *scanner) more() error {
	err := s.fill()
	if err == io.EOF {
		return s.bad("ends early")
	}
	return err
}

func (s *scanner) bad(what string) error {
	return fmt.Errorf("%w: %s at byte %d", layers.ErrBadTOC, what, s.offset())
}

// peek returns the next byte that is not space.
func (s *scanner) peek() (byte, error) {
	for {
		for s.pos < len(s.buf) {
			if c := s.buf[s.pos]; !space(c) {
				return c, nil
			}
			s.pos++
		}
		if err := s.more(); err != nil {
			return 0, err
		}
	}
}

func (s *scanner) open(c byte) error {
	got, err := s.peek()
	if err != nil {
		return err
	}
	if got != c {
		return s.bad(fmt.Sprintf("%q where %q belongs", got, c))
	}
	s.pos++
	return nil
}

// atom lets f read one value that is whole in the window.
func (s *scanner) atom(f func(*cursor) error) error {
	if _, err := s.peek(); err != nil {
		return err
	}
	c := &s.cursor
	for {
		c.b, c.pos = s.buf, s.pos
		err := f(c)
		switch {
		case err == nil:
			s.pos = c.pos
			return nil
		case err == errShort:
			if err := s.more(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w (entry at byte %d)", err, s.offset())
		}
	}
}

// key steps into the next member of an object and returns its key, or "" at the
// object's end. An empty key is refused.
func (s *scanner) key(first bool) ([]byte, error) {
	more, err := s.next(first, '}')
	if err != nil || !more {
		return nil, err
	}
	err = s.atom(func(c *cursor) error {
		k, _, err := c.string()
		s.keys = append(s.keys[:0], k...)
		return err
	})
	if err == nil && len(s.keys) == 0 {
		err = s.bad("empty key")
	}
	if err != nil {
		return nil, err
	}
	return s.keys, s.open(':')
}

// element steps to the next element of a list; false at its end.
func (s *scanner) element(first bool) (bool, error) { return s.next(first, ']') }

func (s *scanner) next(first bool, end byte) (bool, error) {
	c, err := s.peek()
	switch {
	case err != nil:
		return false, err
	case c == end:
		s.pos++
		return false, nil
	case first:
		return true, nil
	case c != ',':
		return false, s.bad(fmt.Sprintf("%q where ',' belongs", c))
	}
	s.pos++
	return true, nil
}

// null takes the word null, if it is there.
func (s *scanner) null() (bool, error) {
	c, err := s.peek()
	if err != nil || c != 'n' {
		return false, err
	}
	return true, s.atom((*cursor).skip)
}

// end wants nothing but space to the end of the stream.
func (s *scanner) end() error {
	for {
		for ; s.pos < len(s.buf); s.pos++ {
			if !space(s.buf[s.pos]) {
				return s.bad("more after the document")
			}
		}
		if err := s.fill(); err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

package tarindex

import (
	"errors"
	"fmt"
	"io"

	"github.com/snapfs/snapfs/layers"
)

// A scanner reads the members of a tar from a stream of buffers, without copying
// their data.
type scanner struct {
	next func() (*buffer, error) // the next buffer; io.EOF after the last
	free func(*buffer)
	cur  *buffer
	p    []byte // of cur, what is not read yet
	seen int64  // bytes of the stream up to cur's end
	blk  [blockSize]byte
}

// fill makes p not empty.
func (s *scanner) fill() (err error) {
	for len(s.p) == 0 {
		s.release()
		if s.cur, err = s.next(); err != nil {
			s.cur = nil
			return err
		}
		s.p = s.cur.data()
		s.seen += int64(len(s.p))
	}
	return nil
}

// off is where in the stream the next byte is.
func (s *scanner) off() int64 { return s.seen - int64(len(s.p)) }

func (s *scanner) release() {
	if s.cur != nil {
		s.free(s.cur)
	}
	s.cur, s.p = nil, nil
}

// chunk returns the next bytes, at least one and at most n. They are good until
// the next call.
func (s *scanner) chunk(n int64) ([]byte, error) {
	if err := s.fill(); err != nil {
		return nil, noEOF(err)
	}
	c := s.p[:min(int64(len(s.p)), n)]
	s.p = s.p[len(c):]
	return c, nil
}

// block returns the next block, good until the next call. It is io.EOF if there
// is not one byte more.
func (s *scanner) block() (*[blockSize]byte, error) {
	if err := s.fill(); err != nil {
		return nil, err
	}
	if len(s.p) >= blockSize {
		b := (*[blockSize]byte)(s.p)
		s.p = s.p[blockSize:]
		return b, nil
	}
	if err := s.full(s.blk[:]); err != nil {
		return nil, err
	}
	return &s.blk, nil
}

// full reads exactly len(p) bytes.
func (s *scanner) full(p []byte) error {
	for len(p) > 0 {
		c, err := s.chunk(int64(len(p)))
		if err != nil {
			return err
		}
		p = p[copy(p, c):]
	}
	return nil
}

func (s *scanner) skip(n int64) error {
	for n > 0 {
		c, err := s.chunk(n)
		if err != nil {
			return err
		}
		n -= int64(len(c))
	}
	return nil
}

// padding skips what fills a member of n bytes up to a whole block. An archive
// may end before it.
func (s *scanner) padding(n int64) error {
	err := s.skip(-n & (blockSize - 1))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// special reads the data of a PAX header or a GNU long name.
func (s *scanner) special(h *header) ([]byte, error) {
	if h.size > maxSpecial {
		return nil, fmt.Errorf("extended header of %d bytes: %w", h.size, layers.ErrTooLarge)
	}
	p := make([]byte, h.size)
	if err := s.full(p); err != nil {
		return nil, err
	}
	return p, s.padding(h.size)
}

// header reads up to the next member's data. io.EOF means the end of the archive:
// two zero blocks, or the end of the stream at a block's edge.
func (s *scanner) header(h *header) error {
	var pax []paxRecord
	var name, link []byte
	for {
		b, err := s.block()
		if err != nil {
			return err
		}
		if *b == zeroBlock {
			return s.end()
		}
		block := *b
		if err := h.parse(&block); err != nil {
			return err
		}
		if h.dataSize() < 0 {
			return badField("size")
		}
		switch h.typ {
		case typePax, typePaxAll, typeGNUName, typeGNULink:
			data, err := s.special(h)
			if err != nil {
				return err
			}
			switch h.typ {
			case typePax:
				pax, err = parsePAX(data)
			case typePaxAll: // what it says of all members, nobody applies
				_, err = parsePAX(data)
				pax, name, link = nil, nil, nil
			case typeGNUName:
				name = cstring(data)
			case typeGNULink:
				link = cstring(data)
			}
			if err != nil {
				return err
			}
			continue
		}
		return s.member(h, &block, pax, name, link)
	}
}

// member completes h by what the extended headers before it say.
func (s *scanner) member(h *header, b *[blockSize]byte, pax []paxRecord, name, link []byte) error {
	if err := h.applyPAX(pax); err != nil {
		return err
	}
	if len(name) > 0 {
		h.name = name
	}
	if len(link) > 0 {
		h.link = link
	}
	if h.typ == typeRegV7 { // such archives know directories by a trailing slash
		h.typ = typeReg
		if n := len(h.name); n > 0 && h.name[n-1] == '/' {
			h.typ = typeDir
		}
	}
	if h.dataSize() < 0 {
		return badField("size")
	}
	return s.sparseFile(h, b)
}

// end reads the second block of the end mark.
func (s *scanner) end() error {
	b, err := s.block()
	if err != nil {
		return err
	}
	if *b != zeroBlock {
		return badField("zero block in the middle")
	}
	return io.EOF
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

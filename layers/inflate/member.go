package inflate

import (
	"encoding/binary"
	"hash/crc32"
	"io"
)

// Flags of a member's header (RFC 1952, 2.3.1).
const (
	flagHdrCRC = 1 << 1
	flagExtra  = 1 << 2
	flagName   = 1 << 3
	flagCmt    = 1 << 4
)

// maxString bounds a name or comment, as compress/gzip does.
const maxString = 512

// crcReader reads header bytes and sums them up.
type crcReader struct {
	g   *Gzip
	crc uint32
	err error
}

func (r *crcReader) byte() byte {
	v, err := r.g.bits(8)
	if r.err == nil {
		r.err = err
	}
	c := [1]byte{byte(v)}
	r.crc = crc32.Update(r.crc, crc32.IEEETable, c[:])
	return c[0]
}

func (r *crcReader) uint16() int {
	lo := r.byte()
	return int(lo) | int(r.byte())<<8
}

// member reads a member's header.
func (g *Gzip) member() error {
	if g.rec != nil {
		g.rec.member(g.total, g.offset())
	}
	r := crcReader{g: g}
	if r.byte() != 0x1f || r.byte() != 0x8b || r.byte() != 8 {
		if r.err != nil {
			return r.err
		}
		return ErrHeader
	}
	flags := r.byte()
	for range 6 { // time, extra flags, system
		r.byte()
	}
	if flags&flagExtra != 0 {
		for n := r.uint16(); n > 0 && r.err == nil; n-- {
			r.byte()
		}
	}
	for _, f := range [...]byte{flagName, flagCmt} {
		if flags&f != 0 && !r.skipString() {
			return ErrHeader
		}
	}
	if want := r.crc & 0xffff; flags&flagHdrCRC != 0 && r.uint16() != int(want) && r.err == nil {
		return ErrHeader
	}
	g.state, g.final, g.made, g.crc, g.partial = atBlock, false, 0, 0, false
	return r.err
}

// skipString skips up to a NUL. It is false if there is none soon.
func (r *crcReader) skipString() bool {
	for range maxString {
		if r.byte() == 0 || r.err != nil {
			return true
		}
	}
	return false
}

// trailer checks the end of a member and looks for another.
func (g *Gzip) trailer() error {
	g.align()
	var p [8]byte
	for i := range p {
		v, err := g.bits(8)
		if err != nil {
			return err
		}
		p[i] = byte(v)
	}
	if g.partial {
		return g.after()
	}
	if binary.LittleEndian.Uint32(p[:]) != g.crc || binary.LittleEndian.Uint32(p[4:]) != uint32(g.made) {
		return ErrChecksum
	}
	return g.after()
}

// after begins the next member, or the end. Zeros up to the end are padding.
func (g *Gzip) after() error {
	for zeros := false; ; zeros = true {
		if g.nb == 0 {
			if err := g.more(); err == io.ErrUnexpectedEOF {
				g.state = atEnd
				return nil
			} else if err != nil {
				return err
			}
		}
		switch c := byte(g.buf); {
		case c == 0:
			g.buf >>= 8
			g.nb -= 8
		case c == 0x1f && !zeros:
			g.state = atMember
			return nil
		default:
			return ErrTrailing
		}
	}
}

// Package inflate decodes gzip (RFC 1952) and DEFLATE (RFC 1951), faster than
// compress/gzip: an eager pull spends most of its processor time there.
//
// What makes the difference: the caller owns the output buffer and keeps the
// last 32 KiB in front of it, so that there is no window to copy through; bits
// are taken in eights of bytes; a table entry holds all of a symbol, its extra
// bits' number too; copies go by 16 bytes. The design is that of libdeflate.
package inflate

import (
	"fmt"
	"hash/crc32"
	"io"

	"github.com/snapfs/snapfs/layers"
)

// Window is how far back DEFLATE refers, in bytes.
const Window = 32 << 10

// A Source gives the compressed bytes.
type Source interface {
	// Next returns the next bytes, good until the next call: at least one, or
	// an error, io.EOF at the end.
	Next() ([]byte, error)
}

// Errors of bad data. Where data ends too early it is io.ErrUnexpectedEOF.
var (
	ErrHeader   = fmt.Errorf("gzip: bad header: %w", layers.ErrBadLayer)
	ErrChecksum = fmt.Errorf("gzip: checksum does not match: %w", layers.ErrBadLayer)
	ErrTrailing = fmt.Errorf("gzip: garbage after the end: %w", layers.ErrBadLayer)
	ErrCorrupt  = fmt.Errorf("gzip: corrupt data: %w", layers.ErrBadLayer)
)

// state is what Decode does next.
type state uint8

const (
	atMember state = iota // a header
	atPoint               // a block, after some bits
	atBlock
	inStored
	inCodes
	atTrailer
	atEnd
)

// A Gzip decodes a gzip stream: one member or more, then perhaps zeros, as
// gzip(1) allows for tapes. Anything else behind is an error.
type Gzip struct {
	src    Source
	in     []byte // of src, from pos on
	pos    int
	before int64 // bytes of src before in

	// Invariant: the low nb bits of buf are the next ones, those above are zero
	// or (inside codes) those that come after.
	buf uint64
	nb  uint

	state    state
	final    bool // this block is the member's last
	stored   int  // bytes left of a stored block
	length   int  // of a match that did not fit
	distance int

	total   int64 // bytes of all members
	made    int64 // bytes of the member
	crc     uint32
	partial bool // the member was begun at a point: its checksum is not known
	skip    uint // bits before the point

	rec   *recorder // nil if nothing is to be recorded
	lit   [litSize]entry
	dist  [distSize]entry
	fixed bool // lit and dist are those of fixed blocks
}

// NewGzip returns a decoder of what src gives.
func NewGzip(src Source) *Gzip { return &Gzip{src: src} }

// Decode appends to b[:n] until b is full and returns the new length, and io.EOF
// after the last byte. The end of b[:n] must be the bytes it made last: 32 KiB,
// or all if it made less.
func (g *Gzip) Decode(b []byte, n int) (int, error) {
	for {
		from := n
		var err error
		switch g.state {
		case atMember:
			err = g.member()
		case atPoint:
			err = g.point()
		case atBlock:
			err = g.block()
		case inStored:
			n, err = g.copyStored(b, n)
		case inCodes:
			n, err = g.codes(b, n)
		case atTrailer:
			err = g.trailer()
		case atEnd:
			return n, io.EOF
		}
		if n > from {
			if !g.partial {
				g.crc = crc32.Update(g.crc, crc32.IEEETable, b[from:n])
			}
			g.made += int64(n - from)
			g.total += int64(n - from)
		}
		if err != nil || n == len(b) && (g.state == inStored || g.state == inCodes) {
			return n, err
		}
	}
}

// fill makes in not empty.
func (g *Gzip) fill() (err error) {
	for g.pos == len(g.in) {
		g.before += int64(len(g.in))
		if g.in, err = g.src.Next(); err != nil {
			g.in, g.pos = nil, 0
			return err
		}
		g.pos = 0
	}
	return nil
}

// more adds a byte to buf. At the end of the stream it is io.ErrUnexpectedEOF.
func (g *Gzip) more() error {
	if err := g.fill(); err != nil {
		return noEOF(err)
	}
	g.buf |= uint64(g.in[g.pos]) << g.nb
	g.pos++
	g.nb += 8
	return nil
}

// bits takes n ≤ 32 bits.
func (g *Gzip) bits(n uint) (uint, error) {
	for g.nb < n {
		if err := g.more(); err != nil {
			return 0, err
		}
	}
	v := uint(g.buf & (1<<n - 1))
	g.buf >>= n
	g.nb -= n
	return v, nil
}

// block reads a block's header.
func (g *Gzip) block() error {
	if g.final {
		g.state = atTrailer
		return nil
	}
	if g.rec != nil && g.made > 0 {
		g.watch(g.total)
		bit := (g.before+int64(g.pos))<<3 - int64(g.nb)
		g.rec.block(g.total, bit>>3, uint8(bit&7))
	}
	v, err := g.bits(3)
	if err != nil {
		return err
	}
	g.final = v&1 != 0
	switch v >> 1 {
	case 0:
		return g.startStored()
	case 1:
		g.state = inCodes
		return g.fixedCodes()
	case 2:
		g.state = inCodes
		return g.readCodes()
	}
	return ErrCorrupt
}

func (g *Gzip) startStored() error {
	g.align()
	v, err := g.bits(32)
	if err != nil {
		return err
	}
	if v>>16 != ^v&0xffff {
		return ErrCorrupt
	}
	g.stored, g.state = int(v&0xffff), inStored
	return nil
}

// align drops the rest of a byte.
func (g *Gzip) align() {
	g.buf >>= g.nb & 7
	g.nb &^= 7
}

func (g *Gzip) copyStored(b []byte, n int) (int, error) {
	if g.rec != nil {
		g.watch(g.total)
	}
	for g.stored > 0 && n < len(b) {
		if g.nb > 0 { // whole bytes
			b[n] = byte(g.buf)
			g.buf >>= 8
			g.nb -= 8
			n++
			g.stored--
			continue
		}
		if err := g.fill(); err != nil {
			return n, noEOF(err)
		}
		m := copy(b[n:], g.in[g.pos:min(len(g.in), g.pos+g.stored)])
		n += m
		g.pos += m
		g.stored -= m
	}
	if g.stored == 0 {
		g.state = atBlock
	}
	return n, nil
}

// fixedCodes sets the tables of RFC 1951, 3.2.6.
func (g *Gzip) fixedCodes() error {
	if g.fixed {
		return nil
	}
	var lengths [maxLit]uint8
	for i := range lengths {
		switch {
		case i < 144, i >= 280:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		default:
			lengths[i] = 7
		}
	}
	build(g.lit[:], litBits, lengths[:], litEntries[:])
	for i := range lengths[:maxDist] {
		lengths[i] = 5
	}
	build(g.dist[:], distBits, lengths[:maxDist], distEntries[:])
	g.fixed = true
	return nil
}

// codeOrder is the order in which the code lengths' own lengths come (RFC 1951, 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// readCodes reads the tables of a block with dynamic codes.
func (g *Gzip) readCodes() error {
	g.fixed = false
	v, err := g.bits(14)
	if err != nil {
		return err
	}
	nlit, ndist, ncode := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if nlit > 286 || ndist > 30 {
		return ErrCorrupt
	}
	var pre [19]uint8
	for _, i := range codeOrder[:ncode] {
		v, err := g.bits(3)
		if err != nil {
			return err
		}
		pre[i] = uint8(v)
	}
	var lengths [maxLit + maxDist]uint8
	if err := g.readLengths(lengths[:nlit+ndist], pre[:]); err != nil {
		return err
	}
	if !build(g.lit[:], litBits, lengths[:nlit], litEntries[:]) ||
		!build(g.dist[:], distBits, lengths[nlit:nlit+ndist], distEntries[:]) {
		return ErrCorrupt
	}
	return nil
}

// preEntries are the symbols of the code lengths' code: their values, and the
// extra bits of the three that repeat.
var preEntries = func() (e [19]entry) {
	for i := range e {
		e[i] = entry(i) << 16
	}
	return e
}()

func (g *Gzip) readLengths(lengths, pre []uint8) error {
	if !build(g.dist[:], distBits, pre, preEntries[:]) { // at most 7 bits: no subtables
		return ErrCorrupt
	}
	for i := 0; i < len(lengths); {
		e, err := g.symbol(g.dist[:], distBits)
		if err != nil {
			return err
		}
		if e&isBad != 0 {
			return ErrCorrupt
		}
		sym := uint8(e >> 16)
		if sym < 16 {
			lengths[i] = sym
			i++
			continue
		}
		n, value, err := g.repeat(sym, lengths[:i])
		if err != nil || n > len(lengths)-i {
			return orCorrupt(err)
		}
		for range n {
			lengths[i] = value
			i++
		}
	}
	return nil
}

// repeat reads how often which length is repeated.
func (g *Gzip) repeat(sym uint8, before []uint8) (n int, value uint8, err error) {
	width, base := uint(2), 3
	switch sym {
	case 16:
		if len(before) == 0 {
			return 0, 0, ErrCorrupt
		}
		value = before[len(before)-1]
	case 17:
		width = 3
	default:
		width, base = 7, 11
	}
	v, err := g.bits(width)
	return base + int(v), value, err
}

func orCorrupt(err error) error {
	if err == nil {
		return ErrCorrupt
	}
	return err
}

// symbol takes one code without its extra bits.
func (g *Gzip) symbol(table []entry, first uint) (entry, error) {
	e, err := g.find(table, first)
	if err != nil {
		return 0, err
	}
	g.buf >>= e & 63
	g.nb -= uint(e & 63)
	return e, nil
}

// find returns the entry of the next code when all its bits are in buf.
func (g *Gzip) find(table []entry, first uint) (entry, error) {
	for {
		e := table[g.buf&(1<<first-1)]
		if e&isSub != 0 {
			e = table[uint64(e>>16)+g.buf>>first&(1<<(maxCode-first)-1)]
		}
		if uint(e&63) <= g.nb {
			return e, nil
		}
		if err := g.more(); err != nil {
			return 0, err
		}
	}
}

// value is what an entry and its extra bits stand for.
func value(e entry, buf uint64) int {
	return int(e>>16) + int(buf&(1<<(e&63)-1)>>(e>>8&15))
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

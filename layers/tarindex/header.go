package tarindex

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/snapfs/snapfs/layers"
)

const blockSize = 512

// Type flags of tar members (POSIX 1003.1-2017 pax, "ustar Interchange Format",
// and GNU tar's tar.h).
const (
	typeRegV7    = 0
	typeReg      = '0'
	typeLink     = '1'
	typeSymlink  = '2'
	typeChar     = '3'
	typeBlock    = '4'
	typeDir      = '5'
	typeFifo     = '6'
	typeCont     = '7' // contiguous: a regular file wherever that means nothing
	typePax      = 'x'
	typePaxAll   = 'g'
	typeGNUName  = 'L'
	typeGNULink  = 'K'
	typeGNUSpars = 'S'
)

// A field is a run of a header block.
type field struct{ off, n int }

// The header block. Offsets in bytes:
//
//	0 name 100 mode 108 uid 116 gid 124 size 136 mtime 148 chksum 156 type
//	157 linkname 257 magic 263 version 265 uname 297 gname 329 major 337 minor
//	345 prefix (ustar: 155, star: 131)                         508 "tar\0" (star)
//	345 atime 357 ctime 386 sparse map 4*24 482 more 483 real size (old GNU)
var (
	fName     = field{0, 100}
	fMode     = field{100, 8}
	fUID      = field{108, 8}
	fGID      = field{116, 8}
	fSize     = field{124, 12}
	fMtime    = field{136, 12}
	fChksum   = field{148, 8}
	fLink     = field{157, 100}
	fMajor    = field{329, 8}
	fMinor    = field{337, 8}
	fPrefix   = field{345, 155}
	fStarPfx  = field{345, 131}
	fStarAt   = field{476, 12}
	fStarCt   = field{488, 12}
	fGNUAt    = field{345, 12}
	fGNUCt    = field{357, 12}
	fGNUReal  = field{483, 12}
	gnuSparse = field{386, 4*24 + 1}
)

// A format is the dialect of a header block.
type format uint8

const (
	formatV7 format = iota
	formatUSTAR
	formatSTAR
	formatGNU
)

// A header is what the blocks before one member say about it.
type header struct {
	typ          byte
	format       format
	name, link   []byte
	mode         int64
	uid, gid     int64
	size         int64 // bytes in the archive; of a sparse file, see real
	sec          int64
	nsec         uint32
	major, minor int64
	pax          []paxRecord
	sparse       []span // data of a sparse file, in order; nil if it is not one
	real         int64  // bytes of the file, holes included
}

var zeroBlock [blockSize]byte

// errHeader is the root of every complaint about a header.
var errHeader = fmt.Errorf("tar header: %w", layers.ErrBadLayer)

func badField(what string) error { return fmt.Errorf("%s: %w", what, errHeader) }

func (f field) of(b *[blockSize]byte) []byte { return b[f.off : f.off+f.n] }

// cstring returns b up to its first NUL.
func cstring(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// number reads a numeric field: octal digits, or base-256 where the first bit
// is set (GNU, star). It is lenient about padding as archive/tar is.
func number(b []byte) (int64, bool) {
	if b[0]&0x80 != 0 {
		return base256(b)
	}
	return octal(b)
}

// octal reads digits between any padding of spaces and NULs.
func octal(b []byte) (int64, bool) {
	for len(b) > 0 && (b[0] == ' ' || b[0] == 0) {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == 0) {
		b = b[:len(b)-1]
	}
	if len(b) == 0 {
		return 0, true
	}
	b = cstring(b)
	var x uint64 // at most 12 digits are 36 bits: no overflow
	for _, c := range b {
		if c < '0' || c > '7' {
			return 0, false
		}
		x = x<<3 | uint64(c-'0')
	}
	return int64(x), true
}

// base256 reads a big-endian two's complement number whose first bit is a mark.
func base256(b []byte) (int64, bool) {
	var inv byte
	if b[0]&0x40 != 0 {
		inv = 0xff
	}
	x := uint64((b[0] ^ inv) & 0x7f)
	for _, c := range b[1:] {
		if x>>56 != 0 {
			return 0, false
		}
		x = x<<8 | uint64(c^inv)
	}
	if x > math.MaxInt64 {
		return 0, false
	}
	if inv != 0 {
		return ^int64(x), true
	}
	return int64(x), true
}

// checksums returns the sum of a block's bytes with the checksum's own field as
// spaces, of unsigned bytes (POSIX) and of signed ones (old Sun tar).
func checksums(b *[blockSize]byte) (unsigned, signed int64) {
	// Eight bytes at a time: the even and the odd bytes of a word are added up
	// in 16-bit lanes, which hold 64 words of 255 (16320) without a carry.
	const lanes = 0x00ff00ff00ff00ff
	var even, odd, high uint64
	for i := 0; i < blockSize; i += 8 {
		w := binary.LittleEndian.Uint64(b[i:])
		even += w & lanes
		odd += w >> 8 & lanes
		high += w >> 7 & 0x0101010101010101
	}
	sum := lanesSum(even) + lanesSum(odd)
	var neg int64 // bytes of 128 and more; eight 8-bit lanes of at most 64
	for ; high != 0; high >>= 8 {
		neg += int64(high & 0xff)
	}
	for _, c := range fChksum.of(b) {
		sum += ' ' - int64(c)
		if c >= 0x80 {
			neg--
		}
	}
	return sum, sum - 256*neg
}

func lanesSum(x uint64) (n int64) {
	for ; x != 0; x >>= 16 {
		n += int64(x & 0xffff)
	}
	return n
}

// formatOf checks a block's checksum and returns its dialect.
func formatOf(b *[blockSize]byte) (format, error) {
	want, ok := octal(fChksum.of(b))
	unsigned, signed := checksums(b)
	if !ok || want != unsigned && want != signed {
		return 0, badField("checksum")
	}
	switch string(b[257:263]) {
	case "ustar\x00":
		if string(b[508:]) == "tar\x00" {
			return formatSTAR, nil
		}
		return formatUSTAR, nil
	case "ustar ":
		if string(b[263:265]) == " \x00" {
			return formatGNU, nil
		}
	}
	return formatV7, nil
}

// parse fills h from one header block. Strings are views of b.
func (h *header) parse(b *[blockSize]byte) error {
	f, err := formatOf(b)
	if err != nil {
		return err
	}
	*h = header{typ: b[156], format: f, name: cstring(fName.of(b)), link: cstring(fLink.of(b))}
	bad := ""
	get := func(f field, what string) int64 {
		n, ok := number(f.of(b))
		if !ok {
			bad = what
		}
		return n
	}
	h.size = get(fSize, "size")
	h.mode = get(fMode, "mode")
	h.uid = get(fUID, "uid")
	h.gid = get(fGID, "gid")
	h.sec = get(fMtime, "mtime")
	if f != formatV7 {
		h.major = get(fMajor, "major")
		h.minor = get(fMinor, "minor")
	}
	if f == formatSTAR {
		get(fStarAt, "atime")
		get(fStarCt, "ctime")
	}
	if bad != "" {
		return badField(bad)
	}
	h.prefix(b)
	return nil
}

// prefix puts the prefix field, where the dialect has one, before the name.
func (h *header) prefix(b *[blockSize]byte) {
	var p []byte
	switch h.format {
	case formatUSTAR:
		p = cstring(fPrefix.of(b))
	case formatSTAR:
		p = cstring(fStarPfx.of(b))
	case formatGNU:
		p = gnuPrefix(b)
	}
	if len(p) > 0 {
		h.name = append(append(append(make([]byte, 0, len(p)+1+len(h.name)), p...), '/'), h.name...)
	}
}

// gnuPrefix is the prefix of a GNU header, which has none: Go before 1.8 wrote
// one over its times (golang.org/issue/12594), and archive/tar reads it back
// where the times make no sense.
func gnuPrefix(b *[blockSize]byte) []byte {
	ok := true
	for _, f := range []field{fGNUAt, fGNUCt} {
		if b[f.off] != 0 {
			_, fine := number(f.of(b))
			ok = ok && fine
		}
	}
	if ok {
		return nil
	}
	p := cstring(fPrefix.of(b))
	for _, c := range p {
		if c >= 0x80 {
			return nil
		}
	}
	return p
}

// dataSize is the number of bytes that follow in the archive. Members that
// cannot have data have none, whatever their size says.
func (h *header) dataSize() int64 {
	if headerOnly(h.typ) {
		return 0
	}
	return h.size
}

func headerOnly(typ byte) bool { return typ >= typeLink && typ <= typeFifo }

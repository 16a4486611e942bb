package soci

import (
	"fmt"

	"github.com/snapfs/snapfs/layers"
)

// Checkpoints of a gzip layer, as ztoc/compression/gzip_zinfo.c writes them
// (soci-snapshotter v0.16.1). They are those of zlib's examples/zran.c, so a
// checkpoint inside of a byte names the byte behind, and how many of the byte's
// high bits are still to be read. Numbers are little-endian.
//
//	int32   number of checkpoints
//	int64   span size
//	checkpoints:
//	  int64     offset in the blob of the next whole byte
//	  int64     offset in the tar
//	  uint8     bits of the byte before, 0 to 7
//	  32768     the window: what comes before in the tar, behind zeros if it is less
//
// Version 1 lacks the first checkpoint: it is at byte 10, behind the shortest
// header. The number counts it, and so tells the versions apart.
const (
	infoHead   = 4 + 8
	infoPoint  = 8 + 8 + 1 + infoWindow
	infoWindow = 32 << 10

	shortHeader = 10 // of gzip, RFC 1952
)

// A checkpoint is one of them, in zran's way.
type checkpoint struct {
	in, out int64
	bits    uint8
}

// gzip makes the spans and points of a gzip layer.
func (l *Layer) gzip(ztoc []byte, z *ztoc) error {
	cks, skipped, err := zinfo(z.checkpoints)
	if err != nil {
		return err
	}
	if cks[0].out != 0 || cks[0].bits != 0 || cks[0].in < shortHeader {
		// SOCI's writer takes zlib's format too, which has a shorter header.
		return fmt.Errorf("%w: its first checkpoint is %d bytes into the layer", layers.ErrNoTOC, cks[0].in)
	}
	l.spans = make([]span, len(cks))
	l.window = make([]int64, len(cks))
	l.Map.Plain = max(z.plain, cks[len(cks)-1].out) // zeros behind the tar's end may have a span of their own
	for i, c := range cks {
		s := span{from: c.in, to: z.stored, start: c.out, end: l.Map.Plain}
		p := layers.Point{Plain: c.out, Stored: c.in, Window: int32(min(c.out, infoWindow))}
		if c.bits > 0 {
			s.from--
			p.Stored--
			p.Bits = 8 - c.bits
		}
		if i+1 < len(cks) {
			s.to, s.end = cks[i+1].in, cks[i+1].out
		}
		if c.bits > 7 || s.from < 0 || s.from >= s.to || s.to > z.stored || s.start < 0 || s.start > s.end || s.start == s.end && i+1 < len(cks) {
			return fmt.Errorf("%w: span %d is stored from %d to %d, for %d to %d", layers.ErrBadTOC, i, s.from, s.to, s.start, s.end)
		}
		if i == 0 {
			p = layers.Point{} // the header: see Layer.Map
		}
		l.spans[i] = s
		l.Map.Points = append(l.Map.Points, p)
		l.window[i] = int64(z.at+infoHead+(i-skipped+1)*infoPoint) - int64(p.Window)
	}
	return nil
}

// zinfo reads the checkpoints, at least one. skipped is how many of the first
// are not written.
func zinfo(p []byte) (cks []checkpoint, skipped int, err error) {
	if len(p) < infoHead {
		return nil, 0, fmt.Errorf("%w: checkpoints of %d bytes", layers.ErrBadTOC, len(p))
	}
	n, have := int64(int32(le.Uint32(p))), int64(len(p)-infoHead)
	switch {
	case n < 1 || n > layers.MaxPoints:
		return nil, 0, fmt.Errorf("%w: %d checkpoints", layers.ErrBadTOC, n)
	case have == n*infoPoint:
	case have == (n-1)*infoPoint:
		skipped = 1
	default:
		return nil, 0, fmt.Errorf("%w: %d checkpoints in %d bytes", layers.ErrBadTOC, n, have)
	}
	cks = make([]checkpoint, n)
	cks[0].in = shortHeader
	for i := skipped; i < len(cks); i++ {
		c := p[infoHead+(i-skipped)*infoPoint:]
		cks[i] = checkpoint{in: int64(le.Uint64(c)), out: int64(le.Uint64(c[8:])), bits: c[16]}
	}
	return cks, skipped, nil
}

// tarInfo reads the checkpoints of an uncompressed layer: a FlatBuffer of its
// own (ztoc/compression/fbs/zinfo.fbs).
func tarInfo(p []byte) (size, step int64, err error) {
	f := &flat{p: p, left: len(p)}
	t := f.root()
	step, size = t.int64(1), t.int64(2)
	return size, step, f.err
}

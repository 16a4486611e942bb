package index

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// A section is columns: one kind of fact about all its records, so that like
// stands by like. Each is compressed by itself, or not if that does not help.
//
//	directory: of each column its plain and its stored length, as uvarints
//	columns:   zstd frames; as they are where both lengths are the same

func newEncoder() *zstd.Encoder {
	// Everything is summed: no checksum. The level above makes trees 1 % smaller,
	// windows larger, and takes ten times as long for them.
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true))
	if err != nil {
		panic("index: the options of the encoder are wrong: " + err.Error())
	}
	return z
}

var decoders = sync.Pool{New: func() any {
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxPlainTrees),
		zstd.WithDecoderMaxMemory(maxPlainTrees), zstd.WithDecodeAllCapLimit(true))
	if err != nil {
		panic("index: the options of the decoder are wrong: " + err.Error())
	}
	return z
}}

// expand fills dst from a zstd frame, exactly.
func expand(dst, stored []byte) error {
	z := decoders.Get().(*zstd.Decoder)
	defer decoders.Put(z)
	p, err := z.DecodeAll(stored, dst[:0:len(dst)])
	switch {
	case err != nil:
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	case len(p) != len(dst):
		return fmt.Errorf("%w: %d plain bytes, want %d", ErrCorrupt, len(p), len(dst))
	}
	return nil
}

// shrink returns p compressed, or p itself if that is not smaller.
func shrink(z *zstd.Encoder, p []byte) []byte {
	if len(p) < 16 {
		return p
	}
	if q := z.EncodeAll(p, nil); len(q) < len(p) {
		return q
	}
	return p
}

// pack makes a section of columns. plain is the sum of their lengths. Those in
// raw (a bit each) are sums, which no compressor can do anything about.
func pack(z *zstd.Encoder, raw uint64, cols ...[]byte) (stored []byte, plain int64) {
	packed := make([][]byte, len(cols))
	for i, c := range cols {
		packed[i] = c
		if raw>>i&1 == 0 {
			packed[i] = shrink(z, c)
		}
		stored = binary.AppendUvarint(stored, uint64(len(c)))
		stored = binary.AppendUvarint(stored, uint64(len(packed[i])))
		plain += int64(len(c))
	}
	for _, p := range packed {
		stored = append(stored, p...)
	}
	return stored, plain
}

// unpack fills cols with the columns of a section, and returns what their lengths
// sum up to, at most plain.
func unpack(p []byte, plain int64, cols []cursor) (int64, error) {
	type length struct{ plain, stored int }
	lens := make([]length, len(cols))
	c := cursor{p: p}
	var total, shrunk uint64
	for i := range lens {
		n, m := c.uvarint(), c.uvarint()
		if n > uint64(plain) || m > n || m > uint64(len(p)) {
			return 0, fmt.Errorf("%w: column %d of %d bytes in %d", ErrCorrupt, i, n, m)
		}
		lens[i] = length{int(n), int(m)}
		if total += n; n != m {
			shrunk += n
		}
	}
	if c.bad || total > uint64(plain) {
		return 0, fmt.Errorf("%w: columns of %d bytes, limit %d", ErrCorrupt, total, plain)
	}
	buf := make([]byte, shrunk)
	for i, l := range lens {
		stored := c.take(l.stored)
		if c.bad {
			break
		}
		if l.plain != l.stored {
			if err := expand(buf[:l.plain], stored); err != nil {
				return 0, fmt.Errorf("column %d: %w", i, err)
			}
			stored, buf = buf[:l.plain:l.plain], buf[l.plain:]
		}
		cols[i] = cursor{p: stored}
	}
	if c.bad || len(c.p) > 0 {
		return 0, fmt.Errorf("%w: columns do not fill their section", ErrCorrupt)
	}
	return int64(total), nil
}

// ended returns an error unless all columns were read to their ends and not
// beyond.
func ended(cols []cursor) error {
	for i := range cols {
		if cols[i].bad || len(cols[i].p) > 0 {
			return fmt.Errorf("%w: column %d has too many or too few values", ErrCorrupt, i)
		}
	}
	return nil
}

// A cursor reads a column. Reading beyond the end gives zeros and makes it bad.
type cursor struct {
	p   []byte
	bad bool
}

func (c *cursor) uvarint() uint64 {
	if len(c.p) > 0 && c.p[0] < 0x80 { // most are
		v := c.p[0]
		c.p = c.p[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(c.p)
	if n <= 0 {
		c.bad, c.p = true, nil
		return 0
	}
	c.p = c.p[n:]
	return v
}

// varint reads a zigzag varint.
func (c *cursor) varint() int64 {
	v := c.uvarint()
	return int64(v>>1) ^ -int64(v&1)
}

// number reads a uvarint that must be at most limit.
func (c *cursor) number(limit uint64) int64 {
	v := c.uvarint()
	if v > limit {
		c.bad = true
		return 0
	}
	return int64(v)
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.p) {
		c.bad, c.p = true, nil
		return nil
	}
	p := c.p[:n:n]
	c.p = c.p[n:]
	return p
}

func (c *cursor) byte() byte {
	if len(c.p) == 0 {
		c.bad = true
		return 0
	}
	b := c.p[0]
	c.p = c.p[1:]
	return b
}

func (c *cursor) sum() (s layers.Sum) {
	copy(s[:], c.take(len(s)))
	return s
}

// text reads a length and as many bytes.
func (c *cursor) text(limit uint64) []byte { return c.take(int(c.number(limit))) }

func appendText[T ~string | ~[]byte](p []byte, s T) []byte {
	return append(binary.AppendUvarint(p, uint64(len(s))), s...)
}

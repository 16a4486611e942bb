package index

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// A boot bundle is the bytes of a profile's items in their order, as one zstd
// frame:
//
//	"snapfsbd", version (4 bytes)
//	records: how many items it is behind the last record's, from 1 on (uvarint);
//	         size (uvarint); bytes
//	0
//
// It says nothing that is believed: each record is what the profile says, or
// refused.

const (
	bundleMagic = "snapfsbd"
	// flushAfter is how many plain bytes are put into blocks of their own, so that
	// an item does not wait for the next one's bytes. Measured on chunks of
	// libraries and scripts: it makes the stream a thousandth smaller, too.
	flushAfter = 16 << 10
	// bundleWindow is how far back the stream refers: as far as an encoder at
	// this level does. Readers need as much memory.
	bundleWindow = 8 << 20
)

// ErrBadBundle says that a boot bundle is not one, or not of its profile. What
// was read before is good.
var ErrBadBundle = errors.New("bad boot bundle")

// WriteBundle writes the boot bundle of p, and returns how many items it has.
// read returns the plain bytes of an item, which are used before it is called
// again; nil leaves the item out. Bytes that are not what the item says are a
// *layers.DigestError.
func WriteBundle(ctx context.Context, w io.Writer, p *Profile, read func(context.Context, Item) ([]byte, error)) (items int, err error) {
	if err := p.Check(); err != nil {
		return 0, err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(bundleWindow), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, z.Close()) }()
	head := binary.LittleEndian.AppendUint32([]byte(bundleMagic), Version)
	last, written := -1, int64(0)
	for i, it := range p.Items {
		if err := ctx.Err(); err != nil {
			return items, err
		}
		plain, err := read(ctx, it)
		if err == nil && plain != nil {
			err = it.check(plain)
		}
		if err != nil {
			return items, fmt.Errorf("item %d: %w", i, err)
		}
		if plain == nil {
			continue
		}
		head = binary.AppendUvarint(head, uint64(i-last))
		head = binary.AppendUvarint(head, uint64(len(plain)))
		if _, err := z.Write(head); err != nil {
			return items, err
		}
		if _, err := z.Write(plain); err != nil {
			return items, err
		}
		head, last = head[:0], i
		items++
		if written += it.Size; written >= flushAfter {
			if err := z.Flush(); err != nil {
				return items, err
			}
			written = 0
		}
	}
	_, err = z.Write(append(head, 0))
	return items, err
}

// check checks the bytes of an item.
func (it *Item) check(plain []byte) error {
	if int64(len(plain)) != it.Size {
		return fmt.Errorf("chunk at %d of object %v: %d bytes, want %d", it.Off, it.Object, len(plain), it.Size)
	}
	if got := layers.SumOf(plain); got != it.Sum {
		return &layers.DigestError{Want: it.Sum.Digest(), Got: got.Digest(), From: fmt.Sprintf("chunk at %d of object %v", it.Off, it.Object)}
	}
	return nil
}

// A BundleReader reads a boot bundle as it comes in.
type BundleReader struct {
	p    *Profile
	src  *source
	z    *zstd.Decoder
	r    *bufio.Reader
	next int // the first item that may come
	buf  []byte
	err  error // what all calls of Next return from now on
}

// NewBundleReader returns a reader of the bundle of p that r is. It keeps as much
// memory as the largest item and the stream's window need. The caller closes it.
func NewBundleReader(r io.Reader, p *Profile) (*BundleReader, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	src := &source{r: r}
	z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(bundleWindow))
	if err != nil {
		return nil, err
	}
	return &BundleReader{p: p, src: src, z: z}, nil
}

// Close ends reading. The stream stays open: it is the caller's.
func (b *BundleReader) Close() { b.z.Close() }

// Next returns the next item and its bytes, of which the sum was checked. They
// are valid until the next call. At the end it is io.EOF. Any other error wraps
// ErrBadBundle, or is that of the stream, and ends the reading.
func (b *BundleReader) Next() (Item, []byte, error) {
	if b.err != nil {
		return Item{}, nil, b.err
	}
	it, plain, err := b.record()
	if err != nil {
		b.err = err
	}
	return it, plain, err
}

func (b *BundleReader) record() (it Item, plain []byte, err error) {
	if b.r == nil {
		b.r = bufio.NewReaderSize(b.z, 16)
		if err := b.head(); err != nil {
			return it, nil, err
		}
	}
	step, err := binary.ReadUvarint(b.r)
	if err != nil {
		return it, nil, b.bad(err)
	}
	if step == 0 {
		return it, nil, b.end()
	}
	if step > uint64(len(b.p.Items)-b.next) {
		return it, nil, fmt.Errorf("%w: item %d of %d", ErrBadBundle, b.next+int(min(step, MaxItems))-1, len(b.p.Items))
	}
	i := b.next + int(step) - 1
	it = b.p.Items[i]
	size, err := binary.ReadUvarint(b.r)
	if err != nil {
		return it, nil, b.bad(err)
	}
	if size != uint64(it.Size) {
		return it, nil, fmt.Errorf("%w: item %d: %d bytes, want %d", ErrBadBundle, i, size, it.Size)
	}
	if int64(cap(b.buf)) < it.Size {
		b.buf = make([]byte, it.Size)
	}
	plain = b.buf[:it.Size]
	if _, err := io.ReadFull(b.r, plain); err != nil {
		return it, nil, b.bad(err)
	}
	if err := it.check(plain); err != nil {
		return it, nil, fmt.Errorf("%w: item %d: %w", ErrBadBundle, i, err)
	}
	b.next = i + 1
	return it, plain, nil
}

func (b *BundleReader) head() error {
	var h [len(bundleMagic) + 4]byte
	if _, err := io.ReadFull(b.r, h[:]); err != nil {
		return b.bad(err)
	}
	v := binary.LittleEndian.Uint32(h[len(bundleMagic):])
	switch {
	case string(h[:len(bundleMagic)]) != bundleMagic || v < Version:
		return fmt.Errorf("%w: it does not begin like one", ErrBadBundle)
	case v > Version:
		return fmt.Errorf("%w: %w: %d, this program reads %d", ErrBadBundle, ErrVersion, v, Version)
	}
	return nil
}

// end is io.EOF if nothing follows.
func (b *BundleReader) end() error {
	switch _, err := b.r.ReadByte(); err {
	case io.EOF:
		return io.EOF
	case nil:
		return fmt.Errorf("%w: more behind its end", ErrBadBundle)
	default:
		return b.bad(err)
	}
}

// bad is the error of a stream that could not be read on: that of the source if it
// had one, else the bytes are to blame.
func (b *BundleReader) bad(err error) error {
	if b.src.err != nil {
		return fmt.Errorf("boot bundle: %w", b.src.err)
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrBadBundle, err)
}

// A source remembers an error other than io.EOF.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

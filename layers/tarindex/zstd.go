package tarindex

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// Windows of zstd, in bytes, which its decoder holds in memory. RFC 8878, 3.1.1.1.2
// asks for 8 MiB at least; `zstd --long` and -22 make 128, klauspost/compress at
// its best 32. A layer whose first frame has a large one is decoded when no other
// such layer is; what begins with a small one may go on with the middle one.
const (
	smallWindow  = 8 << 20
	middleWindow = 32 << 20
	largeWindow  = 128 << 20
)

// largeToken is held by the one layer with a large window.
var largeToken = make(chan struct{}, 1)

// zstdDecoder decodes one frame after another, so that it knows which plain
// byte each begins with.
type zstdDecoder struct {
	z      *zstd.Decoder
	frames frames
	open   bool // amid a frame
	large  bool // holds the token
	plain  int64
	m      layers.MapBuilder
}

func newZstd(r *storedReader, head []byte) (decoder, error) {
	d := &zstdDecoder{large: window0(head) > smallWindow, frames: frames{r: r}}
	limit := uint64(middleWindow)
	if d.large {
		limit = largeWindow
		select {
		case largeToken <- struct{}{}:
		case <-r.ctx.Done():
			return nil, context.Cause(r.ctx)
		}
	}
	var err error
	d.z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(limit), zstd.WithDecoderMaxMemory(1<<62))
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// window0 is the window of a stream's first frame, or a large one where that
// cannot be seen yet.
func window0(head []byte) uint64 {
	var h zstd.Header
	if err := h.Decode(head); err != nil || h.Skippable {
		return largeWindow
	}
	return h.WindowSize
}

func (d *zstdDecoder) Close() error {
	if d.z != nil {
		d.z.Close()
	}
	if d.large {
		<-largeToken
	}
	return nil
}

// step is how many plain bytes are made at once, so that marks are that near.
const step = 64 << 10

func (d *zstdDecoder) Decode(b []byte, n int) (int, error) {
	for n < len(b) {
		m, err := d.read(b[n:min(len(b), n+step)])
		n += m
		d.plain += int64(m)
		d.m.Mark(d.plain, d.frames.off)
		switch {
		case err == nil:
		case err == io.EOF:
			return n, err
		case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
			return n, fmt.Errorf("zstd: %w: %w", err, layers.ErrTooLarge)
		default:
			return n, fmt.Errorf("zstd: %w: %w", err, layers.ErrBadLayer)
		}
	}
	return n, nil
}

// read reads plain bytes. io.EOF is the end of the last frame.
func (d *zstdDecoder) read(p []byte) (n int, err error) {
	if !d.open {
		stored, err := d.frames.next()
		if err != nil {
			return 0, err
		}
		if err := d.z.Reset(&d.frames); err != nil {
			return 0, err
		}
		d.open = true
		d.m.Frame(d.plain, stored)
	}
	n, err = d.z.Read(p)
	if err == io.EOF {
		d.open, err = false, d.frames.end()
	}
	return n, err
}

func (d *zstdDecoder) Map() *layers.Map { return d.m.Map(layers.Zstd, d.plain, d.frames.off) }

// frames walks through a stream of zstd frames (RFC 8878, 3.1). As a reader it
// ends with each frame.
type frames struct {
	r    *storedReader
	off  int64  // stored bytes read
	head []byte // of a frame or block, still to be given
	buf  [18]byte
	left int64 // bytes of the block, still to be given
	sum  int64 // bytes of the frame's checksum
	last bool  // it is the last block
}

var errZstd = fmt.Errorf("zstd: garbage between frames: %w", layers.ErrBadLayer)

// take reads n bytes more into buf behind the at first.
func (f *frames) take(at, n int) ([]byte, error) {
	m, err := io.ReadFull(f.r, f.buf[at:at+n])
	f.off += int64(m)
	if at > 0 {
		err = noEOF(err)
	}
	return f.buf[:at+n], err
}

// next goes to the next frame and returns where it begins, io.EOF if there is
// none. What is skippable is skipped.
func (f *frames) next() (off int64, err error) {
	for {
		off = f.off
		p, err := f.take(0, 4)
		if err != nil {
			return off, err
		}
		switch magic := binary.LittleEndian.Uint32(p); {
		case magic == 0xfd2fb528:
			return off, f.begin()
		case magic&^0xf != 0x184d2a50:
			return off, errZstd
		}
		if p, err = f.take(4, 4); err != nil {
			return off, err
		}
		n, err := io.CopyN(io.Discard, f.r, int64(binary.LittleEndian.Uint32(p[4:])))
		f.off += n
		if err != nil {
			return off, noEOF(err)
		}
	}
}

// begin reads the frame's header behind its magic.
func (f *frames) begin() error {
	p, err := f.take(4, 1)
	if err != nil {
		return err
	}
	desc := p[4]
	n := [4]int{0, 1, 2, 4}[desc&3] + [4]int{0, 2, 4, 8}[desc>>6] // dictionary, size
	if single := desc&(1<<5) != 0; !single {
		n++ // window
	} else if desc>>6 == 0 {
		n++ // size
	}
	f.sum, f.left, f.last = 0, 0, false
	if desc&(1<<2) != 0 {
		f.sum = 4
	}
	f.head, err = f.take(5, n)
	return err
}

// block reads the next block's header, or goes on to the frame's checksum. It is
// io.EOF at the end of the frame.
func (f *frames) block() error {
	if f.last {
		if f.sum == 0 {
			return io.EOF
		}
		f.left, f.sum = f.sum, 0
		return nil
	}
	p, err := f.take(0, 3)
	if err != nil {
		return noEOF(err)
	}
	v := uint32(p[0]) | uint32(p[1])<<8 | uint32(p[2])<<16
	f.head, f.last, f.left = p, v&1 != 0, int64(v>>3)
	if v>>1&3 == 1 {
		f.left = 1 // to be repeated
	}
	return nil
}

func (f *frames) Read(p []byte) (n int, err error) {
	for len(f.head) == 0 && f.left == 0 {
		if err := f.block(); err != nil {
			return 0, err
		}
	}
	if len(f.head) > 0 {
		n = copy(p, f.head)
		f.head = f.head[n:]
		return n, nil
	}
	n, err = f.r.Read(p[:min(int64(len(p)), f.left)])
	f.off += int64(n)
	f.left -= int64(n)
	return n, noEOF(err)
}

// end reads what is left of a frame whose bytes are all there.
func (f *frames) end() error {
	_, err := io.Copy(io.Discard, f)
	return err
}

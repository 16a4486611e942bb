package decode

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// Windows of zstd, in bytes, which a decoder holds in memory. The format lets a
// frame ask for terabytes (RFC 8878, 3.1.1.1.2); encoders ask for 8 MiB unless
// told to be extreme, and `zstd --long` and -22 for 128. Package tarindex accepts
// the same: what it has unpacked can be read. What begins with a small window may
// go on with the middle one; one run with a large window is decoded at a time.
const (
	smallWindow  = 8 << 20
	middleWindow = 32 << 20
	largeWindow  = 128 << 20
)

// largeToken is held by who has a large window.
var largeToken = make(chan struct{}, 1)

// A reader reads the plain bytes of a run; close gives its decoder back.
type reader struct {
	io.Reader
	close func()
}

func open(c layers.Compression, stored []byte) (reader, error) {
	switch c {
	case layers.None:
		return reader{bytes.NewReader(stored), func() {}}, nil
	case layers.Gzip:
		return openGzip(stored)
	case layers.Zstd:
		return openZstd(stored)
	}
	return reader{}, fmt.Errorf("%w: unknown compression %d", layers.ErrBadLayer, c)
}

var gzips sync.Pool

// openGzip reads members one after another, as gzip files do.
func openGzip(stored []byte) (reader, error) {
	z, ok := gzips.Get().(*gzip.Reader)
	if !ok {
		z = new(gzip.Reader)
	}
	if err := z.Reset(bytes.NewReader(stored)); err != nil {
		return reader{}, err
	}
	return reader{z, func() { gzips.Put(z) }}, nil
}

var (
	streams sync.Pool // *zstd.Decoder that read streams
	wholes  sync.Pool // *zstd.Decoder for DecodeAll into given space
)

func openZstd(stored []byte) (reader, error) {
	if window(stored) > smallWindow {
		return openLarge(stored)
	}
	z, ok := streams.Get().(*zstd.Decoder)
	if !ok {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(middleWindow))
		if err != nil {
			return reader{}, err
		}
	}
	// A bytes.Reader, not a bytes.Buffer: given a small Buffer, Reset decodes
	// all of it at once (zstd/decoder.go, decodeBufsBelow).
	if err := z.Reset(bytes.NewReader(stored)); err != nil {
		return reader{}, err
	}
	done := func() {
		if z.Reset(nil) == nil {
			streams.Put(z)
		}
	}
	return reader{z, done}, nil
}

// openLarge waits until nobody else has a large window. Its memory is not kept.
func openLarge(stored []byte) (reader, error) {
	largeToken <- struct{}{}
	z, err := zstd.NewReader(bytes.NewReader(stored), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(largeWindow))
	if err != nil {
		<-largeToken
		return reader{}, err
	}
	return reader{z, func() { z.Close(); <-largeToken }}, nil
}

// window is how much memory the first frame asks for.
func window(stored []byte) uint64 {
	var h zstd.Header
	switch {
	case h.Decode(stored) != nil || h.Skippable:
		return 0
	case h.SingleSegment:
		return h.FrameContentSize
	}
	return h.WindowSize
}

// slack is what may follow a chunk in its frame without leaving the fast path:
// padding and the tar headers of the next entries.
const slack = 16 << 10

// zstdWhole decodes the first frame of stored in one go, without the frame's
// window (8 MiB usually) that a stream needs. It declines, whatever the reason
// (the frame holds much more than the chunk, or less, or is malformed): the
// stream decides then.
func zstdWhole(dst, stored []byte, inner int64) bool {
	need := inner + int64(len(dst))
	frame, size := firstFrame(stored)
	if frame == nil || need > layers.MaxChunk-slack || size >= 0 && size < need {
		return false
	}
	z, ok := wholes.Get().(*zstd.Decoder)
	if !ok {
		var err error
		z, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(largeWindow),
			zstd.WithDecodeAllCapLimit(true)) // into given space: the window takes no memory
		if err != nil {
			return false
		}
	}
	defer wholes.Put(z)
	if size == int64(len(dst)) { // so inner is 0
		plain, err := z.DecodeAll(frame, dst[:0:len(dst)])
		return err == nil && len(plain) == len(dst)
	}
	buf := getBuf(need + slack)
	defer putBuf(buf)
	plain, err := z.DecodeAll(frame, (*buf)[:0:len(*buf)])
	if err != nil || int64(len(plain)) < need {
		return false
	}
	copy(dst, plain[inner:])
	return true
}

// firstFrame returns the zstd frame that p begins with and its plain size, -1 if
// the frame does not say. It is nil if there is no whole frame. Frames are
// blocks of 3 bytes header and content (RFC 8878 section 3.1.1.2).
func firstFrame(p []byte) (frame []byte, size int64) {
	var h zstd.Header
	if h.Decode(p) != nil || h.Skippable {
		return nil, 0
	}
	size = -1
	if h.HasFCS {
		size = int64(min(h.FrameContentSize, 1<<62))
	}
	pos := h.HeaderSize
	for last := false; !last; {
		if pos+3 > len(p) {
			return nil, 0
		}
		b := uint32(p[pos]) | uint32(p[pos+1])<<8 | uint32(p[pos+2])<<16
		last = b&1 != 0
		n := int(b >> 3)
		if b>>1&3 == 1 {
			n = 1 // a run of one byte
		}
		pos += 3 + n
	}
	if h.HasCheckSum {
		pos += 4
	}
	if pos > len(p) {
		return nil, 0
	}
	return p[:pos], size
}

package tarindex

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
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

// mediaTypes are those of layers that are a tar, compressed or not.
var mediaTypes = map[string]bool{
	"":                              true,
	ocispec.MediaTypeImageLayer:     true,
	ocispec.MediaTypeImageLayerGzip: true,
	ocispec.MediaTypeImageLayerZstd: true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.diff.tar":                 true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
}

// A decoder makes plain bytes of stored ones.
type decoder interface {
	// Decode appends plain bytes to b[:n], whose last 32 KiB or all bytes are
	// what it made before, until b is full, and returns the new length. It is
	// io.EOF after the last.
	Decode(b []byte, n int) (int, error)
}

// storedReader reads the buffers of the stored stream.
type storedReader struct {
	ctx  context.Context
	in   <-chan *buffer
	pool *pool
	cur  *buffer
	p    []byte
}

// Next returns the next run of stored bytes, which is good until the next call.
func (r *storedReader) Next() (p []byte, err error) {
	if len(r.p) > 0 {
		p, r.p = r.p, nil
		return p, nil
	}
	if r.cur != nil {
		r.pool.put(r.cur)
		r.cur = nil
	}
	b, err := receive(r.ctx, r.in)
	if err != nil {
		return nil, err
	}
	r.cur = b
	return b.data(), nil
}

func (r *storedReader) Read(p []byte) (int, error) {
	if len(r.p) == 0 {
		next, err := r.Next()
		if err != nil {
			return 0, err
		}
		r.p = next
	}
	n := copy(p, r.p)
	r.p = r.p[n:]
	return n, nil
}

// peek looks at the first bytes without taking them.
func (r *storedReader) peek() (p []byte, err error) {
	if r.p, err = r.Next(); err == io.EOF {
		err = nil
	}
	return r.p, err
}

// newDecoder chooses by what the bytes begin with. Media types are known to lie:
// containerd (pkg/archive/compression) and Docker go by the bytes, too.
func newDecoder(r *storedReader) (decoder, error) {
	head, err := r.peek()
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		return inflate.NewGzip(r), nil
	case isZstd(head):
		return newZstd(r, head)
	}
	return plainDecoder{r}, nil
}

// isZstd reports whether p begins with a zstd frame, or a skippable one (RFC 8878, 3.1).
func isZstd(p []byte) bool {
	if len(p) < 4 {
		return false
	}
	magic := binary.LittleEndian.Uint32(p)
	return magic == 0xfd2fb528 || magic&^0xf == 0x184d2a50
}

// plainDecoder passes an uncompressed tar on.
type plainDecoder struct{ r io.Reader }

func (d plainDecoder) Decode(b []byte, n int) (int, error) { return readUntilFull(d.r, b, n) }

type zstdDecoder struct {
	z     *zstd.Decoder
	large bool // holds the token
}

func newZstd(r *storedReader, head []byte) (decoder, error) {
	d := &zstdDecoder{large: window0(head) > smallWindow}
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
	d.z, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
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

func (d *zstdDecoder) Decode(b []byte, n int) (int, error) {
	n, err := readUntilFull(d.z, b, n)
	switch {
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		err = fmt.Errorf("zstd: %w: %w", err, layers.ErrTooLarge)
	case err != nil && err != io.EOF:
		err = fmt.Errorf("zstd: %w: %w", err, layers.ErrBadLayer)
	}
	return n, err
}

func readUntilFull(r io.Reader, b []byte, n int) (int, error) {
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

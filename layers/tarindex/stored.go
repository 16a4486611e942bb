package tarindex

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
)

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
	// Map is what the decoder learnt, when Decode has returned io.EOF.
	Map() *layers.Map
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
// containerd (pkg/archive/compression) and Docker go by the bytes, too. keep takes
// the windows of a gzip stream's points.
func newDecoder(r *storedReader, keep func(i int, window []byte)) (decoder, error) {
	head, err := r.peek()
	if err != nil {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b, 8}):
		g := inflate.NewGzip(r)
		g.Record(inflate.RecordOptions{Keep: keep})
		return g, nil
	case isZstd(head):
		return newZstd(r, head)
	}
	return &plainDecoder{r: r}, nil
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
type plainDecoder struct {
	r io.Reader
	n int64
}

func (d *plainDecoder) Decode(b []byte, n int) (int, error) {
	for n < len(b) {
		m, err := d.r.Read(b[n:])
		n += m
		d.n += int64(m)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (d *plainDecoder) Map() *layers.Map {
	return &layers.Map{Plain: d.n, Stored: d.n, Points: make([]layers.Point, 1)}
}

// Package zstdchunked opens zstd:chunked blobs: ordinary .tar.zst layers in which
// each chunk of a file begins a frame, with a table of contents in a skippable
// frame that zstd passes over.
//
//	| frame | frame | … | 8 bytes, TOC | 8 bytes, tar-split | 8 bytes, footer |
//	0                     TOC position   (not read here)                    size
//
// Two writers made them, and both are read. containers/storage (podman, buildah)
// vouches for the compressed TOC and says where it is in annotations of the
// layer's descriptor, io.github.containers.zstd-chunked.manifest-checksum and
// -position; it knows chunks of zeros and has times to the nanosecond.
// stargz-snapshotter writes eStargz's document, vouches for its plain bytes in
// containerd.io/snapshot/stargz/toc.digest, and names the others without
// "github"; without a position the footer is asked.
//
// Formats: containers/storage pkg/chunked/internal/minimal/compression.go;
// containerd/stargz-snapshotter estargz/zstdchunked/zstdchunked.go
package zstdchunked

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/toc"
)

// Annotations of a layer's descriptor.
const (
	ChecksumAnnotation = "io.github.containers.zstd-chunked.manifest-checksum" // digest of the compressed TOC
	PositionAnnotation = "io.github.containers.zstd-chunked.manifest-position" // offset:stored bytes:plain bytes:type
	TarSplitAnnotation = "io.github.containers.zstd-chunked.tarsplit-position" // offset:stored bytes:plain bytes
	// The names of stargz-snapshotter, and of containers/storage before 2022.
	OldChecksumAnnotation = "io.containers.zstd-chunked.manifest-checksum"
	OldPositionAnnotation = "io.containers.zstd-chunked.manifest-position"
	TOCDigestAnnotation   = "containerd.io/snapshot/stargz/toc.digest" // digest of the plain TOC
)

const (
	frameHeader = 8 // of a skippable frame: magic, and bytes in it
	typeCRFS    = 1 // the only type of TOC there is
)

// A claim is what the descriptor says of the TOC. At least one digest is given;
// all that are given must hold.
type claim struct {
	stored, plain digest.Digest
	place         *place
}

// A place is where the TOC is in the blob.
type place struct{ off, stored, plain, kind int64 }

// Open reads the TOC of b, as the annotations of its descriptor vouch for it. It
// blocks on b. The error is a *layers.DigestError if the TOC is another one; else
// it wraps layers.ErrNoTOC if the annotations vouch for none, b has none or it
// cannot tell what the layer holds, layers.ErrBadTOC if the TOC is wrong in
// itself, layers.ErrTooLarge, layers.ErrBadSum, or is b's.
func Open(ctx context.Context, b layers.Blob, annotations map[string]string) (*layers.Index, error) {
	c, err := claims(annotations)
	if err != nil {
		return nil, err
	}
	if c.place == nil {
		if c.place, err = footer(ctx, b); err != nil {
			return nil, err
		}
	}
	if err := c.place.check(b.Size()); err != nil {
		return nil, err
	}
	r := toc.NewRange(ctx, b, c.place.off, c.place.off+c.place.stored, nil)
	ix, err := read(r, c)
	switch {
	case err == nil:
		return ix, nil
	case r.Err() != nil:
		return nil, r.Err()
	}
	return nil, err
}

func claims(a map[string]string) (c claim, err error) {
	c.stored = digest.Digest(first(a, ChecksumAnnotation, OldChecksumAnnotation))
	c.plain = digest.Digest(a[TOCDigestAnnotation])
	if c.stored == "" && c.plain == "" {
		return c, fmt.Errorf("%w: no annotation vouches for one", layers.ErrNoTOC)
	}
	if s := first(a, PositionAnnotation, OldPositionAnnotation); s != "" {
		c.place, err = parsePlace(s)
	}
	return c, err
}

func first(a map[string]string, keys ...string) string {
	for _, k := range keys {
		if v := a[k]; v != "" {
			return v
		}
	}
	return ""
}

// parsePlace reads four numbers with colons between them.
func parsePlace(s string) (*place, error) {
	var p place
	rest, more := s, true
	for _, to := range []*int64{&p.off, &p.stored, &p.plain, &p.kind} {
		var part string
		part, rest, more = strings.Cut(rest, ":")
		n, err := strconv.ParseUint(part, 10, 63)
		if err != nil {
			return nil, fmt.Errorf("%w: its position is %.100q", layers.ErrBadTOC, s)
		}
		*to = int64(n)
	}
	if more {
		return nil, fmt.Errorf("%w: its position is %.100q", layers.ErrBadTOC, s)
	}
	return &p, nil
}

func (p *place) check(size int64) error {
	switch {
	case p.kind != typeCRFS:
		return fmt.Errorf("%w of a known type: it is %d", layers.ErrNoTOC, p.kind)
	case p.off < frameHeader || p.stored <= 0 || p.off > size || p.stored > size-p.off:
		return fmt.Errorf("%w: %d bytes at %d, blob of %d bytes", layers.ErrBadTOC, p.stored, p.off, size)
	case p.stored > layers.MaxTOC || p.plain > layers.MaxTOC || p.plain < 0:
		return fmt.Errorf("%w: TOC of %d bytes", layers.ErrTooLarge, p.plain)
	}
	return nil
}

// read decodes the TOC and checks all digests that are given.
func read(r *toc.Range, c claim) (*layers.Index, error) {
	checks := make([]*toc.Verifier, 0, 2)
	vouched := func(r io.Reader, want digest.Digest, from string) (io.Reader, error) {
		if want == "" {
			return r, nil
		}
		v, err := toc.NewVerifier(r, want, from)
		checks = append(checks, v)
		return v, err
	}
	stored, err := vouched(r, c.stored, "compressed TOC")
	if err != nil {
		return nil, err
	}
	z, err := zstd.NewReader(stored, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	plain, err := vouched(z, c.plain, "TOC")
	if err != nil {
		return nil, err
	}
	ix, err := toc.Decode(plain, toc.Options{Compression: layers.Zstd, End: c.place.off - frameHeader, Size: c.place.plain})
	for i := len(checks) - 1; i >= 0; i-- { // the compressed bytes have the last word
		err = checks[i].Check(err)
	}
	if err != nil {
		return nil, toc.Malformed(err)
	}
	return ix, nil
}

// The footer is a skippable frame of numbers (offset, stored bytes, plain bytes,
// type, the same of the tar-split but its type) and a magic, which the two
// writers spell differently. It is 64 bytes, or 40 without a tar-split.
const (
	footerSize    = 64
	oldFooterSize = 40
	frameMagic    = "\x50\x2a\x4d\x18"
)

func footer(ctx context.Context, b layers.Blob) (*place, error) {
	size := b.Size()
	if size < frameHeader+oldFooterSize {
		return nil, fmt.Errorf("%w: blob of %d bytes", layers.ErrNoTOC, size)
	}
	p, err := toc.ReadRange(ctx, b, size-min(size, frameHeader+footerSize), size)
	if err != nil {
		return nil, err
	}
	if magic := string(p[len(p)-8:]); magic == "GNUlInUx" || magic == "GnUlInUx" {
		for _, n := range []int{footerSize, oldFooterSize} {
			if len(p) < frameHeader+n {
				continue
			}
			f := p[len(p)-frameHeader-n:]
			if string(f[:4]) == frameMagic && binary.LittleEndian.Uint32(f[4:]) == uint32(n) {
				return parseFooter(f[frameHeader:])
			}
		}
	}
	return nil, fmt.Errorf("%w: the blob does not end with a zstd:chunked footer", layers.ErrNoTOC)
}

func parseFooter(f []byte) (*place, error) {
	var p place
	for i, to := range []*int64{&p.off, &p.stored, &p.plain, &p.kind} {
		*to = int64(binary.LittleEndian.Uint64(f[8*i:]))
		if *to < 0 {
			return nil, fmt.Errorf("%w: its position in the footer", layers.ErrBadTOC)
		}
	}
	return &p, nil
}

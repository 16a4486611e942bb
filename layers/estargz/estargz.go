// Package estargz opens eStargz blobs: ordinary .tar.gz layers in which each
// chunk of a file begins a gzip member, with a table of contents at the end.
//
//	| member | member | … | member: tar of stargz.index.json | footer: empty member |
//	0                     TOC offset                          size-51            size
//
// The footer's gzip header has an extra field with the TOC's offset in
// hexadecimal. The TOC is vouched for by the digest of its JSON in an annotation
// of the layer's descriptor in the manifest; the footer is not vouched for, and
// needs not be: another TOC than the right one is refused.
//
// Times in an eStargz TOC have whole seconds.
//
// Format: https://github.com/containerd/stargz-snapshotter/blob/main/docs/estargz.md
package estargz

import (
	"archive/tar"
	"context"
	"fmt"
	"strconv"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/toc"
)

// TOCDigestAnnotation is where a layer's descriptor has the digest of its TOC.
const TOCDigestAnnotation = "containerd.io/snapshot/stargz/toc.digest"

const tocName = "stargz.index.json"

// Open reads the TOC of b, which must have the digest tocDigest. It blocks on b.
// The error is a *layers.DigestError if the TOC is another one; else it wraps
// layers.ErrNoTOC if b is not an eStargz blob or its TOC cannot tell what the
// layer holds, layers.ErrBadTOC if the TOC is wrong in itself,
// layers.ErrTooLarge, layers.ErrBadSum, or is b's.
func Open(ctx context.Context, b layers.Blob, tocDigest digest.Digest) (*layers.Index, error) {
	if _, err := layers.ParseSum(tocDigest); err != nil {
		return nil, fmt.Errorf("digest of the TOC: %w", err)
	}
	off, end, head, err := locate(ctx, b)
	if err != nil {
		return nil, err
	}
	r := toc.NewRange(ctx, b, off, end, head)
	ix, err := read(r, off, tocDigest)
	switch {
	case err == nil:
		return ix, nil
	case r.Err() != nil:
		return nil, r.Err()
	}
	return nil, err
}

// read decodes the gzip member and the tar in it.
func read(r *toc.Range, off int64, tocDigest digest.Digest) (*layers.Index, error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, fmt.Errorf("%w: TOC: %w", layers.ErrBadTOC, err)
	}
	t := tar.NewReader(z)
	h, err := t.Next()
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: TOC: %w", layers.ErrBadTOC, err)
	case h.Name != tocName:
		return nil, fmt.Errorf("%w: %q where %s belongs", layers.ErrBadTOC, h.Name, tocName)
	case h.Size > layers.MaxTOC:
		return nil, fmt.Errorf("%w: TOC of %d bytes", layers.ErrTooLarge, h.Size)
	}
	v, err := toc.NewVerifier(t, tocDigest, "TOC")
	if err != nil {
		return nil, err
	}
	ix, err := toc.Decode(v, toc.Options{Compression: layers.Gzip, End: off, Size: h.Size})
	if err := v.Check(err); err != nil {
		return nil, toc.Malformed(err)
	}
	return ix, nil
}

// The sizes of footers. The older one has the offset without the header that RFC
// 1952 wants of an extra field.
const (
	footerSize = 51
	legacySize = 47
)

// locate finds the TOC: the range of its member, and the bytes of that which
// came along with the footer.
func locate(ctx context.Context, b layers.Blob) (off, end int64, head []byte, err error) {
	size := b.Size()
	if size < legacySize {
		return 0, 0, nil, fmt.Errorf("%w: blob of %d bytes", layers.ErrNoTOC, size)
	}
	start := size - min(size, tail(size))
	p, err := toc.ReadRange(ctx, b, start, size)
	if err != nil {
		return 0, 0, nil, err
	}
	off, n, err := footer(p)
	if err != nil {
		return 0, 0, nil, err
	}
	end = size - int64(n)
	if off >= end {
		return 0, 0, nil, fmt.Errorf("%w: TOC at %d, blob of %d bytes", layers.ErrBadTOC, off, size)
	}
	if off >= start {
		head = p[off-start : end-start]
	}
	return off, end, head, nil
}

// tail is how much of a blob's end is read in the hope that it has the TOC, to
// save a round trip: a TOC has about a hundredth of its blob.
func tail(size int64) int64 { return min(max(size/128, 32<<10), 1<<20) }

// footer finds the footer at the end of p: the TOC's offset and the footer's size.
func footer(p []byte) (off int64, n int, err error) {
	const extra = "STARGZ"
	for _, f := range []struct {
		size int
		head string // of the footer up to the offset
	}{
		{footerSize, "\x1a\x00SG\x16\x00"},
		{legacySize, "\x16\x00"},
	} {
		if len(p) < f.size {
			continue
		}
		// 10 bytes of gzip header, extra field: its length and header, 16 digits, STARGZ.
		b := p[len(p)-f.size:]
		at := 10 + len(f.head)
		if string(b[:4]) != "\x1f\x8b\x08\x04" || string(b[10:at]) != f.head || string(b[at+16:at+16+len(extra)]) != extra {
			continue
		}
		off, err := strconv.ParseUint(string(b[at:at+16]), 16, 63)
		if err != nil {
			return 0, 0, fmt.Errorf("%w: offset %q in the footer", layers.ErrBadTOC, b[at:at+16])
		}
		return int64(off), f.size, nil
	}
	return 0, 0, fmt.Errorf("%w: the blob does not end with an eStargz footer", layers.ErrNoTOC)
}

// Package convert makes lazily readable layers and images of ordinary ones.
//
// A layer's tar is rewritten entry by entry: names become clean, sparse files
// become plain ones, and headers are written anew, so its diff ID changes. Names,
// modes, owners, times, links, devices, extended attributes and bytes stay. The
// layer stays one that any runtime can unpack.
package convert

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"maps"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/lazy"
)

// Options say what is made. The zero value makes eStargz.
type Options struct {
	// Format is lazy.EStargz or lazy.ZstdChunked; "" is the former.
	Format string
	// Level is the effort of the compressor: 1 to 9, as gzip has it, or 1 to 22,
	// as zstd has it; 0 is its default.
	Level int
	// ChunkSize is the most plain bytes of a chunk; 0 is 1 MiB. A reader of one
	// byte fetches a chunk, and each chunk costs an entry of the TOC.
	ChunkSize int
}

const defaultChunkSize = 1 << 20

func (o Options) withDefaults() (Options, error) {
	if o.Format == "" {
		o.Format = lazy.EStargz
	}
	if o.ChunkSize == 0 {
		o.ChunkSize = defaultChunkSize
	}
	maxLevel := map[string]int{lazy.EStargz: gzip.BestCompression, lazy.ZstdChunked: 22}[o.Format]
	switch {
	case maxLevel == 0:
		return o, fmt.Errorf("convert to %q: unknown format", o.Format)
	case o.Level < 0 || o.Level > maxLevel:
		return o, fmt.Errorf("convert to %s: level %d is not from 1 to %d", o.Format, o.Level, maxLevel)
	case o.ChunkSize < 4<<10 || o.ChunkSize > layers.MaxChunk:
		return o, fmt.Errorf("convert: chunk size %d is not from 4 KiB to %d", o.ChunkSize, layers.MaxChunk)
	}
	return o, nil
}

// A Converted layer: its new descriptor, with the annotations that vouch for its
// TOC, and the digest of its plain tar.
type Converted struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
}

// Layer converts the layer that r yields (a tar, plain or compressed by gzip or
// zstd) and writes the new blob to w. What was written is of no use if it fails.
// The error wraps layers.ErrBadLayer if the tar is malformed or has what no image
// can have. It does not check r against a digest: r's maker does, and r ends with
// an error if it does not hold.
func Layer(ctx context.Context, w io.Writer, r io.Reader, o Options) (Converted, error) {
	o, err := o.withDefaults()
	if err != nil {
		return Converted{}, err
	}
	in, out := &input{ctx: ctx, r: r}, &counter{w: w, hash: sha256.New()}
	c, err := convert(out, in, o)
	switch { // a stream that failed is the cause, whatever came of it
	case in.err != nil:
		return Converted{}, in.err
	case out.err != nil:
		return Converted{}, out.err
	case err != nil:
		return Converted{}, err
	}
	c.Desc.Digest, c.Desc.Size = digest.NewDigest(digest.SHA256, out.hash), out.n
	return c, nil
}

func convert(out *counter, in *input, o Options) (Converted, error) {
	plain, done, err := decompress(in)
	if err != nil {
		return Converted{}, err
	}
	defer done()
	write := eStargz
	if o.Format == lazy.ZstdChunked {
		write = zstdChunked
	}
	c, err := write(out, newSource(plain, in.alive), o)
	if err != nil {
		return c, err
	}
	if _, err := io.Copy(io.Discard, plain); err != nil { // what follows the tar, so that in can check its digest
		return c, fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
	}
	_, err = io.Copy(io.Discard, in)
	return c, err
}

// An input ends a stream when its context does, and keeps its error.
type input struct {
	ctx context.Context
	r   io.Reader
	err error // not io.EOF
}

func (in *input) Read(p []byte) (n int, err error) {
	if err := in.alive(); err != nil {
		return 0, err
	}
	n, err = in.r.Read(p)
	if err != nil && err != io.EOF {
		in.err = err
	}
	return n, err
}

// alive fails once the context has ended. Who reads what takes no input, like the
// hole of a sparse file, asks it.
func (in *input) alive() error {
	if err := in.ctx.Err(); err != nil && in.err == nil {
		in.err = err
	}
	return in.err
}

// decompress looks at the first bytes of a layer, as its media type may lie.
func decompress(r io.Reader) (plain io.Reader, done func(), err error) {
	b := bufio.NewReaderSize(r, 256<<10)
	head, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	switch {
	case len(head) >= 3 && string(head[:3]) == "\x1f\x8b\x08":
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
		}
		return z, func() {}, nil
	case string(head) == "\x28\xb5\x2f\xfd", len(head) == 4 && head[0]&0xf0 == 0x50 && string(head[1:]) == "\x2a\x4d\x18":
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}

// A counter counts and sums what it passes on, and keeps the error.
type counter struct {
	w    io.Writer
	hash hash.Hash
	n    int64
	err  error
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.hash.Write(p[:n])
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

// merge returns the annotations of a layer without those of older TOCs, and with more.
func merge(old, more map[string]string) map[string]string {
	all := maps.Clone(more)
	if all == nil {
		all = map[string]string{}
	}
	for k, v := range old {
		if _, ok := all[k]; !ok && !aboutTOC(k) {
			all[k] = v
		}
	}
	return all
}

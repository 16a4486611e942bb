// Package lazy opens layers that carry a table of contents, whatever its format.
package lazy

import (
	"context"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/estargz"
	"github.com/snapfs/snapfs/layers/zstdchunked"
)

// The formats of layers, as users see them.
const (
	EStargz     = "estargz"
	ZstdChunked = "zstd:chunked"
	Tar         = "tar" // no table of contents
)

// Format says which format the annotations and media type of a layer promise.
func Format(desc ocispec.Descriptor) string {
	a := desc.Annotations
	stargz := a[estargz.TOCDigestAnnotation] != ""
	chunked := a[zstdchunked.ChecksumAnnotation] != "" || a[zstdchunked.OldChecksumAnnotation] != ""
	zstd := strings.Contains(desc.MediaType, "zstd")
	switch {
	case chunked && (zstd || !stargz), stargz && zstd:
		return ZstdChunked
	case stargz:
		return EStargz
	}
	return Tar
}

// Open makes the Index of a layer from the table of contents in its blob, as the
// descriptor, which comes from a verified manifest, vouches for it. It also
// returns the format that the descriptor promises, even with an error. The error
// wraps layers.ErrNoTOC, and says why, if the layer has to be pulled as a whole;
// see estargz.Open and zstdchunked.Open for others. It blocks on b.
func Open(ctx context.Context, desc ocispec.Descriptor, b layers.Blob) (*layers.Index, string, error) {
	var ix *layers.Index
	var err error
	format := Format(desc)
	switch format {
	case EStargz:
		ix, err = estargz.Open(ctx, b, digest.Digest(desc.Annotations[estargz.TOCDigestAnnotation]))
	case ZstdChunked:
		ix, err = zstdchunked.Open(ctx, b, desc.Annotations)
	default:
		err = fmt.Errorf("%w: no annotation of the manifest vouches for one", layers.ErrNoTOC)
	}
	return ix, format, err
}

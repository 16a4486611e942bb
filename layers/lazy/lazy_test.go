package lazy

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/estargz"
	"github.com/snapfs/snapfs/layers/zstdchunked"
)

func TestFormat(t *testing.T) {
	stargz := map[string]string{estargz.TOCDigestAnnotation: "x"}
	podman := map[string]string{zstdchunked.ChecksumAnnotation: "x"}
	both := map[string]string{estargz.TOCDigestAnnotation: "x", zstdchunked.OldChecksumAnnotation: "x"}
	for _, tc := range []struct {
		mediaType   string
		annotations map[string]string
		want        string
	}{
		{ocispec.MediaTypeImageLayerGzip, nil, Tar},
		{ocispec.MediaTypeImageLayerZstd, map[string]string{zstdchunked.PositionAnnotation: "1:1:1:1"}, Tar},
		{ocispec.MediaTypeImageLayerGzip, stargz, EStargz},
		{"application/vnd.docker.image.rootfs.diff.tar.gzip", stargz, EStargz},
		{ocispec.MediaTypeImageLayerZstd, stargz, ZstdChunked},
		{ocispec.MediaTypeImageLayerZstd, podman, ZstdChunked},
		{"application/vnd.docker.image.rootfs.diff.tar.zstd", podman, ZstdChunked},
		{ocispec.MediaTypeImageLayerZstd, both, ZstdChunked},
		{ocispec.MediaTypeImageLayerGzip, both, EStargz},
	} {
		if got := Format(ocispec.Descriptor{MediaType: tc.mediaType, Annotations: tc.annotations}); got != tc.want {
			t.Errorf("Format(%s, %v) = %q, want %q", tc.mediaType, tc.annotations, got, tc.want)
		}
	}
}

// What is no TOC says why; the formats themselves are tested where they are, and
// with blobs of our own in package convert.
func TestOpenNoTOC(t *testing.T) {
	d := digest.FromString("x").String()
	for name, tc := range map[string]struct {
		a      map[string]string
		why    string
		format string
	}{
		"plain":           {nil, "annotation", Tar},
		"lying eStargz":   {map[string]string{estargz.TOCDigestAnnotation: d}, "footer", EStargz},
		"lying zstd":      {map[string]string{zstdchunked.ChecksumAnnotation: d}, "footer", ZstdChunked},
		"unknown version": {map[string]string{zstdchunked.ChecksumAnnotation: d, zstdchunked.PositionAnnotation: "8:1:1:7"}, "type", ZstdChunked},
	} {
		ix, format, err := Open(t.Context(), ocispec.Descriptor{Annotations: tc.a}, blob{})
		if ix != nil || format != tc.format || !errors.Is(err, layers.ErrNoTOC) || !strings.Contains(err.Error(), tc.why) {
			t.Errorf("Open(%s) = %v, %q, %v, want %q, ErrNoTOC because of its %s", name, ix, format, err, tc.format, tc.why)
		}
	}
}

package soci

import (
	"encoding/json"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// Types of index manifests. The artifact type of a manifest is the media type of
// its config.
const (
	// TypeV1 is a referrer of the image manifest, which knows nothing of it:
	// whoever may push to the repository can add one.
	TypeV1 = "application/vnd.amazon.soci.index.v1+json"
	// TypeV2 is named by an annotation of the image manifest, whose digest so
	// vouches for it. It has no subject, and stands in the image's OCI index beside
	// the manifest, for the same platform.
	TypeV2 = "application/vnd.amazon.soci.index.v2+json"
)

// Media types of what an index manifest lists.
const (
	ztocType     = "application/octet-stream"
	prefetchType = "application/vnd.amazon.soci.prefetch.v1+json"
)

const (
	digestAnnotation = "com.amazon.soci.index-digest"       // of an image manifest: that of its index
	layerAnnotation  = "com.amazon.soci.image-layer-digest" // of a ztoc: that of its layer
)

// ErrBadIndex says that a document is not a SOCI index manifest, or one that is wrong.
var ErrBadIndex = fmt.Errorf("malformed SOCI index manifest: %w", fs.ErrInvalid)

// Bound returns the digest of the index, of version 2, that the annotations of an
// image manifest bind to the image. Its manifest is in the image's repository.
func Bound(annotations map[string]string) (digest.Digest, bool) {
	d := digest.Digest(annotations[digestAnnotation])
	_, err := layers.ParseSum(d)
	return d, err == nil
}

// Referrers returns which of an image manifest's referrers are SOCI indexes of
// version 1, in the order of the list. SOCI takes the first by default.
func Referrers(list []ocispec.Descriptor) (found []ocispec.Descriptor) {
	for _, d := range list {
		if _, err := layers.ParseSum(d.Digest); err == nil && d.ArtifactType == TypeV1 {
			found = append(found, d)
		}
	}
	return found
}

// An Index is an index manifest: where the ztocs of an image's layers are.
type Index struct {
	Version int // 1 or 2
	// Subject is the digest of the image manifest. Version 2 does not say; see Bound.
	Subject digest.Digest

	ztocs, prefetch map[digest.Digest]ocispec.Descriptor // by digest of the layer
}

// ParseIndex reads an index manifest. want is its digest. The error is a
// *layers.DigestError, or wraps ErrBadIndex or layers.ErrTooLarge.
func ParseIndex(raw []byte, want digest.Digest) (*Index, error) {
	x, err := parseIndex(raw, want)
	if err != nil {
		return nil, fmt.Errorf("soci index %s: %w", want, err)
	}
	return x, nil
}

func parseIndex(raw []byte, want digest.Digest) (*Index, error) {
	sum, err := layers.ParseSum(want)
	if err != nil {
		return nil, err
	}
	if len(raw) > layers.MaxManifest {
		return nil, fmt.Errorf("%d bytes: %w", len(raw), layers.ErrTooLarge)
	}
	if got := layers.SumOf(raw); got != sum {
		return nil, &layers.DigestError{Want: want, Got: got.Digest(), From: "SOCI index"}
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadIndex, err)
	}
	if m.MediaType != ocispec.MediaTypeImageManifest {
		return nil, fmt.Errorf("%w: media type %.80q", ErrBadIndex, m.MediaType)
	}
	x := &Index{ztocs: map[digest.Digest]ocispec.Descriptor{}, prefetch: map[digest.Digest]ocispec.Descriptor{}}
	switch m.Config.MediaType {
	case TypeV1:
		if x.Version = 1; m.Subject == nil {
			return nil, fmt.Errorf("%w: it has no subject", ErrBadIndex)
		}
		x.Subject = m.Subject.Digest
	case TypeV2:
		x.Version = 2
	default:
		return nil, fmt.Errorf("%w: config of type %.80q", ErrBadIndex, m.Config.MediaType)
	}
	for _, d := range m.Layers {
		if err := x.add(d); err != nil {
			return nil, err
		}
	}
	return x, nil
}

func (x *Index) add(d ocispec.Descriptor) error {
	list, most := x.ztocs, int64(layers.MaxTOC)
	switch d.MediaType {
	case ztocType:
	case prefetchType:
		list, most = x.prefetch, layers.MaxManifest
	default:
		return nil // of a later version: nothing that is needed
	}
	layer := digest.Digest(d.Annotations[layerAnnotation])
	if _, err := layers.ParseSum(d.Digest); err != nil {
		return fmt.Errorf("%w: %w", ErrBadIndex, err)
	}
	if err := layer.Validate(); err != nil {
		return fmt.Errorf("%w: %s is of layer %.80q", ErrBadIndex, d.Digest, layer)
	}
	if d.Size < 0 || d.Size > most {
		return fmt.Errorf("%s of %d bytes: %w", d.Digest, d.Size, layers.ErrTooLarge)
	}
	if was, twice := list[layer]; twice && was.Digest != d.Digest {
		return fmt.Errorf("%w: layer %s has two", ErrBadIndex, layer)
	}
	list[layer] = d
	return nil
}

// ZTOC returns the descriptor of a layer's ztoc, which is a blob of the image's
// repository. Small layers have none, and those that SOCI cannot split.
func (x *Index) ZTOC(layer digest.Digest) (ocispec.Descriptor, bool) {
	d, ok := x.ztocs[layer]
	return d, ok
}

// Prefetch returns the descriptor of what should be fetched of a layer first, for
// [ParsePrefetch], if there is such.
func (x *Index) Prefetch(layer digest.Digest) (ocispec.Descriptor, bool) {
	d, ok := x.prefetch[layer]
	return d, ok
}

// Len is the number of layers that have a ztoc.
func (x *Index) Len() int { return len(x.ztocs) }

// ParsePrefetch reads which spans of a layer should be fetched first: their
// numbers, in their order. want is the document's digest. The errors are those of ParseIndex.
func ParsePrefetch(raw []byte, want digest.Digest, l *Layer) ([]int, error) {
	if len(raw) > layers.MaxManifest {
		return nil, fmt.Errorf("soci prefetch %s: %d bytes: %w", want, len(raw), layers.ErrTooLarge)
	}
	if got := digest.FromBytes(raw); got != want {
		return nil, &layers.DigestError{Want: want, Got: got, From: "SOCI prefetch"}
	}
	var doc struct {
		Version string `json:"version"`
		Spans   []struct {
			Start int `json:"start_span"`
			End   int `json:"end_span"`
		} `json:"prefetch_spans"`
	}
	if err := json.Unmarshal(raw, &doc); err != nil {
		return nil, fmt.Errorf("soci prefetch %s: %w: %w", want, ErrBadIndex, err)
	}
	if doc.Version != "1.0" {
		return nil, fmt.Errorf("soci prefetch %s: %w: version %.20q", want, ErrBadIndex, doc.Version)
	}
	var list []int
	end := 0
	for _, s := range doc.Spans {
		// Their writer sorts and merges them; so work and result are bounded.
		if s.Start < end || s.Start > s.End || s.End >= len(l.spans) {
			return nil, fmt.Errorf("soci prefetch %s: %w: spans %d to %d of %d, behind %d", want, ErrBadIndex, s.Start, s.End, len(l.spans), end)
		}
		for end = s.Start; end <= s.End; end++ {
			list = append(list, end)
		}
	}
	return list, nil
}

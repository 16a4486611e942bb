package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// A Source is an image to convert, and where its blobs come from and go to.
type Source struct {
	Manifest ocispec.Manifest
	Config   []byte // as it is stored

	// Open returns the stored bytes of a layer, which it verifies: the stream ends
	// with an error if they are others.
	Open func(ctx context.Context, layer ocispec.Descriptor) (io.ReadCloser, error)
	// Create returns where the new blob of the layer i goes. It is closed before
	// Image returns, also when it fails.
	Create func(i int, layer ocispec.Descriptor) (io.WriteCloser, error)
}

// An Image is a converted image. Its documents are not written anywhere yet.
type Image struct {
	Desc     ocispec.Descriptor // of the manifest
	Manifest []byte
	Config   []byte
	Layers   []Converted // what Create's blobs are
}

// ImageOf converts all layers of src, one after another, and makes the manifest and
// config of the new image: an OCI image with the old one's config, history and
// annotations.
func ImageOf(ctx context.Context, src Source, o Options) (*Image, error) {
	cs := make([]Converted, len(src.Manifest.Layers))
	for i, desc := range src.Manifest.Layers {
		if !isLayer(desc.MediaType) {
			return nil, fmt.Errorf("%w: layer %s is of type %q", layers.ErrBadLayer, desc.Digest, desc.MediaType)
		}
		var err error
		if cs[i], err = convertOne(ctx, src, i, o); err != nil {
			return nil, fmt.Errorf("convert layer %s: %w", desc.Digest, err)
		}
	}
	return Rewrite(src.Manifest, src.Config, cs)
}

// isLayer says whether a media type is that of a tar. Layers that may not be
// distributed are: who converts them decides.
func isLayer(mediaType string) bool {
	return strings.HasPrefix(mediaType, "application/vnd.oci.image.layer.") ||
		strings.HasPrefix(mediaType, "application/vnd.docker.image.rootfs.")
}

func convertOne(ctx context.Context, src Source, i int, o Options) (c Converted, err error) {
	desc := src.Manifest.Layers[i]
	r, err := src.Open(ctx, desc)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	w, err := src.Create(i, desc)
	if err != nil {
		return c, err
	}
	c, err = Layer(ctx, w, r, o)
	return c, errors.Join(err, w.Close())
}

// Rewrite makes the manifest and config of an image whose layers were replaced by
// cs, in order. Everything else of the config stays as it was stored.
func Rewrite(m ocispec.Manifest, config []byte, cs []Converted) (*Image, error) {
	if len(cs) != len(m.Layers) {
		return nil, fmt.Errorf("%d layers converted, the manifest has %d", len(cs), len(m.Layers))
	}
	img := &Image{Layers: cs}
	old := m.Layers
	m.Layers = make([]ocispec.Descriptor, len(cs))
	diffIDs := make([]digest.Digest, len(cs))
	for i, c := range cs {
		diffIDs[i] = c.DiffID
		m.Layers[i] = c.Desc
		m.Layers[i].Annotations = merge(old[i].Annotations, c.Desc.Annotations)
	}
	var err error
	if img.Config, err = newConfig(config, diffIDs); err != nil {
		return nil, err
	}
	m.Versioned = specs.Versioned{SchemaVersion: 2}
	m.MediaType = ocispec.MediaTypeImageManifest
	m.Config = describe(ocispec.MediaTypeImageConfig, img.Config)
	m.Subject = nil // it spoke of the old image
	if img.Manifest, err = json.Marshal(m); err != nil {
		return nil, err
	}
	img.Desc = describe(m.MediaType, img.Manifest)
	return img, nil
}

func describe(mediaType string, p []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(p), Size: int64(len(p))}
}

// newConfig replaces the diff IDs of a config.
func newConfig(config []byte, diffIDs []digest.Digest) ([]byte, error) {
	var c map[string]json.RawMessage
	if err := json.Unmarshal(config, &c); err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	var old ocispec.RootFS
	if err := json.Unmarshal(c["rootfs"], &old); err != nil {
		return nil, fmt.Errorf("image config: rootfs: %w", err)
	}
	if len(old.DiffIDs) != len(diffIDs) {
		return nil, fmt.Errorf("image config: %d diff IDs for %d layers", len(old.DiffIDs), len(diffIDs))
	}
	p, err := json.Marshal(ocispec.RootFS{Type: "layers", DiffIDs: diffIDs})
	if err != nil {
		return nil, err
	}
	c["rootfs"] = p
	return json.Marshal(c)
}

// aboutTOC says whether an annotation of a layer describes a TOC.
func aboutTOC(key string) bool {
	return strings.HasPrefix(key, "io.github.containers.zstd-chunked.") || strings.HasPrefix(key, "io.containers.zstd-chunked.") ||
		key == estargz.TOCJSONDigestAnnotation || key == estargz.StoreUncompressedSizeAnnotation
}

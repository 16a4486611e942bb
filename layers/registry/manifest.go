package registry

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// Media types of Docker's image manifest, schema 2.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1+"
)

const maxLayers = 4096 // of one image

var manifestTypes = []string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, dockerManifest, dockerList}

var configTypes = []string{ocispec.MediaTypeImageConfig, dockerConfig}

// layerTypes are those whose bytes are a tar, perhaps compressed. The
// "nondistributable" and "foreign" ones are taken if the registry has them;
// their urls are never followed.
var layerTypes = []string{
	ocispec.MediaTypeImageLayer,
	ocispec.MediaTypeImageLayerGzip,
	ocispec.MediaTypeImageLayerZstd,
	"application/vnd.oci.image.layer.nondistributable.v1.tar",
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
	"application/vnd.docker.image.rootfs.diff.tar",
	"application/vnd.docker.image.rootfs.diff.tar.gzip",
	"application/vnd.docker.image.rootfs.diff.tar.zstd",
	"application/vnd.docker.image.rootfs.foreign.diff.tar",
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
}

// A document is a manifest or an index, whose bytes hash to its descriptor.
type document struct {
	desc ocispec.Descriptor
	raw  []byte
}

// parsed is a decoded document: exactly one of the two is set.
type parsed struct {
	mediaType string
	manifest  *ocispec.Manifest
	index     *ocispec.Index
}

// parseDocument decodes a manifest or an index. said is its media type as its
// descriptor or the server has it, "" if they do not tell. What could be read as
// the one or the other is refused (CVE-2021-41190), and so is what decoders
// read differently: repeated members, and names that differ by case.
func parseDocument(raw []byte, said string) (parsed, error) {
	if len(raw) > layers.MaxManifest {
		return parsed{}, fmt.Errorf("%w: manifest of %d bytes: %w", ErrBadManifest, len(raw), layers.ErrTooLarge)
	}
	has, err := members(raw, "schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers", "signatures")
	if err != nil {
		return parsed{}, err
	}
	var head struct {
		SchemaVersion int    `json:"schemaVersion"`
		MediaType     string `json:"mediaType"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return parsed{}, fmt.Errorf("%w: %w", ErrBadManifest, err)
	}
	if head.SchemaVersion == 1 || has["fsLayers"] || strings.HasPrefix(said, dockerSchema1) {
		return parsed{}, fmt.Errorf("%w: schema 1 manifest: build the image again", ErrUnsupported)
	}
	if head.SchemaVersion != 2 {
		return parsed{}, fmt.Errorf("%w: schemaVersion is %d", ErrBadManifest, head.SchemaVersion)
	}
	t, err := documentType(head.MediaType, said)
	if err != nil {
		return parsed{}, err
	}
	if isIndex(t) {
		if has["config"] || has["layers"] {
			return parsed{}, fmt.Errorf("%w: an index with the members of a manifest", ErrBadManifest)
		}
		ix := new(ocispec.Index)
		if err := json.Unmarshal(raw, ix); err != nil {
			return parsed{}, fmt.Errorf("%w: index: %w", ErrBadManifest, err)
		}
		return parsed{mediaType: t, index: ix}, checkIndex(ix)
	}
	if has["manifests"] {
		return parsed{}, fmt.Errorf("%w: a manifest with the members of an index", ErrBadManifest)
	}
	m := new(ocispec.Manifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return parsed{}, fmt.Errorf("%w: manifest: %w", ErrBadManifest, err)
	}
	return parsed{mediaType: t, manifest: m}, checkManifest(m)
}

// isArtifact reports whether d says that it is something else than an image: a
// referrer in the index of a layout, most often.
func isArtifact(d ocispec.Descriptor) bool {
	return d.ArtifactType != "" && !slices.Contains(configTypes, d.ArtifactType)
}

func isIndex(t string) bool    { return t == ocispec.MediaTypeImageIndex || t == dockerList }
func isManifest(t string) bool { return t == ocispec.MediaTypeImageManifest || t == dockerManifest }

// documentType is the type on which the document and its descriptor agree.
func documentType(own, said string) (string, error) {
	switch {
	case own == "" && said == "":
		return "", fmt.Errorf("%w: no media type", ErrBadManifest)
	case own == "":
		own = said
	case said != "" && own != said:
		return "", fmt.Errorf("%w: media type is %q, said to be %q", ErrBadManifest, clip(own), clip(said))
	}
	if !slices.Contains(manifestTypes, own) {
		return "", fmt.Errorf("%w: media type %q is no image", ErrUnsupported, clip(own))
	}
	return own, nil
}

// members tells which of names the JSON object raw has.
func members(raw []byte, names ...string) (map[string]bool, error) {
	bad := func(why any) error { return fmt.Errorf("%w: not a JSON object: %v", ErrBadManifest, why) }
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, bad(clip(fmt.Sprint(t)))
	}
	has := make(map[string]bool)
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, bad(err)
		}
		key, _ := t.(string)
		for _, n := range names {
			if !strings.EqualFold(key, n) {
				continue
			}
			if key != n || has[n] {
				return nil, fmt.Errorf("%w: member %q is ambiguous", ErrBadManifest, clip(key))
			}
			has[n] = true
		}
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return nil, bad(err)
		}
	}
	return has, nil
}

func checkIndex(ix *ocispec.Index) error {
	for i, d := range ix.Manifests {
		if d.Digest.Validate() != nil {
			return badDigest(fmt.Sprintf("entry %d of the index", i), d.Digest)
		}
		if d.Size < 0 {
			return fmt.Errorf("%w: entry %d of the index has size %d", ErrBadManifest, i, d.Size)
		}
	}
	return nil
}

func checkManifest(m *ocispec.Manifest) error {
	c := m.Config
	if !slices.Contains(configTypes, c.MediaType) {
		return fmt.Errorf("%w: config media type %q is no image's", ErrUnsupported, clip(c.MediaType))
	}
	if c.Digest.Validate() != nil {
		return badDigest("the config", c.Digest)
	}
	if c.Size < 0 || c.Size > layers.MaxManifest {
		return fmt.Errorf("%w: config of %d bytes: %w", ErrBadManifest, c.Size, layers.ErrTooLarge)
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("%w: %d layers: %w", ErrBadManifest, len(m.Layers), layers.ErrTooLarge)
	}
	for i, d := range m.Layers {
		if !slices.Contains(layerTypes, d.MediaType) {
			return fmt.Errorf("%w: layer %d has media type %q", ErrUnsupported, i, clip(d.MediaType))
		}
		if d.Digest.Validate() != nil {
			return badDigest(fmt.Sprintf("layer %d", i), d.Digest)
		}
		if err := checkBlobDesc(d); err != nil {
			return err
		}
	}
	return nil
}

// parseConfig decodes the config of an image with n layers.
func parseConfig(raw []byte, n int) (ocispec.Image, error) {
	var img ocispec.Image
	if err := json.Unmarshal(raw, &img); err != nil {
		return img, fmt.Errorf("%w: config: %w", ErrBadManifest, err)
	}
	if img.RootFS.Type != "layers" {
		return img, fmt.Errorf("%w: config: rootfs type is %q", ErrBadManifest, clip(img.RootFS.Type))
	}
	if len(img.RootFS.DiffIDs) != n {
		return img, fmt.Errorf("%w: config has %d diff IDs for %d layers", ErrBadManifest, len(img.RootFS.DiffIDs), n)
	}
	for i, d := range img.RootFS.DiffIDs {
		if d.Validate() != nil {
			return img, badDigest(fmt.Sprintf("config: diff ID %d", i), d)
		}
	}
	return img, nil
}

// encode makes a document of a manifest or index.
func encode(v any, mediaType string) (document, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return document{}, err
	}
	return document{desc: describe(mediaType, raw), raw: raw}, nil
}

func versioned() specs.Versioned { return specs.Versioned{SchemaVersion: 2} }

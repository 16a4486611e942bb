package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// containerdName is where containerd and BuildKit put an image's whole name in
// a layout; org.opencontainers.image.ref.name is then only the tag.
const containerdName = "io.containerd.image.name"

// layout is an image in an OCI image layout (image-spec, image-layout.md).
type layout struct {
	ref   Ref
	files files
}

var _ source = (*layout)(nil)

// root is the document that the tag names. Where several entries of index.json
// have it, or nobody asked for a tag, it is an index of them.
func (s *layout) root(ctx context.Context) (document, error) {
	ix, raw, err := s.index(ctx)
	if err != nil {
		return document{}, err
	}
	found, err := s.named(ix)
	if err != nil {
		return document{}, err
	}
	if len(found) == 1 {
		raw, err := s.document(ctx, found[0])
		return document{desc: found[0], raw: raw}, err
	}
	if len(found) == len(ix.Manifests) {
		return document{desc: describe(ocispec.MediaTypeImageIndex, raw), raw: raw}, nil
	}
	return encode(ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: found}, ocispec.MediaTypeImageIndex)
}

// index reads oci-layout and index.json.
func (s *layout) index(ctx context.Context) (*ocispec.Index, []byte, error) {
	raw, err := readMember(ctx, s.files, ocispec.ImageLayoutFile)
	if err != nil {
		return nil, nil, fmt.Errorf("not an OCI layout: %w", err)
	}
	return readIndex(ctx, s.files, raw)
}

func readIndex(ctx context.Context, fs files, head []byte) (*ocispec.Index, []byte, error) {
	var l ocispec.ImageLayout
	if err := json.Unmarshal(head, &l); err != nil {
		return nil, nil, fmt.Errorf("%w: %s: %w", ErrBadManifest, ocispec.ImageLayoutFile, err)
	}
	if !strings.HasPrefix(l.Version, "1.") {
		return nil, nil, fmt.Errorf("%w: layout version %q", ErrUnsupported, clip(l.Version))
	}
	raw, err := readMember(ctx, fs, ocispec.ImageIndexFile)
	if err != nil {
		return nil, nil, err
	}
	ix, err := parseLayoutIndex(raw)
	return ix, raw, err
}

// parseLayoutIndex decodes index.json.
func parseLayoutIndex(raw []byte) (*ocispec.Index, error) {
	p, err := parseDocument(raw, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ocispec.ImageIndexFile, err)
	}
	return p.index, nil
}

// named returns the entries that the reference names.
func (s *layout) named(ix *ocispec.Index) ([]ocispec.Descriptor, error) {
	if s.ref.Digest != "" {
		for _, d := range ix.Manifests {
			if d.Digest == s.ref.Digest {
				return []ocispec.Descriptor{d}, nil
			}
		}
		return []ocispec.Descriptor{{Digest: s.ref.Digest}}, nil // perhaps below a nested index
	}
	var found []ocispec.Descriptor
	var names []string
	for _, d := range ix.Manifests {
		if isArtifact(d) || isReferrersTag(nameOf(d)) {
			continue // attached to an image of the layout; see [Registry.Referrers]
		}
		if s.ref.Tag == "" || hasName(d, s.ref.Tag) {
			found = append(found, d)
		}
		names = append(names, nameOf(d))
	}
	slices.Sort(names)
	names = slices.Compact(names)
	shown := clip(strings.Join(names, ", "))
	switch {
	case len(names) == 0:
		return nil, fmt.Errorf("%w: the layout is empty", ErrNotFound)
	case s.ref.Tag == "" && len(names) > 1:
		return nil, fmt.Errorf("%w: say which image: %s", ErrBadRef, shown)
	case len(found) == 0:
		return nil, fmt.Errorf("%w: no image %q, only: %s", ErrNotFound, s.ref.Tag, shown)
	}
	return found, nil
}

func nameOf(d ocispec.Descriptor) string {
	if n := d.Annotations[ocispec.AnnotationRefName]; n != "" {
		return n
	}
	return d.Annotations[containerdName]
}

// hasName reports whether an entry is called name, in full or by its tag.
func hasName(d ocispec.Descriptor, name string) bool {
	full := d.Annotations[containerdName]
	if d.Annotations[ocispec.AnnotationRefName] == name || full == name {
		return true
	}
	if full == "" {
		return false
	}
	a, err := ParseRef(full)
	b, err2 := ParseRef(name)
	return err == nil && err2 == nil && a == b
}

// blobPath is where a layout keeps a blob. The digest must have been validated:
// it then holds no slash.
func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

func (s *layout) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	return s.small(ctx, desc)
}

func (s *layout) small(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	raw, err := readMember(ctx, s.files, blobPath(desc.Digest))
	if err != nil {
		return nil, err
	}
	return raw, verify(raw, desc, "blob")
}

func (s *layout) fileBlob(desc ocispec.Descriptor) *fileBlob {
	return &fileBlob{desc: desc, open: func(ctx context.Context) (file, error) {
		return s.files.open(ctx, blobPath(desc.Digest))
	}}
}

func (s *layout) blob(desc ocispec.Descriptor) layers.Blob { return s.fileBlob(desc) }

func (s *layout) stream(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return s.fileBlob(desc).stream(ctx)
}

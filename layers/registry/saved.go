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

// saved is an image in an archive of "docker save". It has no manifest; we make
// the OCI manifest that says the same, with the digests of the layers as they
// are stored. Made again, it has the same bytes.
type saved struct {
	reg *Registry
	ref Ref
}

var _ source = (*saved)(nil)

// savedImage is one element of manifest.json.
type savedImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// A layerInfo is what is learnt of a layer by looking at it.
type layerInfo struct {
	desc   ocispec.Descriptor
	diffID digest.Digest // if it was taken for the digest
}

func (s *saved) files() archiveFiles { return archiveFiles{s.reg, s.ref.Path} }

// parseSaved decodes manifest.json.
func parseSaved(raw []byte) ([]savedImage, error) {
	var list []savedImage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", ErrBadManifest, err)
	}
	for i, m := range list {
		if m.Config == "" {
			return nil, fmt.Errorf("%w: manifest.json: image %d has no config", ErrBadManifest, i)
		}
		if len(m.Layers) > maxLayers {
			return nil, fmt.Errorf("%w: manifest.json: %d layers: %w", ErrBadManifest, len(m.Layers), layers.ErrTooLarge)
		}
	}
	return list, nil
}

// pick returns the image called tag, or the only one.
func pick(list []savedImage, tag string) (savedImage, error) {
	var names []string
	want, wantErr := ParseRef(tag)
	for _, m := range list {
		names = append(names, m.RepoTags...)
		for _, t := range m.RepoTags {
			have, err := ParseRef(t)
			if tag != "" && (t == tag || err == nil && wantErr == nil && have == want) {
				return m, nil
			}
		}
	}
	switch {
	case len(list) == 0:
		return savedImage{}, fmt.Errorf("%w: the archive is empty", ErrNotFound)
	case tag != "":
		return savedImage{}, fmt.Errorf("%w: no image %q, only: %s", ErrNotFound, tag, clip(strings.Join(names, ", ")))
	case len(list) > 1:
		return savedImage{}, fmt.Errorf("%w: say which image: %s", ErrBadRef, clip(strings.Join(names, ", ")))
	}
	return list[0], nil
}

// build makes the manifest, and tells which member holds which digest.
func (s *saved) build(ctx context.Context) (document, map[digest.Digest]string, error) {
	raw, err := readMember(ctx, s.files(), "manifest.json")
	if err != nil {
		return document{}, nil, fmt.Errorf("not a docker archive: %w", err)
	}
	list, err := parseSaved(raw)
	if err != nil {
		return document{}, nil, err
	}
	img, err := pick(list, s.ref.Tag)
	if err != nil {
		return document{}, nil, err
	}
	text, err := readMember(ctx, s.files(), img.Config)
	if err != nil {
		return document{}, nil, err
	}
	config, err := parseConfig(text, len(img.Layers))
	if err != nil {
		return document{}, nil, err
	}
	m := ocispec.Manifest{
		Versioned: versioned(),
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    describe(ocispec.MediaTypeImageConfig, text),
		Layers:    []ocispec.Descriptor{},
	}
	where := map[digest.Digest]string{m.Config.Digest: img.Config}
	for i, name := range img.Layers {
		d, err := s.layer(ctx, name, config.RootFS.DiffIDs[i])
		if err != nil {
			return document{}, nil, fmt.Errorf("layer %s: %w", clip(name), err)
		}
		m.Layers = append(m.Layers, d)
		where[d.Digest] = name
	}
	doc, err := encode(m, ocispec.MediaTypeImageManifest)
	if err == nil && s.ref.Digest != "" && doc.desc.Digest != s.ref.Digest {
		err = fmt.Errorf("%w: the image is now %s", ErrNotFound, doc.desc.Digest)
	}
	return doc, where, err
}

// layer describes a layer as it is stored. A plain one need not be hashed to
// know its digest: that is its diff ID, and whoever unpacks it checks both. A
// compressed one is read once.
func (s *saved) layer(ctx context.Context, name string, diffID digest.Digest) (ocispec.Descriptor, error) {
	a, err := s.reg.archive(ctx, s.ref.Path)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer a.release()
	if v, ok := a.layers.Load(name); ok {
		if info := v.(layerInfo); info.diffID == "" || info.diffID == diffID {
			return info.desc, nil
		}
	}
	m, err := a.member(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	r := io.NewSectionReader(a.f, m.off, m.size)
	var magic [4]byte
	if _, err := r.ReadAt(magic[:], 0); err != nil && err != io.EOF {
		return ocispec.Descriptor{}, err
	}
	info := layerInfo{desc: ocispec.Descriptor{Size: m.size}}
	switch magic {
	case [4]byte{0x28, 0xb5, 0x2f, 0xfd}:
		info.desc.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		info.desc.MediaType = ocispec.MediaTypeImageLayer
		if slices.Equal(magic[:2], []byte{0x1f, 0x8b}) {
			info.desc.MediaType = ocispec.MediaTypeImageLayerGzip
		}
	}
	if info.desc.MediaType == ocispec.MediaTypeImageLayer {
		info.diffID, info.desc.Digest = diffID, diffID
	} else if info.desc.Digest, err = digest.FromReader(&ctxReader{ctx, r}); err != nil {
		return ocispec.Descriptor{}, err
	}
	a.layers.Store(name, info)
	return info.desc, nil
}

func (s *saved) root(ctx context.Context) (document, error) {
	doc, _, err := s.build(ctx)
	return doc, err
}

func (s *saved) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	doc, err := s.root(ctx)
	if err != nil {
		return nil, err
	}
	return doc.raw, verify(doc.raw, desc, "manifest")
}

func (s *saved) open(ctx context.Context, desc ocispec.Descriptor) (file, error) {
	_, where, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	name, ok := where[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("%s: %w", s.ref, ErrNotFound)
	}
	return s.files().open(ctx, name)
}

func (s *saved) small(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	_, where, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	raw, err := readMember(ctx, s.files(), where[desc.Digest])
	if err != nil {
		return nil, err
	}
	return raw, verify(raw, desc, "config")
}

func (s *saved) fileBlob(desc ocispec.Descriptor) *fileBlob {
	return &fileBlob{desc: desc, open: func(ctx context.Context) (file, error) { return s.open(ctx, desc) }}
}

func (s *saved) blob(desc ocispec.Descriptor) layers.Blob { return s.fileBlob(desc) }

func (s *saved) stream(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return s.fileBlob(desc).stream(ctx)
}

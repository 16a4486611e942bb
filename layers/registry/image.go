package registry

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// An Image is the verified documents of one image for one platform.
type Image struct {
	Ref  Ref
	Root ocispec.Descriptor // what Ref names: an index, or the manifest itself
	Desc ocispec.Descriptor // of the manifest

	Manifest    ocispec.Manifest
	Config      ocispec.Image
	RawManifest []byte
	RawConfig   []byte

	reg *Registry
}

// Platform is the platform of the image as its config has it: "linux/amd64".
func (m *Image) Platform() string { return platforms.Format(platforms.Normalize(m.Config.Platform)) }

// Blob returns random access to a layer of the image; see [Registry.Blob].
func (m *Image) Blob(_ context.Context, desc ocispec.Descriptor) (layers.Blob, error) {
	return m.reg.Blob(m.Ref, desc)
}

// Stream reads a layer of the image from its first byte; see [Registry.Stream].
func (m *Image) Stream(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return m.reg.Stream(ctx, m.Ref, desc)
}

const (
	maxDepth     = 3  // indexes within indexes
	maxDocuments = 32 // manifests and indexes looked at for one image
	maxHave      = 16 // platforms named in an error
)

// parsePlatform reads a platform; "" is the machine's.
func parsePlatform(s string) (ocispec.Platform, error) {
	if s == "" {
		return platforms.DefaultSpec(), nil
	}
	p, err := platforms.Parse(s)
	if err != nil {
		return p, fmt.Errorf("%w: platform %q", ErrBadRef, clip(s))
	}
	return platforms.Normalize(p), nil
}

func (r *Registry) resolve(ctx context.Context, ref Ref, want ocispec.Platform, opt ResolveOptions) (*Image, error) {
	src, err := r.source(ref)
	if err != nil {
		return nil, err
	}
	root, err := src.root(ctx)
	if err != nil {
		return nil, err
	}
	f := &finder{src: src, want: want, match: platforms.Only(want), budget: maxDocuments, opt: opt}
	img, err := f.find(ctx, root, !opt.Exact, 0)
	if err != nil {
		return nil, err
	}
	img.Ref, img.Root, img.reg = ref, root.desc, r
	return img, nil
}

// A finder looks for the image of a platform below a document.
type finder struct {
	src    source
	want   ocispec.Platform
	match  platforms.MatchComparer
	budget int
	opt    ResolveOptions
}

// found says that desc is probably the image's manifest.
func (f *finder) found(desc ocispec.Descriptor) {
	if f.opt.OnManifest != nil {
		f.opt.OnManifest(desc)
	}
}

// find returns the image in doc. check says that nothing has vouched for its
// platform yet but its own config.
func (f *finder) find(ctx context.Context, doc document, check bool, depth int) (*Image, error) {
	p, err := parseDocument(doc.raw, doc.desc.MediaType)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", doc.desc.Digest, err)
	}
	if p.index != nil {
		if depth > maxDepth {
			return nil, fmt.Errorf("%w: indexes nested more than %d deep", ErrBadManifest, maxDepth)
		}
		return f.choose(ctx, p.index, depth)
	}
	doc.desc.Size = int64(len(doc.raw)) // a reference by digest does not tell
	doc.desc.MediaType = p.mediaType
	if depth == 0 {
		f.found(doc.desc)
	}
	if f.opt.OnFetched != nil {
		f.opt.OnFetched(p.manifest)
	}
	src := f.src
	if s, ok := src.(*remote); ok && f.opt.Locate {
		src = s.locating(p.manifest.Layers)
	}
	config, err := src.small(ctx, p.manifest.Config)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	img := &Image{Desc: doc.desc, Manifest: *p.manifest, RawManifest: doc.raw, RawConfig: config}
	img.Config, err = parseConfig(config, len(p.manifest.Layers))
	if err != nil {
		return nil, err
	}
	if check && img.Config.Architecture != "" && !f.match.Match(img.Config.Platform) {
		return nil, &PlatformError{Want: platforms.Format(f.want), Have: []string{img.Platform()}}
	}
	return img, nil
}

// choose tries the entries of an index: those said to be for the platform, best
// first, then nested indexes, then manifests that say nothing.
func (f *finder) choose(ctx context.Context, ix *ocispec.Index, depth int) (*Image, error) {
	missing := &PlatformError{Want: platforms.Format(f.want)}
	for _, d := range f.candidates(ix, missing) {
		if f.budget--; f.budget < 0 {
			return nil, fmt.Errorf("%w: more than %d documents: %w", ErrBadManifest, maxDocuments, layers.ErrTooLarge)
		}
		if isManifest(d.MediaType) {
			f.found(d)
		}
		raw, err := f.src.document(ctx, d)
		if err != nil {
			return nil, err
		}
		img, err := f.find(ctx, document{desc: d, raw: raw}, d.Platform == nil, depth+1)
		if pe, ok := errors.AsType[*PlatformError](err); ok {
			missing.Have = append(missing.Have, pe.Have...)
			continue
		}
		return img, err
	}
	slices.Sort(missing.Have)
	missing.Have = slices.Compact(missing.Have)
	if n := len(missing.Have); n > maxHave {
		missing.Have = append(missing.Have[:maxHave], fmt.Sprintf("%d more", n-maxHave))
	}
	return nil, missing
}

// candidates are the entries worth looking at, in order. The platforms of the
// others are added to missing.
func (f *finder) candidates(ix *ocispec.Index, missing *PlatformError) []ocispec.Descriptor {
	var exact, nested, mute []ocispec.Descriptor
	for _, d := range ix.Manifests {
		switch {
		case d.Annotations["vnd.docker.reference.type"] != "": // BuildKit's attestations
		case isArtifact(d):
		case d.Platform != nil && !f.match.Match(*d.Platform):
			missing.Have = append(missing.Have, clip(platforms.Format(platforms.Normalize(*d.Platform))))
		case isIndex(d.MediaType):
			nested = append(nested, d)
		case !isManifest(d.MediaType):
		case d.Platform != nil:
			exact = append(exact, d)
		default:
			mute = append(mute, d)
		}
	}
	slices.SortStableFunc(exact, func(a, b ocispec.Descriptor) int {
		if f.match.Less(*a.Platform, *b.Platform) {
			return -1
		}
		return cmp.Compare(b2i(f.match.Less(*b.Platform, *a.Platform)), 0)
	})
	return slices.Concat(exact, nested, mute)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func describe(mediaType string, raw []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
}

// verify checks that raw is what desc describes. A Size of 0 is not checked:
// a reference by digest knows none.
func verify(raw []byte, desc ocispec.Descriptor, from string) error {
	if desc.Size != 0 && int64(len(raw)) != desc.Size {
		return &SizeError{From: from, Want: desc.Size, Got: int64(len(raw))}
	}
	if got := desc.Digest.Algorithm().FromBytes(raw); got != desc.Digest {
		return &layers.DigestError{Want: desc.Digest, Got: got, From: from}
	}
	return nil
}

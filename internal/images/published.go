package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/index"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/trust"
)

// Indexes says which published indexes are believed, and how ours are published.
// With the zero value none are looked for.
type Indexes struct {
	Any     bool              // believe any that is published
	Keys    []trust.PublicKey // believe those signed by one of them
	Publish bool              // push the index of an image that was pulled whole, and again when its first start was recorded
	Sign    *trust.PrivateKey // sign what is published; nil: unsigned
}

func (x *Indexes) look() bool { return x.Any || len(x.Keys) > 0 }

// A published index is one that was found beside an image.
type published struct {
	desc     ocispec.Descriptor // of the artifact manifest
	ann      index.Annotations
	signer   string // ID of the key; "" if unsigned says why there is none
	unsigned error
	why      error // not nil: why it is not believed
}

// created is when the artifact says that it was made.
func (p *published) created() time.Time {
	t, err := time.Parse(time.RFC3339, p.desc.Annotations[ocispec.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t
}

// find lists the indexes that were published for a manifest: those that are
// believed first, and of them the newest.
// keys are those that signatures are looked for by.
func (s *Service) find(ctx context.Context, ref registry.Ref, manifest digest.Digest, keys []trust.PublicKey) ([]*published, error) {
	list, err := s.Registry.Referrers(ctx, ref, manifest, index.ArtifactType)
	if err != nil {
		return nil, err
	}
	var all []*published
	for _, d := range list {
		p := &published{desc: d}
		if p.ann, p.why = index.DecodeAnnotations(d.Annotations); p.why == nil {
			p.signer, p.unsigned = signer(manifest, p.ann, keys)
			p.why = s.believe(p)
		}
		all = append(all, p)
	}
	slices.SortStableFunc(all, func(a, b *published) int {
		return cmp.Or(cmp.Compare(b2i(a.why != nil), b2i(b.why != nil)), b.created().Compare(a.created()))
	})
	return all, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// signer says which of keys vouches for the index that a describes, and an error why none does.
func signer(manifest digest.Digest, a index.Annotations, keys []trust.PublicKey) (string, error) {
	st, id, err := trust.Verify(a.Envelope, keys)
	if err == nil {
		err = st.Check(manifest, a)
	}
	if err != nil {
		return "", err
	}
	return id, nil
}

// errNobody says that the configuration believes no published index.
var errNobody = errors.New("this node believes no published index: index.trust and index.keys say which")

// believe says why an index is not used.
func (s *Service) believe(p *published) error {
	if !s.Indexes.look() {
		return errNobody
	}
	var q Quarantine
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "distrusted", p.ann.Root.String(), &q) }) == nil {
		return fmt.Errorf("it has lied: %s", &q)
	}
	if s.Indexes.Any {
		return nil
	}
	return p.unsigned
}

// A source is a published index in use: its header and first bytes are here,
// its boot bundle is coming.
type source struct {
	published
	ref    registry.Ref
	header *index.Header
	prefix []byte
	bundle *ahead // nil if there is none
}

// close gives up what was asked for and is not needed.
func (src *source) close() {
	if src != nil && src.bundle != nil {
		src.bundle.Close()
	}
}

// look finds the index to use for an image, and fetches what is needed of it
// before a container can run. It is nil without an error if there is none.
func (s *Service) look(ctx context.Context, ref registry.Ref, manifest digest.Digest) (*source, error) {
	if !s.Indexes.look() || s.isLocal(manifest) {
		return nil, nil
	}
	all, err := s.find(ctx, ref, manifest, s.Indexes.Keys)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range all {
		if p.why != nil {
			errs = append(errs, fmt.Errorf("index %s: %w", short(p.desc.Digest), p.why))
			continue
		}
		src := &source{published: *p, ref: ref}
		s.askBundle(src)
		if err := s.fetchPrefix(ctx, src); err != nil {
			src.close()
			errs = append(errs, fmt.Errorf("index %s: %w", short(p.desc.Digest), err))
			continue
		}
		return src, nil
	}
	return nil, errors.Join(errs...)
}

// A connection that is new carries little in its first round trips, so the
// prefix comes over several at once.
const (
	prefixParts = 3
	minPart     = 48 << 10 // bytes
)

// isLocal says whether an image is known already, and all of it local.
func (s *Service) isLocal(manifest digest.Digest) bool {
	var m manifestRow
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(manifest), &m) }) != nil || m.Quarantine != nil {
		return false
	}
	return s.usable(&m) && len(s.incomplete(m.Layers)) == 0
}

func (s *Service) fetchPrefix(ctx context.Context, src *source) error {
	blob, err := s.Registry.Blob(src.ref, blobDesc(index.MediaTypeIndex, src.ann.Index))
	if err != nil {
		return err
	}
	src.prefix = make([]byte, src.ann.Prefix)
	part := max(minPart, (len(src.prefix)+prefixParts-1)/prefixParts)
	g, ctx := errgroup.WithContext(ctx)
	for off := 0; off < len(src.prefix); off += part {
		g.Go(func() error {
			p := src.prefix[off:min(off+part, len(src.prefix))]
			if n, err := blob.ReadAt(ctx, p, int64(off)); n < len(p) {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	src.header, err = index.ParseHeader(src.prefix, src.ann.Root)
	return err
}

// askBundle asks for the boot bundle now: the answer takes a round trip, and
// the link is idle while the metadata image is made.
func (s *Service) askBundle(src *source) {
	if src.ann.Bundle.Size == 0 {
		return
	}
	desc := blobDesc(index.MediaTypeBundle, src.ann.Bundle)
	src.bundle = readAhead(s.base, maxAhead, func(ctx context.Context) (io.ReadCloser, error) {
		return s.Registry.Stream(ctx, src.ref, desc)
	})
}

// fits is an error if the index is not of the image after all.
func (src *source) fits(img *registry.Image) error {
	return src.header.Check(img.Desc.Digest, img.Manifest.Layers, img.Config.RootFS.DiffIDs)
}

func blobDesc(mediaType string, b index.Blob) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: b.Digest, Size: b.Size}
}

// windows fetches windows of a layer out of the index blob that its map came with.
func (s *Service) windows(ref registry.Ref, from index.Blob) (index.Source, error) {
	blob, err := s.Registry.Blob(ref, blobDesc(index.MediaTypeIndex, from))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, off, n int64) ([]byte, error) {
		p := make([]byte, n)
		if m, err := blob.ReadAt(ctx, p, off); int64(m) < n {
			return nil, errors.Join(err, io.ErrUnexpectedEOF)
		}
		return p, nil
	}, nil
}

// take makes layer i known by the index. Without an error the index has it.
func (s *Service) take(src *source, i int, key string, row *layerRow) (*layers.Index, error) {
	l, err := src.header.Layer(src.prefix, i)
	if err != nil {
		return nil, err
	}
	if !l.Mapped() {
		return nil, fmt.Errorf("%w: %s", errNotIndexed, l.Reason)
	}
	if err := index.WriteMap(s.mapPath(key), l, src.ann.Index); err != nil {
		return nil, err
	}
	row.Format, row.Origin, row.Mapped = tarFormat(l.Map.Compression), OriginPublished, true
	row.Root, row.Signer = src.ann.Root.String(), src.signer
	return l.Index, nil
}

// errNotIndexed says that a published index leaves a layer out.
var errNotIndexed = errors.New("the published index leaves it out")

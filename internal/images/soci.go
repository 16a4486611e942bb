package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
)

// A layer that a SOCI index makes readable has three files under its key, which
// names the ztoc too: the index, in which files have aliases for sums; the ztoc;
// and .spans, the index of what is fetched. The last goes when the layer was
// settled: when all of it was here, was proven to be what the ztoc says, and got
// an index with real sums under the key of any layer that this node unpacked.

// A sociIndex is an index manifest of SOCI in use.
type sociIndex struct {
	digest digest.Digest
	*soci.Index
}

// ztoc returns what makes a layer readable: nothing, if it has a table of contents
// of its own.
func (x *sociIndex) ztoc(desc ocispec.Descriptor) (ocispec.Descriptor, bool) {
	if x == nil || lazy.Format(desc) != lazy.Tar {
		return ocispec.Descriptor{}, false
	}
	return x.ZTOC(desc.Digest)
}

// sociKey names what a ztoc says of a layer.
func sociKey(desc ocispec.Descriptor, ztoc digest.Digest) string {
	return desc.Digest.Encoded() + sociMark + ztoc.Encoded()[:32]
}

const sociMark = "-soci-"

// ownKey names what this node has found out about a layer by unpacking it.
func ownKey(desc ocispec.Descriptor) string { return desc.Digest.Encoded() }

func (s *Service) ztocPath(key string) string { return s.layerPath(key, ".ztoc") }

func (s *Service) spansPath(key string) string { return s.layerPath(key, ".spans") }

// lookSOCI finds the SOCI index of an image, whose manifest comes in meanwhile.
// One that the manifest is bound to is as good as the manifest; anybody who may
// push can add the other kind, so that is for nodes which believe anybody. It is
// nil without an error if there is none, or no layer would need it.
func (s *Service) lookSOCI(ctx context.Context, ref registry.Ref, l *lookup) (*sociIndex, error) {
	ctx, cancel := context.WithCancel(ctx)
	var list []ocispec.Descriptor
	var listErr error
	var g errgroup.Group
	defer g.Wait() // its error is listErr
	defer cancel()
	if s.Indexes.Any {
		g.Go(func() error {
			list, listErr = s.Registry.Referrers(ctx, ref, l.manifest, soci.TypeV1)
			return nil
		})
	}
	var m *ocispec.Manifest
	select {
	case m = <-l.fetched:
	case <-ctx.Done():
	}
	if m == nil || !slices.ContainsFunc(m.Layers, s.wantsZTOC) {
		return nil, nil
	}
	var errs []error
	if d, ok := soci.Bound(m.Annotations); ok {
		x, err := s.fetchSOCI(ctx, ref, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d})
		if err == nil && x.Version != 2 {
			err = fmt.Errorf("soci index %s: %w: it is bound to the image, and of version %d", d, soci.ErrBadIndex, x.Version)
		}
		if err == nil {
			return x, nil
		}
		errs = append(errs, err)
	}
	g.Wait()
	errs = append(errs, listErr)
	found := soci.Referrers(list)
	for _, d := range found[:min(len(found), maxSOCI)] {
		x, err := s.fetchSOCI(ctx, ref, d)
		if err == nil && (x.Version != 1 || x.Subject != l.manifest) {
			err = fmt.Errorf("soci index %s: %w: it is of %s", d.Digest, soci.ErrBadIndex, x.Subject)
		}
		if err == nil {
			return x, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// maxSOCI is how many SOCI indexes of an image are tried.
const maxSOCI = 4

// wantsZTOC says whether a layer would have to be pulled whole without one.
func (s *Service) wantsZTOC(desc ocispec.Descriptor) bool {
	return lazy.Format(desc) == lazy.Tar && !s.knownLayer(ownKey(desc))
}

func (s *Service) fetchSOCI(ctx context.Context, ref registry.Ref, d ocispec.Descriptor) (*sociIndex, error) {
	if err := s.distrusts(d.Digest); err != nil {
		return nil, fmt.Errorf("soci index %s: %w", d.Digest, err)
	}
	raw, err := s.Registry.Document(ctx, ref, ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size})
	if err != nil {
		return nil, err
	}
	x, err := soci.ParseIndex(raw, d.Digest)
	return &sociIndex{d.Digest, x}, err
}

// distrusts says why an index manifest or ztoc is not used.
func (s *Service) distrusts(d digest.Digest) error {
	var q Quarantine
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "distrusted", string(d), &q) }) == nil {
		return fmt.Errorf("it has lied: %s", &q)
	}
	return nil
}

// maxZTOCs bounds the bytes of ztocs that are in memory while they are read; a
// larger one is there alone. A layer of 10 GB has one of 80 MB.
const maxZTOCs = 128 << 20

// takeSOCI makes a layer known by its ztoc. Without an error it can be read.
func (s *Service) takeSOCI(ctx context.Context, img *registry.Image, x *sociIndex, ztoc ocispec.Descriptor, key string, row *layerRow, progress func(control.Progress)) (*soci.Layer, error) {
	if err := s.distrusts(ztoc.Digest); err != nil {
		return nil, fmt.Errorf("ztoc %s: %w", ztoc.Digest, err)
	}
	progress(control.Progress{ID: short(row.Desc.Digest), Action: "indexing", Size: row.Desc.Size})
	room := min(ztoc.Size, maxZTOCs)
	if err := s.ztocs.Acquire(ctx, room); err != nil {
		return nil, err
	}
	defer s.ztocs.Release(room)
	raw, err := fetchZTOC(ctx, img, row.Desc, ztoc)
	if err != nil {
		return nil, err
	}
	l, err := soci.Open(raw, ztoc.Digest, row.Desc)
	if err != nil {
		return nil, err
	}
	if err := keepFile(s.ztocPath(key), raw); err != nil {
		return nil, err
	}
	if err := indexfile.Write(s.spansPath(key), l.Spans); err != nil { // makes the ztoc's name durable, too
		return nil, err
	}
	row.Format, row.Origin = tarFormat(l.Map.Compression), OriginSOCI
	row.Root, row.ZTOC = string(x.digest), ztoc.Digest
	progress(control.Progress{ID: short(row.Desc.Digest), Action: "indexing", Size: row.Desc.Size, Done: true})
	return l, nil
}

// fetchZTOC also finds out whether the layer can be read piecewise from where it
// is: there are registries that send only whole blobs. What it reads is nothing,
// and comes with the ztoc.
func fetchZTOC(ctx context.Context, img *registry.Image, desc, ztoc ocispec.Descriptor) ([]byte, error) {
	raw := make([]byte, ztoc.Size)
	g, ctx := errgroup.WithContext(ctx)
	for _, r := range []struct {
		desc ocispec.Descriptor
		p    []byte
		off  int64
	}{{ztoc, raw, 0}, {desc, make([]byte, 1), max(desc.Size-1, 0)}} {
		g.Go(func() error {
			blob, err := img.Blob(ctx, r.desc)
			if err != nil {
				return err
			}
			if n, err := blob.ReadAt(ctx, r.p, r.off); n < len(r.p) {
				return errors.Join(err, io.ErrUnexpectedEOF)
			}
			return nil
		})
	}
	return raw, g.Wait()
}

// keepFile keeps p at path, whole or not at all. It is durable when its directory is.
func keepFile(path string, p []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".keep-")
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}

// openSOCI opens the files of a layer beside its index. z is its ztoc if that was
// just read.
func (s *Service) openSOCI(h *held, key string, l *layerRow, z *soci.Layer) (err error) {
	if h.ztoc, err = os.Open(s.ztocPath(key)); err != nil {
		return err
	}
	if z == nil {
		raw, err := io.ReadAll(h.ztoc)
		if err != nil {
			return err
		}
		if z, err = soci.Open(raw, l.ZTOC, l.Desc); err != nil {
			return err
		}
	}
	claimed := z.Index
	z.ReadWindows(h.ztoc)
	if !l.Settled {
		if h.spans, err = indexfile.Open(s.spansPath(key)); err != nil {
			return err
		}
		s.Files.Add(key, z)
		return nil
	}
	os.Remove(s.spansPath(key)) // it may have been there a moment too long
	real, err := s.index(ownKey(l.Desc), nil, 0)
	if err != nil {
		return err
	}
	s.Files.Add(key, z)
	return s.Files.Settle(key, claimed, real)
}

// completeSOCI completes a layer by its spans. What the ztoc has promised is
// compared with what comes of all of the layer's bytes, which takes its place.
func (s *Service) completeSOCI(ctx context.Context, key string, row *layerRow, progress func(control.Progress)) error {
	defer s.Store.Hold()()
	own := ownKey(row.Desc)
	defer s.pinNames(own)()
	err := s.Fetcher.Complete(ctx, []string{key}, func(have, total int64) {
		progress(control.Progress{ID: short(row.Desc.Digest), Action: "pulling", Off: have, Size: total})
	})
	if err != nil {
		return err
	}
	claimed, err := s.index(key, nil, 0)
	if err != nil {
		return err
	}
	real, err := s.ingestAs(ctx, own, progress, func(ctx context.Context, _ func(control.Progress)) (*made, error) {
		return s.unpackSpans(ctx, key, row)
	})
	if err == nil && real == nil { // it was known
		real, err = s.index(own, nil, 0)
	}
	if err == nil {
		err = s.Files.Prove(ctx, key, claimed, real)
	}
	if err != nil {
		if errors.Is(err, soci.ErrLied) {
			s.Lied(key, layers.Sum{}, err)
		}
		return err
	}
	if err := s.Store.Barrier(ctx); err != nil {
		return err
	}
	// From here on nothing of the layer is lost with the spans.
	if err := s.db.Update(func(tx *bolt.Tx) error {
		return errors.Join(
			change(tx, "layers", own, func(l *layerRow) { l.Durable = true }),
			change(tx, "layers", key, func(l *layerRow) { l.Settled, l.Complete, l.Durable = true, true, true }))
	}); err != nil {
		return err
	}
	if err := s.Files.Settle(key, claimed, real); err != nil {
		return ignoreMissing(err) // it was removed meanwhile
	}
	return ignoreMissing(os.Remove(s.spansPath(key)))
}

// unpackSpans unpacks a layer whose spans are all here. The bytes before the first
// one are fetched, and nothing vouches for them: if the layer's digest is wrong it
// is tried again, before the ztoc is to blame.
func (s *Service) unpackSpans(ctx context.Context, key string, was *layerRow) (m *made, err error) {
	ref, err := registry.ParseRef(was.Source)
	if err != nil {
		return nil, err
	}
	blob, err := s.Registry.Blob(ref, was.Desc)
	if err != nil {
		return nil, err
	}
	row := &layerRow{Desc: was.Desc, DiffID: was.DiffID, Source: was.Source, Complete: true}
	for range 2 {
		r, err2 := s.Files.Stream(ctx, key, blob)
		if err2 != nil {
			return nil, err2
		}
		if m, err = s.unpackFrom(ctx, r, ownKey(row.Desc), row, nil); err == nil || ctx.Err() != nil || !wrong(err) {
			return m, err
		}
	}
	return nil, fmt.Errorf("%w: its spans are not those of the layer: %w", soci.ErrLied, err)
}

// wrong says whether an error is about the bytes of a layer.
func wrong(err error) bool {
	_, sum := errors.AsType[*layers.DigestError](err)
	return sum || errors.Is(err, layers.ErrBadLayer) || errors.Is(err, layers.ErrTooLarge)
}

// settle gives an image whose layers were all settled the layers that were made of
// them, and a metadata image with real sums. What mounts of before have stays as
// long as somebody may have one; see aliased. It returns the image as it is now.
func (s *Service) settle(ctx context.Context, k *Known, progress func(control.Progress)) (*Known, error) {
	keys, err := s.settledKeys(k.Layers)
	if err != nil || slices.Equal(keys, k.Layers) {
		return k, ignoreMissing(err) // it was removed meanwhile
	}
	tree := treeID(keys)
	defer s.pinNames(append(slices.Clone(keys), tree)...)()
	if _, err := s.tree(ctx, keys, nil, progress); err != nil {
		return k, err
	}
	now := *k
	err = s.db.Update(func(tx *bolt.Tx) error {
		var row manifestRow
		if err := get(tx, "manifests", string(k.Desc.Digest), &row); err != nil {
			return err
		}
		if slices.Equal(row.Layers, k.Layers) { // nobody has pulled it again
			was := row
			row.Layers, row.Tree = keys, tree
			row.keepAliased(&was)
			if err := put(tx, "manifests", string(k.Desc.Digest), &row); err != nil {
				return err
			}
		}
		now.manifestRow = row
		return nil
	})
	if err != nil {
		return k, ignoreMissing(err) // it was removed meanwhile
	}
	return &now, nil
}

// current is an image as it is now: its layers may have been settled since k was
// read. One that was removed is as it was.
func (s *Service) current(k *Known) *Known {
	now := *k
	var row manifestRow
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(k.Desc.Digest), &row) }) == nil {
		now.manifestRow = row
	}
	return &now
}

// settledKeys are layer keys with those of settled layers replaced.
func (s *Service) settledKeys(keys []string) ([]string, error) {
	keys = slices.Clone(keys)
	err := s.db.View(func(tx *bolt.Tx) error {
		for i, key := range keys {
			var l layerRow
			if err := get(tx, "layers", key, &l); err != nil {
				return err
			}
			if l.Settled {
				keys[i] = ownKey(l.Desc)
			}
		}
		return nil
	})
	return keys, err
}

// Failed hears of a read that failed. A span with the right digest that does not
// decode is found out only then.
func (s *Service) Failed(sum layers.Sum, err error) {
	if errors.Is(err, soci.ErrLied) {
		for _, key := range s.Aliases(sum) {
			s.Lied(key, sum, err)
		}
	}
}

// Aliases returns the keys of the layers in which a file has sum for an alias.
func (s *Service) Aliases(sum layers.Sum) (keys []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, h := range s.open {
		if h.ztoc == nil {
			continue
		}
		if _, ok := h.index.Lookup(sum); ok {
			keys = append(keys, key)
		}
	}
	return keys
}

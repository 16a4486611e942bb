package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/index"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// Pull policies, as Docker names them.
const (
	PullAlways  = "always"
	PullMissing = "missing"
	PullNever   = "never"
)

// Pull makes the image that a names known, under its reference, and returns
// it. It comes back as soon as the image can be used; with a.Wait, when all of
// it is local. progress may be nil.
func (s *Service) Pull(ctx context.Context, a control.PullArgs, progress func(control.Progress)) (*Known, error) {
	if progress == nil {
		progress = func(control.Progress) {}
	}
	switch k, err := s.already(a); {
	case err != nil:
		return nil, err
	case k != nil:
		return k, s.wait(ctx, a, k, progress)
	}
	ref, err := registry.ParseRef(a.Ref)
	if err != nil {
		return nil, err
	}
	key := ref.String() + " " + a.Platform
	row, err := s.pulls.do(ctx, s.base, key, progress, func(ctx context.Context, p func(control.Progress)) (*manifestRow, error) {
		return s.pull(ctx, ref, a.Platform, ref.String(), p)
	})
	if err != nil {
		return nil, err
	}
	k := &Known{Ref: ref.String(), manifestRow: *row, Pulled: time.Now()}
	return k, s.wait(ctx, a, k, progress)
}

// already is a known image that is what a asks for; nil if the registry has to be asked.
func (s *Service) already(a control.PullArgs) (*Known, error) {
	if a.Policy != PullMissing && a.Policy != PullNever {
		return nil, nil
	}
	k, err := s.Get(a.Ref)
	switch {
	case err == nil && platformFits(k, a.Platform) && (a.Policy == PullNever || s.usable(&k.manifestRow)):
		return k, nil
	case a.Policy == PullNever:
		return nil, notFound(a.Ref)
	}
	return nil, nil
}

// Peek is the image that Pull would return, if it can be started. Nothing is made known:
// where Pull asks the registry, only manifest and config are read from there. here says
// that its layers are known already.
func (s *Service) Peek(ctx context.Context, a control.PullArgs, progress func(control.Progress)) (k *Known, here bool, err error) {
	if k, err = s.already(a); err != nil {
		return nil, false, err
	}
	if k != nil {
		k = s.current(k)
		return k, s.usable(&k.manifestRow), k.startable()
	}
	ref, err := registry.ParseRef(a.Ref)
	if err != nil {
		return nil, false, err
	}
	progress(control.Progress{Action: "resolving"})
	img, err := s.Registry.ResolveWith(ctx, ref, registry.ResolveOptions{Platform: a.Platform})
	if err != nil {
		return nil, false, err
	}
	progress(control.Progress{Action: "resolving", Done: true})
	k = &Known{Ref: ref.String(), manifestRow: manifestRow{
		Desc: img.Desc, Source: img.Ref.String(), Manifest: img.RawManifest, Config: img.RawConfig, Platform: img.Platform(),
	}}
	n := len(img.Manifest.Layers)
	if now := s.current(k); len(now.Layers) == n && s.usable(&now.manifestRow) && now.Quarantine == nil {
		return now, true, nil
	}
	k.Layers = make([]string, n)
	return k, false, nil
}

func (s *Service) wait(ctx context.Context, a control.PullArgs, k *Known, progress func(control.Progress)) error {
	if !a.Wait {
		return nil
	}
	if err := s.CompleteNow(ctx, k, progress); err != nil {
		return fmt.Errorf("%s: %w", familiar(k.Ref), err)
	}
	*k = *s.current(k)
	return nil
}

// platformFits tells whether a known image is of the platform that was asked for.
func platformFits(k *Known, want string) bool { return want == "" || k.Platform == want }

// usable tells whether everything that the image is mounted from is there.
func (s *Service) usable(m *manifestRow) bool {
	err := s.db.View(func(tx *bolt.Tx) error {
		for _, key := range m.Layers {
			if err := get(tx, "layers", key, new(layerRow)); err != nil {
				return err
			}
		}
		return nil
	})
	return err == nil
}

// pull brings an image in and records it under name. Without a name the image
// is known already, and only its parts come back.
func (s *Service) pull(ctx context.Context, ref registry.Ref, platform, name string, progress func(control.Progress)) (*manifestRow, error) {
	defer s.worked.Store(true)
	began := time.Now()
	progress(control.Progress{Action: "resolving"})
	img, by, err := s.resolve(ctx, ref, platform, false, progress)
	if err != nil {
		return nil, err
	}
	progress(control.Progress{Action: "resolving", Done: true})
	defer by.source.close()
	release := s.pin(img, by)
	row, err := s.bringIn(ctx, img, by, bringing{name: name}, progress)
	release()
	if err != nil { // nothing is left of it; what others bring in is pinned
		if cerr := s.Collect(s.base); cerr != nil {
			s.Log.Error("release what a failed pull has left", "ref", ref, "err", cerr)
		}
		return nil, fmt.Errorf("%s: %w", ref.Familiar(), err)
	}
	s.event(events.Pull, ref.String(), "digest", row.Desc.Digest, "layers", len(row.Layers), "took", time.Since(began))
	if by.source == nil {
		s.publishSoon(row)
	}
	return row, nil
}

// bringing says for whom an image is brought in.
type bringing struct {
	name  string // that it gets
	asked string // what a snapshotter calls it; with neither, it has to be known already
	// there, if not nil, hears of each layer when it can be read, from several goroutines.
	there func(i int, key string)
}

// bringIn makes everything of an image and records it.
func (s *Service) bringIn(ctx context.Context, img *registry.Image, by found, b bringing, progress func(control.Progress)) (*manifestRow, error) {
	row := &manifestRow{
		Desc: img.Desc, Source: img.Ref.String(), Manifest: img.RawManifest, Config: img.RawConfig,
		Layers: make([]string, len(img.Manifest.Layers)), Platform: img.Platform(),
	}
	fresh := make([]*layers.Index, len(row.Layers))
	err := s.ingestAll(ctx, img, by, row, fresh, b.there, progress)
	if err != nil {
		return nil, err
	}
	s.boot(by.source, row)
	defer s.pinNames(treeID(row.Layers))()
	if row.Tree, err = s.tree(ctx, row.Layers, fresh, progress); err != nil {
		return nil, err
	}
	s.refused.forget(row.Desc.Digest)
	return row, s.db.Update(func(tx *bolt.Tx) error {
		var was manifestRow
		switch err := get(tx, "manifests", string(row.Desc.Digest), &was); {
		case err == nil:
			row.keepAliased(&was)
			row.Asked, row.AskedAt = was.Asked, was.AskedAt
		case b.name == "" && b.asked == "" || !errors.Is(err, fs.ErrNotExist):
			return err // it was removed meanwhile
		}
		row.ask(b.asked)
		if err := put(tx, "manifests", string(row.Desc.Digest), row); err != nil || b.name == "" {
			return err
		}
		return put(tx, "names", b.name, nameRow{Manifest: row.Desc.Digest, Pulled: time.Now()})
	})
}

// ingestAll gives every layer an index, all at once: lazily readable ones cost
// two or three requests each; the others share the machine's cores.
func (s *Service) ingestAll(ctx context.Context, img *registry.Image, by found, row *manifestRow, fresh []*layers.Index, there func(int, string), progress func(control.Progress)) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range img.Manifest.Layers {
		g.Go(func() error {
			key, ix, err := s.ingest(ctx, img, by, i, progress)
			if err != nil {
				return fmt.Errorf("layer %s: %w", short(img.Manifest.Layers[i].Digest), err)
			}
			row.Layers[i], fresh[i] = key, ix
			if there != nil {
				there(i, key)
			}
			return nil
		})
	}
	return g.Wait()
}

// layerKeys are the names that a layer's index may have, the most trusted
// first: made from all of its bytes, vouched for by its manifest, published.
func layerKeys(desc ocispec.Descriptor, by found) []string {
	keys := []string{ownKey(desc)}
	if key := layerKey(desc); key != keys[0] {
		keys = append(keys, key)
	}
	if by.source != nil {
		keys = append(keys, publishedKey(desc, by.source.ann.Root))
	}
	if z, ok := by.soci.ztoc(desc); ok {
		keys = append(keys, sociKey(desc, z.Digest))
	}
	return keys
}

// ingest makes layer i known and returns its key, and its index if it has just been made.
func (s *Service) ingest(ctx context.Context, img *registry.Image, by found, i int, progress func(control.Progress)) (string, *layers.Index, error) {
	desc, diffID := img.Manifest.Layers[i], img.Config.RootFS.DiffIDs[i]
	for _, k := range layerKeys(desc, by) {
		if s.knownLayer(k) {
			progress(control.Progress{ID: short(desc.Digest), Action: "exists", Done: true})
			return k, nil, nil
		}
	}
	row := layerRow{Desc: desc, DiffID: diffID, Source: img.Ref.String()}
	if key, take := s.taking(img, by, i, row); take != nil {
		ix, err := s.ingestAs(ctx, key, progress, take)
		if err == nil || ctx.Err() != nil {
			return key, ix, err
		}
		s.Log.Warn("published index is not used for a layer", "ref", img.Ref, "layer", desc.Digest, "err", err)
	}
	key := layerKey(desc)
	ix, err := s.ingestAs(ctx, key, progress, func(ctx context.Context, p func(control.Progress)) (*made, error) {
		row := row
		return s.open1(ctx, img, key, &row, p)
	})
	return key, ix, err
}

// taking returns how a layer is made known by what was found, if it can be.
func (s *Service) taking(img *registry.Image, by found, i int, row layerRow) (key string, take func(context.Context, func(control.Progress)) (*made, error)) {
	if src := by.source; src != nil && src.header.Layers[i].Mapped() {
		key := publishedKey(row.Desc, src.ann.Root)
		return key, func(context.Context, func(control.Progress)) (*made, error) {
			ix, err := s.take(src, i, key, &row)
			return &made{index: ix, row: &row}, err
		}
	}
	if z, ok := by.soci.ztoc(row.Desc); ok {
		key := sociKey(row.Desc, z.Digest)
		return key, func(ctx context.Context, p func(control.Progress)) (*made, error) {
			l, err := s.takeSOCI(ctx, img, by.soci, z, key, &row, p)
			if err != nil {
				return nil, err
			}
			return &made{index: l.Index, row: &row, ztoc: l}, nil
		}
	}
	return "", nil
}

// made is what makes a layer known.
type made struct {
	index *layers.Index
	row   *layerRow
	ztoc  *soci.Layer // nil if it is not read by one
}

// ingestAs runs make once however many images want the layer, and records what
// it has made. The index is nil if somebody else has made it.
func (s *Service) ingestAs(ctx context.Context, key string, progress func(control.Progress),
	make func(context.Context, func(control.Progress)) (*made, error)) (ix *layers.Index, err error) {
	_, err = s.ingests.do(ctx, s.base, key, progress, func(ctx context.Context, p func(control.Progress)) (*layerRow, error) {
		if s.knownLayer(key) { // since we looked
			return nil, nil
		}
		m, err := make(ctx, p)
		if err != nil {
			return nil, err
		}
		row := m.row
		if err := indexfile.Write(s.indexPath(key), m.index); err != nil {
			return nil, err
		}
		if row.lazy() {
			if err := s.serve(key, row, m.ztoc); err != nil {
				return nil, err
			}
		}
		ix = m.index
		s.event(events.Index, row.Source, "layer", row.Desc.Digest, "format", row.Format, "origin", row.Origin, "why", row.Why)
		return row, s.db.Update(func(tx *bolt.Tx) error { return put(tx, "layers", key, row) })
	})
	return ix, err
}

// open1 reads the table of contents of a layer or, where it has none, unpacks it.
func (s *Service) open1(ctx context.Context, img *registry.Image, key string, row *layerRow, progress func(control.Progress)) (*made, error) {
	id := short(row.Desc.Digest)
	blob, err := img.Blob(ctx, row.Desc)
	if err != nil {
		return nil, err
	}
	progress(control.Progress{ID: id, Action: "indexing", Size: row.Desc.Size})
	ix, format, err := lazy.Open(ctx, row.Desc, blob)
	switch {
	case err == nil:
		row.Format, row.Origin = format, OriginTOC
		progress(control.Progress{ID: id, Action: "indexing", Size: row.Desc.Size, Done: true})
		return &made{index: ix, row: row}, nil
	case !errors.Is(err, layers.ErrNoTOC) && !errors.Is(err, registry.ErrNoRange):
		return nil, err // a TOC that lies is no reason to trust the rest
	}
	row.Why, row.Complete = err.Error(), true
	return s.unpack(ctx, img, key, row, progress)
}

// unpack streams a layer into the store, and keeps how it can be read piecewise.
func (s *Service) unpack(ctx context.Context, img *registry.Image, key string, row *layerRow, progress func(control.Progress)) (*made, error) {
	select {
	case s.unpacking <- struct{}{}:
		defer func() { <-s.unpacking }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	r, err := img.Stream(ctx, row.Desc)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	m, err := s.unpackFrom(ctx, r, key, row, pulling(row.Desc, progress))
	if err != nil {
		return nil, err
	}
	progress(control.Progress{ID: short(row.Desc.Digest), Action: "pulling", Off: row.Desc.Size, Size: row.Desc.Size, Done: true})
	return m, nil
}

// unpackFrom unpacks a layer out of its stored bytes. progress may be nil.
func (s *Service) unpackFrom(ctx context.Context, r io.Reader, key string, row *layerRow, progress func(off int64)) (*made, error) {
	u, err := tarindex.Unpack(ctx, r, row.Desc, row.DiffID, s.Store, tarindex.Options{Progress: progress})
	if err != nil {
		return nil, err
	}
	defer u.Close()
	row.Format, row.Origin = lazy.Tar, OriginOwn
	if u.Map != nil {
		row.Format = tarFormat(u.Map.Compression)
	}
	if row.Why = whole(u.Map); row.Why == "" {
		row.Mapped = true
		if err := index.MakeMap(ctx, s.mapPath(key), u.Map, u.Windows); err != nil {
			return nil, err
		}
	}
	return &made{index: u.Index, row: row}, nil
}

// maxSpan is how many bytes of a layer, stored or plain, one read may cost at
// the most: more would take longer than a container's read may stand still.
const (
	maxSpan      = 16 << 20
	maxPlainSpan = 64 << 20
)

// whole says why a layer has to be fetched whole before anything of it can be
// read; "": it has not.
func whole(m *layers.Map) string {
	if m == nil {
		return "it has more chunks than an index may have"
	}
	if stored, plain := m.Span(); stored > maxSpan || plain > maxPlainSpan {
		return fmt.Sprintf("it cannot be split: its largest frame or block takes %d bytes, and becomes %d", stored, plain)
	}
	return ""
}

// pulling tells how far a layer is, but not each time.
func pulling(desc ocispec.Descriptor, progress func(control.Progress)) func(off int64) {
	told := int64(0)
	return func(off int64) {
		if off-told >= reportEvery {
			told = off
			progress(control.Progress{ID: short(desc.Digest), Action: "pulling", Off: off, Size: desc.Size})
		}
	}
}

// knownLayer says whether a layer has an index that can be believed.
func (s *Service) knownLayer(key string) bool {
	var l layerRow
	return s.db.View(func(tx *bolt.Tx) error { return get(tx, "layers", key, &l) }) == nil && !l.Lied
}

// reingest brings back the layers of a known image that an unclean boot cost,
// by the manifest as it was.
func (s *Service) reingest(ctx context.Context, k *Known) error {
	ref, err := registry.ParseRef(k.Source)
	if err != nil {
		return err
	}
	_, err = s.pulls.do(ctx, s.base, string(k.Desc.Digest), nil, func(ctx context.Context, p func(control.Progress)) (*manifestRow, error) {
		return s.pull(ctx, ref.WithDigest(k.Desc.Digest), k.Platform, "", p)
	})
	if err != nil {
		return fmt.Errorf("image %s must be fetched again: %w", k.Ref, err)
	}
	return nil
}

// Known is an image in the book.
type Known struct {
	manifestRow
	Ref    string
	Pulled time.Time
}

// Get finds an image by reference, manifest digest, or unique prefix of its
// config's or manifest's hex digest. The error is fs.ErrNotExist-wrapped if there is none.
func (s *Service) Get(name string) (*Known, error) {
	var found []*Known
	ref, refErr := registry.ParseRef(name)
	err := s.db.View(func(tx *bolt.Tx) error {
		if refErr == nil {
			k, err := known(tx, ref.String())
			if !errors.Is(err, fs.ErrNotExist) {
				found = append(found, k)
				return err
			}
		}
		return each(tx, "names", func(ref string, n *nameRow) error {
			k, err := known(tx, ref)
			if err == nil && matches(k, name) && (len(found) == 0 || found[0].Desc.Digest != k.Desc.Digest) {
				found = append(found, k)
			}
			return err
		})
	})
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, notFound(name)
	case len(found) > 1:
		return nil, fmt.Errorf("image %s: %w", name, ErrAmbiguous)
	}
	return found[0], nil
}

// ErrAmbiguous says that a prefix fits more than one image.
var ErrAmbiguous = errors.New("more than one image begins so: write more of it")

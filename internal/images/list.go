package images

import (
	"encoding/json"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers/registry"
)

// known reads the image of a reference; fs.ErrNotExist if there is none.
func known(tx *bolt.Tx, ref string) (*Known, error) {
	var n nameRow
	if err := get(tx, "names", ref, &n); err != nil {
		return nil, err
	}
	k := &Known{Ref: ref, Pulled: n.Pulled}
	if err := get(tx, "manifests", string(n.Manifest), &k.manifestRow); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("database: reference " + ref + " has no manifest")
		}
		return nil, err
	}
	return k, nil
}

// minPrefix is how many hex digits name an image at the least.
const minPrefix = 4

// matches tells whether name is k's ID or manifest digest, or begins one.
func matches(k *Known, name string) bool {
	name = strings.TrimPrefix(name, "sha256:")
	if len(name) < minPrefix {
		return false
	}
	return strings.HasPrefix(k.ID().Encoded(), name) || strings.HasPrefix(k.Desc.Digest.Encoded(), name)
}

// ID is the digest of the image's config, which is what Docker calls an image's ID.
func (k *Known) ID() digest.Digest { return digest.FromBytes(k.manifestRow.Config) }

// ImageConfig decodes the image's config.
func (k *Known) ImageConfig() (*ocispec.Image, error) {
	c := new(ocispec.Image)
	return c, json.Unmarshal(k.manifestRow.Config, c)
}

// List returns all images, newest pull first.
func (s *Service) List() ([]control.Image, error) {
	var all []control.Image
	err := s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "names", func(ref string, _ *nameRow) error {
			k, err := known(tx, ref)
			if err != nil {
				return err
			}
			im, _, err := s.describe(tx, k)
			all = append(all, im)
			return err
		})
	})
	slices.SortStableFunc(all, func(a, b control.Image) int { return b.Pulled.Compare(a.Pulled) })
	return all, err
}

// Describe returns a row of the list for k.
func (s *Service) Describe(k *Known) (control.Image, error) {
	var im control.Image
	err := s.db.View(func(tx *bolt.Tx) (err error) {
		im, _, err = s.describe(tx, k)
		return err
	})
	return im, err
}

func (s *Service) describe(tx *bolt.Tx, k *Known) (control.Image, []control.LayerDetail, error) {
	config, err := k.ImageConfig()
	if err != nil {
		return control.Image{}, nil, err
	}
	im := control.Image{
		Ref: familiar(k.Ref), Digest: string(k.Desc.Digest), ID: string(k.ID()), Platform: k.Platform,
		Pulled: k.Pulled, Layers: len(k.Layers), Lazy: len(k.Layers) > 0, Complete: true,
	}
	if config.Created != nil {
		im.Created = *config.Created
	}
	details := make([]control.LayerDetail, 0, len(k.Layers))
	for _, key := range k.Layers {
		var l layerRow
		if err := get(tx, "layers", key, &l); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				return im, nil, err
			}
			im.Complete = false
			details = append(details, control.LayerDetail{Digest: "sha256:" + key, Why: "lost in an unclean boot; comes back with the next use"})
			continue
		}
		local := s.local(key, &l)
		im.Size += l.Desc.Size
		im.Local += local
		im.Lazy = im.Lazy && l.lazy()
		im.Complete = im.Complete && l.Complete
		details = append(details, control.LayerDetail{
			Digest: string(l.Desc.Digest), DiffID: string(l.DiffID), MediaType: l.Desc.MediaType, Size: l.Desc.Size,
			Format: l.Format, Lazy: l.lazy(), Why: l.Why, Complete: l.Complete, Local: local,
			Origin: l.origin(), Signer: l.Signer, Index: l.Root,
		})
	}
	return im, details, nil
}

// local is about how many of a layer's stored bytes need not be fetched any
// more: as large a part of them as of the plain bytes. What is there of objects
// that are not complete does not count.
func (s *Service) local(key string, l *layerRow) int64 {
	if l.Complete {
		return l.Desc.Size
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.open[key]
	if f == nil {
		return 0
	}
	var have, all int64
	ix := f.index
	if f.spans != nil {
		ix = f.spans
	}
	for sum, ref := range ix.Objects() {
		all += ref.Size
		if s.Store.Has(sum) {
			have += ref.Size
		}
	}
	if all == 0 {
		return 0
	}
	return int64(float64(l.Desc.Size) * float64(have) / float64(all))
}

// Inspect tells all that is known of an image.
func (s *Service) Inspect(name string) (*control.ImageDetail, error) {
	k, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	return s.Detail(k)
}

// Detail is Inspect for an image that was found.
func (s *Service) Detail(k *Known) (d *control.ImageDetail, err error) {
	d = &control.ImageDetail{Manifest: k.Manifest, Config: k.manifestRow.Config, Profile: profileInfo(s.profile(k.Desc.Digest))}
	if k.Quarantine != nil {
		d.Quarantine = k.Quarantine.String()
	}
	for _, ref := range k.Asked {
		d.Asked = append(d.Asked, familiar(ref))
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		var t treeRow
		if err := get(tx, "trees", k.Tree, &t); err == nil {
			d.Files = t.Files
			d.Metadata = s.treePath(k.Tree, t.Sealed)
		}
		d.Image, d.LayerDetails, err = s.describe(tx, k)
		return err
	})
	return d, err
}

// Layers returns the keys of the layers of every image, by familiar reference:
// also of those that only containerd has a name for.
func (s *Service) Layers() map[string][]string {
	all := map[string][]string{}
	s.db.View(func(tx *bolt.Tx) error {
		each(tx, "manifests", func(_ string, m *manifestRow) error {
			for _, ref := range m.Asked {
				all[familiar(ref)] = m.Layers
			}
			return nil
		})
		return each(tx, "names", func(ref string, _ *nameRow) error {
			k, err := known(tx, ref)
			if err == nil {
				all[familiar(ref)] = k.Layers
			}
			return nil
		})
	})
	return all
}

// LayersOf returns the keys of the layers of a manifest; none if it is not known.
func (s *Service) LayersOf(manifest digest.Digest) []string {
	var m manifestRow
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(manifest), &m) }) != nil {
		return nil
	}
	return m.Layers
}

// Count is the number of references.
func (s *Service) Count() (n int) {
	s.db.View(func(tx *bolt.Tx) error {
		n = tx.Bucket([]byte("names")).Stats().KeyN
		return nil
	})
	return n
}

// Tag gives an image one more name.
func (s *Service) Tag(src, dst string) error {
	k, err := s.Get(src)
	if err != nil {
		return err
	}
	ref, err := registry.ParseRef(dst)
	if err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		return put(tx, "names", ref.String(), nameRow{Manifest: k.Desc.Digest, Pulled: k.Pulled})
	}); err != nil {
		return err
	}
	s.event(events.Tag, k.Ref, "target", ref.Familiar())
	return nil
}

// familiar is the form of a reference that people write.
func familiar(ref string) string {
	r, err := registry.ParseRef(ref)
	if err != nil {
		return ref
	}
	return r.Familiar()
}

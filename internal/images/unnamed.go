package images

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers/registry"
)

// An image that a snapshotter asked for has no name in the book, for containerd
// names it. Its manifest stays as long as snapshots hold all of its layers:
// completion, boot profiles and quarantine go by it. Layers are held for
// themselves, so those that snapshots share with other images stay longer.

// Held is what a snapshotter keeps from being collected.
type Held struct {
	Layers []Layer
	Stacks []Stack // that may be mounted
}

// maxAsked is how many names of an image are remembered.
const maxAsked = 8

// ask notes what a snapshotter calls the image.
func (m *manifestRow) ask(ref string) {
	if ref == "" {
		return
	}
	m.Asked = append(slices.DeleteFunc(m.Asked, func(r string) bool { return r == ref }), ref)
	m.Asked, m.AskedAt = m.Asked[max(0, len(m.Asked)-maxAsked):], time.Now().UTC()
}

// Find is Get for images that snapshotters have asked for, too.
func (s *Service) Find(name string) (*Known, error) {
	k, err := s.Get(name)
	if !errors.Is(err, fs.ErrNotExist) {
		return k, err
	}
	var found []*Known
	want := canonical(name)
	verr := s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "manifests", func(_ string, m *manifestRow) error {
			k := &Known{manifestRow: *m}
			if len(m.Asked) == 0 || !slices.Contains(m.Asked, want) && !matches(k, name) {
				return nil
			}
			k.Ref = m.Asked[len(m.Asked)-1]
			found = append(found, k)
			return nil
		})
	})
	switch {
	case verr != nil:
		return nil, verr
	case len(found) == 0:
		return nil, err
	case len(found) > 1 && !slices.Contains(found[0].Asked, want):
		return nil, ErrAmbiguous
	}
	// What a tag stood for before may be mounted still; it stands for the newest.
	return slices.MaxFunc(found, func(a, b *Known) int { return a.AskedAt.Compare(b.AskedAt) }), nil
}

// canonical is a reference as the book has it; "" if it is none. Of tag and digest
// the tag is what it is called by.
func canonical(name string) string {
	ref, err := registry.ParseRef(name)
	switch {
	case err != nil:
		return ""
	case ref.Tag != "":
		ref.Digest = ""
	}
	return ref.String()
}

// matchesDigest tells whether name is the digest, or begins its hex digits.
func matchesDigest(d digest.Digest, name string) bool {
	name = strings.TrimPrefix(name, "sha256:")
	return len(name) >= minPrefix && strings.HasPrefix(strings.TrimPrefix(string(d), "sha256:"), name)
}

// heldNow asks the snapshotters. The lock of what is live is held, so what they
// release meanwhile stays, and what they come to hold was pinned before it was taken.
func (s *Service) heldNow(ctx context.Context) (layerKeys, trees map[string]bool, err error) {
	layerKeys, trees = map[string]bool{}, map[string]bool{}
	if s.Held == nil {
		return layerKeys, trees, nil
	}
	h, err := s.Held(ctx)
	if err != nil {
		return nil, nil, err
	}
	err = s.db.View(func(tx *bolt.Tx) error {
		for _, l := range h.Layers {
			layerKeys[l.Key] = true
			if now, _, ok := standsFor(tx, l); ok {
				layerKeys[now] = true
			}
		}
		for _, st := range h.Stacks {
			var was, now []string
			for _, l := range st.Layers {
				key, _, ok := standsFor(tx, l)
				if !ok {
					key = l.Key
				}
				was, now = append(was, l.Key), append(now, key)
			}
			trees[treeID(was)], trees[treeID(now)] = true, true
			for _, key := range slices.Concat(was, now) {
				layerKeys[key] = true
			}
		}
		return nil
	})
	return layerKeys, trees, err
}

// standsFor finds what a layer is now: what was settled is read from what was
// made of it, and what was lost may have come back by another index.
func standsFor(tx *bolt.Tx, l Layer) (key string, row *layerRow, ok bool) {
	row = new(layerRow)
	if get(tx, "layers", l.Key, row) == nil && !row.Lied {
		if own := ownKey(row.Desc); row.Settled && own != l.Key {
			other := new(layerRow)
			if get(tx, "layers", own, other) == nil && !other.Lied {
				return own, other, true
			}
		}
		return l.Key, row, true
	}
	if l.Blob.Validate() != nil {
		return "", nil, false
	}
	prefix := l.Blob.Encoded()
	c := tx.Bucket([]byte("layers")).Cursor()
	for k, _ := c.Seek([]byte(prefix)); k != nil && strings.HasPrefix(string(k), prefix); k, _ = c.Next() {
		other := new(layerRow)
		if get(tx, "layers", string(k), other) == nil && other.DiffID == l.DiffID && !other.Lied {
			return string(k), other, true
		}
	}
	return "", nil, false
}

// dropUnnamed forgets images that only snapshotters have asked for, and of which
// no layer, or not all layers, are held by snapshots any more.
func (s *Service) dropUnnamed(layerKeys, pinned map[string]bool) error {
	var drop []string
	err := s.db.View(func(tx *bolt.Tx) error {
		named, mounted := map[digest.Digest]bool{}, map[string]bool{}
		if err := each(tx, "names", func(_ string, n *nameRow) error { named[n.Manifest] = true; return nil }); err != nil {
			return err
		}
		if err := each(tx, "mounts", func(_ string, m *control.Mount) error {
			mounted[strings.TrimSuffix(m.Rootfs.Image, sealedSuffix)] = true
			return nil
		}); err != nil {
			return err
		}
		return each(tx, "manifests", func(id string, m *manifestRow) error {
			held := !slices.ContainsFunc(m.Layers, func(key string) bool { return !layerKeys[key] && !pinned[key] })
			if len(m.Asked) > 0 && !named[m.Desc.Digest] && !held && !mounted[m.Tree] && !s.uses.held(m.Desc.Digest) {
				drop = append(drop, id)
			}
			return nil
		})
	})
	if err != nil || len(drop) == 0 {
		return err
	}
	users := s.Users()
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, id := range drop {
			if len(users[digest.Digest(id)]) > 0 {
				continue
			}
			if err := del(tx, "manifests", id); err != nil {
				return err
			}
		}
		return nil
	})
}

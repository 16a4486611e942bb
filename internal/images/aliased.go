package images

import (
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
)

// aliased is what mounts of an image may still have that its row no longer names:
// metadata images that refer to files by aliases, and the layers that the aliases
// are of. Nothing but these says what an alias is.
type aliased struct {
	Layers []string // keys
	Trees  []string // IDs
}

// isAliased says whether files of the layer with a key have aliases for sums.
func isAliased(key string) bool { return strings.Contains(key, sociMark) }

// keepAliased notes what was has of aliases and m has not.
func (m *manifestRow) keepAliased(was *manifestRow) {
	var a aliased
	if was.Aliased != nil {
		a = *was.Aliased
	}
	for _, key := range was.Layers {
		if isAliased(key) && !slices.Contains(m.Layers, key) {
			a.Layers, a.Trees = append(a.Layers, key), append(a.Trees, was.Tree)
		}
	}
	if len(a.Layers) > 0 {
		slices.Sort(a.Layers)
		slices.Sort(a.Trees)
		m.Aliased = &aliased{slices.Compact(a.Layers), slices.Compact(a.Trees)}
	}
}

// dropAliased forgets what no container and no mount can have any more. Nobody
// begins to use an image meanwhile: s.live is held.
func (s *Service) dropAliased() error {
	old := map[string]*aliased{}
	mounted := map[string]bool{}
	err := s.db.View(func(tx *bolt.Tx) error {
		if err := each(tx, "mounts", func(_ string, m *control.Mount) error {
			mounted[strings.TrimSuffix(m.Rootfs.Image, sealedSuffix)] = true
			return nil
		}); err != nil {
			return err
		}
		return each(tx, "manifests", func(id string, m *manifestRow) error {
			if m.Aliased != nil {
				old[id] = m.Aliased
			}
			return nil
		})
	})
	if err != nil || len(old) == 0 {
		return err
	}
	using := map[string]bool{} // looked at first: who lets go meanwhile is one of the users
	for id := range old {
		using[id] = s.uses.held(digest.Digest(id))
	}
	users := s.Users()
	return s.db.Update(func(tx *bolt.Tx) error {
		for id, a := range old {
			d := digest.Digest(id)
			if len(users[d]) > 0 || using[id] || slices.ContainsFunc(a.Trees, func(tree string) bool { return mounted[tree] }) {
				continue
			}
			if err := change(tx, "manifests", id, func(m *manifestRow) {
				if m.Aliased != nil && slices.Equal(m.Aliased.Layers, a.Layers) { // nothing was added meanwhile
					m.Aliased = nil
				}
			}); err != nil {
				return err
			}
		}
		return nil
	})
}

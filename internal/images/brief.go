package images

import (
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// A Brief is an image as one looks at it every second.
type Brief struct {
	Refs        []string // familiar; containerd's last
	Digest      digest.Digest
	Layers      []string // keys
	Tree        string
	Complete    bool
	Quarantined bool
}

// Briefs lists all images.
func (s *Service) Briefs() ([]Brief, error) {
	refs := map[digest.Digest][]string{}
	var all []Brief
	err := s.db.View(func(tx *bolt.Tx) error {
		done := map[string]bool{}
		if err := each(tx, "layers", func(key string, l *layerRow) error { done[key] = l.Complete; return nil }); err != nil {
			return err
		}
		if err := each(tx, "names", func(ref string, n *nameRow) error {
			refs[n.Manifest] = append(refs[n.Manifest], familiar(ref))
			return nil
		}); err != nil {
			return err
		}
		return each(tx, "manifests", func(_ string, m *manifestRow) error {
			for _, ref := range m.Asked {
				if ref = familiar(ref); !slices.Contains(refs[m.Desc.Digest], ref) {
					refs[m.Desc.Digest] = append(refs[m.Desc.Digest], ref)
				}
			}
			b := Brief{Refs: refs[m.Desc.Digest], Digest: m.Desc.Digest, Layers: m.Layers, Tree: m.Tree, Complete: true, Quarantined: m.Quarantine != nil}
			for _, key := range m.Layers {
				b.Complete = b.Complete && done[key]
			}
			all = append(all, b)
			return nil
		})
	})
	return all, err
}

// locals remembers how much of images is local: to know it, every object is looked for.
type locals struct {
	mu sync.Mutex
	of map[digest.Digest]*localPart
}

type localPart struct {
	size, local int64
	next        time.Time // not again before
}

// Local is how many stored bytes the layers of an image have, and how many of
// them are local. It may be some seconds old.
func (s *Service) Local(b Brief) (size, local int64) {
	s.localParts.mu.Lock()
	defer s.localParts.mu.Unlock()
	began := time.Now()
	p := s.localParts.of[b.Digest]
	if p == nil || !began.Before(p.next) {
		p = &localPart{}
		p.size, p.local = s.sizes(b.Layers)
		p.next = time.Now().Add(max(time.Second, localPause*time.Since(began)))
		if s.localParts.of == nil || len(s.localParts.of) > maxLocalParts {
			s.localParts.of = map[digest.Digest]*localPart{}
		}
		s.localParts.of[b.Digest] = p
	}
	return p.size, p.local
}

// localPause is how many times as long as a look took there is none: somebody
// waits for it, so it may cost more than a Survey.
const localPause = 10

// maxLocalParts is of how many images Local remembers what it found.
const maxLocalParts = 256

func (s *Service) sizes(keys []string) (size, local int64) {
	rows := map[string]*layerRow{}
	s.db.View(func(tx *bolt.Tx) error {
		for _, key := range keys {
			l := new(layerRow)
			if get(tx, "layers", key, l) == nil {
				rows[key] = l
			}
		}
		return nil
	})
	for key, l := range rows {
		size += l.Desc.Size
		local += s.local(key, l)
	}
	return size, local
}

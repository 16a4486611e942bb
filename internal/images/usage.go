package images

import (
	"bytes"
	"container/heap"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/objects"
)

// Usage is what a layer that snapshots hold has on disk now: objects, whole or in
// part, its index and map, and, of the topmost layer of a metadata image, that.
// An object that several held layers have is counted for one of them, always the
// same. It may be some seconds old, as in [Service.Survey].
func (s *Service) Usage(ctx context.Context, l Layer) (objects.Space, error) {
	for range 2 { // what was counted together may have begun before l was held
		if u, ok := s.used.get(l.Key, time.Now()); ok {
			return u, nil
		}
		_, err := s.used.counting.do(ctx, s.base, "all", nil, func(ctx context.Context, _ func(control.Progress)) (struct{}, error) {
			return struct{}{}, s.countUsage(ctx, l)
		})
		if err != nil {
			return objects.Space{}, err
		}
	}
	u, _ := s.used.get(l.Key, time.Time{})
	return u, nil
}

// used remembers what layers have on disk.
type used struct {
	counting flights[struct{}]

	mu   sync.Mutex
	of   map[string]objects.Space // by key
	took time.Duration
	at   time.Time // when it was counted
	old  bool      // something was removed since
}

// get returns what is known of a layer, if it is new enough at the time now.
func (u *used) get(key string, now time.Time) (objects.Space, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	sp, ok := u.of[key]
	least, part := leastSurvey, time.Duration(surveyPart)
	if u.old {
		least, part = time.Second, localPause
	}
	return sp, ok && now.Before(u.at.Add(max(least, part*u.took)))
}

// outdate says that something was removed.
func (u *used) outdate() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.old = true
}

// countUsage counts all held layers, and l.
func (s *Service) countUsage(ctx context.Context, l Layer) error {
	began := time.Now()
	all := map[string]Layer{l.Key: l}
	if s.Held != nil {
		h, err := s.Held(ctx)
		if err != nil {
			return err
		}
		for _, l := range h.Layers {
			all[l.Key] = l
		}
	}
	order := slices.Sorted(maps.Keys(all))
	keys := map[string]int{} // of indexes → place in order
	of := make([]objects.Space, len(order))
	if err := s.db.View(func(tx *bolt.Tx) error {
		for i, key := range order {
			keys[key] = i
			if now, _, ok := standsFor(tx, all[key]); ok {
				if _, taken := keys[now]; !taken {
					keys[now] = i
				}
			}
		}
		return each(tx, "trees", func(id string, t *treeRow) error {
			if len(t.Layers) == 0 {
				return nil
			}
			if i, ok := keys[t.Layers[len(t.Layers)-1]]; ok {
				of[i].Add(space(s.treePath(id, false)))
				of[i].Add(space(s.treePath(id, true)))
			}
			return nil
		})
	}); err != nil {
		return err
	}
	if err := s.countObjects(keys, of); err != nil {
		return err
	}
	s.used.mu.Lock()
	defer s.used.mu.Unlock()
	s.used.of = map[string]objects.Space{}
	for i, key := range order {
		s.used.of[key] = of[i]
	}
	s.used.at, s.used.old = time.Now(), false
	s.used.took = s.used.at.Sub(began)
	return nil
}

// countObjects adds what the indexes of the layers name, each object once: to
// the first that has it. keys say where a layer is in of.
func (s *Service) countObjects(keys map[string]int, of []objects.Space) (err error) {
	disk, err := s.Store.Spaces()
	if err != nil {
		return err
	}
	var h merging
	defer func() {
		for _, c := range h {
			err = errors.Join(err, c.f.Close())
		}
	}()
	for key, i := range keys {
		for _, suffix := range []string{".idx", ".map", ".map.windows", ".ztoc", ".spans"} {
			of[i].Add(space(s.layerPath(key, suffix)))
		}
		for _, path := range []string{s.indexPath(key), s.spansPath(key)} {
			f, err := indexfile.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			c := &cursor{f: f, layer: i}
			if !c.next() {
				f.Close() // only read
				continue
			}
			h = append(h, c)
		}
	}
	heap.Init(&h)
	var last layers.Sum
	for len(h) > 0 {
		c := h[0]
		if c.sum != last {
			last = c.sum
			of[c.layer].Add(disk.Of(last))
		}
		if c.next() {
			heap.Fix(&h, 0)
			continue
		}
		c.f.Close() // only read
		heap.Pop(&h)
	}
	return nil
}

// A cursor goes through the objects of an index in the order of their sums.
type cursor struct {
	f     *indexfile.File
	layer int
	i     int
	sum   layers.Sum
}

func (c *cursor) next() (ok bool) {
	c.sum, ok = c.f.Nth(c.i)
	c.i++
	return ok
}

// merging is a heap of cursors: by object, then by layer.
type merging []*cursor

func (h merging) Len() int      { return len(h) }
func (h merging) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h merging) Less(i, j int) bool {
	if c := bytes.Compare(h[i].sum[:], h[j].sum[:]); c != 0 {
		return c < 0
	}
	return h[i].layer < h[j].layer
}
func (h *merging) Push(c any) { *h = append(*h, c.(*cursor)) }
func (h *merging) Pop() any {
	c := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return c
}

// space is what a file takes on disk; nothing if there is none.
func space(path string) objects.Space {
	fi, err := os.Lstat(path)
	if err != nil {
		return objects.Space{}
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return objects.Space{Bytes: st.Blocks * 512, Files: 1}
	}
	return objects.Space{Bytes: fi.Size(), Files: 1}
}

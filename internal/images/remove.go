package images

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/registry"
)

// Remove takes names from images and releases what no name holds any more. An
// image that a container uses keeps its last name: ErrInUse; with force only
// running containers count.
func (s *Service) Remove(ctx context.Context, names []string, force bool) ([]control.Removed, error) {
	var removed []control.Removed
	var errs []error
	for _, name := range names {
		r, err := s.removeOne(name, force)
		removed = append(removed, r...)
		errs = append(errs, err)
	}
	errs = append(errs, s.Collect(ctx))
	return removed, errors.Join(errs...)
}

func (s *Service) removeOne(name string, force bool) ([]control.Removed, error) {
	s.live.Lock()
	defer s.live.Unlock()
	k, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	refs, err := s.refsOf(k.Desc.Digest)
	if err != nil {
		return nil, err
	}
	drop := refs
	if ref, err := registry.ParseRef(name); err == nil && ref.String() == k.Ref {
		drop = []string{k.Ref}
	} else if len(refs) > 1 && !force { // an ID stands for all of them
		return nil, fmt.Errorf("image %s has the names %s: %w; remove them by name, or use --force", name, strings.Join(refs, ", "), ErrInUse)
	}
	last := len(drop) == len(refs)
	if last {
		if err := s.free(k, name, force); err != nil {
			return nil, err
		}
	}
	err = s.db.Update(func(tx *bolt.Tx) error {
		for _, ref := range drop {
			if err := del(tx, "names", ref); err != nil {
				return err
			}
		}
		if last && len(k.Asked) == 0 { // else the collection sees whether snapshots hold it
			return del(tx, "manifests", string(k.Desc.Digest))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []control.Removed
	for _, ref := range drop {
		out = append(out, control.Removed{Ref: familiar(ref)})
		s.event(events.Remove, ref, "digest", k.Desc.Digest)
	}
	if last {
		out = append(out, control.Removed{Ref: string(k.ID()), Deleted: true})
	}
	return out, nil
}

// free is nil if nothing that counts uses the image.
func (s *Service) free(k *Known, name string, force bool) error {
	held := s.uses.held(k.Desc.Digest) // looked at first: who lets go meanwhile is one of the users
	for _, u := range s.Users()[k.Desc.Digest] {
		if u.Running {
			return fmt.Errorf("image %s: %w by running container %s", name, ErrInUse, u.Name)
		}
		if !force {
			return fmt.Errorf("image %s: %w by stopped container %s; remove that first, or use --force", name, ErrInUse, u.Name)
		}
	}
	if held {
		return fmt.Errorf("image %s: %w by somebody who begins to use it", name, ErrInUse)
	}
	var target string
	s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "mounts", func(_ string, m *control.Mount) error {
			if tree := strings.TrimSuffix(m.Rootfs.Image, sealedSuffix); tree == k.Tree || k.Aliased != nil && slices.Contains(k.Aliased.Trees, tree) {
				target = m.Target
			}
			return nil
		})
	})
	if target != "" {
		return fmt.Errorf("image %s: %w by the mount at %s", name, ErrInUse, target)
	}
	return nil
}

func (s *Service) refsOf(manifest digest.Digest) (refs []string, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "names", func(ref string, n *nameRow) error {
			if n.Manifest == manifest {
				refs = append(refs, ref)
			}
			return nil
		})
	})
	return refs, err
}

// Collect releases layers, metadata images and objects that no image needs.
func (s *Service) Collect(ctx context.Context) error {
	return s.collect(ctx, s.dropAliased)
}

// collectAfter is how long CollectSoon waits for more of its kind: an image of
// many layers is removed snapshot by snapshot.
const collectAfter = 200 * time.Millisecond

// CollectSoon is Collect for those who do not wait: it returns at once, and many
// calls become one collection.
func (s *Service) CollectSoon() {
	if s.base.Err() != nil || s.collecting.Swap(true) {
		return
	}
	due := []string{"collection"} // among the pins: the mark is there until it is done
	s.pins.add(due, 1, s.markPulling)
	s.background.Go(func() {
		select {
		case <-s.base.Done(): // the next start finds the mark
			return
		case <-time.After(collectAfter):
		}
		s.collecting.Store(false) // what is released from here on is another one's
		err := s.Collect(s.base)
		switch {
		case s.base.Err() != nil:
			return
		case err != nil:
			s.Log.Error("release what nothing holds", "err", err)
		}
		s.pins.add(due, -1, s.markPulling)
	})
}

// collect is Collect after first, which runs when nobody begins to use anything.
func (s *Service) collect(ctx context.Context, first func() error) error {
	if s.Held != nil { // wait for it without the lock
		if _, err := s.Held(ctx); err != nil {
			return err
		}
	}
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	defer s.Store.Hold()() // before it is decided what is needed
	layerKeys, err := s.dropUnneeded(ctx, first)
	if err != nil {
		return err
	}
	// From here on, nobody waits: what is brought in meanwhile is noted by the
	// store, and no layer that is kept is dropped by another one.
	keep, err := s.neededObjects(layerKeys)
	if err != nil {
		return err
	}
	defer s.used.outdate()
	needed := func(sum layers.Sum) bool { return keep[sum] }
	freed, err := s.Store.Sweep(needed)
	if freed > 0 {
		s.Log.Info("released", "bytes", freed)
	}
	if err == nil && (freed > 0 || s.Store.Spared(needed)) {
		s.collectLater()
	}
	return err
}

// sparedFor is how long what a collection had to spare stays at least. Until a
// pull is over, all that it brings in is spared.
const sparedFor = 2 * time.Second

// collectLater makes up for a collection that had to spare objects that nothing
// needs, because they were held, by a pull or by the completion of another layer;
// and for one that dropped a layer of which something was still on its way. The
// last collection finds nothing.
func (s *Service) collectLater() {
	if s.base.Err() != nil || s.sparing.Swap(true) {
		return
	}
	s.background.Go(func() {
		select {
		case <-s.base.Done():
			return
		case <-time.After(sparedFor):
		}
		s.sparing.Store(false)
		if err := s.Collect(s.base); err != nil && s.base.Err() == nil {
			s.Log.Error("release what nothing holds", "err", err)
		}
	})
}

// dropUnneeded drops layers and metadata images that nothing needs, and returns
// the layers that are left.
func (s *Service) dropUnneeded(ctx context.Context, first func() error) (map[string]bool, error) {
	s.live.Lock()
	defer s.live.Unlock()
	if err := first(); err != nil {
		return nil, err
	}
	// Before anybody is asked what it holds: no pin is set now, and what loses its
	// pin from here on may have come to be held after the question.
	pinned := map[string]bool{}
	s.pins.all(pinned)
	heldLayers, heldTrees, err := s.heldNow(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.dropUnnamed(heldLayers, pinned); err != nil {
		return nil, err
	}
	maps.Copy(heldLayers, pinned)
	maps.Copy(heldTrees, pinned)
	layerKeys, trees, err := s.needed(heldLayers, heldTrees)
	if err != nil {
		return nil, err
	}
	return layerKeys, errors.Join(s.dropTrees(ctx, trees), s.dropLayers(layerKeys), s.sweepProfiles())
}

// needed adds to the layers and trees that snapshots and pulls under way hold
// those that images do. A stopped container whose image was removed by force holds
// its tree no more.
func (s *Service) needed(layerKeys, trees map[string]bool) (_, _ map[string]bool, err error) {
	err = s.db.View(func(tx *bolt.Tx) error {
		if err := each(tx, "manifests", func(_ string, m *manifestRow) error {
			trees[m.Tree] = true
			for _, key := range m.Layers {
				layerKeys[key] = true
			}
			if a := m.Aliased; a != nil {
				for _, key := range a.Layers {
					layerKeys[key] = true
				}
				for _, id := range a.Trees {
					trees[id] = true
				}
			}
			return nil
		}); err != nil {
			return err
		}
		return each(tx, "layers", func(key string, l *layerRow) error {
			if layerKeys[key] && l.Settled { // it is read from that
				layerKeys[ownKey(l.Desc)] = true
			}
			return nil
		})
	})
	return layerKeys, trees, err
}

func (s *Service) dropTrees(ctx context.Context, keep map[string]bool) error {
	var drop []string
	if err := s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "trees", func(id string, _ *treeRow) error {
			if !keep[id] {
				drop = append(drop, id)
			}
			return nil
		})
	}); err != nil {
		return err
	}
	var errs []error
	for _, id := range drop {
		s.following.end(id)
		for _, sealed := range []bool{false, true} {
			if err := s.Mounter.UnmountImage(ctx, treeName(id, sealed)); err != nil {
				errs = append(errs, err)
			}
			os.Remove(s.treePath(id, sealed))
		}
		errs = append(errs, s.db.Update(func(tx *bolt.Tx) error { return del(tx, "trees", id) }))
	}
	return errors.Join(append(errs, s.sweepDirectories(keep))...)
}

func (s *Service) dropLayers(keep map[string]bool) error {
	var drop []string
	if err := s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "layers", func(key string, _ *layerRow) error {
			if !keep[key] {
				drop = append(drop, key)
			}
			return nil
		})
	}); err != nil {
		return err
	}
	for _, key := range drop {
		s.mu.Lock()
		if f := s.open[key]; f != nil {
			s.remove(key, f)
			delete(s.open, key)
		}
		s.mu.Unlock()
		s.forgetLayer(key)
	}
	return s.sweepLayers(keep)
}

// sweepLayers removes the files of layers that are not to be kept. No row knows
// those of a process that was killed while it made a layer known.
func (s *Service) sweepLayers(keep map[string]bool) error {
	dir := filepath.Join(s.Root, "layers")
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if key, _, _ := strings.Cut(f.Name(), "."); key != "" && !keep[key] {
			err = errors.Join(err, os.Remove(filepath.Join(dir, f.Name())))
		}
	}
	return err
}

func (s *Service) neededObjects(layerKeys map[string]bool) (map[layers.Sum]bool, error) {
	keep := map[layers.Sum]bool{}
	for key := range layerKeys {
		for _, path := range []string{s.indexPath(key), s.spansPath(key)} {
			f, err := indexfile.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err // not knowing what is needed, remove nothing
			}
			for sum := range f.Objects() {
				keep[sum] = true
			}
			if err := f.Close(); err != nil {
				return nil, err
			}
		}
	}
	return keep, nil
}

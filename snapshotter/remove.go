package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Remove removes a snapshot without children. Its key is free when it returns;
// its directory goes soon after. It does not look whether the snapshot is
// mounted: who has it mounted keeps what they have open, as on any snapshotter.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	if err := s.remove(ctx, key); err != nil {
		return full(err)
	}
	s.Stats.Removed.Add(1)
	return nil
}

func (s *Snapshotter) remove(ctx context.Context, key string) error {
	var id string
	err := s.store.update(ctx, func(ctx context.Context, tx *bolt.Tx) (err error) {
		if id, _, err = storage.Remove(ctx, key); err != nil {
			return fmt.Errorf("remove snapshot %q: %w", key, err)
		}
		return deleteRow(tx, id)
	})
	if err != nil {
		return err
	}
	s.index.forget(id)
	s.reaper.add(s.dir(id))
	if s.layers != nil {
		s.layers.Collect()
	}
	return nil
}

func (s *Snapshotter) dir(id string) string { return filepath.Join(s.dirs, id) }

// Cleanup removes what belongs to no snapshot, and returns when that is done or
// ctx ends; then it goes on without the caller.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	done := make(chan error, 1)
	select {
	case s.reaper.sweeps <- done:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.base.Done():
		return fmt.Errorf("snapshots are closed: %w", errdefs.ErrUnavailable)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A reaper removes directories that nobody waits for, one after the other.
type reaper struct {
	sweeps chan chan error
	wake   chan struct{} // has a value if there may be something in dirs

	mu   sync.Mutex
	dirs []string
}

func (r *reaper) init() {
	r.sweeps = make(chan chan error)
	r.wake = make(chan struct{}, 1)
}

// add makes dir the reaper's. It need not exist.
func (r *reaper) add(dir string) {
	r.mu.Lock()
	r.dirs = append(r.dirs, dir)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *reaper) take() (dir string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.dirs) == 0 {
		r.dirs = nil
		return "", false
	}
	dir, r.dirs = r.dirs[0], r.dirs[1:]
	return dir, true
}

// reap is the reaper's goroutine, until Close.
func (s *Snapshotter) reap() {
	for {
		select {
		case <-s.base.Done():
			return
		case <-s.reaper.wake:
			s.reapAll()
		case done := <-s.reaper.sweeps:
			s.reapAll()
			done <- s.sweep()
		}
	}
}

func (s *Snapshotter) reapAll() {
	for s.base.Err() == nil {
		dir, ok := s.reaper.take()
		if !ok {
			return
		}
		if err := s.reapOne(dir); err != nil {
			s.log.Warn("directory of a removed snapshot", "dir", dir, "err", err) // the next sweep finds it
		}
	}
}

func (s *Snapshotter) reapOne(dir string) error {
	err := os.Remove(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		// Of a container that wrote nothing, these are all there is.
		for _, sub := range []string{"work/work", "work", "fs"} {
			os.Remove(filepath.Join(dir, sub)) // or RemoveAll does, and says what is wrong
		}
		if os.Remove(dir) != nil {
			if err := os.RemoveAll(dir); err != nil {
				return err
			}
		}
	}
	s.Stats.Reaped.Add(1)
	return nil
}

// sweep finds directories and links without a snapshot. Directories are listed
// before snapshots are: a snapshot is in the database before it has a directory.
func (s *Snapshotter) sweep() error {
	paths, err := list(s.dirs)
	if err != nil {
		return err
	}
	links, err := list(s.links)
	if err != nil {
		return err
	}
	alive, dirs := make(map[string]bool), make(map[string]bool)
	err = s.store.view(s.base, func(ctx context.Context, tx *bolt.Tx) error {
		ids, err := storage.IDMap(ctx)
		if err != nil {
			return err
		}
		for id := range ids {
			// What is held has no directory, once it is committed.
			r, held, err := rowOf(tx, id)
			if err != nil {
				return err
			}
			alive[id], dirs[id] = true, !held || r.Parent != ""
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.index.dropChains(alive)
	var failed []error
	for _, path := range paths {
		// Who makes something with another name removes it, and recover what a crash left.
		if id := filepath.Base(path); isID(id, 10) && !dirs[id] {
			failed = append(failed, s.reapOne(path))
		}
	}
	named := make(map[string]bool)
	for id := range dirs {
		named[linkName(id)] = dirs[id]
	}
	for _, path := range links {
		if name, _, _ := strings.Cut(filepath.Base(path), "-"); isID(name, linkBase) && !named[name] {
			failed = append(failed, os.Remove(path))
		}
	}
	if s.mapper != nil {
		failed = append(failed, s.sweepMapped())
	}
	return errors.Join(failed...)
}

// sweepMapped ends mounts with shifted owners that no snapshot needs. Nobody makes
// one between the look for who needs them and the end.
func (s *Snapshotter) sweepMapped() error {
	s.mapping.Lock()
	defer s.mapping.Unlock()
	var maps []IDMap
	for _, n := range s.index.waiting() { // first: when they stop waiting they are in the database
		maps = append(maps, n.mapped)
	}
	err := s.store.view(s.base, func(ctx context.Context, tx *bolt.Tx) error {
		return s.eachNeeds(ctx, tx, func(_ string, n needs) { maps = append(maps, n.mapped) })
	})
	if err != nil {
		return err
	}
	return s.mapper.KeepMapped(s.base, s.dirs, compact(maps))
}

// compact is maps without what shifts nothing and without doubles.
func compact(maps []IDMap) (some []IDMap) {
	seen := map[IDMap]bool{{}: true}
	for _, m := range maps {
		if !seen[m] {
			seen[m] = true
			some = append(some, m)
		}
	}
	return some
}

func isID(s string, base int) bool {
	_, err := strconv.ParseUint(s, base, 64)
	return err == nil
}

func list(dir string) (paths []string, err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(0)
	for _, name := range names {
		paths = append(paths, filepath.Join(dir, name))
	}
	return paths, err
}

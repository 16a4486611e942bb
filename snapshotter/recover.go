package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	bolt "go.etcd.io/bbolt"
)

// noneWithout says that there are no directories of snapshots if there is no
// database: a new one would make orphans of them.
func (s *Snapshotter) noneWithout(file string) error {
	if st, err := os.Stat(file); err == nil && st.Size() > 0 {
		return nil
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	paths, err := list(s.dirs)
	if err != nil {
		return err
	}
	for _, p := range paths {
		if isID(filepath.Base(p), 10) {
			return fmt.Errorf("%s: %w: it is gone, and there are directories of snapshots", file, ErrTorn)
		}
	}
	return nil
}

// orphanPrefix is what directories of no snapshot are called until they are removed.
const orphanPrefix = "orphan-"

// recover puts right what a crash, or a power cut, left between the database and the
// directories, in either order. What is removed is removed in the background.
func (s *Snapshotter) recover() error {
	for _, dir := range []string{s.dirs, s.links} {
		paths, err := list(dir)
		if err != nil {
			return err
		}
		for _, p := range paths { // nobody makes one yet
			if strings.HasPrefix(filepath.Base(p), tmpPrefix) || strings.HasPrefix(filepath.Base(p), orphanPrefix) {
				s.reaper.add(p)
			}
		}
	}
	return s.store.view(context.Background(), func(ctx context.Context, tx *bolt.Tx) error {
		rows, err := allRows(tx)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrTorn, err)
		}
		ids := make(map[string]bool)
		err = storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			ids[id] = true
			r, held := rows[id]
			if held {
				s.index.put(id, info, &r)
			} else {
				s.index.put(id, info, nil)
			}
			return s.remake(ctx, tx, id, info, held)
		})
		if err != nil {
			return err
		}
		paths, err := list(s.dirs)
		if err != nil {
			return err
		}
		for _, p := range paths {
			id := filepath.Base(p)
			r, held := rows[id]
			if !isID(id, 10) || ids[id] && (!held || r.Parent != "") {
				continue
			}
			// Its number may be given out again, if the database is an older one.
			orphan := filepath.Join(s.dirs, orphanPrefix+id)
			if err := errors.Join(os.RemoveAll(orphan), os.Rename(p, orphan)); err != nil {
				return err
			}
			s.reaper.add(orphan)
		}
		return nil
	})
}

// remake makes the directory of an active snapshot that has none: it was in the
// database, and a power cut came before its directory, empty or not yet synced,
// was on disk. A committed one was synced before, so it is an error that others
// do not suffer from.
func (s *Snapshotter) remake(ctx context.Context, tx *bolt.Tx, id string, info snapshots.Info, held bool) error {
	needed := info.Kind == snapshots.KindActive || info.Kind == snapshots.KindView && info.Parent == "" || info.Kind == snapshots.KindCommitted && !held
	if !needed {
		return nil
	}
	upper := s.upper(id)
	_, err := os.Lstat(upper)
	if err == nil && info.Kind == snapshots.KindActive {
		_, err = os.Lstat(s.work(id))
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if info.Kind == snapshots.KindCommitted {
		s.log.Error("snapshot without its directory", "key", info.Name, "dir", upper)
		return nil
	}
	_, uid, gid, shifts, err := idMap(info.Labels)
	if err != nil || unpacks(info.Name, info.Labels) {
		shifts, uid, gid = false, 0, 0
	}
	if !shifts && info.Parent != "" {
		c, err := s.chainOf(ctx, tx, info.Parent)
		if err != nil {
			return err
		}
		if len(c.dirs) > 0 {
			if uid, gid, err = owner(s.upper(c.dirs[0])); err != nil {
				s.log.Error("snapshot whose parent has no directory", "key", info.Name, "parent", info.Parent, "err", err)
				return nil
			}
		}
	}
	if err := os.Mkdir(s.dir(id), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	s.log.Warn("the directory of a snapshot is gone, and made again empty", "key", info.Name, "dir", upper)
	s.Stats.Remade.Add(1)
	return s.fill(id, info.Kind, uid, gid)
}

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Stat is what is known of a snapshot by its key or name.
func (s *Snapshotter) Stat(ctx context.Context, key string) (info snapshots.Info, err error) {
	err = s.store.view(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		_, info, _, err = storage.GetInfo(ctx, key)
		return err
	})
	return info, err
}

// Update changes labels: those named by paths, "labels.NAME", or all.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, paths ...string) (updated snapshots.Info, err error) {
	if err := check(info); err != nil {
		return updated, err
	}
	var (
		id   string
		r    row
		held bool
	)
	err = s.store.update(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if updated, err = storage.UpdateInfo(ctx, info, paths...); err != nil {
			return err
		}
		if id, updated, _, err = storage.GetInfo(ctx, info.Name); err != nil {
			return err
		}
		r, held, err = rowOf(tx, id)
		return err
	})
	switch {
	case err != nil:
		return snapshots.Info{}, full(err)
	case held:
		s.index.put(id, updated, &r)
	default:
		s.index.put(id, updated, nil)
	}
	return updated, nil
}

// Walk calls fn for what every filter of one of filters matches. fn may call any
// method: there is no transaction open, and what was removed meanwhile is shown still.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	all, err := s.find(ctx, filters)
	if err != nil {
		return err
	}
	if len(all) > 0 {
		return each(ctx, all, fn)
	}
	err = s.store.view(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all = append(all, info)
			return nil
		}, filters...)
	})
	if err != nil {
		return err
	}
	return each(ctx, all, fn)
}

func each(ctx context.Context, all []snapshots.Info, fn snapshots.WalkFunc) error {
	for _, info := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// findLayer is the filter by which containerd looks for what Prepare said was
// there, once for each layer (core/metadata/snapshot.go createSnapshot).
var findLayer = regexp.MustCompile(`^labels\."containerd\.io/snapshot\.ref"==([A-Za-z0-9:]+),parent==("(?:[^"\\]|\\.)*")$`)

// find answers that filter without reading all snapshots, of which a node may
// have thousands. If there is nothing it does not know.
func (s *Snapshotter) find(ctx context.Context, filters []string) (all []snapshots.Info, err error) {
	if len(filters) != 1 {
		return nil, nil
	}
	m := findLayer.FindStringSubmatch(filters[0])
	if m == nil {
		return nil, nil
	}
	parent, err := strconv.Unquote(m[2])
	if err != nil {
		return nil, nil // containerd's filters have words for it
	}
	err = s.store.view(ctx, func(ctx context.Context, _ *bolt.Tx) error {
		for _, name := range s.index.names(m[1]) {
			_, info, _, err := storage.GetInfo(ctx, name)
			if err == nil && info.Parent == parent && info.Labels[snapshots.LabelSnapshotRef] == m[1] {
				all = append(all, info)
			}
		}
		return nil
	})
	return all, err
}

// Usage is what a snapshot takes on disk now, without its parents. An object
// that several layers share counts for one of them.
func (s *Snapshotter) Usage(ctx context.Context, key string) (u snapshots.Usage, err error) {
	var (
		id   string
		info snapshots.Info
		r    row
		held bool
	)
	err = s.store.view(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if id, info, u, err = storage.GetInfo(ctx, key); err != nil {
			return err
		}
		r, held, err = rowOf(tx, id)
		return err
	})
	switch {
	case err != nil:
		return u, err
	case info.Kind == snapshots.KindActive:
		du, err := fs.DiskUsage(ctx, s.upper(id))
		if errors.Is(err, os.ErrNotExist) {
			return u, fmt.Errorf("snapshot %q is being made or removed: %w", key, errdefs.ErrNotFound)
		}
		return snapshots.Usage(du), err
	case held && s.layers != nil:
		return s.layers.Usage(ctx, r.Layer)
	}
	return u, nil
}

// Mounts are those that Prepare or View has returned. What they need is mounted
// again if it is not.
func (s *Snapshotter) Mounts(ctx context.Context, key string) (_ []mount.Mount, err error) {
	var (
		id     string
		info   snapshots.Info
		staged bool
		c      chain
	)
	err = s.store.view(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if id, info, _, err = storage.GetInfo(ctx, key); err != nil {
			return fmt.Errorf("snapshot %q: %w", key, err)
		}
		if info.Kind == snapshots.KindCommitted {
			return fmt.Errorf("snapshot %q is not active or a view: %w", key, errdefs.ErrFailedPrecondition)
		}
		if _, staged, err = rowOf(tx, id); err != nil {
			return err
		}
		c, err = s.chainOf(ctx, tx, info.Parent)
		return err
	})
	if err != nil {
		return nil, err
	}
	var m IDMap
	if !unpacks(info.Name, info.Labels) {
		if m, _, _, _, err = idMap(info.Labels); err != nil {
			return nil, err
		}
	}
	l, err := s.lower(ctx, c, m)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	mounts, err := s.mounts(formOf(id, info, staged), l)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", key, err)
	}
	return mounts, nil
}

// Held is what the book of images must keep. It is right at one moment between
// the call and the return, and what comes later was held by the book's release
// function until then.
func (s *Snapshotter) Held(ctx context.Context) (h Held, err error) {
	waiting := s.index.waiting() // first: when they stop waiting they are in the database
	seen := make(map[string]bool)
	add := func(n needs) {
		if len(n.stack.Layers) == 0 {
			return
		}
		if name := n.stack.name(); !seen[name] {
			seen[name] = true
			h.Stacks = append(h.Stacks, n.stack)
		}
	}
	for _, n := range waiting {
		add(n)
	}
	err = s.store.view(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		rows, err := allRows(tx)
		if err != nil {
			return err
		}
		for _, r := range rows {
			h.Layers = append(h.Layers, r.Layer)
		}
		return s.eachNeeds(ctx, tx, func(_ string, n needs) { add(n) })
	})
	return h, err
}

// name is the same for equal stacks only.
func (st Stack) name() string {
	name := fmt.Sprintf("%q %q", st.Map.UID, st.Map.GID)
	for _, l := range st.Layers {
		name += fmt.Sprintf(" %q", l.Key)
	}
	return name
}

// eachNeeds calls fn with what every active snapshot and view is mounted from.
func (s *Snapshotter) eachNeeds(ctx context.Context, tx *bolt.Tx, fn func(id string, n needs)) error {
	return storage.WalkInfo(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			return nil
		}
		id, _, _, err := storage.GetInfo(ctx, info.Name)
		if err != nil {
			return err
		}
		c, err := s.chainOf(ctx, tx, info.Parent)
		if err != nil {
			return err
		}
		var m IDMap
		if !unpacks(info.Name, info.Labels) {
			if m, _, _, _, err = idMap(info.Labels); err != nil {
				m = IDMap{} // labels that were changed later
			}
		}
		fn(id, c.needs(m))
		return nil
	})
}

package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Commit makes an active snapshot a parent for others. What has been written
// into it is on disk before the database says so: it may be all there is of it.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	var base snapshots.Info // of the committed snapshot: its parent is the one to rebase on, if any
	for _, o := range opts {
		if err := o(&base); err != nil {
			return err
		}
	}
	base.Name = name
	if err := check(base); err != nil {
		return err
	}
	a, err := s.active(ctx, key)
	if err != nil {
		return err
	}
	var usage snapshots.Usage
	written := true
	if a.staged {
		if written, err = notEmpty(s.upper(a.id)); err != nil {
			return fmt.Errorf("commit snapshot %q: %w", key, err)
		}
	}
	if written {
		if usage, err = s.settle(ctx, a.id); err != nil {
			return fmt.Errorf("commit snapshot %q: %w", key, full(err))
		}
	}
	held := false
	err = s.store.update(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if held, err = s.staysHeld(ctx, tx, a, base.Parent, written); err != nil {
			return fmt.Errorf("commit snapshot %q: %w", key, err)
		}
		id, err := storage.CommitActive(ctx, key, name, usage, opts...)
		if err != nil {
			return err
		}
		if id != a.id {
			return fmt.Errorf("snapshot %q was replaced: %w", key, errdefs.ErrNotFound)
		}
		if !a.staged {
			return nil
		}
		if !held {
			return deleteRow(tx, id)
		}
		r := a.row
		r.Parent = ""
		return putRow(tx, id, r)
	})
	if err != nil {
		return full(err)
	}
	base.Kind = snapshots.KindCommitted
	switch {
	case held:
		s.index.put(a.id, base, &a.row)
		s.reaper.add(s.dir(a.id))
		s.Stats.Held.Add(1)
		if s.held != nil {
			s.held(ctx, a.row.Layer.Blob)
		}
	default:
		s.index.put(a.id, base, nil)
		if a.staged && s.layers != nil {
			s.layers.Collect()
		}
		if a.staged && written {
			s.Stats.Unstaged.Add(1)
			if s.unstaged.Swap(time.Now().Unix()) == 0 {
				s.log.Warn("containerd has unpacked a layer that was there already: it is one of before 2.4, and must not be told that this snapshotter can rebase")
			}
		}
	}
	s.Stats.Committed.Add(1)
	return nil
}

// An active is an active snapshot that is to be committed.
type active struct {
	id     string
	info   snapshots.Info
	row    row
	staged bool
}

func (s *Snapshotter) active(ctx context.Context, key string) (a active, err error) {
	err = s.store.view(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if a.id, a.info, _, err = storage.GetInfo(ctx, key); err != nil {
			return fmt.Errorf("snapshot %q: %w", key, err)
		}
		if a.info.Kind != snapshots.KindActive {
			return fmt.Errorf("snapshot %q is not active: %w", key, errdefs.ErrFailedPrecondition)
		}
		a.row, a.staged, err = rowOf(tx, a.id)
		return err
	})
	return a, err
}

// settle brings the content of a snapshot to the disk and says how much it is.
func (s *Snapshotter) settle(ctx context.Context, id string) (snapshots.Usage, error) {
	du, err := fs.DiskUsage(ctx, s.upper(id))
	if err != nil {
		return snapshots.Usage{}, err
	}
	dir, err := os.Open(s.upper(id))
	if err != nil {
		return snapshots.Usage{}, err
	}
	defer dir.Close()
	// One wait for all files. It says that writing back has failed, too (Linux 5.8).
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return snapshots.Usage{}, &os.PathError{Op: "syncfs", Path: s.upper(id), Err: err}
	}
	return snapshots.Usage(du), nil
}

// staysHeld says whether a snapshot is committed as what the book holds, and not
// as the directory it has. Only something held can be below it.
func (s *Snapshotter) staysHeld(ctx context.Context, tx *bolt.Tx, a active, parent string, written bool) (bool, error) {
	if !a.staged || written {
		return false, nil
	}
	if parent == "" {
		parent = a.info.Parent
	}
	if parent == "" {
		return false, fmt.Errorf("it was prepared to be on %s, and there is no parent: %w", a.row.Parent, errdefs.ErrInvalidArgument)
	}
	pid, _, _, err := storage.GetInfo(ctx, parent)
	if err != nil {
		return false, fmt.Errorf("parent %q: %w", parent, err)
	}
	below, held, err := rowOf(tx, pid)
	switch {
	case err != nil:
		return false, err
	case held && below.Target == a.row.Parent:
		return true, nil
	case held:
		return false, fmt.Errorf("it was prepared to be on %s, and parent %q is %s: %w", a.row.Parent, parent, below.Target, errdefs.ErrInvalidArgument)
	case !s.knowsStaged():
		return false, nil // a layer without a file, by a containerd that has unpacked it
	}
	return false, fmt.Errorf("parent %q was unpacked meanwhile; pull again: %w", parent, errdefs.ErrFailedPrecondition)
}

func notEmpty(dir string) (bool, error) {
	f, err := os.Open(dir)
	if err != nil {
		return false, err
	}
	defer f.Close()
	switch _, err := f.Readdirnames(1); {
	case errors.Is(err, io.EOF):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, nil
}

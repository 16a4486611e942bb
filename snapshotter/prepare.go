package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// Bounds of what comes from clients. containerd's own are 4096 bytes for a label
// and 76 for an identifier (pkg/labels, pkg/identifiers).
const (
	maxKey    = 4 << 10
	maxLabels = 256 << 10
)

// Prepare makes a snapshot to be written to. If it is for a layer that the book
// of images holds, nothing needs to be written, and it says so as containerd
// asked: see lazily.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	info, err := infoOf(snapshots.KindActive, key, parent, opts)
	if err != nil {
		return nil, err
	}
	if info.Labels[snapshots.LabelSnapshotRef] != "" {
		if m, done, err := s.lazily(ctx, info); done || err != nil {
			return m, err
		}
		s.Stats.Left.Add(1)
	}
	m, err := s.create(ctx, info, nil)
	if err == nil {
		s.Stats.Prepared.Add(1)
	}
	return m, err
}

// View makes a snapshot that shows parent and cannot be written to.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	info, err := infoOf(snapshots.KindView, key, parent, opts)
	if err != nil {
		return nil, err
	}
	m, err := s.create(ctx, info, nil)
	if err == nil {
		s.Stats.Viewed.Add(1)
	}
	return m, err
}

// infoOf checks what a client wants.
func infoOf(kind snapshots.Kind, name, parent string, opts []snapshots.Opt) (info snapshots.Info, err error) {
	for _, o := range opts {
		if err := o(&info); err != nil {
			return info, err
		}
	}
	info.Kind, info.Name, info.Parent = kind, name, parent
	return info, check(info)
}

func check(info snapshots.Info) error {
	n := 0
	for k, v := range info.Labels {
		n += len(k) + len(v)
	}
	switch {
	case info.Name == "":
		return fmt.Errorf("a snapshot needs a key: %w", errdefs.ErrInvalidArgument)
	case len(info.Name) > maxKey || len(info.Parent) > maxKey:
		return fmt.Errorf("a key of %d bytes, a parent of %d, at most %d: %w", len(info.Name), len(info.Parent), maxKey, errdefs.ErrInvalidArgument)
	case n > maxLabels:
		return fmt.Errorf("%d bytes of labels, at most %d: %w", n, maxLabels, errdefs.ErrInvalidArgument)
	}
	return nil
}

// create makes a snapshot, staged with r if it is not nil.
//
// The database has it first, then it gets its directory: an ID is never used
// twice, so a directory without a snapshot is nobody's at any time, and an
// active snapshot without a directory was not answered for.
func (s *Snapshotter) create(ctx context.Context, info snapshots.Info, r *row) (_ []mount.Mount, err error) {
	var m IDMap
	uid, gid, shifts := 0, 0, false
	if !unpacks(info.Name, info.Labels) { // a layer's owners are those of the image, whatever its annotations say
		if m, uid, gid, shifts, err = idMap(info.Labels); err != nil {
			return nil, err
		}
	}
	c, err := s.parent(ctx, info)
	if err != nil {
		return nil, err
	}
	defer s.index.pend(c.needs(m))()
	l, err := s.lower(ctx, c, m)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", info.Name, err)
	}
	if !shifts && len(l.dirs) > 0 && info.Kind == snapshots.KindActive {
		if uid, gid, err = owner(l.dirs[0]); err != nil {
			return nil, fmt.Errorf("parent of snapshot %q: %w", info.Name, err)
		}
	}
	id, err := s.insert(ctx, info, c, r)
	if err != nil {
		return nil, full(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("snapshot %q: %w", info.Name, full(err)), s.remove(context.WithoutCancel(ctx), info.Name))
		}
	}()
	if info.Kind == snapshots.KindActive || c.id == "" {
		if err := os.Mkdir(s.dir(id), 0o700); err != nil { // the number has never been used
			return nil, err
		}
		if err := s.fill(id, info.Kind, uid, gid); err != nil {
			return nil, err
		}
	}
	return s.mounts(formOf(id, info, r != nil), l)
}

// parent finds the chain below a snapshot that is to be made, and whether it may be made.
func (s *Snapshotter) parent(ctx context.Context, info snapshots.Info) (c chain, err error) {
	err = s.store.view(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if _, _, _, err := storage.GetInfo(ctx, info.Name); err == nil {
			return fmt.Errorf("snapshot %q: %w", info.Name, errdefs.ErrAlreadyExists)
		}
		c, err = s.chainOf(ctx, tx, info.Parent)
		return err
	})
	return c, err
}

// insert puts the snapshot into the database. c is what its parent was; if
// that was exchanged meanwhile, it is not there.
func (s *Snapshotter) insert(ctx context.Context, info snapshots.Info, c chain, r *row) (id string, err error) {
	err = s.store.update(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		sn, err := storage.CreateSnapshot(ctx, info.Kind, info.Name, info.Parent, snapshots.WithLabels(info.Labels))
		if err != nil {
			return err
		}
		if c.id != "" && sn.ParentIDs[0] != c.id {
			return fmt.Errorf("parent %q was replaced: %w", info.Parent, errdefs.ErrNotFound)
		}
		id = sn.ID
		if r == nil {
			return nil
		}
		return putRow(tx, id, *r)
	})
	if err != nil {
		return "", err
	}
	s.index.put(id, info, r)
	return id, nil
}

// fill makes the directories in that of a snapshot, as far as they are not there.
// The modes are those of containerd's overlayfs.
func (s *Snapshotter) fill(id string, kind snapshots.Kind, uid, gid int) error {
	if err := s.mkdir(s.upper(id), 0o755); err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		if err := os.Lchown(s.upper(id), uid, gid); err != nil {
			return err
		}
	}
	if kind != snapshots.KindActive {
		return nil
	}
	return s.mkdir(s.work(id), 0o711)
}

// mkdir is os.Mkdir whatever the umask is.
func (s *Snapshotter) mkdir(dir string, mode os.FileMode) error {
	if err := os.Mkdir(dir, mode); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if mode&s.umask == 0 {
		return nil
	}
	return os.Chmod(dir, mode)
}

// umask is the process's. The kernel says it without changing it (Linux 4.7).
func umask() os.FileMode {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o777
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 12); err == nil {
				return os.FileMode(n)
			}
		}
	}
	return 0o777
}

// owner is who owns the root directory of a parent: overlayfs shows that of the upper directory.
func owner(dir string) (uid, gid int, err error) {
	st, err := os.Stat(dir)
	if err != nil {
		return 0, 0, err
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, 0, fmt.Errorf("%s: no owner in %T", dir, st.Sys())
	}
	return int(sys.Uid), int(sys.Gid), nil
}

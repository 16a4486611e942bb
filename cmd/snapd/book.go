package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/images"
	inbook "github.com/snapfs/snapfs/internal/snapshots"
	"github.com/snapfs/snapfs/snapshotter"
)

// A book is the book of images, as the snapshotter of one containerd needs it.
type book struct {
	inbook.Layers
	c    *containerd
	mark sync.Once
}

var _ snapshotter.Layers = (*book)(nil)

func newBook(c *containerd) *book { return &book{Layers: inbook.Layers{Book: c.d.images}, c: c} }

// Mount mounts a stack.
func (b *book) Mount(ctx context.Context, st snapshotter.Stack) (snapshotter.Mounted, error) {
	b.mark.Do(b.c.markUsed)
	if st.Map != (snapshotter.IDMap{}) {
		defer b.c.d.shifts.mount()()
	}
	m, err := b.Layers.Mount(ctx, st)
	if isFull(err) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return m, unavailable(err)
}

// Collect soon releases what nothing holds any more.
func (b *book) Collect() {
	b.Layers.Collect()
	b.c.d.shifts.sweepSoon(b.c.d)
}

// shifts sees to it that images do not stay mounted for mappings of owners that no
// snapshot has any more: in Kubernetes, every pod has one of its own.
type shifts struct {
	mounting sync.RWMutex // held for reading while a stack is mounted; its snapshot holds it before
	none     atomic.Bool  // there is nothing to look for
	soon     atomic.Bool
	sweeping sync.WaitGroup
}

// sweepAfter is how long a sweep waits for more of its kind: a node is drained pod by pod.
const sweepAfter = time.Second

func (s *shifts) mount() (done func()) {
	s.mounting.RLock()
	s.none.Store(false)
	return s.mounting.RUnlock
}

// sweepSoon returns at once.
func (s *shifts) sweepSoon(d *daemon) {
	if s.none.Load() || d.base.Err() != nil || s.soon.Swap(true) {
		return
	}
	s.sweeping.Go(func() {
		select {
		case <-d.base.Done():
			return
		case <-time.After(sweepAfter):
		}
		s.soon.Store(false)
		switch err := s.sweep(d.base, d.held, d.w.KeepMappedImages); {
		case errors.Is(err, errMounting):
			s.sweepSoon(d)
		case err != nil && d.base.Err() == nil:
			d.log.Error("mounts with shifted owners that nobody needs stay", "err", err)
		}
	})
}

// errMounting puts a sweep off: a mount may wait for a registry, and a lock that
// is waited for would keep all other mounts waiting, too.
var errMounting = errors.New("a stack is being mounted")

func (s *shifts) sweep(ctx context.Context, held func(context.Context) (images.Held, error), keep func(context.Context, []mounts.IDMap) error) error {
	if !s.mounting.TryLock() {
		return errMounting
	}
	defer s.mounting.Unlock()
	h, err := held(ctx)
	if err != nil {
		return err
	}
	var maps []mounts.IDMap
	seen := map[images.IDMap]bool{{}: true}
	for _, st := range h.Stacks {
		if seen[st.Map] {
			continue
		}
		seen[st.Map] = true
		m, err := idMap(snapshotter.IDMap(st.Map))
		if err != nil {
			return err
		}
		maps = append(maps, m)
	}
	if err := keep(ctx, maps); err != nil {
		return err
	}
	s.none.Store(len(maps) == 0)
	return nil
}

// held is what all containerds keep from being collected. It waits until they
// are open. As long as one could not be opened nothing is collected: nobody knows
// what it needs, and containers that run may need it.
func (d *daemon) held(ctx context.Context) (all images.Held, err error) {
	select {
	case <-d.containerdsOpen:
	default:
		select {
		case <-ctx.Done():
			return all, ctx.Err()
		case <-d.containerdsOpen:
		}
	}
	// It is known at once, and the collection after a pull that ends with the
	// daemon is not to be left to the next one.
	ctx = context.WithoutCancel(ctx)
	if err := d.strangers(); err != nil {
		return all, err
	}
	var held []func(context.Context) (snapshotter.Held, error)
	for _, c := range d.containerds {
		if c.failed != nil {
			return all, c.failed
		}
		held = append(held, c.snapshots.Held)
	}
	return inbook.Held(ctx, held...)
}

// strangers says if there are snapshots of a containerd that is not served.
func (d *daemon) strangers() error {
	dirs, err := os.ReadDir(filepath.Join(d.c.Root, snapshotsDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, dir := range dirs {
		if !slices.ContainsFunc(d.containerds, func(c *containerd) bool { return c.Name == dir.Name() }) {
			return fmt.Errorf("%s is of a containerd that is not configured: configure it, or remove that directory if its containers are gone",
				filepath.Join(d.c.Root, snapshotsDir, dir.Name()))
		}
	}
	return err
}

// usedMark is a file that is there as long as containerd may have something
// mounted that reads from the FUSE mount: see inUse.
func (c *containerd) usedMark() string {
	return filepath.Join(c.d.c.Run, images.MountMarks, "containerd-"+c.Name)
}

func (c *containerd) markUsed() {
	path := c.usedMark()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o600)); err != nil {
		c.log.Error("a stop of snapd would end the mounts of containers", "err", err)
	}
}

// unmarkUsed undoes markUsed if no snapshot is left that could be mounted.
func (c *containerd) unmarkUsed() error {
	h, err := c.snapshots.Held(context.Background())
	if err != nil || len(h.Stacks) > 0 {
		return err
	}
	if err := os.Remove(c.usedMark()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/snapshotter"
)

// A book is the book of images, as the snapshotter of one containerd needs it.
type book struct {
	c    *containerd
	mark sync.Once
}

var _ snapshotter.Layers = (*book)(nil)

// Layer makes a layer of an image readable.
func (b *book) Layer(ctx context.Context, im snapshotter.Image, blob, diffID digest.Digest) (snapshotter.Layer, func(), error) {
	l, release, err := b.c.d.images.Layer(ctx, wanted(im), blob, diffID)
	if errors.Is(err, images.ErrNotOurs) {
		err = fmt.Errorf("%w: %w", snapshotter.ErrNotOurs, err)
	}
	if err != nil {
		return snapshotter.Layer{}, nil, err
	}
	return snapshotter.Layer{
		Key: l.Key, Blob: l.Blob, DiffID: l.DiffID,
		Image: snapshotter.Image{Ref: l.Of.Ref, Manifest: l.Of.Manifest},
	}, release, nil
}

// Mount mounts a stack.
func (b *book) Mount(ctx context.Context, st snapshotter.Stack) (snapshotter.Mounted, error) {
	b.mark.Do(b.c.markUsed)
	m, err := b.c.d.images.Mount(ctx, bookStack(st))
	switch {
	case errors.Is(err, images.ErrQuarantined):
		err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	case isFull(err):
		err = fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return snapshotter.Mounted{Dir: m.Dir, Data: m.Data}, unavailable(err)
}

// Usage is what a layer has on disk.
func (b *book) Usage(ctx context.Context, l snapshotter.Layer) (snapshots.Usage, error) {
	u, err := b.c.d.images.Usage(ctx, bookLayer(l))
	return snapshots.Usage{Size: u.Bytes, Inodes: int64(u.Files)}, err
}

// Collect soon releases what nothing holds any more.
func (b *book) Collect() { b.c.d.images.CollectSoon() }

func wanted(im snapshotter.Image) images.Wanted {
	return images.Wanted{Ref: im.Ref, Manifest: im.Manifest}
}

func bookLayer(l snapshotter.Layer) images.Layer {
	return images.Layer{Key: l.Key, Of: wanted(l.Image), Blob: l.Blob, DiffID: l.DiffID}
}

func bookStack(st snapshotter.Stack) (b images.Stack) {
	b.Map = images.IDMap(st.Map)
	for _, l := range st.Layers {
		b.Layers = append(b.Layers, bookLayer(l))
	}
	return b
}

// held is what all containerds keep from being collected. It waits until they
// are open. As long as one could not be opened nothing is collected: nobody knows
// what it needs, and containers that run may need it.
func (d *daemon) held(ctx context.Context) (all images.Held, err error) {
	select {
	case <-ctx.Done():
		return all, ctx.Err()
	case <-d.containerdsOpen:
	}
	if err := d.strangers(); err != nil {
		return all, err
	}
	for _, c := range d.containerds {
		if c.failed != nil {
			return all, c.failed
		}
		h, err := c.snapshots.Held(ctx)
		if err != nil {
			return all, fmt.Errorf("snapshots of containerd %s: %w", c.Name, err)
		}
		for _, l := range h.Layers {
			all.Layers = append(all.Layers, bookLayer(l))
		}
		for _, st := range h.Stacks {
			all.Stacks = append(all.Stacks, bookStack(st))
		}
	}
	return all, nil
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

// Package snapshots lets containerd's snapshotter have the layers of the book of
// images: it says in the words of the one what the other knows, and neither has
// to import what the other needs.
package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/snapshotter"
)

// Layers is a book of images as a snapshotter needs it.
type Layers struct{ Book *images.Service }

var _ snapshotter.Layers = Layers{}

// Layer is [images.Service.Layer].
func (l Layers) Layer(ctx context.Context, im snapshotter.Image, blob, diffID digest.Digest) (snapshotter.Layer, func(), error) {
	got, release, err := l.Book.Layer(ctx, images.Wanted(im), blob, diffID)
	if err != nil {
		return snapshotter.Layer{}, nil, notOurs{err}
	}
	return snapshotter.Layer{Key: got.Key, Image: snapshotter.Image(got.Of), Blob: got.Blob, DiffID: got.DiffID}, release, nil
}

// notOurs makes the book's ErrNotOurs the snapshotter's.
type notOurs struct{ error }

func (e notOurs) Unwrap() error { return e.error }

func (e notOurs) Is(target error) bool {
	return target == snapshotter.ErrNotOurs && errors.Is(e.error, images.ErrNotOurs)
}

// Mount is [images.Service.Mount].
func (l Layers) Mount(ctx context.Context, s snapshotter.Stack) (snapshotter.Mounted, error) {
	m, err := l.Book.Mount(ctx, stack(s))
	switch {
	case errors.Is(err, images.ErrQuarantined):
		err = fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	case errors.Is(err, fs.ErrInvalid):
		err = fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return snapshotter.Mounted(m), err
}

// Usage is [images.Service.Usage].
func (l Layers) Usage(ctx context.Context, of snapshotter.Layer) (snapshots.Usage, error) {
	u, err := l.Book.Usage(ctx, layer(of))
	return snapshots.Usage{Size: u.Bytes, Inodes: int64(u.Files)}, err
}

// Leave is [images.Service.Leave].
func (l Layers) Leave(im snapshotter.Image, why error) { l.Book.Leave(images.Wanted(im), why) }

// Collect is [images.Service.CollectSoon].
func (l Layers) Collect() { l.Book.CollectSoon() }

// Held gathers what snapshotters hold, for [images.Options].
func Held(ctx context.Context, of ...func(context.Context) (snapshotter.Held, error)) (all images.Held, err error) {
	for _, held := range of {
		h, err := held(ctx)
		if err != nil {
			return images.Held{}, fmt.Errorf("what a snapshotter holds: %w", err)
		}
		for _, l := range h.Layers {
			all.Layers = append(all.Layers, layer(l))
		}
		for _, s := range h.Stacks {
			all.Stacks = append(all.Stacks, stack(s))
		}
	}
	return all, nil
}

func layer(l snapshotter.Layer) images.Layer {
	return images.Layer{Key: l.Key, Of: images.Wanted(l.Image), Blob: l.Blob, DiffID: l.DiffID}
}

func stack(s snapshotter.Stack) images.Stack {
	st := images.Stack{Map: images.IDMap(s.Map)}
	for _, l := range s.Layers {
		st.Layers = append(st.Layers, layer(l))
	}
	return st
}

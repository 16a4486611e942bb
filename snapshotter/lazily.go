package snapshotter

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"
)

// lazily prepares a layer that need not be unpacked, in one of two ways.
//
// If the parent is named, or there is none, the layer is committed under its
// chain ID, and done with ErrAlreadyExists: containerd then looks for a committed
// snapshot with this parent and the label of this chain ID (core/metadata/snapshot.go).
//
// If layers are unpacked side by side, which containerd does if it is told that
// this snapshotter can rebase, the parent is not named before Commit. Then the layer is
// staged: active, with a mount that is read-only. containerd 2.4 skips fetching
// and unpacking. 2.3 asks in the very same way and does not know about staged
// ones; it writes into the upper directory, and Commit finds what is in there.
//
// If it returns neither done nor an error the layer is containerd's, like any.
func (s *Snapshotter) lazily(ctx context.Context, info snapshots.Info) (_ []mount.Mount, done bool, err error) {
	c, complete := readClaim(info.Labels)
	if s.layers == nil || !complete {
		return nil, false, nil
	}
	if s.held != nil {
		defer func() {
			if done && errors.Is(err, errdefs.ErrAlreadyExists) { // staged ones are told of when they are committed
				s.held(ctx, c.blob)
			}
		}()
	}
	serial := info.Parent != "" || c.parent == ""
	below := c.parent
	if serial {
		var known bool
		if below, known, err = s.known(ctx, info, c); known || err != nil {
			return nil, known, err
		}
	} else if !s.knowsStaged() {
		s.leave(c, errRebase)
		return nil, false, nil
	} else if !s.index.onlyHeld(below) {
		s.leave(c, errBelow)
		return nil, false, nil
	}
	if below == notHeld || info.Parent != "" && c.parent != "" && c.parent != below || c.diffID != "" && !c.proves(c.diffID, below) {
		s.leave(c, errBelow)
		return nil, false, nil
	}
	l, release, err := s.layers.Layer(ctx, c.image, c.blob, c.diffID)
	if err != nil {
		if ctx.Err() != nil {
			return nil, false, err
		}
		s.log.Info("layer is left to containerd", "ref", c.image.Ref, "layer", c.blob, "err", err)
		return nil, false, nil
	}
	defer release()
	if !c.proves(l.DiffID, below) { // containerd before 2.3 does not say the diff ID, nor whether there is a parent
		s.leave(c, errNotProven)
		return nil, false, nil
	}
	r := row{Layer: l, Target: c.target}
	if serial {
		err = s.commitHeld(ctx, info, r)
		return nil, err != nil, err
	}
	r.Parent = below
	m, err := s.create(ctx, info, &r)
	if err == nil {
		s.Stats.Prepared.Add(1)
	}
	return m, err == nil, err
}

// The snapshotter's own reasons for leaving a layer to containerd.
var (
	errBelow     = errors.New("what is below it is a directory, or is not what the labels say")
	errRebase    = errors.New("this containerd was told that layers can be rebased, and does not know staged ones: snapctl containerd check")
	errNotProven = errors.New("its diff ID does not belong to it")
)

// leave notes that a layer is left to containerd.
func (s *Snapshotter) leave(c claim, why error) {
	s.log.Info("layer is left to containerd", "ref", c.image.Ref, "layer", c.blob, "chain", c.target, "why", why)
	s.layers.Leave(c.image, fmt.Errorf("layer %s: %w", c.blob, why))
}

// notHeld stands for what is below a layer if the book does not hold it.
const notHeld digest.Digest = "-"

// known finds the chain ID of the parent, and whether the snapshot that is asked
// for is there already, which is the error ErrAlreadyExists.
func (s *Snapshotter) known(ctx context.Context, info snapshots.Info, c claim) (below digest.Digest, known bool, err error) {
	err = s.store.view(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if _, _, _, err := storage.GetInfo(ctx, info.Name); err == nil {
			return fmt.Errorf("snapshot %q: %w", info.Name, errdefs.ErrAlreadyExists)
		}
		if _, exists := heldName(ctx, c.target, info.Parent); exists {
			known = true
			return fmt.Errorf("snapshot of %s: %w", c.target, errdefs.ErrAlreadyExists)
		}
		if info.Parent == "" {
			return nil
		}
		id, _, _, err := storage.GetInfo(ctx, info.Parent)
		if err != nil {
			return fmt.Errorf("parent %q: %w", info.Parent, err)
		}
		r, held, err := rowOf(tx, id)
		if below = r.Target; !held {
			below = notHeld
		}
		return err
	})
	return below, known, err
}

// heldName is the name of the committed snapshot of target on parent, and
// whether it exists. Namespaces of containerd share them. Usually it is the
// chain ID itself; but one namespace may have unpacked the parent, or have it staged under a
// name of its own, and then the chain on it is another.
func heldName(ctx context.Context, target digest.Digest, parent string) (name string, exists bool) {
	for _, n := range []string{target.String(), target.String() + " on " + digest.FromString(parent).Encoded()} {
		_, info, _, err := storage.GetInfo(ctx, n)
		switch {
		case err == nil && info.Parent == parent && info.Kind == snapshots.KindCommitted && info.Labels[snapshots.LabelSnapshotRef] == target.String():
			return n, true
		case err != nil && name == "":
			name = n
		}
	}
	if name == "" { // somebody has given both names to something else; there is an error for that
		name = target.String()
	}
	return name, false
}

// commitHeld commits a layer that is held. It has no directory. The error is
// ErrAlreadyExists if that worked.
func (s *Snapshotter) commitHeld(ctx context.Context, info snapshots.Info, r row) error {
	var id, name string
	err := s.store.update(ctx, func(ctx context.Context, tx *bolt.Tx) error {
		if info.Parent != "" {
			pid, _, _, err := storage.GetInfo(ctx, info.Parent)
			if err != nil {
				return fmt.Errorf("parent %q: %w", info.Parent, err)
			}
			if _, held, err := rowOf(tx, pid); err != nil || !held {
				return fmt.Errorf("parent %q was replaced: %w", info.Parent, errdefs.ErrNotFound)
			}
		}
		var exists bool
		if name, exists = heldName(ctx, r.Target, info.Parent); exists {
			return fmt.Errorf("snapshot of %s: %w", r.Target, errdefs.ErrAlreadyExists)
		}
		labels := snapshots.WithLabels(info.Labels)
		sn, err := storage.CreateSnapshot(ctx, snapshots.KindActive, info.Name, info.Parent, labels)
		if err != nil {
			return err
		}
		if _, err := storage.CommitActive(ctx, info.Name, name, snapshots.Usage{}, labels); err != nil {
			return err
		}
		id = sn.ID
		return putRow(tx, id, r)
	})
	if errors.Is(err, errdefs.ErrAlreadyExists) {
		return err
	}
	if err != nil {
		return full(err)
	}
	info.Name, info.Kind = name, snapshots.KindCommitted
	s.index.put(id, info, &r)
	s.Stats.Held.Add(1)
	return fmt.Errorf("snapshot of %s: %w", r.Target, errdefs.ErrAlreadyExists)
}

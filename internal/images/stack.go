package images

import (
	"cmp"
	"context"
	"fmt"
	iofs "io/fs"
	"path/filepath"
	"slices"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/fs/mounts"
)

// A Stack is a run of layers that a snapshotter shows as one directory.
type Stack struct {
	Layers []Layer // the lowest of an image and those above it, in this order
	Map    IDMap
}

// An IDMap shifts owners; the zero value shifts nothing.
type IDMap struct {
	UID, GID string // CONTAINER:HOST:SIZE, several with commas; "": these are not shifted
}

// Mounted is where a stack is mounted: a lower directory for overlayfs, and the
// data-only layers that belong to it, in the order in which they are searched.
type Mounted struct {
	Dir  string
	Data []string
}

// ErrNoLayers refuses a stack of none.
var ErrNoLayers = fmt.Errorf("a stack without layers: %w", iofs.ErrInvalid)

// Mount mounts a stack, once, and sees to it that what is missing of its image
// follows. Layers that were lost are fetched again. Options.Held has to name the
// stack by the time it comes back. It is ErrQuarantined if an index has lied.
func (s *Service) Mount(ctx context.Context, st Stack) (Mounted, error) {
	if len(st.Layers) == 0 {
		return Mounted{}, ErrNoLayers
	}
	keys, whole, release, err := s.stackKeys(ctx, st)
	if err != nil {
		return Mounted{}, err
	}
	defer release()
	id := treeID(keys)
	defer s.pinNames(append(slices.Clone(keys), id)...)()
	row, err := s.stackTree(ctx, id, keys)
	if err != nil {
		return Mounted{}, fmt.Errorf("metadata image: %w", err)
	}
	if whole && row.Sealed && !s.Indexes.Publish { // as nearly always
		return s.mountStack(ctx, id, keys, true, false, st.Map)
	}
	k := s.imageOf(&st, id, keys)
	record := s.Recordable(k)
	first := (record || !whole || !row.Sealed) && s.following.begin(id)
	record = record && first
	m, err := s.mountStack(ctx, id, keys, row.Sealed, record, st.Map)
	if first {
		s.follow(k, id, whole && !record)
	}
	return m, err
}

// mountStack mounts the metadata image of a stack. With record, every file is read
// by way of the daemon; see [Service.Rootfs].
func (s *Service) mountStack(ctx context.Context, id string, keys []string, sealed, record bool, m IDMap) (Mounted, error) {
	data := append(s.Store.DataDirs(), filepath.Join(s.Run, "lazy"))
	if record {
		if err := s.unsealed(&Known{manifestRow: manifestRow{Tree: id, Layers: keys}}); err != nil {
			return Mounted{}, fmt.Errorf("metadata image: %w", err)
		}
		sealed, data = false, data[len(data)-1:]
	}
	dir, err := s.mountTree(ctx, treeName(id, sealed), s.treePath(id, sealed), m)
	return Mounted{Dir: dir, Data: data}, err
}

// mountTree mounts a metadata image, with shifted owners if m says so.
func (s *Service) mountTree(ctx context.Context, name, path string, m IDMap) (string, error) {
	if m == (IDMap{}) {
		return s.Mounter.MountImage(ctx, name, path)
	}
	const none = "0:0:4294967295"
	shift, err := mounts.ParseIDMap(cmp.Or(m.UID, none), cmp.Or(m.GID, none))
	if err != nil {
		return "", err
	}
	return s.Mounter.MountMapped(ctx, name, path, shift)
}

// stackTree makes the metadata image of a stack, if there is none.
func (s *Service) stackTree(ctx context.Context, id string, keys []string) (*treeRow, error) {
	if row := s.knownTree(id); row != nil {
		return row, nil
	}
	if _, err := s.tree(ctx, keys, nil, nil); err != nil {
		return nil, err
	}
	if row := s.knownTree(id); row != nil {
		return row, nil
	}
	return nil, iofs.ErrNotExist
}

// stackKeys are the keys of the layers as they are now, pinned until release.
// whole says that nothing of them is missing.
func (s *Service) stackKeys(ctx context.Context, st Stack) (keys []string, whole bool, release func(), err error) {
	var all []func()
	unpin := func() {
		for _, f := range all {
			f()
		}
	}
	defer func() {
		if err != nil {
			unpin()
		}
	}()
	for range 2 { // the second time, what was lost is back, and pinned
		var lost []Layer
		if keys, whole, lost, err = s.currentKeys(st); err != nil {
			return nil, false, nil, err
		}
		if len(lost) == 0 {
			return keys, whole, unpin, nil
		}
		for _, l := range lost {
			_, release, err := s.Layer(ctx, l.Of, l.Blob, l.DiffID)
			if err != nil {
				return nil, false, nil, fmt.Errorf("layer %s must be fetched again: %w", l.Blob, err)
			}
			all = append(all, release)
		}
	}
	return nil, false, nil, fmt.Errorf("its layers do not stay: %w", iofs.ErrNotExist)
}

// currentKeys looks the layers up. lost are those that are not there.
func (s *Service) currentKeys(st Stack) (keys []string, whole bool, lost []Layer, err error) {
	whole = true
	err = s.db.View(func(tx *bolt.Tx) error {
		for _, l := range st.Layers {
			key, row, ok := standsFor(tx, l)
			if was := new(layerRow); !ok && get(tx, "layers", l.Key, was) == nil && was.Lied {
				return fmt.Errorf("%w: layer %s: its index lies; pull %s again to have it without", ErrQuarantined, l.Blob, familiar(l.Of.Ref))
			}
			if !ok {
				lost = append(lost, l)
				continue
			}
			keys, whole = append(keys, key), whole && row.Complete
		}
		return nil
	})
	return keys, whole, lost, err
}

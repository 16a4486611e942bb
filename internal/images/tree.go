package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/objects"
)

// treeID names the metadata image of a stack of layers. Images with the same
// layers share it, and its pages.
func treeID(layerKeys []string) string {
	sum := sha256.Sum256([]byte(strings.Join(layerKeys, "\n")))
	return hex.EncodeToString(sum[:])
}

// tree makes the metadata image of the layers if there is none, and returns
// its ID. fresh holds the indexes that are in memory already; others are read.
func (s *Service) tree(ctx context.Context, keys []string, fresh []*layers.Index, progress func(control.Progress)) (string, error) {
	id := treeID(keys)
	_, err := s.trees.do(ctx, s.base, id, progress, func(ctx context.Context, p func(control.Progress)) (*treeRow, error) {
		if row := s.knownTree(id); row != nil {
			return row, nil
		}
		p(control.Progress{Action: "building"})
		row, err := s.build(id, keys, fresh)
		if err != nil {
			return nil, fmt.Errorf("metadata image: %w", err)
		}
		p(control.Progress{Action: "building", Done: true})
		return row, nil
	})
	return id, err
}

func (s *Service) knownTree(id string) *treeRow {
	row := new(treeRow)
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "trees", id, row) }) != nil {
		return nil
	}
	if _, err := os.Stat(s.treePath(id, row.Sealed)); err != nil {
		return nil
	}
	return row
}

// build merges the layers and writes the metadata image. If they are complete,
// small files go into it: then it is sealed.
func (s *Service) build(id string, keys []string, fresh []*layers.Index) (*treeRow, error) {
	t, err := s.merge(keys, fresh)
	if err != nil {
		return nil, err
	}
	var o erofs.Options
	local := len(s.incomplete(keys)) == 0
	if local { // else it would not be sealed, and looking for each small file is most of the work
		o = erofs.Options{InlineMax: objects.MaxPacked, Has: s.Store.Has, Read: s.readAll}
	}
	f, sum, err := s.writeTree(id, t, o)
	if err != nil {
		return nil, err
	}
	defer f.discard()
	sum.Sealed = sum.Sealed && local
	if err := f.keep(s.treePath(id, sum.Sealed)); err != nil {
		return nil, err
	}
	row := &treeRow{Layers: keys, Files: sum.Names, Sealed: sum.Sealed, Bytes: sum.Size}
	return row, s.db.Update(func(tx *bolt.Tx) error { return put(tx, "trees", id, row) })
}

// merge lays the layers over one another, lowest first.
func (s *Service) merge(keys []string, fresh []*layers.Index) (t *fs.Tree, err error) {
	for i, key := range keys {
		ix, err := s.index(key, fresh, i)
		if err != nil {
			return nil, err
		}
		if t, err = fs.Merge(t, ix); err != nil {
			return nil, fmt.Errorf("layer %d of %d: %w", i+1, len(keys), err)
		}
	}
	if t == nil { // an image without layers is an empty directory
		return fs.Merge(nil, &layers.Index{})
	}
	return t, nil
}

// A tempFile has no name yet by which anybody looks for it.
type tempFile struct{ *os.File }

func (f tempFile) keep(path string) error { return os.Rename(f.Name(), path) }

// discard closes the file, and removes it if it was not kept.
func (f tempFile) discard() { f.Close(); os.Remove(f.Name()) }

// writeTree writes a metadata image to a file that the caller keeps or discards.
func (s *Service) writeTree(id string, t *fs.Tree, o erofs.Options) (tempFile, erofs.Summary, error) {
	tmp, err := os.CreateTemp(filepath.Join(s.Root, "images"), "."+id+"-")
	if err != nil {
		return tempFile{}, erofs.Summary{}, err
	}
	f := tempFile{tmp}
	sum, err := erofs.Write(f, t, o)
	if err != nil {
		f.discard()
	}
	return f, sum, err
}

// readAll fills p with the bytes of an object that the store has.
func (s *Service) readAll(sum layers.Sum, p []byte) error {
	_, err := s.Store.ReadAt(sum, p, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// index returns the i-th layer's index, from memory or disk.
func (s *Service) index(key string, fresh []*layers.Index, i int) (*layers.Index, error) {
	if i < len(fresh) && fresh[i] != nil {
		return fresh[i], nil
	}
	f, err := indexfile.Open(s.indexPath(key))
	if err != nil {
		return nil, err
	}
	ix, err := f.Index()
	return ix, errors.Join(err, f.Close())
}

// Rootfs says how to mount an image. The metadata image is mounted when it
// comes back; Users must name whoever goes on to use it. With record, every file
// is read by way of the daemon, which so learns what a start needs of an image
// that is local; see Begin. A quarantined image is refused.
func (s *Service) Rootfs(ctx context.Context, k *Known, record bool) (control.Rootfs, error) {
	k = s.current(k)
	if err := k.startable(); err != nil {
		return control.Rootfs{}, err
	}
	if s.Directories {
		if !s.usable(&k.manifestRow) {
			if err := s.restore(ctx, k); err != nil {
				return control.Rootfs{}, err
			}
		}
		return s.directory(ctx, k)
	}
	s.live.RLock()
	row := s.knownTree(k.Tree)
	s.live.RUnlock()
	if row == nil || !s.usable(&k.manifestRow) {
		if err := s.restore(ctx, k); err != nil {
			return control.Rootfs{}, err
		}
		if row = s.knownTree(k.Tree); row == nil {
			return control.Rootfs{}, fmt.Errorf("image %s: metadata image: %w", k.Ref, iofs.ErrNotExist)
		}
	}
	sealed, data := row.Sealed, append(s.Store.DataDirs(), filepath.Join(s.Run, "lazy"))
	if record {
		if err := s.unsealed(k); err != nil {
			return control.Rootfs{}, fmt.Errorf("image %s: metadata image: %w", k.Ref, err)
		}
		sealed, data = false, data[len(data)-1:]
	}
	name := treeName(k.Tree, sealed)
	dir, err := s.Mounter.MountImage(ctx, name, s.treePath(k.Tree, sealed))
	if err != nil {
		return control.Rootfs{}, fmt.Errorf("image %s: %w", k.Ref, err)
	}
	return control.Rootfs{Image: name, Lower: []string{dir}, Data: data}, nil
}

// unsealed makes the metadata image without files' bytes, if it is not there.
// No row names it: it goes with the tree, and is made again after a crash.
func (s *Service) unsealed(k *Known) error {
	s.live.RLock()
	defer s.live.RUnlock()
	if _, err := os.Stat(s.treePath(k.Tree, false)); err == nil {
		return nil
	}
	t, err := s.merge(k.Layers, nil)
	if err != nil {
		return err
	}
	f, _, err := s.writeTree(k.Tree, t, erofs.Options{})
	if err != nil {
		return err
	}
	defer f.discard()
	if err := f.Sync(); err != nil { // as no row will say that it is durable
		return err
	}
	return f.keep(s.treePath(k.Tree, false))
}

// restore makes again what an unclean boot or a hand on the state directory
// has cost: layers from the registry, the metadata image from the layers.
func (s *Service) restore(ctx context.Context, k *Known) error {
	if !s.usable(&k.manifestRow) {
		return s.reingest(ctx, k)
	}
	s.live.RLock()
	defer s.live.RUnlock()
	_, err := s.tree(ctx, k.Layers, nil, nil)
	return err
}

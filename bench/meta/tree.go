package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// largeName is the file that is read from end to end.
const largeName = "snapfs-bench-large"

// fromDir puts the files below dir into the store and returns their index, with
// a large file beside them. Further links of a file become files.
func fromDir(dir string, largeMiB int, store *objects.Store) (*layers.Index, error) {
	ix := new(layers.Index)
	err := filepath.WalkDir(dir, func(path string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		e, err := entry(dir, path, d, store)
		if err != nil || e.Kind == 0 {
			return err
		}
		ix.Entries = append(ix.Entries, e)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ix, addLarge(ix, largeMiB, store)
}

// entry describes what is at path; its Kind is 0 if it is left out.
func entry(dir, path string, d iofs.DirEntry, store *objects.Store) (e layers.Entry, err error) {
	info, err := d.Info()
	if err != nil {
		return e, err
	}
	st := info.Sys().(*syscall.Stat_t)
	e = layers.Entry{Mode: uint16(st.Mode & 0o7777), UID: st.Uid, GID: st.Gid, Sec: st.Mtim.Sec, Nsec: uint32(st.Mtim.Nsec)}
	if path != dir {
		if e.Name, err = filepath.Rel(dir, path); err != nil {
			return e, err
		}
	}
	switch {
	case d.IsDir():
		e.Kind = layers.Dir
	case d.Type() == iofs.ModeSymlink:
		e.Kind = layers.Symlink
		e.Link, err = os.Readlink(path)
	case d.Type().IsRegular():
		e.Kind, e.Size = layers.Reg, info.Size()
		if e.Size == 0 {
			return e, nil
		}
		f, err := os.Open(path)
		if err != nil {
			return e, err
		}
		defer f.Close()
		e.Object, err = keep(store, f)
		return e, err
	}
	return e, err
}

// keep makes an object of what r has, as a file of its own.
func keep(store *objects.Store, r io.Reader) (layers.Sum, error) {
	w, err := store.Create()
	if err != nil {
		return layers.Sum{}, err
	}
	defer w.Abort()
	if _, err := io.Copy(w, r); err != nil {
		return layers.Sum{}, err
	}
	return w.Commit(nil)
}

func addLarge(ix *layers.Index, mib int, store *objects.Store) error {
	size := int64(mib) << 20
	sum, err := keep(store, io.LimitReader(rand.NewChaCha8([32]byte{1}), size))
	ix.Entries = append(ix.Entries, layers.Entry{Name: largeName, Kind: layers.Reg, Mode: 0o644, Size: size, Object: sum})
	return err
}

// fromImage unpacks an image into a store of its own and puts its files into store.
func fromImage(ctx context.Context, name, scratch string, largeMiB int, store *objects.Store) (_ []*layers.Index, err error) {
	from, err := objects.Open(scratch, objects.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	list, err := unpack(ctx, name, from)
	if err != nil {
		return nil, err
	}
	for _, ix := range list {
		for _, e := range ix.Entries {
			if e.Kind != layers.Reg || e.Size == 0 || store.Has(e.Object) {
				continue
			}
			if _, err := keep(store, io.NewSectionReader(reader{from, e.Object}, 0, e.Size)); err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name, err)
			}
		}
	}
	large := new(layers.Index)
	return append(list, large), addLarge(large, largeMiB, store)
}

func unpack(ctx context.Context, name string, store *objects.Store) ([]*layers.Index, error) {
	ref, err := registry.ParseRef(name)
	if err != nil {
		return nil, err
	}
	reg := registry.New(registry.Options{})
	defer reg.Close()
	img, err := reg.Resolve(ctx, ref, "")
	if err != nil {
		return nil, err
	}
	list := make([]tarindex.Layer, len(img.Manifest.Layers))
	for i, desc := range img.Manifest.Layers {
		list[i] = tarindex.Layer{Desc: desc, DiffID: img.Config.RootFS.DiffIDs[i], Open: stream(img, desc)}
	}
	unpacked, err := tarindex.UnpackAll(ctx, list, store)
	out := make([]*layers.Index, len(unpacked))
	for i, u := range unpacked {
		out[i] = u.Index
		err = errors.Join(err, u.Close())
	}
	return out, err
}

func stream(img *registry.Image, desc ocispec.Descriptor) func(context.Context) (io.ReadCloser, error) {
	return func(ctx context.Context) (io.ReadCloser, error) { return img.Stream(ctx, desc) }
}

// reader reads an object.
type reader struct {
	store *objects.Store
	sum   layers.Sum
}

func (r reader) ReadAt(p []byte, off int64) (int, error) { return r.store.ReadAt(r.sum, p, off) }

// writePlain makes the tree at dir, as unpacking does.
func writePlain(t *fs.Tree, dir string, store *objects.Store) error {
	first := map[*fs.Node]string{}
	for name, n := range t.Walk() {
		path := filepath.Join(dir, name)
		if old, ok := first[n]; ok && n.Kind != layers.Dir {
			if err := os.Link(old, path); err != nil {
				return err
			}
			continue
		}
		first[n] = path
		if err := writeNode(n, path, store); err != nil {
			return err
		}
	}
	// Children change the times of directories: those come last.
	for name, n := range t.Walk() {
		ts := []unix.Timespec{{Sec: n.Sec, Nsec: int64(n.Nsec)}, {Sec: n.Sec, Nsec: int64(n.Nsec)}}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, name), ts, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return nil
}

func writeNode(n *fs.Node, path string, store *objects.Store) (err error) {
	switch n.Kind {
	case layers.Dir:
		err = os.Mkdir(path, 0o755)
		if errors.Is(err, iofs.ErrExist) { // the root
			err = nil
		}
	case layers.Symlink:
		err = os.Symlink(n.Link, path)
	case layers.Reg:
		err = writeFile(n, path, store)
	default:
		kinds := map[layers.Kind]uint32{layers.Char: unix.S_IFCHR, layers.Block: unix.S_IFBLK, layers.Fifo: unix.S_IFIFO}
		err = unix.Mknod(path, kinds[n.Kind], int(unix.Mkdev(n.Major, n.Minor)))
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(path, int(n.UID), int(n.GID)); err != nil {
		return err
	}
	for _, x := range n.Xattrs {
		if err := unix.Lsetxattr(path, x.Name, []byte(x.Value), 0); err != nil {
			return fmt.Errorf("%s: %s: %w", path, x.Name, err)
		}
	}
	if n.Kind == layers.Symlink {
		return nil
	}
	return unix.Chmod(path, uint32(n.Mode))
}

func writeFile(n *fs.Node, path string, store *objects.Store) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if n.Size > 0 {
		_, err = io.Copy(f, io.NewSectionReader(reader{store, n.Object}, 0, n.Size))
	}
	return errors.Join(err, f.Close())
}

// treeInfo is what is read: names relative to the root, in the order of a walk.
type treeInfo struct {
	Source                     string
	Names, Regular, Small      int
	Bytes, SmallBytes          int64
	Large                      int64
	names, files, small, large []string
}

func listTree(source string, t *fs.Tree) (i treeInfo) {
	i.Source = source
	for name, n := range t.Walk() {
		i.names = append(i.names, cmp.Or(name, "."))
		if n.Kind != layers.Reg {
			continue
		}
		i.files = append(i.files, name)
		i.Bytes += n.Size
		switch {
		case name == largeName:
			i.large = append(i.large, name)
			i.Large = n.Size
		case n.Size > 0 && n.Size <= objects.MaxPacked:
			i.small = append(i.small, name)
			i.SmallBytes += n.Size
		}
	}
	i.names = slices.Clip(i.names)
	i.Names, i.Regular, i.Small = len(i.names), len(i.files), len(i.small)
	return i
}

package equal

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// ours is a stack of layers as snapfs has it. Small objects, which the store
// keeps in packs and FUSE serves, are files of their own here.
type ours struct {
	store *objects.Store
	small string // directory of small objects
	tree  *fs.Tree
	above []string // directories, highest first
}

func newOurs(t *testing.T) *ours {
	store, err := objects.Open(t.TempDir(), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	return &ours{store: store, small: t.TempDir()}
}

// empty forgets the layers, not the objects.
func (s *ours) empty() { s.tree = nil }

// add merges a layer.
func (s *ours) add(ctx context.Context, desc ocispec.Descriptor, diffID digest.Digest, r io.Reader) error {
	u, err := tarindex.Unpack(ctx, r, desc, diffID, s.store, tarindex.Options{})
	if err != nil {
		return err
	}
	if err := u.Close(); err != nil {
		return err
	}
	ix := u.Index
	for _, e := range ix.Entries {
		if e.Kind == layers.Reg && e.Size > 0 && e.Size <= objects.MaxPacked {
			if err := s.keep(e.Object, e.Size); err != nil {
				return err
			}
		}
	}
	s.tree, err = fs.Merge(s.tree, ix)
	return err
}

// addTar merges a layer that archive/tar reads, entry by entry as they are.
func (s *ours) addTar(_ context.Context, b []byte) error {
	ix := &layers.Index{}
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		e, err := s.entry(h, r)
		if err != nil {
			return err
		}
		ix.Entries = append(ix.Entries, e)
	}
	tree, err := fs.Merge(s.tree, ix)
	if err == nil {
		s.tree = tree
	}
	return err
}

func (s *ours) entry(h *tar.Header, r io.Reader) (layers.Entry, error) {
	e := layers.Entry{
		Name: strings.TrimPrefix(path.Clean("/"+h.Name), "/"), Kind: kinds[h.Typeflag], Mode: uint16(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid),
		Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()), Link: h.Linkname, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor),
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, "SCHILY.xattr."); ok {
			e.Xattrs = append(e.Xattrs, layers.Xattr{Name: name, Value: value})
		}
	}
	slices.SortFunc(e.Xattrs, func(a, b layers.Xattr) int { return strings.Compare(a.Name, b.Name) })
	body, err := io.ReadAll(r)
	if err != nil || len(body) == 0 {
		return e, err
	}
	e.Size, e.Object = int64(len(body)), layers.SumOf(body)
	if err := s.store.Put(e.Object, body); err != nil {
		return e, err
	}
	return e, s.keep(e.Object, e.Size)
}

var kinds = map[byte]layers.Kind{
	tar.TypeReg: layers.Reg, tar.TypeDir: layers.Dir, tar.TypeSymlink: layers.Symlink, tar.TypeLink: layers.Hardlink,
	tar.TypeChar: layers.Char, tar.TypeBlock: layers.Block, tar.TypeFifo: layers.Fifo,
}

func (s *ours) keep(sum layers.Sum, size int64) error {
	name := filepath.Join(s.small, sum.Path())
	if _, err := os.Lstat(name); err == nil {
		return nil
	}
	b := make([]byte, size)
	if err := s.read(sum, b); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	return os.WriteFile(name, b, 0o600)
}

func (s *ours) read(sum layers.Sum, p []byte) error {
	n, err := s.store.ReadAt(sum, p, 0)
	if n == len(p) && errors.Is(err, io.EOF) {
		err = nil
	}
	return err
}

// mount shows the stack as a container sees it.
func (s *ours) mount(t *testing.T, sealed, writable bool) (string, func()) {
	t.Helper()
	image, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	tree := s.tree
	if tree == nil {
		if tree, err = fs.Merge(nil, &layers.Index{}); err != nil {
			t.Fatal(err)
		}
	}
	o := erofs.Options{}
	if sealed {
		o = erofs.Options{InlineMax: objects.MaxPacked, Has: s.store.Has, Read: s.read}
	}
	sum, err := erofs.Write(image, tree, o)
	if err != nil {
		t.Fatal(err)
	}
	if !sum.Sealed {
		t.Error("the image is not sealed")
	}
	meta := t.TempDir()
	if err := mounts.MountErofs(image.Name(), meta); err != nil {
		t.Fatal(err)
	}
	data := s.store.DataDirs()
	if !sealed {
		data = append(data, s.small)
	}
	dir, unmountOverlay := overlay(t, rootfs(t, append(slices.Clone(s.above), meta), data, writable))
	return dir, func() {
		unmountOverlay()
		if err := mounts.Unmount(meta, false); err != nil {
			t.Error(err)
		}
	}
}

// addLayer adds an uncompressed layer.
func (s *ours) addLayer(ctx context.Context, b []byte) error {
	d := digest.FromBytes(b)
	return s.add(ctx, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))}, d, bytes.NewReader(b))
}

package equal

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
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
	ix, err := tarindex.Unpack(ctx, r, desc, diffID, s.store, tarindex.Options{})
	if err != nil {
		return err
	}
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
func (s *ours) mount(t *testing.T, sealed bool) (string, func()) {
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
	dir, unmountOverlay := overlay(t, mounts.Rootfs{Lower: []string{meta}, Data: data, Upper: uppers(t), Work: t.TempDir()})
	return dir, func() {
		unmountOverlay()
		if err := mounts.Unmount(meta, false); err != nil {
			t.Error(err)
		}
	}
}

// plainLayer describes an uncompressed layer.
func plainLayer(b []byte) (ocispec.Descriptor, digest.Digest) {
	d := digest.FromBytes(b)
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(b))}, d
}

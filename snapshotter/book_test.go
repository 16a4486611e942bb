package snapshotter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	snapfs "github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
)

// A member is one name of a layer, and its bytes if it is a file.
type member struct {
	layers.Entry
	data string
}

func dir(name string, mode uint16) member {
	return member{Entry: layers.Entry{Name: name, Kind: layers.Dir, Mode: mode}}
}

func file(name, data string) member {
	e := layers.Entry{Name: name, Kind: layers.Reg, Mode: 0o644, Size: int64(len(data))}
	if data != "" {
		e.Object = layers.SumOf([]byte(data))
	}
	return member{e, data}
}

func whiteout(name string) member {
	return file(filepath.Join(filepath.Dir(name), ".wh."+filepath.Base(name)), "")
}

func opaque(dir string) member { return file(dir+"/.wh..wh..opq", "") }

// A testLayer is a layer as a registry has it.
type testLayer struct {
	members []member
	desc    ocispec.Descriptor
	diffID  digest.Digest
}

// An image is one whose blobs are in a content store.
type image struct {
	ref      string
	manifest ocispec.Descriptor
	layers   []testLayer
	chain    []digest.Digest
}

func (im image) top() string { return im.chain[len(im.chain)-1].String() }

func newContent(t testing.TB) content.Store {
	t.Helper()
	cs, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return cs
}

// newImage makes an image of layers, lowest first.
func newImage(t testing.TB, cs content.Store, ref string, all ...[]member) image {
	t.Helper()
	im := image{ref: ref}
	var diffIDs []digest.Digest
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	for _, members := range all {
		plain, stored := pack(t, members)
		l := testLayer{members: members, diffID: digest.FromBytes(plain)}
		l.desc = put(t, cs, ocispec.MediaTypeImageLayerGzip, stored)
		diffIDs = append(diffIDs, l.diffID)
		m.Layers = append(m.Layers, l.desc)
		im.layers = append(im.layers, l)
	}
	im.chain = identity.ChainIDs(append([]digest.Digest(nil), diffIDs...))
	config, err := json.Marshal(ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: diffIDs},
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Config = put(t, cs, ocispec.MediaTypeImageConfig, config)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	im.manifest = put(t, cs, ocispec.MediaTypeImageManifest, b)
	return im
}

func pack(t testing.TB, members []member) (plain, stored []byte) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Name: m.Name, Mode: int64(m.Mode), Uid: int(m.UID), Gid: int(m.GID), ModTime: time.Unix(m.Sec, 0), Linkname: m.Link}
		switch m.Kind {
		case layers.Dir:
			h.Typeflag = tar.TypeDir
			h.Name += "/"
		case layers.Symlink:
			h.Typeflag = tar.TypeSymlink
		default:
			h.Typeflag, h.Size = tar.TypeReg, m.Size
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(m.data)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	zw := gzip.NewWriter(&z)
	if _, err := zw.Write(b.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), z.Bytes()
}

func put(t testing.TB, cs content.Store, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	err := content.WriteBlob(context.Background(), cs, d.Digest.String(), bytes.NewReader(b), d)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// A book is a book of images whose stacks are real: EROFS images with data-only layers.
type book struct {
	dir string

	mu      sync.Mutex
	known   map[digest.Digest]testLayer // by blob
	mounted map[string]string           // directories, by name of the stack
	refuse  error                       // of every layer, if not nil
	asked   []Image
	out     int // layers that were not released
	left    []error

	collected atomic.Int64
	gate      chan struct{} // if not nil, Layer waits for it
	entered   chan struct{} // if not nil, Layer says there that it waits
}

var _ Layers = (*book)(nil)

func newBook(t testing.TB, images ...image) *book {
	t.Helper()
	b := &book{dir: t.TempDir(), known: map[digest.Digest]testLayer{}, mounted: map[string]string{}}
	for _, d := range []string{"objects", "fresh"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, im := range images {
		b.learn(t, im)
	}
	t.Cleanup(func() {
		for _, dir := range b.mounted {
			if err := mounts.Clear(dir); err != nil {
				t.Error(err)
			}
		}
		if b.out != 0 {
			t.Errorf("%d layers were not released", b.out)
		}
	})
	return b
}

func (b *book) learn(t testing.TB, im image) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, l := range im.layers {
		b.known[l.desc.Digest] = l
		for _, m := range l.members {
			if m.data == "" {
				continue
			}
			path := filepath.Join(b.dir, []string{"objects", "fresh"}[i%2], m.Object.Path())
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(m.data), 0o444); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func (b *book) Layer(ctx context.Context, im Image, blob, diffID digest.Digest) (Layer, func(), error) {
	if b.entered != nil {
		b.entered <- struct{}{}
	}
	if b.gate != nil {
		select {
		case <-b.gate:
		case <-ctx.Done():
			return Layer{}, nil, ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, im)
	l, ok := b.known[blob]
	if !ok || b.refuse != nil {
		return Layer{}, nil, fmt.Errorf("%s: %w", blob, errors.Join(b.refuse, ErrNotOurs))
	}
	b.out++
	release := sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.out--
	})
	return Layer{Key: blob.Encoded(), Image: im, Blob: blob, DiffID: l.diffID}, release, nil
}

func (b *book) Mount(_ context.Context, st Stack) (Mounted, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := Mounted{Data: []string{filepath.Join(b.dir, "objects"), filepath.Join(b.dir, "fresh")}}
	if dir, ok := b.mounted[st.name()]; ok {
		m.Dir = dir
		return m, nil
	}
	m.Dir = filepath.Join(b.dir, fmt.Sprint(len(b.mounted)))
	var tree *snapfs.Tree
	for _, l := range st.Layers {
		ix := &layers.Index{}
		for _, m := range b.known[l.Blob].members {
			ix.Entries = append(ix.Entries, m.Entry)
		}
		var err error
		if tree, err = snapfs.Merge(tree, ix); err != nil {
			return m, err
		}
	}
	f, err := os.Create(m.Dir + ".erofs")
	if err != nil {
		return m, err
	}
	defer f.Close()
	if _, err := erofs.Write(f, tree, erofs.Options{}); err != nil {
		return m, err
	}
	if err := errors.Join(os.Mkdir(m.Dir, 0o755), mounts.MountErofs(f.Name(), m.Dir)); err != nil {
		return m, err
	}
	b.mounted[st.name()] = m.Dir
	if st.Map == (IDMap{}) {
		return m, nil
	}
	return m, shift(m.Dir, m.Dir, st.Map)
}

// shift mounts dir at target with other owners.
func shift(dir, target string, m IDMap) error {
	ns, err := mount.GetUsernsFD(m.UID, m.GID)
	if err != nil {
		return err
	}
	defer ns.Close()
	return mount.IDMapMount(dir, target, int(ns.Fd()))
}

func (b *book) Usage(_ context.Context, l Layer) (snapshots.Usage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var u snapshots.Usage
	for _, m := range b.known[l.Blob].members {
		u.Size += m.Size
		u.Inodes++
	}
	return u, nil
}

func (b *book) Leave(im Image, why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.left = append(b.left, fmt.Errorf("%s: %w", im.Ref, why))
}

func (b *book) Collect() { b.collected.Add(1) }

// A mapper shows directories with shifted owners.
type mapper struct {
	dir    string
	mu     sync.Mutex
	mapped map[IDMap]string
}

func newMapper(t testing.TB) *mapper {
	m := &mapper{dir: t.TempDir(), mapped: map[IDMap]string{}}
	t.Cleanup(func() {
		if err := m.KeepMapped(context.Background(), "", nil); err != nil {
			t.Error(err)
		}
	})
	return m
}

func (m *mapper) MapDir(_ context.Context, dir string, im IDMap) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if target, ok := m.mapped[im]; ok {
		return target, nil
	}
	target, err := os.MkdirTemp(m.dir, "")
	if err != nil {
		return "", err
	}
	if err := shift(dir, target, im); err != nil {
		return "", err
	}
	m.mapped[im] = target
	return target, nil
}

func (m *mapper) KeepMapped(_ context.Context, _ string, keep []IDMap) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := map[IDMap]bool{}
	for _, im := range keep {
		kept[im] = true
	}
	var all []error
	for im, target := range m.mapped {
		if !kept[im] {
			all = append(all, mounts.Clear(target))
			delete(m.mapped, im)
		}
	}
	return errors.Join(all...)
}

// listing is what a directory shows: names, modes, owners, bytes.
func listing(t testing.TB, dir string) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		uid, gid, err := owner(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // dangling links
			return err
		}
		what := ""
		switch {
		case st.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what = string(b)
		case st.Mode()&os.ModeSymlink != 0:
			if what, err = os.Readlink(path); err != nil {
				return err
			}
		}
		name, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&all, "%s %v %d:%d %q\n", name, st.Mode(), uid, gid, what)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

// mounted mounts ms for the time of do.
func mounted(t testing.TB, ms []mount.Mount, do func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(ms, dir); err != nil {
		t.Fatalf("%v: %v", ms, err)
	}
	defer func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	do(dir)
}

// shown is what a view of a committed snapshot shows.
func shown(t testing.TB, s snapshots.Snapshotter, name string) (list string) {
	t.Helper()
	key := "view-" + name
	ms, err := s.View(t.Context(), key, name)
	if err != nil {
		t.Fatal(err)
	}
	mounted(t, ms, func(dir string) { list = listing(t, dir) })
	if err := s.Remove(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	return list
}

func newSnapshotter(t testing.TB, o Options) *Snapshotter {
	t.Helper()
	if o.Root == "" {
		o.Root = t.TempDir()
	}
	if o.Run == "" {
		o.Run = t.TempDir()
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

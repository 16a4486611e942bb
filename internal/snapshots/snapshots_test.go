package snapshots

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/images/imagestest"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
	"github.com/snapfs/snapfs/snapshotter"
)

// A node is a book of images and a snapshotter, without a daemon around them.
type node struct {
	testing.TB
	hub         *imagestest.Hub
	store       *objects.Store
	book        *images.Service
	snapshotter *snapshotter.Snapshotter
}

func newNode(t testing.TB, m images.Mounter) *node {
	dir := t.TempDir()
	store, err := objects.Open(filepath.Join(dir, "root"), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{TB: t, hub: imagestest.NewHub(t), store: store}
	f := fetch.New(fetch.Options{Store: store})
	files, reg := soci.NewFiles(f, 0), registry.New(registry.Options{Timeouts: registry.Timeouts{NoProgress: time.Second, Attempts: 2}})
	opened := make(chan struct{})
	n.book, err = images.Open(context.Background(), images.Options{
		Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Registry: reg, Store: store, Fetcher: f, Files: files, Mounter: m,
		Users: func() map[digest.Digest][]images.User { return nil },
		Held: func(ctx context.Context) (images.Held, error) {
			select {
			case <-opened:
				return Held(ctx, n.snapshotter.Held)
			case <-ctx.Done():
				return images.Held{}, ctx.Err()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if n.snapshotter, err = snapshotter.New(snapshotter.Options{Root: filepath.Join(dir, "snapshots"), Run: filepath.Join(dir, "run"), Layers: Layers{n.book}}); err != nil {
		t.Fatal(err)
	}
	close(opened)
	t.Cleanup(func() {
		err := errors.Join(n.snapshotter.Close(), n.book.Close())
		files.Close()
		f.Close()
		if err := errors.Join(err, reg.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// pull asks for the layers of an image as containerd does, and returns the chain
// ID of all.
func (n *node) pull(im *imagestest.Image) string {
	n.Helper()
	parent := ""
	for i, l := range im.Manifest.Layers {
		chain := identity.ChainID(im.DiffIDs[:i+1]).String()
		key := fmt.Sprintf(snapshots.UnpackKeyFormat, fmt.Sprint(i), chain)
		_, err := n.snapshotter.Prepare(n.Context(), key, parent, snapshots.WithLabels(map[string]string{
			snapshots.LabelSnapshotRef: chain, snapshots.LabelSnapshotDiffID: string(im.DiffIDs[i]),
			snapshotters.TargetRefLabel: im.Ref, snapshotters.TargetManifestDigestLabel: string(im.Desc.Digest), snapshotters.TargetLayerDigestLabel: string(l.Digest),
		}))
		if !errdefs.IsAlreadyExists(err) {
			n.Fatalf("Prepare of layer %d: %v", i, err)
		}
		parent = chain
	}
	return parent
}

// remove removes all snapshots.
func (n *node) remove() {
	n.Helper()
	for {
		var leaf string
		parents := map[string]bool{}
		var names []string
		if err := n.snapshotter.Walk(n.Context(), func(_ context.Context, info snapshots.Info) error {
			parents[info.Parent] = true
			names = append(names, info.Name)
			return nil
		}); err != nil {
			n.Fatal(err)
		}
		if len(names) == 0 {
			return
		}
		leaf = names[slices.IndexFunc(names, func(name string) bool { return !parents[name] })]
		if err := n.snapshotter.Remove(n.Context(), leaf); err != nil {
			n.Fatal(err)
		}
	}
}

// kernel mounts metadata images as the supervisor does.
type kernel struct {
	dir string
	mu  sync.Mutex
}

func (k *kernel) at(id string) string { return filepath.Join(k.dir, id) }

func (k *kernel) MountImage(_ context.Context, id, file string) (string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if is, err := mounts.IsMounted(k.at(id)); err != nil || is {
		return k.at(id), err
	}
	if err := os.Mkdir(k.at(id), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	return k.at(id), mounts.MountErofs(file, k.at(id))
}

func (k *kernel) MountMapped(context.Context, string, string, mounts.IDMap) (string, error) {
	return "", errors.ErrUnsupported
}

func (k *kernel) UnmountImage(_ context.Context, id string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if is, err := mounts.IsMounted(k.at(id)); err != nil || !is {
		return err
	}
	return mounts.Unmount(k.at(id), true)
}

// TestImage: an image of containerd's is mounted, read and written, counted, and
// removed without a trace.
func TestImage(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	n := newNode(t, &kernel{dir: t.TempDir()})
	if err := os.MkdirAll(filepath.Join(n.lazy(), "00"), 0o700); err != nil { // no FUSE here: all is local
		t.Fatal(err)
	}
	lower, upper := imagestest.Files(1, "usr", 30), imagestest.Files(2, "usr", 10)
	im := n.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, lower, upper)
	top := n.pull(im)
	want := map[string]string{}
	for _, f := range slices.Concat(lower, upper) {
		if f.Data != nil {
			want[f.Name] = string(f.Data)
		}
	}
	ms, err := n.snapshotter.Prepare(t.Context(), "container", top)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := mount.All(ms, dir); err != nil {
		t.Fatalf("mount %v: %v", ms, err)
	}
	for name, data := range want {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != data {
			t.Errorf("%s: %d bytes, want %d; %v", name, len(got), len(data), err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "usr/f000"), []byte("mine"), 0o600); err != nil {
		t.Error(err)
	}
	if err := mount.UnmountAll(dir, 0); err != nil {
		t.Fatal(err)
	}
	var sum snapshots.Usage
	for i := range im.DiffIDs {
		u, err := n.snapshotter.Usage(t.Context(), identity.ChainID(im.DiffIDs[:i+1]).String())
		if err != nil || u.Size == 0 {
			t.Errorf("Usage of layer %d = %+v, %v", i, u, err)
		}
		sum.Add(u)
	}
	disk, err := n.store.Usage()
	if err != nil || sum.Size < disk.Bytes()*9/10 {
		t.Errorf("the layers take %d bytes, the store has %d: %v", sum.Size, disk.Bytes(), err)
	}
	n.remove()
	for {
		if u, err := n.store.Usage(); err != nil || u.Bytes() == 0 {
			break
		}
		select {
		case <-t.Context().Done():
			t.Fatal("what nothing holds stays")
		case <-time.After(time.Millisecond):
		}
	}
	if _, err := n.book.Find(im.Ref); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the image is still known: %v", err)
	}
}

// lazy is where FUSE would be.
func (n *node) lazy() string { return filepath.Join(n.book.Run, "lazy") }

// TestLeft: what the book cannot have is left to containerd.
func TestLeft(t *testing.T) {
	n := newNode(t, &kernel{dir: t.TempDir()})
	l := Layers{n.book}
	_, _, err := l.Layer(t.Context(), snapshotter.Image{Ref: "oci:/nowhere"}, digest.FromString("x"), "")
	if !errors.Is(err, snapshotter.ErrNotOurs) || !errors.Is(err, registry.ErrBadRef) {
		t.Errorf("Layer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	im := n.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 2))
	_, _, err = l.Layer(ctx, snapshotter.Image{Ref: im.Ref}, im.Manifest.Layers[0].Digest, im.DiffIDs[0])
	if !errors.Is(err, context.Canceled) || errors.Is(err, snapshotter.ErrNotOurs) {
		t.Errorf("Layer for nobody: %v", err)
	}
	if _, err := l.Mount(t.Context(), snapshotter.Stack{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Mount of nothing: %v", err)
	}
}

func TestHeld(t *testing.T) {
	layer := snapshotter.Layer{Key: "k", Image: snapshotter.Image{Ref: "r", Manifest: "m"}, Blob: "b", DiffID: "d"}
	held := func(context.Context) (snapshotter.Held, error) {
		return snapshotter.Held{Layers: []snapshotter.Layer{layer}, Stacks: []snapshotter.Stack{{Layers: []snapshotter.Layer{layer}, Map: snapshotter.IDMap{UID: "u", GID: "g"}}}}, nil
	}
	h, err := Held(t.Context(), held, held)
	want := images.Layer{Key: "k", Of: images.Wanted{Ref: "r", Manifest: "m"}, Blob: "b", DiffID: "d"}
	if err != nil || len(h.Layers) != 2 || h.Layers[1] != want || len(h.Stacks) != 2 || h.Stacks[0].Layers[0] != want || h.Stacks[0].Map != (images.IDMap{UID: "u", GID: "g"}) {
		t.Errorf("Held = %+v, %v", h, err)
	}
	torn := errors.New("torn")
	if _, err := Held(t.Context(), held, func(context.Context) (snapshotter.Held, error) { return snapshotter.Held{}, torn }); !errors.Is(err, torn) {
		t.Errorf("one does not know what it holds: %v", err)
	}
}

// empty shows an empty directory for every image.
type empty struct{ dir string }

func (e empty) MountImage(context.Context, string, string) (string, error) { return e.dir, nil }
func (e empty) MountMapped(context.Context, string, string, mounts.IDMap) (string, error) {
	return e.dir, nil
}
func (e empty) UnmountImage(context.Context, string) error { return nil }

// BenchmarkPrepare is a container on a known image, prepared and removed: 50 at
// the same time. Mounting is left out.
func BenchmarkPrepare(b *testing.B) {
	n := newNode(b, empty{b.TempDir()})
	var list [][]imagestest.File
	for i := range 10 {
		list = append(list, imagestest.Files(uint64(i), fmt.Sprint(i), 100))
	}
	top := n.pull(n.hub.Push(b, "a", imagestest.Gzip, imagestest.Native, list...))
	var mu sync.Mutex
	var took []time.Duration
	var id int
	b.SetParallelism(25)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			mu.Lock()
			id++
			key := fmt.Sprint(id)
			mu.Unlock()
			began := time.Now()
			if _, err := n.snapshotter.Prepare(b.Context(), key, top); err != nil {
				b.Error(err)
				return
			}
			d := time.Since(began)
			if err := n.snapshotter.Remove(b.Context(), key); err != nil {
				b.Error(err)
				return
			}
			mu.Lock()
			took = append(took, d)
			mu.Unlock()
		}
	})
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}

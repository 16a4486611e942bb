package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
)

// A daemon is what containerd 2.4 puts in front of a snapshotter: its database,
// its unpacker, its garbage collector.
type daemon struct {
	db       *metadata.DB
	cs       content.Store // behind db
	parallel bool
	fetched  atomic.Int64
}

func newDaemon(t testing.TB, s snapshots.Snapshotter, cs content.Store, parallel bool) *daemon {
	t.Helper()
	b, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	db := metadata.NewDB(b, cs, map[string]snapshots.Snapshotter{"snapfs": s})
	if err := db.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &daemon{db: db, cs: cs, parallel: parallel}
}

// pull unpacks an image and makes it known under its reference.
func (d *daemon) pull(ctx context.Context, im image) error {
	cs := d.db.ContentStore()
	for _, l := range append([]ocispec.Descriptor{im.manifest}, d.blobs(ctx, im)...) {
		b, err := content.ReadBlob(ctx, d.cs, l)
		if err != nil {
			return err
		}
		// Everything but the layers; those are "fetched" below. The store shares them among namespaces.
		if images.IsLayerType(l.MediaType) {
			continue
		}
		if err := put2(ctx, cs, l, b); err != nil {
			return err
		}
	}
	p := unpack.Platform{
		Platform: platforms.All, SnapshotterKey: "snapfs", Snapshotter: d.db.Snapshotter("snapfs"),
		Applier: apply.NewFileSystemApplier(cs),
	}
	opts := []unpack.UnpackerOpt{}
	if d.parallel {
		p.SnapshotterCapabilities = []string{snapshots.RebaseCap}
		opts = append(opts, unpack.WithUnpackLimiter(semaphore.NewWeighted(2)))
	}
	u, err := unpack.NewUnpacker(ctx, cs, append(opts, unpack.WithUnpackPlatform(p))...)
	if err != nil {
		return err
	}
	var mu sync.Mutex // of the local store's ingests
	fetch := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if !images.IsLayerType(desc.MediaType) {
			return nil, nil
		}
		mu.Lock()
		defer mu.Unlock()
		d.fetched.Add(1)
		b, err := content.ReadBlob(ctx, d.cs, desc)
		if err != nil {
			return nil, err
		}
		return nil, put2(ctx, cs, desc, b)
	})
	children := images.SetChildrenMappedLabels(cs, images.ChildrenHandler(cs), images.ChildGCLabels)
	h := snapshotters.AppendInfoHandlerWrapper(im.ref)(images.Handlers(fetch, children))
	if err := images.Dispatch(ctx, u.Unpack(h), nil, im.manifest); err != nil {
		_, werr := u.Wait()
		return errors.Join(err, werr)
	}
	if _, err := u.Wait(); err != nil {
		return err
	}
	_, err = metadata.NewImageStore(d.db).Create(ctx, images.Image{Name: im.ref, Target: im.manifest})
	return err
}

func (d *daemon) blobs(ctx context.Context, im image) []ocispec.Descriptor {
	m, err := images.Manifest(ctx, d.cs, im.manifest, nil)
	if err != nil {
		panic(err) // the test has put it there
	}
	return append(m.Layers, m.Config)
}

func put2(ctx context.Context, cs content.Store, d ocispec.Descriptor, b []byte) error {
	return content.WriteBlob(ctx, cs, d.Digest.String(), newReader(b), d)
}

// TestContainerd lets containerd's own unpacker, database and garbage collector
// work on a snapshotter behind gRPC, in two namespaces.
func TestContainerd(t *testing.T) {
	needsRoot(t)
	for _, parallel := range []bool{false, true} {
		t.Run(fmt.Sprintf("parallel=%t", parallel), func(t *testing.T) {
			cs := newContent(t)
			im := testImage(t, cs, "r.example/app:1")
			other := newImage(t, cs, "r.example/other:1", im.layers[0].members, im.layers[1].members, []member{file("other", "other")})
			b := newBook(t, im, other)
			s := newSnapshotter(t, Options{Layers: b})
			client, stop, err := dial(s, filepath.Join(t.TempDir(), "sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer stop()
			d := newDaemon(t, client, cs, parallel)
			want := ""
			for _, ns := range []string{"a", "b"} {
				ctx := namespaces.WithNamespace(t.Context(), ns)
				for _, im := range []image{im, other} {
					if err := d.pull(ctx, im); err != nil {
						t.Fatalf("%s: %v", ns, err)
					}
				}
				got := ""
				sn := d.db.Snapshotter("snapfs")
				ms, err := sn.View(ctx, "view", im.top())
				if err != nil {
					t.Fatal(err)
				}
				mounted(t, ms, func(dir string) { got = listing(t, dir) })
				if want == "" {
					want = got
				}
				if got != want {
					t.Errorf("%s: shown:\n%s\nwant:\n%s", ns, got, want)
				}
				ms, err = sn.Prepare(ctx, "container", im.top())
				if err != nil {
					t.Fatal(err)
				}
				mounted(t, ms, func(dir string) {
					if got := listing(t, dir); got != want {
						t.Errorf("%s: container:\n%s\nwant:\n%s", ns, got, want)
					}
				})
				usage, err := sn.Usage(ctx, im.chain[0].String())
				if err != nil || usage.Size == 0 {
					t.Errorf("Usage = %v, %v", usage, err)
				}
			}
			if n := d.fetched.Load(); n != 0 {
				t.Errorf("%d layers fetched", n)
			}
			if h, err := s.Held(t.Context()); err != nil || len(h.Stacks) != 1 {
				t.Errorf("Held = %+v, %v; want one stack for all namespaces", h.Stacks, err)
			}
			// A container's changes are an exact layer.
			ctx := namespaces.WithNamespace(t.Context(), "a")
			sn := d.db.Snapshotter("snapfs")
			upper, err := sn.Mounts(ctx, "container")
			if err != nil {
				t.Fatal(err)
			}
			mounted(t, upper, func(dir string) { change(t, dir) })
			lower, err := sn.Mounts(ctx, "view")
			if err != nil {
				t.Fatal(err)
			}
			desc, err := walking.NewWalkingDiff(d.db.ContentStore()).Compare(ctx, lower, upper)
			if err != nil {
				t.Fatal(err)
			}
			wantNames(t, ctx, d.db.ContentStore(), desc, "etc/", "etc/.wh.new", "etc/more", "etc/passwd", "srv/", "srv/owned")
			for _, ns := range []string{"a", "b"} {
				ctx := namespaces.WithNamespace(t.Context(), ns)
				err := errors.Join(sn.Remove(ctx, "view"), sn.Remove(ctx, "container"),
					metadata.NewImageStore(d.db).Delete(ctx, im.ref), metadata.NewImageStore(d.db).Delete(ctx, other.ref))
				if err != nil {
					t.Fatal(err)
				}
			}
			if _, err := d.db.GarbageCollect(t.Context()); err != nil {
				t.Fatal(err)
			}
			if b.collected.Load() == 0 {
				t.Error("the book was not told that layers are free")
			}
			err = s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
				t.Errorf("left: %+v", info)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			removeAll(t, s)
		})
	}
}

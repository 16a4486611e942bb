package entries

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	introspection "github.com/containerd/containerd/api/services/introspection/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/snapshotter/blobs"
)

var layer = ocispec.Descriptor{Digest: digest.FromString("layer"), Size: 5}

// book knows the layer, and no registry gives it.
type book struct{}

func (book) Blob(d digest.Digest) (ocispec.Descriptor, []string, []byte, error) {
	if d != layer.Digest {
		return ocispec.Descriptor{}, nil, nil, fs.ErrNotExist
	}
	return layer, []string{"r.example/app:1"}, nil, nil
}

type noBlobs struct{ t *testing.T }

func (n noBlobs) Stream(context.Context, registry.Ref, ocispec.Descriptor) (io.ReadCloser, error) {
	n.t.Error("a registry was asked")
	return nil, errors.New("no network")
}

func (n noBlobs) Blob(registry.Ref, ocispec.Descriptor) (layers.Blob, error) {
	n.t.Error("a registry was asked")
	return nil, errors.New("no network")
}

// containerd is as much of one as package entries sees.
type containerd struct {
	introspection.UnimplementedIntrospectionServer
	imagesapi.UnimplementedImagesServer
	policy, address string
	images          map[string][]ocispec.Descriptor // by namespace

	mu    sync.Mutex
	asked int
}

// namespacesOf tells two List methods apart.
type namespacesOf struct {
	namespacesapi.UnimplementedNamespacesServer
	c *containerd
}

func (n namespacesOf) List(context.Context, *namespacesapi.ListNamespacesRequest) (*namespacesapi.ListNamespacesResponse, error) {
	r := &namespacesapi.ListNamespacesResponse{}
	for name := range n.c.images {
		r.Namespaces = append(r.Namespaces, &namespacesapi.Namespace{Name: name})
	}
	return r, nil
}

func (c *containerd) List(ctx context.Context, _ *imagesapi.ListImagesRequest) (*imagesapi.ListImagesResponse, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	r := &imagesapi.ListImagesResponse{}
	for i, d := range c.images[ns] {
		r.Images = append(r.Images, &imagesapi.Image{Name: fmt.Sprint("image", i), Target: &types.Descriptor{MediaType: d.MediaType, Digest: d.Digest.String(), Size: d.Size}})
	}
	return r, nil
}

func (c *containerd) Plugins(_ context.Context, r *introspection.PluginsRequest) (*introspection.PluginsResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if got := strings.Join(r.Filters, ","); got != "type==io.containerd.content.v1,type==io.containerd.metadata.v1" {
		return nil, fmt.Errorf("filters: %s", got)
	}
	return &introspection.PluginsResponse{Plugins: []*introspection.Plugin{
		{Type: "io.containerd.content.v1", ID: "snapfs-content", Exports: map[string]string{"address": c.address}},
		{Type: "io.containerd.metadata.v1", ID: "bolt", Exports: map[string]string{"policy": c.policy}},
	}}, nil
}

// serve serves c and a content store, with containerd's metadata in front of
// back, at a socket.
func (c *containerd) serve(t *testing.T, address string, back content.Store) content.Store {
	t.Helper()
	b, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	var opts []metadata.DBOpt
	if c.policy == "isolated" {
		opts = append(opts, metadata.WithPolicyIsolated)
	}
	store := metadata.NewDB(b, back, nil, opts...).ContentStore()
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	contentapi.RegisterContentServer(server, contentserver.New(store))
	introspection.RegisterIntrospectionServer(server, c)
	imagesapi.RegisterImagesServer(server, c)
	namespacesapi.RegisterNamespacesServer(server, namespacesOf{c: c})
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return store
}

func ours(t *testing.T) *blobs.Store {
	t.Helper()
	s, err := blobs.Open(t.Context(), blobs.Options{Root: t.TempDir(), Book: book{}, Blobs: noBlobs{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestEntry: an entry appears in each namespace that asks, without a byte; and
// none where it cannot, with nothing left of the attempt.
func TestEntry(t *testing.T) {
	for name, c := range map[string]struct {
		policy, address string
		is              Backing
	}{
		"shared":   {"shared", "/ours.sock", Shared},
		"url":      {"shared", "unix:///ours.sock", Shared},
		"isolated": {"isolated", "/ours.sock", Isolated},
		"other":    {"shared", "/theirs.sock", Other},
		"none":     {"shared", "", Other},
	} {
		t.Run(name, func(t *testing.T) {
			s := ours(t)
			var back content.Store = s
			if c.is == Other {
				var err error
				if back, err = local.NewStore(t.TempDir()); err != nil {
					t.Fatal(err)
				}
			}
			d := &containerd{policy: c.policy, address: c.address}
			address := filepath.Join(t.TempDir(), "s")
			store := d.serve(t, address, back)
			e := New(t.Context(), Options{Address: address, Socket: "/ours.sock", Info: s.Info})
			for _, ns := range []string{"one", "two", "one", ""} {
				e.Prepared(ns, layer.Digest)
			}
			e.Prepared("one", digest.FromString("unknown"))
			idle(t, e)
			e.Close()
			for _, ns := range []string{"one", "two"} {
				ctx := namespaces.WithNamespace(t.Context(), ns)
				info, err := store.Info(ctx, layer.Digest)
				if c.is == Shared && (err != nil || info.Size != layer.Size) || c.is != Shared && !errdefs.IsNotFound(err) {
					t.Errorf("Info in %s: %v, %v", ns, info, err)
				}
				if st, err := store.ListStatuses(ctx); err != nil || len(st) != 0 {
					t.Errorf("ingests in %s: %v, %v", ns, st, err)
				}
			}
			if d.asked != 1 {
				t.Errorf("containerd was asked %d times what it is, want 1", d.asked)
			}
		})
	}
}

// TestNotThere: a containerd whose store turns out to lack the blob keeps no ingest.
func TestNotThere(t *testing.T) {
	other, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	address := filepath.Join(t.TempDir(), "s")
	store := (&containerd{policy: "shared", address: "/ours.sock"}).serve(t, address, other) // it lies
	e := New(t.Context(), Options{Address: address, Socket: "/ours.sock", Info: ours(t).Info})
	e.Prepared("one", layer.Digest)
	idle(t, e)
	e.Close()
	ctx := namespaces.WithNamespace(t.Context(), "one")
	if st, err := store.ListStatuses(ctx); err != nil || len(st) != 0 {
		t.Errorf("ingests: %v, %v", st, err)
	}
	if _, err := store.Info(ctx, layer.Digest); !errdefs.IsNotFound(err) {
		t.Errorf("Info: %v, want not found", err)
	}
}

// TestSweep: images that are there already get the entries that they lack, each
// in its namespace, whatever another image is.
func TestSweep(t *testing.T) {
	s := ours(t)
	d := &containerd{policy: "shared", address: "/ours.sock", images: map[string][]ocispec.Descriptor{}}
	address := filepath.Join(t.TempDir(), "s")
	store := d.serve(t, address, s)
	one := namespaces.WithNamespace(t.Context(), "one")
	doc := func(mediaType string, v any) ocispec.Descriptor {
		t.Helper()
		raw, ok := v.([]byte)
		if !ok {
			var err error
			if raw, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
		if err := content.WriteBlob(one, store, "doc-"+desc.Digest.String(), bytes.NewReader(raw), desc); err != nil {
			t.Fatal(err)
		}
		return desc
	}
	foreign := ocispec.Descriptor{Digest: digest.FromString("of no registry"), Size: 3}
	m := doc(ocispec.MediaTypeImageManifest, ocispec.Manifest{Layers: []ocispec.Descriptor{foreign, layer}})
	elsewhere := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("another platform"), Size: 9}
	index := doc(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{elsewhere, m}})
	torn := doc(ocispec.MediaTypeImageManifest, []byte("{"))
	bad := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:0"}
	d.images["two"] = []ocispec.Descriptor{index}
	d.images["one"] = []ocispec.Descriptor{bad, torn, index, m}
	e := New(t.Context(), Options{Address: address, Socket: "/ours.sock", Info: s.Info})
	idle(t, e)
	e.Close()
	if info, err := store.Info(one, layer.Digest); err != nil || info.Size != layer.Size {
		t.Errorf("Info = %v, %v", info, err)
	}
	for ns, want := range map[string]int{"one": 4, "two": 0} { // three documents and the layer
		n := 0
		if err := store.Walk(namespaces.WithNamespace(t.Context(), ns), func(content.Info) error { n++; return nil }); err != nil || n != want {
			t.Errorf("%d entries in %s, %v; want %d", n, ns, err, want)
		}
	}
}

// TestUsed: a containerd that turns to our content store later is noticed when it
// asks for something, once.
func TestUsed(t *testing.T) {
	s := ours(t)
	d := &containerd{policy: "shared", address: "/theirs.sock", images: map[string][]ocispec.Descriptor{}}
	address := filepath.Join(t.TempDir(), "s")
	store := d.serve(t, address, s)
	ctx := namespaces.WithNamespace(t.Context(), "one")
	raw, err := json.Marshal(ocispec.Manifest{Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	m := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if err := content.WriteBlob(ctx, store, "m", bytes.NewReader(raw), m); err != nil {
		t.Fatal(err)
	}
	d.images["one"] = []ocispec.Descriptor{m}
	e := New(t.Context(), Options{Address: address, Socket: "/ours.sock", Info: s.Info})
	defer e.Close()
	idle(t, e)
	if _, err := store.Info(ctx, layer.Digest); !errdefs.IsNotFound(err) {
		t.Fatalf("Info: %v, want not found", err)
	}
	d.mu.Lock()
	d.address = "/ours.sock"
	d.mu.Unlock()
	for range 3 {
		e.Used()
		idle(t, e)
		if _, err := store.Info(ctx, layer.Digest); err != nil {
			t.Errorf("Info: %v", err)
		}
	}
	if d.asked != 2 {
		t.Errorf("containerd was asked %d times what it is, want 2", d.asked)
	}
}

// idle waits until nothing is queued.
func idle(t *testing.T, e *Entries) {
	t.Helper()
	for {
		e.mu.Lock()
		n := len(e.queued)
		e.mu.Unlock()
		if n == 0 {
			return
		}
		select {
		case <-t.Context().Done():
			t.Fatal("it never becomes idle")
		case <-time.After(time.Millisecond):
		}
	}
}

// queueOf runs one for what is queued.
func queueOf(one func(context.Context, key) error) (e *Entries, stop func()) {
	e = &Entries{o: Options{Log: slog.New(slog.DiscardHandler)}, wake: make(chan struct{}, 1), queued: map[key]bool{}}
	ctx, cancel := context.WithCancel(context.Background())
	e.wg.Go(func() { e.run(ctx, one) })
	synctest.Wait() // until it waits
	return e, func() { cancel(); e.wg.Wait() }
}

func TestRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex // a sleep of synctest orders nothing for the race detector
		var tries []time.Duration
		start := time.Now()
		down := true
		e, stop := queueOf(func(context.Context, key) error {
			mu.Lock()
			defer mu.Unlock()
			tries = append(tries, time.Since(start))
			if down {
				return fmt.Errorf("containerd restarts: %w", errdefs.ErrUnavailable)
			}
			return nil
		})
		defer stop()
		e.Prepared("one", layer.Digest)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if got, want := fmt.Sprint(tries), "[50ms 1.05s 3.05s 7.05s]"; got != want {
			t.Errorf("tries at %s, want %s", got, want)
		}
		mu.Lock()
		down = false
		mu.Unlock()
		time.Sleep(6 * time.Second)
		synctest.Wait()
		if len(tries) != 5 || len(e.queued) != 0 {
			t.Errorf("%d tries, %d queued; want 5 and none", len(tries), len(e.queued))
		}

		mu.Lock()
		down, tries = true, nil
		mu.Unlock()
		e.Prepared("one", layer.Digest)
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(tries) != maxTries || len(e.queued) != 0 {
			t.Errorf("%d tries, %d queued; want %d and none", len(tries), len(e.queued), maxTries)
		}
	})
}

// TestSettle: entries are made when a pull is over, but not for ever later.
func TestSettle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made atomic.Int64
		e, stop := queueOf(func(context.Context, key) error { made.Add(1); return nil })
		defer stop()
		for i := range 10 {
			e.Prepared("one", digest.FromString(fmt.Sprint(i)))
			time.Sleep(settleAfter - 1)
		}
		synctest.Wait()
		if n := made.Load(); n != 0 {
			t.Errorf("%d were made meanwhile", n)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if n := made.Load(); n != 10 {
			t.Errorf("%d were made, want 10", n)
		}
		for i := range 30 {
			e.Prepared("two", digest.FromString(fmt.Sprint(i)))
			time.Sleep(settleAfter - 1)
		}
		synctest.Wait()
		if n := made.Load(); n < 20 {
			t.Errorf("in %v %d were made", 30*settleAfter, n-10)
		}
	})
}

func TestNoRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		e, stop := queueOf(func(context.Context, key) error { tries++; return errdefs.ErrFailedPrecondition })
		defer stop()
		e.Prepared("one", layer.Digest)
		time.Sleep(time.Hour)
		synctest.Wait()
		if tries != 1 || len(e.queued) != 0 {
			t.Errorf("%d tries, %d queued; want 1 and none", tries, len(e.queued))
		}
	})
}

// TestBound: a containerd that never answers costs no more than the queue.
func TestBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made, sweeps atomic.Int64
		release := make(chan struct{})
		e, stop := queueOf(func(ctx context.Context, k key) error {
			select {
			case <-release:
				if k == (key{}) {
					sweeps.Add(1)
				} else {
					made.Add(1)
				}
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		defer stop()
		for i := range maxQueue + 100 {
			e.Prepared("one", digest.FromString(fmt.Sprint(i)))
		}
		synctest.Wait()
		if len(e.queued) != maxQueue {
			t.Errorf("%d are queued, want %d", len(e.queued), maxQueue)
		}
		close(release)
		time.Sleep(settleAtMost)
		synctest.Wait()
		if n := made.Load(); n != maxQueue || len(e.queued) != 0 || sweeps.Load() != 1 {
			t.Errorf("%d made, %d queued, %d sweeps; want %d, none and one for what had no room", n, len(e.queued), sweeps.Load(), maxQueue)
		}
		e.Prepared("one", layer.Digest)
		time.Sleep(settleAfter)
		synctest.Wait()
		if made.Load() != maxQueue+1 {
			t.Error("after that nothing is made")
		}
	})
}

package integration

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/snapfs/snapfs/internal/peers"
)

// direct is snapd's snapshotter without a containerd that would keep the rules.
func (m *machine) direct() snapshots.Snapshotter {
	m.Helper()
	return m.snapshotsAt(filepath.Join(m.run, "containerd.sock"))
}

// snapshotsAt is the snapshotter snapfs of whoever serves at a socket.
func (m *machine) snapshotsAt(socket string) snapshots.Snapshotter {
	m.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		m.Fatal(err)
	}
	m.TB.Cleanup(func() { conn.Close() })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "snapfs")
}

// TestContainerdLies: what no containerd should ask gets a clear answer, and
// costs nobody else anything.
func TestContainerdLies(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	im := newImage(t, gzipTar, base(t), someFiles(2000, "data", 30))
	ref := hub.put(t, "lies", im)
	other := newImage(t, gzipTar, base(t), someFiles(2001, "data", 10))
	hub.put(t, "other", other)
	s := m.direct()
	ids := im.diffIDs(t)
	// labels are those of a layer as containerd 2.4 gives them.
	labels := func(change map[string]string) snapshots.Opt {
		l := map[string]string{
			"containerd.io/snapshot.ref":                 ids[0].String(),
			"containerd.io/snapshot/diff-id":             ids[0].String(),
			"containerd.io/snapshot/cri.image-ref":       ref,
			"containerd.io/snapshot/cri.manifest-digest": digest.FromBytes(im.raw).String(),
			"containerd.io/snapshot/cri.layer-digest":    im.layer(0).String(),
		}
		for k, v := range change {
			if v == "" {
				delete(l, "containerd.io/snapshot"+k)
			} else {
				l["containerd.io/snapshot"+k] = v
			}
		}
		return snapshots.WithLabels(l)
	}
	never := digest.FromString("never").String()
	for name, row := range map[string]struct {
		parent string
		opt    snapshots.Opt
		want   func(error) bool // nil: an ordinary snapshot, for containerd to unpack into
	}{
		"no such parent":               {never, snapshots.WithLabels(nil), errdefs.IsNotFound},
		"no such parent of a layer":    {never, labels(nil), errdefs.IsNotFound},
		"only a name":                  {"", labels(map[string]string{"/diff-id": "", "/cri.image-ref": "", "/cri.manifest-digest": "", "/cri.layer-digest": ""}), nil},
		"no layer":                     {"", labels(map[string]string{"/cri.layer-digest": ""}), nil},
		"a layer of another image":     {"", labels(map[string]string{"/cri.layer-digest": other.layer(1).String(), ".ref": never}), nil},
		"a layer of no image":          {"", labels(map[string]string{"/cri.layer-digest": never, ".ref": never}), nil},
		"a digest that is none":        {"", labels(map[string]string{"/cri.layer-digest": "sha256:../../etc/passwd", ".ref": never}), nil},
		"an image that is not there":   {"", labels(map[string]string{"/cri.image-ref": hub.ref("absent"), "/cri.manifest-digest": never, "/cri.layer-digest": never, ".ref": never}), nil},
		"a reference that is none":     {"", labels(map[string]string{"/cri.image-ref": "http://\x00/..", "/cri.manifest-digest": never, "/cri.layer-digest": never, ".ref": never}), nil},
		"a diff ID of another layer":   {"", labels(map[string]string{"/diff-id": ids[1].String(), ".ref": never}), nil},
		"a registry that is not there": {"", labels(map[string]string{"/cri.image-ref": "127.0.0.1:1/a/b:c", "/cri.manifest-digest": never, "/cri.layer-digest": never, ".ref": never}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			key := "lie " + name
			_, err := s.Prepare(t.Context(), key, row.parent, row.opt)
			switch {
			case row.want == nil && err != nil:
				t.Fatalf("Prepare: %v, want an ordinary snapshot", err)
			case row.want != nil && !row.want(err):
				t.Fatalf("Prepare: %v, want another error", err)
			}
			if row.want == nil {
				if _, err := s.Prepare(t.Context(), key, row.parent, row.opt); !errdefs.IsAlreadyExists(err) {
					t.Errorf("Prepare again: %v, want that it exists", err)
				}
				if err := s.Remove(t.Context(), key); err != nil {
					t.Error(err)
				}
			}
			if err := s.Remove(t.Context(), key); !errdefs.IsNotFound(err) {
				t.Errorf("Remove of what is not there: %v", err)
			}
		})
	}
	if _, err := s.Prepare(t.Context(), "huge", "", labels(map[string]string{"/cri.image-layers": strings.Repeat("x", 1<<20)})); err == nil {
		s.Remove(t.Context(), "huge") // either will do
	}

	// One that is mounted is removed.
	mounts, err := s.Prepare(t.Context(), "mounted", "")
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := mount.All(mounts, target); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "mounted"); err != nil {
		t.Error(err)
	}
	if err := mount.UnmountAll(target, 0); err != nil {
		t.Error(err)
	}

	// Many are prepared and forgotten, and a containerd that knows nothing of them comes.
	for i := range 50 {
		if _, err := s.Prepare(t.Context(), fmt.Sprint("default/1/forgotten", i), ""); err != nil {
			t.Fatal(err)
		}
	}
	c := m.containerd("c", kind{peer: peers.Containerd24})
	c.pull(ref)
	im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
	c.empty()
	left := 0
	if err := s.Walk(t.Context(), func(_ context.Context, i snapshots.Info) error { left++; return nil }); err != nil || left > 0 {
		t.Errorf("%d snapshots are left, %v", left, err)
	}
	m.nothingLeftSoon()
}

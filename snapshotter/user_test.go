package snapshotter

import (
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// onlySnapshots is a client of containerd as oci knows it.
type onlySnapshots struct{ s snapshots.Snapshotter }

func (c onlySnapshots) SnapshotService(string) snapshots.Snapshotter { return c.s }

// TestUserOfImage: containerd's clients from 2.3 on look users up in the lower
// directories themselves, where a file that is held has no bytes, unless a
// mount is of a kind that they do not know.
func TestUserOfImage(t *testing.T) {
	needsRoot(t)
	ctx := namespaces.WithNamespace(t.Context(), "test")
	cs := newContent(t)
	im := newImage(t, cs, "r.example/app:1", []member{dir("etc", 0o755), file("etc/passwd", "root:x:0:0::/:\napp:x:1234:567::/:\n"), file("etc/group", "app:x:567:\nmore:x:89:app\n")})
	s := newSnapshotter(t, Options{Layers: newBook(t, im)})
	if n, err := contracts[5].pull(ctx, s, cs, im); n > 0 || err != nil {
		t.Fatalf("pull: %d layers unpacked, %v", n, err)
	}
	if _, err := s.Prepare(ctx, "container", im.top()); err != nil {
		t.Fatal(err)
	}
	spec := &oci.Spec{Linux: &specs.Linux{}, Process: &specs.Process{}}
	c := &containers.Container{Snapshotter: "snapfs", SnapshotKey: "container"}
	for _, opt := range []oci.SpecOpts{oci.WithUser("app"), oci.WithAdditionalGIDs("app")} {
		if err := opt(ctx, onlySnapshots{s}, c, spec); err != nil {
			t.Fatal(err)
		}
	}
	if u := spec.Process.User; u.UID != 1234 || u.GID != 567 || len(u.AdditionalGids) != 2 {
		t.Errorf("user %+v, want 1234:567 and the groups 567, 89", u)
	}
	if ms, err := s.Prepare(ctx, "moby/7/4u1t8hq2mzx0yd9w6v3s5rkcb", im.top()); err != nil || len(ms) != 1 {
		t.Errorf("Prepare for BuildKit: %v, %v: want one mount, as it compares every byte of others", ms, err)
	}
	ms, err := s.View(ctx, "view", im.top())
	if err != nil || len(ms) != 1 {
		t.Errorf("View: %v, %v: want one mount, as containerd's mount manager shows the last one only", ms, err)
	}
	mounted(t, ms, func(dir string) {
		if got := listing(t, dir); got == "" {
			t.Error("a view shows nothing")
		}
	})
}

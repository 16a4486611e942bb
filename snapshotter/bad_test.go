package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// TestLyingClients: what is asked wrongly is refused with a clear status, or is
// an ordinary layer that containerd unpacks; nothing is held for it.
func TestLyingClients(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	other := newImage(t, cs, "r.example/other:1", []member{file("other", "other")}, []member{file("top", "top")})
	b := newBook(t, im, other)
	s := newSnapshotter(t, Options{Layers: b})
	client, stop, err := dial(s, filepath.Join(t.TempDir(), "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	ctx := t.Context()
	// held: layer 0 of im. plain: a directory that is labelled as layer 0 of other.
	if _, err := client.Prepare(ctx, "x", "", snapshots.WithLabels(layerLabels(im, 0, contracts[2]))); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	held := im.chain[0].String()
	if _, err := client.Prepare(ctx, "y", ""); err != nil {
		t.Fatal(err)
	}
	if err := client.Commit(ctx, "plain", "y", snapshots.WithLabels(layerLabels(other, 0, contracts[2]))); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Prepare(ctx, "active", ""); err != nil {
		t.Fatal(err)
	}
	with := func(l map[string]string, kv ...string) map[string]string {
		for i := 0; i < len(kv); i += 2 {
			if kv[i+1] == "-" {
				delete(l, kv[i])
			} else {
				l[kv[i]] = kv[i+1]
			}
		}
		return l
	}
	c24, c22 := contracts[2], contracts[0]
	huge := strings.Repeat("x", 300<<10)
	for _, tt := range []struct {
		name, parent string
		labels       map[string]string
		want         error // nil: an ordinary snapshot
	}{
		{"no parent like that", "nobody", layerLabels(im, 1, c24), errdefs.ErrNotFound},
		{"active parent", "active", nil, errdefs.ErrInvalidArgument},
		{"parent of another image", held, layerLabels(other, 1, c24), nil},
		{"parent of another image, 2.2", held, layerLabels(other, 1, c22), nil},
		{"parent that is not what is said", held, with(layerLabels(im, 1, c24), labelParent, other.chain[0].String()), nil},
		{"layer in the wrong place", held, layerLabels(im, 2, c24), nil},
		{"layer in the wrong place, 2.2", held, layerLabels(im, 2, c22), nil},
		{"upper layer as the lowest, 2.2", "", layerLabels(im, 1, c22), nil},
		{"directory below", "plain", layerLabels(other, 1, c24), nil},
		{"directory below, side by side", "", layerLabels(other, 1, c24), nil},
		{"unknown below, side by side", "", layerLabels(im, 3, c24), nil},
		{"diff ID of another layer", held, with(layerLabels(im, 1, c24), snapshots.LabelSnapshotDiffID, im.layers[3].diffID.String()), nil},
		{"blob of another layer", held, with(layerLabels(im, 1, c24), snapshotters.TargetLayerDigestLabel, im.layers[3].desc.Digest.String()), nil},
		{"blob of nobody", held, with(layerLabels(im, 1, c24), snapshotters.TargetLayerDigestLabel, digest.FromString("?").String()), nil},
		{"no image", held, with(layerLabels(im, 1, c24), snapshotters.TargetRefLabel, "-"), nil},
		{"no blob", held, with(layerLabels(im, 1, c24), snapshotters.TargetLayerDigestLabel, "-"), nil},
		{"no digests at all", held, map[string]string{snapshots.LabelSnapshotRef: "something"}, nil},
		{"torn digests", held, with(layerLabels(im, 1, c24), snapshots.LabelSnapshotDiffID, "sha256:abc", labelParent, "sha256:"), nil},
		{"huge label", held, with(layerLabels(im, 1, c24), snapshotters.TargetImageLayersLabel, huge), errdefs.ErrInvalidArgument},
		{"owners of nobody", held, map[string]string{snapshots.LabelSnapshotUIDMapping: "0:x:1"}, errdefs.ErrInvalidArgument},
		{"owners without root", held, map[string]string{snapshots.LabelSnapshotUIDMapping: "1:1000:10"}, errdefs.ErrInvalidArgument},
		{"owners of an image", "", with(layerLabels(im, 3, c24), snapshots.LabelSnapshotUIDMapping, "0:x:1"), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before, err := s.Held(ctx)
			if err != nil {
				t.Fatal(err)
			}
			ms, err := client.Prepare(ctx, "key", tt.parent, snapshots.WithLabels(tt.labels))
			if !errors.Is(err, tt.want) {
				t.Fatalf("Prepare: %v, want %v", err, tt.want)
			}
			after, err := s.Held(ctx)
			if err != nil || len(after.Layers) != len(before.Layers) {
				t.Errorf("held: %d layers, then %d, %v", len(before.Layers), len(after.Layers), err)
			}
			if tt.want != nil {
				if _, err := client.Stat(ctx, "key"); !errdefs.IsNotFound(err) {
					t.Errorf("Stat of what was refused: %v", err)
				}
				return
			}
			if ms[len(ms)-1].ReadOnly() {
				t.Errorf("staged: %v", ms)
			}
			if err := client.Remove(ctx, "key"); err != nil {
				t.Error(err)
			}
		})
	}
	for name, tt := range map[string]struct {
		err, want error
	}{
		"no key":                  {second(client.Prepare(ctx, "", "")), errdefs.ErrInvalidArgument},
		"huge key":                {second(client.Prepare(ctx, huge, "")), errdefs.ErrInvalidArgument},
		"huge name":               {client.Commit(ctx, huge, "active"), errdefs.ErrInvalidArgument},
		"name in use":             {client.Commit(ctx, "plain", "active"), errdefs.ErrAlreadyExists},
		"unknown parent":          {client.Commit(ctx, "new", "active", snapshots.WithParent("nobody")), errdefs.ErrNotFound},
		"parent is itself":        {client.Commit(ctx, "new", "active", snapshots.WithParent("active")), errdefs.ErrNotFound},
		"Commit of committed":     {client.Commit(ctx, "new", "plain"), errdefs.ErrFailedPrecondition},
		"Commit of nothing":       {client.Commit(ctx, "new", "nobody"), errdefs.ErrNotFound},
		"Remove of nothing":       {client.Remove(ctx, "nobody"), errdefs.ErrNotFound},
		"Mounts of committed":     {second(client.Mounts(ctx, "plain")), errdefs.ErrFailedPrecondition},
		"Mounts of nothing":       {second(client.Mounts(ctx, "nobody")), errdefs.ErrNotFound},
		"Usage of nothing":        {second(client.Usage(ctx, "nobody")), errdefs.ErrNotFound},
		"View with a used key":    {second(client.View(ctx, "active", "plain")), errdefs.ErrAlreadyExists},
		"Prepare with a used key": {second(client.Prepare(ctx, "active", "plain")), errdefs.ErrAlreadyExists},
		"Walk with a bad filter":  {client.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "labels..=="), errdefs.ErrInvalidArgument},
		"Update of its parent":    {second(client.Update(ctx, snapshots.Info{Name: "active", Parent: "plain"}, "parent")), errdefs.ErrInvalidArgument},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", name, tt.err, tt.want)
		}
	}
	if _, err := client.Stat(ctx, "active"); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestStagedOnSomethingElse commits staged layers on what they do not belong to.
func TestStagedOnSomethingElse(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	s := newSnapshotter(t, Options{Layers: newBook(t, im)})
	ctx := t.Context()
	c := contracts[5]
	if _, err := s.Prepare(ctx, "x", "", snapshots.WithLabels(layerLabels(im, 0, c))); !errdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	ms, err := s.Prepare(ctx, "staged-1", "", snapshots.WithLabels(layerLabels(im, 1, c)))
	if err != nil || !ms[0].ReadOnly() {
		t.Fatalf("%v, %v", ms, err)
	}
	if _, err := s.Prepare(ctx, "staged-2", "", snapshots.WithLabels(layerLabels(im, 2, c))); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Prepare(ctx, "y", ""); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, "plain", "y"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, key, parent string
		want              error
	}{
		{"none", "staged-1", "", errdefs.ErrInvalidArgument},
		{"nobody", "staged-1", "nobody", errdefs.ErrNotFound},
		{"a directory", "staged-1", "plain", errdefs.ErrFailedPrecondition},
		{"another layer", "staged-2", im.chain[0].String(), errdefs.ErrInvalidArgument},
		{"its own", "staged-1", im.chain[0].String(), nil},
	} {
		err := s.Commit(ctx, "name", tt.key, snapshots.WithLabels(layerLabels(im, 1, c)), snapshots.WithParent(tt.parent))
		if !errors.Is(err, tt.want) {
			t.Errorf("Commit on %s: %v, want %v", tt.name, err, tt.want)
		}
	}
	// Abandoned: it held the layer, and does not any more.
	if err := s.Remove(ctx, "staged-2"); err != nil {
		t.Fatal(err)
	}
	if h, err := s.Held(ctx); err != nil || len(h.Layers) != 2 {
		t.Errorf("Held = %v, %v", h, err)
	}
}

// TestUnpackedBelow: namespaces share what is held, and not what they unpacked.
// A layer is staged only where its parent will be held.
func TestUnpackedBelow(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	base := []member{dir("etc", 0o755), file("etc/base", "base"), file("etc/gone", "gone")}
	app := newImage(t, cs, "r.example/app:1", base, []member{whiteout("etc/gone"), file("etc/app", "app")}, []member{file("etc/top", "top")})
	for _, c := range contracts {
		t.Run(c.name, func(t *testing.T) {
			b := newBook(t, app)
			s := newSnapshotter(t, Options{Layers: b})
			b.refuse = errors.New("registry is gone")
			lowest := app
			lowest.layers, lowest.chain = app.layers[:1], app.chain[:1]
			if n, err := c.pull(t.Context(), s, cs, lowest); n != 1 || err != nil {
				t.Fatalf("%d layers unpacked, %v", n, err)
			}
			b.refuse = nil // the registry is there again
			if n, err := c.pull(t.Context(), s, cs, app); n != 2 || err != nil {
				t.Fatalf("%d layers unpacked, %v", n, err)
			}
			if len(b.left) == 0 {
				t.Error("the book was not told why layers are containerd's")
			}
			for _, why := range b.left { // containerd 2.2 does not say what is below
				if !errors.Is(why, errBelow) && !errors.Is(why, errNotProven) {
					t.Errorf("the book was told %v", why)
				}
			}
			got := shown(t, s, app.top())
			if strings.Contains(got, "gone") || !strings.Contains(got, "top") || !strings.Contains(got, "base") {
				t.Errorf("shown:\n%s", got)
			}
			removeAll(t, s)
		})
	}
}

// TestRemoveMounted: who has a snapshot mounted keeps it, and nothing is left.
func TestRemoveMounted(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	s := newSnapshotter(t, Options{Layers: newBook(t, im)})
	if _, err := contracts[2].pull(t.Context(), s, cs, im); err != nil {
		t.Fatal(err)
	}
	ms, err := s.Prepare(t.Context(), "container", im.top())
	if err != nil {
		t.Fatal(err)
	}
	target := t.TempDir()
	if err := mount.All(ms, target); err != nil {
		t.Fatal(err)
	}
	defer mount.UnmountAll(target, 0)
	f, err := os.Create(filepath.Join(target, "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("still here"); err != nil {
		t.Fatal(err)
	}
	removeAll(t, s)
	var got [10]byte
	if _, err := f.ReadAt(got[:], 0); err != nil || string(got[:]) != "still here" {
		t.Errorf("%q, %v", got, err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "etc/base")); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "etc/passwd")); err != nil || string(b) != "root and others" {
		t.Errorf("%q, %v", b, err)
	}
}

func FuzzClaim(f *testing.F) {
	d := digest.FromString("x").String()
	f.Add("r.example/app:1", d, d, d, d, d, "extract-1-abc "+d)
	f.Add("", "sha256:", d, "", d, d, "default/1/extract-1 x")
	f.Fuzz(func(t *testing.T, ref, manifest, blob, target, diffID, parent, key string) {
		labels := map[string]string{
			snapshotters.TargetRefLabel: ref, snapshotters.TargetManifestDigestLabel: manifest, snapshotters.TargetLayerDigestLabel: blob,
			snapshots.LabelSnapshotRef: target, snapshots.LabelSnapshotDiffID: diffID, labelParent: parent,
		}
		c, complete := readClaim(labels)
		for _, d := range []digest.Digest{c.blob, c.target, c.diffID, c.parent, c.image.Manifest} {
			if d != "" && d.Validate() != nil || d == "" && complete && d == c.blob {
				t.Errorf("%+v, complete: %t", c, complete)
			}
		}
		if complete && c.proves(c.diffID, c.parent) && c.parent == "" && c.diffID != c.target {
			t.Errorf("%+v proves itself", c)
		}
		if yes, known := c.lowest(); yes && (!known || c.parent != "") {
			t.Errorf("%+v is the lowest: %t, known: %t", c, yes, known)
		}
		unpacks(key, labels)
	})
}

func FuzzIDMap(f *testing.F) {
	for _, s := range []string{"0:100000:65536", "0:1:1,1:5:9", "", ":", "0:4294967295:1", "0:0:4294967295", "1:2:3", "0:1:0", "-1:0:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		root, err := rootOf(s)
		if err == nil && (root < 0 || root >= 1<<32-1) || err != nil && !errdefs.IsInvalidArgument(err) {
			t.Errorf("rootOf(%q) = %d, %v", s, root, err)
		}
	})
}

func TestRootOf(t *testing.T) {
	for s, want := range map[string]int{"": 0, "0:100000:65536": 100000, "5:5:5,0:7:1": 7, "0:0:4294967295": 0} {
		if got, err := rootOf(s); got != want || err != nil {
			t.Errorf("rootOf(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "0:1", "0:1:2:3", "0:1:0", "1:1:1", "0:1:-1", "0:1:1,", "0:4294967295:1", "0:1:4294967295", " 0:1:1", strings.Repeat("0:1:1,", 400) + "0:1:1"} {
		if got, err := rootOf(s); err == nil {
			t.Errorf("rootOf(%.20q) = %d, want an error", s, got)
		}
	}
}

func TestUnpacks(t *testing.T) {
	d := digest.FromString("x")
	for key, want := range map[string]bool{
		fmt.Sprintf("extract-12-a_b= %s", d):            true,
		fmt.Sprintf("default/7/extract-12-ab= %s", d):   true,
		"default/7/extract-12":                          false,
		"default/7/extract-12 pizza":                    false,
		fmt.Sprintf("default/7/other-12 %s", d):         false,
		fmt.Sprintf("default/7/extract-12-ab= %s/x", d): false,
	} {
		if got := unpacks(key, nil); got != want {
			t.Errorf("unpacks(%q) = %t", key, got)
		}
	}
}

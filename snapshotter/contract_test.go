package snapshotter

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A contract is the way in which a version of containerd unpacks
// (core/unpack/unpacker.go). Its applier is the same from 2.2 to 2.4.
type contract struct {
	name     string
	labels   bool // it says the diff ID and the chain ID below
	parallel bool // it names no parent before Commit
	staged   bool // it knows what a read-only mount says
}

var contracts = []contract{
	{name: "2.2 serial"},
	{name: "2.3 serial", labels: true},
	{name: "2.4 serial", labels: true, staged: true},
	{name: "2.2 parallel", parallel: true},
	{name: "2.3 parallel", labels: true, parallel: true},
	{name: "2.4 parallel", labels: true, parallel: true, staged: true},
}

// layerLabels are those of the i-th layer of an image.
func layerLabels(im image, i int, c contract) map[string]string {
	m := map[string]string{
		snapshots.LabelSnapshotRef:             im.chain[i].String(),
		snapshotters.TargetRefLabel:            im.ref,
		snapshotters.TargetManifestDigestLabel: im.manifest.Digest.String(),
		snapshotters.TargetLayerDigestLabel:    im.layers[i].desc.Digest.String(),
	}
	if c.labels {
		m[snapshots.LabelSnapshotDiffID] = im.layers[i].diffID.String()
		if i > 0 {
			m[labelParent] = im.chain[i-1].String()
		}
	}
	return m
}

// pull does what containerd does with the layers of an image. It says how many it has unpacked.
func (c contract) pull(ctx context.Context, s snapshots.Snapshotter, cs content.Store, im image) (unpacked int, err error) {
	type half struct {
		i      int
		key    string
		staged bool
		opts   []snapshots.Opt
	}
	bottom := func(h half) error {
		if c.parallel && h.i > 0 {
			h.opts = append(h.opts, snapshots.WithParent(im.chain[h.i-1].String()))
		}
		if err := s.Commit(ctx, im.chain[h.i].String(), h.key, h.opts...); err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("commit layer %d: %w", h.i, err)
		}
		return nil
	}
	var halves []half
	for i, l := range im.layers {
		if _, err := s.Stat(ctx, im.chain[i].String()); err == nil {
			continue // containerd's own database says so
		}
		parent := ""
		if i > 0 && !c.parallel {
			parent = im.chain[i-1].String()
		}
		h := half{i: i, key: fmt.Sprintf(snapshots.UnpackKeyFormat, fmt.Sprintf("%d-%s", i, strings.ReplaceAll(c.name, " ", "-")), im.chain[i]),
			opts: []snapshots.Opt{snapshots.WithLabels(layerLabels(im, i, c))}}
		ms, err := s.Prepare(ctx, h.key, parent, h.opts...)
		if errdefs.IsAlreadyExists(err) {
			info, err := s.Stat(ctx, im.chain[i].String())
			if err != nil || info.Parent != parent || info.Labels[snapshots.LabelSnapshotRef] != im.chain[i].String() {
				return unpacked, fmt.Errorf("layer %d exists as %+v: %w", i, info, errors.Join(err, errdefs.ErrUnknown))
			}
			continue
		}
		if err != nil {
			return unpacked, fmt.Errorf("prepare layer %d: %w", i, err)
		}
		h.staged = c.staged && ms[len(ms)-1].ReadOnly()
		if !h.staged {
			unpacked++
			d, err := apply.NewFileSystemApplier(cs).Apply(ctx, l.desc, ms)
			if err != nil || d.Digest != l.diffID {
				return unpacked, fmt.Errorf("apply layer %d to %v: diff ID %v: %w", i, ms, d.Digest, err)
			}
		}
		if c.parallel {
			halves = append(halves, h)
		} else if err := bottom(h); err != nil {
			return unpacked, err
		}
	}
	for _, h := range halves {
		if err := bottom(h); err != nil {
			return unpacked, err
		}
	}
	return unpacked, nil
}

// testImage has what layers do to each other.
func testImage(t testing.TB, cs content.Store, ref string) image {
	owned := file("srv/owned", "by somebody")
	owned.UID, owned.GID, owned.Mode = 1000, 1001, 0o4755
	return newImage(t, cs, ref,
		[]member{dir("etc", 0o755), file("etc/passwd", "root"), file("etc/gone", "soon"), dir("srv", 0o711), owned,
			dir("old", 0o755), file("old/a", "a"), file("empty", ""), dir("opt", 0o700)},
		[]member{dir("etc", 0o755), whiteout("etc/gone"), file("etc/new", "new"), dir("old", 0o755), opaque("old"), file("old/b", "b")},
		[]member{},                              // which a history entry without a change makes
		[]member{file("opt/deep/file", "deep")}, // its directories are not in the layer
		[]member{whiteout("old"), file("etc/passwd", "root and others")},
	)
}

func TestContracts(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	// Side by side, containerd does not know the modes of directories that a layer
	// has not itself; so it is on overlayfs, too.
	want := map[bool]string{}
	for _, c := range contracts {
		plain := newSnapshotter(t, Options{})
		if n, err := c.pull(t.Context(), plain, cs, im); err != nil || n != len(im.layers) {
			t.Fatalf("%s without a book: %d layers unpacked, %v", c.name, n, err)
		}
		got := shown(t, plain, im.top())
		if want[c.parallel] != "" && got != want[c.parallel] {
			t.Errorf("%s without a book:\n%s\nwant:\n%s", c.name, got, want[c.parallel])
		}
		want[c.parallel] = got
	}
	if !strings.Contains(want[false], "opt drwx------") {
		t.Errorf("%s: the mode of opt is lost", want[false])
	}
	for _, c := range contracts {
		for _, refuse := range []error{nil, errors.New("no index")} {
			t.Run(fmt.Sprintf("%s/refused=%t", c.name, refuse != nil), func(t *testing.T) {
				b := newBook(t, im)
				b.refuse = refuse
				s := newSnapshotter(t, Options{Layers: b})
				n, err := c.pull(t.Context(), s, cs, im)
				if err != nil {
					t.Fatal(err)
				}
				wantN := 0
				switch {
				case refuse != nil:
					wantN = len(im.layers)
				case c.parallel && !c.staged:
					wantN = len(im.layers) - 1 // the lowest is committed in Prepare
				}
				if n != wantN {
					t.Errorf("%d layers unpacked, want %d", n, wantN)
				}
				if got, want := shown(t, s, im.top()), want[c.parallel && n > 0]; got != want {
					t.Errorf("shown:\n%s\nwant:\n%s", got, want)
				}
				useContainer(t, s, im.top())
				removeAll(t, s)
			})
		}
	}
}

// useContainer writes into a snapshot on parent, and commits it.
func useContainer(t *testing.T, s *Snapshotter, parent string) {
	t.Helper()
	ctx := t.Context()
	ms, err := s.Prepare(ctx, "container", parent)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Mounts(ctx, "container")
	if err != nil || fmt.Sprint(again) != fmt.Sprint(ms) {
		t.Errorf("Mounts = %v, %v; Prepare has returned %v", again, err, ms)
	}
	var list string
	mounted(t, ms, func(dir string) {
		change(t, dir)
		list = listing(t, dir)
	})
	upper := ""
	for _, o := range ms[0].Options {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = dir
		}
	}
	// A differ may read it directly.
	if b, err := os.ReadFile(filepath.Join(upper, "etc/passwd")); err != nil || string(b) != "root and others" {
		t.Errorf("upper directory: etc/passwd = %q, %v", b, err)
	}
	if err := s.Commit(ctx, "committed", "container"); err != nil {
		t.Fatal(err)
	}
	if got := shown(t, s, "committed"); got != list {
		t.Errorf("committed:\n%s\nwant:\n%s", got, list)
	}
}

// removeAll removes all snapshots and looks whether nothing is left.
func removeAll(t testing.TB, s *Snapshotter) {
	t.Helper()
	for {
		parents, all := map[string]bool{}, map[string]bool{}
		err := s.Walk(t.Context(), func(_ context.Context, info snapshots.Info) error {
			all[info.Name] = true
			parents[info.Parent] = true
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			break
		}
		for name := range all {
			if !parents[name] {
				continue
			}
			if err := s.Remove(t.Context(), name); !errdefs.IsFailedPrecondition(err) {
				t.Fatalf("Remove(%q), which has children: %v", name, err)
			}
		}
		for name := range all {
			if parents[name] {
				continue
			}
			if err := s.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{s.dirs, s.links} {
		if left, err := list(dir); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v", dir, left, err)
		}
	}
	if h, err := s.Held(t.Context()); err != nil || len(h.Layers)+len(h.Stacks) > 0 {
		t.Errorf("held: %v, %v", h, err)
	}
	if len(s.index.byID)+len(s.index.byRef)+len(s.index.chains)+len(s.index.pending) > 0 {
		t.Errorf("index: %v %v %v %v", s.index.byID, s.index.byRef, s.index.chains, s.index.pending)
	}
}

// change is what a container does.
func change(t testing.TB, dir string) {
	t.Helper()
	err := errors.Join(
		os.Chmod(filepath.Join(dir, "etc/passwd"), 0o600), // copies it up
		os.Remove(filepath.Join(dir, "etc/new")),
		os.Chown(filepath.Join(dir, "srv/owned"), 7, 7),
		os.WriteFile(filepath.Join(dir, "etc/more"), []byte("more"), 0o644))
	if err != nil {
		t.Error(err)
	}
}

func newReader(b []byte) io.Reader { return bytes.NewReader(b) }

// wantNames looks at the names in a layer.
func wantNames(t testing.TB, ctx context.Context, cs content.Store, d ocispec.Descriptor, want ...string) {
	t.Helper()
	b, err := content.ReadBlob(ctx, cs, d)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, h.Name)
		if h.Typeflag == tar.TypeReg {
			if data, err := io.ReadAll(r); err != nil || bytes.IndexByte(data, 0) >= 0 {
				t.Errorf("%s: %q, %v", h.Name, data, err)
			}
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("layer has %q, want %q", got, want)
	}
}

// TestHeldNames: the same layer on two parents, and one of them goes.
func TestHeldNames(t *testing.T) {
	s := newSnapshotter(t, Options{Layers: noLayers{}})
	ctx := t.Context()
	hold := func(target, parent string) (name string) {
		t.Helper()
		info := snapshots.Info{Name: "key", Parent: parent, Labels: map[string]string{snapshots.LabelSnapshotRef: digest.FromString(target).String()}}
		if err := s.commitHeld(ctx, info, row{Target: digest.FromString(target)}); !errdefs.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		err := s.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			if name != "" {
				t.Errorf("%q and %q are both %s on %q", name, i.Name, target, parent)
			}
			name = i.Name
			return nil
		}, fmt.Sprintf(`labels.%q==%s,parent==%q`, snapshots.LabelSnapshotRef, info.Labels[snapshots.LabelSnapshotRef], parent))
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	a, b := hold("a", ""), hold("b", "")
	onA, onB := hold("x", a), hold("x", b)
	if onA != digest.FromString("x").String() || onA == onB {
		t.Errorf("x is called %q on a and %q on b", onA, onB)
	}
	if err := s.Remove(ctx, onA); err != nil {
		t.Fatal(err)
	}
	if again := hold("x", b); again != onB {
		t.Errorf("x on b was %q, and is made again as %q", onB, again)
	}
	if again := hold("x", a); again != onA {
		t.Errorf("x on a was %q, and is now %q", onA, again)
	}
}

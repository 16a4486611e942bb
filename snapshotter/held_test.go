package snapshotter

import (
	"context"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// TestHeld: each namespace that asks for a layer which is held is told of, with
// the first Prepare and with those that find it there, and no other; what is
// staged, when it is committed.
func TestHeld(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im, other := testImage(t, cs, "r.example/app:1"), newImage(t, cs, "r.example/unknown:1", []member{file("a", "a")})
	told := map[string][]digest.Digest{}
	var staged []digest.Digest
	s := newSnapshotter(t, Options{Layers: newBook(t, im), Held: func(ctx context.Context, blob digest.Digest) {
		ns, err := namespaces.NamespaceRequired(ctx)
		if err != nil {
			t.Error(err)
		}
		told[ns] = append(told[ns], blob)
	}})
	for _, c := range []struct {
		ns string
		im image
	}{{"one", im}, {"two", im}, {"three", other}} {
		_, err := s.Prepare(namespaces.WithNamespace(t.Context(), c.ns), "extract-1 "+c.ns+c.im.chain[0].String(), "", snapshots.WithLabels(layerLabels(c.im, 0, contracts[0])))
		if c.im.ref == im.ref && !errdefs.IsAlreadyExists(err) || c.im.ref != im.ref && err != nil {
			t.Errorf("Prepare in %s: %v", c.ns, err)
		}
	}
	if _, err := s.Prepare(namespaces.WithNamespace(t.Context(), "four"), "container", im.chain[0].String()); err != nil {
		t.Error(err)
	}
	if _, err := contracts[5].pull(namespaces.WithNamespace(t.Context(), "five"), newSnapshotter(t, Options{Layers: newBook(t, im), Held: func(ctx context.Context, blob digest.Digest) {
		staged = append(staged, blob)
	}}), cs, im); err != nil {
		t.Error(err)
	}
	var all []digest.Digest
	for _, l := range im.layers {
		all = append(all, l.desc.Digest)
	}
	if !slices.Equal(staged, all) {
		t.Errorf("staged layers that are told of: %v, want %v", staged, all)
	}
	want := im.layers[0].desc.Digest
	if len(told) != 2 || len(told["one"]) != 1 || told["one"][0] != want || len(told["two"]) != 1 || told["two"][0] != want {
		t.Errorf("told of %v, want %s in one and two", told, want)
	}
}

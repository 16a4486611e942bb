package main

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/images"
)

// TestSweep: mappings that a snapshot has are kept, each once, and nothing is
// touched as long as it is not known what they have.
func TestSweep(t *testing.T) {
	const a, b = "0:100000:65536", "0:200000:65536"
	var held images.Held
	var fails error
	var kept []string
	swept := false
	s := &shifts{}
	sweep := func() error {
		kept, swept = nil, false
		return s.sweep(t.Context(), func(context.Context) (images.Held, error) { return held, fails }, func(_ context.Context, maps []mounts.IDMap) error {
			swept = true
			for _, m := range maps {
				kept = append(kept, m.String())
			}
			return nil
		})
	}
	s.mount()()
	held.Stacks = []images.Stack{{}, {Map: images.IDMap{UID: a, GID: a}}, {Map: images.IDMap{UID: b}}, {Map: images.IDMap{UID: a, GID: a}}}
	want := []string{a + " " + a, b + " 0:0:4294967295"}
	if err := sweep(); err != nil || !slices.Equal(kept, want) || s.none.Load() {
		t.Errorf("sweep: %v, kept %q, want %q; none %v", err, kept, want, s.none.Load())
	}
	done := s.mount()
	if err := sweep(); !errors.Is(err, errMounting) || swept {
		t.Errorf("sweep while a stack is mounted: %v, swept %v", err, swept)
	}
	done()
	fails = errors.New("one containerd cannot be read")
	if err := sweep(); !errors.Is(err, fails) || swept {
		t.Errorf("sweep without knowledge: %v, swept %v", err, swept)
	}
	fails, held.Stacks = nil, held.Stacks[:1]
	if err := sweep(); err != nil || !swept || len(kept) > 0 || !s.none.Load() {
		t.Errorf("sweep of nothing: %v, swept %v, kept %q; none %v", err, swept, kept, s.none.Load())
	}
	s.mount()()
	if s.none.Load() {
		t.Error("a stack was mounted, and nobody will look for it")
	}
}

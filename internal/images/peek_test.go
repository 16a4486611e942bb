package images

import (
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images/imagestest"
	"github.com/snapfs/snapfs/layers"
)

// TestPeek: an image is looked at as a pull would find it, and is not known for that.
func TestPeek(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10))
	var requests atomic.Int32
	b.hub.Misbehave(func(http.ResponseWriter, *http.Request) bool { requests.Add(1); return false })
	first := string(im.Manifest.Layers[0].Digest)
	peek := func(policy string, here bool) *Known {
		t.Helper()
		before := b.hub.Got(first)
		k, is, err := b.Peek(t.Context(), control.PullArgs{Ref: im.Ref, Policy: policy}, untold)
		if err != nil {
			t.Fatal(err)
		}
		if is != here || k.Desc.Digest != im.Desc.Digest || len(k.Layers) != 2 || k.Ref != im.Ref || k.Platform == "" {
			t.Errorf("policy %q: here %v, %+v", policy, is, k)
		}
		if _, err := k.ImageConfig(); err != nil {
			t.Error(err)
		}
		if b.hub.Got(first) != before {
			t.Errorf("policy %q: it fetched a layer", policy)
		}
		return k
	}
	for _, policy := range []string{PullMissing, PullAlways, ""} {
		peek(policy, false)
	}
	if list, err := b.List(); err != nil || len(list) > 0 || b.Count() != 0 {
		t.Errorf("known are %v, %v", list, err)
	}
	asked := requests.Load()
	if asked == 0 {
		t.Error("nobody asked the registry")
	}
	if _, _, err := b.Peek(t.Context(), control.PullArgs{Ref: im.Ref, Policy: PullNever}, untold); err == nil || requests.Load() != asked {
		t.Errorf("with never: %v, %d requests", err, requests.Load()-asked)
	}
	pulled, err := b.Pull(t.Context(), control.PullArgs{Ref: im.Ref, Wait: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	asked = requests.Load()
	for _, policy := range []string{PullMissing, PullNever} {
		if k := peek(policy, true); !slices.Equal(k.Layers, b.current(pulled).Layers) || requests.Load() != asked {
			t.Errorf("policy %q: layers %v, %d requests", policy, k.Layers, requests.Load()-asked)
		}
	}
	peek(PullAlways, true)
	b.lied(b.current(pulled).Layers[0], layers.Sum{}, errors.New("a wrong byte"))
	if _, _, err := b.Peek(t.Context(), control.PullArgs{Ref: im.Ref, Policy: PullMissing}, untold); !errors.Is(err, ErrQuarantined) {
		t.Errorf("of a quarantined image: %v", err)
	}
}

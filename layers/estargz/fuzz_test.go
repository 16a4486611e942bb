package estargz

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/layerstest"
)

func FuzzOpen(f *testing.F) {
	b, _ := build(f, members())
	f.Add(b.p)
	b, _ = build(f, nil)
	f.Add(b.p)
	f.Fuzz(func(t *testing.T, p []byte) {
		b := &blob{p: p}
		_, err := Open(t.Context(), b, digest.FromString(""))
		wrong, ok := errors.AsType[*layers.DigestError](err)
		if !ok {
			if !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, layers.ErrNoTOC) {
				t.Errorf("Open = %v", err)
			}
			return
		}
		// Vouched for, it may still be wrong, but what comes out never is.
		if ix, err := Open(t.Context(), b, wrong.Got); err == nil {
			layerstest.Index(t, ix, b.Size())
		}
	})
}

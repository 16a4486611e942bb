package convert

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/layerstest"
	"github.com/snapfs/snapfs/layers/lazy"
)

// Whatever converts can be opened, and nothing else than a bad layer fails.
func FuzzLayer(f *testing.F) {
	for _, m := range odd() {
		if len(m.data) < 1000 {
			f.Add(tarOf(f, []sample{m}))
		}
	}
	f.Add(compress(f, "gzip", tarOf(f, odd()[4:6])))
	f.Add(compress(f, "zstd", tarOf(f, odd()[4:6])))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, format := range formats {
			var out bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), time.Second) // for holes
			c, err := Layer(ctx, &out, bytes.NewReader(p), Options{Format: format, Level: 1})
			late := ctx.Err() != nil
			cancel()
			if err != nil {
				if !late && !errors.Is(err, layers.ErrBadLayer) && !errors.Is(err, layers.ErrTooLarge) {
					t.Errorf("Layer to %s = %v", format, err)
				}
				continue
			}
			ix, _, err := lazy.Open(t.Context(), c.Desc, blob(out.Bytes()))
			if err != nil {
				t.Errorf("Open of %s = %v", format, err)
				continue
			}
			layerstest.Index(t, ix, int64(out.Len()))
		}
	})
}

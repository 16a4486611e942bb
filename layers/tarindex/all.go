package tarindex

import (
	"cmp"
	"context"
	"errors"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/layers/objects"
)

// Parallel is how many layers UnpackAll takes at once. It bounds memory (4 MB a
// layer, as much for windows, a zstd layer's own window, and 88 bytes a chunk)
// and connections; more would not be faster even where each connection is slow.
const Parallel = 6

// A Layer is what [UnpackAll] needs of each layer.
type Layer struct {
	Desc   ocispec.Descriptor
	DiffID digest.Digest
	// Open begins to read the stored bytes. The stream must fail when ctx ends.
	Open    func(ctx context.Context) (io.ReadCloser, error)
	Options Options
}

// UnpackAll unpacks the layers of an image at once and returns what they are in
// the same order. The largest begin first, so that the last to end is not one
// that began late. A layer that an image has twice is unpacked once, and is the
// same twice. The first error ends all. The caller closes what it returns.
func UnpackAll(ctx context.Context, list []Layer, s *objects.Store) ([]*Unpacked, error) {
	type key struct{ blob, diff digest.Digest }
	out := make([]*Unpacked, len(list))
	first := make(map[key]int, len(list))
	var order []int
	for i, l := range list {
		k := key{l.Desc.Digest, l.DiffID}
		if _, ok := first[k]; !ok {
			first[k] = i
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(list[b].Desc.Size, list[a].Desc.Size) })
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(Parallel)
	for _, i := range order {
		g.Go(func() (err error) {
			out[i], err = list[i].unpack(ctx, s)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		for _, u := range out {
			if u != nil {
				err = errors.Join(err, u.Close())
			}
		}
		return nil, err
	}
	for i, l := range list {
		out[i] = out[first[key{l.Desc.Digest, l.DiffID}]]
	}
	return out, nil
}

func (l *Layer) unpack(ctx context.Context, s *objects.Store) (_ *Unpacked, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r, err := l.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return Unpack(ctx, r, l.Desc, l.DiffID, s, l.Options)
}

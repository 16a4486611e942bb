package images

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// Complete fetches the rest of an image in the background, if the daemon is
// configured to. It returns at once.
func (s *Service) Complete(k *Known) {
	if !s.Options.Complete || s.base.Err() != nil {
		return
	}
	s.background.Go(func() {
		s.booting.wait(s.base, k.Desc.Digest)
		if err := s.CompleteNow(s.base, k, nil); err != nil && s.base.Err() == nil {
			s.Log.Warn("image is not complete; what is missing is fetched when it is read", "ref", k.Ref, "err", err)
		}
	})
}

// CompleteNow fetches what is missing of an image and then seals its metadata
// image: the next mount reads small files from it.
func (s *Service) CompleteNow(ctx context.Context, k *Known, progress func(control.Progress)) error {
	defer s.worked.Store(true)
	k = s.current(k)
	keys := s.incomplete(k.Layers)
	if len(keys) > 0 {
		_, err := s.completing.do(ctx, s.base, k.Tree, progress, func(ctx context.Context, p func(control.Progress)) (struct{}, error) {
			began := time.Now()
			err := s.complete(ctx, keys, p)
			if err == nil {
				s.event(events.Complete, k.Ref, "digest", k.Desc.Digest, "took", time.Since(began))
			}
			return struct{}{}, err
		})
		if err != nil {
			return err
		}
	}
	now, err := s.settle(ctx, k, progress)
	if err != nil {
		return fmt.Errorf("metadata image with real sums: %w", err)
	}
	if err := s.seal(ctx, now); err != nil || now == k {
		return err
	}
	s.publishSoon(&now.manifestRow)
	return s.Collect(ctx) // spans
}

// seal writes the metadata image anew, once however many ask, if its small
// files can go into it now.
func (s *Service) seal(ctx context.Context, k *Known) error {
	_, err := s.trees.do(ctx, s.base, k.Tree+" sealed", nil, func(context.Context, func(control.Progress)) (*treeRow, error) {
		s.live.RLock()
		defer s.live.RUnlock()
		row := s.knownTree(k.Tree)
		if row == nil || row.Sealed {
			return row, nil
		}
		row, err := s.build(k.Tree, k.Layers, nil)
		if err != nil {
			return nil, fmt.Errorf("seal metadata image: %w", err)
		}
		if row.Sealed {
			s.event(events.Seal, k.Ref, "digest", k.Desc.Digest)
		}
		return row, nil
	})
	return err
}

// incomplete returns the layers of which something may be missing: those first
// of which readers have missed most, for they will miss more.
func (s *Service) incomplete(all []string) (keys []string) {
	s.db.View(func(tx *bolt.Tx) error {
		for _, key := range all {
			var l layerRow
			if err := get(tx, "layers", key, &l); err == nil && !l.Complete && !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
		return nil
	})
	touched := make(map[string]int64, len(keys))
	for _, key := range keys {
		touched[key] = s.Fetcher.Touched(key)
	}
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(touched[b], touched[a]) })
	return keys
}

// atOnce is how many layers are completed at the same time: while one ends,
// the line is busy with the next.
const atOnce = 2

func (s *Service) complete(ctx context.Context, keys []string, progress func(control.Progress)) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce)
	for _, key := range keys {
		g.Go(func() error {
			if err := s.completeLayer(ctx, key, progress); err != nil {
				return fmt.Errorf("layer %s: %w", key[:12], err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *Service) completeLayer(ctx context.Context, key string, progress func(control.Progress)) error {
	var row layerRow
	if err := s.db.View(func(tx *bolt.Tx) error { return get(tx, "layers", key, &row) }); err != nil {
		return ignoreMissing(err) // it was removed meanwhile
	}
	complete := s.prove
	if row.Origin == OriginSOCI {
		complete = s.completeSOCI
	}
	defer func() {
		// What came in while the layer was collected was held from that collection.
		if gone := s.db.View(func(tx *bolt.Tx) error { return get(tx, "layers", key, new(layerRow)) }); errors.Is(gone, fs.ErrNotExist) {
			s.CollectSoon()
		}
	}()
	if err := complete(ctx, key, &row, progress); err != nil {
		return err
	}
	if err := s.db.Update(func(tx *bolt.Tx) error {
		return change(tx, "layers", key, func(l *layerRow) { l.Complete = true })
	}); err != nil {
		return err
	}
	progress(control.Progress{ID: short(row.Desc.Digest), Action: "pulling", Done: true})
	return nil
}

// prove completes a layer by all of its stored bytes, from the first to the
// last: what readers have fetched of it already comes a second time. In exchange
// the blob's digest and the diff ID are proven, and of a mapped layer everything
// that its index says; and small files go into a pack, which costs a fraction of
// what files of their own do.
func (s *Service) prove(ctx context.Context, key string, row *layerRow, progress func(control.Progress)) error {
	defer s.Store.Hold()()
	r, err := s.Fetcher.Stream(ctx, key)
	if err != nil {
		return err
	}
	defer r.Close()
	u, err := tarindex.Unpack(ctx, r, row.Desc, row.DiffID, s.Store, tarindex.Options{Progress: pulling(row.Desc, progress)})
	if err != nil {
		s.suspect(key, row, err)
		return err
	}
	defer u.Close()
	if row.Mapped {
		if err := s.compare(key, u); err != nil {
			s.suspect(key, row, err)
			return err
		}
	}
	if err := s.Fetcher.Done(key); err != nil && !errors.Is(err, fs.ErrNotExist) { // it may have been removed meanwhile
		return err
	}
	return s.Store.Barrier(ctx)
}

// compare compares what a layer holds with what its index says.
func (s *Service) compare(key string, u *tarindex.Unpacked) error {
	claim, err := s.index(key, nil, 0)
	if err != nil {
		return err
	}
	s.mu.Lock()
	h := s.open[key]
	s.mu.Unlock()
	if h == nil || h.maps == nil {
		return nil // it was removed meanwhile
	}
	return tarindex.Compare(claim, h.maps.Map(), u)
}

// suspect quarantines the images of a layer, if an error of proving it says that
// the index or the diff ID lies. That the registry sends another blob does not.
func (s *Service) suspect(key string, row *layerRow, err error) {
	d, wrong := errors.AsType[*layers.DigestError](err)
	wrong = wrong && d.Want == row.DiffID
	if wrong || errors.Is(err, layers.ErrLied) || row.Origin == OriginPublished && errors.Is(err, layers.ErrTooLarge) {
		s.Lied(key, layers.Sum{}, err)
	}
}

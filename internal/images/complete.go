package images

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
)

// Complete fetches the rest of an image in the background, if the daemon is
// configured to. It returns at once.
func (s *Service) Complete(k *Known) {
	if !s.Options.Complete || s.base.Err() != nil {
		return
	}
	s.background.Go(func() {
		if err := s.CompleteNow(s.base, k, nil); err != nil && s.base.Err() == nil {
			s.Log.Warn("image is not complete; what is missing is fetched when it is read", "ref", k.Ref, "err", err)
		}
	})
}

// CompleteNow fetches what is missing of an image and then seals its metadata
// image: the next mount reads small files from it.
func (s *Service) CompleteNow(ctx context.Context, k *Known, progress func(control.Progress)) error {
	defer s.worked.Store(true)
	keys := s.incomplete(k)
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
	s.live.RLock()
	defer s.live.RUnlock()
	if row := s.knownTree(k.Tree); row == nil || row.Sealed {
		return nil
	}
	row, err := s.build(k.Tree, k.Layers, nil)
	if err != nil {
		return fmt.Errorf("seal metadata image: %w", err)
	}
	if row.Sealed {
		s.event(events.Seal, k.Ref, "digest", k.Desc.Digest)
	}
	return nil
}

// incomplete returns the layers of which something may be missing: those first
// of which readers have missed most, for they will miss more.
func (s *Service) incomplete(k *Known) (keys []string) {
	s.db.View(func(tx *bolt.Tx) error {
		for _, key := range k.Layers {
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
	if err := s.Fetcher.Complete(ctx, []string{key}, func(have, total int64) {
		progress(control.Progress{ID: short(row.Desc.Digest), Action: "pulling", Off: have, Size: total})
	}); err != nil {
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

package images

import (
	"context"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"

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

func (s *Service) incomplete(k *Known) (keys []string) {
	s.db.View(func(tx *bolt.Tx) error {
		for _, key := range k.Layers {
			var l layerRow
			if err := get(tx, "layers", key, &l); err == nil && !l.Complete {
				keys = append(keys, key)
			}
		}
		return nil
	})
	return keys
}

func (s *Service) complete(ctx context.Context, keys []string, progress func(control.Progress)) error {
	for _, key := range keys {
		id := key[:12]
		if err := s.Fetcher.Complete(ctx, []string{key}, func(have, total int64) {
			progress(control.Progress{ID: id, Action: "pulling", Off: have, Size: total})
		}); err != nil {
			return fmt.Errorf("layer %s: %w", id, err)
		}
		if err := s.db.Update(func(tx *bolt.Tx) error {
			return change(tx, "layers", key, func(l *layerRow) { l.Complete = true })
		}); err != nil {
			return err
		}
		progress(control.Progress{ID: id, Action: "pulling", Done: true})
	}
	return nil
}

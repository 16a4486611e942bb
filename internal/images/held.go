package images

import (
	"context"
	"errors"
	"os"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/index"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
)

// A held layer is one whose objects are served.
type held struct {
	index *indexfile.File
	maps  *index.MapFile  // nil if it is not mapped
	ztoc  *os.File        // of SOCI; nil if it is not read by one
	spans *indexfile.File // of SOCI; nil if there is no ztoc, or they are not needed any more
}

func (h *held) close() error {
	err := h.index.Close()
	if h.maps != nil {
		err = errors.Join(err, h.maps.Close())
	}
	if h.ztoc != nil {
		err = errors.Join(err, h.ztoc.Close())
	}
	if h.spans != nil {
		err = errors.Join(err, h.spans.Close())
	}
	return err
}

// remove ends serving a layer.
func (s *Service) remove(key string, h *held) error {
	if h.ztoc != nil {
		s.Files.Remove(key)
	}
	s.Fetcher.Remove(key)
	return h.close()
}

// serve makes the objects of a lazily readable layer available. ztoc is the
// layer's, if it has just been read.
func (s *Service) serve(key string, l *layerRow, ztoc *soci.Layer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open[key] != nil {
		return nil
	}
	ref, err := registry.ParseRef(l.Source)
	if err != nil {
		return err
	}
	blob, err := s.Registry.Blob(ref, l.Desc)
	if err != nil {
		return err
	}
	h := new(held)
	if h.index, err = indexfile.Open(s.indexPath(key)); err != nil {
		return err
	}
	switch {
	case l.Mapped:
		h.maps, err = s.openMap(key, ref)
	case l.Origin == OriginSOCI:
		err = s.openSOCI(h, key, l, ztoc)
	}
	if err != nil {
		return errors.Join(err, s.remove(key, h))
	}
	if h.ztoc == nil || h.spans != nil {
		s.Fetcher.Add(key, h.layer(blob))
	}
	s.open[key] = h
	return nil
}

func (h *held) layer(blob layers.Blob) fetch.Layer {
	l := fetch.Layer{Blob: blob, Index: h.index, Compression: h.index.Compression()}
	if h.maps != nil {
		l.Map, l.Windows = h.maps.Map(), h.maps
	}
	if h.spans != nil {
		l.Index, l.Compression = h.spans, layers.None
	}
	return l
}

// openMap opens the map of a layer. Windows that are not here come from the
// published index that it is from.
func (s *Service) openMap(key string, ref registry.Ref) (*index.MapFile, error) {
	var from index.Source // is called after from is set
	m, err := index.OpenMap(s.base, s.mapPath(key), func(ctx context.Context, off, n int64) ([]byte, error) {
		return from(ctx, off, n)
	})
	if err != nil {
		return nil, err
	}
	if from = errNoSource; m.From().Size > 0 {
		if from, err = s.windows(ref, m.From()); err != nil {
			return nil, errors.Join(err, m.Close())
		}
	}
	return m, nil
}

// errNoSource is the source of windows of a map that was made here.
func errNoSource(context.Context, int64, int64) ([]byte, error) { return nil, index.ErrNoWindow }

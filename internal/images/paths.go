package images

import (
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
)

// Paths says what objects of an image are called in it; of several names it is
// one, from the uppermost layer that has any. It reads the layers' indexes: for
// what people ask. What no layer has is left out.
func (s *Service) Paths(k *Known, objects []layers.Sum) map[layers.Sum]string {
	paths := map[layers.Sum]string{}
	want := map[layers.Sum]bool{}
	for _, o := range objects {
		want[o] = true
	}
	for i := len(k.Layers) - 1; i >= 0 && len(want) > 0; i-- {
		if err := s.pathsIn(k.Layers[i], want, paths); err != nil {
			s.Log.Warn("names of objects", "layer", k.Layers[i], "err", err)
		}
	}
	return paths
}

// pathsIn moves what a layer has from want to paths.
func (s *Service) pathsIn(key string, want map[layers.Sum]bool, paths map[layers.Sum]string) error {
	f, err := indexfile.Open(s.indexPath(key))
	if err != nil {
		return err
	}
	defer f.Close() // only read
	any := false
	for o := range want {
		_, ok := f.Lookup(o)
		any = any || ok
	}
	if !any {
		return nil
	}
	ix, err := f.Index()
	if err != nil {
		return err
	}
	for i := range ix.Entries {
		e := &ix.Entries[i]
		if e.Kind == layers.Reg && want[e.Object] {
			delete(want, e.Object)
			paths[e.Object] = "/" + e.Name
		}
	}
	return nil
}

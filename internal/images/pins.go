package images

import (
	"sync"

	"github.com/snapfs/snapfs/layers/registry"
)

// pins names what pulls that are under way count on, before any row of the
// database says that it is needed: layer keys and tree IDs.
type pins struct {
	mu sync.Mutex
	n  map[string]int
}

// pin keeps whatever an image is made of, what is there already and what will
// come, from being collected, until release.
func (s *Service) pin(img *registry.Image) (release func()) {
	var names []string
	for _, desc := range img.Manifest.Layers {
		names = append(names, layerKey(desc), desc.Digest.Encoded())
	}
	unpin, unhold := s.pinNames(names...), s.Store.Hold()
	return func() { unpin(); unhold() }
}

// pinNames waits for the end of a collection, which would not see the pins.
func (s *Service) pinNames(names ...string) (release func()) {
	s.live.RLock()
	defer s.live.RUnlock()
	s.pins.add(names, 1)
	return func() { s.pins.add(names, -1) }
}

func (p *pins) add(names []string, d int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n == nil {
		p.n = map[string]int{}
	}
	for _, name := range names {
		if p.n[name] += d; p.n[name] == 0 {
			delete(p.n, name)
		}
	}
}

// all adds what is pinned to the set.
func (p *pins) all(set map[string]bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.n {
		set[name] = true
	}
}

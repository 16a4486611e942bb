package images

import (
	"errors"
	"os"
	"path/filepath"
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
func (s *Service) pin(img *registry.Image, by found) (release func()) {
	var names []string
	for _, desc := range img.Manifest.Layers {
		names = append(names, layerKeys(desc, by)...)
	}
	unpin, unhold := s.pinNames(names...), s.Store.Hold()
	return func() { unpin(); unhold() }
}

// pinNames waits for the end of a collection, which would not see the pins.
func (s *Service) pinNames(names ...string) (release func()) {
	s.live.RLock()
	defer s.live.RUnlock()
	s.pins.add(names, 1, s.markPulling)
	return func() { s.pins.add(names, -1, s.markPulling) }
}

// pullingMark is the file of ROOT/images that is there while something is
// pulled. Who finds it at the start knows that a pull was cut off.
const pullingMark = ".pulling"

func (s *Service) markPulling(on bool) {
	path := filepath.Join(s.Root, "images", pullingMark)
	var err error
	if on {
		err = os.WriteFile(path, nil, 0o600)
	} else {
		err = os.Remove(path)
	}
	if err != nil { // what is left of a pull that is cut off now goes with the next removal
		s.Log.Warn("mark of a pull", "err", err)
	}
}

// tidy removes the temporary files of a process that was killed, and says
// whether it was in the middle of a pull.
func tidy(root string) (cutOff bool, err error) {
	for _, dir := range []string{"layers", "images"} {
		left, gerr := filepath.Glob(filepath.Join(root, dir, ".*"))
		err = errors.Join(err, gerr)
		for _, p := range left {
			cutOff = true
			err = errors.Join(err, os.Remove(p))
		}
	}
	return cutOff, err
}

// add changes the counts by d. busy hears whether there are any, when that changes.
func (p *pins) add(names []string, d int, busy func(bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.n) > 0
	defer func() {
		if now := len(p.n) > 0; now != before {
			busy(now)
		}
	}()
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

package images

import (
	"fmt"
	"slices"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
)

// following knows after which stacks something still comes.
type following struct {
	mu sync.Mutex
	on map[string]bool // trees
}

func (f *following) begin(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.on == nil {
		f.on = map[string]bool{}
	}
	if f.on[id] {
		return false
	}
	f.on[id] = true
	return true
}

func (f *following) end(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.on, id)
}

// A pace says when a start on a stack is taken to be over: nobody tells when a
// container of containerd's is ready.
type pace struct {
	look  time.Duration // between two looks
	quiet time.Duration // since something was read by way of the daemon
	none  time.Duration // if nothing was
	most  time.Duration // whatever is read
}

var usualPace = pace{look: 500 * time.Millisecond, quiet: 2 * time.Second, none: 10 * time.Second, most: time.Minute}

// imageOf is the image that the topmost layer of a stack came with. One that is
// not known any more is at least the layers.
func (s *Service) imageOf(st *Stack, id string, keys []string) *Known {
	of := st.Layers[len(st.Layers)-1].Of
	k := &Known{Ref: of.Ref}
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(of.Manifest), &k.manifestRow) }) != nil {
		k.manifestRow = manifestRow{Source: of.Ref, Layers: keys, Tree: id}
		k.Desc.Digest = of.Manifest
	}
	return k
}

// follow does in the background what follows a start on a stack: what is read
// until all is quiet becomes the image's boot profile, then the rest of the image
// comes in, and the stack's metadata image is sealed. whole says that there is
// nothing but that to do. It returns at once, and is what s.following was told of.
func (s *Service) follow(k *Known, id string, whole bool) {
	if s.base.Err() != nil {
		return
	}
	s.background.Go(func() {
		if !whole {
			s.recordStart(k)
		}
		if whole || s.Options.Complete {
			s.booting.wait(s.base, k.Desc.Digest)
			if err := s.finish(k, id); err != nil && s.base.Err() == nil {
				s.Log.Warn("image is not complete; what is missing is fetched when it is read", "ref", k.Ref, "err", err)
			}
		}
		if !whole { // else there is nothing more that another try could do
			s.following.end(id)
		}
	})
}

// finish completes an image, and seals the metadata image of a stack of it.
func (s *Service) finish(k *Known, id string) error {
	if err := s.CompleteNow(s.base, k, nil); err != nil || id == s.current(k).Tree {
		return err
	}
	row := s.knownTree(id)
	if row == nil || row.Sealed {
		return nil
	}
	of := *k
	of.Tree, of.Layers = id, row.Layers
	of.Desc.Digest = "" // it is only a part of that
	if keys := s.incomplete(row.Layers); len(keys) > 0 {
		if err := s.complete(s.base, keys, untold); err != nil {
			return fmt.Errorf("layers of other images: %w", err)
		}
	}
	return s.seal(s.base, &of)
}

// recordStart records what is read of an image until it is quiet.
func (s *Service) recordStart(k *Known) {
	if !s.starts.another() {
		return
	}
	defer s.starts.over()
	rec := s.Fetcher.Record()
	s.untilQuiet(rec, k.Layers)
	touched, _ := rec.Stop()
	if s.base.Err() == nil && k.Desc.Digest != "" {
		s.learn(k, touched)
	}
}

func (s *Service) untilQuiet(rec *fetch.Recording, keys []string) {
	t := time.NewTicker(s.pace.look)
	defer t.Stop()
	began := time.Now()
	var last time.Time
	for n := 0; time.Since(began) < s.pace.most; {
		select {
		case <-s.base.Done():
			return
		case <-t.C:
		}
		new := rec.Since(n)
		n += len(new)
		switch {
		case slices.ContainsFunc(new, func(sum layers.Sum) bool { return s.has(keys, sum) }):
			last = time.Now()
		case last.IsZero() && time.Since(began) >= s.pace.none, !last.IsZero() && time.Since(last) >= s.pace.quiet:
			return
		}
	}
}

package images

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
)

// refusals remember which images could not be brought in for a snapshotter, as
// long as the pull that wants them goes on: one try is enough for all of its
// layers.
type refusals struct {
	mu sync.Mutex
	by map[string]*refusal
}

type refusal struct {
	err   error
	last  time.Time              // it was asked for
	blobs map[digest.Digest]bool // that were asked for
}

const (
	maxRefusals = 256
	// refusedFor is how long after the last of its layers a pull is over.
	refusedFor = 2 * time.Minute
)

// why is not nil if the layer belongs to a pull that has failed already.
func (r *refusals) why(id string, blob digest.Digest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	x := r.by[id]
	if x == nil {
		return nil
	}
	if x.blobs[blob] || time.Since(x.last) > refusedFor { // this is another pull
		delete(r.by, id)
		return nil
	}
	x.blobs[blob], x.last = true, time.Now()
	return x.err
}

// asked notes that a layer was asked for, and refused.
func (r *refusals) asked(id string, blob digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if x := r.by[id]; x != nil {
		x.blobs[blob] = true
	}
}

// forget hears that a manifest is known now, by whatever way.
func (r *refusals) forget(manifest digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.by, func(id string, _ *refusal) bool { return strings.HasSuffix(id, "@"+string(manifest)) })
}

func (r *refusals) add(id string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by == nil || len(r.by) >= maxRefusals {
		r.by = map[string]*refusal{}
	}
	r.by[id] = &refusal{err: err, last: time.Now(), blobs: map[digest.Digest]bool{}}
}

// leftRow is an image that was left to containerd.
type leftRow struct {
	Ref      string
	Manifest digest.Digest
	Why      string
	At       time.Time
}

// maxLeft is how many of them are remembered.
const maxLeft = 256

// leaveTo notes why an image is left to containerd. That nobody wants it, or that
// the daemon ends, is no reason to remember.
func (s *Service) leaveTo(ctx context.Context, id string, w Wanted, err error) {
	if ctx.Err() != nil {
		return
	}
	s.refused.add(id, err)
	s.noteLeft(id, w, err)
}

// Leave notes why an image is left to containerd, for a reason that the book
// does not know. One that is a moment old stands: it is why this one came about.
func (s *Service) Leave(w Wanted, why error) {
	ref, err := w.ref()
	if err != nil {
		return
	}
	id := w.id(ref)
	var was leftRow
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "left", id, &was) }) == nil && time.Since(was.At) < refusedFor {
		return
	}
	s.noteLeft(id, w, why)
}

// noteLeft keeps the reason for those who ask.
func (s *Service) noteLeft(id string, w Wanted, err error) {
	var was leftRow
	known := s.db.View(func(tx *bolt.Tx) error { return get(tx, "left", id, &was) }) == nil
	if known && was.Why == err.Error() && time.Since(was.At) < refusedFor {
		return
	}
	row := leftRow{Ref: w.Ref, Manifest: w.Manifest, Why: err.Error(), At: time.Now().UTC()}
	s.Log.Warn("image is left to containerd", "ref", w.Ref, "manifest", w.Manifest, "err", err)
	s.event(events.Left, w.Ref, "digest", w.Manifest, "error", err)
	if err := s.db.Update(func(tx *bolt.Tx) error {
		if err := put(tx, "left", id, &row); err != nil {
			return err
		}
		return trimLeft(tx)
	}); err != nil {
		s.Log.Error("database", "err", err)
	}
}

// trimLeft forgets the oldest.
func trimLeft(tx *bolt.Tx) error {
	for {
		n, oldest, at := 0, "", time.Time{}
		err := each(tx, "left", func(id string, l *leftRow) error {
			if n++; oldest == "" || l.At.Before(at) {
				oldest, at = id, l.At
			}
			return nil
		})
		if err != nil || n <= maxLeft {
			return err
		}
		if err := del(tx, "left", oldest); err != nil {
			return err
		}
	}
}

// ours notes that an image was brought in after all.
func (s *Service) ours(id string) {
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "left", id, new(leftRow)) }) != nil {
		return
	}
	if err := s.db.Update(func(tx *bolt.Tx) error { return del(tx, "left", id) }); err != nil {
		s.Log.Error("database", "err", err)
	}
}

// Left says why an image was left to containerd when a snapshotter last asked
// for it, by reference or manifest digest; nil if it was not.
func (s *Service) Left(name string) (*control.Left, error) {
	var found *control.Left
	want := canonical(name)
	err := s.db.View(func(tx *bolt.Tx) error {
		return each(tx, "left", func(id string, l *leftRow) error {
			if id == want || canonical(l.Ref) == want || matchesDigest(l.Manifest, name) {
				if found == nil || found.At.Before(l.At) {
					found = &control.Left{Ref: familiar(l.Ref), Digest: string(l.Manifest), Why: l.Why, At: l.At}
				}
			}
			return nil
		})
	})
	return found, err
}

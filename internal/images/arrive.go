package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers/registry"
)

// A Wanted image is one that a snapshotter asks for.
type Wanted struct {
	Ref      string        // as containerd names it: "docker.io/library/redis:7"
	Manifest digest.Digest // of the platform's manifest, or of an index; "": whatever Ref names
}

// A Layer is a layer of an image, as a snapshotter holds it.
type Layer struct {
	Key    string // in the book
	Of     Wanted // where it can be had again
	Blob   digest.Digest
	DiffID digest.Digest
}

// ErrNotOurs says that an image, or what is left of it, is not brought in for
// snapshotters. What it wraps says why.
var ErrNotOurs = errors.New("left to containerd")

// Layer makes a layer of an image readable. The first call for an image brings
// in all of its layers together, as Pull does; each call returns when its own is
// there. Until release, and as long as Options.Held names it, the layer stays.
// If it cannot be had, the error is ErrNotOurs-wrapped, and so it is for the
// other layers of the image until it is asked for anew, which a layer that is
// asked for twice shows. A caller whose ctx ends leaves with ctx's error; when
// nobody is left, what has not come in yet is given up.
func (s *Service) Layer(ctx context.Context, w Wanted, blob, diffID digest.Digest) (l Layer, release func(), err error) {
	if s.Directories {
		return Layer{}, nil, fmt.Errorf("%w: this kernel cannot mount images lazily: snapctl info says why", ErrNotOurs)
	}
	ref, err := w.ref()
	if err != nil {
		return Layer{}, nil, fmt.Errorf("%w: %w", ErrNotOurs, err)
	}
	if s.base.Err() != nil { // nobody would wait for what begins now
		return Layer{}, nil, context.Cause(s.base)
	}
	id := w.id(ref)
	if err := s.refused.why(id, blob); err != nil {
		return Layer{}, nil, fmt.Errorf("%w: %w", ErrNotOurs, err)
	}
	a := s.arrivals.join(id, func(a *arrival) { s.arrive(id, a, ref, w) }, &s.background)
	var got *part
	gone := false
	defer func() { s.arrivals.leave(id, a, got, gone) }()
	p, err := a.wait(ctx, blob, diffID)
	switch {
	case err == nil:
		got = p
		return Layer{Key: p.key, Of: a.of, Blob: p.blob, DiffID: p.diffID}, s.pinNames(p.key), nil
	case ctx.Err() != nil:
		gone = true
		return Layer{}, nil, context.Cause(ctx)
	case s.base.Err() != nil:
		return Layer{}, nil, context.Cause(s.base)
	}
	if errors.Is(err, errNoPart) {
		s.noteLeft(id, w, err)
	}
	s.refused.asked(id, blob)
	return Layer{}, nil, fmt.Errorf("%w: %w", ErrNotOurs, err)
}

// ref is where the image is, pinned if its digest is known. A label may name
// anything: files of this machine are not read for it.
func (w Wanted) ref() (registry.Ref, error) {
	ref, err := registry.ParseRef(w.Ref)
	switch {
	case err != nil:
		return ref, err
	case !ref.IsRemote():
		return ref, fmt.Errorf("%w: %q is not in a registry", registry.ErrBadRef, ref.Transport)
	case w.Manifest == "":
		return ref, nil
	}
	if err := w.Manifest.Validate(); err != nil {
		return ref, fmt.Errorf("%w: manifest: %w", registry.ErrBadRef, err)
	}
	return ref.WithDigest(w.Manifest), nil
}

// id names the image among those that come in. One manifest of one repository
// is one image, whatever its tag.
func (w Wanted) id(ref registry.Ref) string {
	if ref.Digest != "" {
		ref.Tag = ""
	}
	return ref.String()
}

// arrivals are the images that come in for snapshotters, or have come in so
// recently that their layers are still asked for.
type arrivals struct {
	mu sync.Mutex
	on map[string]*arrival
}

// An arrival is one image that comes in layer by layer.
type arrival struct {
	known chan struct{} // closed when parts is set, or with done
	done  chan struct{} // closed when nothing more comes in
	over  chan struct{} // closed when nobody wants it any more, too
	parts []*part
	of    Wanted
	err   error // read after done

	// Guarded by arrivals.mu.
	waiting int
	away    bool // nobody can join it any more
	timer   *time.Timer
}

// A part is a layer of an arrival.
type part struct {
	blob, diffID digest.Digest
	once         sync.Once     // an image may have it twice
	key          string        // read after there
	there        chan struct{} // closed when it can be read
	given        bool          // somebody got it; guarded by arrivals.mu
}

var errAbandoned = errors.New("nobody waits for it any more")

// linger is how long an image that nobody waits for stays as it has come in,
// unless each of its layers was asked for. A pull asks for them one after the
// other, and unpacks others meanwhile.
const linger = time.Minute

// lingerAtTop is the same once its highest layer was asked for. containerd
// prepares layers from the lowest up, and not at all those that it has from
// another image: then it has asked for all that it will ask for, but for calls
// that are on their way.
const lingerAtTop = 3 * time.Second

// join counts a caller in. The first begins the work; all is owned by wg.
func (as *arrivals) join(id string, run func(*arrival), wg *sync.WaitGroup) *arrival {
	as.mu.Lock()
	defer as.mu.Unlock()
	if a := as.on[id]; a != nil {
		a.waiting++
		if a.timer != nil {
			a.timer.Stop()
			a.timer = nil
		}
		return a
	}
	a := &arrival{known: make(chan struct{}), done: make(chan struct{}), over: make(chan struct{}), waiting: 1}
	if as.on == nil {
		as.on = map[string]*arrival{}
	}
	as.on[id] = a
	wg.Go(func() { run(a) })
	return a
}

// leave counts a caller out. got is what it got; gone says that it does not want
// anything any more.
func (as *arrivals) leave(id string, a *arrival, got *part, gone bool) {
	as.mu.Lock()
	defer as.mu.Unlock()
	a.waiting--
	if got != nil {
		got.given = true
	}
	switch ended := a.ended(); {
	case a.waiting > 0:
	case a.away:
		close(a.over)
	case gone && !ended, ended && a.given():
		as.drop(id, a)
	default:
		a.timer = time.AfterFunc(a.linger(), func() {
			as.mu.Lock()
			defer as.mu.Unlock()
			if a.waiting == 0 {
				as.drop(id, a)
			}
		})
	}
}

// drop takes an arrival away, for the next caller to begin anew. The lock is held.
func (as *arrivals) drop(id string, a *arrival) {
	if a.away {
		return
	}
	if a.timer != nil {
		a.timer.Stop()
	}
	a.away = true
	delete(as.on, id)
	if a.waiting == 0 {
		close(a.over)
	}
}

// finish hears that nothing more comes in. An arrival that failed is taken away,
// and so is one that nobody can ask more of.
func (as *arrivals) finish(id string, a *arrival) {
	as.mu.Lock()
	defer as.mu.Unlock()
	close(a.done)
	if a.parts == nil {
		close(a.known)
	}
	if a.err != nil || a.waiting == 0 && a.given() {
		as.drop(id, a)
	}
}

// readable tells those who wait for a layer.
func (p *part) readable(key string) {
	p.once.Do(func() {
		p.key = key
		close(p.there)
	})
}

func (a *arrival) ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// linger is how long more may be asked for. The lock is held.
func (a *arrival) linger() time.Duration {
	if n := len(a.parts); n > 0 && a.parts[n-1].given {
		return lingerAtTop
	}
	return linger
}

// given says whether all layers were asked for. The lock is held.
func (a *arrival) given() bool {
	return !slices.ContainsFunc(a.parts, func(p *part) bool { return !p.given })
}

// wait returns a layer when it can be read.
func (a *arrival) wait(ctx context.Context, blob, diffID digest.Digest) (*part, error) {
	select {
	case <-a.known:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if a.parts == nil {
		return nil, a.err
	}
	p, err := a.part(blob, diffID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.there:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-a.done:
		select {
		case <-p.there: // it was before that
		default:
			return nil, a.err
		}
	}
	return p, nil
}

// errNoPart says that labels name a layer that the image does not have.
var errNoPart = errors.New("the image has no such layer")

// part finds a layer. Who asks may not know the diff ID, but not a wrong one.
func (a *arrival) part(blob, diffID digest.Digest) (*part, error) {
	for _, p := range a.parts {
		if p.blob == blob && (diffID == "" || p.diffID == diffID) {
			return p, nil
		}
	}
	return nil, fmt.Errorf("%w: blob %.80q with diff ID %.80q in manifest %s", errNoPart, string(blob), string(diffID), a.of.Manifest)
}

// arrive brings an image in, and keeps all of it from being collected until
// nobody wants it any more: by then snapshots hold its layers, or none ever will.
func (s *Service) arrive(id string, a *arrival, ref registry.Ref, w Wanted) {
	ctx, cancel := context.WithCancelCause(s.base)
	defer cancel(nil)
	working := make(chan struct{})
	s.background.Go(func() { // ends with the work
		select {
		case <-a.over:
			cancel(errAbandoned)
		case <-working:
		}
	})
	release, err := s.bringParts(ctx, a, ref, w)
	if err != nil { // before anybody hears of it, and asks for the next layer
		s.leaveTo(ctx, id, w, err)
	} else {
		s.ours(id)
	}
	close(working)
	a.err = err
	s.arrivals.finish(id, a)
	select {
	case <-a.over:
	case <-s.base.Done():
	}
	release()
	s.CollectSoon()
}

// bringParts makes the layers of an image readable, and the image known.
func (s *Service) bringParts(ctx context.Context, a *arrival, ref registry.Ref, w Wanted) (release func(), err error) {
	if release, ok, err := s.arrived(a, w); ok || err != nil {
		return release, err
	}
	defer s.worked.Store(true)
	nothing, began := func() {}, time.Now()
	progress := untold
	var row *manifestRow
	if s.Asked != nil {
		told, done := s.Asked(w.Ref)
		progress = told
		defer func() {
			if err != nil {
				done(nil, err)
				return
			}
			done(&Known{Ref: canonical(w.Ref), manifestRow: *row, Pulled: time.Now()}, nil)
		}()
	}
	progress(control.Progress{Action: "resolving"})
	img, by, err := s.resolve(ctx, ref, "", true, progress)
	if err != nil {
		return nothing, err
	}
	progress(control.Progress{Action: "resolving", Done: true})
	defer by.source.close()
	if q := s.quarantined(img.Desc.Digest); q != nil {
		return nothing, fmt.Errorf("%w: %s", ErrQuarantined, q)
	}
	parts := make([]*part, len(img.Manifest.Layers))
	for i, l := range img.Manifest.Layers {
		p := &part{blob: l.Digest, diffID: img.Config.RootFS.DiffIDs[i], there: make(chan struct{})}
		if j := slices.IndexFunc(parts[:i], func(q *part) bool { return q.blob == p.blob && q.diffID == p.diffID }); j >= 0 {
			p = parts[j]
		}
		parts[i] = p
	}
	if len(parts) == 0 {
		return nothing, fmt.Errorf("%w: it has none at all", errNoPart)
	}
	release = s.pin(img, by)
	a.expect(Wanted{w.Ref, img.Desc.Digest}, parts)
	row, err = s.bringIn(ctx, img, by, bringing{asked: canonical(w.Ref), there: func(i int, key string) { parts[i].readable(key) }}, progress)
	if err != nil {
		return release, err
	}
	s.event(events.Pull, w.Ref, "digest", row.Desc.Digest, "layers", len(row.Layers), "took", time.Since(began), "for", "containerd")
	if by.source == nil {
		s.publishSoon(row)
	}
	return release, nil
}

// expect tells those who wait what there will be.
func (a *arrival) expect(of Wanted, parts []*part) {
	a.of, a.parts = of, parts
	close(a.known)
}

// arrived answers out of the book, without the network, for a manifest that is
// known whole.
func (s *Service) arrived(a *arrival, w Wanted) (release func(), ok bool, err error) {
	release = func() {}
	var m manifestRow
	if w.Manifest == "" || s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(w.Manifest), &m) }) != nil {
		return release, false, nil
	}
	if m.Quarantine != nil {
		return release, false, fmt.Errorf("%w: %s", ErrQuarantined, m.Quarantine)
	}
	release = s.pinNames(m.Layers...)
	var parts []*part
	err = s.db.View(func(tx *bolt.Tx) error {
		for i, key := range m.Layers {
			var l layerRow
			if err := get(tx, "layers", key, &l); err != nil || l.Lied {
				return errNoPart
			}
			if slices.Contains(m.Layers[:i], key) {
				continue
			}
			p := &part{blob: l.Desc.Digest, diffID: l.DiffID, there: make(chan struct{})}
			p.readable(key)
			parts = append(parts, p)
		}
		if len(parts) == 0 {
			return errNoPart
		}
		return nil
	})
	if err == nil {
		err = s.db.Update(func(tx *bolt.Tx) error {
			return change(tx, "manifests", string(w.Manifest), func(m *manifestRow) { m.ask(canonical(w.Ref)) })
		})
	}
	if err != nil { // not all of it is here
		release()
		return func() {}, false, nil
	}
	a.expect(Wanted{w.Ref, w.Manifest}, parts)
	return release, true, nil
}

func (s *Service) quarantined(manifest digest.Digest) *Quarantine {
	var m manifestRow
	if s.db.View(func(tx *bolt.Tx) error { return get(tx, "manifests", string(manifest), &m) }) != nil {
		return nil
	}
	return m.Quarantine
}

// untold is progress that nobody hears of.
func untold(control.Progress) {}

package starts

import (
	"cmp"
	"slices"
	"sync"
	"time"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers/fetch"
)

// Bounds of one record.
const (
	maxPhases  = 256  // an image may have more layers than that: then the later ones are not told
	maxObjects = 4096 // that were waited for, while recording
	maxWaits   = 64   // of these, kept: those waited for longest
	maxSpans   = 4096 // stretches of time in which somebody waited; beyond, the last grows
)

// preparing is how long a container that does not run yet may take waits as its own.
const preparing = time.Minute

// A Start is being recorded. It is safe for concurrent use.
type Start struct {
	b      *Book
	began  time.Time // with the monotonic clock
	before control.Counters

	mu     sync.Mutex
	ended  bool
	rec    control.Start
	layers []string
	waits  map[string]*control.FileWait // by object
	spans  []span                       // in order, disjoint
	inside map[int]bool                 // phases that have not ended
	ran    bool
}

type span struct{ from, to time.Duration }

// since is when t was, as the record tells times. Times of other processes have
// the wall clock's reading only.
func (s *Start) since(t time.Time) time.Duration { return max(0, t.Sub(s.began)) }

// Phase begins a phase, which done ends.
func (s *Start) Phase(name string) (done func()) {
	if s == nil {
		return func() {}
	}
	at := s.open(name, "")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.inside[at] = true
	return func() { s.close(at, 0) }
}

// open begins a phase and returns its place; -1 if there are too many.
func (s *Start) open(name, id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.rec.Phases) >= maxPhases {
		return -1
	}
	now := s.since(time.Now())
	s.rec.Phases = append(s.rec.Phases, control.Phase{Name: name, ID: id, Begin: now, End: now})
	return len(s.rec.Phases) - 1
}

func (s *Start) close(at int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if at < 0 || s.ended {
		return
	}
	delete(s.inside, at)
	p := &s.rec.Phases[at]
	p.End, p.Bytes = s.since(time.Now()), max(p.Bytes, bytes)
}

// phases names what a Progress says is being done. What is not here keeps its name.
var phases = map[string]string{"resolving": "resolve", "searching": "referrers", "indexing": "index", "pulling": "pull", "building": "build", "exists": ""}

// Watch returns a progress function that makes phases of what it is told, and
// tells next, which may be nil.
func (s *Start) Watch(next func(control.Progress)) func(control.Progress) {
	if s == nil {
		return next
	}
	var mu sync.Mutex
	at := map[[2]string]int{}
	return func(p control.Progress) {
		name, known := phases[p.Action]
		if !known {
			name = p.Action
		}
		if name != "" {
			key := [2]string{name, p.ID}
			mu.Lock()
			i, begun := at[key]
			if !begun {
				i = s.open(name, p.ID)
				at[key] = i
			}
			mu.Unlock()
			s.close(i, p.Off)
		}
		if next != nil {
			next(p)
		}
	}
}

// Image says which image it is. From now on, waits for its layers are the
// start's. An empty ref leaves the one that was asked for.
func (s *Start) Image(ref, digest string, layers []string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Ref, s.rec.Digest, s.layers = cmp.Or(ref, s.rec.Ref), digest, layers
}

// Container says which container it is; an empty name is not known.
func (s *Start) Container(id, name string) {
	if s == nil {
		return
	}
	for _, o := range s.b.all() { // what was recorded for it and never started is over
		if o != s && o.isOf(id) {
			s.b.leave(o)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rec.Container, s.rec.Name = id, name
}

func (s *Start) isOf(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rec.Container == id
}

func (s *Start) waited(w fetch.Wait) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || !slices.ContainsFunc(w.Layers, func(k string) bool { return slices.Contains(s.layers, k) }) {
		return
	}
	if !s.ran && time.Since(s.began) > preparing {
		return
	}
	from := s.since(w.Began)
	s.span(span{from, from + w.Took})
	key := w.Object.String()
	f := s.waits[key]
	if f == nil {
		if len(s.waits) >= maxObjects {
			s.rec.More++
			return
		}
		f = &control.FileWait{Object: key, First: from}
		s.waits[key] = f
	}
	f.N++
	f.First = min(f.First, from)
	f.Took += w.Took
	f.Longest = max(f.Longest, w.Took)
	f.Bytes += int64(w.N)
	if w.Err != nil {
		f.Failed++
	}
}

// span adds a stretch of time, and melts what it touches. Waits are told when
// they end, so it is among the last.
func (s *Start) span(n span) {
	i := len(s.spans)
	for i > 0 && s.spans[i-1].to >= n.from {
		i--
	}
	j := i
	for j < len(s.spans) && s.spans[j].from <= n.to {
		n.from, n.to = min(n.from, s.spans[j].from), max(n.to, s.spans[j].to)
		j++
	}
	s.spans = slices.Replace(s.spans, i, j, n)
	if len(s.spans) > maxSpans {
		last := s.spans[maxSpans]
		s.spans = s.spans[:maxSpans]
		s.spans[maxSpans-1].to = last.to
	}
}

func (s *Start) running(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ran = true
	s.rec.Running = max(1, s.since(at))
}

func (s *Start) ready(by string, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.rec.Ready, s.rec.ReadyBy = max(1, s.since(at)), by
}

// Failed ends a start that came to nothing; without err it does nothing.
func (s *Start) Failed(err error) {
	if s == nil || err == nil {
		return
	}
	s.mu.Lock()
	s.rec.Error = err.Error()
	s.mu.Unlock()
	s.end()
}

// Pulled ends the record of a pull; of one that had nothing to do there is none.
func (s *Start) Pulled() {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.rec.Ready = max(1, s.since(time.Now()))
	known := len(s.rec.Phases) == 0
	s.mu.Unlock()
	if known { // nothing was brought in: the last time it was says more
		s.b.leave(s)
		return
	}
	s.end()
}

// end finishes the record, once, and keeps it.
func (s *Start) end() {
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return
	}
	rec := s.record()
	s.rec, s.ended = rec, true
	s.mu.Unlock()
	if !s.b.has(s) {
		return // another start of the container has begun
	}
	s.b.save(rec) // before it leaves: who asks finds it in one place or the other
	s.b.leave(s)
	if s.b.o.Done != nil {
		s.b.o.Done(rec)
	}
}

// record is what is known so far. s.mu is held.
func (s *Start) record() control.Start {
	if s.ended {
		return s.rec
	}
	r := s.rec
	r.Phases = slices.Clone(r.Phases)
	for i := range s.inside { // it fails there, or is there now
		if i >= 0 {
			r.Phases[i].End = s.since(time.Now())
		}
	}
	r.Counters = s.b.o.Counters().Sub(s.before)
	for _, sp := range s.spans {
		if r.Ready > 0 { // what is waited for afterwards is not the start's
			sp.to = min(sp.to, r.Ready)
		}
		r.Waiting += max(0, sp.to-sp.from)
	}
	for _, f := range s.waits {
		r.Waits = append(r.Waits, *f)
		r.Missed += f.N
	}
	slices.SortFunc(r.Waits, func(a, b control.FileWait) int {
		return cmp.Or(cmp.Compare(b.Took, a.Took), cmp.Compare(a.First, b.First), cmp.Compare(a.Object, b.Object))
	})
	if len(r.Waits) > maxWaits {
		r.More += len(r.Waits) - maxWaits
		r.Waits = r.Waits[:maxWaits]
	}
	return r
}

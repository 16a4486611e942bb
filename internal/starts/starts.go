// Package starts remembers where the time of starts went: for each image its
// last start and its last pull, for each container its last start.
//
// A [Start] is recorded while it happens: named phases, reads that waited for
// the network, and what the daemon's counters did meanwhile. It ends when the
// container is ready, has ended, or could not be started, and then it is a
// control.Start, kept in a file, and never changed.
//
//	s := book.Begin(starts.Run, "debian:stable")
//	defer func() { s.Failed(err) }()        // nothing if err is nil
//	done := s.Phase("mount")
//	…
//	done()
//	s.Image(digest, layerKeys)              // from now on waits for these layers are its own
//	s.Container(id, name)
//	book.Started(id, digest, at)            // its first process runs
//	book.Ready(id, "port", at)
//
// Layers are shared, and so are waits: two starts of one image at the same time
// both have all of them.
//
// All methods of a nil Book and a nil Start do nothing, for who records nothing.
package starts

import (
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers/fetch"
)

// Kinds of starts.
const (
	Run   = "run"   // a container was made and started
	Again = "start" // a container that was there before was started
	Pull  = "pull"  // an image was brought in, for no container
)

// Image is the phase in which an image is brought in, if it is not known: all
// phases that Watch makes are in it.
const Image = "image"

// Options of a Book. All but Done and Log are needed.
type Options struct {
	Dir string // where the records of images are kept
	// ContainerDir is the directory of a container, where its record goes.
	ContainerDir func(id string) string
	// Counters are the daemon's, by the names of control.Counters.
	Counters func() control.Counters
	Done     func(control.Start) // is told of every record that is finished; nil: nobody is
	Log      *slog.Logger        // nil: discard
}

// A Book has the records. It is safe for concurrent use.
type Book struct {
	o Options

	recording atomic.Int32 // len(active), for those who wait

	mu     sync.Mutex
	active []*Start
	saves  int
}

// Open makes the directory if need be.
func Open(o Options) (*Book, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := mkdir(o.Dir); err != nil {
		return nil, err
	}
	return &Book{o: o}, nil
}

// maxActive bounds how many starts are recorded at once. What is beyond is not recorded.
const maxActive = 256

// Begin begins a record. What it begins with is known later, if ever: who asks
// for an image by a name that nobody has leaves nothing.
func (b *Book) Begin(kind, ref string) *Start {
	return b.begin(kind, ref, time.Now())
}

func (b *Book) begin(kind, ref string, at time.Time) *Start {
	if b == nil {
		return nil
	}
	s := &Start{b: b, began: at, before: b.o.Counters(), rec: control.Start{Kind: kind, Ref: ref, Began: at.UTC()}, waits: map[string]*control.FileWait{}, inside: map[int]bool{}}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = slices.DeleteFunc(b.active, func(o *Start) bool { return time.Since(o.began) > longest })
	if len(b.active) >= maxActive {
		return nil
	}
	b.active = append(b.active, s)
	b.recording.Store(int32(len(b.active)))
	return s
}

// longest is how long a start is recorded at most. One that takes longer has
// lost whoever began it, or is a container that is never started.
const longest = time.Hour

// leave takes s out of the book's hands.
func (b *Book) leave(s *Start) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.active = slices.DeleteFunc(b.active, func(o *Start) bool { return o == s })
	b.recording.Store(int32(len(b.active)))
}

func (b *Book) has(s *Start) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.active, s)
}

// Waited adds a read to the starts that it held up. It is called for every read
// that waits for the network; while nothing starts it costs one atomic load.
func (b *Book) Waited(w fetch.Wait) {
	if b == nil || b.recording.Load() == 0 {
		return
	}
	for _, s := range b.all() {
		s.waited(w)
	}
}

func (b *Book) all() []*Start {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.active)
}

// of returns the record of a container's start, nil if there is none.
func (b *Book) of(id string) *Start {
	if b == nil {
		return nil
	}
	for _, s := range b.all() {
		if s.isOf(id) {
			return s
		}
	}
	return nil
}

// Started notes that a container runs, since at. If its beginning was not
// recorded, because another worker saw that, the record begins now.
func (b *Book) Started(id, digest string, at time.Time) {
	s := b.of(id)
	if s == nil {
		if s = b.begin(Again, "", at); s == nil {
			return
		}
		s.mu.Lock()
		s.rec.Partial = true
		s.mu.Unlock()
		s.Image("", digest, nil)
		s.Container(id, "")
	}
	s.running(at)
}

// Ready ends the record of a container's start: at that time it was ready, and
// by says how that is known; "" if it ended before.
func (b *Book) Ready(id, by string, at time.Time) {
	if s := b.of(id); s != nil {
		s.ready(by, at)
		s.end()
	}
}

// Image returns the newest record of an image's starts; false if there is none.
func (b *Book) Image(digest string) (control.Start, bool) {
	return b.newest(func(s *Start) bool { return s.rec.Digest == digest && s.rec.Kind != Pull }, b.imageFile(digest, Run))
}

// Pulled returns the record of an image's last pull; false if there is none.
func (b *Book) Pulled(digest string) (control.Start, bool) {
	return b.newest(func(s *Start) bool { return s.rec.Digest == digest && s.rec.Kind == Pull }, b.imageFile(digest, Pull))
}

// Container returns the record of a container's last start; false if there is none.
func (b *Book) Container(id string) (control.Start, bool) {
	return b.newest(func(s *Start) bool { return s.rec.Container == id }, filepath.Join(b.o.ContainerDir(id), recordFile))
}

// newest looks among those that are being recorded, then into a file.
func (b *Book) newest(fits func(*Start) bool, file string) (rec control.Start, ok bool) {
	for _, s := range b.all() {
		s.mu.Lock()
		if fits(s) && (!ok || s.rec.Began.After(rec.Began)) {
			rec, ok = s.record(), true
		}
		s.mu.Unlock()
	}
	if ok {
		return rec, true
	}
	rec, err := load(file)
	return rec, err == nil
}

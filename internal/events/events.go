// Package events keeps the daemon's newest events and hands them to whoever asks.
//
// A [Log] is a ring. A reader has a place in it and nothing else: one that is
// slow, or dead, holds no memory and makes nobody wait. What was overwritten
// before it came is lost to it, and it is told how much that was.
//
//	l := events.New(0)
//	r := l.Read(0)
//	l.Emit(control.Event{Type: events.Image, Action: events.Pull, ID: "debian:stable"})
//	batch, lost, err := r.Next(ctx)
//
// Invariant: Emit never waits for a reader.
package events

import (
	"context"
	"maps"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/snapfs/snapfs/internal/control"
)

// Types: what an event is about.
const (
	Image     = "image"     // ID: its reference
	Container = "container" // ID: its own
	Fetch     = "fetch"     // ID: an object, sha256:…
	Daemon    = "daemon"    // ID: the worker's process ID
	Events    = "events"    // the log itself
)

// Actions. Behind each, its attributes beyond those in all events of the type.
const (
	Pull       = "pull"       // it is known and can be used: digest, layers, lazy, took
	Left       = "left"       // containerd asked for it, and has to bring it in by itself: digest, error
	Index      = "index"      // one layer can be read: layer, format, why
	Mount      = "mount"      // target
	Unmount    = "unmount"    // target
	Run        = "run"        // a container was started on it: container, name
	Complete   = "complete"   // all of it is local: took
	Seal       = "seal"       // small files are in its metadata image now
	Publish    = "publish"    // its index was sent to the registry: digest
	Push       = "push"       // target, digest
	Tag        = "tag"        // target
	Quarantine = "quarantine" // its index lied, nothing is started on it: layer, object, error
	Remove     = "remove"     // of an image: a name; of a container: all of it

	Create = "create" // containers have image and name
	Start  = "start"  // pid; of the daemon: restarts
	Ready  = "ready"  // by, took
	Die    = "die"    // exitCode, signal, oom, error

	EIO    = "eio"    // a read in a container failed: images, off, error
	Lie    = "lie"    // a layer has other bytes than promised: layer, images, error
	Full   = "full"   // the disk is: what is fetched is served and not kept: error
	Unkept = "unkept" // bytes could not be kept for another reason: error

	Replaced = "replaced" // a worker died and this one took over: restarts
	Lost     = "lost"     // a reader was too slow: count
)

// size is how many events a Log keeps: some 200 starts, in about 300 KiB.
const size = 1024

// A Log keeps the newest events. A nil Log drops all. It is safe for concurrent use.
type Log struct {
	now       func() time.Time
	followers atomic.Int32

	mu    sync.Mutex
	ring  []control.Event // of which n%len(ring) is the next to be overwritten
	n     uint64          // events so far
	wake  chan struct{}   // closed by the next Emit; nil: nobody waits
	quiet map[string]*repeat
}

// A repeat is an event that came again soon.
type repeat struct {
	until time.Time
	n     int // not told yet
}

// New returns a Log of n events; 0 is 1024.
func New(n int) *Log {
	if n <= 0 {
		n = size
	}
	return &Log{now: time.Now, ring: make([]control.Event, n), quiet: map[string]*repeat{}}
}

// Bounds of one event: its texts may come from outside.
const (
	maxText  = 512
	maxAttrs = 16
)

// Emit adds e, with the time and its number. It does not wait for anybody. The
// caller must not change e.Attributes afterwards.
func (l *Log) Emit(e control.Event) {
	if l == nil {
		return
	}
	e = bounded(e)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.add(e)
}

func (l *Log) add(e control.Event) {
	e.Time = l.now().UTC()
	l.n++
	e.Seq = l.n
	l.ring[(l.n-1)%uint64(len(l.ring))] = e
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// repeats bounds how many kinds of events are watched for repetition.
const repeats = 256

// EmitOnce is Emit for what happens in bursts, such as a disk that is full: of
// events with the same type, action and ID, one in every d is kept. The
// attribute "repeated" of the next says how many were left out before it.
// attrs is called, without a lock, for the attributes of those that are kept.
func (l *Log) EmitOnce(d time.Duration, e control.Event, attrs func() map[string]string) {
	if l == nil {
		return
	}
	due, left := l.due(e.Type+" "+e.Action+" "+cut(e.ID), d)
	if !due {
		return
	}
	e.Attributes = map[string]string{}
	maps.Copy(e.Attributes, attrs())
	if left > 0 {
		e.Attributes["repeated"] = strconv.Itoa(left)
	}
	l.Emit(e)
}

// due says whether an event is to be kept, and how many like it were not.
func (l *Log) due(key string, d time.Duration) (due bool, left int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.now()
	r := l.quiet[key]
	if r != nil && now.Before(r.until) {
		r.n++
		return false, 0
	}
	if r == nil {
		r = &repeat{}
		l.forget(now)
		l.quiet[key] = r
	}
	left = r.n
	r.until, r.n = now.Add(d), 0
	return true, left
}

// forget makes room for one more repeat. l.mu is held.
func (l *Log) forget(now time.Time) {
	maps.DeleteFunc(l.quiet, func(_ string, r *repeat) bool { return now.After(r.until) && r.n == 0 })
	if len(l.quiet) < repeats {
		return
	}
	clear(l.quiet) // more kinds at once than a person can read: tell of each again
}

// bounded cuts what is too long.
func bounded(e control.Event) control.Event {
	e.ID = cut(e.ID)
	long := len(e.Attributes) > maxAttrs
	for _, v := range e.Attributes {
		long = long || len(v) > maxText
	}
	if !long {
		return e
	}
	all := e.Attributes
	e.Attributes = map[string]string{}
	for k, v := range all {
		if len(e.Attributes) < maxAttrs {
			e.Attributes[k] = cut(v)
		}
	}
	return e
}

func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// A Reader is a place in a Log. It belongs to one goroutine.
type Reader struct {
	l    *Log
	next uint64 // number of the event that it has not seen
}

// Read returns a Reader of the events after number after; 0 is all that are kept.
func (l *Log) Read(after uint64) *Reader { return &Reader{l: l, next: after + 1} }

// Now returns a Reader of the events to come.
func (l *Log) Now() *Reader {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Reader{l: l, next: l.n + 1}
}

// Kept returns what is there for r at once, the oldest first, and how many
// events were overwritten before r came to them.
func (r *Reader) Kept() (batch []control.Event, lost uint64) {
	r.l.mu.Lock()
	defer r.l.mu.Unlock()
	batch, lost, _ = r.take()
	return batch, lost
}

// Next is Kept that waits until there is something. Its error is ctx's.
func (r *Reader) Next(ctx context.Context) (batch []control.Event, lost uint64, err error) {
	for {
		r.l.mu.Lock()
		batch, lost, wake := r.take()
		r.l.mu.Unlock()
		if len(batch) > 0 {
			return batch, lost, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// take returns what is there, or what to wait for. l.mu is held.
func (r *Reader) take() (batch []control.Event, lost uint64, wake <-chan struct{}) {
	l := r.l
	if r.next > l.n+1 { // of another log, as of a worker before this one
		r.next = 1
	}
	if oldest := l.n - min(l.n, uint64(len(l.ring))) + 1; r.next < oldest {
		lost, r.next = oldest-r.next, oldest
	}
	for ; r.next <= l.n; r.next++ {
		batch = append(batch, l.ring[(r.next-1)%uint64(len(l.ring))])
	}
	if len(batch) > 0 {
		return batch, lost, nil
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return nil, lost, l.wake
}

package containers

import (
	"context"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// A Boot is one start of a container.
type Boot struct {
	ID    string
	Image digest.Digest // of the manifest
	Began time.Time
}

// Boots hears of the starts of containers: whoever records what a start reads.
// Its methods are called from several goroutines, and do not block.
type Boots interface {
	// Started hears that a container runs, a moment after that is so. A daemon
	// that finds a container which is not ready yet says so of it, too.
	Started(Boot)
	// Ready hears that a start of which Started has heard is over: at that
	// time, the container was ready, or had ended; by is State.ReadyBy, "" if it
	// ended before it was ready. Not called if the daemon ends first.
	Ready(b Boot, by string, at time.Time)
	// LastMiss is when the last read of an image that had to wait for the
	// network was answered: now, while one waits; zero, if none did.
	LastMiss(image digest.Digest) time.Time
}

// noBoots is a Boots for a daemon that records nothing.
type noBoots struct{}

func (noBoots) Started(Boot)                     {}
func (noBoots) Ready(Boot, string, time.Time)    {}
func (noBoots) LastMiss(digest.Digest) time.Time { return time.Time{} }

// A quiet decides when a start without another sign is over: the burst of reads
// that wait for the network has ended.
type quiet struct {
	window time.Duration // without such a read
	limit  time.Duration // after which it is over, whatever is read
}

// defaultQuiet has a window of many times a miss's latency, and longer than the
// pauses in which a starting program computes; a limit after which a program
// that reads on and on is at its work and not starting.
var defaultQuiet = quiet{window: 2 * time.Second, limit: 5 * time.Minute}

// wait waits for the end of the burst and returns when that was: at the last
// miss, or at the start. What was before since is not known.
//
// Since has a reading of the monotonic clock; lastMiss need not have, and the
// machine's clock may be set meanwhile. So of a miss that is news only as much is
// believed as can be: that it was since we last looked.
func (q quiet) wait(ctx context.Context, since time.Time, lastMiss func() time.Time) (time.Time, error) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var known time.Time
	last, looked := since, since
	for {
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-timer.C:
		}
		now := time.Now()
		if miss := lastMiss(); !miss.Equal(known) {
			known = miss
			last = now.Add(-min(max(now.Sub(miss), 0), now.Sub(looked)))
		}
		looked = now
		switch {
		case now.Sub(last) >= q.window:
			return last, nil
		case now.Sub(since) >= q.limit:
			return now, nil
		}
		timer.Reset(min(last.Add(q.window).Sub(now), since.Add(q.limit).Sub(now)))
	}
}

// follow stays with the monitor that c has been given: it learns when the
// container starts, is ready and ends, tells who wants to know, and decides
// when it is ready if nobody else does.
func (s *Service) follow(c *monitor.Config) {
	s.mu.Lock()
	s.lives++
	life := s.lives
	s.followed[c.ID] = life
	s.mu.Unlock()
	s.followers.Go(func() {
		defer s.followedTo(c.ID, life)
		err := s.followLife(c)
		if s.base.Err() != nil {
			return
		}
		if err != nil && !monitor.Gone(err) {
			s.Log.Warn("what becomes of a container is not known", "container", c.ID, "err", err)
		}
		if err != nil {
			s.row(c.ID) // ends what its monitor has left behind, if that was killed
		} else {
			s.removed(c.ID) // else it would be known until somebody asks for it
		}
		s.disconnect(c)
		s.tidy(c, life, err != nil)
	})
}

// followedTo says that a life has ended.
func (s *Service) followedTo(id string, life uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.followed[id] == life {
		delete(s.followed, id)
	}
}

// another says whether a container has been given another monitor since life began. That its locks are
// held does not: they are the killed one's as long as what it was making of the container has not ended.
func (s *Service) another(id string, life uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spawning[id] || s.followed[id] != life
}

// tidy waits until the monitor of a container that has ended is done with it, and
// takes away what that has left: it may have been killed before it came to all of it,
// and was for sure if gone.
func (s *Service) tidy(c *monitor.Config, life uint64, gone bool) {
	dir, trash := s.dir(c.ID), monitor.Trash(s.dir(c.ID))
	for pause := time.Millisecond; monitor.Alive(dir) || monitor.Busy(dir) || monitor.Busy(trash); pause = min(2*pause, time.Second) {
		select {
		case <-s.base.Done():
			return
		case <-time.After(pause):
		}
		if s.another(c.ID, life) { // which another follower is with
			return
		}
	}
	if gone {
		s.row(c.ID) // now that nobody has it any more
	}
	_, err := os.Stat(trash)
	if left := err == nil; left || gone || !c.Remove {
		s.sweep(c)
	}
	if err := os.RemoveAll(trash); err != nil {
		s.Log.Warn("what is left of a container", "dir", trash, "err", err)
	}
}

func (s *Service) followLife(c *monitor.Config) error {
	st, err := s.followBoot(c)
	if err != nil || st.Started.IsZero() { // it was never started
		return err
	}
	exit := monitor.Exit{Code: st.ExitCode, Signal: st.Signal, OOMKilled: st.OOMKilled, Error: st.Error}
	if st.Status != monitor.StatusExited {
		if err := monitor.Call(s.base, c.Socket, monitor.OpWait, nil, &exit); err != nil {
			return err
		}
	}
	oom := ""
	if exit.OOMKilled {
		oom = "true"
	}
	s.event(events.Die, c, "exitCode", exit.Code, "signal", exit.Signal, "oom", oom, "error", exit.Error)
	return nil
}

// followBoot returns the state of a container that is ready, or has ended.
func (s *Service) followBoot(c *monitor.Config) (monitor.State, error) {
	ctx, cancel := context.WithCancel(s.base)
	var deciding sync.WaitGroup
	defer deciding.Wait()
	defer cancel()
	b := Boot{ID: c.ID, Image: digest.Digest(c.Labels[labelManifest])}
	st, err := monitor.WaitReady(ctx, c.Socket, func(st monitor.State) {
		if !st.Ready.IsZero() { // nobody follows its start, as a daemon before us did
			return
		}
		b.Began = st.Started
		s.Starts.Started(b.ID, string(b.Image), b.Began)
		s.Boots.Started(b)
		s.event(events.Start, c, "pid", st.Pid)
		s.Events.Emit(control.Event{Type: events.Image, Action: events.Run, ID: familiar(c.Image), Attributes: events.Attrs("container", c.ID, "name", c.Name)})
		if c.Ready == "" && c.Health == nil {
			deciding.Go(func() { s.decide(ctx, c, b) })
		}
	})
	if b.Began.IsZero() || s.base.Err() != nil { // the start is over, never was, or goes on without us
		return st, err
	}
	at := st.Ready
	if at.IsZero() {
		at = st.Finished
	}
	if at.IsZero() { // its monitor has gone
		at = time.Now()
	}
	s.Starts.Ready(b.ID, st.ReadyBy, at)
	s.Boots.Ready(b, st.ReadyBy, at)
	if !st.Ready.IsZero() {
		s.event(events.Ready, c, "by", st.ReadyBy, "took", at.Sub(b.Began))
	}
	return st, err
}

// decide tells the monitor when the container is ready.
func (s *Service) decide(ctx context.Context, c *monitor.Config, b Boot) {
	now := time.Now()
	since := now.Add(-max(now.Sub(b.Began), 0)) // the clock may have been set back since
	if s.opened.After(since) {                  // what an earlier daemon saw is lost
		since = s.opened
	}
	at, err := s.quiet.wait(ctx, since, func() time.Time { return s.Boots.LastMiss(b.Image) })
	if err == nil {
		_, err = control.Call(ctx, c.Socket, monitor.OpQuiet, monitor.QuietArgs{At: at}, nil, nil)
	}
	if err != nil && ctx.Err() == nil && !monitor.Gone(err) {
		s.Log.Warn("it is ready, but its monitor does not take that", "container", c.ID, "err", err)
	}
}

// Close ends what follows the containers, and what waits for those to come, and waits for that. Containers go on.
func (s *Service) Close() {
	s.cancel()
	s.followers.Wait()
	s.pooling.Wait()
}

package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ExitFatal is the exit status of a worker that no restart can help: a root from
// a newer version, a configuration that cannot work. (EX_CONFIG of sysexits.h.) It
// ends the daemon if it comes before the first worker was ready.
const ExitFatal = 78

// ErrWorker says that the worker ended with ExitFatal. It has printed why.
var ErrWorker = errors.New("the worker cannot work")

// Back-off of a worker that keeps dying before it does any work.
const (
	freeRestarts = 5
	firstBackoff = 50 * time.Millisecond
	maxBackoff   = 5 * time.Second
	atWork       = 50 * time.Millisecond // a worker that lived this long after it was ready has worked
)

// backoff returns how long to wait before the next worker when this is the
// n-th in a row that died before it did any work.
func backoff(n int) time.Duration {
	if n <= freeRestarts {
		return 0
	}
	return min(maxBackoff, firstBackoff<<min(n-freeRestarts-1, 10))
}

// work keeps a worker alive until ctx ends, and then stops it.
func (s *supervisor) work(ctx context.Context) error {
	for {
		if err := s.mountLazy(); err != nil {
			return err
		}
		if err := s.hold(ctx); err != nil {
			s.log.Warn("no keeper; a crash of worker and supervisor together will lose the mount", "err", err)
		}
		if err := s.store(); err != nil {
			s.log.Warn("the service manager does not keep the mount", "err", err)
		}
		pid, end, err := s.startWorker()
		if err != nil {
			return fmt.Errorf("start worker: %w", err)
		}
		lived, status, why := s.watch(ctx, pid, end)
		s.resend = true
		switch why {
		case stopped:
			return nil
		case reloaded:
			s.log.Info("worker ended as it was told to; starting another", "pid", pid)
			s.count(true)
			continue
		}
		if status.ExitStatus() == ExitFatal && !s.notified {
			return ErrWorker
		}
		wait := backoff(s.count(lived))
		s.log.Error("worker ended; starting another", "pid", pid, "status", describe(status), "restarts", s.restarts, "wait", wait)
		s.tell("STATUS=the worker ended (" + describe(status) + "); starting another")
		if s.rest(ctx, wait) != nil {
			return nil
		}
	}
}

// count counts the workers in a row that did not work.
func (s *supervisor) count(lived bool) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed++; lived {
		s.failed = 0
	}
	return s.failed
}

// rest waits, and says all the while that it is alive.
func (s *supervisor) rest(ctx context.Context, d time.Duration) error {
	end := time.NewTimer(d)
	defer end.Stop()
	alarm, silence := s.alarm()
	defer silence()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-end.C:
			return nil
		case <-alarm:
			s.tell("WATCHDOG=1")
		}
	}
}

// alarm is service.alarm as a channel, nil for none.
func (s *supervisor) alarm() (<-chan time.Time, func()) {
	t := s.service.alarm()
	if t == nil {
		return nil, func() {}
	}
	s.tell("WATCHDOG=1")
	return t.C, t.Stop
}

// store has the service manager keep the mount, too.
func (s *supervisor) store() error {
	if s.stored == s.fuse {
		return nil
	}
	if err := s.service.keep(s.fuse, s.init, s.fresh); err != nil {
		return err
	}
	s.stored, s.fresh = s.fuse, false
	return nil
}

// tell informs the service manager. That it does not listen is no reason for
// anything, and is said once.
func (s *supervisor) tell(state string) {
	err := s.service.notify(state)
	if err != nil && !s.deaf {
		s.log.Warn("the service manager does not listen", "err", err)
	}
	s.deaf = err != nil
}

// Why a worker ended.
type reason int

const (
	died reason = iota
	stopped
	reloaded
)

// watch waits for the end of the worker pid. It tells it to stop when ctx ends,
// or when it is to be replaced.
func (s *supervisor) watch(ctx context.Context, pid int, end <-chan unix.WaitStatus) (lived bool, status unix.WaitStatus, why reason) {
	s.mu.Lock()
	ready := s.ready
	s.mu.Unlock()
	var since time.Time
	done, reload := ctx.Done(), s.o.Reload
	var overdue <-chan time.Time
	alarm, silence := s.alarm()
	defer silence()
	for {
		select {
		case status = <-end:
			s.mu.Lock()
			s.worker, s.isReady = 0, false
			if why != reloaded {
				s.restarts++
			}
			s.mu.Unlock()
			if ctx.Err() != nil {
				why = stopped
			}
			return !since.IsZero() && time.Since(since) >= atWork, status, why
		case <-ready:
			ready, since = nil, time.Now()
			s.announce(pid)
		case <-alarm:
			s.tell("WATCHDOG=1")
		case <-done:
			done, reload = nil, nil
			s.tell("STOPPING=1\nSTATUS=the worker is told to stop")
			overdue = s.dismiss(pid)
		case <-reload:
			reload, why = nil, reloaded
			s.tell(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d\nSTATUS=the worker is being replaced", monotonic().Microseconds()))
			s.reloading = true
			overdue = s.dismiss(pid)
		case <-s.keeperGone:
			s.log.Warn("keeper ended; starting another")
			if err := s.hold(ctx); err != nil {
				s.log.Warn("no keeper", "err", err)
			}
		case <-overdue:
			s.log.Warn("worker does not end; killing it", "pid", pid)
			kill(pid, unix.SIGKILL)
		}
	}
}

// dismiss tells a worker to stop, and returns when it should have.
func (s *supervisor) dismiss(pid int) <-chan time.Time {
	kill(pid, unix.SIGTERM)
	kill(pid, unix.SIGCONT)
	return time.After(s.o.Drain)
}

// monotonic is the time that the service manager wants with RELOADING=1 (systemd 253).
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

// announce says that the worker serves, and the first time that the daemon is up,
// or up again.
func (s *supervisor) announce(pid int) {
	state := fmt.Sprintf("STATUS=worker %d serves %s", pid, s.o.Run)
	if !s.notified {
		s.notified = true
		s.log.Info("ready", "socket", Socket(s.o.Run))
		state = "READY=1\n" + state
		defer func() {
			if err := slim(); err != nil {
				s.log.Debug("the pages of the program stay", "err", err)
			}
		}()
	} else if s.reloading {
		state = "READY=1\n" + state
	}
	s.reloading = false
	s.tell(state)
}

// inherited is what a worker learns from its environment, as JSON in workerEnv.
// Its descriptors are 3 /dev/fuse, 4 the control socket, 5 the lock, and then Sockets.
type inherited struct {
	Run        string
	Init       []byte
	Resend     bool
	Supervisor int
	Restarts   int
	Sockets    []string `json:",omitempty"` // paths
	Backend    string   `json:",omitempty"`
}

const workerEnv = "SNAPFS_WORKER"

func (s *supervisor) startWorker() (int, <-chan unix.WaitStatus, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	role, err := json.Marshal(inherited{s.o.Run, s.init, s.resend, os.Getpid(), s.restarts, s.o.Sockets, s.o.Backend})
	if err != nil {
		return 0, nil, err
	}
	argv := s.o.Worker
	if argv == nil {
		argv = append([]string{"/proc/self/exe"}, os.Args[1:]...)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	files := []*os.File{null, os.Stdout, os.Stderr, s.fuse, s.sockets[0].file, s.lock}
	for _, o := range s.sockets[1:] {
		files = append(files, o.file)
	}
	pid, end, err := s.kids.start(argv, environ(workerEnv+"="+string(role)), "/", files)
	if err != nil {
		return 0, nil, err
	}
	s.worker, s.isReady, s.ready = pid, false, make(chan struct{})
	return pid, end, nil
}

// environ is our environment with add, without what is ours alone.
func environ(add ...string) []string {
	var env []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if name != workerEnv && !slices.Contains(serviceVariables, name) && !slices.ContainsFunc(add, func(a string) bool { return strings.HasPrefix(a, name+"=") }) {
			env = append(env, e)
		}
	}
	return append(env, add...)
}

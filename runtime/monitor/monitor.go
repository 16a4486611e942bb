// Package monitor is the process that holds one container: it assembles the
// root file system, starts the container, copies and logs its output, answers
// attach, exec, kill and wait at a socket of its own, and records how it ended.
// Because a terminal is connected to it and not to the daemon, nobody notices
// when the daemon dies or is replaced.
//
//	           descriptors, once               pipes or a pty
//	snapctl ──────────────────────▶ monitor ◀────────────────▶ container
//	                                   │
//	                                   └──▶ log.json, state.json
//
// A client passes the descriptors that output is to go to, so that output does
// not go through the client; input comes from a pipe that the client fills, so
// that the monitor never reads a terminal and cannot steal keystrokes from the
// shell after the container has ended.
//
// Invariants:
//   - One monitor per container directory: it holds a lock on DIR/lock until the
//     container's end is recorded, and one on DIR/busy until nothing of it is left.
//   - The exit status is in DIR/state.json, or DIR is gone (Config.Remove),
//     before any client is told.
//   - The container's life does not depend on any client's.
//   - The end of the container is the end of its first process. Output that was
//     written before then is logged and delivered before the end is reported.
//
// A monitor ignores SIGTERM, SIGINT and SIGHUP: a container is stopped through
// its monitor's socket, and stopping the daemon stops no container. When a
// monitor is killed nevertheless, its container can neither be logged nor
// waited for any more; [Recover] then ends it.
package monitor

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// Options of [Run]; the zero value works.
type Options struct {
	Listener *net.UnixListener // nil: Run listens at Config.Socket
	Ready    io.WriteCloser    // closed when the monitor answers; nil: nobody waits
	Log      *slog.Logger      // nil: discard
	Runner   Runner            // nil: package runtime
	Join     []Namespace       // that the container is to be started in; Run closes them
	Config   *Config           // as it is in the container's directory; nil: it is read there
}

// A Monitor holds one container.
type Monitor struct {
	dir    string
	cfg    *Config
	runner Runner
	log    *slog.Logger

	alive *os.File // the lock that says so
	leave sync.Once

	out, err   *output // stdout and stderr; err is nil with a terminal
	json       *logWriter
	watching   sync.WaitGroup // watch
	background sync.WaitGroup // programs that exec left running

	starting sync.Mutex    // held while the container is being started
	running  chan struct{} // closed when it has been started
	readied  chan struct{} // closed when it is ready, and that is recorded
	isReady  sync.Once
	done     chan struct{} // closed when the end is known and recorded
	release  func()        // for OpRelease: ends serve
	stirred  chan struct{} // see slim

	ready condition
	line  *lineWatch // nil unless ready asks for a line

	recording sync.Mutex // held while a state is recorded, so that the order on disk is that of m.state; before mu

	mu        sync.Mutex
	state     State
	container Container
	console   *os.File // pty master
	stdin     *input
	joined    []string // kinds of namespaces; replaced, never changed
}

// Run is the whole life of the monitor of the container in dir. It returns when
// the container has ended and everybody who waited for it has been told.
func Run(ctx context.Context, dir string, o Options) error {
	m, err := newMonitor(dir, &o)
	if err != nil {
		return err
	}
	defer m.json.Close()
	if m.alive, err = lock(filepath.Join(dir, lockFile)); err != nil {
		return err
	}
	defer m.goodbye()
	busy, err := lock(filepath.Join(dir, busyFile)) // waits for an earlier monitor to clean up
	if err != nil {
		return err
	}
	defer busy.Close()
	l := o.Listener
	if l == nil {
		if l, err = listen(m.cfg.Socket); err != nil {
			return err
		}
	}
	defer l.Close()
	if err := m.begin(); err != nil {
		return err
	}
	if o.Ready != nil {
		o.Ready.Close()
	}
	return m.serve(ctx, l)
}

func newMonitor(dir string, o *Options) (*Monitor, error) {
	cfg, err := o.Config, error(nil)
	if cfg == nil {
		cfg, err = LoadConfig(dir)
	}
	if err != nil {
		return nil, err
	}
	m := &Monitor{
		dir: dir, cfg: cfg, runner: o.Runner, log: o.Log,
		out:     &output{},
		running: make(chan struct{}), readied: make(chan struct{}), done: make(chan struct{}),
		stirred: make(chan struct{}, 1),
	}
	if m.ready, err = cfg.condition(); err != nil {
		return nil, err
	}
	m.line = newLineWatch(m.ready.line)
	if m.runner == nil {
		m.runner = &bundled{}
	}
	m.join(o.Join)
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	if !cfg.TTY {
		m.err = &output{}
	}
	m.json, err = openLog(cfg.logPath(dir), cfg.LogOptions)
	return m, err
}

// begin records that the container has a monitor. What is known of an earlier
// run stays until the next start.
func (m *Monitor) begin() error {
	s, err := LoadState(m.dir)
	if err != nil || s.Status == StatusRunning {
		s = State{Status: StatusCreated}
	}
	s.Monitor = os.Getpid()
	m.state = s
	return s.save(m.dir, false)
}

// serve answers until the container has ended or is given up.
func (m *Monitor) serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	m.release = cancel
	var end sync.WaitGroup
	defer end.Wait()
	defer cancel()
	end.Go(func() {
		select {
		case <-m.done:
		case <-ctx.Done():
		}
		cancel()
	})
	end.Go(func() { slim(ctx, m.stirred, debug.FreeOSMemory) })
	if err := m.runner.Prepare(m.cfg); err != nil {
		m.log.Warn("prepare", "err", err) // Start tries again and reports it
	}
	err := m.server().Serve(ctx, l)
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, m.cleanUp())
}

// cleanUp runs after the last client was answered.
func (m *Monitor) cleanUp() error {
	m.mu.Lock()
	c := m.container
	m.mu.Unlock()
	var errs []error
	if c != nil {
		errs = append(errs, c.Close())
	}
	m.watching.Wait()
	m.background.Wait()
	dir, s := m.dir, m.state
	errs = append(errs, m.runner.Release())
	switch {
	case s.Status == StatusExited && m.cfg.Remove:
		errs = append(errs, os.RemoveAll(dir))
	case s.Status == StatusExited:
		errs = append(errs, syncFile(filepath.Join(dir, StateFile)), syncDir(dir))
	}
	return errors.Join(errs...)
}

// goodbye says that the container has no monitor any more. Whoever comes now
// finds the state where it is recorded, and may start another monitor.
func (m *Monitor) goodbye() {
	m.leave.Do(func() {
		os.Remove(m.cfg.Socket)
		os.Remove(filepath.Dir(m.cfg.Socket)) // only if empty
		m.alive.Close()
	})
}

// IgnoreSignals makes the process deaf to the signals that ask a service to end.
func IgnoreSignals(ignore func(...os.Signal)) {
	ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
}

func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177)
	defer unix.Umask(old)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// now is the time to record, without the monotonic clock's reading.
func now() time.Time { return time.Now().UTC().Round(0) }

func (m *Monitor) server() *control.Server {
	return &control.Server{
		Handle:    m.handle,
		Streaming: map[string]bool{OpAttach: true, OpExec: true},
		Log:       m.log,
	}
}

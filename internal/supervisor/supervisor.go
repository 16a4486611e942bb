// Package supervisor is the process tree of snapd, and the two ends of it:
//
//	snapd (supervisor)   holds ROOT/lock, the /dev/fuse descriptor, INIT and the control
//	  │                  socket; mounts; spawns monitors, runs programs. [Run]
//	  ├─ snapd (worker)  serves FUSE and the control socket; asks the supervisor for
//	  │                  what it must not do itself. [Attach], [Worker]
//	  ├─ keeper          holds duplicates for the time when both are dead. Package keeper
//	  └─ monitors        of containers; outlive everybody
//
// A worker that dies is replaced; requests wait meanwhile. A supervisor that
// dies leaves its worker serving; the next supervisor has that worker release
// what it holds, waits for its end, and starts its own. When both are dead it
// takes the FUSE connection from the keeper, and without a keeper it makes a new
// mount, on which containers from before do not see the objects they miss.
//
//	RUN/snapd.sock       control socket; bound by the supervisor, or the service manager, served by the worker
//	Options.Sockets      others of that kind
//	RUN/supervisor.sock  requests to the supervisor: mount, unmount, spawn, program, stop, status
//	RUN/worker.sock      asks a worker to release
//	RUN/keeper.sock      see package keeper
//	ROOT/lock            flock shared by supervisor and worker: held as long as either lives
//
// Invariant: no two workers of a root live at the same time. A supervisor starts
// one only after the end of the one before is certain (its exit status, or its pidfd).
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
)

// Options of Run.
type Options struct {
	Root, Run string
	// Worker is the command line of the worker; nil: this process's own, with
	// its executable. The worker finds out by [IsWorker] what it is.
	Worker []string
	// Keeper is the command line that runs keeper.Keep for the directory named
	// by its last argument, which Run appends; nil: no keeper.
	Keeper []string
	// Sockets are paths of further sockets that are bound, with the directories
	// they are in, and held for the workers as the control socket is. At most
	// MaxSockets.
	Sockets []string
	// Backend is how images are shown, one of mounts.Backends, for the workers to
	// know. All but mounts.BackendDirectories need a FUSE that sends again what a
	// dead worker has not answered.
	Backend string
	// InUse says, when the daemon stops, whether anything still uses its
	// mounts; nil: whether RUN/containers has entries.
	InUse func() bool
	// Reload has the worker told to stop and replaced, for every value. Clients and
	// readers wait meanwhile. nil: never.
	Reload <-chan struct{}
	// Drain is how long a worker that was told to stop may take; 0: 10 s.
	Drain time.Duration
	// ReadAhead of the FUSE mount, KiB; 0: see defaultReadAhead.
	ReadAhead int
	Log       *slog.Logger // nil: discard
}

// defaultReadAhead is in KiB. The kernel's own, 128, makes a page fault in a
// library fetch so much around it: with 32 the boot bundle of redis-server has
// 4.5 MB instead of 5.2. A reader that goes on and on is read ahead for by the
// daemon (layers/fetch).
const defaultReadAhead = 32

// ErrRunning says that another daemon serves the root.
var ErrRunning = errors.New("another daemon is running")

// ErrStopped is what a worker's context ends with.
var ErrStopped = errors.New("the worker was told to stop")

// Socket returns where the daemon of run is reached.
func Socket(run string) string { return filepath.Join(run, "snapd.sock") }

func supervisorSocket(run string) string { return filepath.Join(run, control.SupervisorSocket) }
func workerSocket(run string) string     { return filepath.Join(run, "worker.sock") }
func lazyDir(run string) string          { return filepath.Join(run, "lazy") }
func nodeTable(run string) string        { return filepath.Join(run, "nodes") }
func imageDir(run, id string) string     { return filepath.Join(run, "images", id) }

// supervisor is one Run.
type supervisor struct {
	o    Options
	log  *slog.Logger
	stop context.CancelFunc
	kids *children

	service   service
	deaf      bool     // the service manager did not listen
	fresh     bool     // fuse is another mount than the one before
	reloading bool     // the service manager was told that the worker is replaced
	stored    *os.File // the fuse that the service manager has a duplicate of

	lock    *os.File
	sockets []socket // of Options.paths
	fuse    *os.File
	init    []byte
	resend  bool // fuse has been served before

	keeperGone chan struct{} // gets a value when the keeper has ended
	watching   sync.WaitGroup

	memory memories
	sealed sealed
	alone  queue // of programs

	images sync.Mutex // held while mounts of images change
	netns  sync.Mutex // held while names of network namespaces do

	mu       sync.Mutex
	worker   int // pid, 0: none
	keeper   int
	restarts int
	failed   int           // workers in a row that did not work
	ready    chan struct{} // closed when the worker says that it serves
	isReady  bool
	notified bool
}

// Run is the supervisor. It returns when ctx has ended, or somebody asked for
// it over the socket, and the worker has stopped; mounts in use then live on.
// It is ErrRunning-wrapped if the root has a daemon.
func Run(ctx context.Context, o Options) (err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if len(o.Sockets) > MaxSockets {
		return fmt.Errorf("%d further sockets, at most %d can be held", len(o.Sockets), MaxSockets)
	}
	if o.Drain == 0 {
		o.Drain = 10 * time.Second
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = defaultReadAhead
	}
	// The supervisor shares its binary with the worker and does next to nothing.
	debug.SetGCPercent(20)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := &supervisor{o: o, log: o.Log, stop: cancel, kids: newChildren(), keeperGone: make(chan struct{}, 1)}
	defer s.kids.close()
	defer s.sealed.close()
	s.service = newService(os.Getenv, os.Getpid())
	defer s.service.close()
	if err := s.directories(); err != nil {
		return err
	}
	defer func() { closeAll(s.lock, s.fuse); closeSockets(s.sockets) }()
	if err := s.adopt(ctx); err != nil {
		return err
	}
	own, err := s.listen()
	if err != nil {
		return err
	}
	// A worker that drains may still ask for something.
	serve, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	var serving sync.WaitGroup
	serving.Go(func() {
		server := control.Server{Handle: s.handle, Code: code, Log: s.log}
		server.Serve(serve, own)
	})
	err = s.work(ctx)
	cancel()
	end()
	serving.Wait()
	s.watching.Wait()
	own.Close()
	return errors.Join(err, s.leave())
}

func (s *supervisor) directories() error {
	if err := errors.Join(os.MkdirAll(s.o.Root, 0o700), os.MkdirAll(s.o.Run, 0o700)); err != nil {
		return err
	}
	for _, dir := range []string{lazyDir(s.o.Run), imageDir(s.o.Run, ""), mappedDir(s.o.Run)} {
		// Not MkdirAll, which would look into a mount that nobody answers for.
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// listen opens RUN/supervisor.sock. Whoever else had it is dead: we hold the lock.
func (s *supervisor) listen() (*net.UnixListener, error) { return listen(supervisorSocket(s.o.Run)) }

// descriptor returns a duplicate of l's descriptor that stays non-blocking
// whoever it is passed to, and keeps the socket's name when it is closed.
func descriptor(l *net.UnixListener) (*os.File, error) {
	l.SetUnlinkOnClose(false)
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	dup := -1
	var derr error
	if err := raw.Control(func(fd uintptr) { dup, derr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	return os.NewFile(uintptr(dup), l.Addr().String()), nil
}

// leave ends the mounts that nobody uses, or leaves them to the keeper.
func (s *supervisor) leave() error {
	for _, o := range s.sockets {
		if !o.given {
			os.Remove(o.path)
		}
	}
	os.Remove(supervisorSocket(s.o.Run))
	if s.inUse() {
		s.log.Info("stopped; containers and mounts live on", "keeper", s.status().Keeper)
		return nil
	}
	err := errors.Join(s.service.forget(), s.unmountAll(), s.dropAllNetns())
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err = errors.Join(err, keeper.End(ctx, s.o.Run))
	s.log.Info("stopped; nothing is left mounted")
	return err
}

func (s *supervisor) inUse() bool {
	if s.o.InUse != nil {
		return s.o.InUse()
	}
	entries, err := os.ReadDir(filepath.Join(s.o.Run, "containers"))
	return err == nil && len(entries) > 0
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// code gives the supervisor's errors their codes on the wire.
func code(err error) string {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return control.CodeNotFound
	case errors.Is(err, unix.EBUSY):
		return control.CodeInUse
	}
	return ""
}

func (s *supervisor) status() control.Supervisor {
	s.mu.Lock()
	defer s.mu.Unlock()
	return control.Supervisor{Supervisor: os.Getpid(), Worker: s.worker, Keeper: s.keeper, Restarts: s.restarts, Failed: s.failed, Ready: s.isReady}
}

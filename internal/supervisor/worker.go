package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

// ErrNoSupervisor says that the supervisor is dead, so nothing can be mounted or
// spawned until a new snapd takes over.
var ErrNoSupervisor error = &control.Error{Code: control.CodeUnavailable, Message: "the supervisor is gone; start snapd again"}

// IsWorker says whether this process was started by a supervisor to be its worker.
func IsWorker() bool { return os.Getenv(workerEnv) != "" }

// A Worker is the worker's end: what it was given, and what it can ask for.
type Worker struct {
	Fuse       *os.File // for objectfs.Serve, with Init and Resend
	Init       []byte
	Resend     bool
	Listener   *net.UnixListener // of RUN/snapd.sock
	Sockets    []Listener        // in the order of Options.Sockets
	Supervisor int               // pid
	Restarts   int               // workers before this one, under this supervisor
	Backend    string            // that of Options

	remembering sync.Mutex
	memory      memories // what was not forgotten with an earlier worker
	run         string
	socket      *os.File // the descriptor Listener was made of
	lock        *os.File
	stop        context.CancelCauseFunc
	signals     chan os.Signal
	release     *net.UnixListener
	serving     sync.WaitGroup
	released    sync.Once
}

// A Listener is a further socket that clients connect to; see Options.Sockets.
type Listener struct {
	*net.UnixListener
	Path string

	socket *os.File // the descriptor it was made of
}

// Attach makes this process a worker. The context it returns ends, with cause
// ErrStopped, on SIGTERM and when a new supervisor takes over; the process then
// has to finish what it serves, Close, and exit. The death of the supervisor does not end it.
func Attach(ctx context.Context, log *slog.Logger) (*Worker, context.Context, error) {
	var in inherited
	if err := json.Unmarshal([]byte(os.Getenv(workerEnv)), &in); err != nil {
		return nil, nil, fmt.Errorf("not started by a supervisor: %w", err)
	}
	if err := os.Unsetenv(workerEnv); err != nil {
		return nil, nil, err
	}
	w := &Worker{
		Fuse: os.NewFile(3, "/dev/fuse"), Init: in.Init, Resend: in.Resend,
		Supervisor: in.Supervisor, Restarts: in.Restarts, Backend: in.Backend,
		run: in.Run, socket: os.NewFile(4, Socket(in.Run)), lock: os.NewFile(5, "lock"),
		signals: make(chan os.Signal, 1),
	}
	for fd := 3; fd <= 5+len(in.Sockets); fd++ {
		unix.CloseOnExec(fd)
	}
	var err error
	if w.Listener, err = unixListener(w.socket); err != nil {
		return nil, nil, fmt.Errorf("inherited socket: %w", err)
	}
	for i, path := range in.Sockets {
		f := os.NewFile(uintptr(6+i), path)
		l, err := unixListener(f)
		if err != nil {
			return nil, nil, fmt.Errorf("inherited socket %s: %w", path, err)
		}
		w.Sockets = append(w.Sockets, Listener{l, path, f})
	}
	if err := w.recall(ctx); err != nil {
		return nil, nil, err
	}
	if w.release, err = listen(workerSocket(w.run)); err != nil {
		return nil, nil, err
	}
	ctx, w.stop = context.WithCancelCause(ctx)
	signal.Notify(w.signals, unix.SIGTERM)
	w.serving.Go(func() {
		for range w.signals {
			w.stop(ErrStopped)
		}
	})
	w.serving.Go(func() {
		server := control.Server{Handle: w.handle, Log: log}
		server.Serve(ctx, w.release)
	})
	return w, ctx, nil
}

// handle answers a new supervisor.
func (w *Worker) handle(_ context.Context, r *control.Request) error {
	if r.Op != opRelease {
		return &control.Error{Code: control.CodeInvalid, Message: "worker: unknown operation " + r.Op}
	}
	answer := released{Init: w.Init, Memory: w.memory.all()}
	files := []*os.File{w.Fuse, w.socket, w.lock}
	for _, l := range w.Sockets {
		answer.Sockets = append(answer.Sockets, l.Path)
		files = append(files, l.socket)
	}
	err := r.Reply(answer, files...)
	w.stop(ErrStopped)
	return err
}

// Close ends the worker's own goroutines and closes what it was given. The
// process must exit after it: the lock of the root is no longer its own.
func (w *Worker) Close() error {
	w.stop(ErrStopped)
	signal.Stop(w.signals)
	w.released.Do(func() { close(w.signals) })
	w.serving.Wait()
	err := errors.Join(w.release.Close(), w.Listener.Close(), w.Fuse.Close(), w.socket.Close(), w.lock.Close())
	for _, l := range w.Sockets {
		if cerr := l.UnixListener.Close(); !errors.Is(cerr, net.ErrClosed) { // a server may have closed it
			err = errors.Join(err, cerr)
		}
		err = errors.Join(err, l.socket.Close())
	}
	return err
}

// Run returns the daemon's RUN directory.
func (w *Worker) Run() string { return w.run }

// Ready tells the supervisor that the control socket is being served.
func (w *Worker) Ready(ctx context.Context) error {
	_, err := w.ask(ctx, opReady, readyArgs{os.Getpid()}, nil)
	return err
}

// MountImage mounts the metadata image file and returns where. It is done once:
// if there is a mount of that ID, of whatever file, nothing changes.
func (w *Worker) MountImage(ctx context.Context, id, file string) (dir string, err error) {
	var m mountResult
	_, err = w.ask(ctx, opMount, mountArgs{ID: id, File: file}, &m)
	return m.Dir, err
}

// UnmountImage undoes MountImage, and MountMapped for all mappings. What is
// mounted above the image stays.
func (w *Worker) UnmountImage(ctx context.Context, id string) error {
	_, err := w.ask(ctx, opUnmount, mountArgs{ID: id}, nil)
	return err
}

// MountMapped is MountImage, and mounts the image once more with owners shifted
// by m, and returns where. Both mounts share inodes and pages. It is done once for each m.
func (w *Worker) MountMapped(ctx context.Context, id, file string, m mounts.IDMap) (dir string, err error) {
	var r mountResult
	_, err = w.ask(ctx, opMount, mountArgs{id, file, &m}, &r)
	return r.Dir, err
}

// KeepMappedImages undoes MountMapped of all images for all mappings but those of
// maps. The images stay mounted without them, and what is mounted above stays.
func (w *Worker) KeepMappedImages(ctx context.Context, maps []mounts.IDMap) error {
	_, err := w.ask(ctx, opKeep, keepArgs{Maps: maps}, nil)
	return err
}

// MapDir mounts the directory dir once more, read-only and with owners shifted by m,
// and returns where. What is made below dir later shows there, too, so one call
// for a directory of many is enough. It is done once for each dir and m.
func (w *Worker) MapDir(ctx context.Context, dir string, m mounts.IDMap) (mapped string, err error) {
	var r mountResult
	_, err = w.ask(ctx, opMap, mapArgs{dir, m}, &r)
	return r.Dir, err
}

// KeepMapped undoes MapDir for all mappings of dir but those of maps. What is
// mounted above stays. dir need not be there any more.
func (w *Worker) KeepMapped(ctx context.Context, dir string, maps []mounts.IDMap) error {
	_, err := w.ask(ctx, opKeep, keepArgs{Dir: dir, Maps: maps}, nil)
	return err
}

// UserNamespace makes a user namespace with the users of m, in which nobody is, and,
// if withNet, a network namespace that belongs to it. The caller closes them.
func (w *Worker) UserNamespace(ctx context.Context, m mounts.IDMap, withNet bool) (user, net *os.File, err error) {
	files, err := w.ask(ctx, opUsers, usersArgs{m, withNet}, nil)
	want := 1
	if withNet {
		want = 2
	}
	if err == nil && len(files) != want {
		err = fmt.Errorf("user namespace: the supervisor sent %d descriptors, want %d", len(files), want)
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, nil, err
	}
	return files[0], append(files, nil)[1], nil
}

// Spawn starts p and returns its process ID. Its files stay the caller's.
func (w *Worker) Spawn(ctx context.Context, p Process) (pid int, err error) {
	var s spawned
	_, err = w.ask(ctx, opSpawn, p, &s, p.File...)
	return s.Pid, err
}

// StopDaemon asks the supervisor to stop the daemon, this worker with it. That
// may end ctx before the answer is in, so it does not count.
func (w *Worker) StopDaemon(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, err := w.ask(ctx, OpStop, nil, nil)
	return err
}

// Status asks the supervisor how it is.
func (w *Worker) Status(ctx context.Context) (control.Supervisor, error) {
	var s control.Supervisor
	_, err := w.ask(ctx, control.OpSupervisor, nil, &s)
	return s, err
}

// ask makes one request of the supervisor.
func (w *Worker) ask(ctx context.Context, op string, args, result any, files ...*os.File) ([]*os.File, error) {
	c, err := control.Dial(ctx, supervisorSocket(w.run))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNoSupervisor
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.Begin(op, args, files...); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	got, err := c.Finish(result, nil)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return got, err
}

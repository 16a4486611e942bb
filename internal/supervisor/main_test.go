package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/fs/objectfs"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
	"github.com/snapfs/snapfs/layers"
)

// The test binary plays all parts: it is started again as supervisor and as
// keeper, with roleEnv, and by the supervisor as worker.
const roleEnv = "SNAPFS_TEST_ROLE"

func TestMain(m *testing.M) {
	var err error
	switch role, rest, _ := strings.Cut(os.Getenv(roleEnv), ":"); {
	case IsWorker():
		err = work()
	case len(os.Args) == 3 && os.Args[1] == "keeper":
		err = keeper.Keep(context.Background(), os.Args[2])
	case role == "supervisor":
		err = supervise(rest)
	default:
		os.Exit(m.Run())
	}
	switch {
	case errors.Is(err, errFatal):
		os.Exit(ExitFatal)
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func testLog() *slog.Logger {
	if os.Getenv("SNAPFS_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("pid", os.Getpid())
}

// supervise is the supervisor of dir/root and dir/run.
func supervise(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	hup, reload := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(hup, unix.SIGHUP)
	var relay sync.WaitGroup
	defer relay.Wait()
	defer close(hup)
	defer signal.Stop(hup)
	relay.Go(func() {
		for range hup {
			select {
			case reload <- struct{}{}:
			case <-ctx.Done():
			}
		}
	})
	sockets, _ := os.ReadFile(filepath.Join(dir, "sockets")) // most tests want none
	return Run(ctx, Options{
		Root:    filepath.Join(dir, "root"),
		Run:     filepath.Join(dir, "run"),
		Sockets: strings.Fields(string(sockets)),
		Worker:  []string{"/proc/self/exe"},
		Keeper:  []string{"/proc/self/exe", "keeper"},
		Reload:  reload,
		Log:     testLog(),
	})
}

var errFatal = errors.New("nothing can help")

// work is the worker. It serves the objects in the folder "source" of the test.
func work() error {
	w, ctx, err := Attach(context.Background(), nil)
	if err != nil {
		return err
	}
	dir := filepath.Dir(w.Run())
	if _, err := os.Stat(filepath.Join(dir, "fatal")); err == nil {
		return errFatal
	}
	if _, err := os.Stat(filepath.Join(dir, "crash")); err == nil {
		return errors.New("crash")
	}
	nodes, err := objectfs.OpenNodes(filepath.Join(w.Run(), "nodes"))
	if err != nil {
		return err
	}
	var parts sync.WaitGroup
	var failed error
	parts.Go(func() {
		fs := objectfs.New(folder(filepath.Join(dir, "source")), nodes, objectfs.Options{Log: testLog()})
		failed = objectfs.Serve(ctx, w.Fuse, w.Init, w.Resend, fs)
		w.stop(ErrStopped)
	})
	parts.Go(func() {
		server := control.Server{Handle: answer(w)}
		server.Serve(ctx, w.Listener)
	})
	for _, l := range w.Sockets {
		parts.Go(func() {
			server := control.Server{Handle: func(_ context.Context, r *control.Request) error {
				return r.Reply(fmt.Sprintf("%d %s", os.Getpid(), l.Path))
			}}
			server.Serve(ctx, l.UnixListener)
		})
	}
	if err := w.Ready(ctx); err != nil && !errors.Is(err, ErrNoSupervisor) {
		return err
	}
	parts.Wait()
	return errors.Join(failed, nodes.Close(), w.Close())
}

func answer(w *Worker) func(context.Context, *control.Request) error {
	return func(ctx context.Context, r *control.Request) error {
		var args []string
		if len(r.Args) > 0 {
			if err := json.Unmarshal(r.Args, &args); err != nil {
				return err
			}
		}
		switch r.Op {
		case "pid":
			return r.Reply(os.Getpid())
		case "mount":
			dir, err := w.MountImage(ctx, args[0], args[1])
			if err != nil {
				return err
			}
			return r.Reply(dir)
		case "unmount":
			return w.UnmountImage(ctx, args[0])
		case "mount mapped", "map":
			m, err := mounts.ParseIDMap(args[2], args[2])
			if err != nil {
				return err
			}
			var dir string
			if r.Op == "map" {
				dir, err = w.MapDir(ctx, args[0], m)
			} else {
				dir, err = w.MountMapped(ctx, args[0], args[1], m)
			}
			if err != nil {
				return err
			}
			return r.Reply(dir)
		case "keep", "keep images":
			var maps []mounts.IDMap
			for _, text := range args[1:] {
				m, err := mounts.ParseIDMap(text, text)
				if err != nil {
					return err
				}
				maps = append(maps, m)
			}
			if r.Op == "keep" {
				return w.KeepMapped(ctx, args[0], maps)
			}
			return w.KeepMappedImages(ctx, maps)
		case "users":
			m, err := mounts.ParseIDMap(args[0], args[0])
			if err != nil {
				return err
			}
			user, net, err := w.UserNamespace(ctx, m, len(args) > 1)
			if err != nil {
				return err
			}
			defer user.Close()
			if net == nil {
				return r.Reply(nil, user)
			}
			defer net.Close()
			return r.Reply(nil, user, net)
		case "spawn", "spawn sealed":
			pid, err := w.Spawn(ctx, Process{Argv: args[1:], Log: args[0], File: r.Files, Sealed: r.Op != "spawn"})
			if err != nil {
				return err
			}
			return r.Reply(pid)
		case "remember":
			return w.Remember(ctx, args[0], []byte(args[1]))
		case "recall":
			return r.Reply(string(w.Recall(args[0])))
		case "run":
			out, err := w.RunProgram(ctx, Program{Name: args[0], Args: args[1:], Env: []string{"OF_OURS=ours"}, Most: 100})
			if err != nil {
				return err
			}
			return r.Reply(string(out))
		case "alone": // with a word, and everything that a program can say
			var complaint []byte
			out, err := w.RunProgram(ctx, Program{Name: args[1], Args: args[2:], Alone: args[0], Stderr: &complaint, Time: time.Minute})
			if err != nil {
				return fmt.Errorf("%w: %s", err, complaint)
			}
			return r.Reply(string(out) + "/" + string(complaint))
		case "netns":
			path, err := w.MakeNetns(ctx, args[0], nil)
			if err != nil {
				return err
			}
			return r.Reply(path)
		case "no netns":
			return w.DropNetns(ctx, args[0])
		case "output":
			out, err := w.Output(ctx, args[0], args[1], []byte(args[2]))
			if err != nil && len(out) > 0 {
				err = fmt.Errorf("%w, output %q", err, out)
			}
			if err != nil {
				return err
			}
			return r.Reply(string(out))
		case "status":
			s, err := w.Status(ctx)
			if err != nil {
				return err
			}
			return r.Reply(s)
		case "stop":
			return w.StopDaemon(ctx)
		}
		return errors.New("unknown " + r.Op)
	}
}

// folder is objects in files named by their sum.
type folder string

func (f folder) Size(s layers.Sum) (int64, bool) {
	st, err := os.Stat(filepath.Join(string(f), s.Path()))
	if err != nil {
		return 0, false
	}
	return st.Size(), true
}

func (f folder) ReadAt(ctx context.Context, s layers.Sum, p []byte, off int64) (int, error) {
	if _, err := os.Stat(filepath.Join(string(f), "slow")); err == nil {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(time.Hour):
		}
	}
	file, err := os.Open(filepath.Join(string(f), s.Path()))
	if err != nil {
		return 0, err
	}
	defer file.Close()
	return file.ReadAt(p, off)
}

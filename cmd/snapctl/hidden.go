package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/supervisor/keeper"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// runMonitor is the hidden verb that holds one container:
//
//	snapctl monitor [--ready-fd N] [--listen-fd N] [--join KIND=N]... DIR
//	snapctl monitor --slot-fd N PLACE
//
// Descriptor --ready-fd is closed when the monitor answers at its socket, or
// has failed; then standard error says why. With --listen-fd the socket is
// listening already. --join has the container started in the namespace that
// descriptor N is, instead of a new one of that kind. With --slot-fd the container
// is one that will be told at socket N (monitor.Slot), if any; PLACE is for its directory, to be
// shown by ps(1), and as long.
func runMonitor(ctx context.Context, env *Env, args []string) error {
	lowMemory()
	monitor.IgnoreSignals(signal.Ignore)
	unix.Setsid() // EPERM: it leads a session already, as is wanted
	// It was executed by the number of a descriptor, which is no name for lists of processes.
	os.WriteFile("/proc/self/comm", []byte("snapctl"), 0)
	o := monitor.Options{Log: slog.New(slog.NewTextHandler(env.Stderr, nil))}
	f := &flagSet{}
	ready, listen, slot := -1, -1, -1
	f.number(&ready, "ready-fd", "N", "")
	f.number(&listen, "listen-fd", "N", "")
	f.number(&slot, "slot-fd", "N", "")
	f.add("join", "KIND=N", "", func(s string) error {
		kind, number, _ := strings.Cut(s, "=")
		fd, err := strconv.Atoi(number)
		if err != nil {
			return fmt.Errorf("%q: want KIND=N", s)
		}
		unix.CloseOnExec(fd)
		o.Join = append(o.Join, monitor.Namespace{Kind: kind, File: os.NewFile(uintptr(fd), "namespace")})
		return nil
	})
	rest, err := f.parseArgs(args, false)
	if err != nil {
		return err
	}
	if len(rest) != 1 {
		return errors.New("monitor: want a directory")
	}
	if ready >= 0 {
		o.Ready = inherited(ready)
	}
	if listen >= 0 {
		if o.Listener, err = inheritedListener(listen); err != nil {
			return err
		}
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	dir := rest[0]
	if slot >= 0 {
		a, err := awaitContainer(slot)
		if a == nil {
			return err
		}
		dir, a.Options.Log = a.Dir, o.Log
		o = a.Options
		showInPlace(dir)
		err = monitor.Run(ctx, dir, o)
		return errors.Join(err, o.Runner.Release()) // what was made ahead goes, too, if it never came to be a monitor
	}
	return monitor.Run(ctx, dir, o)
}

// awaitContainer waits until a slot is given a container. It is nil without an
// error when nobody wants one any more.
func awaitContainer(fd int) (*monitor.Assignment, error) {
	u, err := inheritedConn(fd)
	if err != nil {
		return nil, err
	}
	a, err := monitor.Await(control.NewConn(u))
	if errors.Is(err, io.EOF) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := a.Stderr(); err != nil { // it is the monitor of that container nevertheless
		fmt.Fprintf(os.Stderr, "snapctl monitor: %v\n", err)
	}
	return a, nil
}

// showInPlace puts dir where this process's last argument is, for those who look
// for a container's monitor in /proc. The arguments are the kernel's copy, and ours to write.
func showInPlace(dir string) {
	last := os.Args[len(os.Args)-1]
	if len(last) == len(dir) {
		copy(unsafe.Slice(unsafe.StringData(last), len(last)), dir)
	}
}

// lowMemory tunes for a process that sleeps nearly always, of which there is
// one per container: two threads run Go code, and the heap is collected early.
// snapd says so in a monitor's environment, so that nothing is made for more
// processors first; this is for whoever is started otherwise.
func lowMemory() {
	runtime.GOMAXPROCS(2)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(25)
	}
}

func inherited(fd int) io.WriteCloser {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "inherited "+strconv.Itoa(fd))
}

func inheritedConn(fd int) (*net.UnixConn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("monitor: --slot-fd is not a unix socket")
	}
	return u, nil
}

func inheritedListener(fd int) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	u, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, errors.New("monitor: --listen-fd is not a unix socket")
	}
	return u, nil
}

// runKeeper is the hidden verb that keeps the FUSE mount of RUN alive:
//
//	snapctl keeper [--cgroup PATH] RUN
func runKeeper(ctx context.Context, env *Env, args []string) error {
	lowMemory()
	monitor.IgnoreSignals(signal.Ignore)
	if len(args) == 3 && args[0] == "--cgroup" {
		if err := enterCgroup(args[1]); err != nil { // better there than not at all
			fmt.Fprintf(env.Stderr, "snapctl keeper: cgroup %s: %v\n", args[1], err)
		}
		args = args[2:]
	}
	if len(args) != 1 {
		return errors.New("keeper: want a directory")
	}
	return keeper.Keep(ctx, args[0])
}

// enterCgroup moves this process into a cgroup of its own, so that it does not
// end with those beside which it was started.
func enterCgroup(path string) error {
	g, err := cgroups.Create(path, nil)
	if err != nil {
		return err
	}
	defer g.Release()
	pid := []byte(strconv.Itoa(os.Getpid()))
	for _, d := range g.Dirs() {
		err = errors.Join(err, os.WriteFile(filepath.Join(d.Path, "cgroup.procs"), pid, 0))
	}
	// In hierarchies of version 1 that have no group of ours it would keep the old
	// one busy, and nobody could remove that.
	b, rerr := os.ReadFile("/proc/self/cgroup")
	err = errors.Join(err, rerr)
	for line := range strings.Lines(string(b)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		name, at, ok := strings.Cut(rest, ":")
		if !ok || name == "" || at == path || at == "/" {
			continue
		}
		err = errors.Join(err, os.WriteFile(filepath.Join("/sys/fs/cgroup", strings.TrimPrefix(name, "name="), "cgroup.procs"), pid, 0))
	}
	return err
}

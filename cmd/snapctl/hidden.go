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
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/supervisor/keeper"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// runMonitor is the hidden verb that holds one container:
//
//	snapctl monitor [--ready-fd N] [--listen-fd N] [--join KIND=N]... DIR
//
// Descriptor --ready-fd is closed when the monitor answers at its socket, or
// has failed; then standard error says why. With --listen-fd the socket is
// listening already. --join has the container started in the namespace that
// descriptor N is, instead of a new one of that kind.
func runMonitor(ctx context.Context, env *Env, args []string) error {
	lowMemory()
	monitor.IgnoreSignals(signal.Ignore)
	unix.Setsid() // EPERM: it leads a session already, as is wanted
	o := monitor.Options{Log: slog.New(slog.NewTextHandler(env.Stderr, nil))}
	f := &flagSet{}
	ready, listen := -1, -1
	f.number(&ready, "ready-fd", "N", "")
	f.number(&listen, "listen-fd", "N", "")
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
	return monitor.Run(ctx, rest[0], o)
}

// lowMemory tunes for a process that sleeps nearly always, of which there is
// one per container: two threads run Go code, and the heap is collected at a
// quarter of growth rather than at double. A monitor's live heap is below 1 MiB.
func lowMemory() {
	runtime.GOMAXPROCS(2)
	debug.SetGCPercent(25)
}

func inherited(fd int) io.WriteCloser {
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), "inherited "+strconv.Itoa(fd))
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
//	snapctl keeper RUN
func runKeeper(ctx context.Context, _ *Env, args []string) error {
	lowMemory()
	monitor.IgnoreSignals(signal.Ignore)
	if len(args) != 1 {
		return errors.New("keeper: want a directory")
	}
	return keeper.Keep(ctx, args[0])
}

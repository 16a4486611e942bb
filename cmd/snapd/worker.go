package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/fs/objectfs"
	"github.com/snapfs/snapfs/internal/cni"
	"github.com/snapfs/snapfs/internal/containers"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/credentials"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/meter"
	"github.com/snapfs/snapfs/internal/network"
	"github.com/snapfs/snapfs/internal/starts"
	"github.com/snapfs/snapfs/internal/supervisor"
	"github.com/snapfs/snapfs/internal/telemetry"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
	"github.com/snapfs/snapfs/runtime/monitor"
	"github.com/snapfs/snapfs/snapshotter/blobs"
)

// daemon is the worker's stack, from the bottom up.
type daemon struct {
	c               Config
	log             *slog.Logger
	w               *supervisor.Worker
	store           *objects.Store
	pulls           *credentials.Pulls
	providers       *credentials.Providers // nil: there are none
	registry        *registry.Registry
	counts          registry.Stats
	contents        blobs.Stats // of all containerds
	events          *events.Log
	meter           meter.Meter
	starts          *starts.Book
	tracer          *telemetry.Tracer
	tops            atomic.Int32 // requests of OpTop under way
	fetcher         *fetch.Fetcher
	files           *soci.Files
	images          *images.Service
	network         *network.Service
	cni             *cni.Service
	containers      *containers.Service
	containerds     []*containerd
	containerdsOpen chan struct{} // closed when all are open that can be
	shifts          shifts
	base            context.Context // until the worker is told to end
	nodes           *objectfs.Nodes
	fs              *objectfs.FS
	runner          string
	started         time.Time
}

// memoryGoal is where the collector begins to work harder: a worker at rest
// needs a fifth of it, a pull of many layers about all of it.
const memoryGoal = 128 << 20

// work is the second process: it builds the stack, serves, and takes it down.
func work(c Config, log *slog.Logger) (err error) {
	debug.SetMemoryLimit(memoryGoal)
	debug.SetGCPercent(50)
	w, ctx, err := supervisor.Attach(context.Background(), log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	d := &daemon{c: c, log: log, w: w, started: time.Now(), events: events.New(0), containerdsOpen: make(chan struct{})}
	var end context.CancelFunc
	d.base, end = context.WithCancel(ctx)
	defer end()
	if err := d.open(ctx); err != nil {
		if cerr := d.close(); cerr != nil {
			log.Error("after a failed start", "err", cerr)
		}
		return openError{err}
	}
	err = d.serve(ctx)
	end()
	return errors.Join(err, d.close())
}

// errOpen is what an openError is.
var errOpen = errors.New("the state cannot be opened")

// An openError says why a worker never began. Another one would fare no better,
// so it ends the daemon, unless that has served before.
type openError struct{ error }

func (e openError) Unwrap() error        { return e.error }
func (e openError) Is(target error) bool { return target == errOpen }

func (d *daemon) open(ctx context.Context) (err error) {
	c := d.c
	if d.runner, err = c.runner(); err != nil {
		return err
	}
	if err := d.observe(ctx); err != nil {
		return err
	}
	if d.store, err = objects.Open(c.Root, objects.Options{Log: d.log}); err != nil {
		return err
	}
	if d.nodes, err = objectfs.OpenNodes(filepath.Join(c.Run, "nodes")); err != nil {
		return err
	}
	chain, err := d.openCredentials(ctx)
	if err != nil {
		return err
	}
	d.registry = registry.New(registry.Options{
		Credentials: chain.Lookup,
		HostDirs:    c.Registry.ConfigDirs, PlainHTTP: c.Registry.PlainHTTP,
		Timeouts: registry.Timeouts{Connect: time.Duration(c.Registry.ConnectTimeout), Stall: time.Duration(c.Registry.StallTimeout)},
		Limit:    int64(c.Pull.Bandwidth), UserAgent: "snapfs/" + version, SpoolDir: filepath.Join(c.Root, "tmp"), Log: d.log, Stats: &d.counts,
	})
	disk := &disk{root: c.Root, limit: int64(c.Disk.Limit), reserve: int64(c.Disk.Reserve), usage: d.store.Usage, log: d.log}
	d.fetcher = fetch.New(fetch.Options{
		Store: d.store, Room: disk.room, Log: d.log,
		Disputed: func(s layers.Sum) { d.fs.Invalidate(s) }, // d.fs is set before the first layer is added
		Watch:    fetch.Watch{Waited: d.waited, Lied: d.lied, Unkept: d.unkept},
	})
	d.files = soci.NewFiles(d.fetcher, 0)
	d.fs = objectfs.New(d.files, d.nodes, objectfs.Options{Log: d.log, Failed: d.readFailed})
	indexes, err := c.Index.open()
	if err != nil {
		return err
	}
	d.images, err = images.Open(ctx, images.Options{
		Root: c.Root, Run: c.Run, Registry: d.registry, Store: d.store, Fetcher: d.fetcher, Files: d.files, Mounter: d.w,
		Held:        d.held,
		Asked:       d.asked,
		Users:       func() map[digest.Digest][]images.User { return d.containers.Users() },
		Directories: d.w.Backend == mounts.BackendDirectories,
		Complete:    c.Pull.Complete, Indexes: indexes, Events: d.events, Log: d.log,
	})
	if err != nil {
		return err
	}
	if d.network, err = network.Open(ctx, c.Network.options(c.Root, c.Run, c.Pool, d.log)); err != nil {
		return err
	}
	if d.cni, err = cni.Open(ctx, c.Network.cniOptions(c.Root, d.w, d.network, d.log)); err != nil {
		return err
	}
	d.containers, err = containers.Open(ctx, containers.Options{
		Root: c.Root, Run: c.Run, CgroupParent: c.CgroupParent, Slots: c.Pool.slots(), Eager: c.Pool.Size != nil, Images: d.images, Spawner: d, Networks: networks{d.network, d.cni}, Plugins: d.cni, Network: c.Network.Default,
		IDs: c.Userns.options(d.w, d.log), Described: c.CDI.Dirs,
		Boots: boots{d}, Events: d.events, Starts: d.starts, Log: d.log,
	})
	if err != nil {
		return err
	}
	return d.openContainerds()
}

// serve answers the kernel and clients until ctx ends. The kernel comes first:
// containers of before may be waiting for a read.
func (d *daemon) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var all sync.WaitGroup
	all.Go(func() {
		if err := objectfs.Serve(ctx, d.w.Fuse, d.w.Init, d.w.Resend && d.w.Backend != mounts.BackendDirectories, d.fs); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("FUSE: %w", err))
		}
	})
	all.Go(func() {
		if err := d.store.Recover(ctx); err != nil && ctx.Err() == nil {
			d.log.Error("objects of an unclean boot", "err", err)
		}
	})
	all.Go(func() {
		server := control.Server{Handle: d.handle, Code: code, Log: d.log}
		if err := server.Serve(ctx, d.w.Listener); err != nil && ctx.Err() == nil {
			cancel(fmt.Errorf("control socket: %w", err))
		}
	})
	d.serveContainerds(ctx, &all, cancel)
	if c := d.c.Metrics; c.Address != "" {
		all.Go(func() { telemetry.ServeMetrics(ctx, c.Address, d.metrics, d.log) })
	}
	if d.tracer != nil {
		all.Go(func() { d.stopTracing(ctx) })
	}
	d.begun()
	if err := d.w.Ready(ctx); err != nil && !errors.Is(err, supervisor.ErrNoSupervisor) && ctx.Err() == nil {
		cancel(err)
	}
	d.log.Info("serving", "root", d.c.Root, "run", d.c.Run, "images", d.images.Count())
	all.Wait()
	if err := context.Cause(ctx); !errors.Is(err, supervisor.ErrStopped) && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (d *daemon) close() error {
	var errs []error
	errs = append(errs, d.closeContainerds())
	if d.containers != nil {
		d.containers.Close()
	}
	if d.cni != nil {
		errs = append(errs, d.cni.Close())
	}
	if d.network != nil {
		errs = append(errs, d.network.Close())
	}
	if d.images != nil {
		errs = append(errs, d.images.Close())
	}
	if d.files != nil {
		d.files.Close()
	}
	if d.fetcher != nil {
		d.fetcher.Close()
	}
	if d.providers != nil {
		errs = append(errs, d.providers.Close())
	}
	if d.nodes != nil {
		errs = append(errs, d.nodes.Close())
	}
	if d.store != nil {
		errs = append(errs, d.store.Close())
	}
	return errors.Join(errs...)
}

// SpawnMonitor starts the monitor of the container in dir, by the supervisor,
// and returns when it answers.
func (d *daemon) SpawnMonitor(ctx context.Context, dir string, join []monitor.Namespace) error {
	r, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	argv, files := []string{d.runner, "monitor", "--ready-fd", "3"}, []*os.File{ready}
	for _, j := range join {
		argv = append(argv, "--join", fmt.Sprintf("%s=%d", j.Kind, 3+len(files)))
		files = append(files, j.File)
	}
	_, err = d.w.Spawn(ctx, supervisor.Process{
		Argv: append(argv, dir),
		Env:  monitorEnv(),
		Log:  filepath.Join(dir, containers.MonitorLog),
		File: files, Sealed: true,
	})
	ready.Close()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	r.Read(make([]byte, 1)) // EOF: it is ready, or it is dead
	return ctx.Err()
}

// monitorEnv is a monitor's environment. With GOMAXPROCS, Go's runtime makes nothing for the
// processors that a monitor will not use, and does not look whether its cgroup has fewer. With
// GOGC=50 the heap is collected for the first time at 2 MiB, which starting a container does
// not come to, nor then waiting: a collection leaves half a MiB of its own behind.
func monitorEnv() []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=2", "GOGC=50",
		"GODEBUG=" + cmp.Or(os.Getenv("GODEBUG"), "madvdontneed=1,containermaxprocs=0"),
	}
}

// SpawnSlot starts a monitor that has no container yet. It ends when this process does.
func (d *daemon) SpawnSlot(ctx context.Context, place string, like *monitor.Config) (*monitor.Slot, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "slot"), os.NewFile(uintptr(fds[1]), "slot")
	defer ours.Close()
	defer theirs.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	conn := control.NewConn(c.(*net.UnixConn)) // as it was made
	pid, err := d.w.Spawn(ctx, supervisor.Process{
		Argv: []string{d.runner, "monitor", "--slot-fd", "3", place}, Env: monitorEnv(), File: []*os.File{theirs}, Sealed: true,
	})
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return monitor.NewSlot(conn, pid, like), nil
}

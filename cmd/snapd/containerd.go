package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/cri"
	"github.com/snapfs/snapfs/internal/rpc"
	"github.com/snapfs/snapfs/internal/supervisor"
	"github.com/snapfs/snapfs/internal/telemetry"
	"github.com/snapfs/snapfs/snapshotter"
	"github.com/snapfs/snapfs/snapshotter/blobs"
	"github.com/snapfs/snapfs/snapshotter/entries"
)

// ContainerdConfig is a containerd that is served: a socket with the APIs of its
// proxy plugins. Without a table [[containerd]] there is one with the defaults, and
// with containerd = [] none.
type ContainerdConfig struct {
	// Name divides what several containerds know: each has its own snapshots, and
	// all share the layers. It is part of paths in Root, so it cannot change later.
	// Default "default".
	Name string `toml:"name"`
	// Socket is where this containerd finds us: the address of its proxy plugins.
	// Directories above it are made; it is for root alone. Default
	// RUN/containerd.sock, for a Name of yours RUN/containerd-NAME.sock.
	Socket string `toml:"socket"`
	// Address is containerd's own socket. Default /run/containerd/containerd.sock.
	Address string `toml:"address"`
	// CRI serves the kubelet's image service at Socket, too, by asking Address, so
	// that the pull secrets of pods, which come this way and no other, are known
	// when an image is pulled. Default false: the kubelet has to be told
	// (--image-service-endpoint).
	CRI bool `toml:"cri"`
	// Content is the directory of the content store that containerd has if its
	// configuration says so (snapctl containerd config --content). Default
	// ROOT/content/NAME. With containerd's own,
	// /var/lib/containerd/io.containerd.content.v1.content, what is there stays in
	// use, and can go back; the format is the same.
	Content string `toml:"content"`
}

// containerds are the entries of the configuration with their defaults.
func (c *Config) containerds() []ContainerdConfig {
	all := c.Containerd
	if all == nil {
		all = []ContainerdConfig{{}}
	}
	var filled []ContainerdConfig
	for _, e := range all {
		e.Name = cmp.Or(e.Name, defaultName)
		file := "containerd.sock"
		if e.Name != defaultName {
			file = "containerd-" + e.Name + ".sock"
		}
		e.Socket = cmp.Or(e.Socket, filepath.Join(c.Run, file))
		e.Address = cmp.Or(e.Address, "/run/containerd/containerd.sock")
		filled = append(filled, e)
	}
	return filled
}

const defaultName = "default"

// ownSockets are names in RUN that are taken.
var ownSockets = []string{"snapd.sock", "supervisor.sock", "worker.sock", "keeper.sock"}

var containerdName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,31}$`)

func (c *Config) validateContainerds() error {
	all := c.containerds()
	if len(all) > supervisor.MaxSockets {
		return fmt.Errorf("containerd: %d tables, at most %d can be served", len(all), supervisor.MaxSockets)
	}
	names, sockets := map[string]bool{}, map[string]bool{supervisor.Socket(c.Run): true}
	for _, e := range all {
		switch {
		case !containerdName.MatchString(e.Name):
			return fmt.Errorf("containerd.name = %q: want at most 32 of a-z, 0-9, '_', '.' and '-', a letter or digit first", e.Name)
		case names[e.Name]:
			return fmt.Errorf("containerd.name = %q: two tables have it", e.Name)
		}
		names[e.Name] = true
		for key, p := range map[string]string{"socket": e.Socket, "address": e.Address} {
			if !filepath.IsAbs(p) || filepath.Clean(p) != p || len(p) > maxSocketPath {
				return fmt.Errorf("containerd.%s = %q: want a clean absolute path of at most %d bytes", key, p, maxSocketPath)
			}
		}
		switch dir, file := filepath.Split(e.Socket); {
		case sockets[e.Socket]:
			return fmt.Errorf("containerd.socket = %q: it is another socket of snapd's already", e.Socket)
		case e.Socket == e.Address:
			return fmt.Errorf("containerd.socket = %q: that is containerd's own", e.Socket)
		case filepath.Clean(dir) == filepath.Clean(c.Run) && (filepath.Ext(file) != ".sock" || slices.Contains(ownSockets, file)):
			return fmt.Errorf("containerd.socket = %q: in %s it has to end in .sock, and not to be one of snapd's", e.Socket, c.Run)
		case strings.HasPrefix(e.Socket, filepath.Clean(c.Root)+"/"):
			return fmt.Errorf("containerd.socket = %q: a socket does not belong into root", e.Socket)
		}
		sockets[e.Socket] = true
	}
	return c.validateContent()
}

// sockets are the paths that the supervisor holds.
func (c *Config) sockets() (paths []string) {
	for _, e := range c.containerds() {
		paths = append(paths, e.Socket)
	}
	return paths
}

// A containerd is one that is served. What could not be opened is nil.
type containerd struct {
	ContainerdConfig
	d         *daemon
	log       *slog.Logger
	server    *rpc.Server
	cri       *cri.Proxy // nil: it is not asked for
	listener  supervisor.Listener
	snapshots *snapshotter.Snapshotter
	content   *blobs.Store
	entries   *entries.Entries
	failed    error // why there are no snapshots, or no content
}

// rpcGrace is how long calls may take when the worker has to end. Reads of
// containers wait for the next one, so it is long enough for what is local, and
// what waits for a registry is asked again.
const rpcGrace = 500 * time.Millisecond

// openContainerds builds what each containerd is served with.
func (d *daemon) openContainerds() error {
	defer close(d.containerdsOpen)
	for _, e := range d.c.containerds() {
		i := slices.IndexFunc(d.w.Sockets, func(l supervisor.Listener) bool { return l.Path == e.Socket })
		if i < 0 { // the configuration was changed under a running daemon, and this worker replaces one that died
			d.log.Error("containerd is not served before snapd is restarted", "containerd", e.Name, "socket", e.Socket)
			continue
		}
		c := &containerd{ContainerdConfig: e, d: d, listener: d.w.Sockets[i], log: d.log.With("containerd", e.Name)}
		if err := c.openServer(); err != nil {
			return err
		}
		d.containerds = append(d.containerds, c)
		if err := c.open(); err != nil {
			// The others, and the containers that run, are none the worse for it.
			c.log.Error("containerd is not served", "socket", c.Socket, "err", err)
			c.failed = fmt.Errorf("snapd: containerd %s: %w", c.Name, err)
			c.server.Without(c.failed)
		}
	}
	return nil
}

// openServer makes the server, with the kubelet's image service if that is wanted:
// it depends on nothing that we keep.
func (c *containerd) openServer() (err error) {
	o := rpc.Options{Grace: rpcGrace, Log: c.log}
	if c.CRI {
		c.cri, err = cri.New(cri.Options{Address: c.Address, Pulls: c.d.pulls, Log: c.log})
		if err != nil {
			return fmt.Errorf("image service of containerd %s: %w", c.Name, err)
		}
		o.Unknown = map[string]grpc.StreamHandler{cri.Service: c.cri.Forward}
	}
	c.server = rpc.New(o)
	if c.cri != nil {
		c.cri.Register(c.server)
	}
	return nil
}

// snapshotsDir is the directory of ROOT that has one for the snapshots of each containerd.
const snapshotsDir = "snapshots"

// open opens what is kept for this containerd, and serves it.
func (c *containerd) open() (err error) {
	run := "c" // short: it is in every lower directory of a deep stack
	if c.Name != defaultName {
		run += "-" + c.Name
	}
	if err := c.openContent(); err != nil {
		return err
	}
	c.snapshots, err = snapshotter.New(snapshotter.Options{
		Root: filepath.Join(c.d.c.Root, snapshotsDir, c.Name), Run: filepath.Join(c.d.c.Run, run),
		Layers: newBook(c), Mapper: mapper{c.d.w}, Held: c.held, Log: c.log,
	})
	if err != nil {
		return err
	}
	snapshotter.Register(c.server, c.snapshots)
	return nil
}

func (d *daemon) closeContainerds() (err error) {
	d.shifts.sweeping.Wait() // d.base has ended, or will not be waited for
	for _, c := range d.containerds {
		if c.cri != nil {
			err = errors.Join(err, c.cri.Close())
		}
		if c.snapshots != nil {
			err = errors.Join(err, c.unmarkUsed(), c.snapshots.Close())
		}
		err = errors.Join(err, c.closeContent())
	}
	return err
}

// A mapper is the supervisor, as a snapshotter wants directories to be mapped.
type mapper struct{ w *supervisor.Worker }

func (m mapper) MapDir(ctx context.Context, dir string, ids snapshotter.IDMap) (string, error) {
	parsed, err := idMap(ids)
	if err != nil {
		return "", err
	}
	mapped, err := m.w.MapDir(ctx, dir, parsed)
	return mapped, unavailable(err)
}

func (m mapper) KeepMapped(ctx context.Context, dir string, all []snapshotter.IDMap) error {
	var keep []mounts.IDMap
	for _, ids := range all {
		parsed, err := idMap(ids)
		if err != nil {
			return err
		}
		keep = append(keep, parsed)
	}
	return unavailable(m.w.KeepMapped(ctx, dir, keep))
}

// idMap reads a mapping of a snapshot. An empty list shifts nothing.
func idMap(m snapshotter.IDMap) (mounts.IDMap, error) {
	const all = "0:0:4294967295"
	parsed, err := mounts.ParseIDMap(cmp.Or(m.UID, all), cmp.Or(m.GID, all))
	if err != nil {
		return parsed, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return parsed, nil
}

// unavailable tells containerd that what fails for want of a supervisor may work later.
func unavailable(err error) error {
	if errors.Is(err, supervisor.ErrNoSupervisor) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	return err
}

// serveContainerds starts to answer. A socket that fails takes the worker with it.
func (d *daemon) serveContainerds(ctx context.Context, all *sync.WaitGroup, fail func(error)) {
	for _, c := range d.containerds {
		all.Go(func() {
			if err := c.server.Serve(ctx, c.listener); err != nil && ctx.Err() == nil {
				fail(fmt.Errorf("socket %s: %w", c.Socket, err))
			}
		})
	}
}

func (c *containerd) info() control.ContainerdInfo {
	i := control.ContainerdInfo{Name: c.Name, Socket: c.Socket, Address: c.Address, CRI: c.CRI}
	if c.failed != nil {
		i.Error = c.failed.Error()
	}
	for _, m := range c.server.Methods() {
		i.Calls += m.Took.Total()
	}
	return i
}

// eachSnapshots calls f with what each snapshotter has done.
func (d *daemon) eachSnapshots(f func(containerd string, s *snapshotter.Stats)) {
	select {
	case <-d.containerdsOpen:
	default:
		return
	}
	for _, c := range d.containerds {
		if c.snapshots != nil {
			f(c.Name, &c.snapshots.Stats)
		}
	}
}

func (d *daemon) containerdMetrics(t *telemetry.Text) {
	if len(d.containerds) == 0 {
		return
	}
	t.Family(prefix+"containerd_calls_total", telemetry.Counter, "Calls of containerd and of the kubelet, by what became of them.")
	each := func(f func(c *containerd, m *rpc.Method)) {
		for _, c := range d.containerds {
			for _, m := range c.server.Methods() {
				f(c, &m)
			}
		}
	}
	each(func(c *containerd, m *rpc.Method) {
		for _, code := range m.Codes {
			t.Sample(float64(code.N), "containerd", c.Name, "method", strings.TrimPrefix(m.Name, "/"), "code", code.Code)
		}
	})
	t.Family(prefix+"containerd_call_seconds", telemetry.Histogram, "How long these took.")
	each(func(c *containerd, m *rpc.Method) {
		t.Times(&m.Took, "containerd", c.Name, "method", strings.TrimPrefix(m.Name, "/"))
	})
	t.Family(prefix+"containerd_snapshots_total", telemetry.Counter, "Snapshots by what happened to them: prepared, viewed, committed, removed; held and left are layers, which were not unpacked and which were.")
	d.eachSnapshots(func(name string, s *snapshotter.Stats) {
		n := map[string]int64{}
		flatten(n, "", s)
		for _, what := range slices.Sorted(maps.Keys(n)) {
			t.Sample(float64(n[what]), "containerd", name, "what", strings.TrimPrefix(what, "."))
		}
	})
	t.Family(prefix+"containerd_open_calls", telemetry.Gauge, "Calls under way.")
	for _, c := range d.containerds {
		t.Sample(float64(c.server.Open()), "containerd", c.Name)
	}
}

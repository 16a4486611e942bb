package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/runtime"
)

// bundled is the Runner that assembles an overlay and starts the container
// with package runtime. It holds the overlay as a detached mount, which no
// other process sees.
type bundled struct {
	mu     sync.Mutex
	rootfs *os.File
	joins  []Namespace
}

// Join implements Runner.
func (b *bundled) Join(list []Namespace) {
	b.mu.Lock()
	defer b.mu.Unlock()
	closeNamespaces(b.joins)
	b.joins = list
}

// joined is a spec's namespaces with those that exist put in. The paths are
// those of descriptors of this process.
func (b *bundled) joined(linux *specs.Linux) *specs.Linux {
	b.mu.Lock()
	defer b.mu.Unlock()
	if linux == nil || len(b.joins) == 0 {
		return linux
	}
	changed := *linux
	changed.Namespaces = slices.Clone(linux.Namespaces)
	for _, j := range b.joins {
		kind, path := specs.LinuxNamespaceType(j.Kind), fmt.Sprintf("/proc/self/fd/%d", j.File.Fd())
		i := slices.IndexFunc(changed.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind })
		if i < 0 {
			changed.Namespaces = append(changed.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
		} else {
			changed.Namespaces[i].Path = path
		}
	}
	return &changed
}

// Prepare assembles the root file system.
func (b *bundled) Prepare(cfg *Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rootfs != nil || len(cfg.Rootfs.Lower) == 0 {
		return nil
	}
	f, err := mounts.Overlay(mounts.Rootfs{
		Lower: cfg.Rootfs.Lower, Data: cfg.Rootfs.Data,
		Upper: cfg.Rootfs.Upper, Work: cfg.Rootfs.Work,
		ReadOnly: cfg.Rootfs.ReadOnly, Volatile: cfg.Rootfs.Volatile,
	})
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	b.rootfs = f
	return nil
}

// Start starts the container on the overlay, or on the spec's own root where the configuration names no layers.
func (b *bundled) Start(ctx context.Context, cfg *Config, f Files) (Container, error) {
	if err := b.Prepare(cfg); err != nil {
		return nil, err
	}
	spec := *cfg.Spec
	process := *spec.Process
	spec.Process = &process
	spec.Linux = b.joined(spec.Linux)
	if cfg.User != "" {
		process.User.Username = cfg.User
	}
	if cfg.TTY {
		process.ConsoleSize = &specs.Box{Height: uint(cfg.Height), Width: uint(cfg.Width)}
	}
	plan, err := runtime.NewPlan(&spec, runtime.Options{
		ID: cfg.ID, CgroupParent: cfg.CgroupParent, SeccompCache: cfg.SeccompCache, Init: cfg.Init,
	})
	if err != nil {
		return nil, err
	}
	c, err := runtime.Start(ctx, plan, runtime.Files{Rootfs: b.root(), Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr})
	if err != nil {
		return nil, err
	}
	return bundle{c}, b.Release() // from now on the mount is the container's
}

func (b *bundled) root() *os.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rootfs
}

// Release lets go of the overlay and of namespaces. They stay as long as a container lives on them.
func (b *bundled) Release() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	closeNamespaces(b.joins)
	b.joins = nil
	if b.rootfs == nil {
		return nil
	}
	err := b.rootfs.Close()
	b.rootfs = nil
	return err
}

// bundle makes a runtime.Container a Container.
type bundle struct{ c *runtime.Container }

func (b bundle) Init() Process { return program{b.c.Init()} }
func (b bundle) Kill() error   { return b.c.Kill() }
func (b bundle) Pause() error  { return b.c.Pause(context.Background()) }
func (b bundle) Resume() error { return b.c.Resume(context.Background()) }
func (b bundle) Close() error  { return b.c.Close() }

func (b bundle) OOMKilled() bool {
	killed, err := b.c.OOMKilled()
	return err == nil && killed
}

func (b bundle) Exec(ctx context.Context, p *specs.Process, f Files) (Process, error) {
	x, err := b.c.Exec(ctx, p, runtime.Files{Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr})
	if err != nil {
		return nil, err
	}
	return program{x}, nil
}

// program makes a runtime.Process a Process.
type program struct{ *runtime.Process }

func (p program) Wait(ctx context.Context) (Status, error) {
	st, err := p.Process.Wait(ctx)
	if err != nil && !errors.Is(err, ctx.Err()) {
		return Status{}, fmt.Errorf("wait: %w", err)
	}
	return Status{Code: st.Code, Signal: st.Signal}, err
}

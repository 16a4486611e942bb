package runtime

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// A Container is what Start started. The process that called Start owns it and
// must call Close.
type Container struct {
	plan  *Plan
	group *cgroups.Group
	init  *Process

	first  int      // of the ops that are left after Execute
	steps  []string // their names
	hooked bool     // hooks may have run

	mu     sync.Mutex
	execs  []*Process // not known to have ended
	root   int        // the root's mount, to look up users; -1 after Close
	devpts int        // to make terminals; -1 if there is none
	closed bool
}

// keep duplicates what Exec will need.
func (c *Container) keep(s *start) (err error) {
	if c.root, err = dupHigh(s.tree.root); err != nil {
		return err
	}
	if s.devpts >= 0 {
		c.devpts, err = dupHigh(s.devpts)
	}
	return err
}

// Init is the process of the spec. With Options.Init it is the tiny init, whose status is its child's.
func (c *Container) Init() *Process { return c.init }

// Signal sends a signal to Init.
func (c *Container) Signal(sig unix.Signal) error { return c.init.Signal(sig) }

// Kill sends SIGKILL to every process of the container.
func (c *Container) Kill() error { return c.group.Kill() }

// Pause stops every process of the container until Resume.
func (c *Container) Pause(ctx context.Context) error { return c.group.Freeze(ctx, true) }

// Resume lets the processes go on.
func (c *Container) Resume(ctx context.Context) error { return c.group.Freeze(ctx, false) }

// Paused tells whether the container is paused.
func (c *Container) Paused() (bool, error) { return c.group.Frozen() }

// Stats reads what the container uses.
func (c *Container) Stats() (*cgroups.Stats, error) { return c.group.Stats() }

// Update changes limits while the container runs. A scope of systemd wants UpdateScope besides.
func (c *Container) Update(r *specs.LinuxResources) error { return c.group.Update(r) }

// OOMKilled tells whether the kernel killed a process of the container because
// its memory limit was reached. It can be asked until Close.
func (c *Container) OOMKilled() (bool, error) {
	n, err := c.group.OOMKills()
	return n > 0, err
}

// Close kills and reaps what is left of the container, removes its cgroup and
// lets go of its file systems. It may be called more than once.
func (c *Container) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var errs []error
	if c.group != nil {
		// systemd takes away a scope that is empty.
		if err := c.group.Kill(); c.plan.scope == nil || !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, p := range append(slices.Clone(c.execs), c.init) {
		if p == nil {
			continue
		}
		_ = p.Signal(unix.SIGKILL)
		if _, err := p.Wait(ctx); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, p.pidfd.Close())
	}
	for _, fd := range []int{c.root, c.devpts} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if c.group != nil {
		errs = append(errs, c.plan.removeGroup(ctx, c.group))
	}
	return errors.Join(errs...)
}

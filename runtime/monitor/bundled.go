package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	goruntime "runtime"
	"slices"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime"
	"github.com/snapfs/snapfs/runtime/users"
)

// bundled is the Runner that assembles an overlay and starts the container
// with package runtime. It holds the overlay as a detached mount, which no
// other process sees.
type bundled struct {
	mu     sync.Mutex
	rootfs *os.File
	joins  []Namespace
	groups []uint32 // of Config.GroupAdd, since Start

	like    *Config        // of a slot
	ahead   *runtime.Ahead // of a slot; nil if there is none, or it was used
	closing sync.WaitGroup // of one that did not fit
	closed  error          // of that, when closing is over
}

func (b *bundled) lookupGroups(names []string) ([]uint32, error) {
	root := b.root()
	if root == nil {
		return nil, errors.New("supplementary groups are looked up on layers only")
	}
	return users.LookupGroups(int(root.Fd()), names)
}

// shareMemory puts another container's /dev/shm in the place of the container's own.
func (b *bundled) shareMemory(list []specs.Mount) ([]specs.Mount, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.IndexFunc(b.joins, func(n Namespace) bool { return n.Kind == SharedMemory })
	if i < 0 || !slices.ContainsFunc(list, isMemory) {
		return list, nil
	}
	shm, err := openShm(b.joins[i].File)
	if err != nil {
		return nil, fmt.Errorf("/dev/shm of the other container: %w", err)
	}
	b.joins[i].File.Close()
	b.joins[i].File = shm // closed with the namespaces
	return memoryAt(list, fmt.Sprintf("/proc/self/fd/%d", shm.Fd())), nil
}

// openShm clones the /dev/shm of a mount namespace, by a thread that goes there and ends.
func openShm(ns *os.File) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with the result
		goruntime.LockOSThread() // and never back
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- result{nil, os.NewSyscallError("unshare", err)}
			return
		}
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
			done <- result{nil, os.NewSyscallError("setns", err)}
			return
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, "/dev/shm", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		if err != nil {
			done <- result{nil, os.NewSyscallError("open_tree", err)}
			return
		}
		// The other container may have mounted what it likes there; this one gets it as --ipc host does.
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			unix.Close(fd)
			done <- result{nil, os.NewSyscallError("mount_setattr", err)}
			return
		}
		done <- result{os.NewFile(uintptr(fd), "/dev/shm"), nil}
	}()
	r := <-done
	return r.f, r.err
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
	paths := map[string]string{}
	for _, j := range b.joins {
		paths[j.Kind] = fmt.Sprintf("/proc/self/fd/%d", j.File.Fd())
	}
	return joinedAt(linux, paths)
}

// complete refuses to start a container that is to be in namespaces which it was not
// given: it would be cut off from the network that it asked for, or from another container.
func (b *bundled) complete(cfg *Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	lacks := func(kind string) bool {
		return !slices.ContainsFunc(b.joins, func(n Namespace) bool { return n.Kind == kind })
	}
	switch cfg.Network.Mode {
	case control.NetworkBridge, control.NetworkPlugins, control.NetworkShared:
		if lacks(string(specs.NetworkNamespace)) {
			return fmt.Errorf("network %s: the container was not connected: start it by the daemon", cfg.Network.Mode)
		}
	}
	for kind, id := range cfg.Joins {
		if lacks(kind) {
			return fmt.Errorf("%s namespace: the container was not given that of container %s: start it by the daemon", kind, id)
		}
	}
	return nil
}

// Prepare assembles the root file system, unless the users are not there yet as whose
// the image's files are to be shown.
func (b *bundled) Prepare(cfg *Config) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.rootfs != nil || len(cfg.Rootfs.Lower) == 0 {
		return nil
	}
	var users *os.File
	if cfg.IDs != nil {
		i := slices.IndexFunc(b.joins, func(n Namespace) bool { return n.Kind == Users })
		if i < 0 {
			return nil
		}
		users = b.joins[i].File
	}
	f, err := mounts.Overlay(mounts.Rootfs{
		Lower: cfg.Rootfs.Lower, Data: cfg.Rootfs.Data,
		Upper: cfg.Rootfs.Upper, Work: cfg.Rootfs.Work,
		ReadOnly: cfg.Rootfs.ReadOnly, Volatile: cfg.Rootfs.Volatile, Users: users,
	})
	if err != nil {
		return fmt.Errorf("root file system: %w", err)
	}
	b.rootfs = f
	return nil
}

// Start starts the container on the overlay, or on the spec's own root where the configuration names no layers.
func (b *bundled) Start(ctx context.Context, cfg *Config, f Files) (_ Container, err error) {
	if err := b.complete(cfg); err != nil {
		return nil, err
	}
	if err := b.Prepare(cfg); err != nil {
		return nil, err
	}
	if cfg.IDs != nil && b.root() == nil && len(cfg.Rootfs.Lower) > 0 {
		return nil, errors.New("root file system: the container has users of its own, and was given no user namespace: start it by the daemon")
	}
	spec := *cfg.Spec
	spec.Linux = b.joined(spec.Linux)
	if len(cfg.GroupAdd) > 0 {
		if b.groups, err = b.lookupGroups(cfg.GroupAdd); err != nil {
			return nil, err
		}
	}
	if spec.Mounts, err = b.shareMemory(spec.Mounts); err != nil {
		return nil, err
	}
	plan, err := cfg.plan(&spec, b.groups)
	if err != nil {
		return nil, err
	}
	c, err := b.start(ctx, plan, runtime.Files{Rootfs: b.root(), Stdin: f.Stdin, Stdout: f.Stdout, Stderr: f.Stderr})
	if err != nil {
		return nil, err
	}
	return bundle{c, plan, b.groups}, b.letGo() // from now on the mount is the container's
}

// start starts the container in the sandbox if that fits, else anew.
func (b *bundled) start(ctx context.Context, plan *runtime.Plan, f runtime.Files) (*runtime.Container, error) {
	b.mu.Lock()
	a := b.ahead
	b.ahead = nil
	b.mu.Unlock()
	switch {
	case a == nil:
	case a.Fits(plan):
		c, err := runtime.StartAhead(ctx, a, plan, f)
		if !errors.Is(err, runtime.ErrAhead) { // it was killed, and nothing of the container's has run
			return c, err
		}
	case a.Cgroup() == plan.Cgroup():
		if err := a.Close(); err != nil {
			return nil, err
		}
	default:
		defer b.closing.Go(func() { b.closed = a.Close() }) // which takes longer than a start
	}
	return runtime.Start(ctx, plan, f)
}

func (b *bundled) root() *os.File {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rootfs
}

// letGo lets go of the overlay and of namespaces. They stay as long as a container lives on them.
func (b *bundled) letGo() error {
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

// Release implements Runner.
func (b *bundled) Release() error {
	err := b.letGo()
	b.closing.Wait()
	b.mu.Lock()
	defer b.mu.Unlock()
	err = errors.Join(err, b.closed)
	if b.ahead != nil {
		err = errors.Join(err, b.ahead.Close())
		b.ahead = nil
	}
	return err
}

// bundle makes a runtime.Container a Container.
type bundle struct {
	c      *runtime.Container
	plan   *runtime.Plan
	groups []uint32 // of Config.GroupAdd
}

// poststopTime is how long the hooks that follow a container may take, all together.
const poststopTime = 30 * time.Second

func (b bundle) Init() Process { return program{b.c.Init()} }
func (b bundle) Kill() error   { return b.c.Kill() }
func (b bundle) Pause() error  { return b.c.Pause(context.Background()) }
func (b bundle) Resume() error { return b.c.Resume(context.Background()) }

// Close removes the container, and runs the hooks that follow. A monitor calls it once.
func (b bundle) Close() error {
	err := b.c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), poststopTime)
	defer cancel()
	return errors.Join(err, b.plan.Poststop(ctx))
}

func (b bundle) OOMKilled() bool {
	killed, err := b.c.OOMKilled()
	return err == nil && killed
}

func (b bundle) Exec(ctx context.Context, p *specs.Process, f Files) (Process, error) {
	p.User.AdditionalGids = append(slices.Clone(p.User.AdditionalGids), b.groups...)
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

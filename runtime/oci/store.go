package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime"
	"github.com/snapfs/snapfs/runtime/cgroups"
)

// Limits of what is read.
const (
	maxConfig = 8 << 20 // bytes; containerd's are below 50 KiB
	maxState  = 8 << 20 // bytes; it has the annotations of the config
)

// Names in a container's directory.
const (
	stateFile  = "state.json"
	configFile = "config.json"
)

// errNotExist and errExists are worded as runc's are: the shim looks for the words.
var (
	errNotExist   = errors.New("container does not exist")
	errNotRunning = errors.New("container not running")
)

// A record is state.json.
type record struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Cgroup      string            `json:"cgroup"`
	Scope       string            `json:"scope,omitempty"` // the unit of systemd that the cgroup is of
	PrivatePID  bool              `json:"privatePID"`      // it has a pid namespace of its own
	Keyring     bool              `json:"keyring"`
	Hooked      bool              `json:"hooked,omitempty"` // its hooks have begun: what they made poststop takes away
	// Process is none until there is one: then the runtime is still creating it, or was killed meanwhile.
	Process *runtime.Record `json:"process,omitempty"`
}

// A container is one that is known below --root.
type container struct {
	record
	dir  string
	lock *os.File // nil unless it is locked
}

// makeDir makes a container's directory, and locks it.
func (c *CLI) makeDir(id string) (*container, error) {
	if err := os.MkdirAll(c.root, 0o700); err != nil {
		return nil, fmt.Errorf("--root: %w", err)
	}
	k := &container{dir: filepath.Join(c.root, id)}
	k.ID = id
	err := os.Mkdir(k.dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("container with id exists: %s", id)
	}
	if err != nil {
		return nil, fmt.Errorf("--root: %w", err)
	}
	if err := k.acquire(0); err != nil {
		return nil, errors.Join(err, os.Remove(k.dir))
	}
	return k, nil
}

// open finds a container.
func (c *CLI) open(id string) (*container, error) {
	if err := runtime.CheckID(id); err != nil {
		return nil, err
	}
	k := &container{dir: filepath.Join(c.root, id)}
	err := k.read()
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Lstat(k.dir); serr == nil {
			k.ID = id // its runtime was killed at the very beginning, or has just begun
			return k, nil
		}
		return nil, fmt.Errorf("%s: %w", id, errNotExist)
	}
	return k, err
}

func (k *container) read() error {
	b, err := readFile(filepath.Join(k.dir, stateFile), maxState)
	if err != nil {
		return err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return fmt.Errorf("%s/%s: %w", k.dir, stateFile, err)
	}
	if r.ID != filepath.Base(k.dir) {
		return fmt.Errorf("%s/%s: it is of container %q", k.dir, stateFile, r.ID)
	}
	k.record = r
	return nil
}

// openLocked finds a container and locks it, so that nobody else changes it meanwhile.
func (c *CLI) openLocked(id string, wait time.Duration) (*container, error) {
	k, err := c.open(id)
	if err != nil {
		return nil, err
	}
	if err := k.acquire(wait); err != nil {
		return nil, err
	}
	// It may have changed, or gone, while we waited.
	if err := k.read(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.release()
		return nil, err
	}
	if _, err := os.Lstat(k.dir); err != nil {
		k.release()
		return nil, fmt.Errorf("%s: %w", id, errNotExist)
	}
	return k, nil
}

// openStatus is openLocked and status.
func (c *CLI) openStatus(id string) (k *container, status specs.ContainerState, fd int, err error) {
	if k, err = c.openLocked(id, 10*time.Second); err != nil {
		return nil, "", -1, err
	}
	if status, fd, err = k.status(); err != nil {
		k.release()
		return nil, "", -1, err
	}
	return k, status, fd, nil
}

// acquire locks the directory; wait is how long another one's operation may last.
func (k *container) acquire(wait time.Duration) error {
	f, err := os.Open(k.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", filepath.Base(k.dir), errNotExist)
	}
	if err != nil {
		return err
	}
	for pause, end := time.Millisecond, time.Now().Add(wait); ; pause = min(2*pause, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			k.lock = f
			return nil
		case err == unix.EINTR:
		case err != unix.EWOULDBLOCK || time.Now().After(end):
			if err == unix.EWOULDBLOCK {
				err = errors.New("another operation is under way")
			}
			return errors.Join(fmt.Errorf("%s: %w", filepath.Base(k.dir), err), f.Close())
		default:
			time.Sleep(pause)
		}
	}
}

func (k *container) release() {
	if k.lock != nil {
		k.lock.Close()
		k.lock = nil
	}
}

// store writes state.json.
func (k *container) store() error {
	b, err := json.Marshal(k.record)
	if err != nil {
		return err
	}
	return replace(filepath.Join(k.dir, stateFile), b, 0o600)
}

// removeDir forgets a container.
func (k *container) removeDir() error {
	for _, name := range []string{stateFile, configFile} {
		_ = unix.Unlink(filepath.Join(k.dir, name))
	}
	if unix.Rmdir(k.dir) == nil { // the most of the time that is all there was
		return nil
	}
	return os.RemoveAll(k.dir)
}

// replace writes a file whole: it is the old one or the new one to everybody.
func replace(name string, b []byte, mode fs.FileMode) error {
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// readFile reads a file that is no larger than it may be.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a FIFO must not keep us
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.Mode().IsRegular() {
		b.Grow(int(min(st.Size()+bytes.MinRead, limit)))
	}
	n, err := io.Copy(&b, io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if n > limit {
		return nil, fmt.Errorf("%s: it has more than %d bytes", name, limit)
	}
	return b.Bytes(), nil
}

// plan makes the plan of a container from its spec.
func (c *CLI) plan(s *specs.Spec, id, bundle string, noKeyring, systemd bool) (*runtime.Plan, error) {
	if s.Root != nil && s.Root.Path != "" && !filepath.IsAbs(s.Root.Path) {
		root := *s.Root
		root.Path = filepath.Join(bundle, root.Path)
		s.Root = &root
	}
	return runtime.NewPlan(s, runtime.Options{ID: id, Bundle: bundle, SeccompCache: filepath.Join(c.root, ".seccomp"), NoNewKeyring: noKeyring, Systemd: systemd})
}

// spec returns the config that the container was created from, and its plan.
func (c *CLI) configOf(k *container) (*specs.Spec, *runtime.Plan, error) {
	b, err := readFile(filepath.Join(k.dir, configFile), maxConfig)
	if err != nil {
		return nil, nil, err
	}
	s, err := parseSpec(b)
	if err != nil {
		return nil, nil, fmt.Errorf("%s/%s: %w", k.dir, configFile, err)
	}
	p, err := c.plan(s, k.ID, k.Bundle, !k.Keyring, k.Scope != "")
	return s, p, err
}

// Status is one of the specification's, or paused.
const statusPaused specs.ContainerState = "paused"

// status tells how a container is, and returns a pidfd of its process (-1 if it has none).
func (k *container) status() (specs.ContainerState, int, error) {
	if k.Process == nil {
		// Whoever creates it holds the lock.
		if k.lock == nil {
			if err := k.acquire(0); err != nil {
				return specs.StateCreating, -1, nil
			}
			k.release()
		}
		return specs.StateStopped, -1, nil
	}
	fd, err := runtime.OpenPid(k.Process.Pid, k.Process.Start)
	if errors.Is(err, os.ErrProcessDone) {
		return specs.StateStopped, -1, nil
	}
	if err != nil {
		return "", -1, err
	}
	if runtime.Waiting(k.dir) {
		return specs.StateCreated, fd, nil
	}
	g, err := cgroups.Open(k.Cgroup)
	if err != nil {
		unix.Close(fd)
		return "", -1, err
	}
	frozen, err := g.Frozen()
	if k.Scope != "" && errors.Is(err, fs.ErrNotExist) {
		err = nil // it has just ended, and systemd has taken the group away
	}
	if err = errors.Join(err, g.Release()); err != nil {
		unix.Close(fd)
		return "", -1, err
	}
	if frozen {
		return statusPaused, fd, nil
	}
	return specs.StateRunning, fd, nil
}

// group returns the container's group. It is one of nothing if the container's is
// gone and a later one has its path.
func (k *container) group() (*cgroups.Group, error) {
	g, err := cgroups.Open(k.Cgroup)
	if err != nil || k.Process == nil || k.Process.Cgroup == 0 {
		return g, err
	}
	id, err := g.ID()
	if err == nil && id == k.Process.Cgroup {
		return g, nil
	}
	if k.Scope != "" && err == nil {
		// systemd takes away what is its own of the group when that is empty; the rest is ours to.
		if pids, err := g.Procs(); err == nil && len(pids) == 0 {
			return g, nil
		}
	}
	return g, errors.Join(err, g.Release())
}

// pid is that of the container's process, 0 if there is none.
func (k *container) pid() int {
	if k.Process == nil {
		return 0
	}
	return k.Process.Pid
}

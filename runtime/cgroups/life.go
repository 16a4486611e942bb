package cgroups

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Freeze stops every process of the group, or lets them go on, and waits until that is so.
func (g *Group) Freeze(ctx context.Context, on bool) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if err := g.setFrozen(on); err != nil {
			return err
		}
		now, err := g.Frozen()
		if err != nil || now == on {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), g.setFrozen(false))
		case <-time.After(wait):
		}
	}
}

func (g *Group) setFrozen(on bool) error {
	if g.unified != nil {
		value := "0"
		if on {
			value = "1"
		}
		return write(g.unified.Name(), "cgroup.freeze", value)
	}
	d, ok := g.find("freezer")
	if !ok {
		return fmt.Errorf("freezer: %w", ErrMissing)
	}
	value := "THAWED"
	if on {
		value = "FROZEN"
	}
	return write(d.path, "freezer.state", value)
}

// Frozen tells whether every process of the group is stopped.
func (g *Group) Frozen() (bool, error) {
	if g.unified != nil {
		n, err := field(g.unified.Name(), "cgroup.events", "frozen")
		return n == 1, err
	}
	d, ok := g.find("freezer")
	if !ok {
		return false, nil
	}
	s, err := read(d.path, "freezer.state")
	return s == "FROZEN", err
}

// Kill sends SIGKILL to every process of the group and of those below it.
func (g *Group) Kill() error {
	if g.unified != nil {
		err := write(g.unified.Name(), "cgroup.kill", "1")
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return g.killEach() // version 1, or version 2 before Linux 5.14
}

// Signal sends a signal to every process of the group and of those below it.
// A group that is frozen stays so, and the signal waits.
func (g *Group) Signal(sig unix.Signal) error {
	if sig == unix.SIGKILL {
		return g.Kill()
	}
	frozen, err := g.Frozen()
	if err != nil {
		return err
	}
	return g.signalEach(sig, frozen)
}

// killEach kills by number.
func (g *Group) killEach() error { return g.signalEach(unix.SIGKILL, false) }

// signalEach signals by number. While the group is frozen its processes neither
// end nor fork, so that a number stays whose it is.
func (g *Group) signalEach(sig unix.Signal, frozen bool) error {
	if len(g.dirs) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	ferr := g.Freeze(ctx, true)
	top := g.dirs[0].path
	err := filepath.WalkDir(top, func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		s, err := read(at, "cgroup.procs")
		if err != nil {
			return err
		}
		for line := range strings.FieldsSeq(s) {
			pid, err := strconv.Atoi(line)
			if err != nil || pid <= 0 {
				continue // 0: of a pid namespace we do not see
			}
			if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
				return fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		return nil
	})
	if errors.Is(ferr, ErrMissing) || frozen {
		return err
	}
	return errors.Join(err, ferr, g.setFrozen(false))
}

// Procs are the processes of the group and of those below it, as the caller's pid namespace has them.
func (g *Group) Procs() ([]int, error) {
	if len(g.dirs) == 0 {
		return nil, nil
	}
	top := g.dirs[0].path
	if g.unified != nil {
		top = g.unified.Name()
	}
	var list []int
	err := filepath.WalkDir(top, func(at string, e fs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		s, err := read(at, "cgroup.procs")
		if err != nil {
			return err
		}
		for line := range strings.FieldsSeq(s) {
			if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
				list = append(list, pid)
			}
		}
		return nil
	})
	return list, err
}

// Release lets go of the group without removing it.
func (g *Group) Release() error {
	var errs []error
	for _, f := range []*os.File{g.unified, g.device} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	g.dirs, g.unified, g.device = nil, nil, nil
	return errors.Join(errs...)
}

// Remove takes the group away. Its processes must have ended; a group whose
// last one is just being reaped is busy a moment longer.
func (g *Group) Remove(ctx context.Context) error {
	var errs []error
	for _, d := range g.dirs {
		errs = append(errs, retryRemove(ctx, d.path))
	}
	for _, f := range []*os.File{g.unified, g.device} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	g.dirs, g.unified, g.device = nil, nil, nil
	return errors.Join(errs...)
}

// RemoveEmpty removes the groups below parent whose names begin with prefix and
// in which there is nobody: what killed processes have left. busy says that others stay.
func RemoveEmpty(parent, prefix string) (busy bool, err error) {
	if err := CheckPath(parent); err != nil {
		return false, err
	}
	list, err := mounted()
	if err != nil {
		return false, err
	}
	var errs []error
	for _, h := range list {
		entries, err := os.ReadDir(filepath.Join(h.mount, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			at := filepath.Join(h.mount, parent, e.Name())
			if !e.IsDir() || !strings.HasPrefix(e.Name(), prefix) {
				continue
			}
			switch err := unix.Rmdir(at); err {
			case nil, unix.ENOENT:
			case unix.EBUSY, unix.ENOTEMPTY:
				busy = true
			default:
				errs = append(errs, &fs.PathError{Op: "rmdir", Path: at, Err: err})
			}
		}
	}
	return busy, errors.Join(errs...)
}

func retryRemove(ctx context.Context, at string) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeTree(at)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove %s: %w", at, err)
		case <-time.After(wait):
		}
	}
}

// removeTree removes a group and the groups that somebody made in it. The
// container may be who (Delegate), and have them deeper than any path reaches:
// it goes by descriptors, two at a time.
func removeTree(at string) error {
	err := unix.Rmdir(at)
	if err == unix.EBUSY || err == unix.ENOTEMPTY {
		if err := emptyTree(at); err != nil {
			return err
		}
		err = unix.Rmdir(at)
	}
	if err == nil || err == unix.ENOENT {
		return nil
	}
	return &fs.PathError{Op: "rmdir", Path: at, Err: err}
}

// emptyTree removes the groups in a group.
func emptyTree(at string) error {
	dir, err := os.Open(at)
	if err != nil {
		return err
	}
	defer func() { dir.Close() }()
	var way []string // from at to dir
	for {
		name, err := prune(dir)
		if err != nil {
			return err
		}
		to := name
		if name == "" {
			if len(way) == 0 {
				return nil
			}
			to = ".." // nobody can move a group
		}
		fd, err := unix.Openat(int(dir.Fd()), to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT && name != "" {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "open", Path: to, Err: err}
		}
		dir.Close()
		dir = os.NewFile(uintptr(fd), at)
		if name != "" {
			way = append(way, name)
			continue
		}
		last := way[len(way)-1]
		way = way[:len(way)-1]
		if err := unix.Unlinkat(fd, last, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
			return &fs.PathError{Op: "rmdir", Path: last, Err: err}
		}
	}
}

// prune removes the groups in a directory, up to one in which there is something.
func prune(dir *os.File) (busy string, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	for {
		list, err := dir.ReadDir(256)
		for _, e := range list {
			if !e.IsDir() {
				continue
			}
			switch err := unix.Unlinkat(int(dir.Fd()), e.Name(), unix.AT_REMOVEDIR); err {
			case nil, unix.ENOENT:
			case unix.EBUSY, unix.ENOTEMPTY:
				return e.Name(), nil
			default:
				return "", &fs.PathError{Op: "rmdir", Path: e.Name(), Err: err}
			}
		}
		if err == io.EOF {
			return "", nil
		}
		if err != nil {
			return "", err
		}
	}
}

func read(at, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(at, name))
	return strings.TrimSpace(string(b)), err
}

// number reads a file of one number; "max" and version 1's largest are 0.
func number(at, name string) (uint64, error) {
	s, err := read(at, name)
	if err != nil || s == "max" {
		return 0, err
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", at, name, err)
	}
	if n >= 1<<63-1<<16 {
		return 0, nil
	}
	return n, nil
}

// field reads one number of a file of "name number" lines; 0 if it is not there.
func field(at, name, key string) (uint64, error) {
	s, err := read(at, name)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(s) {
		if k, v, _ := strings.Cut(strings.TrimSpace(line), " "); k == key {
			return strconv.ParseUint(v, 10, 64)
		}
	}
	return 0, nil
}

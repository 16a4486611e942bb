package cgroups

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// delegable are the files to give away on a kernel that does not list them (before 4.15).
var delegable = []string{"cgroup.procs", "cgroup.subtree_control", "cgroup.threads"}

// Delegate gives the version 2 group to a user of the host, to make groups in
// it and limit those: the directory, and the files that the kernel lists
// (Documentation/admin-guide/cgroup-v2.rst, "Model of Delegation"). The limits
// of the group itself stay root's. Without version 2 it does nothing: in version
// 1 a group that is given away is no boundary.
func (g *Group) Delegate(uid uint32) error {
	if g.unified == nil {
		return nil
	}
	files, err := delegated("/sys/kernel/cgroup/delegate")
	if err != nil {
		return err
	}
	fd := int(g.unified.Fd())
	if err := unix.Fchown(fd, int(uid), -1); err != nil {
		return &fs.PathError{Op: "chown", Path: g.unified.Name(), Err: err}
	}
	for _, name := range files {
		err := unix.Fchownat(fd, name, int(uid), -1, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil && err != unix.ENOENT { // memory.oom.group, without that controller
			return &fs.PathError{Op: "chown", Path: filepath.Join(g.unified.Name(), name), Err: err}
		}
	}
	return nil
}

func delegated(list string) ([]string, error) {
	b, err := os.ReadFile(list)
	if errors.Is(err, fs.ErrNotExist) {
		return delegable, nil
	}
	return strings.Fields(string(b)), err
}

// Of opens the group, this or one below it, in which a process of it is, in
// version 2. Whoever manages groups inside of this one, as an init does, leaves
// this one without processes, and the kernel then takes none (EBUSY).
func (g *Group) Of(pid int) (*os.File, error) {
	if g.unified == nil {
		return nil, ErrMissing
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		at, ok := strings.CutPrefix(sc.Text(), "0::") // cgroups(7)
		if !ok {
			continue
		}
		below, ok := strings.CutPrefix(at, g.path)
		if !ok || below != "" && below[0] != '/' {
			return nil, fmt.Errorf("process %d is in the cgroup %s, not in %s: %w", pid, at, g.path, fs.ErrNotExist)
		}
		how := &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
		fd, err := unix.Openat2(int(g.unified.Fd()), "."+below, how)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(g.unified.Name(), below), Err: err}
		}
		return os.NewFile(uintptr(fd), g.unified.Name()+below), nil
	}
	return nil, errors.Join(sc.Err(), fmt.Errorf("process %d: no version 2 cgroup: %w", pid, fs.ErrNotExist))
}

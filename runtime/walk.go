package runtime

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A tree finds places in a container's file system before it exists as one:
// the root and what will be mounted on it are still detached, and a kernel
// before 6.15 mounts nothing on a detached mount. So the walk crosses the
// mounts itself, and follows symbolic links as they will read inside.
//
// It opens one name at a time with O_NOFOLLOW below a descriptor it has, and
// goes back up by forgetting descriptors, never through "..": whoever swaps
// names in a shared directory meanwhile changes where in the container the
// walk ends, not whether it ends there (CVE-2021-30465, CVE-2024-45310).
type tree struct {
	root   int
	owner  owner     // of what is made
	mounts []mounted // in the order they will be mounted
	closer *closer
}

// mounted is a mount that has its place. Those made inside have no descriptor yet.
type mounted struct {
	path   string // where it is, without symbolic links
	fd     int    // its root; -1: made inside, then at is what it will be
	at     ref
	isFile bool
}

// A place is the end of a walk.
type place struct {
	path string // without symbolic links
	fd   int    // O_PATH; -1: below a mount made inside
	base ref    // then its root,
	rest string // and the way from there
	kind uint32 // S_IFMT; 0 if the place is inside
}

var errImageLink = errors.New("the image has a symbolic link there")

// make says what a walk does about what is missing.
type missing int

const (
	mustExist missing = iota
	makeDir
	makeFile // the last name; directories before it
)

// find walks to name. The last name is followed as any other. Below /proc, /sys
// and /dev no symbolic link of the image is followed.
func (t *tree) find(name string, create missing) (place, error) {
	if first, _, _ := strings.Cut(strings.TrimPrefix(name, "/"), "/"); first == "proc" || first == "sys" || first == "dev" {
		return t.walk(name, create, 0)
	}
	return t.walk(name, create, 40) // MAXSYMLINKS of the kernel
}

type step struct {
	path string
	fd   int
}

func (t *tree) walk(name string, create missing, links int) (place, error) {
	todo := split(name)
	at := []step{{"/", t.root}}
	var opened closer
	defer opened.close()
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		if part == ".." {
			at = at[:max(1, len(at)-1)]
			continue
		}
		cur := at[len(at)-1]
		next := path.Join(cur.path, part)
		if m, ok := t.mountAt(next); ok {
			if m.fd < 0 {
				return place{path: path.Join(next, path.Join(todo...)), fd: -1, base: m.at, rest: path.Join(todo...)}, nil
			}
			at = append(at, step{next, m.fd})
			continue
		}
		how := create
		if len(todo) > 0 && create == makeFile {
			how = makeDir
		}
		fd, kind, err := t.openOrMake(cur.fd, part, how)
		if err != nil {
			return place{}, &fs.PathError{Op: "open", Path: next, Err: err}
		}
		opened.add(fd)
		if kind == unix.S_IFLNK {
			if links--; links < 0 {
				return place{}, &fs.PathError{Op: "open", Path: next, Err: errImageLink}
			}
			target, err := readlink(fd)
			if err != nil {
				return place{}, &fs.PathError{Op: "readlink", Path: next, Err: err}
			}
			if path.IsAbs(target) {
				at = at[:1]
			}
			todo = append(split(target), todo...)
			continue
		}
		at = append(at, step{next, fd})
	}
	return t.end(at[len(at)-1])
}

// end duplicates the descriptor the walk ended at.
func (t *tree) end(s step) (place, error) {
	var st unix.Stat_t
	if err := unix.Fstat(s.fd, &st); err != nil {
		return place{}, &fs.PathError{Op: "stat", Path: s.path, Err: err}
	}
	fd, err := dupHigh(s.fd)
	if err != nil {
		return place{}, err
	}
	t.closer.add(fd)
	return place{path: s.path, fd: fd, kind: st.Mode & unix.S_IFMT}, nil
}

// mountAt returns what is mounted last on a path.
func (t *tree) mountAt(p string) (mounted, bool) {
	for i := len(t.mounts) - 1; i >= 0; i-- {
		if t.mounts[i].path == p {
			return t.mounts[i], true
		}
	}
	return mounted{}, false
}

func split(name string) []string {
	var parts []string
	for p := range strings.SplitSeq(name, "/") {
		if p != "" && p != "." {
			parts = append(parts, p)
		}
	}
	return parts
}

// openOrMake opens one name, or makes it where that is wanted. It follows nothing.
func (t *tree) openOrMake(dir int, name string, create missing) (fd int, kind uint32, err error) {
	fd, err = openPath(dir, name)
	if err == unix.ENOENT && create != mustExist {
		if create == makeDir {
			err = unix.Mkdirat(dir, name, 0o755)
		} else {
			err = unix.Mknodat(dir, name, unix.S_IFREG|0o644, 0)
		}
		if err == nil && t.owner != (owner{}) {
			err = unix.Fchownat(dir, name, int(t.owner.uid), int(t.owner.gid), unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil && err != unix.EEXIST {
			return -1, 0, fmt.Errorf("make the mount point: %w", err)
		}
		fd, err = openPath(dir, name)
	}
	if err != nil {
		return -1, 0, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, 0, err
	}
	return fd, st.Mode & unix.S_IFMT, nil
}

func openPath(dir int, name string) (int, error) {
	return openAt(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
}

// openAt is openat(2), again after a signal.
func openAt(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func readlink(fd int) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return "", err
	}
	if n == 0 || n == len(b) {
		return "", unix.ENAMETOOLONG
	}
	return string(b[:n]), nil
}

// dupHigh duplicates a descriptor out of the range that a child renumbers.
func dupHigh(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowFDs) }

// lowFDs is how many descriptors a child has numbers of its own for; more, if it
// gets some of the caller's (reserve).
const lowFDs = 32 // stdio and those of joinContainer

// A closer is a list of descriptors to close.
type closer struct{ fds []int }

func (c *closer) add(fd int) { c.fds = append(c.fds, fd) }

func (c *closer) close() {
	for _, fd := range c.fds {
		unix.Close(fd)
	}
	c.fds = nil
}

package runtime

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// Names in the scratch mount: a tmpfs of ours that hidden paths are covered
// with. It stays behind with the host's file systems.
const (
	scratchNull  = "null"
	scratchEmpty = "empty"
)

func (s *start) makeScratch() error {
	if s.ahead != nil {
		return nil // it is the process's root
	}
	fd, err := makeFS("tmpfs", []string{"mode=755", "size=4k"}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return err
	}
	s.fds.add(fd)
	s.scratch = fd
	return errors.Join(
		makeNode(fd, scratchNull, device{mode: unix.S_IFCHR | 0o666, major: 1, minor: 3}),
		unix.Mkdirat(fd, scratchEmpty, 0o555),
		setAttrs(fd, unix.MOUNT_ATTR_RDONLY, 0, 0, false))
}

// attach takes the child's mounts off the host's, and puts the root on top of "/",
// which needs no directory for it, and scratch where the host has its procfs.
//
// A createContainer hook wants the host's file systems as they are, and the root where it is:
// one that was given by descriptor is put at root.path, if the spec has an absolute one.
func (s *start) attach(given bool) error {
	p := s.prog
	if s.ahead != nil { // it has let go of the host's
		p.step = "attach the root"
		p.add(unix.SYS_MOVE_MOUNT, uintptr(s.tree.root), p.str(""), fdcwd, p.str("/"), unix.MOVE_MOUNT_F_EMPTY_PATH)
		return nil
	}
	p.step = "make the mounts private"
	p.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE)
	at, scratchAt := "/", "/proc"
	if len(s.plan.hooks.container) > 0 && (!given || path.IsAbs(s.plan.rootPath)) {
		at, scratchAt = s.plan.rootPath, s.plan.rootPath
	}
	p.step = "attach scratch"
	p.add(unix.SYS_MOVE_MOUNT, uintptr(s.scratch), p.str(""), fdcwd, p.str(scratchAt), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.step = "attach the root"
	p.add(unix.SYS_MOVE_MOUNT, uintptr(s.tree.root), p.str(""), fdcwd, p.str(at), unix.MOVE_MOUNT_F_EMPTY_PATH)
	return nil
}

// placeMounts finds the place of each mount, makes the mount, and has the child put it there.
func (s *start) placeMounts(g *cgroups.Group) error {
	for i := range s.plan.mounts {
		m := &s.plan.mounts[i]
		s.prog.step = m.String()
		if err := s.placeMount(m, g); err != nil {
			return &StepError{m.String(), err}
		}
	}
	return nil
}

func (s *start) placeMount(m *mount, g *cgroups.Group) error {
	done := mounted{fd: -1}
	var source uintptr
	switch {
	case m.madeInside():
		done.at = s.ahead.find(m)
		if done.at == 0 {
			done.at = s.prog.makeFS(m, s.plan.labelled(m))
		}
		source = done.at
		if m.kind == "proc" {
			s.procfs = done.at
		}
	case m.kind == "cgroup":
		return s.placeCgroup(m, g)
	default:
		fd, err := s.plan.detach(m)
		if err != nil {
			return err
		}
		s.fds.add(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		done.fd, done.isFile, source = fd, st.Mode&unix.S_IFMT != unix.S_IFDIR, uintptr(fd)
	}
	create := makeDir
	if done.isFile {
		create = makeFile
	}
	at, err := s.tree.find(m.dest, create)
	if err != nil {
		return err
	}
	if at.fd >= 0 && (at.kind == unix.S_IFDIR) == done.isFile {
		return unix.ENOTDIR
	}
	if m.copies {
		if err := errors.Join(s.copyUp(m, at, done.fd), setAttrs(done.fd, m.set&unix.MOUNT_ATTR_RDONLY, 0, 0, false)); err != nil {
			return err
		}
	}
	s.prog.moveMount(source, s.target(at))
	done.path = at.path
	s.tree.mounts = append(s.tree.mounts, done)
	if m.kind == "devpts" && at.path == "/dev/pts" {
		s.devpts = done.fd
	}
	return nil
}

// target is the descriptor of a place, in the child.
func (s *start) target(at place) uintptr {
	switch {
	case at.fd >= 0:
		return uintptr(at.fd)
	case at.rest == "":
		return at.base
	}
	return s.prog.open(at.base, at.rest, unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
}

// placeCgroup shows the container its own cgroups: a tmpfs with one directory
// per hierarchy, or with version 2 alone that hierarchy itself.
func (s *start) placeCgroup(m *mount, g *cgroups.Group) error {
	at, err := s.tree.find(m.dest, makeDir)
	if err != nil {
		return err
	}
	target := s.target(at)
	dirs := g.Dirs()
	top := -1
	if len(dirs) == 1 && dirs[0].Name == "" {
		top, err = s.cloneDir(dirs[0].Path, m.set)
		dirs = nil
	} else {
		top, err = makeFS("tmpfs", []string{"mode=755"}, m.set&^unix.MOUNT_ATTR_RDONLY)
		s.fds.add(top)
	}
	if err != nil {
		return err
	}
	s.prog.moveMount(uintptr(top), target)
	for _, d := range dirs {
		if err := unix.Mkdirat(top, d.Name, 0o755); err != nil {
			return fmt.Errorf("mkdir %s: %w", d.Name, err)
		}
		sub, err := openPath(top, d.Name)
		if err != nil {
			return err
		}
		s.fds.add(sub)
		fd, err := s.cloneDir(d.Path, m.set)
		if err != nil {
			return err
		}
		s.prog.moveMount(uintptr(fd), uintptr(sub))
	}
	s.tree.mounts = append(s.tree.mounts, mounted{path: at.path, fd: top})
	return setAttrs(top, m.set, 0, 0, false)
}

// cloneDir makes a detached mount of a directory of the host.
func (s *start) cloneDir(dir string, attrs uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", dir, err)
	}
	s.fds.add(fd)
	return fd, errors.Join(setAttrs(fd, 0, 0, unix.MS_PRIVATE, false), setAttrs(fd, attrs, 0, 0, false))
}

// Package mounts is all that snapfs asks of the kernel's mount table: it finds
// out by trying what this kernel can do ([Probe]), mounts the FUSE file system of
// missing objects and the metadata images, and assembles a container's root file
// system as a detached overlay mount ([Overlay]), which the container's monitor
// attaches where it wants it.
//
//	lowerdir  = RUN/images/<id>          EROFS: names and metadata
//	datadir   = objects, fresh, RUN/lazy bytes, looked up in this order
//	upperdir  = the container's writes
//
// It imports nothing but the system calls, because every monitor links it.
//
// Invariant: no path is ever written into an option string. Layers are passed as
// descriptors, so names with ':' or ',' and of any length work, and nobody can
// exchange a directory between the check and the mount.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A setting is one parameter of a file system: a flag, a string or a descriptor.
type setting struct {
	key, value string
	file       *os.File // if set, the value
	flag       bool
}

// detached makes a mount of a new file system that is attached nowhere. It is
// gone when the file is closed, unless it was attached before.
func detached(fstype string, attrs int, settings ...setting) (_ *os.File, err error) {
	fd, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", fstype, err)
	}
	defer unix.Close(fd)
	for _, s := range settings {
		if err := s.apply(fd); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", fstype, s.key, explain(fd, err))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("%s: %w", fstype, explain(fd, err))
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, fmt.Errorf("%s: fsmount: %w", fstype, explain(fd, err))
	}
	return os.NewFile(uintptr(m), fstype), nil
}

func (s setting) apply(fd int) error {
	switch {
	case s.file != nil:
		defer runtime.KeepAlive(s.file)
		return unix.FsconfigSetFd(fd, s.key, int(s.file.Fd()))
	case s.flag:
		return unix.FsconfigSetFlag(fd, s.key)
	}
	return unix.FsconfigSetString(fd, s.key, s.value)
}

// explain adds what the kernel wrote about the failure (fsopen(2): a read of the
// context returns one message, "e overlay: …").
func explain(fd int, err error) error {
	buf := make([]byte, 4096)
	var messages []string
	for range 16 {
		n, rerr := unix.Read(fd, buf)
		if rerr != nil || n < 2 {
			break
		}
		messages = append(messages, strings.TrimSpace(string(buf[2:n])))
	}
	if len(messages) == 0 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.Join(messages, "; "))
}

// openDir opens a directory as a place only: nothing is asked of its file system.
func openDir(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// Attach puts the detached mount f at target, a directory. The last element of
// target may not be a symbolic link.
func Attach(f *os.File, target string) error {
	t, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "mount", Path: target, Err: err}
	}
	defer unix.Close(t)
	defer runtime.KeepAlive(f)
	if err := unix.MoveMount(int(f.Fd()), "", t, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount", Path: target, Err: err}
	}
	return nil
}

// Unmount ends the mount at dir. With detach it takes effect at once for names,
// and whoever still uses the file system keeps it; without, it fails with EBUSY
// then. It is no error if nothing is mounted there.
func Unmount(dir string, detach bool) error {
	flags := unix.UMOUNT_NOFOLLOW
	if detach {
		flags |= unix.MNT_DETACH
	}
	err := unix.Unmount(dir, flags)
	switch {
	case err == nil, errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return nil // EINVAL: not a mount point
	}
	return &os.PathError{Op: "unmount", Path: dir, Err: err}
}

// Clear detaches everything that is mounted at dir, living or dead.
func Clear(dir string) error {
	for range 64 {
		mounted, err := IsMounted(dir)
		if err != nil || !mounted {
			return err
		}
		if err := Unmount(dir, true); err != nil {
			return err
		}
	}
	return fmt.Errorf("unmount %s: %w", dir, unix.EBUSY)
}

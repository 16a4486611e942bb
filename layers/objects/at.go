package objects

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// openAt opens name below the directory dir. Nothing on the way may be a
// symbolic link or lead out of dir: only we write below the root, so a link
// there is an attack or an accident.
func openAt(dir int, name string, flags int, mode uint32) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0 {
		how.Mode = uint64(mode)
	}
	for {
		fd, err := unix.Openat2(dir, name, &how)
		// EAGAIN: a rename elsewhere raced with the walk (openat2(2), RESOLVE_BENEATH).
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// tempFile returns a new file without a name: a process that dies leaves
// nothing behind, and no other process can sweep it away.
func (s *Store) tempFile() (int, error) {
	return openAt(s.root, "tmp", unix.O_TMPFILE|unix.O_RDWR, 0o600)
}

// TempFile returns a new file on the store's disk that has no name: closing it
// frees it.
func (s *Store) TempFile() (*os.File, error) {
	fd, err := s.tempFile()
	if err != nil {
		return nil, fmt.Errorf("create file without a name: %w", err)
	}
	return os.NewFile(uintptr(fd), "tmp"), nil
}

// link gives the nameless file fd a name. An existing name stays as it is and
// gives an error that is fs.ErrExist.
func (s *Store) link(fd int, name string) error {
	err := unix.Linkat(fd, "", s.root, name, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		// Without CAP_DAC_READ_SEARCH the other way of open(2), O_TMPFILE.
		err = unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(fd), s.root, name, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return &os.LinkError{Op: "link", Old: "tmp", New: name, Err: err}
	}
	return nil
}

// rename moves a file within the root. It never replaces one: then the error is fs.ErrExist.
func (s *Store) rename(from, to string) error {
	if err := unix.Renameat2(s.root, from, s.root, to, unix.RENAME_NOREPLACE); err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

func (s *Store) unlink(name string) error {
	if err := unix.Unlinkat(s.root, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return nil
}

// stat returns what name is, without following links.
func (s *Store) stat(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	for {
		err := unix.Fstatat(s.root, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			err = &os.PathError{Op: "stat", Path: name, Err: err}
		}
		return st, err
	}
}

func (s *Store) mkdir(name string) error {
	if err := unix.Mkdirat(s.root, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// list returns the names in a directory below the root; none if it does not exist.
func (s *Store) list(name string) ([]string, error) {
	fd, err := openAt(s.root, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	names, err := f.Readdirnames(-1)
	return names, errors.Join(err, f.Close())
}

// pread fills p from off like [io.ReaderAt].
func pread(fd int, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		m, err := unix.Pread(fd, p[n:], off+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, os.NewSyscallError("pread", err)
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// pwrite writes all of p at off.
func pwrite(fd int, p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(fd, p, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return os.NewSyscallError("pwrite", err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// block is the unit in which zeros are left out: the smallest hole of the file
// systems that matter.
const block = 4096

var zeroBlock [block]byte

// isZero says whether p holds only zeros.
func isZero(p []byte) bool {
	for len(p) > block {
		if !bytes.Equal(p[:block], zeroBlock[:]) {
			return false
		}
		p = p[block:]
	}
	return bytes.Equal(p, zeroBlock[:len(p)])
}

// isName says whether name can be one element of a path of ours.
func isName(name string) bool {
	return name != "" && len(name) <= 128 && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' && r != '_'
	})
}

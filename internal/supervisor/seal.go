package supervisor

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// A sealed is a program's file on a mount of its own, which is read-only and
// nowhere. What is executed from there shows that file by /proc/PID/exe, as
// which nobody can write to it, not even when the last process that runs it has
// ended and ETXTBSY does (CVE-2019-5736). A monitor is seen in its container
// for the moment between a clone and an execve, and when the program is a link to
// /proc/self/exe or a script for it, for longer.
//
// The mount is made once and held, so that it costs a start a stat.
type sealed struct {
	mu   sync.Mutex
	path string // of the program that file is
	file *os.File
	id   fileID // of the program
}

// fileID is the same as long as a name stands for the same file.
type fileID struct{ dev, ino uint64 }

func (s *sealed) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	closeAll(s.file)
	s.file, s.path = nil, ""
}

// with calls use with the sealed file of the program at path, as it is installed now.
func (s *sealed) with(path string, use func(*os.File) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	id := fileID{st.Dev, st.Ino}
	if s.file == nil || s.path != path || s.id != id {
		f, err := seal(path)
		if err != nil {
			return err
		}
		closeAll(s.file)
		s.path, s.file, s.id = path, f, id
	}
	return use(s.file)
}

func seal(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("a read-only mount of %s: open_tree: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("a read-only mount of %s: mount_setattr: %w", path, err)
	}
	return os.NewFile(uintptr(fd), filepath.Base(path)), nil
}

// above duplicates f to a descriptor that a child which is being given files can
// still open by its number when it executes: os.StartProcess moves files about
// up to the greatest of their numbers and how many there are.
func above(f *os.File, files []*os.File) (_ *os.File, path string, err error) {
	least := len(files)
	for _, o := range files {
		least = max(least, int(o.Fd()))
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, least+len(files)+2) // and the pipe that tells an error
	if err != nil {
		return nil, "", os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), "/proc/self/fd/" + strconv.Itoa(fd), nil
}

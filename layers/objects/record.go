package objects

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The record says in which boot the store was last in use, and whether it was
// closed with everything on disk. It is the file "boot" below the root:
//
//	snapfs objects 1
//	<boot ID, /proc/sys/kernel/random/boot_id>
//	open | clean
//
// "open" is on disk before the first object is written in a boot, so a record
// of an earlier boot that does not say "clean" means that fresh objects may be
// torn. A lost or unreadable record means the same.
const (
	recordName  = "boot"
	recordMagic = "snapfs objects 1"
	stateOpen   = "open"
	stateClean  = "clean"
)

// bootID names the current boot of the kernel.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

// trusted says whether what the record rec says makes fresh objects
// believable in the boot id.
func trusted(rec []byte, id string) bool {
	f := strings.Split(string(bytes.TrimSpace(rec)), "\n")
	return len(f) == 3 && f[0] == recordMagic && (f[1] == id || f[2] == stateClean)
}

func (s *Store) readRecord() ([]byte, error) {
	fd, err := openAt(s.root, recordName, unix.O_RDONLY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 256)
	n, err := unix.Pread(fd, b, 0)
	return b[:max(n, 0)], err
}

// writeRecord replaces the record and returns when that is on disk.
func (s *Store) writeRecord(state string) (err error) {
	const temp = "tmp/" + recordName
	fd, err := openAt(s.root, temp, unix.O_CREAT|unix.O_TRUNC|unix.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := pwrite(fd, fmt.Appendf(nil, "%s\n%s\n%s\n", recordMagic, s.boot, state), 0); err != nil {
		return err
	}
	if err := unix.Fsync(fd); err != nil {
		return os.NewSyscallError("fsync", err)
	}
	if err := unix.Renameat(s.root, temp, s.root, recordName); err != nil {
		return os.NewSyscallError("rename", err)
	}
	return s.syncRoot()
}

// syncRoot writes the root directory to disk.
func (s *Store) syncRoot() error {
	fd, err := openAt(s.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return errors.Join(os.NewSyscallError("fsync", unix.Fsync(fd)), unix.Close(fd))
}

// exclusive runs f while no other goroutine or process runs one, on this store.
func (s *Store) exclusive(f func() error) error {
	s.excl.Lock()
	defer s.excl.Unlock()
	if err := flock(s.lock, unix.LOCK_EX); err != nil {
		return err
	}
	return errors.Join(f(), flock(s.lock, unix.LOCK_UN))
}

func flock(fd, how int) error {
	for {
		err := unix.Flock(fd, how)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("flock", err)
		}
	}
}

package supervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A service is what this process is to the service manager that started it:
// sd_notify(3), sd_listen_fds(3), file-descriptor-store.md of systemd 258. The
// zero service is nobody's.
//
// The manager's store has duplicates of the /dev/fuse descriptor and of a file
// with the INIT request, under these names. It gives them to the next supervisor,
// also when worker and keeper died with the one before, as they do when the
// manager ends all processes of the unit.
type service struct {
	socket   string // NOTIFY_SOCKET
	watchdog time.Duration
	given    map[string]*os.File // from the store, by name
	sockets  map[string]*os.File // of its socket units, by path
}

const (
	storedFuse = "snapfs-fuse"
	storedInit = "snapfs-init"
)

// serviceVariables are the manager's for this process alone.
var serviceVariables = []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "FDSTORE"}

// firstFD is the first descriptor that a manager passes (SD_LISTEN_FDS_START).
const firstFD = 3

// newService reads the environment and takes the descriptors it names; what is
// not ours among them is closed. pid is our own.
func newService(getenv func(string) string, pid int) service {
	s := service{socket: getenv("NOTIFY_SOCKET"), given: map[string]*os.File{}, sockets: map[string]*os.File{}}
	own := func(name string) bool { return getenv(name) == strconv.Itoa(pid) }
	usec, err := strconv.ParseUint(getenv("WATCHDOG_USEC"), 10, 63)
	if err == nil && (getenv("WATCHDOG_PID") == "" || own("WATCHDOG_PID")) {
		s.watchdog = time.Duration(min(usec, uint64(time.Hour/time.Microsecond))) * time.Microsecond
	}
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	if err != nil || n < 1 || n > maxGiven || !own("LISTEN_PID") {
		return s
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	for i := range n {
		fd := firstFD + i
		unix.CloseOnExec(fd)
		f := os.NewFile(uintptr(fd), "descriptor "+strconv.Itoa(fd))
		if i < len(names) && (names[i] == storedFuse || names[i] == storedInit) && s.given[names[i]] == nil {
			s.given[names[i]] = f
		} else if path, ok := listenerPath(fd); ok && s.sockets[path] == nil {
			s.sockets[path] = f
		} else {
			f.Close()
		}
	}
	return s
}

// maxGiven bounds how many descriptors are looked at; a unit passes a handful.
const maxGiven = 1024

// take returns a mount from the store; nil if there is none. What is not
// returned is closed.
func (s *service) take() (fuse *os.File, init []byte) {
	fuse = s.given[storedFuse]
	if f := s.given[storedInit]; f != nil {
		init, _ = io.ReadAll(io.NewSectionReader(f, 0, maxInit))
	}
	if fuse != nil && len(init) > 0 {
		delete(s.given, storedFuse)
		return fuse, init
	}
	return nil, nil
}

// discard closes a mount that was given and is not needed, as we have it from elsewhere.
func (s *service) discard() {
	if f := s.given[storedFuse]; f != nil {
		f.Close()
		delete(s.given, storedFuse)
	}
}

// maxInit is more than an INIT request has: a header and 64 bytes (fuse_init_in).
const maxInit = 4096

// keep puts the mount into the store. fresh says that it is another one than
// before, which is taken out. What is there already stays there once.
func (s *service) keep(fuse *os.File, init []byte, fresh bool) error {
	if s.socket == "" {
		return nil
	}
	file := s.given[storedInit]
	if file != nil {
		if b, err := io.ReadAll(io.NewSectionReader(file, 0, maxInit)); err != nil || string(b) != string(init) {
			file.Close()
			file, fresh = nil, true
		}
	}
	if file == nil {
		var err error
		if file, err = memory(storedInit, init); err != nil {
			return err
		}
		s.given[storedInit] = file
	}
	var err error
	if fresh {
		err = errors.Join(s.notify("FDSTOREREMOVE=1\nFDNAME="+storedFuse), s.notify("FDSTOREREMOVE=1\nFDNAME="+storedInit))
	}
	return errors.Join(err, s.notify("FDSTORE=1\nFDNAME="+storedFuse, fuse), s.notify("FDSTORE=1\nFDNAME="+storedInit, file))
}

// forget empties the store.
func (s *service) forget() error {
	return errors.Join(s.notify("FDSTOREREMOVE=1\nFDNAME="+storedFuse), s.notify("FDSTOREREMOVE=1\nFDNAME="+storedInit))
}

func (s *service) close() {
	for _, files := range []map[string]*os.File{s.given, s.sockets} {
		for _, f := range files {
			f.Close()
		}
	}
}

// memory returns a file of b that exists in memory only and cannot be changed.
func memory(name string, b []byte) (_ *os.File, err error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_NOEXEC_SEAL)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err = f.Write(b); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", name, err), f.Close())
	}
	return f, nil
}

// notify tells the manager something. Without one it does nothing. (Package net
// passes no descriptors with the datagrams of a connected socket.)
func (s *service) notify(state string, files ...*os.File) error {
	if s.socket == "" {
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: notifyTimeout}); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	to := &unix.SockaddrUnix{Name: s.socket} // which knows what a leading @ means
	for {
		err := unix.Sendmsg(fd, []byte(state), rights, to, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return os.NewSyscallError("sendmsg "+s.socket, err)
		}
	}
}

// notifyTimeout is how long a manager that does not listen may hold us up, seconds.
const notifyTimeout = 5

// alarm ticks when the manager wants to hear that we are alive: at half of its
// patience, as sd_watchdog_enabled(3) recommends. nil, if it does not.
func (s *service) alarm() *time.Ticker {
	if s.watchdog < 2*time.Microsecond || s.socket == "" {
		return nil
	}
	return time.NewTicker(s.watchdog / 2)
}

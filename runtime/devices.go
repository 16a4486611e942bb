package runtime

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// makeNode makes a device in a directory, or finds it there already. The mode
// is set apart from the making: the umask belongs to the whole process.
func makeNode(dir int, name string, d device) error {
	err := unix.Mknodat(dir, name, d.mode, int(unix.Mkdev(d.major, d.minor)))
	if err == unix.EEXIST {
		return checkNode(dir, name, d)
	}
	if err != nil {
		return fmt.Errorf("mknod: %w", err)
	}
	if err := unix.Fchmodat(dir, name, d.mode&0o7777, 0); err != nil {
		return fmt.Errorf("chmod: %w", err)
	}
	if d.uid|d.gid == 0 {
		return nil
	}
	return unix.Fchownat(dir, name, int(d.uid), int(d.gid), unix.AT_SYMLINK_NOFOLLOW)
}

func checkNode(dir int, name string, d device) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != d.mode&unix.S_IFMT || d.mode&unix.S_IFMT != unix.S_IFIFO && st.Rdev != unix.Mkdev(d.major, d.minor) {
		return errors.New("the image has something else there")
	}
	return nil
}

// makeDevices fills /dev and makes the devices outside of it. Where the caller
// mounted a directory of the host on /dev, that directory is left as it is.
func (s *start) makeDevices() error {
	dev, err := s.tree.find("/dev", makeDir)
	if err != nil {
		return &StepError{"devices in /dev", err}
	}
	hostDev := s.plan.bound("/dev")
	for _, d := range s.plan.devices {
		if hostDev && strings.HasPrefix(d.path, "/dev/") {
			continue
		}
		d, err := d.mapped(s.plan.ids)
		if err != nil {
			return &StepError{"device " + d.path, err}
		}
		if err := s.makeDevice(dev, d); err != nil {
			return &StepError{"device " + d.path, err}
		}
	}
	if hostDev {
		return nil
	}
	for _, l := range devLinks {
		if l[1] == "ptmx" && s.devpts < 0 {
			continue
		}
		err := unix.Symlinkat(l[0], dev.fd, l[1])
		if o := s.tree.owner; err == nil && o != (owner{}) {
			err = unix.Fchownat(dev.fd, l[1], int(o.uid), int(o.gid), unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil && err != unix.EEXIST {
			return &StepError{"link /dev/" + l[1], err}
		}
	}
	return nil
}

func (s *start) makeDevice(dev place, d device) error {
	dir, name := path.Split(d.path)
	at := dev
	if dir != "/dev/" {
		var err error
		if at, err = s.tree.find(dir, makeDir); err != nil {
			return err
		}
	}
	if at.fd < 0 {
		return fmt.Errorf("in /proc or /sys: %w", ErrUnsupported)
	}
	return makeNode(at.fd, name, d)
}

// bound tells whether a path is a bind mount of the caller's.
func (p *Plan) bound(dest string) bool {
	for _, m := range p.mounts {
		if m.dest == dest && m.kind == "bind" {
			return true
		}
	}
	return false
}

// openStdio makes the child's first three descriptors.
func (s *start) openStdio(f Files) error {
	s.leave = f.Leave
	if s.proc.terminal {
		if f.Stdin != nil || f.Stdout != nil || f.Stderr != nil {
			return errors.New("descriptors were given besides a terminal")
		}
		if err := s.openTerminal(); err != nil {
			return err
		}
	} else {
		for _, file := range []*os.File{f.Stdin, f.Stdout, f.Stderr} {
			fd, err := s.openOne(file)
			if err != nil {
				return err
			}
			s.stdin = append(s.stdin, fd)
		}
	}
	s.extra = len(f.Extra)
	for _, file := range f.Extra {
		fd, err := rawDup(file)
		if err != nil {
			return err
		}
		s.fds.add(fd)
		s.stdin = append(s.stdin, fd)
	}
	return nil
}

// reserve occupies the numbers that the child renumbers to, so that nothing that
// is opened from now on, here or in the child, has one of them. Without
// descriptors of the caller's that is so by lowFDs.
func (s *start) reserve(f Files) error {
	n := len(f.Extra)
	if n == 0 {
		return nil
	}
	if n > MaxExtra {
		return fmt.Errorf("%d besides the standard ones: at most %d can be passed: %w", n, MaxExtra, ErrUnsupported)
	}
	null, err := openNull()
	if err != nil {
		return err
	}
	s.fds.add(null)
	for last := 2*(3+n) + 2; ; { // as joinContainer has them
		fd, err := unix.FcntlInt(uintptr(null), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return fmt.Errorf("%d besides the standard ones: %w", n, err)
		}
		if fd > last {
			return unix.Close(fd)
		}
		s.fds.add(fd)
	}
}

func (s *start) openOne(file *os.File) (int, error) {
	fd := -1
	var err error
	if file != nil {
		if fd, err = rawDup(file); err != nil {
			return -1, err
		}
	} else if fd, err = openNull(); err != nil {
		return -1, err
	}
	s.fds.add(fd)
	// What Go makes is non-blocking, which programs do not expect of their streams.
	if err := unix.SetNonblock(fd, false); err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return -1, errors.New("a directory as standard input or output (CVE-2024-21626)")
	case unix.S_IFIFO:
		// /dev/stdout is opened again by many programs; a pipe is its owner's then.
		uid, err := s.plan.ids.uid.host(s.proc.uid)
		if err != nil {
			return -1, err
		}
		if err := unix.Fchown(fd, int(uid), -1); err != nil && err != unix.EPERM && err != unix.EROFS {
			return -1, fmt.Errorf("chown: %w", err)
		}
	}
	return fd, nil
}

// rawDup duplicates a file's descriptor without making it blocking, as Fd would.
func rawDup(f *os.File) (fd int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	if cerr := rc.Control(func(raw uintptr) { fd, err = dupHigh(int(raw)) }); cerr != nil {
		return -1, cerr
	}
	return fd, err
}

// openNull opens the host's /dev/null, and makes sure that it is it.
func openNull() (int, error) {
	low, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/null: %w", err)
	}
	defer unix.Close(low)
	var st unix.Stat_t
	if err := unix.Fstat(low, &st); err != nil {
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return -1, errors.New("/dev/null is not the null device")
	}
	return dupHigh(low)
}

// capState is what capabilities this process can give.
type capState struct{ bounding, permitted uint64 }

func ownCaps() (capState, error) {
	var s capState
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return s, &StepError{"capget", err}
	}
	s.permitted = uint64(data[1].Permitted)<<32 | uint64(data[0].Permitted)
	for c := range uintptr(64) {
		on, _, err := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_READ, c, 0)
		if err != 0 {
			break // the kernel knows no more
		}
		s.bounding |= uint64(on) << c
	}
	return s, nil
}

// openTerminal makes a pty in the container's devpts and, for a start, binds it to /dev/console.
func (s *start) openTerminal() error {
	if s.devpts < 0 {
		return errors.New("a terminal needs a devpts at /dev/pts")
	}
	t, slave, err := newPty(s.devpts)
	if err != nil {
		return err
	}
	s.console = t
	s.fds.add(slave)
	uid, err := s.plan.ids.uid.host(s.proc.uid)
	if err != nil {
		return err
	}
	if err := unix.Fchown(slave, int(uid), -1); err != nil {
		return fmt.Errorf("chown the terminal: %w", err)
	}
	if s.proc.rows|s.proc.cols != 0 {
		if err := t.resize(s.proc.rows, s.proc.cols); err != nil {
			return err
		}
	}
	s.stdin = []int{slave, slave, slave}
	if s.tree.root == 0 || s.plan.bound("/dev") {
		return nil
	}
	return s.bindConsole(slave)
}

func (s *start) bindConsole(slave int) error {
	dev, err := s.tree.find("/dev", mustExist)
	if err != nil {
		return err
	}
	fd, kind, err := s.tree.openOrMake(dev.fd, "console", makeFile)
	if err != nil {
		return fmt.Errorf("/dev/console: %w", err)
	}
	s.fds.add(fd)
	if kind == unix.S_IFLNK || kind == unix.S_IFDIR {
		return errors.New("/dev/console: the image has something else there")
	}
	target, err := dupHigh(fd)
	if err != nil {
		return err
	}
	s.fds.add(target)
	p := s.prog
	p.step = "bind the terminal to /dev/console"
	clone := p.add(unix.SYS_OPEN_TREE, uintptr(slave), p.str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	p.moveMount(clone, uintptr(target))
	return nil
}

// A pty is the outer end of a terminal.
type pty struct{ master *os.File }

// newPty makes a terminal in a devpts that we mounted, by its descriptor alone:
// no name inside of the container is used (CVE-2025-52565, CVE-2026-41579).
func newPty(devpts int) (*pty, int, error) {
	fd, err := openAt(devpts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, -1, fmt.Errorf("ptmx: %w", err)
	}
	t := &pty{os.NewFile(uintptr(fd), "ptmx")}
	var lock int32
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&lock))); e != 0 {
		return nil, -1, errors.Join(fmt.Errorf("unlock the terminal: %w", e), t.master.Close())
	}
	low, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return nil, -1, errors.Join(fmt.Errorf("the terminal's other end: %w", e), t.master.Close())
	}
	defer unix.Close(int(low))
	slave, err := dupHigh(int(low))
	if err != nil {
		return nil, -1, errors.Join(err, t.master.Close())
	}
	return t, slave, nil
}

func (t *pty) resize(rows, cols uint16) error {
	rc, err := t.master.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
	return errors.Join(cerr, err)
}

package runtime

import (
	"fmt"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/seccomp"
)

// This file turns parts of a plan into ops. Everything in it happens in the child.

const fdcwd = ^uintptr(99) // AT_FDCWD

func (p *program) mount(source, target, kind string, flags uintptr) {
	p.add(unix.SYS_MOUNT, p.str(source), p.str(target), p.str(kind), flags, 0)
}

// moveMount attaches a mount to a place; both are descriptors.
func (p *program) moveMount(from, to uintptr) ref {
	empty := p.str("")
	return p.add(unix.SYS_MOVE_MOUNT, from, empty, to, empty, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// open opens a path below a directory, without magic links and with more restrictions by resolve.
func (p *program) open(dir uintptr, name string, flags, resolve uint64) ref {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	return p.add(unix.SYS_OPENAT2, dir, p.str(name), value(p, how), unix.SizeofOpenHow)
}

// makeFS is the function makeFS in the child.
func (p *program) makeFS(m *mount, params []string) ref {
	fs := p.add(unix.SYS_FSOPEN, p.str(m.kind), unix.FSOPEN_CLOEXEC)
	for _, param := range params {
		key, val, ok := cutParam(param)
		if ok {
			p.add(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, p.str(key), p.str(val), 0)
		} else {
			p.add(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, p.str(key), 0, 0)
		}
	}
	p.add(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	return p.add(unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, uintptr(m.set))
}

// write writes a string to a file in one call, as the files of /proc want it.
func (p *program) write(fd uintptr, s string) { p.add(unix.SYS_WRITE, fd, p.str(s), uintptr(len(s))) }

// pivot makes root the root, lets go of the host's file systems, and proves it:
// "/.." is the root itself, or what is mounted on top of it.
func (p *program) pivot(root uintptr) {
	p.step = "pivot_root"
	dot := p.str(".")
	p.add(unix.SYS_FCHDIR, root)
	p.add(unix.SYS_PIVOT_ROOT, dot, dot)
	p.step = "leave the host's file systems"
	p.add(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.add(unix.SYS_CHDIR, p.str("/"))
	var have, want unix.Statx_t
	a, b := value(p, have), value(p, want)
	const off = unsafe.Offsetof(have.Mnt_id)
	p.add(unix.SYS_STATX, root, p.str(""), unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, a)
	p.add(unix.SYS_STATX, fdcwd, p.str("/.."), 0, unix.STATX_MNT_ID, b)
	p.add(opCompare, a+off, b+off, ^uintptr(0), negative(unix.EXDEV))
}

// mask hides a path: a file behind /dev/null, a directory behind an empty one.
// Both covers are ours, clones of what lies in the scratch mount (CVE-2025-31133).
func (p *program) mask(root uintptr, name string, scratch uintptr) {
	p.step = "mask " + name
	const clone = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	at := p.open(root, name, unix.O_PATH, unix.RESOLVE_IN_ROOT)
	p.tolerate(unix.ENOENT, 4)
	null := p.add(unix.SYS_OPEN_TREE, scratch, p.str(scratchNull), clone)
	p.moveMount(null, at)
	p.tolerate(0, 0) // a directory: the next two
	p.last().skipOK = 2
	empty := p.add(unix.SYS_OPEN_TREE, scratch, p.str(scratchEmpty), clone)
	p.moveMount(empty, at)
}

// protect makes a path and what is mounted below it read-only.
func (p *program) protect(root uintptr, name string) {
	p.step = "make " + name + " read-only"
	empty := p.str("")
	at := p.open(root, name, unix.O_PATH, unix.RESOLVE_IN_ROOT)
	p.tolerate(unix.ENOENT, 3)
	clone := p.add(unix.SYS_OPEN_TREE, at, empty, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	p.add(unix.SYS_MOUNT_SETATTR, clone, empty, unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, value(p, attr), unsafe.Sizeof(attr))
	p.moveMount(clone, at)
}

// loopback brings up lo in a fresh network namespace.
func (p *program) loopback() {
	p.step = "bring up lo"
	s := p.add(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	p.tolerate(unix.EAFNOSUPPORT, 1)
	type ifreq struct { // struct ifreq, net/if.h
		name  [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	p.add(unix.SYS_IOCTL, s, unix.SIOCSIFFLAGS, value(p, ifreq{name: [unix.IFNAMSIZ]byte{'l', 'o'}, flags: unix.IFF_UP}))
}

// chdir changes to the working directory and asks where that is: a directory
// outside of the root reads "(unreachable)…" (CVE-2024-21626).
func (p *program) chdir(cwd string) {
	p.step = "chdir " + cwd
	dir := p.open(fdcwd, cwd, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT)
	p.add(unix.SYS_FCHDIR, dir)
	buf := p.bytes(unix.PathMax)
	p.add(unix.SYS_GETCWD, addr(buf), unix.PathMax)
	p.add(opCompare, addr(buf), value(p, uint64('/')), 0xff, negative(unix.EXDEV))
}

// stdio puts three descriptors where a program expects them. They are above lowFDs.
func (p *program) stdio(fds []int, terminal bool) {
	p.step = "stdio"
	p.add(unix.SYS_SETSID)
	p.tolerate(unix.EPERM, 0) // it leads one already
	for i, fd := range fds {
		p.add(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	if terminal {
		p.step = "controlling terminal"
		p.add(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
}

// oomScore writes oom_score_adj through a procfs of our own.
func (p *program) oomScore(n *int, procfs func() ref) {
	if n == nil {
		return
	}
	p.step = fmt.Sprintf("oom_score_adj %d", *n)
	f := p.open(procfs(), "self/oom_score_adj", unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
	p.write(f, fmt.Sprint(*n))
}

// ignoredSignals are those that this process ignores, by number minus one. A
// child would too: neither CLONE_CLEAR_SIGHAND nor execve changes that.
func ignoredSignals() (set uint64) {
	for sig := uintptr(1); sig <= 64; sig++ {
		var old kernelSigaction
		_, _, err := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0)
		if err == 0 && old.handler == 1 { // SIG_IGN
			set |= 1 << (sig - 1)
		}
	}
	return set
}

// kernelSigaction is the kernel's struct sigaction, the same on amd64 and arm64.
type kernelSigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

func (p *program) defaultSignals(set uint64) {
	p.step = "default signals"
	for ; set != 0; set &= set - 1 {
		p.add(unix.SYS_RT_SIGACTION, uintptr(bits.TrailingZeros64(set)+1), value(p, kernelSigaction{}), 0, 8)
	}
}

func (p *program) rlimits(list []rlimit) {
	for _, r := range list {
		p.step = fmt.Sprintf("%s %d:%d", r.name, r.soft, r.hard)
		p.add(unix.SYS_PRLIMIT64, 0, uintptr(r.resource), value(p, unix.Rlimit{Cur: r.soft, Max: r.hard}), 0)
	}
}

// identity sets user, groups and capabilities, and last the seccomp filter.
// Without no_new_privs a filter needs CAP_SYS_ADMIN, which then goes with one
// capset more, so that in either case the filter sees as little of ours as can
// be. Descriptors from keep on are closed, but for those of also.
//
// A child that is to be parked waits before its filter is installed, but for
// one with a notifier: that is handed over by who creates the container.
func (s *start) identity(own capState, f *seccomp.Filter, keep int, also []uintptr, labels []label) {
	p, pr := s.prog, &s.proc
	c := pr.caps.limit(own.permitted)
	p.step = "drop the bounding set"
	for drop := own.bounding &^ c.bounding; drop != 0; drop &= drop - 1 {
		p.add(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(bits.TrailingZeros64(drop)), 0, 0, 0)
	}
	p.step = fmt.Sprintf("user %d:%d", pr.uid, pr.gid)
	p.add(unix.SYS_UMASK, uintptr(pr.umask))
	groups := p.bytes(4 * max(1, len(pr.groups)))
	copy(unsafe.Slice((*uint32)(unsafe.Pointer(&groups[0])), max(1, len(pr.groups))), pr.groups)
	p.add(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	p.add(unix.SYS_SETGROUPS, uintptr(len(pr.groups)), addr(groups))
	p.add(unix.SYS_SETRESGID, uintptr(pr.gid), uintptr(pr.gid), uintptr(pr.gid))
	p.add(unix.SYS_SETRESUID, uintptr(pr.uid), uintptr(pr.uid), uintptr(pr.uid))
	p.add(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)

	p.step = "capabilities"
	early := c
	if f != nil && !pr.noNewPrivs {
		early.permitted |= 1 << unix.CAP_SYS_ADMIN
		early.effective |= 1 << unix.CAP_SYS_ADMIN
	}
	p.capset(early)
	p.add(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for a := c.ambient; a != 0; a &= a - 1 {
		p.add(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(bits.TrailingZeros64(a)), 0, 0)
	}
	if pr.noNewPrivs {
		p.step = "no_new_privs"
		p.add(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	s.forkInside()
	p.step = "signal mask"
	p.add(unix.SYS_RT_SIGPROCMASK, 2, value(p, uint64(0)), 0, 8)
	p.writeLabels(labels)
	if s.ahead != nil { // from here on it may outlive its monitor, as any container
		p.step = "PR_SET_PDEATHSIG"
		p.add(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0, 0, 0, 0)
	}
	p.step = "close descriptors"
	if s.line != nil {
		also = append(also, s.lineFD())
	}
	if s.park != nil {
		also = append(also, uintptr(s.fifos[0]), uintptr(s.fifos[1]))
	}
	p.closeAllBut(uintptr(keep), also...)
	if !s.notifies() {
		s.wait()
	}
	if f != nil {
		p.step = "seccomp filter"
		listener := p.filter(f)
		if s.notifies() {
			p.step = "seccomp notifier"
			p.add(unix.SYS_WRITE, s.lineFD(), value(p, uint64(msgListener)), 8)
			p.add(unix.SYS_WRITE, s.lineFD(), addressOf(listener), 8)
			s.await(s.lineFD())
		}
		if early != c {
			p.step = "capabilities"
			p.capset(c)
		}
	}
	if s.notifies() {
		s.wait()
	}
}

// closeAllBut closes the descriptors from a number on, but for some. It is not left to
// execve: until that has read the program, names below /proc/self/fd lead to what
// is open, directories of the host among it, and a program, its interpreter or
// that of a script may be such a name (CVE-2024-21626).
func (p *program) closeAllBut(from uintptr, keep ...uintptr) {
	slices.Sort(keep)
	for _, fd := range keep {
		if from < fd {
			p.add(unix.SYS_CLOSE_RANGE, from, fd-1, 0)
		}
		from = max(from, fd+1)
	}
	p.add(unix.SYS_CLOSE_RANGE, from, 1<<32-1, 0)
}

// forkInside makes the child that those in the container can see. It shares its maker's
// memory, which is a copy of ours and nobody else's, and its maker ends.
func (s *start) forkInside() {
	if !s.forksInside {
		return
	}
	p := s.prog
	// Setting the user may have made the memory readable (fs.suid_dumpable).
	p.step = "PR_SET_DUMPABLE"
	p.add(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	s.forks = true
	s.forkHere(unix.CLONE_VM)
	p.stdio(s.stdin, s.proc.terminal)
}

// notifies tells whether the filter has a notifier, for its listener to get.
func (s *start) notifies() bool { return s.plan.seccomp != nil && s.plan.seccomp.ListenerPath != "" }

// wait is where all is done but for the filter and the program.
func (s *start) wait() {
	p := s.prog
	if s.line == nil || s.exec {
		return
	}
	// Setting the user may have made the memory readable (fs.suid_dumpable).
	p.step = "PR_SET_DUMPABLE"
	p.add(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	switch {
	case s.park != nil:
		s.waitForStart()
	case len(s.plan.hooks.start) > 0:
		s.sync(msgStartHooks)
	}
}

func (p *program) capset(c capabilities) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	lo, hi := c.words(0), c.words(32)
	p.add(unix.SYS_CAPSET, value(p, hdr), value(p, [2]unix.CapUserData{lo, hi}))
}

func (c capabilities) words(shift int) unix.CapUserData {
	return unix.CapUserData{Effective: uint32(c.effective >> shift), Permitted: uint32(c.permitted >> shift), Inheritable: uint32(c.inheritable >> shift)}
}

// limit takes away what this process cannot give.
func (c capabilities) limit(have uint64) capabilities {
	return capabilities{c.bounding, c.effective & have, c.permitted & have, c.inheritable & have, c.ambient & have}
}

func (p *program) filter(f *seccomp.Filter) ref {
	p.keep = append(p.keep, f)
	prog := struct {
		n     uint16
		_     [3]uint16
		insns uintptr
	}{n: uint16(len(f.Insns)), insns: uintptr(unsafe.Pointer(&f.Insns[0]))}
	return p.add(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), value(p, prog))
}

// exec tries each candidate in turn.
func (p *program) exec(pr *process) {
	p.step = execStep
	argv, envp := p.pointers(pr.args), p.pointers(pr.env)
	for _, name := range pr.candidates() {
		p.add(unix.SYS_EXECVE, p.str(name), argv, envp)
		p.last().flags |= flagExec
	}
}

const execStep = "exec"

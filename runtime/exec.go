package runtime

import (
	"context"
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Exec starts a further process in the container: same namespaces, cgroup and
// seccomp filter, with the user, capabilities, environment and terminal of proc.
func (c *Container) Exec(ctx context.Context, proc *specs.Process, f Files) (*Process, error) {
	return c.start(ctx, proc, f, false)
}

// ExecPaused is Exec that does not mind a paused container: it waits until that goes on.
func (c *Container) ExecPaused(ctx context.Context, proc *specs.Process, f Files) (*Process, error) {
	return c.start(ctx, proc, f, true)
}

func (c *Container) start(ctx context.Context, proc *specs.Process, f Files, paused bool) (_ *Process, err error) {
	var warnings []string
	pr, err := planProcess(proc, &warnings)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("exec: the container is closed")
	}
	if frozen, err := c.group.Frozen(); err != nil || frozen && !paused {
		return nil, errors.Join(err, errors.New("exec: the container is paused"))
	}
	s := newStart(c.plan, pr)
	defer s.close()
	if err := s.prepareExec(c, f); err != nil {
		return nil, err
	}
	s.handle = s.handleSync(ctx, c)
	p, err := s.run(ctx, c.group, 0)
	if err != nil {
		return nil, err
	}
	c.forget()
	c.execs = append(c.execs, p)
	return p, nil
}

// forget drops the processes that have ended.
func (c *Container) forget() {
	live := c.execs[:0]
	for _, p := range c.execs {
		select {
		case <-p.done:
			p.pidfd.Close()
		default:
			live = append(live, p)
		}
	}
	c.execs = live
}

func (s *start) prepareExec(c *Container, f Files) error {
	s.exec, s.container = true, c
	if err := s.reserve(f); err != nil {
		return &StepError{"descriptors", err}
	}
	if err := c.openInside(s.proc.terminal); err != nil {
		return err
	}
	s.devpts = c.devpts
	if err := s.lookup(c.root); err != nil {
		return &StepError{"user", err}
	}
	if err := s.checkLabels(); err != nil {
		return &StepError{"labels", err}
	}
	own := s.plan.own()
	s.forksInside = own&unix.CLONE_NEWPID != 0
	if s.forksInside || s.notifies() {
		if err := s.openLine(); err != nil {
			return err
		}
	}
	s.prog.affinity("initial CPU affinity", s.proc.firstCPUs)
	pidfd, err := rawDup(c.init.pidfd)
	if err != nil {
		return &StepError{"exec", err}
	}
	s.fds.add(pidfd)
	if err := s.openStdio(f); err != nil {
		return &StepError{"stdio", err}
	}
	if err := s.joinCgroup(c.group); err != nil {
		return &StepError{"cgroup", err}
	}
	s.joinContainer(pidfd, own)
	return s.finishProcess(false)
}

// joinContainer takes the child into the namespaces. Before it does, the child
// gives up every descriptor of ours but one: this process's are open in it, as
// it was forked, and somebody may look (CVE-2016-9962, CVE-2024-21626).
//
// That it is not dumpable keeps those inside away, but not one with
// CAP_SYS_PTRACE in a container without a user namespace. So this child never shows up in the
// container's pid namespace: it makes a second one there when it has nothing
// left to take, neither files nor rights (forkInside).
func (s *start) joinContainer(pidfd int, flags uintptr) {
	p := s.prog
	if !s.plan.noKeyring {
		p.newKeyring()
	}
	s.earlyOOMScore()
	if flags&unix.CLONE_NEWUSER != 0 {
		p.rlimits(s.higher())
	}
	p.step = "close descriptors"
	fds := append(slices.Clone(s.stdin), pidfd)
	if s.line != nil {
		fds = append(fds, s.line.child)
	}
	n := len(s.stdin)
	for i, fd := range fds {
		p.add(unix.SYS_DUP3, uintptr(fd), uintptr(n+i), unix.O_CLOEXEC)
	}
	p.add(unix.SYS_CLOSE_RANGE, uintptr(n+len(fds)), 1<<32-1, 0)
	last := uintptr(n + n)
	if s.line != nil {
		s.lineAt = last + 1
	}
	p.step = fmt.Sprintf("join the container's namespaces (%#x)", flags)
	p.add(unix.SYS_SETNS, last, flags)
	p.add(unix.SYS_CLOSE, last)
	for i := range s.stdin {
		s.stdin[i] = n + i
	}
	if flags&unix.CLONE_NEWUSER != 0 {
		p.step = "become root of the user namespace"
		p.add(unix.SYS_SETRESGID, 0, 0, 0)
		p.tolerate(unix.EINVAL, 0) // it has none
		p.add(unix.SYS_SETRESUID, 0, 0, 0)
		p.tolerate(unix.EINVAL, 0)
	}
}

// openInside opens what is needed of the container's file system, if that is not so yet.
func (c *Container) openInside(terminal bool) error {
	if c.root < 0 {
		proc, err := openProc(c.init.pid)
		if err != nil {
			return &StepError{"exec", err}
		}
		defer unix.Close(proc)
		low, err := openAt(proc, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
		if err == nil {
			// The directory is of who has the number now: is that still our process?
			if err = c.init.Signal(0); err == nil {
				c.root, err = dupHigh(low)
			}
			unix.Close(low)
		}
		if err != nil {
			return &StepError{"exec: the container's root", err}
		}
	}
	if !terminal || c.devpts >= 0 {
		return nil
	}
	// The container may have put anything there. A directory of a devpts makes real terminals.
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	low, err := unix.Openat2(c.root, "dev/pts", how)
	if err != nil {
		return &StepError{"exec: /dev/pts", err}
	}
	defer unix.Close(low)
	var st unix.Statfs_t
	if err := unix.Fstatfs(low, &st); err != nil {
		return &StepError{"exec: /dev/pts", err}
	}
	if st.Type != unix.DEVPTS_SUPER_MAGIC {
		return &StepError{"exec: /dev/pts", errors.New("it is not a devpts")}
	}
	c.devpts, err = dupHigh(low)
	return err
}

// setOOMScore writes oom_score_adj where that is still possible: in a user
// namespace /proc/self is the outer root's, as the child is not dumpable.
func (s *start) setOOMScore() {
	if !s.plan.inUser() {
		s.prog.oomScore(s.proc.oomScore, s.ownProcfs)
	}
}

// earlyOOMScore writes it before the child joins the user namespace.
func (s *start) earlyOOMScore() {
	n := s.proc.oomScore
	if n == nil || !s.plan.inUser() {
		return
	}
	p := s.prog
	p.step = fmt.Sprintf("oom_score_adj %d", *n)
	f := p.add(unix.SYS_OPENAT, fdcwd, p.str("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC)
	p.write(f, fmt.Sprint(*n))
}

// inUser tells whether the container has a user namespace of its own.
func (p *Plan) inUser() bool { return p.own()&unix.CLONE_NEWUSER != 0 }

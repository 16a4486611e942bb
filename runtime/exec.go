package runtime

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Exec starts a further process in the container: same namespaces, cgroup and
// seccomp filter, with the user, capabilities, environment and terminal of proc.
func (c *Container) Exec(ctx context.Context, proc *specs.Process, f Files) (_ *Process, err error) {
	if err := refuse(&specs.Spec{Process: proc}); err != nil {
		return nil, err
	}
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
	if frozen, err := c.group.Frozen(); err != nil || frozen {
		return nil, errors.Join(err, errors.New("exec: the container is paused"))
	}
	s := newStart(c.plan, pr)
	s.devpts = c.devpts
	defer s.close()
	if err := s.prepareExec(c, f); err != nil {
		return nil, err
	}
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
	if err := s.proc.lookup(c.root); err != nil {
		return &StepError{"user", err}
	}
	pidfd, err := rawDup(c.init.pidfd)
	if err != nil {
		return &StepError{"exec", err}
	}
	s.fds.add(pidfd)
	own := s.plan.own()
	if own&unix.CLONE_NEWPID != 0 {
		s.pidns = pidfd
	}
	if err := s.openStdio(f); err != nil {
		return &StepError{"stdio", err}
	}
	if err := s.joinCgroup(c.group); err != nil {
		return &StepError{"cgroup", err}
	}
	s.joinContainer(pidfd, own&^unix.CLONE_NEWPID)
	return s.finishProcess(false)
}

// joinContainer takes the child into the namespaces. Before it does, the child
// gives up every descriptor of ours but one: this process's are open in it, as
// it was forked, and somebody may look (CVE-2016-9962, CVE-2024-21626).
func (s *start) joinContainer(pidfd int, flags uintptr) {
	p := s.prog
	p.step = "new session keyring"
	p.add(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	p.tolerate(unix.ENOSYS, 0)
	p.step = "close descriptors"
	const last = 6
	for i, fd := range append(s.stdin[:], pidfd) {
		p.add(unix.SYS_DUP3, uintptr(fd), uintptr(3+i), 0)
	}
	p.add(unix.SYS_CLOSE_RANGE, last+1, 1<<32-1, 0)
	p.step = fmt.Sprintf("join the container's namespaces (%#x)", flags)
	p.add(unix.SYS_SETNS, last, flags)
	p.add(unix.SYS_CLOSE, last)
	s.stdin = [3]int{3, 4, 5}
}

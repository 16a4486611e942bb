package runtime

import (
	"context"
	"errors"
	"fmt"
	goruntime "runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// outcome is where the child tells how it ended. mapPage has been called.
func (s *start) outcome() *outcome { return (*outcome)(unsafe.Pointer(&s.page[0])) }

func (s *start) mapPage() (err error) {
	if s.page == nil {
		s.page, err = unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	}
	if err != nil {
		return &StepError{"mmap", err}
	}
	return nil
}

// run executes the program in a child and returns when the child has executed
// its own program, has died, or has been parked. A nil group is this process's own.
func (s *start) run(ctx context.Context, g *cgroups.Group, flags uintptr) (_ *Process, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.mapPage(); err != nil {
		return nil, err
	}
	out := s.outcome()
	pidfd := int32(-1)
	args := &cloneArgs{
		flags:      uint64(flags | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND),
		pidfd:      uint64(uintptr(unsafe.Pointer(&pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if g != nil && g.Unified() != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(g.Unified().Fd())
	}
	defer goruntime.KeepAlive(g)
	if s.line != nil {
		return s.runSynced(ctx, args, out, &pidfd)
	}
	args.flags |= unix.CLONE_VFORK
	if flags&unix.CLONE_NEWPID != 0 {
		args.flags |= unix.CLONE_VM // nobody else is there who could look
	}
	stop := context.AfterFunc(ctx, func() {
		if fd := atomic.LoadInt32(&pidfd); fd >= 0 {
			_ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
		}
	})
	pid, err := s.fork(args, out)
	var ierr error
	if err == nil && out.errno == 0 && s.report >= 0 {
		ierr = s.awaitInit()
	}
	killed := !stop()
	if err != nil {
		return nil, err
	}
	p := newProcess(pid, int(atomic.LoadInt32(&pidfd)), s.console, s.leave)
	s.console = nil // it is the process's now
	if out.errno == 0 && ierr == nil && !killed {
		return p, nil
	}
	p.bury()
	if killed {
		return nil, ctx.Err()
	}
	if ierr != nil {
		return nil, ierr
	}
	return nil, s.failure(out)
}

// fork makes the child. In a container that manages cgroups itself it is put
// where its init is.
func (s *start) fork(args *cloneArgs, out *outcome) (int, error) {
	pid, err := s.forkInto(args, out)
	switch {
	case args.flags&unix.CLONE_INTO_CGROUP == 0:
		return pid, err
	case errors.Is(err, unix.EOPNOTSUPP):
		return pid, fmt.Errorf("%w (the cgroup takes no processes: is one above it threaded, or has it processes and hands controllers down?)", err)
	case !errors.Is(err, unix.EBUSY) || !s.exec || s.container == nil:
		return pid, err
	}
	init := s.container.init
	f, oerr := s.container.group.Of(init.pid)
	if oerr == nil {
		oerr = init.Signal(0) // was that number still its own?
	}
	if oerr != nil {
		return pid, errors.Join(err, oerr)
	}
	defer f.Close()
	args.cgroup = uint64(f.Fd())
	return s.forkInto(args, out)
}

// forkInto calls clone3 with all signals blocked: a handler of Go's would run in
// the child, on memory that is the parent's.
func (s *start) forkInto(args *cloneArgs, out *outcome) (int, error) {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	back, err := s.joinAsThread()
	if err != nil {
		return 0, err
	}
	all, old := ^uint64(0), uint64(0)
	setMask(&all, &old)
	pid := clone(args, &s.prog.ops[0], len(s.prog.ops), out)
	setMask(&old, nil)
	goruntime.KeepAlive(s.prog)
	goruntime.KeepAlive(args)
	if err := back(); err != nil {
		return 0, err
	}
	if pid < 0 {
		return 0, explain("clone3", unix.Errno(-pid))
	}
	return pid, nil
}

// failure puts the child's last words into an error.
func (s *start) failure(out *outcome) error {
	step := execStep
	if out.index < len(s.prog.names) {
		step = s.prog.names[out.index]
	}
	return failure(step, s.proc.name(), unix.Errno(-out.errno))
}

func failure(step, program string, errno unix.Errno) error {
	if step == execStep {
		return &ExecError{program, errno}
	}
	return explain(step, errno)
}

package runtime

import (
	"context"
	goruntime "runtime"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// run executes the program in a child and returns when the child has executed
// its own program or died.
func (s *start) run(ctx context.Context, g *cgroups.Group, flags uintptr) (_ *Process, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	page, err := unix.Mmap(-1, 0, unix.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, &StepError{"mmap", err}
	}
	defer unix.Munmap(page) //nolint:errcheck // it was mapped above
	out := (*outcome)(unsafe.Pointer(&page[0]))
	pidfd := int32(-1)
	args := &cloneArgs{
		flags:      uint64(flags | unix.CLONE_VFORK | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND),
		pidfd:      uint64(uintptr(unsafe.Pointer(&pidfd))),
		exitSignal: uint64(unix.SIGCHLD),
	}
	if flags&unix.CLONE_NEWPID != 0 {
		args.flags |= unix.CLONE_VM // nobody else is there who could look
	}
	if dir := g.Unified(); dir != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(dir.Fd())
	}
	stop := context.AfterFunc(ctx, func() {
		if fd := atomic.LoadInt32(&pidfd); fd >= 0 {
			_ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
		}
	})
	pid, err := s.fork(args, out)
	goruntime.KeepAlive(g)
	var ierr error
	if err == nil && out.errno == 0 && s.report >= 0 {
		ierr = s.awaitInit()
	}
	killed := !stop()
	if err != nil {
		return nil, err
	}
	p := newProcess(pid, int(atomic.LoadInt32(&pidfd)), s.console)
	s.console = nil // it is the process's now
	if out.errno == 0 && ierr == nil && !killed {
		return p, nil
	}
	_ = p.Signal(unix.SIGKILL)
	<-p.done
	p.pidfd.Close()
	p.closeConsole()
	if killed {
		return nil, ctx.Err()
	}
	if ierr != nil {
		return nil, ierr
	}
	return nil, s.failure(out)
}

// fork calls clone3 with all signals blocked: a handler of Go's would run in
// the child, on memory that is the parent's.
func (s *start) fork(args *cloneArgs, out *outcome) (int, error) {
	syscall.ForkLock.Lock()
	defer syscall.ForkLock.Unlock()
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	back, err := s.joinPIDs()
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
		return 0, &StepError{"clone3", unix.Errno(-pid)}
	}
	return pid, nil
}

// joinPIDs makes this thread's next child one of another pid namespace, and
// returns what takes that back. The thread itself stays where it is.
func (s *start) joinPIDs() (func() error, error) {
	if s.pidns < 0 {
		return func() error { return nil }, nil
	}
	own, err := unix.Open("/proc/thread-self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &StepError{"own pid namespace", err}
	}
	if err := unix.Setns(s.pidns, unix.CLONE_NEWPID); err != nil {
		unix.Close(own)
		return nil, &StepError{"join the pid namespace", err}
	}
	return func() error {
		defer unix.Close(own)
		if err := unix.Setns(own, unix.CLONE_NEWPID); err != nil {
			// Unlocking such a thread would give its namespace to other goroutines.
			goruntime.LockOSThread()
			return &StepError{"leave the pid namespace", err}
		}
		return nil
	}, nil
}

// failure puts the child's last words into an error.
func (s *start) failure(out *outcome) error {
	errno := unix.Errno(-out.errno)
	if out.index >= len(s.prog.names) || s.prog.names[out.index] == execStep {
		return &ExecError{s.proc.args[0], errno}
	}
	return explain(s.prog.names[out.index], errno)
}

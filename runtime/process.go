package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A Status is how a process ended.
type Status struct {
	Code   int         // exit code
	Signal unix.Signal // that killed it, or 0
}

// ExitCode is the code, or 128 and the signal, as a shell has it.
func (s Status) ExitCode() int {
	if s.Signal != 0 {
		return 128 + int(s.Signal)
	}
	return s.Code
}

func (s Status) String() string {
	if s.Signal != 0 {
		return fmt.Sprintf("killed by %s", unix.SignalName(s.Signal))
	}
	return fmt.Sprintf("exit code %d", s.Code)
}

// A Process is a child of this process inside of a container. It is reaped as
// soon as it ends, whoever waits.
type Process struct {
	pid     int
	pidfd   *os.File
	console *pty
	done    chan struct{}

	foreign bool // not our child: its end can be seen, not its status
	leave   bool // when it has ended, leave it to who is our children's parent after us

	status Status // valid after done
	err    error
}

// newProcess takes over a pidfd and begins to wait for it.
func newProcess(pid, pidfd int, console *pty, leave bool) *Process {
	err := unix.SetNonblock(pidfd, true) // so that the poller waits, not a thread
	p := &Process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), console: console, done: make(chan struct{}), err: err, leave: leave}
	go p.reap()
	return p
}

// newForeign watches a process that is another one's child.
func newForeign(pid, pidfd int) *Process {
	err := unix.SetNonblock(pidfd, true)
	p := &Process{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd"), done: make(chan struct{}), err: err, foreign: true}
	go p.reap()
	return p
}

// bury ends a process that did not come to be, and reaps it in any case.
func (p *Process) bury() {
	_ = p.Signal(unix.SIGKILL)
	<-p.done
	if p.leave {
		if rc, err := p.pidfd.SyscallConn(); err == nil {
			_ = rc.Control(func(fd uintptr) { _, _, _ = waitPidfd(int(fd), 0) })
		}
	}
	p.pidfd.Close()
	p.closeConsole()
}

// hasEnded tells whether a pidfd's process has ended, reaped or not.
func hasEnded(fd int) (bool, error) {
	list := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(list, 0)
		if err != unix.EINTR {
			return n > 0, err
		}
	}
}

// reap ends with the process, which Close kills.
func (p *Process) reap() {
	defer close(p.done)
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		p.err = err
		return
	}
	err = rc.Read(func(fd uintptr) bool {
		var ended bool
		if p.foreign {
			ended, p.err = hasEnded(int(fd))
		} else {
			flags := uintptr(0)
			if p.leave {
				flags = unix.WNOWAIT
			}
			ended, p.status, p.err = waitPidfd(int(fd), flags)
		}
		return ended || p.err != nil
	})
	p.err = errors.Join(p.err, err)
}

// waitPidfd reaps a child if it has ended.
func waitPidfd(fd int, flags uintptr) (bool, Status, error) {
	// siginfo_t of SIGCHLD (asm-generic/siginfo.h): signo, errno, code, pad, pid, uid, status.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		uid                   uint32
		status                int32
		_                     [100]byte
	}
	for {
		err := waitid(fd, &info, flags)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN || err == nil && info.pid == 0:
			return false, Status{}, nil
		case err != nil:
			return false, Status{}, fmt.Errorf("waitid: %w", err)
		case info.code == 1: // CLD_EXITED
			return true, Status{Code: int(info.status)}, nil
		}
		return true, Status{Signal: unix.Signal(info.status)}, nil
	}
}

// Pid is the process ID as the caller's pid namespace has it.
func (p *Process) Pid() int { return p.pid }

// Done is closed once the process has ended and been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait returns how the process ended, once it has. Any number of callers may wait.
func (p *Process) Wait(ctx context.Context) (Status, error) {
	select {
	case <-p.done:
		return p.status, p.err
	case <-ctx.Done():
		return Status{}, ctx.Err()
	}
}

// Signal sends a signal through the pidfd: it never hits another process.
// After the end it returns os.ErrProcessDone.
func (p *Process) Signal(sig unix.Signal) error { return p.send(sig, 0) }

func (p *Process) send(sig unix.Signal, flags int) error {
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, flags) })
	if errors.Is(err, unix.ESRCH) || errors.Is(cerr, os.ErrClosed) {
		return os.ErrProcessDone
	}
	return errors.Join(err, cerr)
}

// KillGroup sends SIGKILL to the process and to all of the process group that
// it leads, as every process of a container that this package started does;
// those that it has left behind are there even when it has ended. (Linux 6.9)
func (p *Process) KillGroup() error {
	return p.send(unix.SIGKILL, unix.PIDFD_SIGNAL_PROCESS_GROUP)
}

// Console is the outer end of the terminal, nil if there is none. It is
// non-blocking underneath. The caller reads, writes and closes it; after the
// last process inside has gone, reads give EIO.
func (p *Process) Console() *os.File {
	if p.console == nil {
		return nil
	}
	return p.console.master
}

// Resize sets the size of the terminal, in characters, and tells those inside.
func (p *Process) Resize(height, width uint16) error {
	if p.console == nil {
		return errors.New("resize: the process has no terminal")
	}
	return p.console.resize(height, width)
}

func (p *Process) closeConsole() {
	if p.console != nil {
		p.console.master.Close()
	}
}

package runtime

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Most programs run to their end while their parent sleeps. Some have to wait
// for something that only the parent can do: IDs of a user namespace, hooks, a
// console to hand over, the start of a container that was created. Then there
// is a line, a pair of connected sockets: the child writes what it waits for,
// a word, and reads one byte. If the parent dies the read ends with nothing and the child exits.
//
//	child                               parent
//	write(line, kind)          ──▶      handle(kind)
//	read(line, 1 byte), 'g'?   ◀──      write "g"
//	...
//	execve closes the line     ──▶      end of file: look into outcome
//
// Such a child is forked: its memory is its own, so that its parent may go on, and go.

// What a child waits for. An outcome begins with a smaller word.
const (
	msgMark        = 1 << 32
	msgMapIDs      = msgMark + 1 // uid_map and gid_map
	msgCreateHooks = msgMark + 2
	msgStartHooks  = msgMark + 3
	msgListener    = msgMark + 4 // a word follows: the descriptor of the seccomp notifier, in the child
	msgParked      = msgMark + 5 // from now on the line is the FIFOs of a Parking
	msgDevices     = msgMark + 6 // of the network
)

const goAhead = 'g'

// line is the two ends. -1 is closed.
type line struct{ parent, child int }

func (s *start) openLine() error {
	if s.line != nil {
		return nil
	}
	if err := s.mapPage(); err != nil {
		return err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return &StepError{"socketpair", err}
	}
	l := &line{-1, -1}
	s.line = l
	for i, to := range []*int{&l.parent, &l.child} {
		*to, err = dupHigh(fds[i])
		unix.Close(fds[i])
		if err != nil {
			return err
		}
	}
	// Else the child's copy would keep the line from ending with its parent.
	s.prog.step = "close the parent's end of the line"
	s.prog.add(unix.SYS_CLOSE, uintptr(l.parent))
	return nil
}

func (l *line) closeChild() {
	if l != nil && l.child >= 0 {
		unix.Close(l.child)
		l.child = -1
	}
}

func (l *line) close() {
	if l != nil && l.parent >= 0 {
		unix.Close(l.parent)
		l.parent = -1
	}
	l.closeChild()
}

// lineFD is the child's end of the line, as the program has it at this point.
func (s *start) lineFD() uintptr {
	if s.lineAt != 0 {
		return s.lineAt
	}
	return uintptr(s.line.child)
}

// sync makes the child wait here until the parent has handled kind.
func (s *start) sync(kind uint64) {
	p := s.prog
	p.step = "tell the runtime"
	p.add(unix.SYS_WRITE, s.lineFD(), value(p, kind), 8)
	s.await(s.lineFD())
}

// await reads the byte that lets the child go on.
func (s *start) await(fd uintptr) {
	p := s.prog
	p.step = "wait for the runtime"
	buf := p.bytes(8)
	p.add(unix.SYS_READ, fd, addr(buf), 1)
	p.add(opCompare, addr(buf), value(p, uint64(goAhead)), 0xff, negative(unix.ECANCELED))
}

// runSynced is run for a program with a line.
func (s *start) runSynced(ctx context.Context, args *cloneArgs, out *outcome, pidfd *int32) (_ *Process, err error) {
	out.report = int(s.line.child)
	args.parentTid = 0
	pid, err := s.fork(args, out)
	s.line.closeChild()
	if err != nil {
		return nil, err
	}
	p := newProcess(pid, int(atomic.LoadInt32(pidfd)), s.console, s.leave && !s.forks)
	s.console = nil
	if s.forks {
		// The first child makes a second one, ours too, and ends.
		if p, err = s.second(ctx, p, out); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(unix.SIGKILL) })
	done, err := s.serve(p)
	if err == nil && !done && out.errno == 0 && s.report >= 0 {
		err = s.awaitInit()
	}
	killed := !stop()
	switch {
	case err == nil && !killed && (done || out.errno == 0):
		return p, nil
	case killed:
		err = ctx.Err()
	case err == nil:
		err = s.failure(out)
	}
	p.bury()
	return nil, err
}

// second waits for the first child's end and takes over its child.
func (s *start) second(ctx context.Context, first *Process, out *outcome) (*Process, error) {
	stop := context.AfterFunc(ctx, func() { _ = first.Signal(unix.SIGKILL) })
	<-first.done
	stop()
	first.pidfd.Close()
	console := first.console
	fail := func(err error) (*Process, error) {
		if console != nil {
			console.master.Close()
		}
		return nil, err
	}
	switch {
	case out.pid > 0: // which may have failed already, and has to be reaped
	case out.errno != 0:
		return fail(s.failure(out))
	default:
		return fail(&StepError{"clone3", errors.New("the child made no child")})
	}
	// It is ours to reap, so its number is still its own.
	fd, err := unix.PidfdOpen(out.pid, 0)
	if err != nil {
		return fail(&StepError{"pidfd_open", err})
	}
	return newProcess(out.pid, fd, console, s.leave), nil
}

// serve handles what the child waits for until it has executed its program or
// died, or (then done) has been parked.
func (s *start) serve(p *Process) (done bool, err error) {
	for {
		kind, err := s.receive()
		if err != nil || kind < msgMark {
			return false, err
		}
		if s.handle == nil {
			return false, fmt.Errorf("the child waits for something unknown, %#x", kind)
		}
		if err := s.handle(kind, p); err != nil {
			return false, err
		}
		if _, err := unix.Write(s.line.parent, []byte{goAhead}); err != nil {
			return false, &StepError{"tell the child", err}
		}
		if kind == msgParked {
			return true, nil
		}
	}
}

// receive returns the next word of the child; 0 after its end.
func (s *start) receive() (uint64, error) {
	var b [24]byte // an outcome's size
	for {
		n, err := unix.Read(s.line.parent, b[:])
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.ECONNRESET: // it died with a byte of ours unread
			return 0, nil
		case err != nil:
			return 0, &StepError{"read from the child", err}
		case n < 8:
			return 0, nil
		}
		return binary.LittleEndian.Uint64(b[:]), nil
	}
}

// handleSync is what Start and Exec do for a waiting child.
func (s *start) handleSync(ctx context.Context, c *Container) func(uint64, *Process) error {
	return func(kind uint64, p *Process) error {
		switch kind {
		case msgMapIDs:
			return s.mapIDs(p)
		case msgDevices:
			return s.moveDevices(p)
		case msgCreateHooks:
			c.init = p
			if err := s.noteHooks(); err != nil {
				return err
			}
			return c.createHooks(ctx)
		case msgStartHooks:
			c.init = p
			if err := s.noteHooks(); err != nil {
				return err
			}
			return c.startHooks(ctx)
		case msgListener:
			return s.passListener(ctx, p)
		case msgParked:
			c.init = p
			return s.park.Record(c)
		}
		return fmt.Errorf("the child waits for something unknown, %#x", kind)
	}
}

// noteHooks tells who started the container that hooks begin.
func (s *start) noteHooks() error {
	if s.note == nil {
		return nil
	}
	return s.note()
}

// mapIDs does what can only be done from outside of a new user namespace: its
// files in /proc are the outer root's.
func (s *start) mapIDs(p *Process) error {
	if n := s.proc.oomScore; n != nil {
		if err := writeProc(p.pid, "oom_score_adj", fmt.Sprint(*n)); err != nil {
			return err
		}
	}
	if offsets := s.plan.timeOffsets; offsets != "" {
		if err := writeProc(p.pid, "timens_offsets", offsets); err != nil {
			return err
		}
	}
	if s.plan.newNS&unix.CLONE_NEWUSER == 0 {
		return nil // it has joined one
	}
	for _, r := range s.higher() {
		if err := unix.Prlimit(p.pid, r.resource, &unix.Rlimit{Cur: r.soft, Max: r.hard}, nil); err != nil {
			return &StepError{fmt.Sprintf("%s %d:%d", r.name, r.soft, r.hard), err}
		}
	}
	return s.plan.ids.write(p.pid)
}

// passListener hands the notifier of the child's seccomp filter to who listens for it.
func (s *start) passListener(ctx context.Context, p *Process) error {
	number, err := s.receive()
	if err != nil {
		return err
	}
	rc, err := p.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	fd := -1
	if cerr := rc.Control(func(pidfd uintptr) { fd, err = unix.PidfdGetfd(int(pidfd), int(number), 0) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return &StepError{"seccomp notifier", err}
	}
	defer unix.Close(fd)
	sc := s.plan.seccomp
	status := specs.StateCreating
	switch {
	case s.hook:
		status = specs.StateCreated
	case s.exec:
		status = specs.StateRunning
	}
	state := s.plan.state(status, p.pid)
	if s.exec && s.container != nil {
		state.Pid = s.container.init.pid
	}
	b, err := json.Marshal(specs.ContainerProcessState{Version: s.plan.version, Fds: []string{specs.SeccompFdName}, Pid: p.pid, Metadata: sc.ListenerMetadata, State: state})
	if err != nil {
		return err
	}
	if err := SendFD(ctx, sc.ListenerPath, b, fd); err != nil {
		return &StepError{"seccomp listenerPath", err}
	}
	return nil
}

// sendTime is how long SendFD waits for who listens.
const sendTime = 10 * time.Second

// SendFD sends a descriptor and some bytes to a stream socket in the file system.
// If nobody reads what does not fit into the socket, it is an error after 10 seconds.
func SendFD(ctx context.Context, name string, b []byte, fd int) error {
	ctx, cancel := context.WithTimeout(ctx, sendTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", name)
	if err != nil {
		return err
	}
	c := conn.(*net.UnixConn)
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	n, _, err := c.WriteMsgUnix(b, unix.UnixRights(fd), nil)
	if err == nil && n < len(b) { // one sendmsg takes what fits into the socket
		_, err = c.Write(b[n:])
	}
	return errors.Join(err, c.Close())
}

// forkHere makes the first child make the second one, with new namespaces, and end.
func (s *start) forkHere(flags uintptr) {
	p := s.prog
	p.step = "clone3"
	args := cloneArgs{flags: uint64(flags | unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID | unix.CLONE_CLEAR_SIGHAND), parentTid: uint64(uintptr(unsafe.Pointer(&s.outcome().pid)))}
	p.add(unix.SYS_CLONE3, value(p, args), unsafe.Sizeof(args))
	p.last().flags |= flagFork
}

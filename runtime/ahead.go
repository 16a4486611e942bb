package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	goruntime "runtime"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/seccomp"
)

// An Ahead is the first process of a container before it is known which: it is in
// a cgroup and in namespaces of its own, of the host's file systems it has let go,
// and it waits. StartAhead makes it a container; it is used once, or not at all.
//
// It shares this process's memory, in which the rest of its program is yet to be
// written, and its descriptors, so that it has those of the container when it
// goes on: only then does it take a copy of the table for itself. So, while it waits, it
// holds nothing that this process does not hold. It ends with this process.
//
//	this process                        the process ahead
//	clone3(VM, FILES, namespaces)  ──▶  joins the cgroup, leaves the host's mounts, makes /proc
//	                               ◀──  "here"
//	                                    read(gate)
//	mounts, opens, writes ops …
//	write(gate)                    ──▶  unshare(FILES), goes on with the new ops
//	                               ◀──  "its own descriptors": our copy of its end of the line is closed
//	                                    … execve
//	the line has ended: look into outcome
type Ahead struct {
	plan    *Plan // what the container was to be like
	s       *start
	group   *cgroups.Group
	process *Process
	pidfd   int32  // where clone3 puts it: not on a stack, which may move while another thread calls that
	gate    [2]int // a pipe
	over    chan struct{}
	thread  sync.WaitGroup
	made    []madeAhead
	filter  *seccomp.Filter // of plan's profile
	closed  bool
}

// madeAhead is a file system that the process has made inside, attached to nothing.
type madeAhead struct {
	mount mount
	at    ref
	used  bool
}

// find returns the one that m wants, once; 0 if there is none. a may be nil.
func (a *Ahead) find(m *mount) ref {
	if a == nil {
		return 0
	}
	for i := range a.made {
		if x := &a.made[i]; !x.used && reflect.DeepEqual(x.mount, *m) {
			x.used = true
			return x.at
		}
	}
	return 0
}

// aheadOps is room for a program of twice the usual length, and a hundred mounts. There is
// no more: the process knows where its program lies.
const aheadOps = 1024

// aheadNS are the namespaces that it has; a network's is joined or made later.
const aheadNS = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP

const (
	msgHere = msgMark + 7
	msgOwn  = msgMark + 8 // it has descriptors of its own
)

// NewAhead makes one for a container like that of p, in p's cgroup, with the limits
// that p has, which should be those of every container. The caller closes it, or calls StartAhead. If ctx ends, so does it.
func NewAhead(ctx context.Context, p *Plan) (_ *Ahead, err error) {
	if !supported {
		return nil, fmt.Errorf("start a container on this architecture: %w", ErrUnsupported)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, &StepError{"PR_SET_DUMPABLE", err}
	}
	a := &Ahead{plan: p, s: newStart(p, p.proc), gate: [2]int{-1, -1}, over: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if why := a.misfit(p); why != "" {
		return nil, fmt.Errorf("made ahead: %s: %w", why, ErrUnsupported)
	}
	if p.seccomp != nil {
		if a.filter, err = seccomp.Cached(p.seccompCache, p.seccomp); err != nil {
			return nil, &StepError{"seccomp", err}
		}
	}
	a.s.prog.ops = make([]op, 0, aheadOps)
	if a.group, err = cgroups.Create(p.cgroup, p.resources); err != nil {
		return nil, &StepError{"cgroup " + p.cgroup, err}
	}
	if err := a.write(); err != nil {
		return nil, err
	}
	return a, a.begin(ctx)
}

// write writes the program up to where it waits.
func (a *Ahead) write() error {
	s, p := a.s, a.s.prog
	if err := s.openLine(); err != nil {
		return err
	}
	p.ops, p.names = p.ops[:0], p.names[:0] // the line is shared at first
	if err := unix.Pipe2(a.gate[:], unix.O_CLOEXEC); err != nil {
		return &StepError{"pipe2", err}
	}
	own, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return &StepError{"pidfd_open", err}
	}
	s.fds.add(own)
	p.step = "end with the runtime"
	p.add(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	// It may have ended before: then poll finds it readable.
	ask := p.bytes(8)
	*(*unix.PollFd)(unsafe.Pointer(&ask[0])) = unix.PollFd{Fd: int32(own), Events: unix.POLLIN}
	p.add(unix.SYS_PPOLL, addr(ask), 1, value(p, unix.Timespec{}), 0, 0)
	p.add(opCompare, addr(ask), value(p, uint64(0)), 0xffff<<48, negative(unix.ESRCH)) // revents

	if err := s.joinCgroup(a.group); err != nil {
		return err
	}
	p.newKeyring()
	p.step = "cgroup namespace"
	p.add(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	if err := s.makeScratch(); err != nil {
		return &StepError{"scratch", err}
	}
	p.step = "make the mounts private"
	p.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE)
	p.step = "attach scratch"
	p.add(unix.SYS_MOVE_MOUNT, uintptr(s.scratch), p.str(""), fdcwd, p.str("/"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.pivot(uintptr(s.scratch))
	for i := range a.plan.mounts {
		m := &a.plan.mounts[i]
		if m.kind != "proc" && m.kind != "mqueue" { // sysfs shows a network
			continue
		}
		p.step = m.String()
		at := p.makeFS(m, a.plan.labelled(m))
		a.made = append(a.made, madeAhead{mount: *m, at: at})
		p.add(unix.SYS_CLOSE, p.ops[at-refBase].arg[0]) // fsopen's
	}
	p.step = "tell the runtime"
	p.add(unix.SYS_WRITE, uintptr(s.line.child), value(p, uint64(msgHere)), 8)
	s.await(uintptr(a.gate[0]))
	a.fill()
	p.link()
	return nil
}

// fill puts ops that do nothing where those to come will be, and where a program
// whose execve has failed goes on to its end.
func (a *Ahead) fill() {
	ops := a.s.prog.ops
	word := value(a.s.prog, uint64(0))
	for i := len(ops); i < cap(ops); i++ {
		ops[:cap(ops)][i] = op{nr: opCompare, arg: [6]uintptr{word, word}}
	}
}

// begin makes the process and waits until it is where it waits.
func (a *Ahead) begin(ctx context.Context) error {
	s := a.s
	out := s.outcome()
	out.report = s.line.child
	a.pidfd = -1
	args := &cloneArgs{
		flags: aheadNS&^unix.CLONE_NEWCGROUP | unix.CLONE_PIDFD | unix.CLONE_CLEAR_SIGHAND | unix.CLONE_VM | unix.CLONE_FILES,
		pidfd: uint64(uintptr(unsafe.Pointer(&a.pidfd))), exitSignal: uint64(unix.SIGCHLD),
	}
	if g := a.group.Unified(); g != nil {
		args.flags |= unix.CLONE_INTO_CGROUP
		args.cgroup = uint64(g.Fd())
	}
	type result struct {
		pid int
		err error
	}
	forked := make(chan result, 1)
	a.thread.Go(func() {
		// The process ends with the thread that made it (PR_SET_PDEATHSIG), so that has to stay.
		goruntime.LockOSThread()
		defer goruntime.UnlockOSThread()
		pid, err := s.forkAhead(args, out)
		forked <- result{pid, err}
		if err == nil {
			<-a.over
		}
	})
	r := <-forked
	goruntime.KeepAlive(a.group)
	if r.err != nil {
		return r.err
	}
	a.process = newProcess(r.pid, int(a.pidfd), nil, false)
	stop := context.AfterFunc(ctx, func() { _ = a.process.Signal(unix.SIGKILL) })
	kind, err := a.receive()
	if !stop() {
		return ctx.Err()
	}
	switch {
	case err != nil:
		return err
	case kind == msgHere:
		return nil
	case out.errno != 0:
		return s.failure(out)
	}
	return ErrAhead
}

// receive is the line's, which has an end when the process has: this process holds both ends.
func (a *Ahead) receive() (uint64, error) {
	got := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-a.process.done:
			_ = unix.Shutdown(a.s.line.parent, unix.SHUT_RD) // what it has said can still be read
		case <-got:
		}
	})
	defer watch.Wait()
	defer close(got)
	return a.s.receive()
}

// misfit says what of p it cannot give; "" if it can be that container.
func (a *Ahead) misfit(p *Plan) string {
	h := &p.hooks
	switch {
	case p.cgroup != a.plan.cgroup:
		return "another cgroup"
	case p.newNS&^unix.CLONE_NEWNET != aheadNS || p.own()&^unix.CLONE_NEWNET != aheadNS:
		return "namespaces"
	case len(h.runtime)+len(h.container)+len(h.start) > 0:
		return "hooks"
	case p.seccomp != nil && p.seccomp.ListenerPath != "":
		return "a seccomp listener"
	case p.scope != nil:
		return "a scope of systemd"
	case len(p.netDevices) > 0:
		return "devices of the network"
	case p.noKeyring:
		return "the session keyring"
	case p.mountLabel != a.plan.mountLabel:
		return "a mount label"
	case cgroups.Special(p.resources):
		return "limits of other controllers"
	}
	return ""
}

// Cgroup is the one that it is in.
func (a *Ahead) Cgroup() string { return a.plan.cgroup }

// Fits says whether StartAhead can make it p's container.
func (a *Ahead) Fits(p *Plan) bool { return a.misfit(p) == "" && !a.closed }

// ErrAhead says that a process which was made ahead has ended, or was ended, before anything
// of a container was executed in it; nothing is left of it, and the container can be started anew.
var ErrAhead = errors.New("the process that was made ahead has ended")

// Close ends the process, and removes its cgroup. After StartAhead it does nothing.
func (a *Ahead) Close() error {
	if a.closed {
		return nil
	}
	c := &Container{plan: a.plan, root: -1, devpts: -1, group: a.group, init: a.process}
	err := c.Close()
	a.end()
	a.s.close()
	return err
}

// end lets go of all but what a start takes over.
func (a *Ahead) end() {
	a.closed = true
	close(a.over)
	a.thread.Wait()
	for _, fd := range a.gate {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, m := range a.made {
		if fd := int(a.s.prog.ops[m.at-refBase].result); fd > 0 { // it was made in our table
			unix.Close(fd)
		}
	}
}

// StartAhead is Start of a container in a process that was made ahead, which fits p.
// Whether it succeeds or not, the process is used up.
func StartAhead(ctx context.Context, a *Ahead, p *Plan, f Files) (_ *Container, err error) {
	if a.closed {
		return nil, ErrAhead
	}
	if why := a.misfit(p); why != "" {
		return nil, errors.Join(fmt.Errorf("made ahead: %s: %w", why, ErrUnsupported), a.Close())
	}
	s := a.s
	s.plan, s.proc, s.ahead = p, p.proc, a
	c := &Container{plan: p, devpts: -1, root: -1, group: a.group, init: a.process}
	defer s.close()
	defer a.end()
	restore, err := holdOOMScore(p.proc.oomScore)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	defer func() { // when the process has memory of its own, or has ended
		if rerr := restore(); rerr != nil && err == nil {
			err = errors.Join(rerr, c.Close())
		} else {
			err = errors.Join(err, rerr)
		}
	}()
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if err := a.limit(p.resources); err != nil {
		return nil, &StepError{"cgroup " + p.cgroup, err}
	}
	if err := s.prepare(c, f); err != nil {
		return nil, err
	}
	if err := s.delegate(a.group); err != nil {
		return nil, &StepError{"delegate the cgroup", err}
	}
	if err := c.keep(s); err != nil {
		return nil, err
	}
	if len(s.prog.ops) >= aheadOps {
		return nil, fmt.Errorf("%w: there is no room for a program of %d steps", ErrAhead, len(s.prog.ops))
	}
	if err := s.goOn(ctx, a); err != nil {
		return nil, err
	}
	c.init.console, s.console = s.console, nil
	if err := c.Poststart(ctx); err != nil {
		return nil, errors.Join(err, p.Poststop(context.WithoutCancel(ctx)))
	}
	return c, nil
}

// holdOOMScore returns what gives this process the score back that it has, if another is
// set for the process ahead: the kernel sets that for all that share memory, but
// for a child of vfork (__set_oom_adj in fs/proc/base.c, Linux 6.18).
func holdOOMScore(other *int) (restore func() error, err error) {
	if other == nil {
		return func() error { return nil }, nil
	}
	const name = "/proc/self/oom_score_adj"
	own, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	return func() error { return os.WriteFile(name, own, 0) }, nil
}

// limit gives the group, in which nothing of the container is, the container's limits.
func (a *Ahead) limit(r *specs.LinuxResources) error {
	if r == nil || a.plan.resources == nil || !reflect.DeepEqual(r.Devices, a.plan.resources.Devices) {
		return a.group.Limit(r)
	}
	rest := *r
	rest.Devices = nil // they are set
	return a.group.Update(&rest)
}

// filterOf is the filter of a profile that it was made with; nil of any other. a may be nil.
func (a *Ahead) filterOf(p *specs.LinuxSeccomp) *seccomp.Filter {
	if a == nil || p != a.plan.seccomp {
		return nil
	}
	return a.filter
}

// enterAhead is enter for a process that is in its cgroup and most of its namespaces.
func (s *start) enterAhead() error {
	p := s.prog
	p.step = "descriptors of its own"
	p.add(unix.SYS_UNSHARE, unix.CLONE_FILES)
	p.add(unix.SYS_CLOSE, uintptr(s.line.parent))
	p.add(unix.SYS_WRITE, uintptr(s.line.child), value(p, uint64(msgOwn)), 8)
	for _, j := range s.plan.join {
		fd, err := openNamespace(j)
		if err != nil {
			return err
		}
		s.fds.add(fd)
		p.step = "join " + j.path
		p.add(unix.SYS_SETNS, uintptr(fd), j.kind)
	}
	if s.plan.newNS&unix.CLONE_NEWNET != 0 {
		p.step = "network namespace"
		p.add(unix.SYS_UNSHARE, unix.CLONE_NEWNET)
	}
	return nil
}

// goOn opens the gate, and returns when the program has been executed.
func (s *start) goOn(ctx context.Context, a *Ahead) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	out := s.outcome()
	stop := context.AfterFunc(ctx, func() { _ = a.process.Signal(unix.SIGKILL) })
	_, err := unix.Write(a.gate[1], []byte{goAhead})
	var kind uint64
	if err == nil {
		kind, err = a.receive()
	}
	if err == nil && kind == msgOwn {
		s.line.closeChild()
		_, err = a.s.receive() // ends when its copy does
	}
	if err == nil && out.errno == 0 && kind == msgOwn && s.report >= 0 {
		err = s.awaitInit()
	}
	killed := !stop()
	switch {
	case killed:
		return ctx.Err()
	case err != nil:
		return err
	case out.errno != 0:
		return s.failure(out)
	case kind != msgOwn:
		return ErrAhead
	}
	return nil
}

// forkAhead is fork of a program that goes on where ops will be written later.
func (s *start) forkAhead(args *cloneArgs, out *outcome) (int, error) {
	prog := *s.prog
	prog.ops = s.prog.ops[:aheadOps]
	whole := *s
	whole.prog = &prog
	return whole.fork(args, out)
}

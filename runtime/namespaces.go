package runtime

import (
	"errors"
	"fmt"
	goruntime "runtime"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// threadNS is a namespace that the thread joins that makes the child, and leaves again.
type threadNS struct {
	fd   int
	kind uintptr
	own  string // file of it below /proc/thread-self/ns
}

// procNames are the names of namespaces below /proc/PID/ns.
var procNames = map[uintptr]string{
	unix.CLONE_NEWPID: "pid", unix.CLONE_NEWNET: "net", unix.CLONE_NEWIPC: "ipc", unix.CLONE_NEWUTS: "uts",
	unix.CLONE_NEWCGROUP: "cgroup",
}

// needLine opens a line to the child if it has to wait for something.
func (s *start) needLine() error {
	p := s.plan
	if s.ahead != nil {
		return nil
	}
	h := &p.hooks
	if s.park == nil && len(h.runtime)+len(h.container)+len(h.start) == 0 && p.newNS&unix.CLONE_NEWUSER == 0 &&
		!p.joinsUser() && !s.notifies() && len(p.netDevices) == 0 {
		return nil
	}
	if err := s.openLine(); err != nil {
		return err
	}
	if s.park == nil {
		return nil
	}
	return s.openParking()
}

func (p *Plan) joinsUser() bool {
	for _, j := range p.join {
		if j.kind == unix.CLONE_NEWUSER {
			return true
		}
	}
	return false
}

// enter puts the child into its cgroup and its namespaces, before anything else.
//
// New namespaces are made by clone3 and so belong to the new user namespace, if
// there is one. Those that exist may belong to another one: the thread that calls clone3 joins them.
// If the user namespace itself exists, only a process that is in it already
// can make the others: the first child joins it, and makes a second.
func (s *start) enter(g *cgroups.Group) error {
	if s.ahead != nil {
		return s.enterAhead()
	}
	if err := s.joinCgroup(g); err != nil {
		return err
	}
	p, plan := s.prog, s.plan
	const late = unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME // made by the child when it is where it belongs
	s.cloneFlags = plan.newNS &^ late
	inUser := plan.newNS&unix.CLONE_NEWUSER != 0
	userFD := -1
	for _, j := range plan.join {
		fd, err := openNamespace(j)
		if err != nil {
			return err
		}
		s.fds.add(fd)
		switch {
		case j.kind == unix.CLONE_NEWUSER:
			userFD = fd
		case j.kind == unix.CLONE_NEWPID || inUser && j.kind != unix.CLONE_NEWTIME:
			s.threadNS = append(s.threadNS, threadNS{fd, j.kind, procNames[j.kind]})
		case inUser:
			return fmt.Errorf("join a time namespace from a new user namespace: %w", ErrUnsupported)
		default:
			p.step = "join " + j.path
			p.add(unix.SYS_SETNS, uintptr(fd), j.kind)
		}
	}
	if userFD >= 0 {
		p.rlimits(s.higher())
		s.joinUser(userFD)
	}
	if plan.newNS&unix.CLONE_NEWTIME != 0 {
		p.step = "time namespace"
		p.add(unix.SYS_UNSHARE, unix.CLONE_NEWTIME) // execve enters it (Linux 6.1)
	}
	if inUser || userFD >= 0 && (plan.timeOffsets != "" || s.proc.oomScore != nil) {
		s.sync(msgMapIDs)
	}
	if inUser || userFD >= 0 {
		p.step = "become root of the user namespace"
		p.add(unix.SYS_SETRESGID, 0, 0, 0)
		p.tolerate(unix.EINVAL, 0) // it has none
		p.add(unix.SYS_SETRESUID, 0, 0, 0)
		p.tolerate(unix.EINVAL, 0)
	}
	if plan.newNS&unix.CLONE_NEWTIME != 0 && !inUser && userFD < 0 && plan.timeOffsets != "" {
		p.step = "time offsets"
		f := p.open(s.ownProcfs(), "self/timens_offsets", unix.O_WRONLY, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_XDEV)
		p.write(f, plan.timeOffsets)
	}
	if !plan.noKeyring {
		p.newKeyring()
	}
	if plan.newNS&unix.CLONE_NEWCGROUP != 0 {
		p.step = "cgroup namespace"
		p.add(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	if len(plan.netDevices) > 0 {
		s.sync(msgDevices)
	}
	return nil
}

// higher are limits that the child must be given while it is still one of the host's, or
// by us: to raise a hard limit takes the host's CAP_SYS_RESOURCE. The soft ones stay.
func (s *start) higher() (list []rlimit) {
	for _, r := range s.proc.rlimits {
		var now unix.Rlimit
		if err := unix.Prlimit(0, r.resource, nil, &now); err == nil && r.hard > now.Max {
			list = append(list, rlimit{r.name, r.resource, now.Cur, r.hard})
		}
	}
	return list
}

// joinUser takes the child into an existing user namespace, and makes the others from there.
func (s *start) joinUser(fd int) {
	p := s.prog
	p.step = "join the user namespace"
	p.add(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWUSER)
	flags := s.cloneFlags
	s.cloneFlags = 0
	if flags&unix.CLONE_NEWPID != 0 {
		s.forks = true
		s.forkHere(flags)
		return
	}
	p.step = "new namespaces"
	p.add(unix.SYS_UNSHARE, flags)
}

func (p *program) newKeyring() {
	p.step = "new session keyring"
	p.add(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0)
	p.tolerate(unix.ENOSYS, 0)
}

func openNamespace(j joinNS) (int, error) {
	low, err := unix.Open(j.path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", j.path, err)
	}
	defer unix.Close(low)
	kind, err := unix.IoctlRetInt(low, unix.NS_GET_NSTYPE)
	if err != nil || uintptr(kind) != j.kind {
		return -1, fmt.Errorf("%s: it is not a namespace of the kind that is wanted", j.path)
	}
	return dupHigh(low)
}

// joinAsThread makes this thread's next child one of other namespaces, and
// returns what takes that back. Of a pid namespace the thread itself becomes no member.
func (s *start) joinAsThread() (func() error, error) {
	var undo []func() error
	back := func() error {
		for i := len(undo) - 1; i >= 0; i-- {
			if err := undo[i](); err != nil {
				// Unlocking such a thread would give its namespace to other goroutines.
				goruntime.LockOSThread()
				return err
			}
		}
		return nil
	}
	for _, n := range s.threadNS {
		own, err := unix.Open("/proc/thread-self/ns/"+n.own, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			if err = unix.Setns(n.fd, int(n.kind)); err != nil {
				unix.Close(own)
			}
		}
		if err != nil {
			return func() error { return nil }, errors.Join(&StepError{"join the " + n.own + " namespace", err}, back())
		}
		undo = append(undo, func() error {
			defer unix.Close(own)
			if err := unix.Setns(own, int(n.kind)); err != nil {
				return &StepError{"leave the " + n.own + " namespace", err}
			}
			return nil
		})
	}
	return back, nil
}

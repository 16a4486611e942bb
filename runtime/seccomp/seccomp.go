// Package seccomp compiles a seccomp profile of the OCI runtime specification
// into a BPF program.
//
// The kernel runs a new filter once for every system call number, to know which
// it may allow without running it again. A list of comparisons makes that
// 300 to 440 µs for Docker's profile; here numbers are merged into ranges and
// found by binary search, which takes 50 to 70 µs (measured on 6.18).
//
// What a profile means is what libseccomp and runc make of it:
//   - A rule with the default action is no rule. Names this package does not know are ignored.
//   - A rule without conditions wins over those of the same call that have some;
//     of several without, the first. Of those with conditions the first that matches wins.
//   - All conditions of a rule have to match, but if two are about one argument, any suffices.
//   - Calls newer than the newest the profile names get ENOSYS, so that
//     programs fall back to older ones (runc's patchbpf), unless the default
//     action lets calls through.
//   - A call of an architecture that the profile does not list kills the process.
package seccomp

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Filter is what to give to seccomp(2).
type Filter struct {
	Insns []unix.SockFilter
	Flags uint32 // SECCOMP_FILTER_FLAG_*
}

// maxInsns is the kernel's limit, BPF_MAXINSNS.
const maxInsns = 4096

// ErrUnsupported is wrapped by errors about valid profiles that ask for too much.
var ErrUnsupported = errors.New("not supported")

// An action is a value that a filter returns.
type action uint32

const killProcess = action(unix.SECCOMP_RET_KILL_PROCESS)

// A condition is about one argument of a call.
type condition struct {
	arg  uint
	op   specs.LinuxSeccompOperator
	a, b uint64 // for MASKED_EQ the mask and the value
}

// A rule answers for a call if all of its conditions match.
type rule struct {
	when   []condition
	action action
}

// A decision is what becomes of a call: the first rule that matches, or the rest.
type decision struct {
	rules []rule
	rest  action
}

func (d decision) equal(e decision) bool {
	return d.rest == e.rest && slices.EqualFunc(d.rules, e.rules, func(a, b rule) bool {
		return a.action == b.action && slices.Equal(a.when, b.when)
	})
}

// Check tells whether Compile would take a profile, in a fraction of the time.
func Check(p *specs.LinuxSeccomp) error {
	_, err := read(p)
	return err
}

// Compile makes a filter for the machine this runs on.
func Compile(p *specs.LinuxSeccomp) (*Filter, error) { return compile(p, nativeABIs) }

// profile is a checked profile.
type profile struct {
	rest  action
	calls []call
	abis  []specs.Arch
	flags uint32
}

// call is one rule of the profile, for all its names.
type call struct {
	names []string
	rules []rule
}

func read(s *specs.LinuxSeccomp) (*profile, error) {
	p := &profile{abis: s.Architectures}
	var err error
	if p.rest, err = readAction(s.DefaultAction, s.DefaultErrnoRet); err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	if s.DefaultAction == specs.ActNotify {
		return nil, fmt.Errorf("defaultAction: %s: %w", specs.ActNotify, ErrUnsupported)
	}
	notifies, waits := false, false
	for _, f := range s.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			p.flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			p.flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			waits = true
		case "SECCOMP_FILTER_FLAG_TSYNC": // there is only one thread
		default:
			return nil, fmt.Errorf("flags: %s: %w", f, ErrUnsupported)
		}
	}
	for i, sc := range s.Syscalls {
		notifies = notifies || sc.Action == specs.ActNotify
		c, err := readCall(sc)
		if err != nil {
			return nil, fmt.Errorf("syscalls[%d] (%s): %w", i, first(sc.Names), err)
		}
		if c.rules[0].action != p.rest {
			p.calls = append(p.calls, c)
		}
	}
	return p, p.readNotify(s, notifies, waits)
}

// readNotify checks the parts of a profile that are about a notifier. The
// process that installs the filter has yet to hand the notifier over, by write and read.
func (p *profile) readNotify(s *specs.LinuxSeccomp, notifies, waits bool) error {
	switch {
	case notifies && s.ListenerPath == "":
		return fmt.Errorf("%s: there is no listenerPath", specs.ActNotify)
	case !notifies && (s.ListenerPath != "" || s.ListenerMetadata != ""):
		return fmt.Errorf("listenerPath: no rule has %s", specs.ActNotify)
	case !notifies && waits:
		return fmt.Errorf("flags: %s: no rule has %s", specs.LinuxSeccompFlagWaitKillableRecv, specs.ActNotify)
	case !notifies:
		return nil
	case !filepath.IsAbs(s.ListenerPath) || len(s.ListenerPath) > 107: // sun_path, with its NUL
		return fmt.Errorf("listenerPath: %q is no absolute path of at most 107 bytes", s.ListenerPath)
	}
	for _, sc := range s.Syscalls {
		for _, name := range sc.Names {
			if sc.Action == specs.ActNotify && (name == "read" || name == "write") {
				return fmt.Errorf("%s for %s: %w", specs.ActNotify, name, ErrUnsupported)
			}
		}
	}
	p.flags |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	if waits {
		p.flags |= 1 << 5 // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19
	}
	return nil
}

func first(names []string) string {
	if len(names) == 0 {
		return "no names"
	}
	return names[0]
}

func readAction(a specs.LinuxSeccompAction, errno *uint) (action, error) {
	var base action
	switch a {
	case specs.ActKill, specs.ActKillThread:
		base = unix.SECCOMP_RET_KILL_THREAD
	case specs.ActKillProcess:
		base = killProcess
	case specs.ActTrap:
		base = unix.SECCOMP_RET_TRAP
	case specs.ActLog:
		base = unix.SECCOMP_RET_LOG
	case specs.ActAllow:
		base = unix.SECCOMP_RET_ALLOW
	case specs.ActErrno, specs.ActTrace:
		n := uint(unix.EPERM)
		if errno != nil {
			n = *errno
		}
		if a == specs.ActTrace {
			return readData(unix.SECCOMP_RET_TRACE, n, 1<<16-1)
		}
		return readData(unix.SECCOMP_RET_ERRNO, n, 4095) // MAX_ERRNO: the kernel would cut it
	case specs.ActNotify:
		base = unix.SECCOMP_RET_USER_NOTIF
	default:
		return 0, fmt.Errorf("action %q is none", a)
	}
	if errno != nil && *errno != 0 {
		return 0, fmt.Errorf("action %s has no errnoRet", a)
	}
	return base, nil
}

func readData(base action, n, limit uint) (action, error) {
	if n > limit {
		return 0, fmt.Errorf("errnoRet %d is above %d", n, limit)
	}
	return base | action(n), nil
}

func readCall(s specs.LinuxSyscall) (call, error) {
	c := call{names: s.Names}
	if len(s.Names) == 0 {
		return c, errors.New("it names no call")
	}
	act, err := readAction(s.Action, s.ErrnoRet)
	if err != nil {
		return c, err
	}
	var seen [6]int
	var when []condition
	for _, a := range s.Args {
		if a.Index > 5 {
			return c, fmt.Errorf("argument %d: a call has six", a.Index)
		}
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan:
			when = append(when, condition{arg: a.Index, op: a.Op, a: a.Value})
		case specs.OpMaskedEqual:
			when = append(when, condition{a.Index, a.Op, a.Value, a.ValueTwo})
		default:
			return c, fmt.Errorf("argument %d: operator %q is none", a.Index, a.Op)
		}
		seen[a.Index]++
	}
	if slices.Max(seen[:]) < 2 {
		c.rules = []rule{{when, act}}
		return c, nil
	}
	for _, w := range when {
		c.rules = append(c.rules, rule{[]condition{w}, act})
	}
	return c, nil
}

// decide works out the decisions of one ABI, by number, and the newest number it
// knows of, -1 if it knows none.
func (p *profile) decide(t table) (decisions map[uint32]decision, last int64) {
	decisions, last = map[uint32]decision{}, -1
	free := map[uint32]bool{} // calls with an unconditional rule
	for _, c := range p.calls {
		for _, name := range c.names {
			n, ok := t.numbers[strings.ToLower(name)]
			if !ok {
				continue
			}
			if n < armPrivate {
				last = max(last, int64(n))
			}
			if free[n] {
				continue
			}
			d := decision{rest: p.rest}
			if have, ok := decisions[n]; ok {
				d = have
			}
			if len(c.rules[0].when) == 0 {
				free[n] = true
				d = decision{rest: c.rules[0].action}
			} else {
				d.rules = append(slices.Clip(d.rules), c.rules...)
			}
			decisions[n] = d
		}
	}
	return decisions, last
}

// permissive tells whether the default action lets a call through, maybe noticed.
func (p *profile) permissive() bool {
	switch uint32(p.rest) & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return true
	}
	return false
}

const enosys = action(unix.SECCOMP_RET_ERRNO) | action(unix.ENOSYS)

// A span is a run of numbers, up to the next span, with one decision.
type span struct {
	from uint32
	decision
}

// spans covers all numbers of an ABI.
func (p *profile) spans(t table) []span {
	decisions, last := p.decide(t)
	rest := decision{rest: p.rest}
	list := []span{{0, rest}}
	put := func(from uint32, d decision) {
		switch at := &list[len(list)-1]; {
		case at.equal(d):
		case at.from == from:
			list = list[:len(list)-1]
			if n := len(list); n == 0 || !list[n-1].equal(d) {
				list = append(list, span{from, d})
			}
		default:
			list = append(list, span{from, d})
		}
	}
	numbers := make([]uint32, 0, len(decisions))
	for n := range decisions {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	stubbed := p.permissive() || last < 0
	stub := func() {
		if !stubbed {
			put(uint32(last)+1, decision{rest: enosys})
			if t.audit == unix.AUDIT_ARCH_ARM {
				put(armPrivate, rest)
			}
			stubbed = true
		}
	}
	for _, n := range numbers {
		if int64(n) > last {
			stub()
		}
		put(n, decisions[n])
		put(n+1, rest)
	}
	stub()
	return list
}

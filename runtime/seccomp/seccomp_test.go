package seccomp

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	profiles "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

var (
	amd64 = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	arm64 = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
)

// docker is Docker's default profile for some capabilities.
func docker(t testing.TB, abis []specs.Arch, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	p.Architectures = abis
	return p
}

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

// vm interprets a filter with the interpreter of x/net/bpf. That reads packets,
// big-endian, so the words of seccomp_data are given to it that way.
type vm struct{ vm *bpf.VM }

func newVM(t testing.TB, f *Filter) vm {
	t.Helper()
	var raw []bpf.RawInstruction
	for _, i := range f.Insns {
		raw = append(raw, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K})
	}
	insns, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter has instructions the interpreter does not know")
	}
	m, err := bpf.NewVM(insns)
	if err != nil {
		t.Fatal(err)
	}
	return vm{m}
}

func (m vm) run(t testing.TB, d data) action {
	t.Helper()
	b := make([]byte, 64)
	binary.BigEndian.PutUint32(b[offNr:], d.nr)
	binary.BigEndian.PutUint32(b[offArch:], d.arch)
	for i, a := range d.args {
		binary.BigEndian.PutUint32(b[offArgs+8*i:], uint32(a))
		binary.BigEndian.PutUint32(b[offArgs+8*i+4:], uint32(a>>32))
	}
	n, err := m.vm.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return action(n)
}

// eval is what a profile means, written down as plainly as can be.
func eval(t testing.TB, s *specs.LinuxSeccomp, machine []specs.Arch, d data) action {
	t.Helper()
	act := func(a specs.LinuxSeccompAction, errno *uint) action {
		v, err := readAction(a, errno)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	abi, nr, ok := abiOf(s, machine, d)
	if !ok {
		return killProcess
	}
	rest := act(s.DefaultAction, s.DefaultErrnoRet)
	numbers := tables[abi]().numbers
	newest := int64(-1)
	var conditional []specs.LinuxSyscall
	var always *action
	for _, c := range s.Syscalls {
		a := act(c.Action, c.ErrnoRet)
		if a == rest {
			continue
		}
		for _, name := range c.Names {
			n, known := numbers[name]
			if known && n < armPrivate {
				newest = max(newest, int64(n))
			}
			switch {
			case !known || n != nr:
			case len(c.Args) > 0:
				conditional = append(conditional, c)
			case always == nil:
				always = &a
			}
		}
	}
	if always != nil {
		return *always
	}
	for _, c := range conditional {
		if matches(c.Args, d) {
			return act(c.Action, c.ErrnoRet)
		}
	}
	private := abi == specs.ArchARM && nr >= armPrivate
	if newest >= 0 && int64(nr) > newest && !private && s.DefaultAction != specs.ActAllow && s.DefaultAction != specs.ActLog && s.DefaultAction != specs.ActTrace {
		return enosys
	}
	return rest
}

// abiOf finds the ABI of a call, and its number in that ABI's table.
func abiOf(s *specs.LinuxSeccomp, machine []specs.Arch, d data) (specs.Arch, uint32, bool) {
	for i, abi := range machine {
		if tables[abi]().audit != d.arch || i > 0 && !slices.Contains(s.Architectures, abi) {
			continue
		}
		if d.arch == unix.AUDIT_ARCH_X86_64 && (abi == specs.ArchX32) != (d.nr >= x32Bit) {
			continue
		}
		if abi == specs.ArchX32 {
			return abi, d.nr - x32Bit, true
		}
		return abi, d.nr, true
	}
	return "", 0, false
}

func matches(args []specs.LinuxSeccompArg, d data) bool {
	seen := map[uint]int{}
	n := 0
	for _, a := range args {
		seen[a.Index]++
		v := d.args[a.Index]
		ok := map[specs.LinuxSeccompOperator]bool{
			specs.OpEqualTo: v == a.Value, specs.OpNotEqual: v != a.Value, specs.OpLessThan: v < a.Value, specs.OpLessEqual: v <= a.Value,
			specs.OpGreaterThan: v > a.Value, specs.OpGreaterEqual: v >= a.Value, specs.OpMaskedEqual: v&a.Value == a.ValueTwo,
		}[a.Op]
		if ok {
			n++
		}
	}
	for _, times := range seen {
		if times > 1 {
			return n > 0
		}
	}
	return n == len(args)
}

// classes are argument values at which a profile's answer for a call may change.
func classes(s *specs.LinuxSeccomp) []uint64 {
	vals := map[uint64]bool{0: true, 1: true, 1<<64 - 1: true, 1 << 32: true, 1<<32 - 1: true}
	for _, c := range s.Syscalls {
		for _, a := range c.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				for _, w := range []uint64{v - 1, v, v + 1, v | 1<<32, v ^ 1<<63} {
					vals[w] = true
				}
			}
		}
	}
	var list []uint64
	for v := range vals {
		list = append(list, v)
	}
	slices.Sort(list)
	return list
}

// compare checks a filter against the meaning of its profile, over all numbers
// and, of the calls with conditions, all argument classes.
func compare(t testing.TB, s *specs.LinuxSeccomp, machine []specs.Arch) {
	t.Helper()
	f, err := compileFor(s, machine)
	if err != nil {
		t.Fatal(err)
	}
	m := newVM(t, f)
	check := func(d data) {
		if got, want := m.run(t, d), eval(t, s, machine, d); got != want {
			t.Fatalf("call %+v: the filter says %#x, the profile %#x", d, got, want)
		}
	}
	audits := []uint32{0, unix.AUDIT_ARCH_S390X}
	for _, abi := range machine {
		audits = append(audits, tables[abi]().audit)
	}
	values := classes(s)
	for _, arch := range audits {
		for _, base := range []uint32{0, x32Bit, armPrivate, 1<<32 - 700} {
			for nr := range uint32(700) {
				check(data{nr: base + nr, arch: arch})
			}
		}
		for nr := range conditional(s, machine) {
			for i := range 6 {
				for _, v := range values {
					d := data{nr: nr, arch: arch}
					d.args[i] = v
					check(d)
				}
			}
		}
	}
}

// conditional are the numbers of calls with conditions, in any ABI.
func conditional(s *specs.LinuxSeccomp, machine []specs.Arch) map[uint32]bool {
	set := map[uint32]bool{}
	for _, c := range s.Syscalls {
		for _, name := range c.Names {
			for _, abi := range machine {
				if n, ok := tables[abi]().numbers[name]; ok && len(c.Args) > 0 {
					set[n], set[n|x32Bit] = true, true
				}
			}
		}
	}
	return set
}

func TestDocker(t *testing.T) {
	for _, c := range []struct {
		name    string
		machine []specs.Arch
		abis    []specs.Arch
		caps    []string
	}{
		{"amd64", amd64, amd64, nil}, {"amd64 alone", amd64, nil, nil}, {"amd64 and i386", amd64, amd64[:2], nil},
		{"amd64 and x32", amd64, []specs.Arch{specs.ArchX32}, nil}, {"amd64, an admin", amd64, amd64, []string{"CAP_SYS_ADMIN", "CAP_BPF"}},
		{"arm64", arm64, arm64, nil}, {"arm64 alone", arm64, nil, nil}, {"arm64 with amd64's list", arm64, amd64, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := docker(t, c.abis, c.caps...)
			compare(t, s, c.machine)
			f, err := compileFor(s, c.machine)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d instructions", len(f.Insns))
		})
	}
}

func errno(n uint) *uint { return &n }

func arg(i uint, op specs.LinuxSeccompOperator, a, b uint64) specs.LinuxSeccompArg {
	return specs.LinuxSeccompArg{Index: i, Op: op, Value: a, ValueTwo: b}
}

// TestProfiles has the corners of the specification.
func TestProfiles(t *testing.T) {
	const big = 0x1_0000_0002
	for _, c := range []struct {
		name string
		s    specs.LinuxSeccomp
	}{
		{"allow all", specs.LinuxSeccomp{DefaultAction: specs.ActAllow}},
		{"kill all", specs.LinuxSeccomp{DefaultAction: specs.ActKill}},
		{"deny some", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"ptrace", "kexec_load"}, Action: specs.ActKillProcess}, {Names: []string{"read"}, Action: specs.ActTrap}}}},
		{"errnos", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(38), Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActErrno, ErrnoRet: errno(0)}, {Names: []string{"write"}, Action: specs.ActErrno, ErrnoRet: errno(4095)},
			{Names: []string{"open"}, Action: specs.ActErrno}, {Names: []string{"close"}, Action: specs.ActErrno, ErrnoRet: errno(38)}}}},
		{"trace and log", specs.LinuxSeccomp{DefaultAction: specs.ActTrace, DefaultErrnoRet: errno(65535), Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActLog}, {Names: []string{"write"}, Action: specs.ActAllow}}}},
		{"every operator", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, big, 0)}},
			{Names: []string{"write"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(1, specs.OpNotEqual, big, 0)}},
			{Names: []string{"close"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(2, specs.OpLessThan, big, 0)}},
			{Names: []string{"fstat"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(3, specs.OpLessEqual, big, 0)}},
			{Names: []string{"lseek"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(4, specs.OpGreaterThan, big, 0)}},
			{Names: []string{"mmap"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(5, specs.OpGreaterEqual, big, 0)}},
			{Names: []string{"mprotect"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpMaskedEqual, 0xf_0000_000f, 0x1_0000_0002)}}}}},
		{"and, or, several rules", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 1, 0), arg(1, specs.OpGreaterThan, 5, 0)}},
			{Names: []string{"read", "write"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 2, 0), arg(0, specs.OpEqualTo, 3, 0), arg(2, specs.OpEqualTo, 4, 0)}},
			{Names: []string{"read"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{arg(0, specs.OpLessEqual, 9, 0)}}}}},
		{"an unconditional rule wins", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"read"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 1, 0)}},
			{Names: []string{"read"}, Action: specs.ActAllow}, {Names: []string{"read"}, Action: specs.ActLog},
			{Names: []string{"read"}, Action: specs.ActKill, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 1, 0)}}}}},
		{"ranges of values", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 1, 0)}},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 2, 0)}},
			{Names: []string{"socket"}, Action: specs.ActTrap, Args: []specs.LinuxSeccompArg{arg(0, specs.OpLessThan, 10, 0)}},
			{Names: []string{"socket"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{arg(0, specs.OpGreaterThan, 0xfffffff0, 0)}},
			{Names: []string{"bind", "read"}, Action: specs.ActLog, Args: []specs.LinuxSeccompArg{arg(2, specs.OpNotEqual, 7, 0), arg(2, specs.OpEqualTo, 8, 0), arg(2, specs.OpLessEqual, 9, 0)}}}}},
		{"unknown names", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{{Names: []string{"no_such_call"}, Action: specs.ActAllow}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.s.Architectures = amd64
			compare(t, &c.s, amd64)
			c.s.Architectures = arm64
			compare(t, &c.s, arm64)
		})
	}
}

func TestRefused(t *testing.T) {
	call := func(c specs.LinuxSyscall) specs.LinuxSeccomp {
		return specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{c}}
	}
	read := []string{"read"}
	for name, s := range map[string]specs.LinuxSeccomp{
		"no action":     {},
		"bad action":    {DefaultAction: "SCMP_ACT_MAYBE"},
		"notify":        {DefaultAction: specs.ActNotify},
		"listener":      {DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		"flag":          {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"X"}},
		"default errno": {DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(4096)},
		"errno":         call(specs.LinuxSyscall{Names: read, Action: specs.ActErrno, ErrnoRet: errno(70000)}),
		"errno of kill": call(specs.LinuxSyscall{Names: read, Action: specs.ActKill, ErrnoRet: errno(1)}),
		"no names":      call(specs.LinuxSyscall{Action: specs.ActErrno}),
		"argument 6":    call(specs.LinuxSyscall{Names: read, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{arg(6, specs.OpEqualTo, 0, 0)}}),
		"operator":      call(specs.LinuxSyscall{Names: read, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{arg(0, "SCMP_CMP_X", 0, 0)}}),
	} {
		if err := Check(&s); err == nil {
			t.Errorf("%s: Check gave no error", name)
		}
		if _, err := compileFor(&s, amd64); err == nil {
			t.Errorf("%s: Compile gave no error", name)
		}
	}
}

func TestTooLong(t *testing.T) {
	s := specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(2000) {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(0, specs.OpMaskedEqual, i, i)}})
	}
	if _, err := compileFor(&s, amd64); err == nil || !strings.Contains(err.Error(), "4096") {
		t.Errorf("Compile of a filter that is too long = %v", err)
	}
}

var randomNames = []string{"read", "write", "open", "close", "clone", "socket", "openat2", "cacheflush", "rt_sigaction", "statx", "mseal", "nothing"}

// random makes a profile from bytes.
func random(b []byte) *specs.LinuxSeccomp {
	at := 0
	next := func(n int) int {
		if len(b) == 0 {
			return 0
		}
		v := int(b[at%len(b)]) + at/len(b)
		at++
		return v % n
	}
	actions := []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog}
	args := 1 + next(6)
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	values := []uint64{0, 1, 2, 0xffffffff, 1 << 32, 0x1_0000_0001, 1 << 63, 1<<64 - 1}
	s := &specs.LinuxSeccomp{DefaultAction: actions[next(len(actions))]}
	for _, a := range append(slices.Clone(amd64), arm64...) {
		if next(2) == 0 {
			s.Architectures = append(s.Architectures, a)
		}
	}
	for range next(12) {
		c := specs.LinuxSyscall{Action: actions[next(len(actions))]}
		if c.Action == specs.ActErrno && next(2) == 0 {
			c.ErrnoRet = errno(uint(next(40)))
		}
		for range 1 + next(4) {
			c.Names = append(c.Names, randomNames[next(len(randomNames))])
		}
		for range next(4) {
			c.Args = append(c.Args, arg(uint(next(args)), ops[next(len(ops))], values[next(len(values))], values[next(len(values))]))
		}
		s.Syscalls = append(s.Syscalls, c)
	}
	return s
}

func TestRandomProfiles(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 25 {
		b := make([]byte, 64)
		for k := range b {
			b[k] = byte(r.Uint32())
		}
		t.Run(fmt.Sprint(i), func(t *testing.T) { compareSome(t, random(b)) })
	}
}

// compareSome is compare for the calls that random names.
func compareSome(t *testing.T, s *specs.LinuxSeccomp) {
	for _, machine := range [][]specs.Arch{amd64, arm64} {
		f, err := compileFor(s, machine)
		if err != nil {
			t.Fatal(err)
		}
		m := newVM(t, f)
		for _, abi := range machine {
			numbers := map[uint32]bool{0: true, 1000: true, armPrivate: true, armPrivate + 9: true, x32Bit + 9: true, 1<<32 - 1: true}
			for name, n := range tables[abi]().numbers {
				if !slices.Contains(randomNames, name) {
					continue
				}
				if abi == specs.ArchX32 {
					n |= x32Bit
				}
				numbers[n] = true
			}
			for nr := range numbers {
				for _, v := range classes(s)[:8] {
					d := data{nr, tables[abi]().audit, [6]uint64{v, v + 1, 0, v, 1, v}}
					if got, want := m.run(t, d), eval(t, s, machine, d); got != want {
						t.Fatalf("call %+v: the filter says %#x, the profile %#x", d, got, want)
					}
				}
			}
		}
	}
}

func FuzzCompile(f *testing.F) {
	f.Add([]byte("seccomp"))
	f.Add([]byte{5, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 200, 100, 50})
	f.Fuzz(func(t *testing.T, b []byte) { compareSome(t, random(b)) })
}

func BenchmarkCompile(b *testing.B) {
	s := docker(b, amd64)
	for b.Loop() {
		if _, err := compileFor(s, amd64); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCached(b *testing.B) {
	s, dir := docker(b, amd64), b.TempDir()
	for b.Loop() {
		if _, err := Cached(dir, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	s := docker(b, amd64)
	for b.Loop() {
		if err := Check(s); err != nil {
			b.Fatal(err)
		}
	}
}

package seccomp

import (
	"fmt"
	goruntime "runtime"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data. Both architectures are little-endian.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

func compile(s *specs.LinuxSeccomp, machine map[string][]specs.Arch) (*Filter, error) {
	return compileFor(s, machine[goruntime.GOARCH])
}

// compileFor compiles for a machine that runs some ABIs, its own first. ABIs
// that the profile lists and the machine does not run are left out.
func compileFor(s *specs.LinuxSeccomp, machine []specs.Arch) (*Filter, error) {
	if len(machine) == 0 {
		return nil, fmt.Errorf("a filter for %s: %w", goruntime.GOARCH, ErrUnsupported)
	}
	p, err := read(s)
	if err != nil {
		return nil, err
	}
	code := []unix.SockFilter{load(offArch)}
	for i, abi := range machine {
		if abi == specs.ArchX32 || i > 0 && !slices.Contains(p.abis, abi) {
			continue
		}
		t := tables[abi]()
		body := append([]unix.SockFilter{load(offNr)}, p.gate(abi)...)
		body = append(body, search(p.spans(t))...)
		code = append(code, jump(unix.BPF_JEQ, t.audit, 1, 0), skip(len(body)))
		code = append(code, body...)
	}
	code = append(code, ret(killProcess))
	if len(code) > maxInsns {
		return nil, fmt.Errorf("the filter has %d instructions, the kernel takes %d", len(code), maxInsns)
	}
	return &Filter{Insns: code, Flags: p.flags}, nil
}

// gate turns away x32 from amd64's part, or finds its decisions.
func (p *profile) gate(abi specs.Arch) []unix.SockFilter {
	if abi != specs.ArchX86_64 {
		return nil
	}
	body := []unix.SockFilter{ret(killProcess)}
	if slices.Contains(p.abis, specs.ArchX32) {
		list := p.spans(tables[specs.ArchX32]())
		for i := range list {
			list[i].from |= x32Bit
		}
		body = search(list)
	}
	return append([]unix.SockFilter{jump(unix.BPF_JGE, x32Bit, 1, 0), skip(len(body))}, body...)
}

// search finds the span of the number in the accumulator, by halves.
func search(list []span) []unix.SockFilter {
	if len(list) == 1 {
		return leaf(list[0].decision)
	}
	mid := len(list) / 2
	left, right := search(list[:mid]), search(list[mid:])
	var code []unix.SockFilter
	if len(left) <= 255 {
		code = append(code, jump(unix.BPF_JGE, list[mid].from, uint8(len(left)), 0))
	} else {
		code = append(code, jump(unix.BPF_JGE, list[mid].from, 0, 1), skip(len(left)))
	}
	return append(append(code, left...), right...)
}

// leaf tries the rules of a decision in turn.
func leaf(d decision) []unix.SockFilter {
	if code, ok := byValue(d); ok {
		return code
	}
	var code []unix.SockFilter
	for _, r := range d.rules {
		code = append(code, r.code()...)
	}
	return append(code, ret(d.rest))
}

// byValue decides by ranges of one argument's values, where all rules are about
// it alone and compare it with 32-bit numbers. Docker's profile has forty such
// rules for socket.
func byValue(d decision) ([]unix.SockFilter, bool) {
	if len(d.rules) < 3 {
		return nil, false
	}
	bounds := []uint64{0}
	arg := d.rules[0].when[0].arg
	for _, r := range d.rules {
		c := r.when[0]
		if len(r.when) != 1 || c.arg != arg || c.op == specs.OpMaskedEqual || c.a >= 1<<32-1 {
			return nil, false
		}
		bounds = append(bounds, c.a, c.a+1)
	}
	slices.Sort(bounds)
	var list []span
	for _, v := range slices.Compact(bounds) {
		at := decision{rest: d.at(v)}
		if n := len(list); n == 0 || !list[n-1].equal(at) {
			list = append(list, span{uint32(v), at})
		}
	}
	off := uint32(offArgs + 8*arg)
	code := []unix.SockFilter{load(off + 4), jump(unix.BPF_JEQ, 0, 1, 0), ret(d.at(1 << 32)), load(off)}
	return append(code, search(list)...), true
}

// at is the decision for one value of the only argument that matters.
func (d decision) at(v uint64) action {
	for _, r := range d.rules {
		if r.when[0].match(v) {
			return r.action
		}
	}
	return d.rest
}

// match compares a value, for any operator but the masked one.
func (c condition) match(v uint64) bool {
	switch c.op {
	case specs.OpEqualTo:
		return v == c.a
	case specs.OpNotEqual:
		return v != c.a
	case specs.OpGreaterThan:
		return v > c.a
	case specs.OpGreaterEqual:
		return v >= c.a
	case specs.OpLessThan:
		return v < c.a
	}
	return v <= c.a
}

// Where a comparison goes on, besides the next instruction (0).
const (
	pass = -1 // behind this condition
	fail = -2 // behind this rule
)

// A test is a comparison whose targets are not numbers yet.
type test struct {
	unix.SockFilter
	yes, no int
}

// code returns the action if all conditions hold, and falls through if not.
func (r rule) code() []unix.SockFilter {
	var all []test
	for _, c := range r.when {
		part := c.tests()
		for i, t := range part {
			part[i].yes, part[i].no = local(t.yes, len(part)-i-1), local(t.no, len(part)-i-1)
		}
		all = append(all, part...)
	}
	code := make([]unix.SockFilter, 0, len(all)+1)
	for i, t := range all {
		end := len(all) - i // the return lies between
		t.Jt, t.Jf = distance(t.yes, end), distance(t.no, end)
		code = append(code, t.SockFilter)
	}
	return append(code, ret(r.action))
}

func local(to, end int) int {
	if to == pass {
		return end
	}
	return to
}

// distance is at most 6 conditions of 6 instructions.
func distance(to, end int) uint8 {
	if to == fail {
		return uint8(end)
	}
	return uint8(to)
}

// tests compares a 64-bit argument by its halves, the high one first.
func (c condition) tests() []test {
	off := uint32(offArgs + 8*c.arg)
	low, high := test{SockFilter: load(off)}, test{SockFilter: load(off + 4)}
	lo, hi := uint32(c.a), uint32(c.a>>32)
	cmp := func(op uint16, k uint32, yes, no int) test { return test{jump(op, k, 0, 0), yes, no} }
	and := func(k uint32) test {
		return test{SockFilter: unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: k}}
	}
	switch c.op {
	case specs.OpEqualTo:
		return []test{high, cmp(unix.BPF_JEQ, hi, 0, fail), low, cmp(unix.BPF_JEQ, lo, 0, fail)}
	case specs.OpNotEqual:
		return []test{high, cmp(unix.BPF_JEQ, hi, 0, pass), low, cmp(unix.BPF_JEQ, lo, fail, 0)}
	case specs.OpGreaterThan:
		return []test{high, cmp(unix.BPF_JGT, hi, pass, 0), cmp(unix.BPF_JEQ, hi, 0, fail), low, cmp(unix.BPF_JGT, lo, 0, fail)}
	case specs.OpGreaterEqual:
		return []test{high, cmp(unix.BPF_JGT, hi, pass, 0), cmp(unix.BPF_JEQ, hi, 0, fail), low, cmp(unix.BPF_JGE, lo, 0, fail)}
	case specs.OpLessThan:
		return []test{high, cmp(unix.BPF_JGT, hi, fail, 0), cmp(unix.BPF_JEQ, hi, 0, pass), low, cmp(unix.BPF_JGE, lo, fail, 0)}
	case specs.OpLessEqual:
		return []test{high, cmp(unix.BPF_JGT, hi, fail, 0), cmp(unix.BPF_JEQ, hi, 0, pass), low, cmp(unix.BPF_JGT, lo, fail, 0)}
	case specs.OpMaskedEqual:
		return []test{high, and(hi), cmp(unix.BPF_JEQ, uint32(c.b>>32), 0, fail), low, and(lo), cmp(unix.BPF_JEQ, uint32(c.b), 0, fail)}
	}
	panic("operator " + string(c.op) + " passed readCall")
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func jump(op uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

func skip(n int) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(n)}
}

func ret(a action) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: uint32(a)}
}

package cgroups

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A rule is about one device, or with -1 about many. Access is of mknod (1), read (2), write (4).
type rule struct {
	kind         byte // 'a', 'b' or 'c'
	major, minor int64
	access       uint32
	allow        bool
}

// The bits are those of BPF_DEVCG_ACC_*, include/uapi/linux/bpf.h.
const (
	accMknod = 1 << iota
	accRead
	accWrite
	accAll = accMknod | accRead | accWrite
)

func (r rule) String() string {
	if r.kind == 'a' {
		return "a *:* rwm"
	}
	s := []string{fmt.Sprint(r.major), fmt.Sprint(r.minor)}
	for i, n := range []int64{r.major, r.minor} {
		if n < 0 {
			s[i] = "*"
		}
	}
	var access string
	for i, c := range []string{"m", "r", "w"} {
		if r.access&(1<<i) != 0 {
			access += c
		}
	}
	return fmt.Sprintf("%c %s:%s %s", r.kind, s[0], s[1], access)
}

// defaultRules forbid everything and allow the devices of every container, and
// the making of any node: one that may not be opened does no harm.
func defaultRules() []rule {
	list := []rule{
		{kind: 'a', major: -1, minor: -1, access: accAll},
		{'c', -1, -1, accMknod, true}, {'b', -1, -1, accMknod, true},
	}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}} {
		list = append(list, rule{'c', d[0], d[1], accAll, true})
	}
	return list
}

// deviceRules reads the spec's rules, in their order, behind the default ones.
// Only a rule that allows everything undoes those.
func deviceRules(list []specs.LinuxDeviceCgroup) ([]rule, error) {
	rules := defaultRules()
	for _, s := range list {
		r := rule{kind: 'a', major: -1, minor: -1, allow: s.Allow}
		switch s.Type {
		case "", "a":
		case "b", "c":
			r.kind = s.Type[0]
		default:
			return nil, fmt.Errorf("device rule: type %q is none of a, b and c", s.Type)
		}
		for _, n := range []struct {
			from *int64
			to   *int64
		}{{s.Major, &r.major}, {s.Minor, &r.minor}} {
			if n.from != nil && (*n.from < -1 || *n.from > 1<<31-1) {
				return nil, fmt.Errorf("device rule: number %d", *n.from)
			} else if n.from != nil {
				*n.to = *n.from
			}
		}
		for _, c := range s.Access {
			i := strings.IndexRune("mrw", c)
			if i < 0 {
				return nil, fmt.Errorf("device rule: access %q is not of r, w and m", s.Access)
			}
			r.access |= 1 << i
		}
		if r.access == 0 {
			r.access = accAll
		}
		if r.kind == 'a' && (r.major >= 0 || r.minor >= 0 || r.access != accAll) {
			return nil, errors.New("device rule: one for all types has to be for all devices and all access")
		}
		if r.kind == 'a' && !r.allow {
			continue // the default
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// setDevices writes the rules to the devices controller, or makes a filter for
// version 2. Of a group that is not fresh they replace the ones it has, at no
// moment with less than both allow.
func (g *Group) setDevices(list []specs.LinuxDeviceCgroup, fresh bool) error {
	rules, err := deviceRules(list)
	if err != nil {
		return err
	}
	d, ok := g.find("devices")
	if !ok && g.unified == nil {
		return ErrMissing
	}
	if !ok {
		return g.replaceFilter(deviceFilter(fold(rules)), fresh)
	}
	if !fresh {
		now, err := read(d.path, "devices.list")
		if err != nil {
			return err
		}
		rules = transition(now, rules)
	}
	var files [2]*os.File
	for i, name := range []string{"devices.deny", "devices.allow"} {
		f, err := os.OpenFile(filepath.Join(d.path, name), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		files[i] = f
	}
	for _, r := range rules {
		f := files[0]
		if r.allow {
			f = files[1]
		}
		if _, err := f.WriteString(r.String()); err != nil { // one rule per write
			return fmt.Errorf("rule %q: %w", r, err)
		}
	}
	return nil
}

// transition are the rules that turn those of a devices.list into others: first
// what is allowed from now on, then what is not any more. Where everything is
// allowed, or will be, they are the others themselves.
func transition(now string, rules []rule) []rule {
	allow, want := fold(rules)
	if allow {
		return rules
	}
	out := want
	for line := range strings.Lines(now) {
		r, err := parseRule(strings.TrimSpace(line))
		if err != nil {
			return rules
		}
		for _, w := range want {
			if w.kind == r.kind && w.major == r.major && w.minor == r.minor {
				r.access &^= w.access
			}
		}
		if r.access != 0 {
			r.allow = false
			out = append(out, r)
		}
	}
	return out
}

// parseRule reads a line of a devices.list, "c 136:* rwm".
func parseRule(s string) (rule, error) {
	f := strings.FieldsFunc(s, func(c rune) bool { return c == ' ' || c == ':' })
	if len(f) != 4 || f[0] != "b" && f[0] != "c" {
		return rule{}, fmt.Errorf("device rule %q", s)
	}
	r := rule{kind: f[0][0], allow: true}
	for i, to := range []*int64{&r.major, &r.minor} {
		if *to = -1; f[1+i] == "*" {
			continue
		}
		n, err := strconv.ParseInt(f[1+i], 10, 32)
		if err != nil {
			return rule{}, fmt.Errorf("device rule %q: %w", s, err)
		}
		*to = n
	}
	for i, c := range "mrw" {
		if strings.ContainsRune(f[3], c) {
			r.access |= 1 << i
		}
	}
	return r, nil
}

// fold does what the controller of version 1 does with rules one after the
// other (security/device_cgroup.c): a default, and exceptions to it.
func fold(rules []rule) (allow bool, exceptions []rule) {
	for _, r := range rules {
		if r.kind == 'a' {
			allow, exceptions = r.allow, nil
			continue
		}
		at := -1
		for i, e := range exceptions {
			if e.kind == r.kind && e.major == r.major && e.minor == r.minor {
				at = i
			}
		}
		switch adding := r.allow != allow; {
		case adding && at < 0:
			exceptions = append(exceptions, r)
		case adding:
			exceptions[at].access |= r.access
		case at >= 0:
			if exceptions[at].access &^= r.access; exceptions[at].access == 0 {
				exceptions = append(exceptions[:at], exceptions[at+1:]...)
			}
		}
	}
	return allow, exceptions
}

// An insn is struct bpf_insn.
type insn struct {
	code uint8
	regs uint8 // dst in the low half
	off  int16
	imm  int32
}

// Codes of include/uapi/linux/bpf_common.h and bpf.h, 32-bit where it matters not.
const (
	opLoad  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMov   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opMovR  = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_X
	opAnd   = unix.BPF_ALU64 | unix.BPF_AND | unix.BPF_K
	opShift = unix.BPF_ALU64 | unix.BPF_RSH | unix.BPF_K
	opJNE   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	opJEQ   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	opExit  = unix.BPF_JMP | unix.BPF_EXIT
)

// deviceFilter writes the program that answers for a device: r1 is a
// bpf_cgroup_dev_ctx {access<<16 | type, major, minor}; 1 is yes.
func deviceFilter(allow bool, exceptions []rule) []insn {
	prog := []insn{
		{code: opLoad, regs: 2 | 1<<4}, {code: opMovR, regs: 3 | 2<<4}, {code: opShift, regs: 3, imm: 16}, // r3 access
		{code: opAnd, regs: 2, imm: 0xffff},    // r2 type
		{code: opLoad, regs: 4 | 1<<4, off: 4}, // r4 major
		{code: opLoad, regs: 5 | 1<<4, off: 8}, // r5 minor
	}
	answer := map[bool]int32{true: 1}
	for _, e := range exceptions {
		prog = append(prog, exception(e, allow, answer[!allow])...)
	}
	return append(prog, insn{code: opMov, imm: answer[allow]}, insn{code: opExit})
}

// exception answers if a device is meant, and falls through if not. What is
// allowed has to cover all access that is asked for; what is denied, any of it.
func exception(e rule, allow bool, answer int32) []insn {
	kind := int32(unix.BPF_DEVCG_DEV_CHAR)
	if e.kind == 'b' {
		kind = unix.BPF_DEVCG_DEV_BLOCK
	}
	block := []insn{{code: opJNE, regs: 2, imm: kind}, {code: opMovR, regs: 0 | 3<<4}}
	if allow {
		block = append(block, insn{code: opAnd, imm: int32(e.access)}, insn{code: opJEQ})
	} else {
		block = append(block, insn{code: opAnd, imm: int32(accAll &^ e.access)}, insn{code: opJNE})
	}
	for i, n := range [...]int64{e.major, e.minor} {
		if n >= 0 {
			block = append(block, insn{code: opJNE, regs: uint8(4 + i), imm: int32(n)})
		}
	}
	block = append(block, insn{code: opMov, imm: answer}, insn{code: opExit})
	for i := range block {
		if c := block[i].code; c == opJNE || c == opJEQ {
			block[i].off = int16(len(block) - i - 1)
		}
	}
	return block
}

// filterName is how the kernel shows our filters, and how we know them among others'.
const filterName = "snapfs_dev"

// replaceFilter is attachFilter, which takes off those of another process of ours, too.
func (g *Group) replaceFilter(prog []insn, fresh bool) error {
	var old []*os.File
	if !fresh && g.device == nil {
		var err error
		if old, err = g.attached(); err != nil {
			return fmt.Errorf("the device filters that there are: %w", err)
		}
	}
	err := g.attachFilter(prog)
	for _, f := range old {
		if err == nil {
			err = g.attach(unix.BPF_PROG_DETACH, f)
		}
		f.Close()
	}
	return err
}

// maxFilters is how many filters a group can have: BPF_CGROUP_MAX_PROGS, include/linux/bpf-cgroup-defs.h.
const maxFilters = 64

// attached are our filters on the version 2 group. systemd's stay as they are.
func (g *Group) attached() (list []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range list {
				f.Close()
			}
		}
	}()
	var ids [maxFilters]uint32
	query := struct {
		target, kind, flags, attachFlags uint32
		ids                              uint64
		n, _                             uint32
	}{target: uint32(g.unified.Fd()), kind: unix.BPF_CGROUP_DEVICE, ids: uint64(uintptr(unsafe.Pointer(&ids[0]))), n: maxFilters}
	if _, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&query), unsafe.Sizeof(query)); err != nil {
		return nil, err
	}
	for _, id := range ids[:min(query.n, maxFilters)] {
		open := struct{ id, next, flags uint32 }{id: id}
		fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&open), unsafe.Sizeof(open))
		if err != nil {
			return list, err
		}
		f := os.NewFile(fd, "device filter")
		var info struct { // struct bpf_prog_info, as far as the name
			_    [64]byte
			name [16]byte
		}
		ask := struct {
			fd, size uint32
			info     uint64
		}{uint32(fd), uint32(unsafe.Sizeof(info)), uint64(uintptr(unsafe.Pointer(&info)))}
		_, err = bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&ask), unsafe.Sizeof(ask))
		if err != nil || unix.ByteSliceToString(info.name[:]) != filterName {
			f.Close()
			if err != nil {
				return list, err
			}
			continue
		}
		list = append(list, f)
	}
	return list, nil
}

// attachFilter puts a device filter on the version 2 group, then takes off the one before it.
func (g *Group) attachFilter(prog []insn) error {
	license := []byte("Apache-2.0\x00")
	load := struct {
		kind, n                     uint32
		insns, license              uint64
		logLevel, logSize           uint32
		log                         uint64
		version, flags              uint32
		name                        [16]byte
		ifindex, expectedAttachType uint32
	}{kind: unix.BPF_PROG_TYPE_CGROUP_DEVICE, n: uint32(len(prog)), insns: uint64(uintptr(unsafe.Pointer(&prog[0]))),
		license: uint64(uintptr(unsafe.Pointer(&license[0]))), expectedAttachType: unix.BPF_CGROUP_DEVICE}
	copy(load.name[:], filterName)
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	// The verifier gives up for a signal (do_check of kernel/bpf/verifier.c), and Go's runtime sends them to itself.
	for n := 0; errors.Is(err, unix.EAGAIN) && n < 100; n++ {
		fd, err = bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	}
	if err != nil {
		return fmt.Errorf("load the device filter: %w", err)
	}
	f := os.NewFile(fd, "device filter")
	if err := g.attach(unix.BPF_PROG_ATTACH, f); err != nil {
		return errors.Join(fmt.Errorf("attach the device filter: %w", err), f.Close())
	}
	old := g.device
	g.device = f
	if old == nil {
		return nil
	}
	return errors.Join(g.attach(unix.BPF_PROG_DETACH, old), old.Close())
}

func (g *Group) attach(cmd uintptr, f *os.File) error {
	attr := struct{ target, prog, kind, flags, replace uint32 }{
		target: uint32(g.unified.Fd()), prog: uint32(f.Fd()), kind: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI}
	if cmd == unix.BPF_PROG_DETACH {
		attr.flags = 0
	}
	_, err := bpf(cmd, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (uintptr, error) {
	r, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if e != 0 {
		return 0, e
	}
	return r, nil
}

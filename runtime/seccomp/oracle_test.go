package seccomp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// libseccomp compiles a profile's rules for amd64 with the library, by numbers of our table.
func libseccomp(t *testing.T, s *specs.LinuxSeccomp) *Filter {
	t.Helper()
	oracle := filepath.Join(t.TempDir(), "oracle")
	if out, err := exec.Command("cc", "-o", oracle, "testdata/oracle.c", "-l:libseccomp.so.2").CombinedOutput(); err != nil {
		t.Skipf("needs a C compiler and libseccomp.so.2: %v: %s", err, out)
	}
	p, err := read(s)
	if err != nil {
		t.Fatal(err)
	}
	ops := map[specs.LinuxSeccompOperator]int{specs.OpNotEqual: 1, specs.OpLessThan: 2, specs.OpLessEqual: 3, specs.OpEqualTo: 4,
		specs.OpGreaterEqual: 5, specs.OpGreaterThan: 6, specs.OpMaskedEqual: 7}
	var in bytes.Buffer
	fmt.Fprintln(&in, "default", uint32(p.rest))
	numbers := tables[specs.ArchX86_64]().numbers
	for _, c := range p.calls {
		for _, name := range c.names {
			nr, ok := numbers[name]
			for _, r := range c.rules {
				if !ok {
					continue
				}
				fmt.Fprint(&in, "rule ", uint32(r.action), " ", nr, " ", len(r.when))
				for _, w := range r.when {
					fmt.Fprint(&in, " ", w.arg, " ", ops[w.op], " ", w.a, " ", w.b)
				}
				fmt.Fprintln(&in)
			}
		}
	}
	cmd := exec.Command(oracle)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("libseccomp: %v", err)
	}
	f := &Filter{}
	for ; len(out) >= 8; out = out[8:] {
		f.Insns = append(f.Insns, unix.SockFilter{Code: binary.NativeEndian.Uint16(out), Jt: out[2], Jf: out[3], K: binary.NativeEndian.Uint32(out[4:])})
	}
	return f
}

// TestLibseccomp compares both filters of Docker's profile over all numbers the
// profile knows and all argument classes. ENOSYS for newer ones is runc's addition;
// they, x32's and other architectures' are denied by both.
func TestLibseccomp(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_BPF", "CAP_SYS_CHROOT"}} {
		s := docker(t, nil, caps...)
		theirs := newVM(t, libseccomp(t, s))
		f, err := compileFor(s, amd64)
		if err != nil {
			t.Fatal(err)
		}
		ours := newVM(t, f)
		p, err := read(s)
		if err != nil {
			t.Fatal(err)
		}
		_, last := p.decide(tables[specs.ArchX86_64]())
		compared := 0
		check := func(d data) {
			compared++
			if a, b := ours.run(t, d), theirs.run(t, d); a != b {
				t.Fatalf("call %+v: ours says %#x, libseccomp's %#x", d, a, b)
			}
		}
		for nr := range uint32(last) + 1 {
			check(data{nr: nr, arch: unix.AUDIT_ARCH_X86_64})
		}
		for nr := range conditional(s, amd64[:1]) {
			for i := range 6 {
				for _, v := range classes(s) {
					d := data{nr: nr, arch: unix.AUDIT_ARCH_X86_64}
					d.args[i] = v
					if int64(nr) <= last {
						check(d)
					}
				}
			}
		}
		deny := func(d data, ourAnswer, theirAnswer action) {
			compared++
			if a, b := ours.run(t, d), theirs.run(t, d); a != ourAnswer || b != theirAnswer {
				t.Fatalf("call %+v: ours says %#x, libseccomp's %#x, want %#x and %#x", d, a, b, ourAnswer, theirAnswer)
			}
		}
		for nr := uint32(last) + 1; nr < 4096; nr++ {
			deny(data{nr: nr, arch: unix.AUDIT_ARCH_X86_64}, enosys, p.rest)
		}
		for nr := range uint32(1024) {
			deny(data{nr: x32Bit + nr, arch: unix.AUDIT_ARCH_X86_64}, killProcess, 0) // 0 kills the thread
			for _, arch := range []uint32{0, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64} {
				deny(data{nr: nr, arch: arch}, killProcess, 0)
			}
		}
		t.Logf("%d calls agree", compared)
	}
}

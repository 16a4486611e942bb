package cgroups

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/systemd"
)

// TestUnit: limits in systemd's words, on machines with either version.
func TestUnit(t *testing.T) {
	noDevices := []specs.LinuxDeviceCgroup(nil)
	for _, c := range []struct {
		name   string
		r      *specs.LinuxResources
		fresh  bool
		v1, v2 string
	}{
		{"nothing", nil, false, "", ""},
		{"memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64)), Swap: ptr(int64(96)), Reservation: ptr(int64(32))}}, false,
			"MemoryLimit=64", "MemoryMax=64 MemorySwapMax=32 MemoryLow=32"},
		{"no limits", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1))}, Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}, CPU: &specs.LinuxCPU{Quota: ptr(int64(-1))}}, false,
			"MemoryLimit=max CPUQuotaPerSecUSec=max TasksMax=max", "MemoryMax=max MemorySwapMax=max CPUQuotaPerSecUSec=max TasksMax=max"},
		{"cpu", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(50001)), Period: ptr(uint64(100000)), Cpus: "0-1,9", Mems: "0"}}, false,
			"CPUShares=1024 CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=510000", "CPUWeight=39 CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=510000 AllowedCPUs=[3 2] AllowedMemoryNodes=[1]"},
		{"quota alone", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(250000))}}, false, "CPUQuotaPerSecUSec=2500000", "CPUQuotaPerSecUSec=2500000"},
		{"pids", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(7))}}, false, "TasksMax=7", "TasksMax=7"},
		{"weight", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(300))}}, false, "BlockIOWeight=300", ""},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "1000", "pids.max": "max", "cpu.max": "max 50000", "cpuset.cpus": "1", "io.weight": "7"}}, false,
			"CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=max AllowedCPUs=[2] MemoryHigh=1000 TasksMax=max", "CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=max AllowedCPUs=[2] MemoryHigh=1000 TasksMax=max"},
		{"a new unit's devices", &specs.LinuxResources{Devices: noDevices}, true,
			"DevicePolicy=strict DeviceAllow=[] DeviceAllow=[{char-* m} {block-* m} {/dev/char/1:3 mrw} {/dev/char/1:5 mrw} {/dev/char/1:7 mrw} {/dev/char/1:8 mrw} {/dev/char/1:9 mrw} {/dev/char/5:0 mrw} {/dev/char/5:2 mrw} {char-136 mrw}]", "same"},
		{"all devices", &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true}}}, false, "DevicePolicy=auto DeviceAllow=[]", "same"},
	} {
		for i, want := range []string{c.v1, c.v2} {
			if want == "same" {
				want = c.v1
			}
			list, err := unit(c.r, c.fresh, func(string) bool { return i == 1 })
			var got []string
			for _, p := range list {
				s := fmt.Sprint(p.Value)
				if p.Value == systemd.Infinity {
					s = "max"
				}
				got = append(got, p.Name+"="+s)
			}
			if err != nil || strings.Join(got, " ") != want {
				t.Errorf("%s, version %d: %v, %v, want %s", c.name, i+1, got, err, want)
			}
		}
	}
	for name, value := range map[string]string{"memory.max": "1G", "cpu.max": "x", "cpuset.cpus": "3-1"} {
		if list, err := unit(&specs.LinuxResources{Unified: map[string]string{name: value}}, false, func(string) bool { return true }); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("unified %s=%s: %v, %v, want an error that names it", name, value, list, err)
		}
	}
}

func TestCPUMask(t *testing.T) {
	for list, want := range map[string][]byte{"0": {1}, "7,8": {0x80, 1}, "0-15": {0xff, 0xff}, "16": {0, 0, 1}, "": nil, "x": nil, "2-1": nil, "8192": nil, "0,": nil, "-1": nil} {
		if got, err := cpuMask(list); !bytes.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("cpuMask(%q) = %v, %v, want %v", list, got, err, want)
		}
	}
}

// TestTransition: the rules that change a devices.list, folded onto it, give the others; in between nothing is lost that both have.
func TestTransition(t *testing.T) {
	rules := func(list ...specs.LinuxDeviceCgroup) []rule {
		r, err := deviceRules(list)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	c10 := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "rwm"}
	b8 := specs.LinuxDeviceCgroup{Allow: true, Type: "b", Major: ptr(int64(8)), Access: "r"}
	text := func(list []rule) string {
		_, e := fold(list)
		var s []string
		for _, r := range e {
			s = append(s, r.String())
		}
		slices.Sort(s)
		return strings.Join(s, "\n") + "\n"
	}
	for name, c := range map[string][2][]rule{"more": {rules(), rules(c10)}, "fewer": {rules(c10, b8), rules(b8)}, "others": {rules(c10), rules(b8)}, "less of one": {rules(c10), rules(func() specs.LinuxDeviceCgroup { r := c10; r.Access = "r"; return r }())}} {
		got := append([]rule{{kind: 'a', major: -1, minor: -1, access: accAll}}, c[0]...)
		change := transition(text(c[0]), c[1])
		for _, r := range change {
			if r.kind == 'a' || !r.allow && (r.major == 1 || r.major < 0) {
				t.Errorf("%s: %v takes away what stays allowed", name, r)
			}
		}
		if have, want := text(append(got, change...)), text(c[1]); have != want {
			t.Errorf("%s: %v, want %v", name, have, want)
		}
	}
	all := rules(specs.LinuxDeviceCgroup{Allow: true})
	for _, now := range []string{"a *:* rwm\n", "strange\n", "c x:1 r\n"} {
		if got := transition(now, rules()); len(got) != len(rules()) || got[0].kind != 'a' {
			t.Errorf("from %q: %v, want all the rules, with the one that forbids all first", now, got)
		}
	}
	if got := transition("c 1:3 rwm\n", all); len(got) != len(all) {
		t.Errorf("to everything: %v", got)
	}
}

// TestReplaceFilter: another process's filter of version 2 is replaced, not added to.
func TestReplaceFilter(t *testing.T) {
	g := need(t, nil)
	if g.Unified() == nil {
		t.Skip("needs a version 2 hierarchy")
	}
	load := func(g *Group, rules []rule) {
		t.Helper()
		if err := g.replaceFilter(deviceFilter(fold(rules)), false); err != nil {
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
				t.Skip("needs bpf(2) for device filters:", err)
			}
			t.Fatal(err)
		}
	}
	full := filepath.Join(t.TempDir(), "full")
	if err := unix.Mknod(full, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 7))); err != nil {
		t.Fatal(err)
	}
	try := func() bool {
		cmd := exec.Command("sh", "-c", ": < "+full)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Unified().Fd())}
		return cmd.Run() == nil
	}
	attached := func() int {
		t.Helper()
		other, err := Open(g.path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Release()
		list, err := other.attached()
		for _, f := range list {
			f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	load(g, nil) // nothing is allowed
	if try() {
		t.Error("a device could be opened under a filter that allows none")
	}
	for _, allowed := range []bool{true, false, true} {
		other, err := Open(g.path)
		if err != nil {
			t.Fatal(err)
		}
		rules := []rule{{'c', 1, 3, accAll, true}}
		if allowed {
			rules = append(rules, rule{'c', 1, 7, accAll, true})
		}
		load(other, rules)
		if err := other.Release(); err != nil {
			t.Error(err)
		}
		if got := try(); got != allowed {
			t.Errorf("opening the device: %v, want %v", got, allowed)
		}
		if n := attached(); n != 1 {
			t.Errorf("%d filters are attached, want one", n)
		}
	}
}

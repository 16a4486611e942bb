package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These tests want version 2 of cgroups alone, with its controllers. integration/kernel_test.go has a machine for them.

func newBench2(t *testing.T, args ...string) *bench {
	t.Helper()
	list, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil || !strings.Contains(string(list), "memory") {
		t.Skip("needs version 2 of cgroups at /sys/fs/cgroup, with controllers")
	}
	return newBench(t, args...)
}

// group reads a file of the container's cgroup.
func (b *bench) group(name string) string {
	b.t.Helper()
	s, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", b.spec.Linux.CgroupsPath, name))
	must(b.t, err)
	return strings.TrimSpace(string(s))
}

// check compares files of the container's cgroup.
func (b *bench) check(want map[string]string) {
	b.t.Helper()
	for name, value := range want {
		if got := b.group(name); got != value {
			b.t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
}

// TestV2Update: limits of config.json, and the options of update.
func TestV2Update(t *testing.T) {
	b := newBench2(t)
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: to(int64(64 << 20)), Swap: to(int64(128 << 20))}
	b.spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: to(int64(50000)), Period: to(uint64(100000))}
	b.spec.Linux.Resources.Unified = map[string]string{"memory.high": "50331648"}
	b.starts()
	b.check(map[string]string{"memory.max": "67108864", "memory.swap.max": "67108864", "memory.high": "50331648", "cpu.max": "50000 100000"})
	for _, c := range []struct {
		args []string
		want map[string]string
	}{
		{[]string{"--pids-limit", "66", "--memory", "96m", "--memory-swap", "96m"}, map[string]string{"pids.max": "66", "memory.max": "100663296", "memory.swap.max": "0"}},
		{[]string{"--cpu-period", "200000"}, map[string]string{"cpu.max": "50000 200000"}},
		{[]string{"--cpu-quota", "-1"}, map[string]string{"cpu.max": "max 200000"}},
		{[]string{"--cpu-share", "1024", "--cpuset-cpus", "0"}, map[string]string{"cpu.weight": "39", "cpuset.cpus": "0"}},
		{[]string{"--memory-reservation", "32m"}, map[string]string{"memory.low": "33554432"}},
		{[]string{"--memory", "-1"}, map[string]string{"memory.max": "max", "memory.swap.max": "max"}},
	} {
		if out, err := b.run(append(append([]string{"update"}, c.args...), b.id)...); err != nil {
			t.Errorf("update %v: %v: %s", c.args, err, out)
		}
		b.check(c.want)
	}
	b.fails(1, "memory", "update", "--memory-swap", "64m", b.id)
	b.end()
}

// TestV2Events: counters are version 2's, and a kill for want of memory is told.
func TestV2Events(t *testing.T) {
	b := newBench2(t)
	b.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: to(int64(64 << 20)), Swap: to(int64(64 << 20))}
	b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: to(int64(77))}
	b.starts()
	var e event
	must(t, json.Unmarshal([]byte(b.ok("events", "--stats", b.id)), &e))
	if d := e.Data; e.Type != "stats" || d.Memory.Usage.Limit != 64<<20 || d.Memory.Usage.Usage == 0 || d.Memory.Swap.Limit != 64<<20 || d.Pids.Limit != 77 || d.Pids.Current == 0 || d.CPU.Usage.Total == 0 {
		t.Errorf("events --stats: %+v", e.Data)
	}
	cmd := b.cmd("events", "--interval", "50ms", b.id)
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatal("events said nothing")
	}
	if got, err := b.run("exec", b.id, "/inside", "eat", "200"); err == nil {
		t.Errorf("a process that wants more than the limit: %s", got)
	}
	for lines.Scan() {
		var e event
		must(t, json.Unmarshal(lines.Bytes(), &e))
		if e.Type == "oom" {
			b.end()
			return
		}
	}
	t.Error("no event oom")
}

// TestV2Delegated: root of a user namespace makes cgroups and limits them, but not its own; an exec into the container works
// nevertheless, and so do ps, pause, kill and delete.
func TestV2Delegated(t *testing.T) {
	b := newBench2(t, "mkdir", "/sys/fs/cgroup/leaf", ";", "write", "/sys/fs/cgroup/leaf/cgroup.procs", "0", ";", "write", "/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids",
		";", "write", "/sys/fs/cgroup/leaf/pids.max", "20", ";", "write", "/sys/fs/cgroup/pids.max", "max", ";", "write", "/sys/fs/cgroup/cgroup.freeze", "1", ";", "cat", "/proc/self/cgroup", ";", "trap")
	b.userNS()
	for i := range b.spec.Mounts {
		if m := &b.spec.Mounts[i]; m.Type == "cgroup" {
			m.Options = []string{"nosuid", "noexec", "nodev"}
		}
	}
	b.create()
	b.ok("start", b.id)
	for _, want := range []string{"write EACCES\n", "write EACCES\n", "0::/leaf\n", "ready\n"} {
		if line, err := b.out.ReadString('\n'); err != nil || line != want {
			t.Fatalf("it says %q, %v, want %q", line, err, want)
		}
	}
	if got := b.group("leaf/pids.max"); got != "20" {
		t.Errorf("the limit of its own is %q, want 20", got)
	}
	if got := b.ok("exec", b.id, "/inside", "cat", "/proc/self/cgroup"); got != "0::/leaf\n" {
		t.Errorf("exec is in %q, want /leaf", got)
	}
	var pids []int
	must(t, json.Unmarshal([]byte(b.ok("ps", "--format", "json", b.id)), &pids))
	if len(pids) != 1 || pids[0] != b.state().Pid {
		t.Errorf("ps: %v", pids)
	}
	b.ok("pause", b.id)
	if s := b.state().Status; s != statusPaused {
		t.Errorf("it is %s, want paused", s)
	}
	pid := b.state().Pid
	b.ok("kill", b.id, "KILL")
	waitPid(t, pid)
	b.ok("delete", b.id)
	b.gone2()
}

// gone2 checks that the container's cgroup is gone.
func (b *bench) gone2() {
	b.t.Helper()
	if _, err := os.Stat(filepath.Join("/sys/fs/cgroup", b.spec.Linux.CgroupsPath)); err == nil {
		b.t.Error("its cgroup is left")
	}
}

// TestV2NotDelegated: without a cgroup namespace, or mounted read-only, the cgroup stays root's.
func TestV2NotDelegated(t *testing.T) {
	for _, ns := range []bool{true, false} {
		b := newBench2(t)
		b.userNS()
		if !ns {
			withoutNS(b.spec, specs.CgroupNamespace)
		}
		b.starts()
		var st unix.Stat_t
		must(t, unix.Stat(filepath.Join("/sys/fs/cgroup", b.spec.Linux.CgroupsPath), &st))
		if st.Uid != 0 {
			t.Errorf("cgroup namespace %v: the cgroup is %d's, want root's", ns, st.Uid)
		}
		b.end()
	}
}

// TestV2Devices: what config.json allows can be opened, and nothing else.
func TestV2Devices(t *testing.T) {
	b := newBench2(t, "open", "/dev/null", ";", "open", "/dev/fuse", ";", "access", "/dev/fuse", ";", "open", "/dev/full2")
	for _, d := range []struct {
		name         string
		major, minor int64
	}{{"/dev/fuse", 10, 229}, {"/dev/full2", 4, 64}} {
		b.spec.Linux.Devices = append(b.spec.Linux.Devices, specs.LinuxDevice{Path: d.name, Type: "c", Major: d.major, Minor: d.minor, FileMode: to(os.FileMode(0o666))})
	}
	b.spec.Linux.Resources.Devices = append(b.spec.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: to(int64(10)), Minor: to(int64(229)), Access: "r"})
	if out, want := b.runs(), "open ok\nopen ok\naccess EPERM\nopen EPERM\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
	b.gone2()
}

// TestV2ReadOnly: nothing of a cgroup that is mounted read-only can be written, with a namespace and without (CVE-2023-25809).
func TestV2ReadOnly(t *testing.T) {
	for _, ns := range []bool{true, false} {
		b := newBench2(t, "write", "/sys/fs/cgroup/pids.max", "max", ";", "write", "/sys/fs/cgroup/cgroup.freeze", "1", ";", "mkdir", "/sys/fs/cgroup/x", ";", "ls", "/sys/fs/cgroup/..")
		if !ns {
			withoutNS(b.spec, specs.CgroupNamespace)
		}
		if out := b.runs(); !strings.HasPrefix(out, "write EROFS\nwrite EROFS\nmkdir EROFS\n") || strings.Contains(out, "snapfs-test") {
			t.Errorf("cgroup namespace %v: got %q", ns, out)
		}
	}
}

// TestV2Refused: what cannot be is refused by name, and leaves nothing.
func TestV2Refused(t *testing.T) {
	for want, change := range map[string]func(*specs.LinuxResources){
		"memory.max":      func(r *specs.LinuxResources) { r.Unified = map[string]string{"memory.max": "much"} },
		"cgroup.procs":    func(r *specs.LinuxResources) { r.Unified = map[string]string{"cgroup.procs": "1"} },
		"nothing.max":     func(r *specs.LinuxResources) { r.Unified = map[string]string{"nothing.max": "1"} },
		"net_cls":         func(r *specs.LinuxResources) { r.Network = &specs.LinuxNetwork{ClassID: to(uint32(1))} },
		"cpuset":          func(r *specs.LinuxResources) { r.CPU = &specs.LinuxCPU{Cpus: "999"} },
		"hugetlb.3MB":     func(r *specs.LinuxResources) { r.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "3MB"}} },
		"a quota of":      func(r *specs.LinuxResources) { r.CPU = &specs.LinuxCPU{Quota: to(int64(10))} },
		"limit of memory": func(r *specs.LinuxResources) { r.Memory = &specs.LinuxMemory{Swap: to(int64(1 << 30))} },
	} {
		b := newBench2(t, "exit", "0")
		change(b.spec.Linux.Resources)
		b.write()
		if out, err := b.run("create", "--bundle", b.bundle, b.id); err == nil || !strings.Contains(out, want) {
			t.Errorf("%v, %q, want an error with %q", err, out, want)
		}
		b.gone2()
	}
}

// TestV2Pids: the limit bites.
func TestV2Pids(t *testing.T) {
	b := newBench2(t, "fork", "100")
	b.spec.Linux.Resources.Pids = &specs.LinuxPids{Limit: to(int64(20))}
	n := 0
	if out := b.runs(); !strings.HasPrefix(out, "forked ") {
		t.Errorf("got %q", out)
	} else if _, err := fmt.Sscanf(out, "forked %d", &n); err != nil || n >= 20 {
		t.Errorf("%d processes, want fewer than 20: %v", n, err)
	}
}

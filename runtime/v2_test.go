package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These tests want version 2 of cgroups alone, with its controllers. integration/kernel_test.go has a machine for them.

// needV2 skips on a machine that has other versions of cgroups.
func needV2(t *testing.T) {
	t.Helper()
	needRoot(t)
	list, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if err != nil || !strings.Contains(string(list), "memory") {
		t.Skip("needs version 2 of cgroups at /sys/fs/cgroup, with controllers")
	}
}

// writableCgroup has the container's own cgroup writable.
func writableCgroup(s *specs.Spec) {
	for i := range s.Mounts {
		if s.Mounts[i].Type == "cgroup" {
			s.Mounts[i].Options = []string{"nosuid", "noexec", "nodev"}
		}
	}
}

// TestV2OwnLimits: root of a container that may write to its cgroup makes others in it, but does not change its own limits
// (nsdelegate, Documentation/admin-guide/cgroup-v2.rst).
func TestV2OwnLimits(t *testing.T) {
	needV2(t)
	limit := int64(40)
	for _, ro := range []bool{true, false} {
		s := newSpec(t, newRoot(t), "write", "/sys/fs/cgroup/pids.max", "max", ";", "mkdir", "/sys/fs/cgroup/leaf", ";", "write", "/sys/fs/cgroup/leaf/cgroup.procs", "0",
			";", "write", "/sys/fs/cgroup/cgroup.subtree_control", "+pids", ";", "write", "/sys/fs/cgroup/leaf/pids.max", "21", ";", "cat", "/proc/self/cgroup", ";", "cat", "/sys/fs/cgroup/pids.max")
		s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
		want := "write EROFS\nmkdir EROFS\nwrite ENOENT\nwrite EROFS\nwrite ENOENT\n0::/\n40\n"
		if !ro {
			writableCgroup(s)
			want = "write EPERM\n0::/leaf\n40\n"
		}
		if out := runSpec(t, s); out != want {
			t.Errorf("read-only %v: got %q, want %q", ro, out, want)
		}
	}
}

// TestV2ExecIntoManaged: a process joins a container whose init has moved itself out of the way and hands controllers down,
// so that the container's own group takes no processes.
func TestV2ExecIntoManaged(t *testing.T) {
	needV2(t)
	s := newSpec(t, newRoot(t), "mkdir", "/sys/fs/cgroup/leaf", ";", "write", "/sys/fs/cgroup/leaf/cgroup.procs", "0",
		";", "write", "/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids", ";", "echo", "ready", ";", "sleep")
	writableCgroup(s)
	c := begin(t, s, options(t))
	b := make([]byte, 100)
	if n, err := c.stdout.Read(b); err != nil || string(b[:n]) != "ready\n" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	for range 2 {
		if out, st := execIn(t, c.Container, nil, "cat", "/proc/self/cgroup"); out != "0::/leaf\n" || st.ExitCode() != 0 {
			t.Errorf("exec: %q, %v, want it to be beside init", out, st)
		}
	}
	stats, err := c.Stats()
	if err != nil || stats.Pids.Current == 0 || stats.Memory.Usage == 0 {
		t.Errorf("Stats() = %+v, %v", stats, err)
	}
}

// TestV2Placed: from its first instruction the program is in its cgroup, alone, and so is an exec.
func TestV2Placed(t *testing.T) {
	needV2(t)
	s := newSpec(t, newRoot(t), "cat", "/proc/self/cgroup", ";", "cat", "/sys/fs/cgroup/cgroup.procs", ";", "cat", "/sys/fs/cgroup/pids.current")
	// A Go program has threads, which count.
	if out := runSpec(t, s); !strings.HasPrefix(out, "0::/\n1\n") {
		t.Errorf("got %q, want the program at the root of its cgroup namespace, alone", out)
	}
}

// TestV2Threaded: below a group of threads there can be no container, which the error says.
func TestV2Threaded(t *testing.T) {
	needV2(t)
	top := "/sys/fs/cgroup/snapfs-test"
	if err := os.MkdirAll(filepath.Join(top, "threads"), 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(filepath.Join(top, "threads"))
	// A group with controllers handed down is no root of threads.
	dir := filepath.Join(top, "threads", "x")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.type"), []byte("threaded"), 0); err != nil {
		t.Fatal(err)
	}
	o := options(t)
	o.CgroupParent = "/snapfs-test/threads/x"
	_, err := tryBegin(t, newSpec(t, newRoot(t), "exit", "0"), o)
	if err == nil || !strings.Contains(err.Error(), "threaded") {
		t.Errorf("a container below a threaded cgroup: %v, want an error that says so", err)
	}
	if _, err := os.Stat(filepath.Join(dir, o.ID)); err == nil {
		t.Error("its cgroup is left")
	}
}

// TestV2AllLimits: classic limits and those by name together.
func TestV2AllLimits(t *testing.T) {
	needV2(t)
	mem, shares, pids := int64(128<<20), uint64(512), int64(64)
	s := newSpec(t, newRoot(t), "cat", "/sys/fs/cgroup/memory.max", ";", "cat", "/sys/fs/cgroup/cpu.weight", ";", "cat", "/sys/fs/cgroup/pids.max", ";", "cat", "/sys/fs/cgroup/memory.high",
		";", "cat", "/sys/fs/cgroup/cpuset.cpus")
	s.Linux.Resources = &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &mem}, CPU: &specs.LinuxCPU{Shares: &shares}, Pids: &specs.LinuxPids{Limit: &pids},
		Unified: map[string]string{"memory.high": "104857600", "cpuset.cpus": "0"},
	}
	if out, want := runSpec(t, s), "134217728\n20\n64\n104857600\n0\n"; out != want {
		t.Errorf("got %q, want %q", out, want)
	}
}

// TestV2Kill: all of a container's processes end, those in groups of its own making too, and the groups go.
func TestV2Kill(t *testing.T) {
	needV2(t)
	s := newSpec(t, newRoot(t), "mkdir", "/sys/fs/cgroup/a", ";", "mkdir", "/sys/fs/cgroup/a/b", ";", "spawn", "sleep",
		";", "write", "/sys/fs/cgroup/a/b/cgroup.procs", "0", ";", "echo", "ready", ";", "sleep")
	writableCgroup(s)
	o := options(t)
	c := begin(t, s, o)
	b := make([]byte, 100)
	if n, err := c.stdout.Read(b); err != nil || string(b[:n]) != "ready\n" {
		t.Fatalf("%q, %v", b[:n], err)
	}
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(); err != nil { // in a frozen group it works at once
		t.Fatal(err)
	}
	if _, st := c.end(); st.Signal != unix.SIGKILL {
		t.Errorf("it ended with %v, want SIGKILL", st)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat("/sys/fs/cgroup/snapfs-test/" + o.ID); err == nil {
		t.Error("its cgroup is left")
	}
}

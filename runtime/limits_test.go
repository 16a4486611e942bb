package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestPidsLimit(t *testing.T) {
	needRoot(t)
	limit := int64(12)
	s := newSpec(t, newRoot(t), "fork", "100")
	s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: &limit}}
	out := runSpec(t, s)
	if !strings.HasPrefix(out, "forked ") || strings.HasPrefix(out, "forked 100") {
		t.Errorf("output %q, want fewer than 100", out)
	}
	// The strictest: the child counts as itself, nothing of ours beside it.
	limit = 1
	s = newSpec(t, newRoot(t), "sleep")
	s.Process.Args = []string{"/inside"} // ends at once; Go needs threads, so it may fail
	if _, err := tryBegin(t, s, options(t)); err != nil {
		t.Errorf("Start with a limit of one process: %v", err)
	}
}

func TestMemoryLimit(t *testing.T) {
	needRoot(t)
	limit := int64(64 << 20)
	s := newSpec(t, newRoot(t), "eat", "200")
	s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}}
	c := begin(t, s, options(t))
	out, st := c.end()
	if st.ExitCode() != 137 {
		t.Errorf("status %v, want 137; output %s", st, out)
	}
	if oom, err := c.OOMKilled(); err != nil || !oom {
		t.Errorf("OOMKilled() = %v, %v, want true", oom, err)
	}
	stats, err := c.Stats()
	if err != nil {
		t.Fatal(err)
	}
	if stats.Memory.Limit != uint64(limit) || stats.Memory.Peak < uint64(limit)/2 || stats.CPU.Usage <= 0 || stats.OOMKills == 0 {
		t.Errorf("Stats() = %+v", stats)
	}
}

func TestUpdate(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	small, large, quota, period, pids := int64(128<<20), int64(256<<20), int64(50000), uint64(100000), int64(99)
	for _, n := range []*int64{&small, &large, &small} {
		if err := c.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: n, Swap: n}}); err != nil {
			t.Fatal(err)
		}
		if s, err := c.Stats(); err != nil || s.Memory.Limit != uint64(*n) {
			t.Errorf("limit is %d, %v, want %d", s.Memory.Limit, err, *n)
		}
	}
	if err := c.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Pids: &specs.LinuxPids{Limit: &pids}}); err != nil {
		t.Fatal(err)
	}
	if s, err := c.Stats(); err != nil || s.Pids.Limit != 99 || s.Pids.Current == 0 {
		t.Errorf("Stats() = %+v, %v, want a limit of 99 processes and some", s, err)
	}
}

// TestMembership: from its first instruction the program is in its cgroups, and an exec too.
func TestMembership(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	s := newSpec(t, root, "cat", "/proc/self/cgroup", ";", "sleep")
	s.Linux.Namespaces = without(s.Linux.Namespaces, specs.CgroupNamespace) // to see the whole paths
	o := options(t)
	c := begin(t, s, o)
	b := make([]byte, 4096)
	n, err := c.stdout.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	execed, _ := execIn(t, c.Container, nil, "cat", "/proc/self/cgroup")
	for _, out := range []string{string(b[:n]), execed} {
		if got := strings.Count(out, "/snapfs-test/"+o.ID+"\n"); got != len(c.group.Dirs()) {
			t.Errorf("the process is in %d cgroups of ours, want %d:\n%s", got, len(c.group.Dirs()), out)
		}
	}
}

// TestNothingIsLeft: failed starts and ended containers leave no cgroup, descriptor or mount.
func TestNothingIsLeft(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	count := func(dir string) int {
		list, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	mounts := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		var own string // others mount things here meanwhile
		for line := range strings.Lines(string(b)) {
			if strings.Contains(line, root) || strings.Contains(line, "snapfs-test") {
				own += line
			}
		}
		return own
	}
	attempt := func(args []string, cwd string, init bool) {
		s := newSpec(t, root)
		s.Process.Args, s.Process.Cwd = args, cwd
		o := options(t)
		o.Init = init
		p, err := NewPlan(s, o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := Start(t.Context(), p, Files{})
		if err == nil {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		for _, top := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
			if _, err := os.Stat(filepath.Join(top, "snapfs-test", o.ID)); err == nil {
				t.Errorf("a cgroup is left in %s", top)
			}
		}
	}
	attempt([]string{"/inside", "sleep"}, "/", false) // what a first time leaves open is Go's
	fds, before := count("/proc/self/fd"), mounts()
	for range 3 {
		attempt([]string{"/inside", "sleep"}, "/", false)
		attempt([]string{"/inside", "sleep"}, "/", true)
		attempt([]string{"/missing"}, "/", false)
		attempt([]string{"/missing"}, "/", true)
		attempt([]string{"/inside"}, "/proc/self/cwd", false)
		attempt([]string{"/inside"}, "/inside/x", false)
	}
	for range 100 { // the last reaper may be about to return
		if count("/proc/self/fd") <= fds {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if now := count("/proc/self/fd"); now > fds {
		t.Errorf("%d descriptors are open, %d were", now, fds)
	}
	if mounts() != before {
		t.Errorf("mounts changed:\n%s\nwere:\n%s", mounts(), before)
	}
}

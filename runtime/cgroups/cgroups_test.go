package cgroups

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const mountinfoHybrid = `31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:7 - cgroup cgroup rw,cpu,cpuacct
33 31 0:32 / /sys/fs/cgroup/a\040b rw - cgroup cgroup rw,xattr,name=systemd,release_agent=/x
34 31 0:29 / /mnt/again rw - cgroup cgroup rw,cpu,cpuacct
35 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
bad line
`

func TestHierarchies(t *testing.T) {
	list, err := hierarchies(strings.NewReader(mountinfoHybrid))
	if err != nil {
		t.Fatal(err)
	}
	want := []hierarchy{{"/sys/fs/cgroup/cpu,cpuacct", []string{"cpu", "cpuacct"}, false}, {"/sys/fs/cgroup/a b", []string{"name=systemd"}, false}, {"/sys/fs/cgroup/unified", nil, true}}
	if !slices.EqualFunc(list, want, func(a, b hierarchy) bool {
		return a.mount == b.mount && a.v2 == b.v2 && slices.Equal(a.controllers, b.controllers)
	}) {
		t.Errorf("hierarchies = %+v, want %+v", list, want)
	}
}

func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
}

func ptr[T any](v T) *T { return &v }

// fake is a group of plain files, to see what would be written.
func fake(t *testing.T, v2 bool) *Group {
	t.Helper()
	top := t.TempDir()
	h := hierarchy{top, []string{"memory", "cpu", "cpuset", "pids", "blkio", "hugetlb", "rdma", "net_cls", "net_prio"}, v2}
	if v2 {
		h.controllers[4] = "io"
	}
	return &Group{dirs: []dir{{h, top}}}
}

func TestLimitsWritten(t *testing.T) {
	r := &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(100)), Swap: ptr(int64(150)), Reservation: ptr(int64(50))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(1024)), Quota: ptr(int64(5000)), Period: ptr(uint64(10000)), Cpus: "0-1", Mems: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(-1))},
		BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(10)), ThrottleReadBpsDevice: []specs.LinuxThrottleDevice{
			{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 8, Minor: 1}, Rate: 77}}},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}},
		Rdma:           map[string]specs.LinuxRdma{"m": {HcaHandles: ptr(uint32(2))}},
	}
	for _, c := range []struct {
		v2   bool
		want map[string]string
	}{
		{false, map[string]string{"memory.limit_in_bytes": "100", "memory.memsw.limit_in_bytes": "150", "memory.soft_limit_in_bytes": "50", "cpu.shares": "1024",
			"cpu.cfs_quota_us": "5000", "cpu.cfs_period_us": "10000", "cpuset.cpus": "0-1", "cpuset.mems": "0", "pids.max": "max", "blkio.weight": "10",
			"blkio.throttle.read_bps_device": "8:1 77", "hugetlb.2MB.limit_in_bytes": "4", "rdma.max": "m hca_handle=2"}},
		{true, map[string]string{"memory.max": "100", "memory.swap.max": "50", "memory.low": "50", "cpu.weight": "39", "cpu.max": "5000 10000", "cpuset.cpus": "0-1",
			"cpuset.mems": "0", "pids.max": "max", "io.weight": "1", "io.max": "8:1 rbps=77", "hugetlb.2MB.max": "4", "rdma.max": "m hca_handle=2"}},
	} {
		g := fake(t, c.v2)
		for name := range c.want {
			if err := os.WriteFile(filepath.Join(g.dirs[0].path, name), []byte("0\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(g.setMemory(r.Memory), g.setAll(g.settings(r))); err != nil {
			t.Fatal(err)
		}
		for name, want := range c.want {
			if got, _ := read(g.dirs[0].path, name); !strings.HasPrefix(got, want) {
				t.Errorf("v2 %v: %s has %q, want %q", c.v2, name, got, want)
			}
		}
	}
}

func TestMissingController(t *testing.T) {
	g := &Group{}
	for _, r := range []*specs.LinuxResources{
		{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 20))}}, {Pids: &specs.LinuxPids{Limit: ptr(int64(1))}}, {CPU: &specs.LinuxCPU{Shares: ptr(uint64(2))}}, {Unified: map[string]string{"memory.high": "1"}},
	} {
		if err := g.apply(r, false); !errors.Is(err, ErrMissing) {
			t.Errorf("apply(%+v) = %v, want ErrMissing", r, err)
		}
	}
}

func TestFold(t *testing.T) {
	a := func(list ...rule) string {
		allow, ex := fold(list)
		return fmt.Sprint(allow, ex)
	}
	deny, open := rule{kind: 'a', major: -1, minor: -1, access: accAll}, rule{'a', -1, -1, accAll, true}
	null := rule{'c', 1, 3, accAll, true}
	for got, want := range map[string]string{
		a(deny): "false []", a(deny, null): "false [c 1:3 mrw]", a(deny, null, open): "true []", a(open, null): "true []",
		a(deny, null, rule{'c', 1, 3, accWrite, false}):                          "false [c 1:3 mr]",
		a(deny, null, rule{'c', 1, 3, accAll, false}):                            "false []",
		a(deny, rule{'c', 1, 3, accRead, true}, rule{'c', 1, 3, accWrite, true}): "false [c 1:3 rw]",
		a(open, rule{'b', 8, -1, accWrite, false}):                               "true [b 8:* w]",
	} {
		if got != want {
			t.Errorf("fold = %s, want %s", got, want)
		}
	}
}

// need returns a group, of the machine's hierarchies.
func need(t *testing.T, r *specs.LinuxResources) *Group {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes cgroups")
	}
	g, err := Create(fmt.Sprintf("/snapfs-test/cgroups-%d-%d", os.Getpid(), time.Now().UnixNano()), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		var parents []string
		for _, d := range g.dirs {
			parents = append(parents, filepath.Dir(d.path))
		}
		if err := g.Remove(ctx); err != nil {
			t.Error(err)
		}
		for _, p := range parents {
			_ = os.Remove(p) // as long as nobody else is in it
		}
	})
	return g
}

// sleeper starts a process in the version 2 group.
func sleeper(t *testing.T, g *Group) *exec.Cmd {
	t.Helper()
	if g.Unified() == nil {
		t.Skip("needs a version 2 hierarchy")
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Unified().Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd
}

func TestLife(t *testing.T) {
	g := need(t, nil)
	if _, err := Create(g.Path(), nil); err != nil {
		t.Errorf("Create over an empty group: %v", err)
	}
	g = need(t, nil)
	cmd := sleeper(t, g)
	if _, err := Create(g.Path(), nil); err == nil {
		t.Error("Create over a group in use worked")
	}
	for _, on := range []bool{true, false} {
		if err := g.Freeze(t.Context(), on); err != nil {
			t.Fatal(err)
		}
		if now, err := g.Frozen(); err != nil || now != on {
			t.Errorf("Frozen() = %v, %v, want %v", now, err, on)
		}
	}
	if err := os.MkdirAll(filepath.Join(g.Unified().Name(), "made/inside"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := g.Kill(); err != nil {
		t.Fatal(err)
	}
	var e *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &e) || e.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("after Kill: %v", err)
	}
	dirs := g.Dirs()
	if err := g.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if _, err := os.Stat(d.Path); err == nil {
			t.Errorf("%s is left", d.Path)
		}
	}
}

// TestKillEach is the way without cgroup.kill.
func TestKillEach(t *testing.T) {
	g := need(t, nil)
	cmd := sleeper(t, g)
	only := &Group{path: g.path, unified: g.unified}
	for _, d := range g.dirs {
		if d.v2 {
			only.dirs = []dir{d}
		}
	}
	if err := only.killEach(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
}

// TestDeviceFilter loads version 2's filter and lets a process in the group try devices.
func TestDeviceFilter(t *testing.T) {
	g := need(t, nil)
	if g.Unified() == nil {
		t.Skip("needs a version 2 hierarchy")
	}
	try := func(dev string, write bool) bool {
		args := []string{"-c", ": < " + dev}
		if write {
			args[1] = ": > " + dev
		}
		cmd := exec.Command("sh", args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Unified().Fd())}
		return cmd.Run() == nil
	}
	dir := t.TempDir()
	for name, n := range map[string]uint64{"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5), "full": unix.Mkdev(1, 7)} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o666, int(n)); err != nil {
			t.Fatal(err)
		}
	}
	block := filepath.Join(dir, "block")
	if err := unix.Mknod(block, unix.S_IFBLK|0o666, int(unix.Mkdev(7, 0))); err != nil {
		t.Fatal(err)
	}
	all := rule{'a', -1, -1, accAll, true}
	for _, c := range []struct {
		name  string
		rules []rule
		want  [5]bool // read null, write null, read zero, read full, read block
	}{
		{"nothing", []rule{{kind: 'a', access: accAll}}, [5]bool{}},
		{"defaults", defaultRules(), [5]bool{true, true, true, true, false}},
		{"everything", append(defaultRules(), all), [5]bool{true, true, true, true, true}},
		{"read null", []rule{{'c', 1, 3, accRead, true}}, [5]bool{true, false, false, false, false}},
		{"major 1", []rule{{'c', 1, -1, accAll, true}}, [5]bool{true, true, true, true, false}},
		{"minor 5", []rule{{'c', -1, 5, accAll, true}}, [5]bool{false, false, true, false, false}},
		{"but write null", []rule{all, {'c', 1, 3, accWrite, false}}, [5]bool{true, false, true, true, true}},
		{"but blocks", []rule{all, {'b', -1, -1, accAll, false}}, [5]bool{true, true, true, true, false}},
	} {
		if err := g.attachFilter(deviceFilter(fold(c.rules))); err != nil {
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
				t.Skip("needs bpf(2) for device filters:", err)
			}
			t.Fatal(err)
		}
		got := [5]bool{try(dir+"/null", false), try(dir+"/null", true), try(dir+"/zero", false), try(dir+"/full", false), try(block, false)}
		if got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestDefaultDevicesAreWritten(t *testing.T) {
	g := need(t, nil)
	d, ok := g.find("devices")
	if !ok {
		t.Skip("needs the devices controller of version 1")
	}
	got, err := read(d.path, "devices.list")
	if err != nil || strings.Contains(got, "a *:*") || !strings.Contains(got, "c 1:3 rwm") || !strings.Contains(got, "b *:* m") {
		t.Errorf("devices.list is %q, %v", got, err)
	}
}

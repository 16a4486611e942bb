package cgroups

import (
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

// These tests want version 2 with its controllers. integration/kernel_test.go has a machine that has nothing else.

// needV2 skips on a machine without some controllers of version 2.
func needV2(t *testing.T, controllers ...string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes cgroups")
	}
	list, err := mounted()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range list {
		if !h.v2 {
			continue
		}
		for _, c := range controllers {
			if !slices.Contains(h.controllers, c) {
				t.Skip("needs the controller of version 2: " + c)
			}
		}
		return
	}
	t.Skip("needs version 2 of cgroups")
}

// checkFiles compares files of the version 2 group; "" is a file that need not be there.
func checkFiles(t *testing.T, g *Group, want map[string]string) {
	t.Helper()
	for name, value := range want {
		got, err := read(g.Unified().Name(), name)
		if err != nil || got != value {
			t.Errorf("%s is %q, %v, want %q", name, got, err, value)
		}
	}
}

func TestV2Limits(t *testing.T) {
	needV2(t, "memory", "cpu", "cpuset", "pids")
	g := need(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(96 << 20)), Reservation: ptr(int64(32 << 20))},
		CPU:    &specs.LinuxCPU{Shares: ptr(uint64(2048)), Quota: ptr(int64(50000)), Period: ptr(uint64(200000)), Burst: ptr(uint64(1000)), Cpus: "0", Mems: "0"},
		Pids:   &specs.LinuxPids{Limit: ptr(int64(33))},
	})
	checkFiles(t, g, map[string]string{
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.low": "33554432", "cpu.weight": "79", "cpu.max": "50000 200000",
		"cpu.max.burst": "1000", "cpuset.cpus": "0", "cpuset.mems": "0", "pids.max": "33",
	})
	for _, c := range []struct {
		name string
		r    *specs.LinuxResources
		want map[string]string
	}{
		{"a period leaves the quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(100000))}}, map[string]string{"cpu.max": "50000 100000"}},
		{"a quota leaves the period", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(60000))}}, map[string]string{"cpu.max": "60000 100000"}},
		{"no quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(-1)), Burst: ptr(uint64(0))}}, map[string]string{"cpu.max": "max 100000"}},
		{"swap by itself", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(80 << 20))}}, map[string]string{"memory.max": "67108864", "memory.swap.max": "16777216"}},
		{"all swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(-1))}}, map[string]string{"memory.swap.max": "max"}},
		{"no swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(48 << 20)), Swap: ptr(int64(48 << 20))}}, map[string]string{"memory.max": "50331648", "memory.swap.max": "0"}},
		{"no limit of memory is none of swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}, map[string]string{"memory.max": "max", "memory.swap.max": "max"}},
		{"pids", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, map[string]string{"pids.max": "max"}},
		{"idle and a weight", &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(1024))}}, map[string]string{"cpu.idle": "1"}},
		{"a weight and not idle", &specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(0)), Shares: ptr(uint64(1024))}}, map[string]string{"cpu.idle": "0", "cpu.weight": "39"}},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "10485760", "cpu.max": "20000 100000", "cpu.max.burst": "500"}},
			map[string]string{"memory.high": "10485760", "cpu.max": "20000 100000", "cpu.max.burst": "500"}},
	} {
		if err := g.Update(c.r); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for name, value := range c.want {
			if got, err := read(g.Unified().Name(), name); err != nil || got != value {
				t.Errorf("%s: %s is %q, %v, want %q", c.name, name, got, err, value)
			}
		}
	}
	for name, r := range map[string]*specs.LinuxResources{
		"swap below memory":             {Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(32 << 20))}},
		"swap without a limit":          {Memory: &specs.LinuxMemory{Swap: ptr(int64(32 << 20))}},
		"a file of the core":            {Unified: map[string]string{"cgroup.freeze": "1"}},
		"a file that is none":           {Unified: map[string]string{"memory.nothing": "1"}},
		"a value that is none":          {Unified: map[string]string{"memory.max": "lots"}},
		"a processor that is not there": {CPU: &specs.LinuxCPU{Cpus: "4000"}},
	} {
		if err := g.Update(r); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// TestV2OnlyUnified: limits of controllers that no other limit asks for.
func TestV2OnlyUnified(t *testing.T) {
	needV2(t, "cpuset", "io")
	g := need(t, &specs.LinuxResources{Unified: map[string]string{"cpuset.cpus": "0"}})
	checkFiles(t, g, map[string]string{"cpuset.cpus": "0"})
}

func TestV2IO(t *testing.T) {
	needV2(t, "io")
	loops, _ := filepath.Glob("/sys/block/loop[01]/dev")
	if len(loops) < 2 {
		t.Skip("needs two block devices that may be limited: loop0 and loop1 (modprobe loop)")
	}
	throttle := func(minor int64, rate uint64) []specs.LinuxThrottleDevice {
		return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice{Major: 7, Minor: minor}, Rate: rate}}
	}
	g := need(t, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(0, 1<<20), ThrottleWriteIOPSDevice: throttle(0, 50)}})
	checkFiles(t, g, map[string]string{"io.max": "7:0 rbps=1048576 wbps=max riops=max wiops=50"})
	if err := g.Update(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: throttle(0, 0)}}); err != nil {
		t.Fatal(err)
	}
	checkFiles(t, g, map[string]string{"io.max": "7:0 rbps=max wbps=max riops=max wiops=50"})
	if err := g.Update(&specs.LinuxResources{Unified: map[string]string{"io.max": "7:0 wiops=60\n7:1 rbps=4096\n"}}); err != nil {
		t.Fatal(err)
	}
	got, err := read(g.Unified().Name(), "io.max")
	if err != nil || !strings.Contains(got, "7:0 rbps=max wbps=max riops=max wiops=60") || !strings.Contains(got, "7:1 rbps=4096") {
		t.Errorf("io.max is %q, %v", got, err)
	}
	// A weight wants a scheduler that knows one.
	_, err = os.Stat(filepath.Join(g.Unified().Name(), "io.weight"))
	_, berr := os.Stat(filepath.Join(g.Unified().Name(), "io.bfq.weight"))
	werr := g.Update(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))}})
	if has := err == nil || berr == nil; has != (werr == nil) {
		t.Errorf("there is io.weight: %v, and setting it gives %v", has, werr)
	}
}

func TestV2Hugetlb(t *testing.T) {
	needV2(t, "hugetlb")
	if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-2048kB"); err != nil {
		t.Skip("needs huge pages of 2 MB")
	}
	g := need(t, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}})
	checkFiles(t, g, map[string]string{"hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304"})
}

// TestV2NotHandedDown: a controller that the group above keeps for itself is said to be missing, by name.
func TestV2NotHandedDown(t *testing.T) {
	needV2(t, "memory", "pids")
	top := need(t, nil)
	cmd := sleeper(t, top) // who has processes hands down no memory
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	_, err := Create(top.Path()+"/below", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}})
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("Create below a group with processes = %v, want ErrMissing and the controller's name", err)
	}
	if _, err := os.Stat(filepath.Join(top.Unified().Name(), "below")); err == nil {
		t.Error("the group is left")
	}
	// Without limits there can be one.
	g, err := Create(top.Path()+"/below", nil)
	if err != nil {
		t.Fatal(err)
	}
	below := sleeper(t, g)
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	_ = below.Wait()
	if err := g.Remove(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestV2UpdateDevices: rules that come later replace the filter.
func TestV2UpdateDevices(t *testing.T) {
	needV2(t)
	g := need(t, nil)
	if _, ok := g.find("devices"); ok {
		t.Skip("needs a machine without the devices controller of version 1")
	}
	node := filepath.Join(t.TempDir(), "kmsg")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 11))); err != nil {
		t.Fatal(err)
	}
	open := func(redirect string) bool {
		cmd := exec.Command("sh", "-c", ": "+redirect+" "+node)
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Unified().Fd())}
		return cmd.Run() == nil
	}
	rule := func(allow bool, access string) *specs.LinuxResources {
		return &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: allow, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(11)), Access: access}}}
	}
	for _, c := range []struct {
		name        string
		r           *specs.LinuxResources
		read, write bool
	}{
		{"by default", nil, false, false},
		{"allowed", rule(true, "rwm"), true, true},
		{"write only", rule(true, "w"), false, true},
		{"denied", rule(false, "rw"), false, false},
	} {
		if c.r != nil {
			if err := g.Update(c.r); err != nil {
				t.Fatal(err)
			}
		}
		if r, w := open("<"), open(">"); r != c.read || w != c.write {
			t.Errorf("%s: it can be read %v, written %v, want %v, %v", c.name, r, w, c.read, c.write)
		}
	}
}

// TestV2Stats: counters of a group that works and is throttled.
func TestV2Stats(t *testing.T) {
	needV2(t, "memory", "cpu", "pids")
	g := need(t, &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}, Pids: &specs.LinuxPids{Limit: ptr(int64(50))},
		CPU: &specs.LinuxCPU{Quota: ptr(int64(2000)), Period: ptr(uint64(100000))},
	})
	cmd := exec.Command("sh", "-c", "while :; do :; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Unified().Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var s *Stats
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var err error
		if s, err = g.Stats(); err != nil {
			t.Fatal(err)
		}
		if s.CPU.Throttled > 0 {
			break
		}
	}
	if s.CPU.Throttled == 0 || s.CPU.Usage == 0 || s.Memory.Usage == 0 || s.Memory.Limit != 64<<20 || s.Memory.Peak < s.Memory.Usage/2 || s.Pids.Current != 1 || s.Pids.Limit != 50 || s.OOMKills != 0 {
		t.Errorf("Stats() = %+v", s)
	}
	if err := g.Kill(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait()
}

// TestV2OOM: a kill for the limit of a group below counts too.
func TestV2OOM(t *testing.T) {
	needV2(t, "memory")
	g := need(t, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(16 << 20))}})
	cmd := exec.Command("sh", "-c", "x=aaaaaaaaaaaaaaaa; while :; do x=$x$x; done")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(g.Unified().Fd())}
	err := cmd.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); !ok || e.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
		t.Errorf("a process that wants more than its limit ended with %v, want SIGKILL", err)
	}
	if n, err := g.OOMKills(); err != nil || n != 1 {
		t.Errorf("OOMKills() = %d, %v, want 1", n, err)
	}
}

// TestDelegate: of a group that is given away, the limits stay root's.
func TestDelegate(t *testing.T) {
	g := need(t, nil)
	if g.Unified() == nil {
		t.Skip("needs a version 2 hierarchy")
	}
	const uid = 54321
	if err := g.Delegate(uid); err != nil {
		t.Fatal(err)
	}
	owners := map[string]uint32{".": uid, "cgroup.procs": uid, "cgroup.subtree_control": uid, "cgroup.threads": uid, "cgroup.freeze": 0, "cgroup.max.descendants": 0}
	for _, name := range []string{"memory.max", "pids.max"} {
		if _, err := os.Stat(filepath.Join(g.Unified().Name(), name)); err == nil {
			owners[name] = 0
		}
	}
	for name, want := range owners {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(g.Unified().Name(), name), &st); err != nil || st.Uid != want {
			t.Errorf("%s is %d's, %v, want %d's", name, st.Uid, err, want)
		}
	}
	if list, err := delegated(filepath.Join(t.TempDir(), "none")); err != nil || !slices.Equal(list, delegable) {
		t.Errorf("without a list: %q, %v", list, err)
	}
}

// TestOf finds the group below that a process has moved to, and no other.
func TestOf(t *testing.T) {
	g := need(t, nil)
	cmd := sleeper(t, g)
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	leaf := filepath.Join(g.Unified().Name(), "a/leaf")
	if err := os.MkdirAll(leaf, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{g.Unified().Name(), leaf} {
		if err := write(dir, "cgroup.procs", fmt.Sprint(cmd.Process.Pid)); err != nil {
			t.Fatal(err)
		}
		f, err := g.Of(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		is, err := f.Stat()
		f.Close()
		want, werr := os.Stat(dir)
		if err != nil || werr != nil || !os.SameFile(is, want) {
			t.Errorf("it is in %v, %v, want %v, %v", is, err, want, werr)
		}
	}
	if f, err := g.Of(os.Getpid()); err == nil {
		f.Close()
		t.Error("this process, which is not in the group, was found in it")
	}
}

// TestRemoveDeep: what a container has made in its group goes, also where no path leads.
func TestRemoveDeep(t *testing.T) {
	g := need(t, nil)
	if g.Unified() == nil {
		t.Skip("needs a version 2 hierarchy")
	}
	at, err := unix.Openat(int(g.Unified().Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { unix.Close(at) }()
	name := strings.Repeat("x", 240)
	for range 2 * unix.PathMax / len(name) {
		for _, n := range []string{"a", name, "z"} {
			if err := unix.Mkdirat(at, n, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		next, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(at)
		at = next
	}
	top := g.Unified().Name()
	if err := retryRemove(t.Context(), top); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(top); !os.IsNotExist(err) {
		t.Errorf("the group is still there: %v", err)
	}
}

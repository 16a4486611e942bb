package runtime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/cgroups"
)

// startingAhead says that containers of tests are started in processes that were made ahead.
var startingAhead bool

// startedAhead counts them.
var startedAhead atomic.Int32

// startAnyhow is Start, or StartAhead where that fits.
func startAnyhow(t testing.TB, p *Plan, o Options, f Files) (*Container, error) {
	t.Helper()
	if !startingAhead {
		return Start(t.Context(), p, f)
	}
	a := newAhead(t, o)
	if !a.Fits(p) {
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		return Start(t.Context(), p, f)
	}
	startedAhead.Add(1)
	return StartAhead(t.Context(), a, p, f)
}

// newAhead makes a process for any container of the usual kind.
func newAhead(t testing.TB, o Options) *Ahead {
	t.Helper()
	like := newSpec(t, "/none", "none")
	like.Linux.Resources = &specs.LinuxResources{}
	p, err := NewPlan(like, o)
	if err != nil {
		t.Fatal(err)
	}
	a, err := NewAhead(t.Context(), p)
	if err != nil {
		t.Fatalf("NewAhead: %v", err)
	}
	return a
}

// TestAhead: what holds for a container holds for one whose process was there before it.
func TestAhead(t *testing.T) {
	needRoot(t)
	startingAhead = true
	defer func() { startingAhead = false }()
	for name, test := range map[string]func(*testing.T){
		"Start": TestStart, "Mounts": TestMounts, "Masks": TestMasks, "ReadonlyRoot": TestReadonlyRoot, "Devices": TestDevices,
		"AllowedDevice": TestAllowedDevice, "Users": TestUsers, "LinkAtOwnMount": TestLinkAtOwnMount, "MountThroughLink": TestMountThroughLink,
		"PidsLimit": TestPidsLimit, "MemoryLimit": TestMemoryLimit, "Update": TestUpdate, "Membership": TestMembership, "NothingIsLeft": TestNothingIsLeft,
		"SwappedMountPoint": TestSwappedMountPoint, "FakeNull": TestFakeNull, "FakeConsole": TestFakeConsole, "MaskedPathIsLink": TestMaskedPathIsLink,
		"Cwd": TestCwd, "NoDescriptors": TestNoDescriptors, "ProgramThroughDescriptor": TestProgramThroughDescriptor, "OverProc": TestOverProc, "CoveredProc": TestCoveredProc, "Passwd": TestPasswd,
		"BareEnv": TestBareEnv, "HostIsGone": TestHostIsGone, "CgroupPath": TestCgroupPath, "KernelReach": TestKernelReach,
		"Terminal": TestTerminal, "TerminalOfExec": TestTerminalOfExec, "Exec": TestExec, "ExecUser": TestExecUser, "Pause": TestPause,
		"ExitCodes": TestExitCodes, "NotExecutable": TestNotExecutable, "PathIsSearchedInside": TestPathIsSearchedInside, "Signal": TestSignal,
		"InitReaps": TestInitReaps, "InitIsSealed": TestInitIsSealed, "KillAndClose": TestKillAndClose, "Stdin": TestStdin,
		"DirectoryAsStdio": TestDirectoryAsStdio, "CleanSignals": TestCleanSignals, "Parallel": TestParallel,
		"Ambient": TestAmbient, "NoNewPrivileges": TestNoNewPrivileges, "SeccompBites": TestSeccompBites, "Rlimits": TestRlimits,
		"SysctlAndOOM": TestSysctlAndOOM, "Binds": TestBinds, "Propagation": TestPropagation, "HostNetwork": TestHostNetwork,
		"OwnNetwork": TestOwnNetwork, "JoinNamespaces": TestJoinNamespaces, "RootfsByDescriptor": TestRootfsByDescriptor,
	} {
		t.Run(name, test)
	}
	if n := startedAhead.Load(); n < 50 {
		t.Errorf("%d containers were started ahead, want more", n)
	}
}

// checkGone finds nothing of a container's cgroup.
func checkGone(t *testing.T, path string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		list, err := filepath.Glob(pattern + path)
		if err != nil || len(list) > 0 {
			t.Errorf("cgroups are left: %v, %v", list, err)
		}
	}
}

// TestAheadUnused: one that is not used leaves nothing, neither processes nor groups nor descriptors.
func TestAheadUnused(t *testing.T) {
	needRoot(t)
	o := options(t)
	newAhead(t, o).Close() // whatever is opened once and for all is
	before := descriptors(t)
	a := newAhead(t, o)
	pid := a.process.pid
	cgroup := a.Cgroup()
	if err := a.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := a.Close(); err != nil {
		t.Errorf("Close, again: %v", err)
	}
	if err := unix.Kill(pid, 0); err != unix.ESRCH {
		t.Errorf("kill(%d, 0) = %v, want it gone", pid, err)
	}
	checkGone(t, cgroup)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d", after, before)
	}
}

// TestAheadDescriptors: one that is used leaves the descriptors of a container, and these go with it.
func TestAheadDescriptors(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	once := func() {
		o := options(t)
		p, err := NewPlan(newSpec(t, root, "pid"), o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := StartAhead(t.Context(), newAhead(t, o), p, Files{})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := c.Init().Wait(t.Context()); err != nil || st.ExitCode() != 0 {
			t.Errorf("%v, %v", st, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		checkGone(t, p.Cgroup())
	}
	once()
	before := descriptors(t)
	once()
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, want %d", after, before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestAheadKilled: one that was killed while it waited is no container, which can be started anew.
func TestAheadKilled(t *testing.T) {
	needRoot(t)
	o := options(t)
	s := newSpec(t, newRoot(t), "pid")
	p, err := NewPlan(s, o)
	if err != nil {
		t.Fatal(err)
	}
	a := newAhead(t, o)
	if err := unix.Kill(a.process.pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-a.process.done
	if c, err := StartAhead(t.Context(), a, p, Files{}); !errors.Is(err, ErrAhead) {
		t.Fatalf("StartAhead = %v, %v, want ErrAhead", c, err)
	}
	checkGone(t, p.Cgroup())
	if c, err := StartAhead(t.Context(), a, p, Files{}); !errors.Is(err, ErrAhead) {
		t.Fatalf("StartAhead, again = %v, %v, want ErrAhead", c, err)
	}
	if out, st := begin(t, s, o).end(); out != "1 0\n" || st.ExitCode() != 0 {
		t.Errorf("started anew: %q, %v", out, st)
	}
}

// TestAheadOOMScore: the container's is not this process's, with which it has shared memory.
func TestAheadOOMScore(t *testing.T) {
	needRoot(t)
	const name = "/proc/self/oom_score_adj"
	own, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, program := range []string{"pid", "/nothing"} {
		o := options(t)
		s := newSpec(t, newRoot(t), "pid")
		score := 321
		s.Process.Args[len(s.Process.Args)-1], s.Process.OOMScoreAdj = program, &score
		p, err := NewPlan(s, o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := StartAhead(t.Context(), newAhead(t, o), p, Files{})
		if err == nil {
			err = c.Close()
		}
		if now, rerr := os.ReadFile(name); rerr != nil || string(now) != string(own) {
			t.Errorf("%s: it is %q, %v, want %q (%v)", program, now, rerr, own, err)
		}
	}
}

// TestAheadFailures: what keeps a container from starting is told as ever, and nothing is left.
func TestAheadFailures(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		change func(*specs.Spec)
		want   string
	}{
		"no program":  {func(s *specs.Spec) { s.Process.Args = []string{"/nothing"} }, "no such file"},
		"not in PATH": {func(s *specs.Spec) { s.Process.Args = []string{"nothing"} }, "not found"},
		"no right":    {func(s *specs.Spec) { s.Process.Args = []string{"/etc/passwd"} }, "permission denied"},
		"no root":     {func(s *specs.Spec) { s.Root.Path = "/nonexistent" }, "rootfs"},
		"bad limit": {func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Unified: map[string]string{"snapfs.nonsense": "1"}}
		}, "snapfs.nonsense"},
		"in the child": {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.ipv4.ping_group_range": "x"} }, "sysctl"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t)
			s := newSpec(t, newRoot(t), "pid")
			c.change(s)
			p, err := NewPlan(s, o)
			if err != nil {
				t.Fatal(err)
			}
			_, cold := Start(t.Context(), p, Files{})
			_, err = StartAhead(t.Context(), newAhead(t, o), p, Files{})
			if err == nil || cold == nil || err.Error() != cold.Error() && name != "bad limit" {
				t.Errorf("StartAhead = %v, want %v as Start", err, cold)
			}
			checkGone(t, p.Cgroup())
		})
	}
}

// TestAheadCanceled: with the context, the process ends.
func TestAheadCanceled(t *testing.T) {
	needRoot(t)
	o := options(t)
	p, err := NewPlan(newSpec(t, newRoot(t), "sleep"), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := StartAhead(ctx, newAhead(t, o), p, Files{}); !errors.Is(err, context.Canceled) {
		t.Errorf("StartAhead = %v, want %v", err, context.Canceled)
	}
	if _, err := NewAhead(ctx, p); !errors.Is(err, context.Canceled) {
		t.Errorf("NewAhead = %v, want %v", err, context.Canceled)
	}
	checkGone(t, p.Cgroup())
}

// TestAheadMisfits: what it cannot be, it says.
func TestAheadMisfits(t *testing.T) {
	needRoot(t)
	o := options(t)
	a := newAhead(t, o)
	defer a.Close()
	for name, change := range map[string]func(*specs.Spec, *Options){
		"host pid": func(s *specs.Spec, _ *Options) { s.Linux.Namespaces = without(s.Linux.Namespaces, specs.PIDNamespace) },
		"host ipc": func(s *specs.Spec, _ *Options) { s.Linux.Namespaces = without(s.Linux.Namespaces, specs.IPCNamespace) },
		"host cgroup": func(s *specs.Spec, _ *Options) {
			s.Linux.Namespaces = without(s.Linux.Namespaces, specs.CgroupNamespace)
		},
		"another's pid": func(s *specs.Spec, _ *Options) {
			s.Linux.Namespaces = append(without(s.Linux.Namespaces, specs.PIDNamespace), specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/proc/self/ns/pid"})
		},
		"user": func(s *specs.Spec, _ *Options) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		},
		"time": func(s *specs.Spec, _ *Options) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		},
		"hooks": func(s *specs.Spec, _ *Options) {
			s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}
		},
		"listener": func(s *specs.Spec, _ *Options) {
			s.Linux.Seccomp.ListenerPath = "/none"
			s.Linux.Seccomp.Syscalls = append(s.Linux.Seccomp.Syscalls, specs.LinuxSyscall{Names: []string{"swapon"}, Action: specs.ActNotify})
		},
		"network devices": func(s *specs.Spec, _ *Options) {
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"none0": {}}
		},
		"keyring":      func(_ *specs.Spec, o *Options) { o.NoNewKeyring = true },
		"other cgroup": func(_ *specs.Spec, o *Options) { o.ID += "x" },
		"cpuset": func(s *specs.Spec, _ *Options) {
			s.Linux.Resources = &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}
		},
	} {
		s, o := newSpec(t, "/none", "pid"), o
		change(s, &o)
		p, err := NewPlan(s, o)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if a.Fits(p) {
			t.Errorf("%s: it fits", name)
		}
	}
	for name, change := range map[string]func(*specs.Spec){
		"none":         func(*specs.Spec) {},
		"host network": func(s *specs.Spec) { s.Linux.Namespaces = without(s.Linux.Namespaces, specs.NetworkNamespace) },
		"privileged":   func(s *specs.Spec) { s.Linux.Seccomp, s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil, nil },
	} {
		s := newSpec(t, "/none", "pid")
		change(s)
		p, err := NewPlan(s, o)
		if err != nil || !a.Fits(p) {
			t.Errorf("%s: it does not fit: %v", name, err)
		}
	}
}

// TestAheadDiesWithItsMaker: however that ends. The maker is this test, again.
func TestAheadDiesWithItsMaker(t *testing.T) {
	needRoot(t)
	const name = "SNAPFS_TEST_AHEAD"
	o := Options{ID: os.Getenv(name), CgroupParent: "/snapfs-test"}
	if o.ID != "" {
		a := newAhead(t, o)
		os.Stdout.WriteString("pid " + itoa(a.process.pid) + "\n")
		select {} // until it is killed
	}
	o = options(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestAheadDiesWithItsMaker$")
	cmd.Env = append(os.Environ(), name+"="+o.ID)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 64)
	n, err := out.Read(b)
	pid, ok := strings.CutPrefix(strings.TrimSpace(string(b[:n])), "pid ")
	if err != nil || !ok {
		t.Fatalf("it said %q, %v", b[:n], err)
	}
	fd, err := unix.PidfdOpen(atoi(t, pid), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(30*time.Second/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		if n != 1 || err != nil {
			t.Fatalf("process %s does not end: %v", pid, err)
		}
		break
	}
	removeLeft(t, "/snapfs-test/"+o.ID)
}

func itoa(n int) string { return strconv.Itoa(n) }

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// removeLeft removes the group that a killed process has left, once those in it have ended.
func removeLeft(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		busy, err := cgroups.RemoveEmpty(filepath.Dir(path), filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		if !busy {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its cgroup stays in use")
		}
	}
	checkGone(t, path)
}

// BenchmarkStartAhead is BenchmarkStart/full in a process that was made ahead, which does not count.
func BenchmarkStartAhead(b *testing.B) {
	needRoot(b)
	s := newSpec(b, newRoot(b), "exit", "0")
	dir := b.TempDir()
	for b.Loop() {
		b.StopTimer()
		o := options(b)
		o.SeccompCache = dir
		a := newAhead(b, o)
		b.StartTimer()
		p, err := NewPlan(s, o)
		if err != nil {
			b.Fatal(err)
		}
		c, err := StartAhead(b.Context(), a, p, Files{})
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

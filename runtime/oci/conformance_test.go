package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These are the main checks of the validation programs of
// github.com/opencontainers/runtime-tools, written anew: each name is that of its
// program, and what follows it is ours. Every check runs against snaprun, which has
// to pass, and, as a control of the checks, against Debian's crun.

// A trial is a test whose failures are counted instead of reported.
type trial struct {
	testing.TB
	failures []string
}

func (t *trial) Errorf(format string, args ...any) {
	t.failures = append(t.failures, fmt.Sprintf(format, args...))
}
func (t *trial) Error(args ...any)                 { t.Errorf("%s", fmt.Sprintln(args...)) }
func (t *trial) Fatalf(format string, args ...any) { t.Errorf(format, args...); goruntime.Goexit() }
func (t *trial) Fatal(args ...any)                 { t.Error(args...); goruntime.Goexit() }
func (t *trial) Helper()                           {}

// try runs one check on one runtime.
func try(t *testing.T, prefix []string, c check) []string {
	tr := &trial{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := newBench(tr, "exit", "0")
		if b.prefix = prefix; prefix != nil {
			b.spec.Version = "1.0.2" // crun 1.8 knows no newer one
		}
		c.do(b)
	}()
	<-done
	return tr.failures
}

// control is how to call crun; "" if it is not there. It refuses a machine with
// controllers in both versions of cgroups, so it gets a mount namespace without the second.
func control() []string {
	if _, err := exec.LookPath("crun"); err != nil {
		return nil
	}
	return []string{"unshare", "-m", "--propagation", "private", "sh", "-c",
		`umount /sys/fs/cgroup/unified 2>/dev/null; exec crun "$@"`, "crun"}
}

func TestConformance(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	peer := control()
	if peer == nil {
		t.Log("no crun here: there is no control")
	}
	ours, theirs, n := 0, 0, 0
	for _, c := range slices.Concat(checks, moreChecks) {
		t.Run(c.name, func(t *testing.T) {
			failures := try(t, nil, c)
			if t.Skipped() {
				return
			}
			n++
			for _, f := range failures {
				t.Error(f)
			}
			if len(failures) == 0 {
				ours++
			}
			if peer == nil {
				return
			}
			switch f := try(t, peer, c); {
			case len(f) == 0:
				theirs++
			case c.crun == "":
				t.Logf("crun: %s", strings.Join(f, "; "))
			default:
				t.Logf("crun fails, as it %s", c.crun)
			}
		})
	}
	t.Logf("of %d checks snaprun passes %d, crun %d", n, ours, theirs)
	if ours < theirs {
		t.Errorf("crun passes %d checks, we %d", theirs, ours)
	}
}

// A check is one of the list.
type check struct {
	name string
	do   func(b *bench)
	crun string // why crun fails, if it is known
}

// runsWith changes the spec, runs the container with arguments for the program inside, and looks for parts of its output.
func runsWith(args []string, change func(*specs.Spec), parts ...string) func(*bench) {
	return func(b *bench) {
		b.spec.Process.Args = append([]string{"/inside"}, args...)
		if change != nil {
			change(b.spec)
		}
		wants(b.t, b.runs(), parts...)
	}
}

// refuses changes the spec, which create has to refuse, leaving nothing.
func refuses(change func(*specs.Spec)) func(*bench) {
	return func(b *bench) {
		change(b.spec)
		b.write()
		if out, err := b.run("create", "--bundle", b.bundle, b.id); err == nil {
			b.t.Errorf("it was created: %s", out)
		}
		b.gone()
	}
}

// gone checks that there is no such container.
func (b *bench) gone() {
	b.t.Helper()
	if out, err := b.run("state", b.id); err == nil {
		b.t.Errorf("state: %s", out)
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + b.spec.Linux.CgroupsPath); len(left) > 0 {
		b.t.Errorf("cgroups are left: %v", left)
	}
}

// fail is run that has to fail somehow.
func (b *bench) fail(args ...string) {
	b.t.Helper()
	if out, err := b.run(args...); err == nil {
		b.t.Errorf("%s worked: %s", strings.Join(args, " "), out)
	}
}

// starts creates and starts a container that goes on until it is ended.
func (b *bench) starts(args ...string) {
	b.t.Helper()
	b.spec.Process.Args = append(append([]string{"/inside"}, args...), "trap")
	b.create()
	b.ok("start", b.id)
}

// limit checks the files of a running container's cgroup.
func limit(r *specs.LinuxResources, want map[string]string) func(*bench) {
	return func(b *bench) {
		b.spec.Linux.Resources = r
		for file := range want {
			if _, err := os.Stat("/sys/fs/cgroup/" + filepath.Dir(file)); err != nil {
				b.t.Skip("this machine has no cgroup controller " + filepath.Dir(file) + " of version 1")
			}
		}
		b.starts()
		for file, value := range want {
			got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", filepath.Dir(file), b.spec.Linux.CgroupsPath, filepath.Base(file)))
			if err != nil || strings.TrimSpace(string(got)) != value {
				b.t.Errorf("%s: %q, %v, want %q", file, got, err, value)
			}
		}
		b.end()
	}
}

func to[T any](v T) *T { return &v }

func withoutNS(s *specs.Spec, kind specs.LinuxNamespaceType) {
	var list []specs.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != kind {
			list = append(list, n)
		}
	}
	s.Linux.Namespaces = list
}

var nsFiles = map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.PIDNamespace: "pid", specs.MountNamespace: "mnt", specs.CgroupNamespace: "cgroup"}

var checks = []check{
	{name: "create", do: func(b *bench) {
		b.write()
		b.fail("create", "--bundle", b.bundle)
		b.fail("create", "--bundle", b.bundle+"/none", b.id)
		b.spec.Process.Args = []string{"/inside", "trap"}
		b.create()
		b.fail("create", "--bundle", b.bundle, b.id)
	}},
	{name: "create: bad JSON", do: func(b *bench) {
		must(b.t, os.WriteFile(filepath.Join(b.bundle, "config.json"), []byte(`{"ociVersion": "1.0.0", "process": [}`), 0o600))
		b.fail("create", "--bundle", b.bundle, b.id)
		b.gone()
	}},
	{name: "state", do: func(b *bench) {
		b.fail("state", b.id)
		b.spec.Annotations = map[string]string{"x": "y"}
		b.starts()
		s := b.state()
		if s.Version == "" || s.ID != b.id || s.Status != specs.StateRunning || s.Pid == 0 || s.Bundle != b.bundle || s.Annotations["x"] != "y" {
			b.t.Errorf("state %+v", s)
		}
		b.end()
		b.waitFor(specs.StateStopped)
	}},
	{name: "start", do: func(b *bench) {
		b.fail("start", b.id)
		b.starts()
		b.fail("start", b.id)
		b.end()
		b.fail("start", b.id)
	}},
	{name: "start: the program waits for it", do: func(b *bench) {
		b.spec.Process.Args = []string{"/inside", "write", "/tmp/ran", "x", ";", "trap"}
		b.create()
		if _, err := os.Stat(filepath.Join(b.bundle, "rootfs/tmp/ran")); err == nil {
			b.t.Error("the program ran before start")
		}
		pid := b.state().Pid
		b.ok("start", b.id)
		if now := b.state().Pid; now != pid {
			b.t.Errorf("process %d became %d", pid, now)
		}
		b.end()
		if _, err := os.Stat(filepath.Join(b.bundle, "rootfs/tmp/ran")); err != nil {
			b.t.Error(err)
		}
	}},
	{name: "kill", do: func(b *bench) {
		b.fail("kill", b.id, "KILL")
		b.spec.Process.Args = []string{"/inside", "trap"}
		b.create()
		pid := b.state().Pid
		b.ok("kill", b.id, "KILL")
		waitPid(b.t, pid)
		b.waitFor(specs.StateStopped)
		b.fail("kill", b.id, "KILL")
	}},
	{name: "killsig", do: func(b *bench) {
		for _, sig := range []string{"TERM", "SIGUSR1", "10", "SIGHUP", "INT"} {
			b.id += "x"
			b.spec.Linux.CgroupsPath += "x"
			b.starts()
			line, err := b.out.ReadString('\n')
			must(b.t, err)
			pid := b.state().Pid
			b.ok("kill", b.id, sig)
			waitPid(b.t, pid)
			name := "got SIG" + strings.TrimPrefix(strings.Replace(sig, "10", "USR1", 1), "SIG") + "\n"
			if rest := b.rest(); line != "ready\n" || rest != name {
				b.t.Errorf("after %s it said %q, %q", sig, line, rest)
			}
			b.ok("delete", b.id)
		}
	}},
	{name: "kill_no_effect", crun: "takes an unknown name for signal 0", do: func(b *bench) {
		b.starts()
		b.fail("kill", b.id, "NOSUCH")
		if s := b.state(); s.Status != specs.StateRunning {
			b.t.Errorf("it is %s", s.Status)
		}
	}},
	{name: "delete", do: func(b *bench) {
		b.fail("delete", b.id)
		b.starts()
		b.fail("delete", b.id)
		if s := b.state(); s.Status != specs.StateRunning {
			b.t.Errorf("after the delete that was refused it is %s", s.Status)
		}
		b.end()
		b.ok("delete", b.id)
		b.gone()
	}},
	{name: "delete_resources", do: func(b *bench) {
		b.starts()
		if list, _ := filepath.Glob("/sys/fs/cgroup/*" + b.spec.Linux.CgroupsPath); len(list) == 0 {
			b.t.Error("it has no cgroup")
		}
		b.end()
		b.ok("delete", b.id)
		b.gone()
		if _, err := os.Stat(filepath.Join(b.bundle, "rootfs/inside")); err != nil {
			b.t.Error(err)
		}
	}},
	{name: "pidfile", do: func(b *bench) {
		name := filepath.Join(b.bundle, "pid")
		b.spec.Process.Args = []string{"/inside", "trap"}
		b.create("--pid-file", name)
		text, err := os.ReadFile(name)
		if err != nil || string(text) != strconv.Itoa(b.state().Pid) {
			b.t.Errorf("the file has %q, %v, want %d", text, err, b.state().Pid)
		}
	}},
	{name: "hooks", crun: "runs startContainer hooks of 1.0.2 in another order, if at all", do: func(b *bench) {
		b.spec.Hooks = b.allHooks()
		b.runs()
		names, _ := b.hookLog()
		if got := strings.Join(names, " "); got != "prestart createRuntime createContainer poststart poststop" {
			b.t.Errorf("hooks %q", got)
		}
	}},
	{name: "hooks_stdin", do: func(b *bench) {
		b.spec.Annotations = map[string]string{"x": "y"}
		b.spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{b.hook("poststart", ":")}, Poststop: []specs.Hook{b.hook("poststop", ":")}}
		b.starts()
		pid := b.state().Pid
		b.end()
		b.ok("delete", b.id)
		_, states := b.hookLog()
		if s := states["poststart"]; s.ID != b.id || s.Pid != pid || s.Bundle != b.bundle || s.Version == "" || s.Annotations["x"] != "y" {
			b.t.Errorf("poststart got %+v", s)
		}
		if s := states["poststop"]; s.ID != b.id || s.Status != specs.StateStopped {
			b.t.Errorf("poststop got %+v", s)
		}
	}},
	{name: "prestart_fail", do: func(b *bench) {
		//lint:ignore SA1019 a deprecated hook is one nevertheless
		b.spec.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/bin/false"}}}
		b.write()
		b.fail("create", "--bundle", b.bundle, b.id)
		b.gone()
	}},
	{name: "poststart_fail", crun: "has it for a warning, as the specification before 1.3", do: func(b *bench) {
		b.spec.Hooks = &specs.Hooks{Poststart: []specs.Hook{{Path: "/bin/false"}}}
		b.spec.Process.Args = []string{"/inside", "trap"}
		b.create()
		b.fail("start", b.id)
		b.waitFor(specs.StateStopped)
	}},
	{name: "poststop_fail", do: func(b *bench) {
		b.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/false"}, b.hook("after", ":")}}
		b.starts()
		b.end()
		b.ok("delete", b.id)
		b.gone()
		if names, _ := b.hookLog(); len(names) != 1 {
			b.t.Errorf("after one that failed ran %v", names)
		}
	}},
	{name: "hostname", do: runsWith([]string{"hostname"}, func(s *specs.Spec) { s.Hostname = "hostname-specific" }, "hostname-specific")},
	{name: "hostname: without a namespace", do: refuses(func(s *specs.Spec) { withoutNS(s, specs.UTSNamespace) })},
	{name: "hostname: domainname", crun: "1.8 sets none for 1.0.2", do: runsWith([]string{"hostname"}, func(s *specs.Spec) { s.Domainname = "dom.example" }, "dom.example")},
	{name: "linux_cgroups_cpus", do: limit(&specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to(uint64(512)), Quota: to(int64(50000)), Period: to(uint64(100000))}},
		map[string]string{"cpu/cpu.shares": "512", "cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"})},
	{name: "linux_cgroups_cpus: cpuset", do: limit(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}, map[string]string{"cpuset/cpuset.cpus": "0", "cpuset/cpuset.mems": "0"})},
	{name: "linux_cgroups_memory", do: limit(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(64 << 20)), Reservation: to(int64(32 << 20)), Swap: to(int64(96 << 20)), Swappiness: to(uint64(30))}},
		map[string]string{"memory/memory.limit_in_bytes": "67108864", "memory/memory.soft_limit_in_bytes": "33554432", "memory/memory.memsw.limit_in_bytes": "100663296", "memory/memory.swappiness": "30"})},
	{name: "linux_cgroups_pids", do: limit(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(77))}}, map[string]string{"pids/pids.max": "77"})},
	{name: "linux_cgroups_relative", do: func(b *bench) {
		b.spec.Linux.CgroupsPath = "relative-" + b.id
		b.spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(78))}}
		b.spec.Process.Args = []string{"/inside", "exit", "0"}
		b.runs()
	}},
	{name: "linux_cgroups_devices", do: runsWith([]string{"open", "/dev/null", ";", "open", "/dev/full", ";", "mknod", "/tmp/d", "0x2180", "1", "11", ";", "open", "/tmp/d"},
		func(s *specs.Spec) {
			s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "c", Major: to(int64(10)), Minor: to(int64(229)), Access: "rw"}}}
		}, "open ok\nopen ok\n")},
	{name: "linux_devices", do: runsWith([]string{"stat", "/dev/test1", ";", "stat", "/dev/test2", ";", "stat", "/dev/test3"}, func(s *specs.Spec) {
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/test1", Type: "c", Major: 10, Minor: 666, FileMode: to(os.FileMode(0o432)), UID: to(uint32(7)), GID: to(uint32(8))},
			{Path: "/dev/test2", Type: "b", Major: 8, Minor: 666, FileMode: to(os.FileMode(0o432))},
			{Path: "/dev/test3", Type: "p", FileMode: to(os.FileMode(0o432)), UID: to(uint32(9))},
		}
	}, "/dev/test1 20432 7:8 10:666", "/dev/test2 60432 0:0 8:666", "/dev/test3 10432 9:0")},
	{name: "linux_devices: bad type", crun: "takes it", do: refuses(func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "x"}} })},
	{name: "default: devices", do: runsWith([]string{"stat", "/dev/null", ";", "stat", "/dev/zero", ";", "stat", "/dev/full", ";", "stat", "/dev/random", ";", "stat", "/dev/urandom", ";", "stat", "/dev/tty"}, nil,
		"/dev/null 20666 0:0 1:3", "/dev/zero 20666 0:0 1:5", "/dev/full 20666 0:0 1:7", "/dev/random 20666 0:0 1:8", "/dev/urandom 20666 0:0 1:9", "/dev/tty 20666 0:0 5:0")},
	{name: "default: symlinks", do: runsWith([]string{"readlink", "/dev/fd", ";", "readlink", "/dev/stdin", ";", "readlink", "/dev/stdout", ";", "readlink", "/dev/stderr", ";", "readlink", "/dev/ptmx"}, nil,
		"/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n")},
	{name: "default: file systems", do: runsWith([]string{"grep", " ", "/proc/mounts"}, nil, "proc /proc proc", " /sys sysfs", " /dev tmpfs", " /dev/pts devpts", " /dev/shm tmpfs")},
	{name: "linux_masked_paths", do: func(b *bench) {
		root := filepath.Join(b.bundle, "rootfs")
		must(b.t, os.WriteFile(filepath.Join(root, "secret"), []byte("x"), 0o644))
		must(b.t, os.MkdirAll(filepath.Join(root, "hidden/inner"), 0o755))
		must(b.t, os.Symlink("hidden", filepath.Join(root, "link")))
		runsWith([]string{"cat", "/secret", ";", "ls", "/hidden", ";", "ls", "/link", ";", "echo", "done"}, func(s *specs.Spec) {
			s.Linux.MaskedPaths = []string{"/secret", "/hidden", "/not/there"}
		}, "\n\ndone")(b)
	}},
	{name: "linux_readonly_paths", do: func(b *bench) {
		root := filepath.Join(b.bundle, "rootfs")
		must(b.t, os.WriteFile(filepath.Join(root, "file"), []byte("x"), 0o644))
		must(b.t, os.MkdirAll(filepath.Join(root, "ro/inner"), 0o755))
		runsWith([]string{"access", "/file", ";", "write", "/ro/x", "y", ";", "write", "/ro/inner/x", "y", ";", "write", "/tmp/x", "y", ";", "echo", "done"}, func(s *specs.Spec) {
			s.Linux.ReadonlyPaths = []string{"/file", "/ro", "/not/there"}
		}, "access EROFS\nwrite EROFS\nwrite EROFS\ndone")(b)
	}},
	{name: "linux_ns_nopath", do: func(b *bench) {
		var args []string
		for _, f := range nsFiles {
			args = append(args, "readlink", "/proc/self/ns/"+f, ";")
		}
		b.spec.Process.Args = append([]string{"/inside"}, append(args, "echo", "done")...)
		out := b.runs()
		for _, f := range nsFiles {
			host, err := os.Readlink("/proc/self/ns/" + f)
			must(b.t, err)
			if strings.Contains(out, host) || !strings.Contains(out, f+":[") {
				b.t.Errorf("namespace %s is the host's, %s: %s", f, host, out)
			}
		}
	}},
	{name: "linux_ns_itype", do: func(b *bench) { // a kind that is not listed is the host's
		withoutNS(b.spec, specs.IPCNamespace)
		withoutNS(b.spec, specs.CgroupNamespace)
		b.spec.Process.Args = []string{"/inside", "readlink", "/proc/self/ns/ipc", ";", "readlink", "/proc/self/ns/cgroup"}
		ipc, err := os.Readlink("/proc/self/ns/ipc")
		must(b.t, err)
		cg, err := os.Readlink("/proc/self/ns/cgroup")
		must(b.t, err)
		wants(b.t, b.runs(), ipc, cg)
	}},
	{name: "linux_ns_path", do: func(b *bench) {
		cmd := exec.Command("unshare", "--net", "--ipc", "--uts", "sleep", "1000")
		must(b.t, cmd.Start())
		defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
		var want []string
		for _, kind := range []specs.LinuxNamespaceType{specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
			name := fmt.Sprintf("/proc/%d/ns/%s", cmd.Process.Pid, nsFiles[kind])
			s, err := os.Readlink(name)
			for err == nil && s == mustLink(b, "/proc/self/ns/"+nsFiles[kind]) { // it has not got there yet
				s, err = os.Readlink(name)
			}
			must(b.t, err)
			want = append(want, s)
			for i := range b.spec.Linux.Namespaces {
				if n := &b.spec.Linux.Namespaces[i]; n.Type == kind {
					n.Path = name
				}
			}
		}
		b.spec.Process.Args = []string{"/inside", "readlink", "/proc/self/ns/net", ";", "readlink", "/proc/self/ns/ipc", ";", "readlink", "/proc/self/ns/uts"}
		b.spec.Hostname = ""
		wants(b.t, b.runs(), want...)
	}},
	{name: "linux_ns_path_type", do: refuses(func(s *specs.Spec) {
		for i := range s.Linux.Namespaces {
			if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
				s.Linux.Namespaces[i].Path = "/proc/self/ns/ipc"
			}
		}
	})},
	{name: "linux_ns_path_type: none", do: refuses(func(s *specs.Spec) { s.Linux.Namespaces[1].Path = "/etc/passwd" })},
	{name: "linux_ns: twice", crun: "takes it", do: refuses(func(s *specs.Spec) { s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[0]) })},
	{name: "linux_process_apparmor_profile", crun: "ignores what the kernel does not have", do: func(b *bench) {
		if text, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); len(text) > 0 && text[0] == 'Y' {
			b.t.Skip("this kernel has AppArmor")
		}
		refuses(func(s *specs.Spec) { s.Process.ApparmorProfile = "acme_secure_profile" })(b)
	}},
	{name: "linux_rootfs_propagation: shared", do: runsWith([]string{"grep", " / / ", "/proc/self/mountinfo", ";", "grep", " / ", "/proc/self/mountinfo"}, func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" }, " shared:")},
	{name: "linux_rootfs_propagation: unbindable", do: runsWith([]string{"grep", " / ", "/proc/self/mountinfo"}, func(s *specs.Spec) { s.Linux.RootfsPropagation = "unbindable" }, " unbindable")},
	{name: "linux_rootfs_propagation: private", do: func(b *bench) {
		b.spec.Linux.RootfsPropagation = "private"
		b.spec.Process.Args = []string{"/inside", "grep", " / ", "/proc/self/mountinfo"}
		if out := b.runs(); strings.Contains(out, "shared:") || strings.Contains(out, "master:") {
			b.t.Errorf("mounts: %s", out)
		}
	}},
	{name: "linux_seccomp", do: runsWith([]string{"syscall", strconv.Itoa(unix.SYS_GETCWD), "0", "0", ";", "echo", "done"}, func(s *specs.Spec) {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"getcwd"}, Action: specs.ActErrno}}}
	}, "syscall EPERM\ndone")},
	{name: "linux_sysctl", do: runsWith([]string{"cat", "/proc/sys/net/ipv4/ip_forward", ";", "cat", "/proc/sys/kernel/shm_rmid_forced"}, func(s *specs.Spec) {
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
	}, "1\n1\n")},
	{name: "linux_sysctl: the host's", do: refuses(func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.core_pattern": "x"} })},
	{name: "linux_uid_mappings", do: func(b *bench) {
		b.userNS()
		runsWith([]string{"cat", "/proc/self/uid_map", ";", "cat", "/proc/self/gid_map", ";", "ids"}, nil, "0     300000      65536\n         0     300000      65536\n0 0 [")(b)
	}},
	{name: "misc_props: unknown property", do: func(b *bench) {
		j, err := json.Marshal(b.spec)
		must(b.t, err)
		must(b.t, os.WriteFile(filepath.Join(b.bundle, "config.json"), []byte(`{"unknown": {"a": [1]},`+string(j[1:])), 0o600))
		b.ok("run", "--bundle", b.bundle, b.id)
	}},
	{name: "misc_props: version", do: refuses(func(s *specs.Spec) { s.Version = "invalid" })},
	{name: "mounts", do: func(b *bench) {
		src := b.t.TempDir()
		must(b.t, os.WriteFile(filepath.Join(src, "f"), []byte("data\n"), 0o644))
		runsWith([]string{"cat", "/a/b/c/f", ";", "write", "/a/b/c/f", "x", ";", "stat", "/t", ";", "cat", "/file", ";", "grep", " /t ", "/proc/mounts", ";", "echo", "done"}, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a/b/c", Type: "bind", Source: src, Options: []string{"rbind", "ro"}},
				specs.Mount{Destination: "/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "mode=0711", "size=1m", "noatime"}},
				specs.Mount{Destination: "/file", Type: "bind", Source: src + "/f", Options: []string{"bind"}})
		}, "data\nwrite EROFS\n/t 40711 0:0 0:0\ndata\n", "nosuid,nodev,noexec,noatime", "size=1024k")(b)
	}},
	{name: "mounts: in order", do: func(b *bench) {
		src := b.t.TempDir()
		must(b.t, os.Mkdir(filepath.Join(src, "sub"), 0o755))
		runsWith([]string{"ls", "/m", ";", "ls", "/m/sub"}, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "tmpfs", Source: "tmpfs"}, specs.Mount{Destination: "/m", Type: "bind", Source: src, Options: []string{"rbind"}},
				specs.Mount{Destination: "/m/sub", Type: "bind", Source: b.bundle + "/rootfs", Options: []string{"rbind"}})
		}, "sub", "inside")(b)
	}},
	{name: "mounts: no source", do: refuses(func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: "/no/such/source", Options: []string{"rbind"}})
	})},
	{name: "mounts_recursive: rro", do: func(b *bench) {
		src := b.t.TempDir()
		must(b.t, os.Mkdir(filepath.Join(src, "sub"), 0o755))
		must(b.t, unix.Mount("tmpfs", filepath.Join(src, "sub"), "tmpfs", 0, ""))
		defer func() { must(b.t, unix.Unmount(filepath.Join(src, "sub"), unix.MNT_DETACH)) }()
		runsWith([]string{"write", "/m/sub/x", "y", ";", "grep", " /m/sub ", "/proc/mounts"}, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/m", Type: "bind", Source: src, Options: []string{"rbind", "rro", "rnosuid", "rnodev", "rnoexec"}})
		}, "write EROFS", "ro,nosuid,nodev,noexec")(b)
	}},
	{name: "process", do: runsWith([]string{"args", "a b", "", ";", "cwd", ";", "env", "A", "B"}, func(s *specs.Spec) {
		s.Process.Cwd, s.Process.Env = "/tmp", []string{"A=1", "B=2 3"}
	}, `"/inside" "args" "a b" ""`, "/tmp\n", "A 1 true\nB 2 3 true")},
	{name: "process: PATH", do: func(b *bench) {
		must(b.t, os.Link(filepath.Join(b.bundle, "rootfs/inside"), filepath.Join(b.bundle, "rootfs/bin/named")))
		b.spec.Process.Args = []string{"named", "echo", "found"}
		wants(b.t, b.runs(), "found")
	}},
	{name: "process: no such program", do: func(b *bench) {
		b.spec.Process.Args = []string{"/no/such/program"}
		b.write()
		b.fail("run", "--bundle", b.bundle, b.id)
		b.gone()
	}},
	{name: "process_capabilities", do: runsWith([]string{"grep", "Cap", "/proc/self/status"}, func(s *specs.Spec) {
		chown, both := []string{"CAP_CHOWN"}, []string{"CAP_CHOWN", "CAP_KILL"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: both, Permitted: both, Effective: chown, Inheritable: chown, Ambient: chown}
		s.Process.User = specs.User{UID: 1000, GID: 1000}
	}, "CapInh:\t0000000000000001", "CapPrm:\t0000000000000001", "CapEff:\t0000000000000001", "CapBnd:\t0000000000000021", "CapAmb:\t0000000000000001")},
	{name: "process_capabilities: none", do: runsWith([]string{"grep", "Cap", "/proc/self/status"}, func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{} },
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "CapAmb:\t0000000000000000")},
	{name: "process_no_new_privileges", do: runsWith([]string{"grep", "NoNewPrivs", "/proc/self/status"}, nil, "NoNewPrivs:\t1")},
	{name: "process_oom_score_adj", do: runsWith([]string{"cat", "/proc/self/oom_score_adj"}, func(s *specs.Spec) { s.Process.OOMScoreAdj = to(700) }, "700\n")},
	{name: "process_rlimits", do: runsWith([]string{"limit", strconv.Itoa(unix.RLIMIT_STACK), ";", "limit", strconv.Itoa(unix.RLIMIT_CORE)}, func(s *specs.Spec) {
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_STACK", Soft: 1 << 20, Hard: 2 << 20}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0}}
	}, "1048576 2097152\n0 0\n")},
	{name: "process_rlimits_fail", do: refuses(func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_TEST", Soft: 1, Hard: 1}} })},
	{name: "process_rlimits_fail: twice", crun: "takes it", do: refuses(func(s *specs.Spec) {
		s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}}
	})},
	{name: "process_rlimits: needs CAP_SYS_RESOURCE", do: func(b *bench) {
		var have [2]unix.CapUserData
		must(b.t, unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &have[0]))
		if have[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0 {
			b.t.Skip("this machine's root has CAP_SYS_RESOURCE")
		}
		refuses(func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 30, Hard: 1 << 30}}
		})(b)
	}},
	{name: "process_user", do: runsWith([]string{"ids", ";", "umask"}, func(s *specs.Spec) {
		s.Process.User = specs.User{UID: 10, GID: 11, AdditionalGids: []uint32{12, 13}, Umask: to(uint32(0o027))}
	}, "10 11 [", "12 13", "027")},
	{name: "root_readonly_true", do: runsWith([]string{"write", "/tmp/x", "y", ";", "write", "/x", "y"}, func(s *specs.Spec) { s.Root.Readonly = true }, "write EROFS\nwrite EROFS")},
	{name: "root_readonly_false", do: func(b *bench) {
		b.spec.Process.Args = []string{"/inside", "write", "/x", "y"}
		if out := b.runs(); out != "" {
			b.t.Errorf("write: %s", out)
		}
	}},
	{name: "root: no such directory", do: refuses(func(s *specs.Spec) { s.Root.Path = "nothere" })},
	{name: "exec", do: func(b *bench) {
		b.starts()
		out := b.ok("exec", "--user", "5:6", "--cwd", "/tmp", "--env", "A=b", b.id, "/inside", "ids", ";", "cwd", ";", "env", "A", ";", "hostname")
		wants(b.t, out, "5 6 [", "/tmp", "A b true", b.spec.Hostname)
		var e *exec.ExitError
		if _, err := b.run("exec", b.id, "/inside", "exit", "9"); !errors.As(err, &e) || e.ExitCode() != 9 {
			b.t.Errorf("exec exit 9: %v", err)
		}
		b.fail("exec", b.id, "/no/such/program")
		b.end()
		b.fail("exec", b.id, "/inside", "ids")
	}},
	{name: "pause and resume", do: func(b *bench) {
		b.starts()
		b.ok("pause", b.id)
		if s := b.state().Status; s != statusPaused {
			b.t.Errorf("it is %s, want paused", s)
		}
		b.ok("resume", b.id)
		b.end()
	}},
	{name: "ps", do: func(b *bench) {
		b.starts()
		var pids []int
		must(b.t, json.Unmarshal([]byte(b.ok("ps", "--format", "json", b.id)), &pids))
		if len(pids) != 1 || pids[0] != b.state().Pid {
			b.t.Errorf("ps: %v", pids)
		}
		b.end()
	}},
	{name: "update", do: func(b *bench) {
		b.starts()
		b.ok("update", "--pids-limit", "66", "--memory", "67108864", b.id)
		for file, want := range map[string]string{"pids/pids.max": "66", "memory/memory.limit_in_bytes": "67108864"} {
			got, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", filepath.Dir(file), b.spec.Linux.CgroupsPath, filepath.Base(file)))
			if errors.Is(err, os.ErrNotExist) {
				b.t.Skip("this machine has no cgroups of version 1")
			}
			if strings.TrimSpace(string(got)) != want {
				b.t.Errorf("%s: %q, want %q", file, got, want)
			}
		}
		b.end()
	}},
	{name: "list", do: func(b *bench) {
		b.starts()
		wants(b.t, b.ok("list"), b.id, "running")
		wants(b.t, b.ok("list", "--format", "json"), b.id)
		b.end()
	}},
}

func mustLink(b *bench, name string) string {
	s, err := os.Readlink(name)
	must(b.t, err)
	return s
}

package runtime

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These tests build hostile images and look at the host afterwards. Each names
// the flaws in other runtimes it stands for.

// victim is a directory of the host that images point to. It must stay empty.
func victim(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Cleanup(func() {
		list, err := os.ReadDir(dir)
		if err != nil || len(list) > 0 {
			t.Errorf("on the host: %v, %v", list, err)
		}
	})
	return dir
}

// link puts a symbolic link into an image.
func link(t *testing.T, target, root, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
		t.Fatal(err)
	}
}

// TestLinkAtOwnMount: /proc, /sys or /dev of the image is a link
// (CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2026-41579, CVE-2026-47766).
func TestLinkAtOwnMount(t *testing.T) {
	needRoot(t)
	host := victim(t)
	for _, name := range []string{"proc", "sys", "dev"} {
		for _, target := range []string{host, strings.Repeat("../", 30) + host, "tmp", "/tmp"} {
			root := newRoot(t)
			link(t, target, root, name)
			_, err := tryBegin(t, newSpec(t, root, "pid"), options(t))
			if !errors.Is(err, errImageLink) {
				t.Errorf("/%s -> %s: Start = %v, want it refused", name, target, err)
			}
		}
	}
	t.Run("device below a link", func(t *testing.T) {
		root := newRoot(t)
		link(t, host, root, "out")
		s := newSpec(t, root, "stat", host+"/node")
		s.Linux.Devices = []specs.LinuxDevice{{Path: "/out/node", Type: "p"}}
		want(t, runSpec(t, s), host+"/node 10666")
	})
}

// TestMountThroughLink: a mount point or its parents are links that lead out
// (CVE-2021-30465, CVE-2024-45310, docker CVE-2019-14271's kind). They lead to
// the same path inside.
func TestMountThroughLink(t *testing.T) {
	needRoot(t)
	host := victim(t)
	root := newRoot(t)
	link(t, host, root, "abs")
	link(t, strings.Repeat("../", 30)+host[1:], root, "rel")
	link(t, "/abs/deeper", root, "twice")
	link(t, "loop2", root, "loop1")
	link(t, "loop1", root, "loop2")
	link(t, "/proc/1/root", root, "magic")
	src := t.TempDir()
	put(t, src, "file", "data\n", 0o644)
	for _, dest := range []string{"/abs/a", "/rel/b", "/twice/c", "/abs", "/rel/../../../../x"} {
		s := newSpec(t, root, "cat", dest+"/file", ";", "cat", dest+"2")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: src},
			specs.Mount{Destination: dest + "2", Type: "bind", Source: src + "/file"})
		want(t, runSpec(t, s), "data\ndata\n")
	}
	for _, dest := range []string{"/loop1/x", "/etc/passwd/x"} {
		s := newSpec(t, root, "pid")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: src})
		if _, err := tryBegin(t, s, options(t)); err == nil {
			t.Errorf("mount on %s worked", dest)
		}
	}
	s := newSpec(t, root, "ls", "/")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/magic" + host + "/d", Type: "bind", Source: src})
	if _, err := tryBegin(t, s, options(t)); err == nil {
		t.Error("a link into /proc was followed")
	}
}

// TestSwappedMountPoint: somebody swaps a directory of a shared volume for a
// link to the host while containers start (CVE-2021-30465).
func TestSwappedMountPoint(t *testing.T) {
	needRoot(t)
	host, vol, root, src := victim(t), t.TempDir(), newRoot(t), t.TempDir()
	put(t, src, "file", "data\n", 0o644)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		name := filepath.Join(vol, "d")
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.RemoveAll(name)
			_ = os.Symlink(host, name)
			_ = os.Remove(name)
			_ = os.Mkdir(name, 0o755)
		}
	})
	defer func() { close(stop); wg.Wait() }()
	for range 30 {
		s := newSpec(t, root, "cat", "/vol/d/m/file", ";", "cat", host+"/m/file")
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: vol},
			specs.Mount{Destination: "/vol/d/m", Type: "bind", Source: src})
		c, err := tryBegin(t, s, options(t))
		if err != nil {
			continue // the directory was just not there
		}
		c.end()
	}
}

// TestFakeNull: the image's /dev/null, or what becomes of it, is no way to make
// a masked file writable (CVE-2025-31133), as masks do not come from there.
func TestFakeNull(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	src := t.TempDir()
	link(t, "/proc/sys/kernel/core_pattern", src, "null")
	s := newSpec(t, root, "cat", "/proc/keys", ";", "grep", " /proc/keys ", "/proc/self/mountinfo")
	s.Mounts[1] = specs.Mount{Destination: "/dev", Type: "bind", Source: src}
	s.Mounts = append(s.Mounts[:2], s.Mounts[3]) // no devpts and so on in there
	want(t, runSpec(t, s), "/null /proc/keys ro,")
}

// TestFakeConsole: /dev/console of the image is a link (CVE-2025-52565).
func TestFakeConsole(t *testing.T) {
	needRoot(t)
	host := victim(t)
	root := newRoot(t)
	link(t, host+"/console", root, "dev/console")
	link(t, host+"/ptmx", root, "dev/ptmx")
	link(t, host+"/null", root, "dev/null")
	s := newSpec(t, root, "stat", "/dev/console", ";", "readlink", "/proc/self/fd/0")
	s.Process.Terminal = true
	c := begin(t, s, options(t))
	tty := c.Init().Console()
	defer tty.Close()
	if got := readTTY(t, lines(t, tty), "/dev/console"); !strings.HasPrefix(got, "/dev/console 2") || !strings.HasSuffix(got, "136:0") {
		t.Errorf("console is %q, want the terminal", got)
	}
	// Without a /dev of ours the image's nodes are looked at, not believed.
	s = newSpec(t, root, "pid")
	s.Mounts = append(s.Mounts[:1], s.Mounts[3])
	if _, err := tryBegin(t, s, options(t)); err == nil || !strings.Contains(err.Error(), "/dev/null") {
		t.Errorf("Start with a link for /dev/null = %v, want it refused", err)
	}
}

// TestMaskedPathIsLink: what is masked may be a link; what it points to is masked inside.
func TestMaskedPathIsLink(t *testing.T) {
	needRoot(t)
	host := t.TempDir()
	put(t, host, "secret", "host\n", 0o644)
	root := newRoot(t)
	link(t, host, root, "mask")
	if err := os.MkdirAll(root+host, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, root+host, "inner", "x", 0o644)
	s := newSpec(t, root, "ls", host)
	s.Linux.MaskedPaths = []string{"/mask", "/not/there", "/mask/../../../../../nothing"}
	s.Linux.ReadonlyPaths = []string{"/etc/../mask", "/not/there"}
	want(t, runSpec(t, s), "\n")
	if b, err := os.ReadFile(filepath.Join(host, "secret")); err != nil || string(b) != "host\n" {
		t.Errorf("on the host: %q, %v", b, err)
	}
}

// TestCwd: the working directory is made and entered inside (CVE-2024-21626,
// CVE-2026-55686).
func TestCwd(t *testing.T) {
	needRoot(t)
	host := victim(t)
	root := newRoot(t)
	link(t, host, root, "work")
	s := newSpec(t, root, "cwd", ";", "write", "made", "x")
	s.Process.Cwd = "/work/a/b"
	want(t, runSpec(t, s), host+"/a/b\n")
	for _, cwd := range []string{"/proc/self/fd/7", "/proc/self/fd/8", "/proc/self/cwd", "/proc/1/root", "/inside"} {
		s.Process.Cwd = cwd
		if _, err := tryBegin(t, s, options(t)); err == nil {
			t.Errorf("Start in %s worked", cwd)
		}
	}
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	for fd := range 30 {
		cwd := fmt.Sprintf("/proc/self/fd/%d", fd)
		if _, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside"}, Cwd: cwd}, Files{}); err == nil {
			t.Errorf("Exec in %s worked", cwd)
		}
	}
}

// TestNoDescriptors: the program gets 0, 1 and 2 and nothing else of ours,
// though files without close-on-exec are open here (CVE-2024-21626).
func TestNoDescriptors(t *testing.T) {
	needRoot(t)
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	root := newRoot(t)
	for _, init := range []bool{false, true} {
		o := options(t)
		o.Init = init
		c := begin(t, newSpec(t, root, "fds", ";", "ls", "/proc/1/fd", ";", "trap"), o)
		b := make([]byte, 4096)
		var out string
		for !strings.Contains(out, "ready") {
			n, err := c.stdout.Read(b)
			if err != nil {
				t.Fatal(err)
			}
			out += string(b[:n])
		}
		for f := range strings.FieldsSeq(out) {
			if n, target, ok := strings.Cut(f, "="); ok && n > "2" && !strings.Contains(target, "/cgroup/") {
				t.Errorf("init %v: descriptor %s is %s", init, n, target)
			}
		}
		execed, _ := execIn(t, c.Container, nil, "fds")
		for f := range strings.FieldsSeq(execed) {
			if n, target, ok := strings.Cut(f, "="); ok && n > "2" && !strings.Contains(target, "/cgroup/") {
				t.Errorf("exec: descriptor %s is %s", n, target)
			}
		}
	}
}

// TestProgramThroughDescriptor: what is open here until the program runs, directories
// of the host among it, does not lead an image to a program of the host: not as
// its own, nor as its interpreter or that of a script (CVE-2024-21626).
func TestProgramThroughDescriptor(t *testing.T) {
	needRoot(t)
	outside := t.TempDir()
	put(t, outside, "program", "#!/inside echo\n", 0o755) // it would run
	host, err := unix.Open(outside, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(host)
	high, err := dupHigh(host)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(high)
	root := newRoot(t)
	put(t, root, "works", "#!/inside echo\n", 0o755)
	if out := runSpec(t, withArgs(newSpec(t, root), "/works")); out == "" {
		t.Fatal("the program of the test says nothing")
	}
	refused := func(what string, err error) {
		t.Helper()
		if _, ok := errors.AsType[*ExecError](err); !ok {
			t.Errorf("%s: %v, want that it cannot be executed", what, err)
		}
	}
	running := begin(t, newSpec(t, root, "sleep"), options(t))
	for _, init := range []bool{false, true} {
		for _, fd := range []int{host, high} {
			name := fmt.Sprintf("/proc/self/fd/%d/program", fd)
			put(t, root, "script", "#!"+name+"\n", 0o755)
			os.Remove(filepath.Join(root, "link"))
			if err := os.Symlink(name, filepath.Join(root, "link")); err != nil {
				t.Fatal(err)
			}
			for _, program := range []string{name, "/script", "/link"} {
				o := options(t)
				o.Init = init
				_, err := tryBegin(t, withArgs(newSpec(t, root), program), o)
				refused(fmt.Sprintf("start of %s, init %v", program, init), err)
				if !init {
					_, err := running.Exec(t.Context(), &specs.Process{Args: []string{program}, Cwd: "/"}, Files{})
					refused("exec of "+program, err)
				}
			}
		}
	}
	for fd := range 40 { // whatever we have open, and did not think of
		for _, up := range []string{"", "/../../../../../../.."} {
			program := fmt.Sprintf("/proc/self/fd/%d%s%s/program", fd, up, outside)
			_, err := tryBegin(t, withArgs(newSpec(t, root), program), options(t))
			refused("start of "+program, err)
		}
	}
}

func withArgs(s *specs.Spec, args ...string) *specs.Spec {
	s.Process.Args = args
	return s
}

// TestOverProc: nothing is mounted over parts of /proc, where labels and
// sysctls are written (CVE-2019-16884, CVE-2025-52881).
func TestOverProc(t *testing.T) {
	for dest, ok := range map[string]bool{"/proc": false, "/proc/self": false, "/proc/sys/kernel": false, "/proc/../proc/self/attr": false, "/proc/uptime": true, "/proc/x": false} {
		s := &specs.Spec{Process: &specs.Process{Args: []string{"x"}}, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "mount"}}},
			Mounts: []specs.Mount{{Destination: dest, Type: "bind", Source: "/tmp"}}}
		if _, err := NewPlan(s, Options{ID: "x"}); (err == nil) != ok {
			t.Errorf("bind mount on %s: %v, want allowed %v", dest, err, ok)
		}
	}
	needRoot(t)
	src := t.TempDir()
	put(t, src, "uptime", "1.00 2.00\n", 0o644)
	s := newSpec(t, newRoot(t), "cat", "/proc/uptime")
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/uptime", Type: "bind", Source: src + "/uptime"})
	want(t, runSpec(t, s), "1.00 2.00\n")
}

// TestCoveredProc: sysctls and oom_score_adj are written through a procfs of
// our own even if the container's is covered by something else on /proc's parents.
func TestCoveredProc(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "hostname", ";", "ls", "/proc")
	s.Mounts = s.Mounts[1:2] // no /proc at all
	n := 100
	s.Process.OOMScoreAdj = &n
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	want(t, runSpec(t, s), "box")
}

// TestPasswd: hostile /etc/passwd and /etc/group (CVE-2026-47262, CVE-2024-40635, CVE-2026-46680).
func TestPasswd(t *testing.T) {
	needRoot(t)
	for name, spoil := range map[string]func(root string) error{
		"endless line": func(r string) error { return os.WriteFile(r+"/etc/passwd", []byte(strings.Repeat("a", 1<<20)), 0o644) },
		"huge": func(r string) error {
			return os.WriteFile(r+"/etc/passwd", []byte(strings.Repeat("x:x:1:1::/:\n", 1<<19)), 0o644)
		},
		"fifo":     func(r string) error { return unix.Mkfifo(r+"/etc/passwd", 0o644) },
		"device":   func(r string) error { return unix.Mknod(r+"/etc/passwd", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) },
		"link out": func(r string) error { return os.Symlink("../../../../../../../../etc/passwd", r+"/etc/passwd") },
	} {
		root := newRoot(t)
		if err := errors.Join(os.Remove(root+"/etc/passwd"), spoil(root)); err != nil {
			t.Fatal(err)
		}
		s := newSpec(t, root, "ids")
		s.Process.User.Username = "daemon" // the host has one
		if _, err := tryBegin(t, s, options(t)); err == nil {
			t.Errorf("%s: a user was found", name)
		}
	}
}

// TestBareEnv: a NAME without a value is not filled from this process (CVE-2026-57231).
func TestBareEnv(t *testing.T) {
	t.Setenv("SECRET", "of the host")
	needRoot(t)
	s := newSpec(t, newRoot(t), "env", "SECRET", "EMPTY")
	s.Process.Env = []string{"SECRET", "=x", "EMPTY="}
	want(t, runSpec(t, s), "SECRET  false\nEMPTY  true\n")
}

// TestHostIsGone: no way up from the root, and nothing of the host in the mount namespace.
func TestHostIsGone(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "ls", "/../../..", ";", "ls", "/proc/1/root/..", ";", "ls", "/proc/1/cwd")
	out := runSpec(t, s)
	if n := strings.Count(out, "bin dev etc home inside proc sys tmp"); n != 3 {
		t.Errorf("ways out show %q, want the root three times", out)
	}
}

// TestCgroupPath: a container's ID and cgroup stay below their parents.
func TestCgroupPath(t *testing.T) {
	spec := &specs.Spec{Process: &specs.Process{Args: []string{"x"}}, Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "mount"}}}}
	for _, id := range []string{"", "..", "a/b", "-x", ".x", "a\nb", "a b", strings.Repeat("a", 129)} {
		if _, err := NewPlan(spec, Options{ID: id}); err == nil {
			t.Errorf("ID %q was taken", id)
		}
	}
	for _, p := range []string{"/", "/..", "/a/../b", "../rel", "a/../../b", "/a/", "/a//b", "/a\n"} {
		spec.Linux.CgroupsPath = p
		if _, err := NewPlan(spec, Options{ID: "x"}); err == nil {
			t.Errorf("cgroup path %q was taken", p)
		}
	}
}

// TestKernelReach: by Docker's profile and capabilities, what the kernel has been broken by most cannot be
// reached: user namespaces and mounts (CVE-2022-0185, and CVE-2022-0492, whose release_agent is also
// below a read-only mount), AF_ALG (CVE-2026-31431), AF_VSOCK, BPF, keys, io_uring, userfaultfd.
func TestKernelReach(t *testing.T) {
	calls := map[string][]int{
		"unshare a user namespace": {unix.SYS_UNSHARE, unix.CLONE_NEWUSER}, "clone a user namespace": {unix.SYS_CLONE, unix.CLONE_NEWUSER | int(unix.SIGCHLD)},
		"unshare a cgroup namespace": {unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP}, "mount": {unix.SYS_MOUNT}, "umount": {unix.SYS_UMOUNT2},
		"fsopen": {unix.SYS_FSOPEN}, "open_tree": {unix.SYS_OPEN_TREE}, "move_mount": {unix.SYS_MOVE_MOUNT}, "mount_setattr": {unix.SYS_MOUNT_SETATTR},
		"setns": {unix.SYS_SETNS}, "pivot_root": {unix.SYS_PIVOT_ROOT}, "open_by_handle_at": {unix.SYS_OPEN_BY_HANDLE_AT},
		"AF_ALG": {unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET}, "AF_VSOCK": {unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM},
		"bpf": {unix.SYS_BPF}, "add_key": {unix.SYS_ADD_KEY}, "keyctl": {unix.SYS_KEYCTL}, "io_uring": {unix.SYS_IO_URING_SETUP, 1},
		"userfaultfd": {unix.SYS_USERFAULTFD}, "perf_event_open": {unix.SYS_PERF_EVENT_OPEN}, "init_module": {unix.SYS_INIT_MODULE}, "kexec_load": {unix.SYS_KEXEC_LOAD},
	}
	names := slices.Sorted(maps.Keys(calls))
	var args []string
	for _, name := range names {
		args = append(args, "syscall")
		for _, n := range calls[name] {
			args = append(args, fmt.Sprint(n))
		}
		args = append(args, ";")
	}
	got := strings.Split(strings.TrimSpace(run(t, args...)), "\n")
	if len(got) != len(names) {
		t.Fatalf("%d answers to %d calls: %q", len(got), len(names), got)
	}
	for i, name := range names {
		if got[i] != "syscall EPERM" && got[i] != "syscall ENOSYS" {
			t.Errorf("%s: %s, want EPERM or ENOSYS", name, got[i])
		}
	}
	for _, name := range []string{"/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/sys/kernel/uevent_helper"} {
		want(t, run(t, "write", name, "/evil"), "write EROFS\n")
	}
}

package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestStart(t *testing.T) {
	out := run(t, "pid", ";", "hostname", ";", "ids", ";", "cwd", ";", "ls", "/", ";", "ls", "/dev", ";", "grep", "Cap", "/proc/self/status",
		";", "grep", "Seccomp", "/proc/self/status", ";", "grep", "NoNewPrivs", "/proc/self/status", ";", "grep", "SigBlk", "/proc/self/status", ";", "umask", ";", "env", "HOME")
	want(t, out, "1 0\n", "box (none)", "0 0 [0]", "\n/\n", "bin dev etc home inside proc sys tmp",
		"fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero",
		"CapInh:\t0000000000000000", "CapPrm:\t00000000a80425fb", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "CapAmb:\t0000000000000000",
		"Seccomp:\t2", "Seccomp_filters:\t1", "NoNewPrivs:\t0", "SigBlk:\t0000000000000000", "022", "HOME /root true")
}

// TestMounts: the container sees its own mounts only, and the masked and
// read-only paths are that.
func TestMounts(t *testing.T) {
	out := run(t, "cat", "/proc/self/mountinfo")
	lines := map[string]string{}
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		lines[f[4]] = line
	}
	for at, parts := range map[string][]string{
		"/": {"rw,"}, "/proc": {"rw,nosuid,nodev,noexec", " - proc "}, "/dev": {"nosuid", "size=65536k,mode=755"}, "/dev/pts": {"ptmxmode=666", "gid=5"},
		"/dev/shm": {"nosuid,nodev,noexec"}, "/dev/mqueue": {" - mqueue "}, "/sys": {" ro,nosuid,nodev,noexec", " - sysfs "},
		"/sys/fs/cgroup": {" ro,"}, "/proc/sys": {" ro,"}, "/proc/bus": {" ro,"}, "/proc/irq": {" ro,"}, "/proc/keys": {"/null", " ro,"}, "/sys/firmware": {"/empty", " ro,"},
	} {
		for _, p := range parts {
			if !strings.Contains(lines[at], p) {
				t.Errorf("mount on %s is %q, want %q in it", at, lines[at], p)
			}
		}
	}
	for at, line := range lines {
		if !strings.HasPrefix(at, "/proc") && !strings.HasPrefix(at, "/sys") && !strings.HasPrefix(at, "/dev") && at != "/" {
			t.Errorf("unexpected mount: %s", line)
		}
		if strings.Contains(line, "shared:") || strings.Contains(line, "master:") {
			t.Errorf("mount is not private: %s", line)
		}
	}
}

func TestMasks(t *testing.T) {
	out := run(t, "cat", "/proc/keys", ";", "cat", "/proc/timer_list", ";", "ls", "/sys/firmware", ";", "write", "/proc/sys/kernel/domainname", "x",
		";", "write", "/sys/kernel/profiling", "1", ";", "mkdir", "/sys/fs/cgroup/x", ";", "mkdir", "/sys/fs/cgroup/memory/x", ";", "write", "/proc/keys", "")
	if got, want := out, "\nwrite EROFS\nwrite EROFS\nmkdir EROFS\nmkdir EROFS\n"; got != want {
		t.Errorf("masked and read-only paths gave %q, want %q", got, want)
	}
}

func TestReadonlyRoot(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "write", "/x", "y", ";", "mkdir", "/etc/d", ";", "write", "/dev/shm/x", "y", ";", "cat", "/dev/shm/x", ";", "cat", "/work/f")
	s.Root.Readonly = true
	s.Process.Cwd = "/work/new" // made before the root is read-only
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/work", Type: "tmpfs", Options: []string{"size=1m"}})
	if got, want := runSpec(t, s), "write EROFS\nmkdir EROFS\ny"; !strings.HasPrefix(got, want) {
		t.Errorf("output %q, want %q", got, want)
	}
}

func TestDevices(t *testing.T) {
	needRoot(t)
	mode := os.FileMode(0o640)
	id := uint32(7)
	root := newRoot(t)
	s := newSpec(t, root, "stat", "/dev/null", ";", "stat", "/dev/tty", ";", "stat", "/dev/snap/loop", ";", "stat", "/dev/pipe", ";", "stat", "/dev/ptmx", ";", "readlink", "/dev/ptmx",
		";", "open", "/dev/zero", ";", "open", "/dev/snap/loop", ";", "mknod", "/tmp/disk", "0060666", "7", "1", ";", "open", "/tmp/disk", ";", "mknod", "/tmp/mem", "0020666", "1", "1", ";", "open", "/tmp/mem")
	s.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/snap/loop", Type: "b", Major: 7, Minor: 0, FileMode: &mode, UID: &id, GID: &id}, {Path: "/dev/pipe", Type: "p"},
	}
	out := runSpec(t, s)
	want(t, out, "/dev/null 20666 0:0 1:3\n", "/dev/tty 20666 0:0 5:0\n", "/dev/snap/loop 60640 7:7 7:0\n", "/dev/pipe 10666 0:0 0:0\n", "pts/ptmx\n", "open ok\nopen EPERM\nopen EPERM\nopen EPERM\n")
	if names, _ := os.ReadDir(filepath.Join(root, "dev")); len(names) != 0 {
		t.Errorf("the root's own /dev has %v, want nothing", names)
	}
}

func TestAllowedDevice(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "mknod", "/tmp/loop", "0060666", "7", "0", ";", "open", "/tmp/loop", ";", "mknod", "/tmp/disk", "0060666", "7", "1", ";", "open", "/tmp/disk")
	major, minor := int64(7), int64(0)
	s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "b", Major: &major, Minor: &minor, Access: "rm"}}}
	s.Linux.Seccomp = nil
	want(t, runSpec(t, s), "open ok\nopen EPERM\n")
}

func TestUsers(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	for _, c := range []struct {
		user specs.User
		want []string
	}{
		{specs.User{Username: "ann"}, []string{"1000 1001 [29 44 1001]", "HOME /home/ann true"}},
		{specs.User{Username: "1000"}, []string{"1000 1001 [29 44 1001]", "HOME /home/ann true"}},
		{specs.User{Username: "ann:audio"}, []string{"1000 29 [29]"}},
		{specs.User{Username: "4711"}, []string{"4711 0 [0]", "HOME / true"}},
		{specs.User{Username: "4711:4712", AdditionalGids: []uint32{5}}, []string{"4711 4712 [5 4712]"}},
		{specs.User{UID: 9, GID: 8, AdditionalGids: []uint32{3}}, []string{"9 8 [3 8]"}}, // CVE-2023-25173
	} {
		s := newSpec(t, root, "ids", ";", "env", "HOME", ";", "grep", "Cap", "/proc/self/status", ";", "write", "/proc/self/fd/1", "to myself\n")
		s.Process.User = c.user
		out := runSpec(t, s)
		want(t, out, append(c.want, "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t00000000a80425fb", "to myself")...)
	}
	for _, u := range []string{"nobody-here", "ann:nothing", "4294967296", "2147483648", "-1", ":", "1:2:3"} {
		s := newSpec(t, root, "ids")
		s.Process.User.Username = u
		if _, err := tryBegin(t, s, options(t)); err == nil || !strings.Contains(err.Error(), "user") {
			t.Errorf("user %q: error %v, want one about the user", u, err)
		}
	}
}

func TestAmbient(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "grep", "Cap", "/proc/self/status")
	some := []string{"CAP_NET_RAW", "CAP_CHOWN"}
	s.Process.User.UID = 1000
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: some, Effective: some, Permitted: some, Inheritable: some, Ambient: some}
	for _, nnp := range []bool{false, true} {
		s.Process.NoNewPrivileges = nnp
		want(t, runSpec(t, s), "CapInh:\t0000000000002001", "CapPrm:\t0000000000002001", "CapEff:\t0000000000002001", "CapBnd:\t0000000000002001", "CapAmb:\t0000000000002001")
	}
}

func TestNoNewPrivileges(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "grep", "NoNewPrivs", "/proc/self/status", ";", "grep", "Seccomp:", "/proc/self/status", ";", "grep", "CapEff", "/proc/self/status")
	s.Process.NoNewPrivileges = true
	want(t, runSpec(t, s), "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t00000000a80425fb")
}

func TestSeccompBites(t *testing.T) {
	out := run(t, "syscall", fmt.Sprint(unix.SYS_UNSHARE), fmt.Sprint(unix.CLONE_NEWUSER), ";", "syscall", fmt.Sprint(unix.SYS_KEYCTL), ";", "syscall", "600",
		";", "syscall", fmt.Sprint(unix.SYS_SOCKET), "38", "5", ";", "mount", "/tmp", ";", "syscall", fmt.Sprint(unix.SYS_GETPPID))
	if want := "syscall EPERM\nsyscall EPERM\nsyscall ENOSYS\nsyscall E"; !strings.HasPrefix(out, want) || !strings.HasSuffix(out, "mount EPERM\nsyscall ok\n") {
		t.Errorf("output %q, want %q… and no mount", out, want)
	}
}

func TestRlimits(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "limit", fmt.Sprint(unix.RLIMIT_NOFILE), ";", "limit", fmt.Sprint(unix.RLIMIT_CORE))
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 20, Hard: 77}, {Type: "RLIMIT_CORE"}}
	want(t, runSpec(t, s), " 77\n0 0\n") // the soft one Go raises itself
	own, err := ownCaps()
	if err != nil {
		t.Fatal(err)
	}
	if own.permitted>>unix.CAP_SYS_RESOURCE&1 != 0 {
		t.Skip("needs to lack CAP_SYS_RESOURCE to see a limit refused")
	}
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 20, Hard: 1 << 20}}
	if _, err := tryBegin(t, s, options(t)); err == nil || !strings.Contains(err.Error(), "RLIMIT_NOFILE 1048576:1048576") || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
		t.Errorf("Start with a limit too high = %v, want it named", err)
	}
}

func TestSysctlAndOOM(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start", ";", "cat", "/proc/sys/kernel/shmmni", ";", "cat", "/proc/self/oom_score_adj", ";", "umask", ";", "hostname")
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.shmmni": "77"}
	n, mask := 321, uint32(0o27)
	s.Process.OOMScoreAdj, s.Process.User.Umask, s.Domainname = &n, &mask, "example.org"
	if got, want := runSpec(t, s), "80\n77\n321\n027\nbox example.org\n"; got != want {
		t.Errorf("output %q, want %q", got, want)
	}
	host, err := os.ReadFile("/proc/sys/kernel/shmmni")
	if err != nil || strings.TrimSpace(string(host)) == "77" {
		t.Errorf("the host's shmmni is %q, %v", host, err)
	}
}

func TestBinds(t *testing.T) {
	needRoot(t)
	root, src := newRoot(t), t.TempDir()
	put(t, src, "file", "from the host\n", 0o644)
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(src, "sub"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(filepath.Join(src, "sub"), unix.MNT_DETACH)
	s := newSpec(t, root, "cat", "/etc/hosts", ";", "write", "/rw/a", "x", ";", "write", "/ro/a", "x", ";", "write", "/rro/sub/a", "x", ";", "write", "/rw/sub/b", "x", ";", "ls", "/flat/sub",
		";", "cat", "/rw/nested/file", ";", "ls", "/rw/t", ";", "grep", " /rw/t ", "/proc/self/mountinfo")
	s.Mounts = append(s.Mounts,
		specs.Mount{Destination: "/etc/hosts", Type: "bind", Source: filepath.Join(src, "file"), Options: []string{"bind", "ro"}},
		specs.Mount{Destination: "/rw", Source: src, Options: []string{"rbind"}},
		specs.Mount{Destination: "/ro", Source: src, Options: []string{"rbind", "ro", "rprivate"}},
		specs.Mount{Destination: "/rro", Source: src, Options: []string{"rbind", "rro"}},
		specs.Mount{Destination: "/flat", Source: src, Options: []string{"bind"}},
		specs.Mount{Destination: "/rw/nested/file", Source: filepath.Join(src, "file"), Options: []string{"bind"}},
		specs.Mount{Destination: "/rw/t", Type: "tmpfs", Options: []string{"size=64k", "mode=700", "noexec"}},
	)
	if got, want := runSpec(t, s), "from the host\nwrite EROFS\nwrite EROFS\n\nfrom the host\n\n"; !strings.HasPrefix(got, want) || !strings.Contains(got, "size=64k,mode=700") || !strings.Contains(got, "noexec") {
		t.Errorf("output %q, want %q…", got, want)
	}
	for _, name := range []string{"a", "sub/b", "nested/file", "t"} {
		if _, err := os.Stat(filepath.Join(src, name)); err != nil {
			t.Errorf("on the host: %v", err)
		}
	}
}

func TestPropagation(t *testing.T) {
	needRoot(t)
	src := t.TempDir()
	if err := unix.Mount(src, src, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(src, unix.MNT_DETACH)
	if err := unix.Mount("", src, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	s := newSpec(t, newRoot(t), "grep", "/slave", "/proc/self/mountinfo", ";", "grep", "/private", "/proc/self/mountinfo", ";", "grep", "/shared", "/proc/self/mountinfo")
	for _, p := range []string{"slave", "private", "shared"} {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/" + p, Type: "bind", Source: src, Options: []string{"rbind", "r" + p}})
	}
	out := runSpec(t, s)
	for line := range strings.Lines(out) {
		want := map[string]string{"/slave": "master:", "/shared": "shared:", "/private": " - "}[strings.Fields(line)[4]]
		if want == "" || !strings.Contains(line, want) || want == " - " && strings.Contains(line, ":") && strings.Contains(line, "shared") {
			t.Errorf("mount %q, want %q", line, want)
		}
	}
}

func TestHostNetwork(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "readlink", "/proc/self/ns/net")
	s.Linux.Namespaces = without(s.Linux.Namespaces, specs.NetworkNamespace)
	host, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	want(t, runSpec(t, s), host)
}

func TestOwnNetwork(t *testing.T) {
	out := run(t, "ls", "/sys/class/net", ";", "cat", "/sys/class/net/lo/operstate", ";", "cat", "/proc/net/dev")
	want(t, out, "lo \nunknown\n") // an lo that is down says "down"
}

func TestJoinNamespaces(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	first := begin(t, newSpec(t, root, "sleep"), options(t))
	s := newSpec(t, root, "pid", ";", "readlink", "/proc/self/ns/net", ";", "hostname")
	for i, n := range s.Linux.Namespaces {
		if f := map[specs.LinuxNamespaceType]string{"network": "net", "pid": "pid", "uts": "uts", "ipc": "ipc"}[n.Type]; f != "" {
			s.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", first.Init().Pid(), f)
		}
	}
	s.Hostname = ""
	link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", first.Init().Pid()))
	if err != nil {
		t.Fatal(err)
	}
	want(t, runSpec(t, s), " 0\n", link, "box")
	s.Linux.Namespaces[1].Path = "/proc/self/ns/net" // not a pid namespace
	if _, err := tryBegin(t, s, options(t)); err == nil {
		t.Error("Start joined a namespace of another kind")
	}
}

func TestRootfsByDescriptor(t *testing.T) {
	needRoot(t)
	root, upper, work := newRoot(t), t.TempDir(), t.TempDir()
	fd, err := makeFS("overlay", []string{"lowerdir=" + root, "upperdir=" + upper, "workdir=" + work}, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "overlay")
	defer f.Close()
	s := newSpec(t, root, "write", "/made", "x", ";", "grep", " / / ", "/proc/self/mountinfo")
	s.Root = nil
	p, err := NewPlan(s, options(t))
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := Start(t.Context(), p, Files{Rootfs: f, Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out, _ := (&started{c, t, r}).end()
	want(t, out, " - overlay ")
	if _, err := os.Stat(filepath.Join(upper, "made")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(root, "made")); err == nil {
		t.Error("the lower directory was written")
	}
}

package oci

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hostIDs is where the tests' user namespaces begin.
const hostIDs = 300000

// userNS gives the bundle a user namespace of 65536 IDs, and its root file system to its root.
func (b *bench) userNS() {
	b.t.Helper()
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: hostIDs, Size: 65536}}
	b.spec.Linux.UIDMappings, b.spec.Linux.GIDMappings = m, m
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	for dir := b.bundle; dir != "/"; dir = filepath.Dir(dir) { // the container's root has to get there
		st, err := os.Stat(dir)
		must(b.t, err)
		if st.Mode()&0o001 == 0 {
			must(b.t, os.Chmod(dir, st.Mode()|0o011))
		}
	}
	must(b.t, filepath.WalkDir(filepath.Join(b.bundle, "rootfs"), func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(name, hostIDs, hostIDs)
	}))
}

// highLimit is a limit of locked memory above this process's, if it may have that, which takes CAP_SYS_RESOURCE.
func highLimit(t *testing.T) uint64 {
	t.Helper()
	var now unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now))
	if now.Max > 1<<43 {
		return 1 << 43
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: now.Cur, Max: now.Max + 4096}); err != nil {
		t.Logf("root of this machine may not raise limits (%v): the container's is lowered instead", err)
		return now.Max - 4096
	}
	must(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &now))
	return now.Max + 4096
}

func TestUserNamespace(t *testing.T) {
	b := newBench(t, "ids", ";", "cat", "/proc/self/uid_map", ";", "stat", "/dev", ";", "stat", "/dev/null", ";", "stat", "/dev/shm", ";", "stat", "/made",
		";", "write", "/tmp/x", "y", ";", "chown", "/tmp/x", "5", "6", ";", "stat", "/tmp/x", ";", "access", "/proc/sys/net/ipv4/ip_forward", ";", "open", "/dev/null",
		";", "cat", "/proc/self/limits", ";", "cat", "/proc/self/oom_score_adj", ";", "ls", "/proc/sys/net/ipv4/neigh", ";", "cat", "/proc/sys/net/ipv4/ip_forward", ";", "trap")
	b.userNS()
	b.spec.Process.Capabilities = nil
	b.spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN"}, Permitted: []string{"CAP_CHOWN"}, Effective: []string{"CAP_CHOWN"}}
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/made", Type: "tmpfs", Source: "tmpfs", Options: []string{"uid=3", "gid=4"}})
	b.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	locked := highLimit(t)
	b.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: locked, Hard: locked}}
	score := 500
	b.spec.Process.OOMScoreAdj = &score
	b.create()
	b.ok("start", b.id)
	out := b.ok("exec", b.id, "/inside", "ids", ";", "cat", "/proc/self/uid_map", ";", "stat", "/tmp", ";", "cat", "/proc/self/limits")
	wants(t, out, "0 0 [0]", "300000", "/tmp 40755 0:0", fmt.Sprint(locked))
	pid := b.state().Pid
	st, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	must(t, err)
	wants(t, string(st), "Uid:\t300000\t300000")
	wants(t, b.end(), "0 0 [0]", "300000      65536", "/dev 40755 0:0", "/dev/null 20666 0:0 1:3", "/dev/shm 41777 0:0", "/made 41777 3:4", "/tmp/x 100644 5:6",
		"access EACCES", "open ok", fmt.Sprint(locked), "\n500\n", "\n1\n")
	var x unix.Stat_t
	must(t, unix.Stat(filepath.Join(b.bundle, "rootfs/tmp/x"), &x))
	if x.Uid != hostIDs+5 || x.Gid != hostIDs+6 {
		t.Errorf("the file is %d:%d's on the host, want %d:%d's", x.Uid, x.Gid, hostIDs+5, hostIDs+6)
	}
	var made unix.Stat_t // a mount point made by us is the container's
	must(t, unix.Stat(filepath.Join(b.bundle, "rootfs/made"), &made))
	if made.Uid != hostIDs {
		t.Errorf("the mount point is %d's, want %d's", made.Uid, hostIDs)
	}
}

// TestUserTerminal: a terminal and an ordinary user in a user namespace.
func TestUserTerminal(t *testing.T) {
	b := newBench(t, "tty", ";", "ids", ";", "stat", "/dev/pts/0", ";", "access", "/dev/pts/0")
	b.userNS()
	b.spec.Process.Terminal, b.spec.Process.User = true, specs.User{UID: 1000, GID: 1000}
	b.write()
	out := b.runTTY("run", "--bundle", b.bundle, b.id)
	wants(t, out, "/dev/pts/0 ", "1000 1000 [1000]", "/dev/pts/0 20620 1000:", "access ok")
}

// runTTY runs a command line with pipes where a terminal would be.
func (b *bench) runTTY(args ...string) string {
	b.t.Helper()
	return strings.ReplaceAll(b.ok(args...), "\r\n", "\n")
}

// TestJoinNamespaces: a second container in the namespaces of a first one, as those of a pod, with and without a user namespace.
func TestJoinNamespaces(t *testing.T) {
	for _, user := range []bool{false, true} {
		first, second := newBench(t, "sleep"), newBench(t, "hostname", ";", "pid", ";", "readlink", "/proc/self/ns/net", ";", "readlink", "/proc/self/ns/ipc", ";", "ids",
			";", "cat", "/proc/self/uid_map", ";", "readlink", "/proc/self/ns/user", ";", "ls", "/sys/class/net", ";", "write", "/dev/shm/x", "y", ";", "trap")
		if user {
			first.userNS()
			second.userNS()
		}
		first.spec.Hostname, second.spec.Hostname = "pod", ""
		first.create()
		first.ok("start", first.id)
		pid := first.state().Pid
		for i := range second.spec.Linux.Namespaces {
			n := &second.spec.Linux.Namespaces[i]
			if name := map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts", specs.UserNamespace: "user"}[n.Type]; name != "" {
				n.Path = fmt.Sprintf("/proc/%d/ns/%s", pid, name)
			}
		}
		second.create()
		second.ok("start", second.id)
		wants(t, second.ok("exec", second.id, "/inside", "hostname"), "pod")
		out := second.end()
		var want []string
		for _, name := range []string{"net", "ipc", "user"} {
			s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
			must(t, err)
			want = append(want, s)
		}
		wants(t, out, append(want, "pod", "\n1 0\n", "\nlo \n")...)
		if user {
			wants(t, out, "300000")
		}
		first.ok("kill", first.id, "KILL")
		waitPid(t, pid)
	}
}

// TestJoinPID: a container in the pid namespace of another.
func TestJoinPID(t *testing.T) {
	for _, user := range []bool{false, true} {
		first, second := newBench(t, "sleep"), newBench(t, "ls", "/proc/1/task", ";", "readlink", "/proc/self/ns/pid")
		if user {
			first.userNS()
			second.userNS()
		}
		first.create()
		first.ok("start", first.id)
		pid := first.state().Pid
		for i := range second.spec.Linux.Namespaces {
			if n := &second.spec.Linux.Namespaces[i]; n.Type == specs.PIDNamespace || n.Type == specs.UserNamespace {
				n.Path = fmt.Sprintf("/proc/%d/ns/%s", pid, n.Type)
			}
		}
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		must(t, err)
		wants(t, second.runs(), "1 ", ns)
	}
}

// TestIDMappedMount: a directory of the host's root is the container's root's inside, and 1000 of the host somebody else.
func TestIDMappedMount(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "root"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(src, "user"), nil, 0o600))
	must(t, os.Chown(filepath.Join(src, "user"), 1000, 1000))
	for _, c := range []struct {
		name string
		set  func(*bench, *specs.Mount)
		want []string
	}{
		{"as the user namespace", func(b *bench, m *specs.Mount) { b.userNS(); m.Options = append(m.Options, "idmap") }, []string{"/vol/root 100600 0:0", "/vol/user 100600 1000:1000"}},
		{"mappings of its own", func(b *bench, m *specs.Mount) {
			m.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 5000, Size: 100}, {ContainerID: 1000, HostID: 7000, Size: 1}}
			m.GIDMappings = m.UIDMappings
		}, []string{"/vol/root 100600 5000:5000", "/vol/user 100600 7000:7000"}},
		{"recursive", func(b *bench, m *specs.Mount) { b.userNS(); m.Options = []string{"rbind", "ridmap"} }, []string{"/vol/root 100600 0:0"}},
		{"without", func(b *bench, m *specs.Mount) { b.userNS() }, []string{"/vol/root 100600 65534:65534"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t, "stat", "/vol/root", ";", "stat", "/vol/user")
			m := specs.Mount{Destination: "/vol", Type: "bind", Source: src, Options: []string{"bind"}}
			c.set(b, &m)
			b.spec.Mounts = append(b.spec.Mounts, m)
			wants(t, b.runs(), c.want...)
		})
	}
}

// TestRecursiveAttributes: rro and its kin reach what is mounted below a bind mount.
func TestRecursiveAttributes(t *testing.T) {
	src := t.TempDir()
	sub := filepath.Join(src, "sub")
	must(t, os.Mkdir(sub, 0o755))
	b := newBench(t, "write", "/vol/a", "x", ";", "write", "/vol/sub/b", "x", ";", "write", "/top/a", "x", ";", "write", "/top/sub/b", "x")
	must(t, unix.Mount("tmpfs", sub, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(sub, unix.MNT_DETACH)) }()
	b.spec.Mounts = append(b.spec.Mounts,
		specs.Mount{Destination: "/vol", Type: "bind", Source: src, Options: []string{"rbind", "rro"}},
		specs.Mount{Destination: "/top", Type: "bind", Source: src, Options: []string{"rbind", "ro"}})
	if out := b.runs(); out != "write EROFS\nwrite EROFS\nwrite EROFS\n" {
		t.Errorf("writes below /vol (rro) and /top (ro): %q, want three refused and the last allowed", out)
	}
}

func TestTimeNamespace(t *testing.T) {
	for _, user := range []bool{false, true} {
		b := newBench(t, "clock", ";", "trap")
		if user {
			b.userNS()
		}
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
		b.spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 86400 * 1000}, "monotonic": {Secs: 5, Nanosecs: 6}}
		var ts unix.Timespec
		must(t, unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts))
		b.create()
		b.ok("start", b.id)
		days := fmt.Sprintf("days %d\n", 1000+ts.Sec/86400)
		wants(t, b.ok("exec", b.id, "/inside", "clock"), days)
		wants(t, b.end(), days)
	}
}

func TestScheduling(t *testing.T) {
	b := newBench(t, "sched", ";", "trap")
	b.spec.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
	b.spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
	b.spec.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
	b.create()
	b.ok("start", b.id)
	p := *b.spec.Process
	p.Args = []string{"/inside", "affinity"}
	p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1", Final: "0"}
	wants(t, b.ok("exec", "--process", b.file(p), b.id), "cpus 1 true")
	wants(t, b.end(), "sched 3 5 ioprio 2 6 errno 0 personality 8 errno 0")
}

// file writes a value as JSON.
func (b *bench) file(v any) string {
	j, err := json.Marshal(v)
	must(b.t, err)
	name := filepath.Join(b.bundle, "process.json")
	must(b.t, os.WriteFile(name, j, 0o600))
	return name
}

// TestSeccompNotify: the listener gets the notifier and what the specification says with it, and answers.
func TestSeccompNotify(t *testing.T) {
	b := newBench(t, "mkdir", "/tmp/asked", ";", "trap")
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	must(t, err)
	defer l.Close()
	b.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: sock, ListenerMetadata: "meta",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdirat", "mkdir"}, Action: specs.ActNotify}}}
	got := make(chan specs.ContainerProcessState, 2)
	done := make(chan struct{})
	go func() { // ends with l
		defer close(done)
		var all sync.WaitGroup
		defer all.Wait()
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			all.Go(func() {
				st, fd, err := receive(c)
				if err != nil {
					t.Error(err)
					return
				}
				got <- st
				if err := answer(fd, unix.ENOMEDIUM); err != nil {
					t.Error(err)
				}
				unix.Close(fd)
			})
		}
	}()
	b.spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/inside", Args: []string{"inside", "mkdir", "/tmp/hooked"}}}}
	b.create()
	st := <-got
	pid := b.state().Pid
	if st.Metadata != "meta" || st.Pid != pid || len(st.Fds) != 1 || st.Fds[0] != specs.SeccompFdName || st.State.ID != b.id || st.State.Status != specs.StateCreating || st.Version != specs.Version {
		t.Errorf("the listener got %+v, want process %d of %s", st, pid, b.id)
	}
	b.ok("start", b.id)
	if st := <-got; st.State.Pid != pid || st.Pid == pid || st.State.Status != specs.StateCreated {
		t.Errorf("the listener got %+v for a hook", st)
	}
	if out, err := b.run("exec", b.id, "/inside", "mkdir", "/tmp/again"); err != nil || out != "mkdir ENOMEDIUM\n" {
		t.Errorf("exec: %q, %v", out, err)
	}
	if st := <-got; st.State.Pid != pid || st.Pid == pid || st.State.Status != specs.StateRunning {
		t.Errorf("the listener got %+v for an exec", st)
	}
	wants(t, b.end(), "mkdir ENOMEDIUM")
	l.Close()
	<-done
}

// receive reads one message with a descriptor.
func receive(c *net.UnixConn) (st specs.ContainerProcessState, fd int, err error) {
	defer c.Close()
	b, oob := make([]byte, 64<<10), make([]byte, 64)
	n, on, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return st, -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:on])
	if err != nil || len(msgs) != 1 {
		return st, -1, fmt.Errorf("%d messages, %w", len(msgs), err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil {
		return st, -1, err
	}
	return st, fds[0], json.Unmarshal(b[:n], &st)
}

// answer answers one question of a notifier with an errno.
func answer(fd int, errno unix.Errno) error {
	// struct seccomp_notif (80 bytes) and seccomp_notif_resp (24 bytes), include/uapi/linux/seccomp.h.
	var ask [10]uint64
	const recv, send = 0xc0502100, 0xc0182101
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), recv, uintptr(unsafe.Pointer(&ask))); e != 0 {
		return fmt.Errorf("SECCOMP_IOCTL_NOTIF_RECV: %w", e)
	}
	resp := struct {
		id    uint64
		val   int64
		errno int32
		flags uint32
	}{id: ask[0], errno: -int32(errno)}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), send, uintptr(unsafe.Pointer(&resp))); e != 0 {
		return fmt.Errorf("SECCOMP_IOCTL_NOTIF_SEND: %w", e)
	}
	return nil
}

// TestLabelsRefused: a label that the kernel would not enforce is an error.
func TestLabelsRefused(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("SELinux is enabled here")
	}
	for want, set := range map[string]func(*specs.Spec){
		"SELinux is not enabled": func(s *specs.Spec) { s.Process.SelinuxLabel = "system_u:system_r:container_t:s0" },
		"mountLabel":             func(s *specs.Spec) { s.Linux.MountLabel = "system_u:object_r:container_file_t:s0" },
		"has no AppArmor":        func(s *specs.Spec) { s.Process.ApparmorProfile = "docker-default" },
	} {
		if b, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.HasPrefix(string(b), "Y") && strings.Contains(want, "AppArmor") {
			continue
		}
		b := newBench(t, "exit", "0")
		set(b.spec)
		b.write()
		b.fails(1, want, "create", "--bundle", b.bundle, b.id)
	}
}

// TestPreservedDescriptors: --preserve-fds and LISTEN_FDS.
func TestPreservedDescriptors(t *testing.T) {
	b := newBench(t, "fds", ";", "env", "LISTEN_FDS", "LISTEN_PID", ";", "trap")
	b.write()
	f, err := os.Create(filepath.Join(b.bundle, "kept"))
	must(t, err)
	defer f.Close()
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	b.out = bufio.NewReader(r)
	var second strings.Builder
	for _, call := range [][]string{
		{"create", "--preserve-fds", "1", "--bundle", b.bundle, b.id}, {"start", b.id},
		{"exec", "--preserve-fds", "1", b.id, "/inside", "fds"},
	} {
		cmd := b.cmd(call...)
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = w, w, []*os.File{f, f, f}
		switch call[0] {
		case "create":
			cmd.Env = append(os.Environ(), "LISTEN_FDS=1")
		case "exec":
			cmd.Stdout = &second
		}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v", call, err)
		}
	}
	w.Close()
	first := b.end()
	wants(t, first, "LISTEN_FDS 1 true", "LISTEN_PID 1 true")
	kept := "=" + filepath.Join(b.bundle, "kept")
	for fd, want := range map[int][2]bool{3: {true, true}, 4: {true, false}, 5: {}} {
		for i, out := range []string{first, second.String()} {
			if got := strings.Contains(out, strconv.Itoa(fd)+kept); got != want[i] {
				t.Errorf("process %d has descriptor %d: %v, want %v: %s", i, fd, got, want[i], out)
			}
		}
	}
	b.fails(1, "--preserve-fds 99999", "create", "--preserve-fds", "99999", "--bundle", b.bundle, "x")
	b.fails(1, "descriptor 3", "create", "--preserve-fds", "1", "--bundle", b.bundle, "x")
}

// TestPidfdSocket: the socket gets a descriptor of the process.
func TestPidfdSocket(t *testing.T) {
	b := newBench(t, "sleep")
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	must(t, err)
	defer l.Close()
	must(t, l.SetDeadline(time.Now().Add(20*time.Second)))
	b.create("--pidfd-socket", sock)
	c, err := l.AcceptUnix()
	must(t, err)
	defer c.Close()
	oob := make([]byte, 64)
	_, n, _, _, err := c.ReadMsgUnix(make([]byte, 64), oob)
	must(t, err)
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	must(t, err)
	fds, err := unix.ParseUnixRights(&msgs[0])
	must(t, err)
	pid := b.state().Pid
	must(t, unix.PidfdSendSignal(fds[0], unix.SIGKILL, nil, 0))
	unix.Close(fds[0])
	waitPid(t, pid)
}

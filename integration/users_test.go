package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// pools are where the tests' containers have their users: two daemons must not give out the same.
var pools atomic.Uint32

// userMachine is a networkMachine with room for so many containers of 65536 users of their own.
func userMachine(t *testing.T, room uint32, config ...string) (m *machine, base uint32) {
	t.Helper()
	base = 0x60000000 + pools.Add(1)*0x100000
	table := fmt.Sprintf("[userns]\nbase = %d\nsize = %d", base, room*65536)
	return networkMachine(t, append([]string{table}, config...)...), base
}

// ids are the users that a container has to itself.
func (m *machine) ids(name string) (ids control.IDRange) {
	m.Helper()
	var c control.Container
	m.must(control.OpResolve, control.ContainerArgs{ID: name}, &c)
	if c.IDs == nil {
		m.Fatalf("%s has no users of its own", name)
	}
	return *c.IDs
}

// upper is a path in what a container has written.
func (m *machine) upper(name, path string) string {
	m.Helper()
	var c control.Container
	m.must(control.OpResolve, control.ContainerArgs{ID: name}, &c)
	return filepath.Join(m.root, "containers", c.ID, "upper", path)
}

// owned fails unless a file of the host has that owner.
func (m *machine) owned(path string, uid, gid uint32) {
	m.Helper()
	fi, err := os.Lstat(path)
	if err != nil {
		m.Error(err)
		return
	}
	if st := fi.Sys().(*syscall.Stat_t); st.Uid != uid || st.Gid != gid {
		m.Errorf("%s belongs to %d:%d on the host, want %d:%d", path, st.Uid, st.Gid, uid, gid)
	}
}

// usersImage is an image with files of several owners.
func usersImage(t *testing.T, hub *hub, name string) (*image, string) {
	t.Helper()
	capable := inside(t)
	capable.Name = "capable" // with CAP_SYS_CHROOT, by struct vfs_cap_data of linux/capability.h, version 2
	capable = capable.attribute("security.capability", "\x01\x00\x00\x02\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	im := newImage(t, eStargz, append(base(t), capable), append(someFiles(1910, "data", 30), reg("mine", noise(1911, 100)).owner(5, 6, 0o600)))
	return im, hub.put(t, name, im)
}

// TestUserNamespaces: a container with users of its own sees its image as it is, and
// writes to the host's disk as nobody whom the host has.
func TestUserNamespaces(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m, first := userMachine(t, 4)
	im, ref := usersImage(t, hub, "users")
	m.ok("run", "-d", "--name", "a", "--userns", "auto", "-p", "9310:80", "-u", "1000:1000", "--ready", "line=serving", ref, "/inside", "serve", "a", "tcp:80")
	m.ok("run", "-d", "--name", "b", "--userns", "auto", ref, "/inside", "wait")
	m.ok("run", "-d", "--name", "small", "--userns", "auto:size=1000", "--network", "none", ref, "/inside", "wait")
	a, b := m.ids("a"), m.ids("b")
	for i, want := range []struct {
		name string
		ids  control.IDRange
	}{{"a", control.IDRange{UID: first, GID: first, Size: 65536}}, {"b", control.IDRange{UID: first + 65536, GID: first + 65536, Size: 65536}},
		{"small", control.IDRange{UID: first + 2*65536, GID: first + 2*65536, Size: 1000}}} {
		if got := m.ids(want.name); got != want.ids {
			t.Errorf("container %d has the users %v, want %v", i, got, want.ids)
		}
	}
	for name, ids := range map[string]control.IDRange{"a": a, "b": b} {
		exec := func(args ...string) string {
			t.Helper()
			return strings.TrimSpace(m.ok(append([]string{"exec", "-u", "0", name, "/inside"}, args...)...))
		}
		im.checkSums(t, "data/", m.ok("exec", "-u", "0", name, "/inside", "sums", "/data"))
		for _, row := range []struct{ command, want string }{
			{"owner /mine", "5 6"},
			{"users", fmt.Sprintf("0 %d 65536", ids.UID)},
			{"id", "0 0 [0]"},
			{"cat /proc/sys/net/ipv4/ping_group_range", "0\t65535"},
			{"owner /etc/resolv.conf", "0 0"},
			{"owner /dev/shm", "0 0"},
			{"owner /", "0 0"},
		} {
			if got := exec(strings.Fields(row.command)...); got != row.want {
				t.Errorf("%s: %s: %q, want %q", name, row.command, got, row.want)
			}
		}
		exec("cat", "/etc/hosts", "/etc/hostname")
		if out := m.ok("exec", "-u", "1000", name, "/capable", "cat", "/proc/self/status"); !strings.Contains(out, "CapEff:\t0000000000040000\n") {
			t.Errorf("%s: a program's file capabilities have no effect:\n%s", name, out)
		}
		exec("make", "/new")
		exec("change-owner", "/mine")
		m.owned(m.upper(name, "new"), ids.UID, ids.GID)
		m.owned(m.upper(name, "mine"), ids.UID+5, ids.GID+6)
		m.owned(m.upper(name, ""), ids.UID, ids.GID)
	}
	// A third is in the namespaces of the second.
	shared := []string{"run", "--rm", "--userns", "container:b", "--network", "container:b", "--pid", "container:b", "--ipc", "container:b", ref, "/inside"}
	for _, args := range [][]string{{"link", "/proc/self/ns/user"}, {"link", "/proc/self/ns/net"}, {"link", "/proc/self/ns/pid"}, {"owner", "/mine"}, {"users"}, {"owner", "/sys/class/net"}} {
		want := m.ok(append([]string{"exec", "b", "/inside"}, args...)...)
		if got := m.ok(append(slices.Clone(shared), args...)...); got != want {
			t.Errorf("in the namespaces of b: %v: %q, want %q", args, got, want)
		}
	}
	// A user who is not root listens at a low port, and is reached from the host.
	if text := m.answers("tcp", "127.0.0.1:9310"); !strings.HasPrefix(text, "a ") {
		t.Errorf("port: %q", text)
	}
	if text, code := m.snapctl("exec", "b", "/inside", "ask", "tcp", "127.0.0.1:80"); code == 0 {
		t.Errorf("one container's loopback is another's: %q", text)
	}
}

// TestUserNamespaceOptions: the rest of what a container can be asked to be, with users of its own.
func TestUserNamespaceOptions(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m, first := userMachine(t, 1, "default = 'auto'") // each gets what the last one had
	_, ref := usersImage(t, hub, "options")
	volume := filepath.Join(m.dir, "volume")
	must(t, os.Mkdir(volume, 0o755))
	must(t, os.WriteFile(filepath.Join(volume, "root"), []byte("root's\n"), 0o600))
	for _, row := range []struct {
		options, command, want string
	}{
		{"--init --tmpfs /t", "owner /t", "0 0"},
		{"-t", "owner /dev/pts/0", "0 5"},
		{"-t -u 7:8", "id", "7 8 [8]"},
		{"--group-add 7", "id", "0 0 [0 7]"},
		{"--network host", "link /sys/class/net/lo", "../../devices/virtual/net/lo"},
		{"--network none", "link /sys/class/net/lo", "../../devices/virtual/net/lo"},
		{"--uts host --read-only", "users", fmt.Sprintf("0 %d 65536", first)},
		{"--sysctl net.ipv4.ip_forward=1", "cat /proc/sys/net/ipv4/ip_forward", "1"},
		{"--sysctl fs.mqueue.msg_max=9", "cat /proc/sys/fs/mqueue/msg_max", "9"},
		{"--oom-score-adj 500", "cat /proc/self/oom_score_adj", "500"},
		{"--device /dev/full:/dev/mine:r", "owner /dev/mine", "0 0"},
		{"-v " + volume + ":/v:ro", "owner /v/root", "65534 65534"},
		{"-v " + volume + ":/v:idmap", "owner /v/root", "0 0"},
		{"-v " + volume + ":/v:ridmap,ro", "cat /v/root", "root's"},
		{"--mount type=bind,source=" + volume + ",target=/v,idmap", "cat /v/root", "root's"},
		{"--userns host", "users", "0 0 4294967295"},
		{"--userns host --privileged", "owner /etc/hosts", "0 0"},
		{"--userns auto:size=10", "users", fmt.Sprintf("0 %d 10", first)},
		{"--userns auto:size=10,uidmapping=7:12345:1", "users", fmt.Sprintf("0 %d 7 7 12345 1 8 %d 2", first+10, first+18)},
	} {
		args := append([]string{"run", "--rm"}, strings.Fields(row.options)...)
		args = append(append(args, ref, "/inside"), strings.Fields(row.command)...)
		if got := strings.TrimSpace(m.ok(args...)); got != row.want {
			t.Errorf("%s: %s: %q, want %q", row.options, row.command, got, row.want)
		}
	}
	limit := highLimit(t)
	if out := m.ok("run", "--rm", "--ulimit", fmt.Sprintf("memlock=%d", limit), ref, "/inside", "cat", "/proc/self/limits"); !strings.Contains(out, fmt.Sprint(limit)) {
		t.Errorf("a limit that was raised: %s", out)
	}
	for want, options := range map[string]string{
		"userns.default = auto":          "--privileged",
		"--pid host":                     "--userns auto --pid host",
		"or --userns host":               "--ipc container:x",
		"unknown option":                 "--userns auto:colour=red",
		"add --userns auto":              "--userns host -v " + volume + ":/v:idmap",
		"other containers have":          fmt.Sprintf("--userns auto:uidmapping=5:%d:1", first+5),
		"user: ID 1000 is not mapped":    "--userns auto:size=10 -u 1000",
		"group: ID 100000 is not mapped": "--group-add 100000",
		"userns.size":                    "--userns auto:size=300000",
	} {
		if says := m.fails(append(append([]string{"run", "--rm"}, strings.Fields(options)...), ref, "/inside", "exit", "0")...); !strings.Contains(says, want) {
			t.Errorf("%s: %s", options, says)
		}
	}
}

// TestUserNamespaceCrash: ranges are neither lost nor given twice, whoever is killed, and an end of them is said.
func TestUserNamespaceCrash(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m, first := userMachine(t, 3)
	_, ref := usersImage(t, hub, "users-crash")
	run := func(name string) {
		t.Helper()
		m.ok("run", "-d", "--name", name, "--userns", "auto", ref, "/inside", "wait")
	}
	taken := map[uint32]string{}
	mine := func(name string, want uint32) {
		t.Helper()
		ids := m.ids(name)
		if other := taken[ids.UID]; other != "" && other != name {
			t.Errorf("%s has the users of %s", name, other)
		}
		if taken[ids.UID] = name; ids.UID != want {
			t.Errorf("%s has users from %d on, want %d", name, ids.UID, want)
		}
	}
	full := func(when string) {
		t.Helper()
		if says := m.fails("run", "--rm", "--userns", "auto", ref, "/inside", "exit", "0"); !strings.Contains(says, "userns.size") {
			t.Errorf("%s: %s", when, says)
		}
	}
	run("a")
	mine("a", first)
	m.ok("exec", "a", "/inside", "make", "/written")
	s, err := m.status()
	must(t, err)
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	run("b")
	mine("b", first+65536)
	m.kill()
	m.start()
	run("c")
	mine("c", first+2*65536)
	full("three containers")
	m.ok("stop", "-t", "0", "a")
	full("a stopped one is still one")
	m.ok("start", "a")
	mine("a", first)
	if got := strings.TrimSpace(m.ok("exec", "a", "/inside", "owner", "/written")); got != "0 0" {
		t.Errorf("after a restart, what it wrote belongs to %s", got)
	}
	for _, pid := range m.monitors("b") {
		kill9(t, pid)
	}
	full("its monitor was killed")
	m.ok("start", "b")
	mine("b", first+65536)
	m.stop() // containers go on
	m.start()
	full("another daemon")
	m.ok("rm", "-f", "b")
	delete(taken, first+65536)
	run("d")
	mine("d", first+65536)
	for range 5 { // each gives it back
		m.ok("rm", "-f", "d")
		m.ok("run", "--rm", "--userns", "auto", ref, "/inside", "exit", "0")
		run("d")
	}
	var inspected []struct{ IDs *control.IDRange }
	if err := json.Unmarshal([]byte(m.ok("inspect", "d")), &inspected); err != nil || inspected[0].IDs == nil || inspected[0].IDs.Size != 65536 {
		t.Errorf("inspect: %v, %v", inspected, err)
	}
	if out := m.ok("ps", "--json"); strings.Count(out, `"IDs":{"UID":`) != 3 {
		t.Errorf("ps: %s", out)
	}
	m.ok("rm", "-f", "a", "c", "d")
	m.ok("rmi", ref)
	m.nothingLeftSoon()
}

// TestUserNamespaceHostile: root inside is an ordinary user outside.
func TestUserNamespaceHostile(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m, first := userMachine(t, 2)
	_, ref := usersImage(t, hub, "hostile-users")
	// A directory that the container's root owns on the host, with a file of the host's root in it.
	volume := filepath.Join(m.dir, "volume")
	must(t, os.Mkdir(volume, 0o755))
	must(t, os.WriteFile(filepath.Join(volume, "secret"), []byte("x"), 0o600))
	must(t, os.WriteFile(filepath.Join(volume, "readable"), []byte("x"), 0o644))
	must(t, os.Mkdir(filepath.Join(volume, "of-root"), 0o755))
	must(t, os.Mkdir(filepath.Join(volume, "given"), 0o755))
	must(t, os.Chown(filepath.Join(volume, "given"), int(first), int(first)))
	m.ok("run", "-d", "--name", "evil", "--userns", "auto", "-v", volume+":/v", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined",
		"--device", "/dev/full:/dev/mine", ref, "/inside", "wait")
	evil := func(args ...string) error {
		t.Helper()
		if out, code := m.snapctl(append([]string{"exec", "evil", "/inside"}, args...)...); code != 0 {
			return fmt.Errorf("exit status %d: %s", code, out)
		}
		return nil
	}
	for _, args := range []string{
		"cat /v/secret", "make /v/of-root/x", "make /v/x", "chmod 4777 /v/readable", "change-owner /v/readable", "mknod /node", "mknod /v/given/node", "mknod /dev/node",
		"make /proc/sys/kernel/hostname-of-mine", "make /sys/x", "cat /proc/1/root/v/secret",
	} {
		if err := evil(strings.Fields(args)...); err == nil {
			t.Errorf("%s: it can", args)
		}
	}
	if err := evil("make", "/v/given/program"); err != nil {
		t.Error(err)
	}
	if err := evil("chmod", "4755", "/v/given/program"); err != nil {
		t.Error(err)
	}
	// Set-user-ID, it is a program of the range's, not of root's.
	m.owned(filepath.Join(volume, "given/program"), first, first)
	m.owned(filepath.Join(volume, "readable"), 0, 0)
	if fi, err := os.Stat(filepath.Join(volume, "readable")); err != nil || fi.Mode() != 0o644 {
		t.Errorf("readable: %v, %v", fi.Mode(), err)
	}
	// Another container's root is another user.
	m.ok("run", "-d", "--name", "other", "--userns", "auto", "-v", volume+":/v", ref, "/inside", "wait")
	if out, code := m.snapctl("exec", "other", "/inside", "make", "/v/given/x"); code == 0 {
		t.Errorf("another container writes where only one may: %s", out)
	}
	// The host sees their processes as the users of their ranges.
	for i, name := range []string{"evil", "other"} {
		var c control.Container
		m.must(control.OpResolve, control.ContainerArgs{ID: name}, &c)
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid))
		if want := fmt.Sprintf("Uid:\t%d\t", first+uint32(i)*65536); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: no %q, %v", name, want, err)
		}
	}
	m.ok("rm", "-f", "evil", "other")
	m.ok("rmi", ref)
	m.nothingLeftSoon()
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
		t.Logf("root of this machine may not raise limits (%v): containers' are lowered instead", err)
		return now.Max - 4096
	}
	must(t, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &now))
	return now.Max + 4096
}

package oci

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/runtime/systemd"
)

// TestManyDescriptors: more of them than a child has numbers for of its own.
func TestManyDescriptors(t *testing.T) {
	const n = 70
	b := newBench(t, "fds", ";", "trap")
	b.write()
	var files []*os.File
	for i := range n {
		f, err := os.Create(filepath.Join(b.bundle, fmt.Sprintf("kept%d", i)))
		must(t, err)
		defer f.Close()
		files = append(files, f)
	}
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	b.out = bufio.NewReader(r)
	call := func(args ...string) string {
		t.Helper()
		var out strings.Builder
		cmd := b.cmd(args...)
		cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = w, w, files
		if args[0] == "exec" || args[0] == "run" {
			cmd.Stdout, cmd.Stderr = &out, &out
		}
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out.String())
		}
		return out.String()
	}
	check := func(what, out string) {
		t.Helper()
		for i := range n {
			if want := fmt.Sprintf(" %d=%s/kept%d ", 3+i, b.bundle, i); !strings.Contains(out, want) {
				t.Errorf("%s: descriptor %d is not %q:\n%s", what, 3+i, want, out)
				return
			}
		}
		if got := strings.Count(out, "/kept"); got != n { // the program opens some of its own
			t.Errorf("%s: there are %d that were given, want %d:\n%s", what, got, n, out)
		}
	}
	call("create", "--preserve-fds", "70", "--bundle", b.bundle, b.id)
	call("start", b.id)
	check("exec", call("exec", "--preserve-fds", "70", b.id, "/inside", "fds"))
	w.Close()
	check("create", b.end())
	b.ok("delete", b.id)

	b.spec.Process.Args = []string{"/inside", "fds"}
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	b.spec.Process.OOMScoreAdj = to(500) // written after the descriptors are in their places
	b.write()
	check("run", call("run", "--preserve-fds", "70", "--bundle", b.bundle, b.id))
}

// TestTmpCopyUp: what an image has in a directory is in the tmpfs that covers it; the image keeps its own.
func TestTmpCopyUp(t *testing.T) {
	for _, user := range []bool{false, true} {
		b := newBench(t, "stat", "/d", ";", "cat", "/d/f", ";", "stat", "/d/f", ";", "stat", "/d/sub/deep", ";", "readlink", "/d/out", ";", "cat", "/d/link", ";", "ls", "/d",
			";", "write", "/d/new", "x", ";", "write", "/d/f", "changed", ";", "ls", "/ro", ";", "write", "/ro/x", "y", ";", "grep", " /d ", "/proc/mounts", ";", "stat", "/given", ";", "ls", "/made")
		root := filepath.Join(b.bundle, "rootfs")
		for _, d := range []string{"d/sub", "ro", "given"} {
			must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
		}
		var modes []func()
		for name, mode := range map[string]os.FileMode{"d/f": 0o604, "d/sub/deep": 0o4755, "ro/kept": 0o644} {
			must(t, os.WriteFile(filepath.Join(root, name), []byte("data "+name+"\n"), 0o644))
			modes = append(modes, func() { must(t, unix.Chmod(filepath.Join(root, name), uint32(mode))) })
		}
		// Links stay links: nothing of the host's is read.
		must(t, os.Symlink("/etc/passwd", filepath.Join(root, "d/out")))
		must(t, os.Symlink("f", filepath.Join(root, "d/link")))
		must(t, unix.Mkfifo(filepath.Join(root, "d/pipe"), 0o600))
		must(t, unix.Mknod(filepath.Join(root, "d/device"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 8))))
		if user {
			b.userNS()
		}
		off := 0
		if user {
			off = hostIDs
		}
		must(t, os.Chown(filepath.Join(root, "d/f"), off+7, off+8))
		for _, set := range modes { // after the owners, whose change takes away setuid
			set()
		}
		must(t, os.Chmod(filepath.Join(root, "d"), 0o751))
		tmp := func(dest string, o ...string) specs.Mount {
			return specs.Mount{Destination: dest, Type: "tmpfs", Source: "tmpfs", Options: append([]string{"nosuid", "tmpcopyup"}, o...)}
		}
		b.spec.Mounts = append(b.spec.Mounts, tmp("/d", "size=1m"), tmp("/ro", "ro"), tmp("/given", "mode=0700", "uid=3", "gid=4"), tmp("/made"))
		out := b.runs()
		wants(t, out, "/d 40751 0:0", "data d/f\n", "/d/f 100604 7:8", "/d/sub/deep 104755 0:0", "/etc/passwd\n", "f link out pipe sub \n", "write EROFS", "kept", "size=1024k", "/given 40700 3:4")
		if got, err := os.ReadFile(filepath.Join(root, "d/f")); err != nil || string(got) != "data d/f\n" {
			t.Errorf("the image's file is %q, %v", got, err)
		}
		if _, err := os.Lstat(filepath.Join(root, "d/new")); err == nil {
			t.Error("what was written is in the image")
		}
	}
}

// TestTmpCopyUpTooMuch: what does not fit is an error that names the mount, and nothing is left.
func TestTmpCopyUpTooMuch(t *testing.T) {
	b := newBench(t, "exit", "0")
	root := filepath.Join(b.bundle, "rootfs/d")
	must(t, os.Mkdir(root, 0o755))
	must(t, os.WriteFile(filepath.Join(root, "large"), make([]byte, 1<<20), 0o644))
	m := specs.Mount{Destination: "/d", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "size=64k"}}
	b.spec.Mounts = append(b.spec.Mounts, m)
	b.write()
	b.fails(1, "no space left on device", "run", "--bundle", b.bundle, b.id)
	b.fails(1, "mount tmpfs on /d", "run", "--bundle", b.bundle, b.id)
	// The bytes are not charged to the container, but its limit holds.
	b.spec.Mounts[len(b.spec.Mounts)-1].Options = []string{"tmpcopyup"}
	limits, most := b.spec.Linux.Resources, int64(512<<10)
	b.spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &most}}
	b.write()
	b.fails(1, "more than the container's limit of memory, 524288 bytes", "run", "--bundle", b.bundle, b.id)
	b.spec.Linux.Resources = limits
	b.write()
	must(t, os.Remove(filepath.Join(root, "large")))
	for deep := root; len(deep) < len(root)+2*300; deep += "/x" {
		must(t, os.MkdirAll(deep, 0o755))
	}
	b.fails(1, "200 directories deep", "run", "--bundle", b.bundle, b.id)
	b.gone()
}

// TestMemoryPolicy: a policy is the process's, and that of those it starts.
func TestMemoryPolicy(t *testing.T) {
	b := newBench(t, "grep", "inside", "/proc/self/numa_maps", ";", "trap")
	b.spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	if _, err := os.Stat("/proc/self/numa_maps"); err != nil {
		b.write()
		b.fails(1, "memoryPolicy: function not implemented", "run", "--bundle", b.bundle, b.id)
		t.Skip("needs a kernel with CONFIG_NUMA to look at what it does")
	}
	b.create()
	b.ok("start", b.id)
	wants(t, b.ok("exec", b.id, "/inside", "grep", "inside", "/proc/self/numa_maps"), " interleave=static:0 ")
	wants(t, b.end(), " interleave=static:0 ")
	b.ok("delete", b.id)
	b.spec.Linux.MemoryPolicy.Nodes = "1023"
	b.write()
	b.fails(1, "memoryPolicy: invalid argument", "run", "--bundle", b.bundle, b.id)
}

// TestUpdateDevices: devices of a running container are those of the update, and the default ones.
func TestUpdateDevices(t *testing.T) {
	b := newBench(t, "trap")
	b.spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/test", Type: "c", Major: 10, Minor: 229}} // fuse
	b.create()
	b.ok("start", b.id)
	try := func() string {
		t.Helper()
		return b.ok("exec", b.id, "/inside", "open", "/dev/test", ";", "open", "/dev/null")
	}
	for i, c := range []struct{ devices, want string }{
		{"", "open EPERM\nopen ok\n"},
		{`{"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"}`, "open ok\nopen ok\n"},
		{`{"allow": false}`, "open EPERM\nopen ok\n"},
		{`{"allow": true}`, "open ok\nopen ok\n"},
		{`{"allow": false}`, "open EPERM\nopen ok\n"},
	} {
		if c.devices != "" {
			file := filepath.Join(b.bundle, "resources")
			must(t, os.WriteFile(file, []byte(`{"devices": [`+c.devices+`]}`), 0o600))
			b.ok("update", "--resources", file, b.id)
		}
		if got := try(); got != c.want {
			t.Errorf("%d: after %s: %q, want %q", i, c.devices, got, c.want)
		}
	}
	file := filepath.Join(b.bundle, "resources")
	must(t, os.WriteFile(file, []byte(`{"devices": [{"type": "x"}]}`), 0o600))
	b.fails(1, `type "x"`, "update", "--resources", file, b.id)
	b.end()
}

// TestNoSystemd: what says that systemd is to make the cgroup, where there is none.
func TestNoSystemd(t *testing.T) {
	b := newBench(t, "exit", "0")
	b.write()
	b.fails(1, "want SLICE:PREFIX:NAME", "--systemd-cgroup", "run", "--bundle", b.bundle, b.id)
	b.spec.Linux.CgroupsPath = "snapfs.slice:test:" + b.id
	b.write()
	b.prefix = []string{"unshare", "--mount", "--propagation", "private", "sh", "-ec", `mount -t tmpfs none /run; exec "$@"`, "sh", b.bin}
	b.fails(1, "no systemd answers: dial unix "+systemd.Socket, "--systemd-cgroup", "run", "--bundle", b.bundle, b.id)
	b.fails(1, "SystemdCgroup = false", "--systemd-cgroup", "create", "--bundle", b.bundle, b.id)
	b.gone()
}

// TestNetDevices: a link of the host's is the container's, with its addresses, and up.
func TestNetDevices(t *testing.T) {
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs ip")
	}
	b := newBench(t, "ls", "/sys/class/net", ";", "cat", "/sys/class/net/inner/flags", ";", "cat", "/proc/net/fib_trie", ";", "cat", "/proc/net/if_inet6", ";", "trap")
	// The host's network is one of the test's own.
	ns := exec.Command("unshare", "--net", "sleep", "1000")
	must(t, ns.Start())
	t.Cleanup(func() { _ = ns.Process.Kill(); _ = ns.Wait() })
	own := mustLink(b, "/proc/self/ns/net")
	for end := time.Now().Add(20 * time.Second); mustLink(b, fmt.Sprintf("/proc/%d/ns/net", ns.Process.Pid)) == own; {
		if time.Now().After(end) {
			t.Fatal("unshare does not get there")
		}
	}
	in := []string{"nsenter", "--net", "--target", strconv.Itoa(ns.Process.Pid)}
	host := func(script string) string {
		t.Helper()
		out, err := exec.Command(in[0], append(in[1:], "sh", "-ec", script)...).CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
		return string(out)
	}
	if out, err := exec.Command(in[0], append(in[1:], "ip", "link", "add", "outer", "type", "veth", "peer", "name", "other")...).CombinedOutput(); err != nil {
		t.Skipf("needs veth: %s", out)
	}
	host("ip addr add 192.0.2.7/24 dev outer; ip addr add 2001:db8::7/64 dev outer nodad; ip link set outer up; ip link set other up")
	b.prefix = append(in, b.bin)
	b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"outer": {Name: "inner"}}
	b.create()
	if out := host("ip -o link"); strings.Contains(out, "outer") {
		t.Errorf("the host still has it: %s", out)
	}
	b.ok("start", b.id)
	wants(t, b.end(), "inner lo \n", "0x1003\n", "192.0.2.7", "20010db8000000000000000000000007")
	b.ok("delete", b.id)

	for name, want := range map[string]string{"outer": "netDevices: outer: ", "lo": "it is the loopback device"} {
		b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{name: {}}
		b.write()
		b.fails(1, want, "create", "--bundle", b.bundle, b.id)
		b.fails(1, want, "run", "--bundle", b.bundle, b.id)
	}
	host("ip link add stays type veth peer name beside; ip link set stays up")
	b.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"stays": {Name: "lo"}} // which there is
	b.write()
	b.fails(1, "the container has a device lo: file exists", "create", "--bundle", b.bundle, b.id)
	if out := host("ip -o link show dev stays"); !strings.Contains(out, ",UP") {
		t.Errorf("what could not be moved is not up: %s", out)
	}
	b.gone()
	b.prefix = nil
}

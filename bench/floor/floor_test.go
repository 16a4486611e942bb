package floor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const parent = "/snapfs-floor-test"

func TestMain(m *testing.M) {
	code := m.Run()
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		dirs, _ := filepath.Glob(pattern + parent)
		for _, d := range dirs {
			_ = os.Remove(d)
		}
	}
	os.Exit(code)
}

// script is run by busybox's shell in a root file system that has nothing else.
func script(t *testing.T, text string) (root string, spec *specs.Spec) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	if !Supported {
		t.Skip("there is no floor for this architecture")
	}
	b, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skipf("needs busybox, static: %v", err)
	}
	root = filepath.Join(t.TempDir(), "root")
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755)); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "hostname")
	if err := os.WriteFile(name, []byte("box\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	std := []string{"nosuid", "noexec", "nodev"}
	caps := []string{"CAP_CHOWN", "CAP_KILL"}
	spec = &specs.Spec{
		Root:     &specs.Root{Path: root},
		Hostname: "box",
		Process: &specs.Process{
			Args: []string{"busybox", "sh", "-c", text}, Cwd: "/", Env: []string{"PATH=/sbin:/bin", "X=y"},
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 99}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: std},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, std...)},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, std...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"ro"}, std...)},
			{Destination: "/etc/hostname", Type: "bind", Source: name, Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces:    []specs.LinuxNamespace{{Type: "mount"}, {Type: "pid"}, {Type: "uts"}, {Type: "ipc"}, {Type: "network"}, {Type: "cgroup"}},
			MaskedPaths:   []string{"/proc/meminfo", "/proc/scsi", "/sys/firmware", "/proc/there-is-none"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
	p, err := profile.GetDefaultProfile(spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Linux.Seccomp = p
	return root, spec
}

// run writes the program and runs it.
func run(t *testing.T, root string, spec *specs.Spec) (stdout string, err error) {
	t.Helper()
	cgroup := parent + "/floor-" + strconv.Itoa(os.Getpid())
	f, err := Write(filepath.Join(t.TempDir(), "floor"), spec, root, cgroup)
	if err != nil {
		return "", err
	}
	var out, complaint bytes.Buffer
	cmd := exec.Command(f.Name)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err = cmd.Run()
	if e := f.Explain(complaint.Bytes()); e != nil {
		return out.String(), e
	}
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		if dirs, _ := filepath.Glob(pattern + cgroup); len(dirs) > 0 {
			t.Errorf("the program left %v", dirs)
		}
	}
	return out.String(), err
}

// TestFloor: what is started is what a runtime would have started, or the floor would be none.
func TestFloor(t *testing.T) {
	root, spec := script(t, `b=/bin/busybox
echo pid $$
echo host $($b hostname)
$b grep -E '^(Seccomp|CapEff|CapBnd|NoNewPrivs):' /proc/self/status
echo meminfo $($b wc -c </proc/meminfo)
echo firmware $($b ls /sys/firmware)
(echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo sys read-only
echo files $(ulimit -n)
echo root $($b ls /)
echo dev $($b ls /dev)
echo cgroup $($b grep -c ':/$' /proc/self/cgroup) of $($b wc -l </proc/self/cgroup)
echo lo $($b cat /sys/class/net/lo/flags)
echo name $($b wc -l </etc/hostname)
(echo x >/etc/hostname) 2>/dev/null || echo name read-only
`)
	out, err := run(t, root, spec)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		"pid 1\n", "host box\n", "CapEff:\t0000000000000021\n", "CapBnd:\t0000000000000021\n", "NoNewPrivs:\t0\n", "Seccomp:\t2\n",
		"meminfo 0\n", "firmware\n", "sys read-only\n", "files 77\n", "root bin dev etc proc sys\n",
		"dev fd full null ptmx pts random shm stderr stdin stdout tty urandom zero\n", "lo 0x9\n", "name read-only\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the container does not say %q:\n%s", want, out)
		}
	}
}

// TestFailure: a program that fails says where.
func TestFailure(t *testing.T) {
	root, spec := script(t, "exit 3")
	if _, err := run(t, root, spec); err == nil || !strings.Contains(err.Error(), "status 0x300") {
		t.Errorf("a container that ends with 3 gave %v", err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/etc/x", Type: "bind", Source: "/there/is/none"})
	if _, err := run(t, root, spec); !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), "mount /there/is/none on etc/x") {
		t.Errorf("a mount of nothing gave %v", err)
	}
}

func TestRefused(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){
		"program":   func(s *specs.Spec) { s.Process.Args = []string{"nothing"} },
		"namespace": func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/1/ns/mnt" },
		"user": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		},
		"terminal": func(s *specs.Spec) { s.Process.Terminal = true },
		"limit":    func(s *specs.Spec) { s.Process.Rlimits[0].Type = "RLIMIT_NONE" },
		"ambient":  func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_KILL"} },
	} {
		t.Run(name, func(t *testing.T) {
			root, spec := script(t, "")
			change(spec)
			if _, err := run(t, root, spec); err == nil {
				t.Error("there is a floor")
			}
		})
	}
}

func TestExplain(t *testing.T) {
	f := &Floor{names: []string{"one", "two"}}
	two := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, 1), ^uint64(0))
	if err := f.Explain(two); !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "two") {
		t.Errorf("Explain = %v, want step two and EPERM", err)
	}
	if err := f.Explain(nil); err != nil {
		t.Errorf("Explain(nil) = %v", err)
	}
	if err := f.Explain([]byte("oops!")); err == nil {
		t.Error("Explain takes anything for nothing")
	}
}

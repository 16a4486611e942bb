package runtime

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	profile "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// inside is the path of the program of testdata/inside, built once. A machine
// without Go has it (integration/kernel_test.go).
var inside = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("SNAPFS_TEST_PROGRAMS"); dir != "" {
		return filepath.Join(dir, "inside"), nil
	}
	dir, err := os.MkdirTemp("", "snapfs-runtime-test-")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "inside")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/inside")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if out, err := inside(); err == nil && os.Getenv("SNAPFS_TEST_PROGRAMS") == "" {
		os.RemoveAll(filepath.Dir(out))
	}
	for _, at := range []string{"/sys/fs/cgroup/*/snapfs-test", "/sys/fs/cgroup/snapfs-test"} {
		list, _ := filepath.Glob(at)
		for _, dir := range list {
			_ = os.Remove(dir) // a parallel run of other tests may still use it
		}
	}
	os.Exit(code)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
}

// newRoot makes a root file system with little more than the program in it.
func newRoot(t testing.TB) string {
	t.Helper()
	prog, err := inside()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "rootfs")
	for _, d := range []string{"etc", "bin", "tmp", "home"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(prog, filepath.Join(root, "inside")); err != nil {
		b, rerr := os.ReadFile(prog)
		if rerr != nil {
			t.Fatal(rerr)
		}
		put(t, root, "inside", string(b), 0o755)
	}
	put(t, root, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\nann:x:1000:1001:Ann:/home/ann:/bin/sh\n", 0o644)
	put(t, root, "etc/group", "root:x:0:\nann:x:1001:\naudio:x:29:ann\nvideo:x:44:bob,ann\n", 0o644)
	return root
}

func put(t testing.TB, root, name, data string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(root, name), []byte(data), mode); err != nil {
		t.Fatal(err)
	}
}

// dockerCaps are Docker's default capabilities.
var dockerCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// newSpec is a spec as Docker's, for a root file system and arguments to the program inside.
func newSpec(t testing.TB, root string, args ...string) *specs.Spec {
	t.Helper()
	std := []string{"nosuid", "noexec", "nodev"}
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{
			Args: append([]string{"/inside"}, args...), Cwd: "/", Env: []string{"PATH=/bin:/"},
			Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps},
		},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: std},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: append([]string{"ro"}, std...)},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: append([]string{"ro"}, std...)},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: std},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append([]string{"mode=1777", "size=65536k"}, std...)},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: "mount"}, {Type: "pid"}, {Type: "uts"}, {Type: "ipc"}, {Type: "network"}, {Type: "cgroup"}},
			MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	p, err := profile.GetDefaultProfile(s)
	if err != nil {
		t.Fatal(err)
	}
	s.Linux.Seccomp = p
	return s
}

// options names the container after the test and the time.
func options(t testing.TB) Options {
	return Options{ID: fmt.Sprintf("test-%d-%d", os.Getpid(), time.Now().UnixNano()), CgroupParent: "/snapfs-test"}
}

// started is a container and what it writes.
type started struct {
	*Container
	t      testing.TB
	stdout *os.File
}

// begin starts a container whose output goes to a pipe.
func begin(t testing.TB, s *specs.Spec, o Options) *started {
	t.Helper()
	needRoot(t)
	c, err := tryBegin(t, s, o)
	if err != nil {
		t.Fatalf("Start: %v", err)
	}
	return c
}

func tryBegin(t testing.TB, s *specs.Spec, o Options) (*started, error) {
	t.Helper()
	p, err := NewPlan(s, o)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f := Files{Stdout: w, Stderr: w}
	if s.Process.Terminal {
		f = Files{}
	}
	c, err := startAnyhow(t, p, o, f)
	if err != nil {
		r.Close()
		return nil, err
	}
	t.Cleanup(func() {
		r.Close()
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return &started{c, t, r}, nil
}

// end waits for the container and returns what it wrote and how it ended.
func (s *started) end() (string, Status) {
	s.t.Helper()
	out, err := io.ReadAll(s.stdout)
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	st, err := s.Init().Wait(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(out), st
}

// run starts a container of the usual kind and returns what it wrote.
func run(t testing.TB, args ...string) string {
	t.Helper()
	needRoot(t)
	return runSpec(t, newSpec(t, newRoot(t), args...))
}

func runSpec(t testing.TB, s *specs.Spec) string {
	t.Helper()
	out, st := begin(t, s, options(t)).end()
	if st.ExitCode() != 0 {
		t.Fatalf("status %v, want exit code 0; output %s", st, out)
	}
	return out
}

// want checks that the output has all of some strings.
func want(t testing.TB, out string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Errorf("output lacks %q:\n%s", p, out)
		}
	}
}

// execIn runs a process in a container and returns what it wrote.
func execIn(t testing.TB, c *Container, change func(*specs.Process), args ...string) (string, Status) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc := &specs.Process{Args: append([]string{"/inside"}, args...), Cwd: "/",
		Capabilities: &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps}}
	if change != nil {
		change(proc)
	}
	p, err := c.Exec(t.Context(), proc, Files{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		t.Fatal(err)
	}
	st, err := p.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), st
}

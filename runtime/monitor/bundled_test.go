package monitor

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/cgroups"
)

// inside is the path of the program of testdata/inside, built once.
var inside = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "snapfs-monitor-test-")
	if err != nil {
		return "", err
	}
	insideDir = dir
	out := filepath.Join(dir, "inside")
	cmd := exec.Command("go", "build", "-o", out, "./testdata/inside")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		return out, fmt.Errorf("%w: %s", err, b)
	}
	return out, nil
})

// insideDir is where inside was built, if it was.
var insideDir string

func TestMain(m *testing.M) {
	// Under nohup SIGHUP is ignored, and so it would be by the fake containers.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	code := m.Run()
	if insideDir != "" {
		os.RemoveAll(insideDir)
	}
	os.Exit(code)
}

// realConfig makes the configuration of a container that package runtime runs, on an
// overlay of two directories.
func realConfig(t *testing.T, h *Config, args ...string) {
	t.Helper()
	program, err := inside()
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{}
	for _, name := range []string{"lower", "upper", "work"} {
		dirs[name] = filepath.Join(t.TempDir(), name)
		if name != "lower" {
			dirs[name] = filepath.Join(filepath.Dir(dirs["lower"]), name) // upper and work share a file system
		}
		if err := os.MkdirAll(dirs[name], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"proc", "dev", "etc"} {
		if err := os.Mkdir(filepath.Join(dirs["lower"], d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dirs["lower"], "inside"), b, 0o755); err != nil {
		t.Fatal(err)
	}
	h.ID = fmt.Sprintf("monitor-test-%d", os.Getpid())
	h.Rootfs = control.Rootfs{Lower: []string{dirs["lower"]}, Upper: dirs["upper"], Work: dirs["work"]}
	h.CgroupParent = "/snapfs-monitor-test"
	h.Spec = &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: append([]string{"/inside"}, args...), Cwd: "/", Env: []string{"PATH=/"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}}},
	}
}

// holdReal is hold for package runtime. What it does not need is root's to give.
func holdReal(t *testing.T, change func(*Config), args ...string) *held {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	t.Cleanup(func() {
		for _, at := range []string{"/sys/fs/cgroup/*/snapfs-monitor-test", "/sys/fs/cgroup/snapfs-monitor-test"} {
			list, _ := filepath.Glob(at)
			for _, dir := range list {
				if err := os.Remove(dir); err != nil {
					t.Errorf("a cgroup is left: %v", err)
				}
			}
		}
	})
	h := prepare(t, nil, func(c *Config) {
		realConfig(t, c, args...)
		if change != nil {
			change(c)
		}
	})
	h.real = true
	h.start()
	return h
}

func TestRealContainer(t *testing.T) {
	h := holdReal(t, func(c *Config) { c.OpenStdin = true }, "cat")
	s := newStreams(t, true)
	c := h.attach(AttachArgs{Start: true, CloseStdin: true}, s)
	go func() { io.WriteString(s.in, "through the container\n"); s.in.Close() }()
	exit, err := c.Wait(t.Context(), nil)
	if got := readAll(t, s.out); err != nil || exit.Code != 0 || got != "through the container\n" {
		t.Errorf("Wait = %+v, %v; output %q, errors %q", exit, err, got, readAll(t, s.err))
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

func TestRealTerminalExecAndStop(t *testing.T) {
	h := holdReal(t, func(c *Config) { c.TTY = true }, "wait")
	s := newStreams(t, true)
	c := h.attach(AttachArgs{Start: true, Size: Size{24, 80}}, s)
	var waiting sync.WaitGroup
	var exit Exit
	var err error
	waiting.Go(func() { exit, err = c.Wait(t.Context(), nil) })
	if b := make([]byte, len("ready\r\n")); true {
		if _, err := io.ReadFull(s.out, b); err != nil || string(b) != "ready\r\n" {
			t.Errorf("terminal shows %q, %v", b, err)
		}
	}
	x := newStreams(t, false)
	xc := h.exec(ExecArgs{Args: []string{"/inside", "write", "/written", "yes"}}, x)
	if exit, err := xc.Wait(t.Context(), nil); err != nil || exit.Code != 0 {
		t.Errorf("exec = %+v, %v: %s", exit, err, readAll(t, x.err))
	}
	if b, err := os.ReadFile(filepath.Join(h.cfg.Rootfs.Upper, "written")); err != nil || string(b) != "yes" {
		t.Errorf("upper has %q, %v", b, err)
	}
	var st State
	h.call(OpPause, nil, &st)
	h.call(OpUnpause, nil, &st)
	if st.Status != StatusRunning {
		t.Errorf("status = %s", st.Status)
	}
	h.call(OpStop, StopArgs{Timeout: 60}, nil)
	waiting.Wait()
	if err != nil || exit.Code != 9 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

func TestRealCommandMissing(t *testing.T) {
	h := holdReal(t, func(c *Config) { c.Spec.Process.Args = []string{"/nope"}; c.Remove = true })
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	if _, err := c.Wait(t.Context(), nil); !isCode(err, CodeNoCommand) {
		t.Errorf("Wait: %v, want %s", err, CodeNoCommand)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

// TestRealFrozenByOthers: a container that somebody else has frozen can be stopped all the same.
func TestRealFrozenByOthers(t *testing.T) {
	h := holdReal(t, nil, "wait")
	h.call(OpStart, nil, nil)
	g, err := cgroups.Open(h.cfg.CgroupParent + "/" + h.cfg.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Release()
	if err := g.Freeze(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	var exit Exit
	h.call(OpStop, StopArgs{Timeout: 0}, &exit)
	if exit.Signal != "SIGKILL" {
		t.Errorf("exit = %+v", exit)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

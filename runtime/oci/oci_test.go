package oci

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// programs are snaprun and the program that runs in containers, built once. A
// machine without Go has them (integration/kernel_test.go).
var programs = sync.OnceValues(func() (string, error) {
	if dir := os.Getenv("SNAPFS_TEST_PROGRAMS"); dir != "" {
		return dir, nil
	}
	dir, err := os.MkdirTemp("", "snapfs-oci-test-")
	if err != nil {
		return "", err
	}
	// As make build does, and as go build alone.
	entry := ""
	if goruntime.GOARCH == "amd64" {
		entry = "-E snapfs_entry"
	}
	for _, p := range [][3]string{{"snapctl", "../../cmd/snapctl", entry}, {"plain/snapctl", "../../cmd/snapctl", ""}, {"inside", "../testdata/inside", ""}} {
		cmd := exec.Command("go", "build", "-ldflags", p[2], "-o", filepath.Join(dir, p[0]), p[1])
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, b)
		}
	}
	return dir, errors.Join(os.Symlink("snapctl", filepath.Join(dir, "snaprun")), os.Symlink("snapctl", filepath.Join(dir, "plain/snaprun")))
})

const cgroupParent = "/snapfs-test-oci"

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := programs(); err == nil && os.Getenv("SNAPFS_TEST_PROGRAMS") == "" {
		os.RemoveAll(dir)
	}
	for _, at := range []string{"/sys/fs/cgroup/*" + cgroupParent, "/sys/fs/cgroup" + cgroupParent, "/sys/fs/cgroup/*/snapfs", "/sys/fs/cgroup/snapfs"} { // the last are of relative paths
		list, _ := filepath.Glob(at)
		for _, dir := range list {
			_ = os.Remove(dir) // a parallel run may still use it
		}
	}
	os.Exit(code)
}

// A bench is a bundle, a state directory and a program to run it with.
type bench struct {
	t      testing.TB
	id     string
	root   string // --root
	bundle string
	spec   *specs.Spec
	bin    string
	out    *bufio.Reader
	prefix []string // of a command line; nil is ours
}

// newBench makes a bundle whose process runs the program inside with some arguments.
func newBench(t testing.TB, args ...string) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts containers")
	}
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	work := t.TempDir()
	b := &bench{t: t, id: fmt.Sprintf("t%d-%d", os.Getpid(), time.Now().UnixNano()), root: filepath.Join(work, "state"), bundle: filepath.Join(work, "bundle"), bin: filepath.Join(dir, "snaprun")}
	root := filepath.Join(b.bundle, "rootfs")
	for _, d := range []string{"etc", "tmp", "bin"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	prog, err := os.ReadFile(filepath.Join(dir, "inside"))
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "inside"), prog, 0o755))
	s := example()
	s.Root.Readonly, s.Process.Terminal, s.Process.Rlimits = false, false, nil
	s.Process.Args = append([]string{"/inside"}, args...)
	s.Linux.CgroupsPath = cgroupParent + "/" + b.id
	b.spec = s
	t.Cleanup(func() {
		if out, err := b.run("delete", "--force", b.id); err != nil {
			t.Errorf("delete --force: %v: %s", err, out)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*" + s.Linux.CgroupsPath); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// write writes config.json.
func (b *bench) write() {
	b.t.Helper()
	j, err := json.Marshal(b.spec)
	must(b.t, err)
	must(b.t, os.WriteFile(filepath.Join(b.bundle, "config.json"), j, 0o600))
}

func (b *bench) cmd(args ...string) *exec.Cmd {
	line := append(b.prefix, append([]string{"--root", b.root}, args...)...)
	if b.prefix == nil {
		line = append([]string{b.bin}, line...)
	}
	return exec.Command(line[0], line[1:]...)
}

// run runs a command line and returns all it wrote until its own end: a
// container that it leaves behind may go on writing.
func (b *bench) run(args ...string) (string, error) {
	f, err := os.CreateTemp(b.bundle, "output")
	if err != nil {
		return "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	cmd := b.cmd(args...)
	cmd.Stdout, cmd.Stderr = f, f
	err = cmd.Run()
	out, rerr := os.ReadFile(f.Name())
	return string(out), errors.Join(err, rerr)
}

// ok is run that has to succeed.
func (b *bench) ok(args ...string) string {
	b.t.Helper()
	out, err := b.run(args...)
	if err != nil {
		b.t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

// fails is run that has to fail with an exit status and words.
func (b *bench) fails(status int, words string, args ...string) {
	b.t.Helper()
	out, err := b.run(args...)
	var e *exec.ExitError
	if !errors.As(err, &e) || e.ExitCode() != status || !strings.Contains(out, words) {
		b.t.Errorf("%s: %v, %q, want status %d and %q", strings.Join(args, " "), err, out, status, words)
	}
}

// runs writes the bundle and runs it, and returns its output.
func (b *bench) runs() string {
	b.t.Helper()
	b.write()
	return b.ok("run", "--bundle", b.bundle, b.id)
}

// create writes the bundle and creates the container, whose output goes to a pipe.
func (b *bench) create(options ...string) {
	b.t.Helper()
	b.write()
	cmd := b.cmd(append(append([]string{"create", "--bundle", b.bundle}, options...), b.id)...)
	r, w, err := os.Pipe()
	must(b.t, err)
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Run()
	w.Close()
	if err != nil {
		out, _ := io.ReadAll(r)
		b.t.Fatalf("create: %v: %s", err, out)
	}
	b.out = bufio.NewReader(r)
	b.t.Cleanup(func() { r.Close() })
}

// end reads what the container of create writes until it is "ready" (the verb
// trap says so), kills it, and returns all it wrote.
func (b *bench) end() string {
	b.t.Helper()
	var all strings.Builder
	for !strings.HasSuffix(all.String(), "ready\n") {
		line, err := b.out.ReadString('\n')
		all.WriteString(line)
		if err != nil {
			b.t.Fatalf("output ended with %v: %s", err, all.String())
		}
	}
	pid := b.state().Pid
	b.ok("kill", b.id, "KILL")
	waitPid(b.t, pid)
	return all.String()
}

// rest is what follows.
func (b *bench) rest() string {
	out, err := io.ReadAll(b.out)
	must(b.t, err)
	return string(out)
}

func (b *bench) state() shown {
	b.t.Helper()
	var s shown
	must(b.t, json.Unmarshal([]byte(b.ok("state", b.id)), &s))
	return s
}

// waitFor waits until the container has a status.
func (b *bench) waitFor(status specs.ContainerState) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		s := b.state()
		if s.Status == status {
			return
		}
		if status == specs.StateStopped && s.Pid > 0 {
			waitPid(b.t, s.Pid)
		}
	}
	b.t.Fatalf("it is %s, want %s", b.state().Status, status)
}

// waitPid waits for a process's end.
func waitPid(t testing.TB, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	must(t, err)
	defer unix.Close(fd)
	if !waitEnd(fd, 20*time.Second) {
		t.Fatalf("process %d does not end", pid)
	}
}

func wants(t testing.TB, out string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(out, p) {
			t.Errorf("output lacks %q:\n%s", p, out)
		}
	}
}

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// snapctl runs the command line and returns its output and exit status.
func (m *machine) snapctl(args ...string) (out string, code int) {
	m.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c := exec.CommandContext(ctx, filepath.Join(filepath.Dir(m.snapd), "snapctl"),
		append([]string{"--host", "unix://" + filepath.Join(m.run, "snapd.sock")}, args...)...)
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	if ctx.Err() != nil {
		m.Fatalf("snapctl %v hangs: %s%s\nthe daemon said:\n%s", args, stdout.String(), stderr.String(), m.d.log.String())
	}
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		m.Fatalf("snapctl %v: %v", args, err)
	}
	if s := stderr.String(); s != "" {
		m.Logf("snapctl %v: exit status %d: %s", args, c.ProcessState.ExitCode(), s)
	}
	return stdout.String(), c.ProcessState.ExitCode()
}

// ok runs the command line, which succeeds.
func (m *machine) ok(args ...string) string {
	m.Helper()
	out, code := m.snapctl(args...)
	if code != 0 {
		m.Fatalf("snapctl %v: exit status %d\nthe daemon said:\n%s", args, code, m.d.log.String())
	}
	return out
}

// inside builds the program that containers run.
func inside(t *testing.T) file {
	t.Helper()
	exe := filepath.Join(t.TempDir(), "inside")
	if onlyPrograms != "" {
		exe = filepath.Join(onlyPrograms, "inside-image")
	} else {
		c := exec.Command("go", "build", "-ldflags=-s -w", "-o", exe, "./testdata/inside")
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("go build: %v\n%s", err, out)
		}
	}
	b, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	f := reg("inside", b)
	f.Mode = 0o755
	return f
}

// checkSums compares what "inside sums" printed with what the image was made of.
func (im *image) checkSums(t testing.TB, top, out string) {
	t.Helper()
	read := map[string]bool{}
	for line := range strings.Lines(out) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), " ")
		name = strings.TrimPrefix(name, "/")
		if want := fmt.Sprintf("%x", im.want[name]); sum != want {
			t.Errorf("%s has SHA-256 %s, want %s", name, sum, want)
		}
		read[name] = true
	}
	for name := range im.want {
		if strings.HasPrefix(name, top) && !read[name] {
			t.Errorf("a container did not read %s; it said:\n%s", name, out)
			break
		}
	}
}

// TestContainers runs some on an image that is not local, by the command line,
// and has one outlive the daemon and the registry.
func TestContainers(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	im := newImage(t, eStargz, []file{dir("proc"), dir("sys"), dir("dev"), dir("tmp"), inside(t)}, someFiles(1200, "data", 60))
	ref := hub.put(t, "containers", im)

	im.checkSums(t, "data/", m.ok("run", "--rm", ref, "/inside", "sums", "/data"))
	for _, row := range []struct {
		args []string
		code int
	}{
		{[]string{ref, "/inside", "exit", "7"}, 7},
		{[]string{ref, "/nothing"}, 127},
		{[]string{ref, "/data"}, 126},
		{[]string{hub.ref("unknown"), "/inside"}, 125},
	} {
		if _, code := m.snapctl(append([]string{"run", "--rm"}, row.args...)...); code != row.code {
			t.Errorf("run %v: exit status %d, want %d", row.args, code, row.code)
		}
	}
	if out := m.ok("ps", "-a", "-q"); out != "" {
		t.Errorf("containers are left: %q", out)
	}

	m.ok("run", "-d", "--name", "stays", ref, "/inside", "wait")
	m.pull(ref, true)
	if _, code := m.snapctl("rmi", ref); code != 1 {
		t.Errorf("rmi of an image in use: exit status %d, want 1", code)
	}
	hub.CloseClientConnections()
	hub.Close()
	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(t, s.Worker)
	m.waitReady(s.Supervisor)
	im.checkSums(t, "data/", m.ok("exec", "stays", "/inside", "sums", "/data"))
	m.kill()
	m.start()
	im.checkSums(t, "data/", m.ok("exec", "stays", "/inside", "sums", "/data"))
	m.stop()
	m.start()
	im.checkSums(t, "data/", m.ok("run", "--rm", ref, "/inside", "sums", "/data"))
	if out := m.ok("logs", "stays"); out != "waiting\n" {
		t.Errorf("logs: %q", out)
	}
	m.ok("stop", "-t", "0", "stays")
	if out := m.ok("wait", "stays"); out != "137\n" && out != "143\n" {
		t.Errorf("wait: %q", out)
	}
	m.ok("rm", "stays")
	m.ok("rmi", ref)
	m.nothingLeft()
}

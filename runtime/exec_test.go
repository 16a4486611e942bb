package runtime

import (
	"bufio"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExec(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	out, st := execIn(t, c.Container, nil, "hostname", ";", "pid", ";", "ids", ";", "cwd", ";", "fds", ";", "cat", "/proc/self/cgroup",
		";", "grep", "Cap", "/proc/self/status", ";", "grep", "Seccomp:", "/proc/self/status", ";", "exit", "9")
	if st.ExitCode() != 9 {
		t.Errorf("status %v, want 9", st)
	}
	want(t, out, "box", "0 0 [0]", "CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "Seccomp:\t2", "0::/\n")
	if _, v2, ok := c.group.Dir("memory"); ok && !v2 {
		want(t, out, "memory:/\n")
	}
	for line := range strings.Lines(out) {
		for _, f := range strings.Fields(line) {
			fd, target, ok := strings.Cut(f, "=")
			if ok && len(fd) == 1 && fd > "2" && !strings.Contains(target, "/cgroup/") {
				t.Errorf("descriptor %s is open in the container: %s", fd, target)
			}
		}
	}
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		a, _ := execIn(t, c.Container, nil, "readlink", "/proc/1/ns/"+kind)
		b, _ := execIn(t, c.Container, nil, "readlink", "/proc/self/ns/"+kind)
		host, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(b) == host || !strings.HasPrefix(b, kind) {
			t.Errorf("namespace %s of an exec is %s, of the host %s (of PID 1 %s)", kind, b, host, a)
		}
	}
}

func TestExecUser(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	out, _ := execIn(t, c.Container, func(p *specs.Process) {
		p.User.Username, p.Cwd, p.Env = "ann", "/tmp", []string{"A=b", "BARE"}
		p.Capabilities = nil
	}, "ids", ";", "cwd", ";", "env", "A", "BARE", "HOME", ";", "grep", "Cap", "/proc/self/status")
	want(t, out, "1000 1001 [29 44 1001]", "/tmp\n", "A b true", "BARE  false", "HOME /home/ann true", "CapBnd:\t0000000000000000")
	_, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside"}, User: specs.User{Username: "eve"}}, Files{})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Exec as an unknown user = %v, want not exist", err)
	}
	var e *ExecError
	if _, err = c.Exec(t.Context(), &specs.Process{Args: []string{"nothing"}}, Files{}); !errors.As(err, &e) || e.ExitCode() != 127 {
		t.Errorf("Exec of nothing = %v, want an ExecError with code 127", err)
	}
	if _, err = c.Exec(t.Context(), &specs.Process{Args: []string{"/inside"}, Cwd: "/nowhere"}, Files{}); err == nil || !strings.Contains(err.Error(), "chdir /nowhere") {
		t.Errorf("Exec in /nowhere = %v, want an error naming chdir", err)
	}
}

// TestLeave: a process that is somebody else's to wait for is not reaped. containerd's
// shim, a subreaper, would wait for ever for one that was.
func TestLeave(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	for _, leave := range []bool{true, false} {
		p, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside", "exit", "3"}, Cwd: "/"}, Files{Leave: leave})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := p.Wait(t.Context()); err != nil || st.ExitCode() != 3 {
			t.Errorf("Wait() = %v, %v, want 3", st, err)
		}
		var st unix.WaitStatus
		got, err := unix.Wait4(p.Pid(), &st, 0, nil)
		if leave && (err != nil || got != p.Pid() || st.ExitStatus() != 3) || !leave && err != unix.ECHILD {
			t.Errorf("leave %v: wait for process %d: %d, %v, status %d", leave, p.Pid(), got, err, st.ExitStatus())
		}
	}
}

func TestExecAfterTheEnd(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "exit", "0"), options(t))
	c.end()
	if p, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside", "pid"}, Cwd: "/"}, Files{}); err == nil {
		st, _ := p.Wait(t.Context())
		t.Errorf("Exec in an ended container ran, %v", st)
	}
}

func TestPause(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	if err := c.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on, err := c.Paused(); err != nil || !on {
		t.Errorf("Paused() = %v, %v, want true", on, err)
	}
	if _, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside"}}, Files{}); err == nil || !strings.Contains(err.Error(), "paused") {
		t.Errorf("Exec in a paused container = %v, want an error that says so", err)
	}
	if err := c.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if on, err := c.Paused(); err != nil || on {
		t.Errorf("Paused() = %v, %v, want false", on, err)
	}
	if err := c.Pause(t.Context()); err != nil { // Close has to end a paused one too
		t.Fatal(err)
	}
}

// lines reads a terminal.
func lines(t *testing.T, f *os.File) *bufio.Reader {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return bufio.NewReader(f)
}

// readTTY reads lines until one has a prefix.
func readTTY(t *testing.T, r *bufio.Reader, prefix string) string {
	t.Helper()
	for {
		line, err := r.ReadString('\n')
		if strings.HasPrefix(line, prefix) {
			return strings.TrimSpace(line)
		}
		if err != nil {
			t.Fatalf("terminal ended with %v, without %q", err, prefix)
		}
	}
}

func TestTerminal(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	for _, init := range []bool{false, true} {
		s := newSpec(t, root, "readline", ";", "tty", ";", "stat", "/dev/console", ";", "grep", "console", "/proc/self/mountinfo", ";", "ls", "/dev/pts", ";", "echo", "end", ";", "trap")
		s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 20, Width: 70}
		o := options(t)
		o.Init = init
		c := begin(t, s, o)
		tty := c.Init().Console()
		defer tty.Close()
		r := lines(t, tty)
		if err := c.Init().Resize(33, 101); err != nil {
			t.Fatal(err)
		}
		if _, err := tty.WriteString("go\n"); err != nil {
			t.Fatal(err)
		}
		if got := readTTY(t, r, "/dev/pts/"); got != "/dev/pts/0 33 101 true <nil>" {
			t.Errorf("init %v: tty %q, want /dev/pts/0 33 101 with us in front", init, got)
		}
		// A terminal's signals arrive: ^C.
		readTTY(t, r, "ready")
		if _, err := tty.WriteString("\x03"); err != nil {
			t.Fatal(err)
		}
		said, ends := "", 0
		for !strings.Contains(said, "got SIGINT") { // the terminal echoes ^C after it has sent the signal, so either may be first
			line, err := r.ReadString('\n')
			said += line
			if err == nil {
				continue
			}
			if ends++; ends > 1 { // what was written just before the other end was closed is there at the second look, see drain in package monitor
				t.Fatalf("init %v: terminal ended with %v, without the answer to ^C: %q", init, err, said)
			}
		}
		st, err := c.Init().Wait(t.Context())
		if err != nil || st.ExitCode() != 40 {
			t.Errorf("init %v: status %v, %v, want 40", init, st, err)
		}
	}
}

func TestTerminalOfExec(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "sleep"), options(t))
	p, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside", "tty", ";", "ids", ";", "sleep"}, Cwd: "/", Terminal: true,
		User: specs.User{UID: 7}, ConsoleSize: &specs.Box{Height: 5, Width: 6}}, Files{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Console().Close()
	if got := readTTY(t, lines(t, p.Console()), "/dev/pts/"); got != "/dev/pts/0 5 6 true <nil>" {
		t.Errorf("tty %q", got)
	}
	if err := p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st, err := p.Wait(t.Context()); err != nil || st.ExitCode() != 137 {
		t.Errorf("Wait() = %v, %v, want 137", st, err)
	}
}

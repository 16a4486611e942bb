package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestExitCodes(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	for _, init := range []bool{false, true} {
		for _, c := range []struct {
			args []string
			want int
		}{
			{[]string{"exit", "0"}, 0}, {[]string{"exit", "7"}, 7}, {[]string{"exit", "255"}, 255}, {[]string{"raise", "9"}, 137},
		} {
			if c.args[0] == "raise" && !init {
				continue // nothing kills PID 1 from inside
			}
			o := options(t)
			o.Init = init
			out, st := begin(t, newSpec(t, root, c.args...), o).end()
			if st.ExitCode() != c.want {
				t.Errorf("init %v: %v ended with %v, want %d; output %s", init, c.args, st, c.want, out)
			}
		}
	}
}

func TestNotExecutable(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	put(t, root, "bin/plain", "no program", 0o644)
	put(t, root, "bin/empty", "text\n", 0o755)
	put(t, root, "bin/script", "#!/no/interpreter\n", 0o755)
	if err := os.Mkdir(root+"/other", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, init := range []bool{false, true} {
		for _, c := range []struct {
			name string
			want int
			err  error
		}{
			{"missing", 127, unix.ENOENT}, {"/missing", 127, unix.ENOENT}, {"/inside/x", 127, unix.ENOTDIR},
			{"plain", 126, unix.EACCES}, {"/bin/plain", 126, unix.EACCES}, {"/bin", 126, unix.EACCES},
			{"/bin/empty", 126, unix.ENOEXEC}, {"/bin/script", 127, unix.ENOENT},
		} {
			s := newSpec(t, root)
			s.Process.Args = []string{c.name}
			s.Process.Env = []string{"PATH=/none:/bin:/other"}
			o := options(t)
			o.Init = init
			_, err := tryBegin(t, s, o)
			var e *ExecError
			if !errors.As(err, &e) {
				t.Errorf("init %v: %s: error %v, want an ExecError", init, c.name, err)
				continue
			}
			if e.ExitCode() != c.want || c.err != unix.ENOTDIR && !errors.Is(err, c.err) {
				t.Errorf("init %v: %s: %v with code %d, want %v and %d", init, c.name, err, e.ExitCode(), c.err, c.want)
			}
		}
	}
}

func TestPathIsSearchedInside(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t))
	s.Process.Args = []string{"inside", "args"}
	s.Process.Env = []string{"PATH=/none:/etc/passwd:/"}
	want(t, runSpec(t, s), `["inside" "args"]`)
}

func TestSignal(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	for _, init := range []bool{false, true} {
		o := options(t)
		o.Init = init
		c := begin(t, newSpec(t, root, "trap"), o)
		b := make([]byte, 6)
		if _, err := c.stdout.Read(b); err != nil {
			t.Fatal(err)
		}
		if err := c.Signal(unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		out, st := c.end()
		if st.ExitCode() != 40 || !strings.Contains(out, "SIGTERM") {
			t.Errorf("init %v: ended with %v and %q, want 40 after SIGTERM", init, st, out)
		}
		if err := c.Signal(unix.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("Signal after the end = %v, want os.ErrProcessDone", err)
		}
	}
}

func TestInitReaps(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "orphan", ";", "orphan", ";", "orphan", ";", "zombies", ";", "pid", ";", "readlink", "/proc/1/exe")
	s.Process.Capabilities.Bounding = append(s.Process.Capabilities.Bounding, "CAP_SYS_PTRACE")
	o := options(t)
	o.Init = true
	out, st := begin(t, s, o).end()
	if st.ExitCode() != 0 {
		t.Errorf("status %v, want 0", st)
	}
	want(t, out, "zombies 0\n", "2 1\n", "/memfd:snapfs-init (deleted)\n")
}

// TestInitIsSealed: what runs as PID 1 cannot be written from inside (CVE-2019-5736).
func TestInitIsSealed(t *testing.T) {
	needRoot(t)
	o := options(t)
	o.Init = true
	out, _ := begin(t, newSpec(t, newRoot(t), "write", "/proc/1/exe", "evil"), o).end()
	if !strings.Contains(out, "write E") {
		t.Errorf("writing to /proc/1/exe gave %q, want an error", out)
	}
}

func TestKillAndClose(t *testing.T) {
	needRoot(t)
	c := begin(t, newSpec(t, newRoot(t), "spawn", "sleep", ";", "spawn", "sleep", ";", "sleep"), options(t))
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, st := c.end(); st.Signal != unix.SIGKILL || st.ExitCode() != 137 {
		t.Errorf("after Kill: %v, want SIGKILL", st)
	}
	for range 2 {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	}
	if _, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside"}}, Files{}); err == nil {
		t.Error("Exec after Close succeeded")
	}
}

func TestStartIsCancelled(t *testing.T) {
	needRoot(t)
	p, err := NewPlan(newSpec(t, newRoot(t), "sleep"), options(t))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, p, Files{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Start with an ended context = %v, want context.Canceled", err)
	}
}

func TestStdin(t *testing.T) {
	needRoot(t)
	s := newSpec(t, newRoot(t), "stdin")
	p, err := NewPlan(s, options(t))
	if err != nil {
		t.Fatal(err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	outR, outW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer inR.Close()
	defer outR.Close()
	c, err := Start(t.Context(), p, Files{Stdin: inR, Stdout: outW})
	outW.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := inW.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	inW.Close()
	b := make([]byte, 10)
	n, err := outR.Read(b)
	if err != nil || string(b[:n]) != "hello" {
		t.Errorf("read %q, %v, want hello", b[:n], err)
	}
}

func TestDirectoryAsStdio(t *testing.T) { // CVE-2024-21626
	needRoot(t)
	p, err := NewPlan(newSpec(t, newRoot(t), "cwd"), options(t))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if c, err := Start(t.Context(), p, Files{Stdin: dir}); err == nil {
		c.Close()
		t.Error("Start took a directory of the host as standard input")
	}
}

// TestCleanSignals: what this process ignores a container does not, and its streams block.
func TestCleanSignals(t *testing.T) {
	needRoot(t)
	signal.Ignore(unix.SIGHUP, unix.SIGUSR2)
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR2)
	c := begin(t, newSpec(t, newRoot(t), "grep", "SigIgn", "/proc/self/status", ";", "blocking", ";", "sleep"), options(t))
	b := make([]byte, 200)
	n, err := io.ReadAtLeast(c.stdout, b, len("SigIgn:\t0000000000000000\ntrue true true\n"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, string(b[:n]), "SigIgn:\t0000000000000000\n", "true true true")
	out, _ := execIn(t, c.Container, nil, "grep", "SigIgn", "/proc/self/status", ";", "blocking")
	want(t, out, "SigIgn:\t0000000000000000\n", "true true true")
}

// TestParallel: starts and execs at the same time do not mix.
func TestParallel(t *testing.T) {
	needRoot(t)
	root := newRoot(t)
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for k := range 8 {
				code := 10*i + k
				o := options(t)
				o.ID += fmt.Sprintf("-%d", code)
				o.Init = k%2 == 0
				p, err := NewPlan(newSpec(t, root, "readline", ";", "exit", fmt.Sprint(code)), o)
				if err != nil {
					t.Error(err)
					return
				}
				r, w, err := os.Pipe()
				if err != nil {
					t.Error(err)
					return
				}
				c, err := Start(t.Context(), p, Files{Stdin: r})
				r.Close()
				if err != nil {
					w.Close()
					t.Error(err)
					return
				}
				e, err := c.Exec(t.Context(), &specs.Process{Args: []string{"/inside", "exit", fmt.Sprint(code + 100)}}, Files{})
				if err != nil {
					t.Error(err)
				} else if st, err := e.Wait(t.Context()); err != nil || st.Code != code+100 {
					t.Errorf("exec %d: %v, %v", code+100, st, err)
				}
				w.Close() // the end of its input
				if st, err := c.Init().Wait(t.Context()); err != nil || st.Code != code {
					t.Errorf("container %d: %v, %v", code, st, err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

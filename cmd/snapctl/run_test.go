package main

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// newMonitor answers at a socket as a monitor whose container copies its input
// to its output and then ends with exit, or err.
func newMonitor(t *testing.T, exit monitor.Exit, err error) (socket string, asked func() []string) {
	t.Helper()
	d := &fakeDaemon{socket: filepath.Join(t.TempDir(), "m")}
	end := answer(exit)
	if err != nil {
		end = func(*control.Request) error { return err }
	}
	session := func(r *control.Request) error {
		if err != nil {
			return err
		}
		if err := r.Event(monitor.Event{Started: true, Pid: 1}); err != nil {
			return err
		}
		if len(r.Files) == 3 { // stdin, stdout, stderr
			if _, err := io.Copy(r.Files[1], r.Files[0]); err != nil {
				return err
			}
		}
		return r.Reply(exit)
	}
	d.ops = map[string]func(*control.Request) error{
		monitor.OpAttach: session, monitor.OpExec: session, monitor.OpStart: end, monitor.OpWait: end, monitor.OpStop: end, monitor.OpKill: end,
	}
	l, lerr := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	if lerr != nil {
		t.Fatal(lerr)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		(&control.Server{Handle: d.handle, Streaming: map[string]bool{monitor.OpAttach: true, monitor.OpExec: true}}).Serve(ctx, l)
	})
	t.Cleanup(func() { cancel(); serving.Wait(); l.Close() })
	return d.socket, d.requests
}

func daemonOf(t *testing.T, socket string) *fakeDaemon {
	row := control.Container{ID: "cafe", Name: "box", Status: monitor.StatusRunning, Socket: socket}
	return newDaemon(t, map[string]func(*control.Request) error{
		control.OpCreate:  answer(control.Created{ID: "cafe", Name: "box", Socket: socket}),
		control.OpStart:   answer(control.Created{ID: "cafe", Name: "box", Socket: socket}),
		control.OpResolve: answer(row),
	})
}

func TestExitStatus(t *testing.T) {
	for name, test := range map[string]struct {
		exit   monitor.Exit
		err    error
		status int
		text   string
	}{
		"success":       {monitor.Exit{}, nil, 0, ""},
		"failure":       {monitor.Exit{Code: 3}, nil, 3, ""},
		"signal":        {monitor.Exit{Code: 137, Signal: "SIGKILL"}, nil, 137, ""},
		"no command":    {monitor.Exit{}, &control.Error{Code: monitor.CodeNoCommand, Message: "exec x: not found"}, 127, "snapctl: exec x: not found\n"},
		"cannot invoke": {monitor.Exit{}, &control.Error{Code: monitor.CodeCannotExec, Message: "exec x: denied"}, 126, "snapctl: exec x: denied\n"},
		"our failure":   {monitor.Exit{}, &control.Error{Code: control.CodeInternal, Message: "mount: no"}, 125, "snapctl: mount: no\n"},
	} {
		t.Run(name, func(t *testing.T) {
			socket, _ := newMonitor(t, test.exit, test.err)
			d := daemonOf(t, socket)
			for _, args := range []string{"run img", "run -i img", "exec box cmd", "attach --no-stdin box", "start -a box"} {
				env, out, errs := newEnv(t, d.socket)
				if status := env.main(strings.Fields(args)); status != test.status || errs() != test.text || out() != "" {
					t.Errorf("snapctl %s: exit status %d, want %d; stdout %q, stderr %q", args, status, test.status, out(), errs())
				}
			}
		})
	}
}

func TestRunInput(t *testing.T) {
	socket, asked := newMonitor(t, monitor.Exit{Code: 5}, nil)
	d := daemonOf(t, socket)
	env, out, _ := newEnv(t, d.socket)
	text := strings.Repeat("some input\n", 50_000)
	pipeIn(t, env, text)
	if status := env.main([]string{"run", "-i", "--rm", "img", "cat"}); status != 5 || out() != text {
		t.Errorf("exit status %d, %d bytes, want %d", status, len(out()), len(text))
	}
	if a := strings.Join(asked(), "\n"); !strings.Contains(a, `"Start":true,"CloseStdin":true`) {
		t.Errorf("asked for %s", a)
	}
}

func TestRunDetached(t *testing.T) {
	socket, asked := newMonitor(t, monitor.Exit{}, nil)
	d := daemonOf(t, socket)
	env, out, _ := newEnv(t, d.socket)
	if status := env.main([]string{"run", "-dit", "img"}); status != 0 || out() != "cafe\n" {
		t.Errorf("exit status %d, stdout %q", status, out())
	}
	if a := asked(); len(a) != 1 || !strings.HasPrefix(a[0], monitor.OpStart) {
		t.Errorf("asked for %q", a)
	}
}

func TestTerminalIsRequired(t *testing.T) {
	socket, _ := newMonitor(t, monitor.Exit{}, nil)
	d := daemonOf(t, socket)
	for _, args := range []string{"run -it img", "exec -it box sh"} {
		env, _, errs := newEnv(t, d.socket)
		if status := env.main(strings.Fields(args)); status != 125 || errs() != "snapctl: the input device is not a TTY\n" {
			t.Errorf("snapctl %s: exit status %d, %q", args, status, errs())
		}
	}
}

func TestStopAndKill(t *testing.T) {
	socket, asked := newMonitor(t, monitor.Exit{}, nil)
	d := daemonOf(t, socket)
	env, out, errs := newEnv(t, d.socket)
	if status := env.main([]string{"stop", "-t", "3", "-s", "INT", "box", "box"}); status != 0 || out() != "box\nbox\n" {
		t.Errorf("exit status %d, stdout %q, stderr %q", status, out(), errs())
	}
	env.main([]string{"kill", "-s", "HUP", "box"})
	if got := strings.Join(asked(), "\n"); strings.Count(got, `stop {"Signal":"INT","Timeout":3}`) != 2 || !strings.Contains(got, `kill {"Signal":"HUP"}`) {
		t.Errorf("asked for %s", got)
	}
}

func TestWaitReady(t *testing.T) {
	for name, test := range map[string]struct {
		state  monitor.State
		status int
		out    string
		errs   string
	}{
		"line":     {monitor.State{Status: "running", Started: noon, Ready: noon.Add(1234567 * time.Microsecond), ReadyBy: "line"}, 0, "line 1.235\n", ""},
		"job":      {monitor.State{Status: "exited", Started: noon, Ready: noon.Add(time.Second), ReadyBy: "exit"}, 0, "exit 1.000\n", ""},
		"bad job":  {monitor.State{Status: "exited", Started: noon, Ready: noon, ReadyBy: "exit", ExitCode: 3}, 1, "", "container box ended before it was ready, with exit status 3\n"},
		"died":     {monitor.State{Status: "exited", Started: noon, Finished: noon}, 1, "", "ended before it was ready, with exit status 0\n"},
		"no start": {monitor.State{Status: "exited", ExitCode: 127, Error: "exec x: not found"}, 1, "", "with exit status 127: exec x: not found\n"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newDaemon(t, map[string]func(*control.Request) error{monitor.OpWaitReady: func(r *control.Request) error {
				r.Event(monitor.State{Status: "running", Started: noon})
				return r.Reply(test.state)
			}})
			env, out, errs := newEnv(t, daemonOf(t, m.socket).socket)
			if status := env.main([]string{"wait", "--ready", "box"}); status != test.status || out() != test.out || !strings.HasSuffix(errs(), test.errs) {
				t.Errorf("exit status %d, stdout %q, stderr %q", status, out(), errs())
			}
		})
	}
	for name, test := range map[string]struct {
		row control.Container
		out string
	}{
		"ended":   {control.Container{Name: "box", Status: "exited", Started: noon, Ready: noon.Add(time.Second), ReadyBy: "port"}, "port 1.000\n"},
		"created": {control.Container{Name: "box", Status: "created"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, map[string]func(*control.Request) error{control.OpResolve: answer(test.row)})
			env, out, errs := newEnv(t, d.socket)
			if status := env.main([]string{"wait", "--ready", "box"}); (status == 0) != (test.out != "") || out() != test.out {
				t.Errorf("exit status %d, stdout %q, stderr %q", status, out(), errs())
			}
		})
	}
}

// A monitor that is gone when it is asked has left its answer with the daemon.
func TestMonitorGone(t *testing.T) {
	row := control.Container{ID: "cafe", Name: "box", Status: monitor.StatusRunning, Socket: "/nonexistent/sock"}
	asked := 0
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpCreate: answer(control.Created{ID: "cafe", Socket: row.Socket}),
		control.OpResolve: func(r *control.Request) error {
			if asked++; asked > 1 {
				row.Status, row.ExitCode, row.Socket = monitor.StatusExited, 6, ""
			}
			return r.Reply(row)
		},
	})
	env, out, _ := newEnv(t, d.socket)
	if status := env.main([]string{"wait", "box"}); status != 0 || out() != "6\n" {
		t.Errorf("wait: exit status %d, %q", status, out())
	}
	if status := env.main([]string{"run", "img"}); status != 6 {
		t.Errorf("run: exit status %d, want 6", status)
	}
}

func TestDetachReader(t *testing.T) {
	for in, want := range map[string]struct {
		out      string
		detached bool
	}{
		"plain":                 {"plain", false},
		"a\x10\x11b":            {"a", true},
		"\x10\x10\x11b":         {"\x10", true},
		"\x10x\x11":             {"\x10x\x11", false},
		"end\x10":               {"end\x10", false},
		"\x11\x10x\x10\x11more": {"\x11\x10x", true},
	} {
		for name, wrap := range map[string]func(io.Reader) io.Reader{"at once": func(r io.Reader) io.Reader { return r }, "byte by byte": iotest.OneByteReader} {
			detached := false
			r := &detachReader{r: wrap(bytes.NewReader([]byte(in))), keys: []byte{0x10, 0x11}, detach: func() { detached = true }}
			got, err := io.ReadAll(r)
			if err != nil || string(got) != want.out || detached != want.detached {
				t.Errorf("%q %s: %q, detached %t, %v; want %q, %t", in, name, got, detached, err, want.out, want.detached)
			}
		}
	}
}

func TestMain(m *testing.M) {
	os.Unsetenv("SNAPFS_HOST")
	os.Exit(m.Run())
}

// TestFinishBroken: that nobody reads the output is no sign of a monitor that has gone.
func TestFinishBroken(t *testing.T) {
	for errno, want := range map[unix.Errno]struct {
		status int
		text   string
	}{unix.EPIPE: {141, ""}, unix.ENOSPC: {125, "snapctl: stdout: no space left on device\n"}} {
		d := newDaemon(t, nil) // which is not asked
		env, _, errs := newEnv(t, d.socket)
		broken := error(&monitor.BrokenError{Stream: "stdout", Errno: errno})
		if errno == unix.EPIPE {
			broken = &exitError{128 + int(unix.SIGPIPE), &silent{broken}} // as session.run has it
		}
		err := env.finish(t.Context(), "box", &session{begin: func(context.Context, monitor.IO, monitor.Size) (*monitor.Attached, error) { return nil, broken }})
		if status := env.report(err, 125); status != want.status || errs() != want.text {
			t.Errorf("%v: exit status %d, %v", errno, status, err)
		}
		if asked := d.requests(); len(asked) > 0 {
			t.Errorf("%v: the daemon is asked %q", errno, asked)
		}
	}
}

// TestDryRun asks for a plan and for nothing else, and lets it say nothing to the terminal.
func TestDryRun(t *testing.T) {
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpPlan: answer(control.Planned{Text: "one\ntwo\x1b[2J\n", Spec: []byte(`{"ociVersion":"1"}`), Warnings: []string{"careful\x1b"}}),
	})
	for args, want := range map[string]string{
		"run --dry-run -d img x":                      "one\ntwo?[2J\n",
		"create --dry-run img":                        "one\ntwo?[2J\n",
		"--json run --dry-run img":                    `{"ociVersion":"1"}` + "\n",
		"run --cidfile /none/there --dry-run -q img":  "one\ntwo?[2J\n",
		"create --dry-run --json --pull never img -x": `{"ociVersion":"1"}` + "\n",
	} {
		env, out, errs := newEnv(t, d.socket)
		if status := env.main(strings.Fields(args)); status != 0 || out() != want || errs() != "snapctl: warning: careful?\n" {
			t.Errorf("snapctl %s: exit status %d, stdout %q, stderr %q", args, status, out(), errs())
		}
	}
	for i, asked := range d.requests() {
		if !strings.HasPrefix(asked, control.OpPlan+" ") {
			t.Errorf("request %d is %s", i, asked)
		}
	}
	refusing := newDaemon(t, map[string]func(*control.Request) error{
		control.OpPlan: func(*control.Request) error {
			return &control.Error{Code: control.CodeInvalid, Message: "--memory 1: less"}
		},
	})
	env, _, errs := newEnv(t, refusing.socket)
	if status := env.main([]string{"run", "--dry-run", "-m", "1", "img"}); status != 125 || errs() != "snapctl: --memory 1: less\n" {
		t.Errorf("exit status %d, %q", status, errs())
	}
}

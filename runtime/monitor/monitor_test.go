package monitor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// held is a monitor that a test has started.
type held struct {
	t      *testing.T
	dir    string
	cfg    *Config
	runner *fakeRunner
	real   bool // package runtime instead of runner
	result chan error
	ended  sync.Once
	err    error
}

// hold starts a monitor of a fake container that runs argv. change may alter the configuration.
func hold(t *testing.T, argv []string, change func(*Config)) *held {
	t.Helper()
	h := prepare(t, argv, change)
	h.start()
	return h
}

// prepare is hold without the start.
func prepare(t *testing.T, argv []string, change func(*Config)) *held {
	t.Helper()
	base := t.TempDir()
	h := &held{t: t, dir: filepath.Join(base, "containers", "c1"), runner: &fakeRunner{}, result: make(chan error, 1)}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	h.cfg = &Config{
		ID: "c1", Name: "box", Socket: filepath.Join(base, "run", "sock"),
		Spec: &specs.Spec{Process: &specs.Process{Args: argv, Env: os.Environ()}},
	}
	if change != nil {
		change(h.cfg)
	}
	if err := h.cfg.Save(h.dir); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *held) start() {
	ready, w := io.Pipe()
	o := Options{Ready: w}
	if !h.real {
		o.Runner = h.runner
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		h.result <- Run(ctx, h.dir, o)
		w.Close()
	}()
	h.t.Cleanup(func() {
		cancel()
		h.end()
	})
	io.ReadAll(ready)
}

// end waits for the monitor.
func (h *held) end() error {
	h.ended.Do(func() { h.err = <-h.result })
	return h.err
}

func (h *held) state() State {
	h.t.Helper()
	s, err := LoadState(h.dir)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *held) call(op string, args, result any) {
	h.t.Helper()
	if err := Call(h.t.Context(), h.cfg.Socket, op, args, result); err != nil {
		h.t.Fatalf("%s: %v", op, err)
	}
}

// streams are the client's ends of pipes whose other ends it passes on.
type streams struct {
	in       *io.PipeWriter
	out, err *os.File
	io       IO
}

func newStreams(t *testing.T, stdin bool) *streams {
	t.Helper()
	s := &streams{}
	var err error
	if s.out, s.io.Stdout, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	if s.err, s.io.Stderr, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	if stdin {
		var r *io.PipeReader
		r, s.in = io.Pipe()
		s.io.Stdin = r
		t.Cleanup(func() { s.in.Close() })
	}
	t.Cleanup(func() {
		for _, f := range []*os.File{s.out, s.err, s.io.Stdout, s.io.Stderr} {
			f.Close()
		}
	})
	return s
}

// sent closes the client's own copies of the descriptors that it has passed on.
func (s *streams) sent() {
	s.io.Stdout.Close()
	s.io.Stderr.Close()
}

func (h *held) attach(a AttachArgs, s *streams) *Attached {
	h.t.Helper()
	c, err := Attach(h.t.Context(), h.cfg.Socket, a, s.io)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	s.sent()
	return c
}

func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	b, err := io.ReadAll(f)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

// logged returns the text of a log by stream.
func logged(t *testing.T, dir string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, LogFile))
	if err != nil {
		t.Fatal(err)
	}
	text := map[string]string{}
	for line := range bytes.Lines(b) {
		var l struct{ Log, Stream, Time string }
		if err := json.Unmarshal(line, &l); err != nil || l.Time == "" {
			t.Fatalf("log line %q: %v", line, err)
		}
		text[l.Stream] += l.Log
	}
	return text
}

func TestAttachAndStart(t *testing.T) {
	h := hold(t, sh("echo out; echo err >&2; printf end; exit 7"), nil)
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	started := false
	exit, err := c.Wait(t.Context(), func(e Event) { started = e.Started && e.Pid > 0 })
	if err != nil || exit.Code != 7 || !started {
		t.Fatalf("Wait = %+v, %v, started %t", exit, err, started)
	}
	if out, errs := readAll(t, s.out), readAll(t, s.err); out != "out\nend" || errs != "err\n" {
		t.Errorf("client got %q and %q", out, errs)
	}
	if err := h.end(); err != nil {
		t.Error(err)
	}
	if got := logged(t, h.dir); got["stdout"] != "out\nend" || got["stderr"] != "err\n" {
		t.Errorf("log = %q", got)
	}
	if st := h.state(); st.Status != StatusExited || st.ExitCode != 7 || st.Started.IsZero() || st.Finished.Before(st.Started) {
		t.Errorf("state = %+v", st)
	}
	if !h.runner.closed || h.runner.released != 1 {
		t.Error("the container was not closed, or its root file system not released")
	}
	if _, err := os.Stat(h.cfg.Socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v, want none", err)
	}
}

func TestStdinHalfClose(t *testing.T) {
	h := hold(t, sh("cat; echo done"), func(c *Config) { c.OpenStdin = true })
	s := newStreams(t, true)
	c := h.attach(AttachArgs{Start: true, CloseStdin: true}, s)
	text := strings.Repeat("0123456789abcdef", 20<<10) // beyond every pipe's capacity
	go func() {
		io.WriteString(s.in, text)
		s.in.Close()
	}()
	var got string
	var reading sync.WaitGroup
	reading.Go(func() { got = readAll(t, s.out) })
	exit, err := c.Wait(t.Context(), nil)
	reading.Wait()
	if err != nil || exit.Code != 0 || got != text+"done\n" {
		t.Errorf("Wait = %+v, %v; %d bytes, want %d", exit, err, len(got), len(text)+5)
	}
}

func TestSlowClientLosesNothing(t *testing.T) {
	h := hold(t, sh("i=0; while [ $i -lt 4000 ]; do echo 0123456789012345678901234567890123456789 $i; i=$((i+1)); done"), nil)
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	var exit Exit
	var err error
	var waiting sync.WaitGroup
	running := make(chan struct{})
	waiting.Go(func() { exit, err = c.Wait(t.Context(), func(Event) { close(running) }) })
	<-running
	got := 0
	buf := make([]byte, 100) // many small reads: always slower than the writer
	for {
		n, rerr := s.out.Read(buf)
		got += n
		if rerr != nil {
			break
		}
	}
	waiting.Wait()
	want := len(logged(t, h.dir)["stdout"])
	if err != nil || exit.Code != 0 || got != want || want < 4000*42 {
		t.Errorf("Wait = %+v, %v; client got %d bytes of %d", exit, err, got, want)
	}
}

// A client that neither reads nor lives holds nothing up.
func TestClientGoneWhileNotReading(t *testing.T) {
	h := hold(t, sh("i=0; while [ $i -lt 20000 ]; do echo 0123456789; i=$((i+1)); done; exit 3"), nil)
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := c.Wait(ctx, func(Event) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	c.Close() // s.out stays open, and unread
	var exit Exit
	if err := Call(t.Context(), h.cfg.Socket, OpWait, nil, &exit); err != nil && !Gone(err) {
		t.Fatal(err)
	}
	h.end()
	if st := h.state(); st.ExitCode != 3 || len(logged(t, h.dir)["stdout"]) != 20000*11 {
		t.Errorf("state = %+v, %d bytes logged", st, len(logged(t, h.dir)["stdout"]))
	}
}

func TestBrokenOutputIsReported(t *testing.T) {
	h := hold(t, sh("while echo y; do :; done"), nil)
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	s.out.Close()
	_, err := c.Wait(t.Context(), nil)
	if !errors.Is(err, unix.EPIPE) {
		t.Errorf("Wait: %v, want EPIPE", err)
	}
	c.Close()
	var st State
	h.call(OpState, nil, &st)
	if st.Status != StatusRunning {
		t.Errorf("the container is %s", st.Status)
	}
	h.call(OpKill, KillArgs{}, nil)
}

// TestFullOutputIsReported: who has no room for the output is told so, and not that a pipe is broken.
func TestFullOutputIsReported(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	h := hold(t, sh("while echo y; do :; done"), nil)
	c, err := Attach(t.Context(), h.cfg.Socket, AttachArgs{Start: true}, IO{Stdout: full})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Wait(t.Context(), nil)
	if broken, ok := errors.AsType[*BrokenError](err); !ok || broken.Stream != "stdout" || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Wait: %v, want that there is no room", err)
	}
	h.call(OpKill, KillArgs{}, nil)
}

func TestTerminal(t *testing.T) {
	h := hold(t, sh("stty size; trap 'stty size; exit 0' WINCH; echo ready; while :; do read x; done"), func(c *Config) { c.TTY = true })
	s := newStreams(t, true)
	c := h.attach(AttachArgs{Start: true, Size: Size{24, 80}}, s)
	var waiting sync.WaitGroup
	var exit Exit
	var err error
	waiting.Go(func() { exit, err = c.Wait(t.Context(), nil) })
	var got bytes.Buffer
	buf := make([]byte, 256)
	for resized := false; ; {
		n, rerr := s.out.Read(buf)
		got.Write(buf[:n])
		if !resized && strings.Contains(got.String(), "ready") {
			resized = true
			c.Resize(Size{50, 132})
			io.WriteString(s.in, "\n")
		}
		if rerr != nil {
			break
		}
	}
	waiting.Wait()
	if err != nil || exit.Code != 0 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	text := strings.ReplaceAll(got.String(), "\r\n", "\n")
	if !strings.HasPrefix(text, "24 80\nready\n") || !strings.Contains(text, "50 132\n") {
		t.Errorf("terminal shows %q", text)
	}
}

func TestTerminalSignalKeys(t *testing.T) {
	h := hold(t, sh("echo ready; exec sleep 1000"), func(c *Config) { c.TTY = true })
	s := newStreams(t, true)
	c := h.attach(AttachArgs{Start: true}, s)
	go func() {
		io.ReadFull(s.out, make([]byte, len("ready\r\n")))
		io.WriteString(s.in, "\x03")
		io.Copy(io.Discard, s.out)
	}()
	if exit, err := c.Wait(t.Context(), nil); err != nil || exit.Code != 130 || exit.Signal != "SIGINT" {
		t.Errorf("Wait = %+v, %v, want SIGINT", exit, err)
	}
}

func TestStop(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		args   StopArgs
		signal string
		want   int
	}{
		"obeys":      {"trap 'exit 4' TERM; echo ready; while :; do sleep 0.01; done", StopArgs{Timeout: 60}, "", 4},
		"own signal": {"trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done", StopArgs{Timeout: 60}, "SIGUSR1", 5},
		"asked for":  {"trap 'exit 6' USR2; echo ready; while :; do sleep 0.01; done", StopArgs{Timeout: -1, Signal: "USR2"}, "SIGUSR1", 6},
		"killed":     {"trap '' TERM; echo ready; while :; do sleep 0.01; done", StopArgs{Timeout: 0}, "", 137},
	} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, sh(test.script), func(c *Config) { c.StopSignal = test.signal })
			s := newStreams(t, false)
			c := h.attach(AttachArgs{Start: true}, s)
			var waiting sync.WaitGroup
			var waited Exit
			waiting.Go(func() { waited, _ = c.Wait(t.Context(), nil) })
			s.out.Read(make([]byte, 10))
			var exit Exit
			h.call(OpStop, test.args, &exit)
			waiting.Wait()
			if exit.Code != test.want || waited.Code != test.want {
				t.Errorf("stop = %+v, wait = %+v, want %d", exit, waited, test.want)
			}
		})
	}
}

func TestPause(t *testing.T) {
	h := hold(t, sh("sleep 1000"), nil)
	h.call(OpStart, nil, nil)
	var st State
	h.call(OpPause, nil, &st)
	if st.Status != StatusPaused {
		t.Errorf("status = %s", st.Status)
	}
	if err := Call(t.Context(), h.cfg.Socket, OpExec, ExecArgs{Args: sh("true")}, nil); !isCode(err, CodeNotRunning) {
		t.Errorf("exec in a paused container: %v", err)
	}
	h.call(OpUnpause, nil, &st)
	if st.Status != StatusRunning {
		t.Errorf("status = %s", st.Status)
	}
	h.call(OpPause, nil, nil)
	var exit Exit
	h.call(OpStop, StopArgs{Timeout: 30}, &exit)
	if exit.Code != 143 {
		t.Errorf("stop of a paused container = %+v", exit)
	}
}

func isCode(err error, code string) bool {
	e, ok := errors.AsType[*control.Error](err)
	return ok && e.Code == code
}

func TestTop(t *testing.T) {
	h := hold(t, sh("sleep 1000 & exec sleep 2000"), nil)
	h.call(OpStart, nil, nil)
	var list []Proc
	for len(list) < 2 || list[0].Args[0] != "sleep" || list[1].Args[0] != "sleep" {
		h.call(OpTop, nil, &list)
	}
	init := h.runner.started().init.Pid()
	if len(list) != 2 || list[0].Pid != init || list[0].PPid != os.Getpid() || list[1].PPid != init || list[0].Args[1] != "2000" || list[1].Args[1] != "1000" {
		t.Errorf("top = %+v", list)
	}
}

// TestTopIsBounded: a command line may have megabytes, and a monitor's memory is the host's.
func TestTopIsBounded(t *testing.T) {
	h := hold(t, sh("sleep 1000; : "+strings.Repeat("x", 100_000)), nil)
	h.call(OpStart, nil, nil)
	var list []Proc
	for len(list) < 2 {
		h.call(OpTop, nil, &list)
	}
	if n := len(strings.Join(list[0].Args, " ")); n > maxCommand || n < maxCommand/2 {
		t.Errorf("a command line of %d bytes, want at most %d", n, maxCommand)
	}
}

func TestCannotStart(t *testing.T) {
	for name, remove := range map[string]bool{"kept": false, "removed": true} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, []string{"/nonexistent"}, func(c *Config) { c.Remove = remove })
			s := newStreams(t, false)
			c := h.attach(AttachArgs{Start: true}, s)
			if _, err := c.Wait(t.Context(), nil); !isCode(err, CodeNoCommand) {
				t.Errorf("Wait: %v, want %s", err, CodeNoCommand)
			}
			if out := readAll(t, s.out); out != "" {
				t.Errorf("output %q", out)
			}
			h.end()
			if _, err := os.Stat(h.dir); errors.Is(err, os.ErrNotExist) != remove {
				t.Errorf("directory: %v", err)
			}
			if st := h.state(); !remove && (st.Status != StatusExited || st.ExitCode != 127 || st.Error == "") {
				t.Errorf("state = %+v", st)
			}
		})
	}
}

func TestRemove(t *testing.T) {
	h := hold(t, sh("exit 9"), func(c *Config) { c.Remove = true })
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	exit, err := c.Wait(t.Context(), nil)
	if _, serr := os.Stat(h.dir); err != nil || exit.Code != 9 || !errors.Is(serr, os.ErrNotExist) {
		t.Errorf("Wait = %+v, %v; directory: %v, want it gone by now", exit, err, serr)
	}
	h.end()
	if left, _ := os.ReadDir(filepath.Dir(h.dir)); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestNotRunning(t *testing.T) {
	h := hold(t, sh("true"), nil)
	for op, args := range map[string]any{
		OpKill: KillArgs{}, OpStop: StopArgs{}, OpPause: nil, OpTop: nil, OpResize: Size{}, OpAttach: AttachArgs{}, OpExec: ExecArgs{Args: sh("true")},
	} {
		if err := Call(t.Context(), h.cfg.Socket, op, args, nil); !isCode(err, CodeNotRunning) {
			t.Errorf("%s before the start: %v, want %s", op, err, CodeNotRunning)
		}
	}
	for op, args := range map[string]any{"nonsense": nil, OpKill: KillArgs{"SIGNONSENSE"}, OpExec: ExecArgs{}, OpAttach: AttachArgs{Streams: Streams{Stdout: true}}} {
		if err := Call(t.Context(), h.cfg.Socket, op, args, nil); err == nil || isCode(err, CodeNotRunning) {
			t.Errorf("%s %+v: %v, want an error about the request", op, args, err)
		}
	}
	h.call(OpRelease, nil, nil)
	if err := h.end(); err != nil {
		t.Error(err)
	}
	if st := h.state(); st.Status != StatusCreated {
		t.Errorf("status = %s", st.Status)
	}
}

func TestStartedOnce(t *testing.T) {
	h := hold(t, sh("sleep 1000"), nil)
	h.call(OpStart, nil, nil)
	if err := Call(t.Context(), h.cfg.Socket, OpStart, nil, nil); !isCode(err, CodeRunning) {
		t.Errorf("second start: %v", err)
	}
	if err := Call(t.Context(), h.cfg.Socket, OpRelease, nil, nil); !isCode(err, CodeRunning) {
		t.Errorf("release of a running container: %v", err)
	}
	if !Alive(h.dir) {
		t.Error("Alive = false")
	}
	h.call(OpKill, KillArgs{"9"}, nil)
	h.end()
	if Alive(h.dir) {
		t.Error("Alive = true after the end")
	}
}

// Somebody who waits when the container ends, and somebody who is attached
// from the middle on, learn the same.
func TestLateAttachAndWait(t *testing.T) {
	h := hold(t, sh("echo before; read x; echo after $x; exit 2"), func(c *Config) { c.OpenStdin = true })
	first := newStreams(t, false)
	c1 := h.attach(AttachArgs{Start: true}, first)
	var waiting sync.WaitGroup
	exits := make([]Exit, 3)
	waiting.Go(func() { exits[0], _ = c1.Wait(t.Context(), nil) })
	io.ReadFull(first.out, make([]byte, len("before\n")))
	waiting.Go(func() { Call(t.Context(), h.cfg.Socket, OpWait, nil, &exits[1]) })
	second := newStreams(t, true)
	c2 := h.attach(AttachArgs{}, second)
	waiting.Go(func() {
		exits[2], _ = c2.Wait(t.Context(), func(Event) { go io.WriteString(second.in, "word\n") })
	})
	if got := readAll(t, second.out); got != "after word\n" {
		t.Errorf("second client got %q", got)
	}
	if got := readAll(t, first.out); got != "after word\n" {
		t.Errorf("first client got %q", got)
	}
	waiting.Wait()
	if exits[0].Code != 2 || exits[2].Code != 2 {
		t.Errorf("exits = %+v", exits)
	}
}

// A background child that keeps the pipe open does not keep the container alive.
func TestGrandchildKeepsPipe(t *testing.T) {
	h := hold(t, sh("sleep 1000 & echo hi; exit 0"), nil)
	s := newStreams(t, false)
	c := h.attach(AttachArgs{Start: true}, s)
	if exit, err := c.Wait(t.Context(), nil); err != nil || exit.Code != 0 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	if got := readAll(t, s.out); got != "hi\n" {
		t.Errorf("output %q", got)
	}
}

func TestRestartAfterTheEnd(t *testing.T) {
	h := hold(t, sh("echo again; exit 1"), nil)
	h.call(OpStart, nil, nil)
	h.end()
	again := &held{t: t, dir: h.dir, cfg: h.cfg, runner: &fakeRunner{}, result: make(chan error, 1)}
	again.start()
	if st := again.state(); st.Status != StatusExited || st.ExitCode != 1 {
		t.Errorf("state before the second start = %+v", st)
	}
	again.call(OpStart, nil, nil)
	again.end()
	if got := logged(t, h.dir)["stdout"]; got != "again\nagain\n" {
		t.Errorf("log = %q", got)
	}
}

// TestJoined: a monitor tells what it has been given.
func TestJoined(t *testing.T) {
	h := hold(t, []string{"true"}, nil)
	file, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for i, kinds := range [][]string{{}, {"network"}, {}, {"network", "ipc"}} {
		if i > 0 {
			files := []*os.File{file, file}[:len(kinds)]
			if err := Join(t.Context(), h.cfg.Socket, JoinArgs{Kinds: kinds}, files); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := Joined(t.Context(), h.cfg.Socket); err != nil || !slices.Equal(got, kinds) {
			t.Errorf("it has %v, %v; want %v", got, err, kinds)
		}
	}
}

// TestUnconnected: what was not given the namespaces that it is to be in does not start.
func TestUnconnected(t *testing.T) {
	some := []Namespace{{Kind: "network"}, {Kind: "ipc"}}
	for name, row := range map[string]struct {
		cfg   Config
		joins []Namespace
		want  string
	}{
		"none":       {Config{Network: control.NetworkConfig{Mode: control.NetworkNone}}, nil, ""},
		"host":       {Config{Network: control.NetworkConfig{Mode: control.NetworkHost}}, nil, ""},
		"unknown":    {Config{}, nil, ""},
		"connected":  {Config{Network: control.NetworkConfig{Mode: control.NetworkBridge}}, some[:1], ""},
		"bridge":     {Config{Network: control.NetworkConfig{Mode: control.NetworkBridge}}, nil, "network bridge"},
		"plugins":    {Config{Network: control.NetworkConfig{Mode: control.NetworkPlugins}}, some[1:], "network cni"},
		"another's":  {Config{Network: control.NetworkConfig{Mode: control.NetworkShared}}, nil, "network container"},
		"its ipc":    {Config{Joins: map[string]string{"ipc": "x"}}, some[:1], "that of container x"},
		"has an ipc": {Config{Joins: map[string]string{"ipc": "x"}}, some, ""},
	} {
		b := &bundled{joins: row.joins}
		err := b.complete(&row.cfg)
		if (err == nil) != (row.want == "") || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want %q", name, err, row.want)
		}
	}
}

package monitor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
)

func TestParseReady(t *testing.T) {
	for text, want := range map[string]string{ // part of the error; "" for none
		"":                          "",
		"line=ready":                "",
		"line=a=b":                  "",
		"line=^(a+)+$":              "",
		"line=":                     "want line=REGEX",
		"line":                      "want line=REGEX",
		"line=(":                    "missing closing )",
		"line=((a{100}){100}){100}": "invalid repeat count",
		"line=" + strings.Repeat("a", maxPattern+1): "want at most 1024",
		"port=80":         "",
		"port=65535":      "",
		"port=0":          "want a port from 1 to 65535",
		"port=65536":      "want a port",
		"port=-1":         "want a port",
		"port=http":       "want a port",
		"port=":           "want a port",
		"file=/run/ready": "",
		"file=run/ready":  "want an absolute path",
		"file=/":          "want an absolute path",
		"file=/a/..":      "want an absolute path",
		"file=/a\x00b":    "want an absolute path",
		"file=":           "want an absolute path",
		"tcp=80":          "want line=REGEX, port=NUMBER or file=PATH",
		"80":              "want line=REGEX",
		"=":               "want line=REGEX",
	} {
		err := ParseReady(text)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("ParseReady(%.60q): %v, want %q", text, err, want)
		}
	}
}

func FuzzParseReady(f *testing.F) {
	for _, s := range []string{"line=^x{2,3}$", "port=80", "file=/../x", "=", "line=(?i:a|b)*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseReady(s)
		if err == nil && c.none() != (s == "") || c.file != "" && !filepath.IsAbs(c.file) {
			t.Errorf("parseReady(%q) = %+v, %v", s, c, err)
		}
	})
}

// waitReady waits for the container to be ready, or to end.
func (h *held) waitReady() State {
	h.t.Helper()
	s, err := WaitReady(h.t.Context(), h.cfg.Socket, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

// isReady checks that a container became ready by something while it ran, and
// that this is on disk.
func (h *held) isReady(s State, by string) {
	h.t.Helper()
	if s.ReadyBy != by || s.Ready.Before(s.Started) || s.Status != StatusRunning {
		h.t.Errorf("state = %+v, want one that is ready by %q", s, by)
	}
	if got := h.state(); got.ReadyBy != by || !got.Ready.Equal(s.Ready) {
		h.t.Errorf("recorded: %+v", got)
	}
}

func TestReadyByLine(t *testing.T) {
	for name, test := range map[string]struct {
		script string
		tty    bool
	}{
		"stdout":        {"echo one; echo is ready; read x", false},
		"stderr":        {"echo one >&2; echo is ready >&2; read x", false},
		"terminal":      {"echo one; echo is ready; read x", true},
		"in pieces":     {"printf 'is re'; echo >&2; echo ady; read x", false},
		"after a long":  {"head -c 100000 /dev/zero; echo; echo is ready; read x", false},
		"a long one":    {"printf 'is ready'; head -c 100000 /dev/zero; echo; read x", false},
		"last, unended": {"echo one; printf 'is ready'; exec >&-; read x", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, sh(test.script), func(c *Config) { c.Ready, c.TTY, c.OpenStdin = "line=^is ready", test.tty, true })
			h.call(OpStart, nil, nil)
			h.isReady(h.waitReady(), ReadyByLine)
		})
	}
}

// What a line's end matches, and what of a long one is looked at.
func TestLineWatch(t *testing.T) {
	for name, test := range map[string]struct {
		pattern string
		writes  []string
		want    bool
	}{
		"whole line":          {"^ready$", []string{"not ready\nready\n"}, true},
		"of a terminal":       {"^ready$", []string{"ready\r\n"}, true},
		"no newline":          {"ready", []string{"rea", "dy"}, true}, // at the end
		"not across lines":    {"a.*b", []string{"a\n", "b\n"}, false},
		"byte by byte":        {"^ready$", strings.Split("x\nready\n", ""), true},
		"beyond the limit":    {"ready$", []string{strings.Repeat("x", maxLine), "ready\n"}, false},
		"up to the limit":     {"ready$", []string{strings.Repeat("x", maxLine-5), "ready", "\n"}, true},
		"in one beyond":       {"ready$", []string{strings.Repeat("x", maxLine) + "ready\n"}, false},
		"after one beyond":    {"^ready$", []string{strings.Repeat("x", 3*maxLine), strings.Repeat("y", 3*maxLine) + "\nready\n"}, true},
		"empty lines":         {"^$", []string{"\n"}, true},
		"a bomb elsewhere":    {"^(a+)+$", []string{strings.Repeat("a", maxLine-1) + "b\n"}, false},
		"not UTF-8":           {"^\\xff", []string{"\xff\n"}, false}, // the pattern means U+00FF
		"nothing was written": {"^$", nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := parseReady("line=" + test.pattern)
			if err != nil {
				t.Fatal(err)
			}
			w := newLineWatch(c.line)
			s := lineScan{w: w}
			for _, p := range test.writes {
				s.write([]byte(p))
				if len(s.rest) > maxLine {
					t.Errorf("%d bytes are kept", len(s.rest))
				}
			}
			s.end()
			if w.hit() != test.want {
				t.Errorf("hit = %t, want %t", w.hit(), test.want)
			}
			s.write([]byte("more"))
			if test.want && s.rest != nil {
				t.Error("it goes on looking")
			}
		})
	}
}

func BenchmarkLineScan(b *testing.B) {
	c, err := parseReady("line=ready to accept")
	if err != nil {
		b.Fatal(err)
	}
	p := []byte(strings.Repeat("a line of about forty characters, or so\n", 100))
	for name, seen := range map[string]bool{"looking": false, "seen": true} {
		b.Run(name, func(b *testing.B) {
			w := newLineWatch(c.line)
			s := lineScan{w: w}
			if seen {
				s.write([]byte("ready to accept\n"))
			}
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				s.write(p)
			}
		})
	}
}

func TestReadyByFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ready")
	h := hold(t, sh("read x"), func(c *Config) { c.Ready, c.OpenStdin = "file="+file, true })
	h.call(OpStart, nil, nil)
	var st State
	if h.call(OpState, nil, &st); !st.Ready.IsZero() {
		t.Errorf("state = %+v: the file is not there yet", st)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.isReady(h.waitReady(), ReadyByFile)
}

// The path is the container's, whatever links there are: none leads out of it.
func TestReadyByFileInARealContainer(t *testing.T) {
	h := holdReal(t, func(c *Config) { c.Ready = "file=/run/links/ready" }, "wait")
	if h.cfg.Rootfs.Lower == nil {
		t.Fatal("no root file system")
	}
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lower := h.cfg.Rootfs.Lower[0]
	if err := os.MkdirAll(filepath.Join(lower, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{
		"abs": outside, "up": "../../../../../../../.." + outside, "magic": "/proc/1/root" + outside, "fd": "/proc/self/fd/0", "cwd": "/proc/self/cwd",
		"loop": "loop", "dangling": "/nothing", "good": "/inside", "root": "/", "links": "/real", "real/ready": "../../../made",
	} {
		at := filepath.Join(lower, "run", name)
		if strings.HasPrefix(name, "real/") {
			at = filepath.Join(lower, name)
		}
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, at); err != nil {
			t.Fatal(err)
		}
	}
	h.call(OpStart, nil, nil)
	s := h.state()
	p, err := openProc(s.Pid, s.PidStart)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	for path, want := range map[string]bool{
		"/inside": true, "/run": true, "/run/good": true, "/run/root": true, "/../../inside": true, "/run/../inside": true, "/dev/null": true, "/proc/1/stat": true,
		outside: false, "/run/abs": false, "/run/up": false, "/run/magic": false, "/run/fd": false, "/run/cwd": false, "/run/loop": false, "/run/dangling": false,
		"/inside/": false, "/inside/x": false, "/run/links/ready": false, "/" + strings.Repeat("x", 300): false, "/" + strings.Repeat("x/", 3000): false,
	} {
		if got := p.exists(path); got != want {
			t.Errorf("exists(%.80q) = %t, want %t", path, got, want)
		}
	}
	x := newStreams(t, false)
	if exit, err := h.exec(ExecArgs{Args: []string{"/inside", "write", "/made", "yes"}}, x).Wait(t.Context(), nil); err != nil || exit.Code != 0 {
		t.Fatalf("exec = %+v, %v: %s", exit, err, readAll(t, x.err))
	}
	h.isReady(h.waitReady(), ReadyByFile)
	h.call(OpKill, KillArgs{}, nil)
	h.end()
	if p.exists("/inside") {
		t.Error("a container that has ended has files")
	}
}

// On the host's network, somebody else who listens at the port does not count.
func TestReadyByPortOnTheHostsNetwork(t *testing.T) {
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(addr, func(t *testing.T) {
			program, err := inside()
			if err != nil {
				t.Fatal(err)
			}
			other, err := net.Listen("tcp", addr)
			if err != nil {
				t.Skip("needs the address: ", err)
			}
			defer other.Close()
			port := uint16(other.Addr().(*net.TCPAddr).Port)
			h := hold(t, []string{program, "wait"}, nil)
			h.call(OpStart, nil, nil)
			s := h.state()
			p, err := openProc(s.Pid, s.PidStart)
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			if p.listens(port) {
				t.Error("the port of a process that is not the container's made it ready")
			}
			x := newStreams(t, false)
			other.Close()
			h.exec(ExecArgs{Args: []string{program, "listen", strings.Replace(addr, ":0", fmt.Sprintf(":%d", port), 1)}}, x)
			x.out.Read(make([]byte, 10)) // it listens now
			if !p.listens(port) {
				t.Error("the container's own port does not count")
			}
			if p.listens(port ^ 1) {
				t.Error("another port counts")
			}
			h.call(OpKill, KillArgs{}, nil)
		})
	}
}

func TestReadyByPortInItsOwnNetwork(t *testing.T) {
	h := holdReal(t, func(c *Config) {
		c.Ready = "port=8080"
		c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}, "listen", "127.0.0.1:8080")
	h.call(OpStart, nil, nil)
	h.isReady(h.waitReady(), ReadyByPort)
	h.call(OpKill, KillArgs{}, nil)
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

func TestListeners(t *testing.T) {
	table := `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0000000000000000 100 0 0 10 0
   1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0000000000000000 100 0 0 10 0
   2: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0000000000000000 100 0 0 10 0
   3: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 4714 1 0000000000000000 20 4 30 10 -1
`
	for port, want := range map[uint16]string{8080: "[4711 4713]", 80: "[4712]", 0x1f9: "[]", 0xa000: "[]"} {
		if got := fmt.Sprint(listeners(strings.NewReader(table), port)); got != want {
			t.Errorf("listeners(%d) = %s, want %s", port, got, want)
		}
	}
	for _, text := range []string{"", "\n", "x\n:1F90 0A\n", "x\na b c 0A\n"} {
		if got := listeners(strings.NewReader(text), 8080); len(got) != 0 {
			t.Errorf("listeners of %q = %q", text, got)
		}
	}
}

func TestDiesBeforeReady(t *testing.T) {
	for name, test := range map[string]struct {
		ready, script string
		by            string
	}{
		"no line":               {"line=ready", "echo nearly; exit 3", ""},
		"line as last words":    {"line=ready", "echo ready; exit 3", ReadyByLine},
		"unended last words":    {"line=ready", "printf ready; exit 3", ReadyByLine},
		"no port":               {"port=1", "exit 3", ""},
		"no file":               {"file=/nonexistent/ready", "exit 3", ""},
		"nothing was asked for": {"", "exit 3", ReadyByExit},
	} {
		t.Run(name, func(t *testing.T) {
			h := hold(t, sh(test.script), func(c *Config) { c.Ready = test.ready })
			ready := make(chan State, 1)
			begun := make(chan struct{})
			go func() {
				close(begun)
				s, _ := WaitReady(context.WithoutCancel(t.Context()), h.cfg.Socket, nil)
				ready <- s
			}()
			<-begun
			s := newStreams(t, false)
			if exit, err := h.attach(AttachArgs{Start: true}, s).Wait(t.Context(), nil); err != nil || exit.Code != 3 {
				t.Fatalf("Wait = %+v, %v", exit, err)
			}
			h.end()
			got := h.state()
			if got.ReadyBy != test.by || got.Ready.IsZero() != (test.by == "") || got.Ready.After(got.Finished) {
				t.Errorf("state = %+v, want it ready by %q", got, test.by)
			}
			if told := <-ready; told.Status != "" && (told.Status == StatusExited && told.ReadyBy != test.by) { // it may have asked when all was over
				t.Errorf("told: %+v", told)
			}
		})
	}
}

// One who cannot be started is never ready, and nobody waits for it.
func TestNeverReady(t *testing.T) {
	h := hold(t, []string{"/nonexistent"}, nil)
	begun := make(chan State, 1)
	conn, err := control.Dial(t.Context(), h.cfg.Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Begin(OpWaitReady, nil); err != nil {
		t.Fatal(err)
	}
	go func() {
		var s State
		if _, err := conn.Finish(&s, nil); err != nil { // it came too late, and looks at what is recorded
			s, _ = LoadState(h.dir)
		}
		begun <- s
	}()
	Call(t.Context(), h.cfg.Socket, OpStart, nil, nil)
	if s := <-begun; s.Status != StatusExited || !s.Ready.IsZero() || s.ExitCode != 127 {
		t.Errorf("told: %+v", s)
	}
}

func TestReadyByQuiet(t *testing.T) {
	h := hold(t, sh("read x"), func(c *Config) { c.OpenStdin = true })
	if err := Call(t.Context(), h.cfg.Socket, OpQuiet, QuietArgs{At: now()}, nil); !isCode(err, CodeNotRunning) {
		t.Errorf("quiet before the start: %v", err)
	}
	h.call(OpStart, nil, nil)
	started := h.state().Started
	var s State
	h.call(OpQuiet, QuietArgs{At: started.Add(-time.Hour)}, &s) // another clock, or a lie
	if !s.Ready.Equal(started) {
		t.Errorf("state = %+v, want it ready at its start", s)
	}
	h.call(OpQuiet, QuietArgs{At: started.Add(time.Hour)}, nil) // the first counts
	h.isReady(h.waitReady(), ReadyByQuiet)
	own := hold(t, sh("read x"), func(c *Config) { c.OpenStdin, c.Ready = true, "line=x" })
	own.call(OpStart, nil, nil)
	if err := Call(t.Context(), own.cfg.Socket, OpQuiet, QuietArgs{At: now()}, nil); !isCode(err, control.CodeInvalid) {
		t.Errorf("quiet of one that tells itself: %v", err)
	}
}

// A container that is started again is not ready because it was.
func TestReadyAgain(t *testing.T) {
	h := hold(t, sh("echo ready; read x"), func(c *Config) { c.Ready = "line=ready" })
	h.call(OpStart, nil, nil)
	h.end()
	first := h.state()
	h.cfg.Spec.Process.Args = sh("exit 0")
	if err := h.cfg.Save(h.dir); err != nil {
		t.Fatal(err)
	}
	again := &held{t: t, dir: h.dir, cfg: h.cfg, runner: &fakeRunner{}, result: make(chan error, 1)}
	again.start()
	again.call(OpStart, nil, nil)
	again.end()
	if s := again.state(); first.ReadyBy != ReadyByLine || !s.Ready.IsZero() {
		t.Errorf("first %+v, then %+v", first, s)
	}
}

func TestPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		calls := 0
		at := begun.Add(10 * time.Second)
		if !poll(t.Context(), func() bool { calls++; return !time.Now().Before(at) }) {
			t.Error("poll = false")
		}
		if late := time.Since(at); late > pollMax || calls > 250 {
			t.Errorf("%v late, after %d calls", late, calls)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		calls = 0
		if poll(ctx, func() bool { calls++; return false }) || calls > 4*3600+200 {
			t.Errorf("poll = true, or %d calls in an hour", calls)
		}
	})
}

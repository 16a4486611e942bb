package main

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// logLines writes lines in the json-file format, a second apart, beginning at noon and from; those that begin with "!" to stderr.
func logLines(t *testing.T, from int, lines ...string) string {
	t.Helper()
	var text strings.Builder
	for i, line := range lines {
		stream := "stdout"
		if s, ok := strings.CutPrefix(line, "!"); ok {
			line, stream = s, "stderr"
		}
		b, err := json.Marshal(map[string]any{"log": line, "stream": stream, "time": noon.Add(time.Duration(from+i) * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		text.Write(append(b, '\n'))
	}
	return text.String()
}

// newLogDir makes the directory of a container whose log has the files, oldest
// first, and a daemon that knows it.
func newLogDir(t *testing.T, row control.Container, files ...string) (dir string, d *fakeDaemon) {
	t.Helper()
	dir = t.TempDir()
	for i, text := range files {
		if err := os.WriteFile(filepath.Join(dir, monitor.RotatedLog(monitor.LogFile, len(files)-1-i)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir, newDaemon(t, map[string]func(*control.Request) error{
		control.OpLogs: func(r *control.Request) error {
			f, err := os.OpenFile(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			return r.Reply(row, f)
		},
	})
}

func TestLogs(t *testing.T) {
	lines := []string{"one\n", "!two\n", "par", "tial\n", "last\n"}
	const torn = `{"log":"torn`
	for name, files := range map[string][]string{
		"one file":       {logLines(t, 0, lines...) + torn},
		"three files":    {logLines(t, 0, lines[:2]...), logLines(t, 2, lines[2:3]...), logLines(t, 3, lines[3:]...) + torn},
		"torn elsewhere": {logLines(t, 0, lines[:2]...) + torn, logLines(t, 2, lines[2:]...)},
		"an empty one":   {logLines(t, 0, lines...), ""},
	} {
		_, d := newLogDir(t, control.Container{Name: "box"}, files...)
		for _, test := range []struct{ args, stdout, stderr string }{
			{"logs box", "one\npartial\nlast\n", "two\n"},
			{"logs -f box", "one\npartial\nlast\n", "two\n"}, // it has ended
			{"logs --tail 1 box", "last\n", ""},
			{"logs -n 3 box", "partial\nlast\n", ""},
			{"logs -n 4 box", "partial\nlast\n", "two\n"},
			{"logs --tail 99 box", "one\npartial\nlast\n", "two\n"},
			{"logs --tail 0 box", "", ""},
			{"logs --since 2026-11-24T12:00:04Z box", "last\n", ""},
			{"logs --until 2026-11-24T12:00:00Z box", "one\n", ""},
			{"logs -t --tail 1 box", "2026-11-24T12:00:04.000000000Z last\n", ""},
		} {
			env, out, errs := newEnv(t, d.socket)
			if status := env.main(strings.Fields(test.args)); status != 0 || out() != test.stdout || errs() != test.stderr {
				t.Errorf("%s: %s: exit status %d, stdout %q, want %q, stderr %q, want %q", name, test.args, status, out(), test.stdout, errs(), test.stderr)
			}
		}
	}
}

func TestLogsOfNothing(t *testing.T) {
	_, d := newLogDir(t, control.Container{Name: "box"})
	env, out, errs := newEnv(t, d.socket)
	if status := env.main([]string{"logs", "-f", "box"}); status != 0 || out()+errs() != "" {
		t.Errorf("exit status %d, %q, %q", status, out(), errs())
	}
}

// Whoever follows a log follows it over rotations, and misses nothing that is
// there when they look.
func TestLogsFollow(t *testing.T) {
	for name, keep := range map[string]bool{"several files": true, "one file": false} {
		t.Run(name, func(t *testing.T) { testLogsFollow(t, keep) })
	}
}

func testLogsFollow(t *testing.T, keep bool) {
	ended := make(chan struct{})
	end := sync.OnceFunc(func() { close(ended) })
	defer end()
	m := newDaemon(t, map[string]func(*control.Request) error{monitor.OpWait: func(r *control.Request) error {
		<-ended
		return r.Reply(monitor.Exit{})
	}})
	dir, d := newLogDir(t, control.Container{Name: "box", Status: monitor.StatusRunning, Socket: m.socket}, logLines(t, 0, "one\n"))
	path := filepath.Join(dir, monitor.LogFile)
	appendTo := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	rotate := func() { // as runtime/monitor does it
		t.Helper()
		if keep {
			os.Rename(path+".1", path+".2")
			if err := os.Link(path, path+".1"); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(path+".new", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	env, _, _ := newEnv(t, d.socket)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	env.Stdout = w
	var following sync.WaitGroup
	status := -1
	following.Go(func() {
		defer w.Close()
		status = env.main([]string{"logs", "-f", "box"})
	})
	out := bufio.NewScanner(r)
	next := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if !out.Scan() || out.Text() != w {
				t.Fatalf("got %q, want %q", out.Text(), w)
			}
		}
	}
	next("one")
	appendTo(logLines(t, 2, "two\n"))
	next("two")
	appendTo(logLines(t, 3, "three\n"))
	rotate()
	appendTo(logLines(t, 4, "four\n"))
	next("three", "four")
	if keep {
		rotate() // twice before anybody looks, perhaps
		appendTo(logLines(t, 5, "five\n"))
	}
	rotate()
	appendTo(logLines(t, 6, "six\n"))
	if keep {
		next("five")
	}
	next("six")
	rotate()
	appendTo(logLines(t, 7, "last words\n"))
	end()
	next("last words")
	if out.Scan() {
		t.Errorf("more: %q", out.Text())
	}
	following.Wait()
	if status != 0 {
		t.Errorf("exit status %d", status)
	}
}

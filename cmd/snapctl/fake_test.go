package main

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
)

// newEnv returns an Env that talks to the socket, and functions that end its output and return it.
func newEnv(t *testing.T, socket string) (env *Env, stdout, stderr func() string) {
	t.Helper()
	file := func(name string) (*os.File, func() string) {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f, func() string {
			b, err := os.ReadFile(f.Name())
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	env = &Env{Stdin: null, Getenv: func(string) string { return "" }, NoAutostart: true}
	if socket != "" {
		env.Host = "unix://" + socket
	}
	env.Stdout, stdout = file("stdout")
	env.Stderr, stderr = file("stderr")
	return env, stdout, stderr
}

// A fakeDaemon answers requests with functions by operation, and remembers what was asked.
type fakeDaemon struct {
	socket string
	ops    map[string]func(*control.Request) error

	mu    sync.Mutex
	asked []string // "op args"
}

func newDaemon(t *testing.T, ops map[string]func(*control.Request) error) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{socket: filepath.Join(t.TempDir(), "s"), ops: ops}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		(&control.Server{Handle: d.handle}).Serve(ctx, l)
	})
	t.Cleanup(func() { cancel(); serving.Wait(); l.Close() })
	return d
}

func (d *fakeDaemon) handle(_ context.Context, r *control.Request) error {
	d.mu.Lock()
	d.asked = append(d.asked, r.Op+" "+string(r.Args))
	op := d.ops[r.Op]
	d.mu.Unlock()
	if op == nil {
		return &control.Error{Code: control.CodeNotFound, Message: "no such thing"}
	}
	return op(r)
}

func (d *fakeDaemon) requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.asked...)
}

// answer is an operation with a fixed result.
func answer(v any) func(*control.Request) error {
	return func(r *control.Request) error { return r.Reply(v) }
}

// pipeIn gives env a standard input with text in it.
func pipeIn(t *testing.T, env *Env, text string) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	go func() {
		io.WriteString(w, text)
		w.Close()
	}()
	env.Stdin = r
}

// pipe returns a pipe that the test closes at its end.
func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, w
}

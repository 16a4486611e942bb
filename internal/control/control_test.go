package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T, handle func(context.Context, *Request) error) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&Server{Handle: handle}).Serve(ctx, l)
	}()
	t.Cleanup(func() { cancel(); <-done; l.Close() })
	return path
}

func TestCallCarriesEventsResultAndDescriptors(t *testing.T) {
	path := serve(t, func(ctx context.Context, r *Request) error {
		for i := range 3 {
			if err := r.Event(i); err != nil {
				return err
			}
		}
		f, err := os.Open(os.DevNull)
		if err != nil {
			return err
		}
		defer f.Close()
		return r.Reply(string(r.Args), f, f)
	})
	events := 0
	var got string
	files, err := Call(t.Context(), path, "echo", []int{1, 2}, &got, func(json.RawMessage) { events++ })
	if err != nil || got != "[1,2]" || events != 3 || len(files) != 2 {
		t.Fatalf("Call = %q, %d events, %d files, %v", got, events, len(files), err)
	}
	for _, f := range files {
		if fi, err := f.Stat(); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("received descriptor: %v, %v", fi, err)
		}
		f.Close()
	}
}

func TestErrorsKeepTheirCode(t *testing.T) {
	path := serve(t, func(ctx context.Context, r *Request) error {
		return &Error{CodeNotFound, "no such image: x"}
	})
	_, err := Call(t.Context(), path, "x", nil, nil, nil)
	if e, ok := errors.AsType[*Error](err); !ok || e.Code != CodeNotFound || e.Message != "no such image: x" {
		t.Fatalf("Call: %#v", err)
	}
}

func TestHandlerLearnsThatTheClientHungUp(t *testing.T) {
	gone := make(chan struct{})
	path := serve(t, func(ctx context.Context, r *Request) error {
		r.Event("started")
		<-ctx.Done()
		close(gone)
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Call(ctx, path, "wait", nil, nil, func(json.RawMessage) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("Call: %v", err)
	}
	<-gone
}

func TestHostileFrames(t *testing.T) {
	path := serve(t, func(context.Context, *Request) error { t.Error("handler ran"); return nil })
	for name, frame := range map[string]string{
		"too long":   "\xff\xff\xff\xff{}",
		"not JSON":   "\x00\x00\x00\x02[]",
		"truncated":  "\x00\x00\x00\x09{}",
		"from later": "\x00\x00\x00\x08{\"v\":99}"[:4] + `{"v":99}`,
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, frame)
			c.(*net.UnixConn).CloseWrite()
			answer, _ := io.ReadAll(c)
			if name == "from later" != strings.Contains(string(answer), "protocol 99") {
				t.Errorf("answer %q", answer)
			}
		})
	}
}

// A server that ends while a request lies unread resets the connection.
func TestServerThatEndsUnread(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Read(make([]byte, 1)) // there is more
			c.Close()
		}
	}()
	if _, err := Call(t.Context(), path, "x", []int{1, 2, 3}, nil, nil); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Call: %v, want io.ErrUnexpectedEOF", err)
	}
}

// A client that asks and then reads nothing must not keep the server from ending.
func TestServerEndsWithoutItsReaders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	full, ended := make(chan struct{}), make(chan struct{})
	s := &Server{lastWords: time.Millisecond, Handle: func(ctx context.Context, r *Request) error {
		block := strings.Repeat("x", 1<<20) // more than a socket holds
		close(full)
		for {
			if err := r.Event(block); err != nil {
				return err
			}
		}
	}}
	go func() { defer close(ended); s.Serve(ctx, l) }()
	c, err := Dial(ctx, path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Begin("talk", nil); err != nil {
		t.Fatal(err)
	}
	<-full
	cancel()
	<-ended
}

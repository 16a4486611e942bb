package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/snapfs/snapfs/runtime/monitor"
)

// A session says how this terminal, or what stands in its place, is connected to a process in a container.
type session struct {
	tty        bool // the process has a terminal
	stdin      bool
	detachKeys []byte
	sigProxy   bool
	begin      func(context.Context, monitor.IO, monitor.Size) (*monitor.Attached, error)
}

// errDetached says that the user typed the detach keys.
var errDetached = errors.New("detached")

// run connects and stays until the process's end. With a terminal on both sides,
// this one is raw meanwhile, and is restored on every way out.
func (s *session) run(ctx context.Context, env *Env) (monitor.Exit, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // signals are for the process
	defer cancel()
	streams := monitor.IO{Stdout: env.Stdout}
	if !s.tty {
		streams.Stderr = env.Stderr
	}
	var detached atomic.Bool
	if s.stdin {
		streams.Stdin = env.Stdin
		if s.tty && len(s.detachKeys) > 0 {
			streams.Stdin = &detachReader{r: env.Stdin, keys: s.detachKeys, detach: func() { detached.Store(true); cancel() }}
		}
	}
	restore := func() {}
	if s.tty && terminal(env.Stdin) {
		old, err := term.MakeRaw(int(env.Stdin.Fd()))
		if err != nil {
			return monitor.Exit{}, fmt.Errorf("terminal: %w", err)
		}
		restore = func() { term.Restore(int(env.Stdin.Fd()), old) }
	}
	defer restore()

	c, err := s.begin(ctx, streams, env.size())
	if err != nil {
		return monitor.Exit{}, err
	}
	defer c.Close()
	caught := make(chan os.Signal, 32)
	signal.Notify(caught, s.signals()...)
	defer signal.Stop(caught)
	var killed atomic.Int32
	var forwarding sync.WaitGroup
	defer forwarding.Wait()
	finished := make(chan struct{})
	defer close(finished)
	forwarding.Go(func() {
		s.forward(env, c, caught, finished, func(n unix.Signal) { killed.Store(int32(n)); cancel() })
	})

	exit, err := c.Wait(ctx, nil)
	switch {
	case detached.Load():
		return exit, errDetached
	case killed.Load() != 0:
		return exit, &exitError{status: 128 + int(killed.Load())}
	case errors.Is(err, unix.EPIPE):
		return exit, &exitError{128 + int(unix.SIGPIPE), &silent{err}}
	}
	return exit, err
}

// size is that of this terminal; zero if there is none.
func (env *Env) size() (z monitor.Size) {
	if w, h, err := term.GetSize(int(env.Stdout.Fd())); err == nil {
		z.Height, z.Width = uint16(h), uint16(w)
	}
	return z
}

// signals are those that a session handles. Those of job control are left to
// do their work on snapctl itself.
func (s *session) signals() []os.Signal {
	list := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT}
	if s.tty {
		return append(list, syscall.SIGWINCH)
	}
	if s.sigProxy {
		list = append(list, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGALRM, syscall.SIGIO, syscall.SIGPWR, syscall.SIGXCPU)
	}
	return list
}

// forward passes signals and sizes on. A signal that is not for the process
// ends snapctl, and so does the third of a user who insists.
func (s *session) forward(env *Env, c *monitor.Attached, caught <-chan os.Signal, finished <-chan struct{}, quit func(unix.Signal)) {
	insisting := 0
	for {
		select {
		case <-finished:
			return
		case sig := <-caught:
			n, ok := sig.(syscall.Signal)
			if !ok {
				continue
			}
			if n == syscall.SIGWINCH {
				c.Resize(env.size())
				continue
			}
			if n == syscall.SIGINT || n == syscall.SIGTERM {
				insisting++
			}
			if s.tty || !s.sigProxy || insisting == 3 || c.Signal(n) != nil {
				quit(n)
			}
		}
	}
}

// A detachReader reads a terminal and notices the detach keys. Keys that might
// begin the sequence are held back until they do not.
type detachReader struct {
	r      io.Reader
	keys   []byte
	seen   int // keys of the sequence that were typed so far
	detach func()
}

func (d *detachReader) Read(p []byte) (int, error) {
	for {
		in := p
		if len(in) > len(d.keys) { // leave room for what was held back
			in = p[:len(p)-len(d.keys)]
		}
		n, err := d.r.Read(in)
		out := make([]byte, 0, n+len(d.keys))
		for _, b := range in[:n] {
			switch {
			case b == d.keys[d.seen]:
				if d.seen++; d.seen == len(d.keys) {
					d.detach()
					return copy(p, out), io.EOF
				}
			default:
				out = append(out, d.keys[:d.seen]...)
				d.seen = 0
				if b == d.keys[0] {
					d.seen = 1
					if len(d.keys) > 1 {
						continue
					}
				}
				out = append(out, b)
			}
		}
		if err != nil {
			out = append(out, d.keys[:d.seen]...)
			d.seen = 0
		}
		if len(out) > 0 || err != nil {
			return copy(p, out), err
		}
	}
}

// parseDetachKeys reads "ctrl-p,ctrl-q": letters, or ctrl- and one of a-z @ [ \ ] ^ _.
func parseDetachKeys(s string) ([]byte, error) {
	var keys []byte
	if s == "" {
		return nil, nil
	}
	for _, name := range splitComma(s) {
		switch {
		case len(name) == 1:
			keys = append(keys, name[0])
		case len(name) == 6 && name[:5] == "ctrl-" && name[5] >= 'a' && name[5] <= 'z':
			keys = append(keys, name[5]-'a'+1)
		case len(name) == 6 && name[:5] == "ctrl-" && (name[5] == '@' || name[5] >= '[' && name[5] <= '_'):
			keys = append(keys, name[5]-'@')
		default:
			return nil, fmt.Errorf("%q: want keys such as ctrl-p,ctrl-q", s)
		}
	}
	return keys, nil
}

const defaultDetachKeys = "ctrl-p,ctrl-q"

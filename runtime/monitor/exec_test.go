package monitor

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
)

// box is a running container.
func box(t *testing.T) *held {
	h := hold(t, sh("sleep 1000"), nil)
	h.call(OpStart, nil, nil)
	return h
}

func (h *held) exec(a ExecArgs, s *streams) *Attached {
	h.t.Helper()
	c, err := Exec(h.t.Context(), h.cfg.Socket, a, s.io)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	s.sent()
	return c
}

func TestExec(t *testing.T) {
	h := box(t)
	s := newStreams(t, true)
	c := h.exec(ExecArgs{Args: sh("cat; echo $WORD >&2; exit 12"), Env: []string{"WORD=yes"}}, s)
	go func() { io.WriteString(s.in, "in"); s.in.Close() }()
	exit, err := c.Wait(t.Context(), nil)
	if err != nil || exit.Code != 12 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	if out, errs := readAll(t, s.out), readAll(t, s.err); out != "in" || errs != "yes\n" {
		t.Errorf("client got %q and %q", out, errs)
	}
	if text := logged(t, h.dir); len(text) != 0 {
		t.Errorf("exec is in the log: %q", text)
	}
}

func TestExecTerminal(t *testing.T) {
	h := box(t)
	s := newStreams(t, false)
	c := h.exec(ExecArgs{Args: sh("stty size; echo $TERM >&2"), TTY: true, Size: Size{11, 22}}, s)
	exit, err := c.Wait(t.Context(), nil)
	if got := readAll(t, s.out); err != nil || exit.Code != 0 || !strings.HasPrefix(got, "11 22\r\n") || strings.Count(got, "\n") != 2 {
		t.Errorf("Wait = %+v, %v; output %q", exit, err, got)
	}
}

func TestExecDetached(t *testing.T) {
	h := box(t)
	for _, tty := range []bool{false, true} {
		var exit Exit
		h.call(OpExec, ExecArgs{Args: sh("sleep 1000"), Detach: true, TTY: tty}, &exit)
	}
	if n := len(h.runner.started().programs()); n != 2 {
		t.Errorf("%d programs run", n)
	}
}

func TestExecUnknownCommand(t *testing.T) {
	h := box(t)
	if err := Call(t.Context(), h.cfg.Socket, OpExec, ExecArgs{Args: []string{"/nonexistent"}}, nil); !isCode(err, CodeNoCommand) {
		t.Errorf("exec: %v", err)
	}
}

// Whoever reads exec's output no more leaves no program behind that writes for ever.
func TestExecWithoutReader(t *testing.T) {
	h := box(t)
	for name, leave := range map[string]func(*Attached, *streams){
		"output closed": func(_ *Attached, s *streams) { s.out.Close() },
		"hung up":       func(c *Attached, _ *streams) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStreams(t, false)
			c := h.exec(ExecArgs{Args: []string{"yes"}}, s)
			ctx, cancel := context.WithCancel(t.Context())
			var waiting sync.WaitGroup
			waiting.Go(func() { c.Wait(ctx, nil) })
			io.ReadFull(s.out, make([]byte, 10))
			leave(c, s)
			programs := h.runner.started().programs()
			<-programs[len(programs)-1].done
			cancel()
			waiting.Wait()
		})
	}
}

// The terminal of a client that goes away is hung up.
func TestExecTerminalHungUp(t *testing.T) {
	h := box(t)
	s := newStreams(t, true)
	c := h.exec(ExecArgs{Args: sh("echo ready; exec sleep 1000"), TTY: true}, s)
	ctx, cancel := context.WithCancel(t.Context())
	var waiting sync.WaitGroup
	waiting.Go(func() { c.Wait(ctx, nil) })
	io.ReadFull(s.out, make([]byte, len("ready\r\n")))
	cancel()
	waiting.Wait()
	c.Close()
	p := h.runner.started().programs()[0]
	<-p.done
	if st, err := p.Wait(t.Context()); err != nil || st.exit().Signal != "SIGHUP" {
		t.Errorf("the program ended with %+v, %v, want SIGHUP", st, err)
	}
}

func TestExecBackgroundChild(t *testing.T) {
	h := box(t)
	s := newStreams(t, false)
	c := h.exec(ExecArgs{Args: sh("sleep 1000 & echo hi")}, s)
	exit, err := c.Wait(t.Context(), nil)
	if got := readAll(t, s.out); err != nil || exit.Code != 0 || got != "hi\n" {
		t.Errorf("Wait = %+v, %v; output %q", exit, err, got)
	}
}

func TestExecEndsWithTheContainer(t *testing.T) {
	h := box(t)
	s := newStreams(t, false)
	c := h.exec(ExecArgs{Args: sh("echo ready; exec sleep 1000")}, s)
	go func() {
		io.ReadFull(s.out, make([]byte, len("ready\n")))
		Call(context.Background(), h.cfg.Socket, OpKill, KillArgs{}, nil)
		io.Copy(io.Discard, s.out)
	}()
	if exit, err := c.Wait(t.Context(), nil); err != nil || exit.Code != 137 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

func TestOverride(t *testing.T) {
	got := override([]string{"A=1", "B=2", "AB=3"}, []string{"A=4", "C=5"})
	if want := []string{"B=2", "AB=3", "A=4", "C=5"}; !slices.Equal(got, want) {
		t.Errorf("override = %q, want %q", got, want)
	}
}

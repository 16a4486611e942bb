package monitor

import (
	"context"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// execGrace is how long after an exec'd program's end more output is waited
// for. What it wrote itself is there by then; this is for the children that a
// shell's process substitution does not wait for. One that stays is left alone.
const execGrace = 200 * time.Millisecond

// handleExec runs a further program in the container and stays connected to it until its end.
func (m *Monitor) handleExec(ctx context.Context, r *control.Request) error {
	var a ExecArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if len(a.Args) == 0 || a.Args[0] == "" {
		return &control.Error{Code: control.CodeInvalid, Message: "exec: no command"}
	}
	c, err := m.live()
	if err != nil {
		return err
	}
	if m.snapshot().Paused {
		return &control.Error{Code: CodeNotRunning, Message: m.name() + " is paused"}
	}
	e := &execution{detached: a.Detach, out: &output{ended: make(chan struct{})}}
	errs := &output{ended: e.out.ended}
	if a.TTY {
		errs = nil
	}
	s, err := open(ctx, r, a.Streams, e.out, errs)
	if err != nil {
		return err
	}
	defer s.close()
	if err := e.start(ctx, c, m.process(&a), a.Streams, errs); err != nil {
		s.release()
		return startError(err)
	}
	if a.Detach {
		m.background.Go(e.reap)
		return r.Reply(Exit{})
	}
	return e.attend(s)
}

// process is the container's process with what a changes.
func (m *Monitor) process(a *ExecArgs) *specs.Process {
	p := *m.cfg.Spec.Process
	p.Args, p.Terminal, p.ConsoleSize = a.Args, a.TTY, nil
	p.Env = override(p.Env, a.Env)
	if a.TTY {
		p.ConsoleSize = &specs.Box{Height: uint(a.Height), Width: uint(a.Width)}
		p.Env = override([]string{"TERM=xterm"}, p.Env)
	}
	if a.Workdir != "" {
		p.Cwd = a.Workdir
	}
	p.User = specs.User{Username: m.cfg.User, Umask: p.User.Umask}
	if a.User != "" {
		p.User.Username = a.User
	}
	if a.Privileged {
		all := knownCapabilities()
		p.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
		p.NoNewPrivileges = false
	}
	return &p
}

func knownCapabilities() []string {
	var names []string
	for _, c := range capability.ListKnown() {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names
}

// override lays upper over lower, variable by variable.
func override(lower, upper []string) []string {
	env := slices.Clone(lower)
	for _, kv := range upper {
		name, _, _ := strings.Cut(kv, "=")
		env = slices.DeleteFunc(env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		env = append(env, kv)
	}
	return env
}

// An execution is a program that exec started.
type execution struct {
	detached bool
	p        Process
	in       *input
	out      *output
	pumps    sync.WaitGroup
}

func (e *execution) start(ctx context.Context, c Container, p *specs.Process, want Streams, errs *output) error {
	tty := p.Terminal
	io, err := newStdio(want.Stdin && !tty, want.Stdout && !tty, want.Stderr && !tty)
	if err != nil {
		return err
	}
	if e.p, err = c.Exec(context.WithoutCancel(ctx), p, io.files); err != nil {
		io.close()
		return err
	}
	io.files.close()
	if tty {
		io.out = e.p.Console()
		e.in = &input{f: io.out, tty: true}
	} else if io.in != nil {
		e.in = &input{f: io.in}
	}
	e.pump(io.out, e.out)
	e.pump(io.err, errs)
	return nil
}

// pump copies a stream to the client; when that takes no more, the program is not left writing to nobody.
func (e *execution) pump(r *os.File, o *output) {
	if r == nil {
		return
	}
	e.pumps.Go(func() {
		pump(r, o.ended, execGrace, func(p []byte) bool {
			o.write(p)
			return e.detached || o.watched()
		})
	})
}

// attend stays with the program until its end or the client's.
func (e *execution) attend(s *session) error {
	defer e.pumps.Wait()
	s.tasks.Go(func() {
		s.listen(
			func(z Size) { e.p.Resize(z.Height, z.Width) }, // fails where there is no terminal, or no more
			func(n unix.Signal) { e.p.Signal(n) })          // fails if it has ended
	})
	if err := s.r.Event(Event{Started: true, Pid: e.p.Pid()}); err != nil {
		s.stop()
	}
	if e.in != nil && s.stdin != nil {
		s.tasks.Go(func() { e.in.copyFrom(s.stdin, true) })
	}
	status, err := e.p.Wait(s.ended)
	close(e.out.ended)
	if err != nil && s.ended.Err() != nil {
		s.release()
		e.closeInput()
		return err // the client has gone
	}
	e.pumps.Wait()
	e.closeInput()
	s.release()
	if err != nil {
		return err
	}
	return s.r.Reply(status.exit())
}

func (e *execution) closeInput() {
	if e.in != nil {
		e.in.close()
	}
}

// reap waits for a program that nobody attends.
func (e *execution) reap() {
	e.p.Wait(context.Background()) // its status is nobody's concern
	close(e.out.ended)
	e.pumps.Wait()
}

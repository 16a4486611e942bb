package monitor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// grace is how long after the container's end its output is waited for. All its
// processes have been killed by then, so the end comes by itself at once.
const grace = 2 * time.Second

// begun starts the container, once. Its life is m's and not that of ctx, which
// is only that of starting.
func (m *Monitor) begun(ctx context.Context) error {
	m.starting.Lock()
	defer m.starting.Unlock()
	if m.snapshot().Status == StatusRunning || m.isDone() {
		return &control.Error{Code: CodeRunning, Message: m.name() + " has been started already"}
	}
	c, io, err := m.launch(ctx)
	if err != nil {
		m.failed(err)
		return startError(err)
	}
	s := State{Status: StatusRunning, Monitor: os.Getpid(), Pid: c.Init().Pid(), Started: now()}
	if s.PidStart, err = startTime(s.Pid); err != nil {
		m.log.Warn("start time", "pid", s.Pid, "err", err) // it has ended already: the pid is not needed
	}
	var check *health
	if m.cfg.Health != nil {
		if check, err = newHealth(*m.cfg.Health, time.Now(), m.ready.health); err != nil {
			m.log.Error("health check", "err", err) // the configuration was checked
		} else {
			course := check.Health
			s.Health = &course
		}
	}
	m.recordStart(c, io, s)
	close(m.running)
	life, end := context.WithCancel(context.Background())
	m.watching.Go(func() { m.watchReady(life, &s) })
	if check != nil {
		m.watching.Go(func() { m.checkHealth(life, c, check) })
	}
	m.watching.Go(func() { m.watch(end) })
	return nil
}

// recordStart makes s the container's state, and lets its output out: whoever
// sees that finds a running container.
func (m *Monitor) recordStart(c Container, io *stdio, s State) {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	m.container, m.state = c, s
	m.mu.Unlock()
	m.pump("stdout", io.out, m.out)
	if io.err != nil {
		m.pump("stderr", io.err, m.err)
	}
	if err := s.save(m.dir, false); err != nil {
		m.log.Error("record the start", "err", err)
	}
}

// launch makes the streams and the processes.
func (m *Monitor) launch(ctx context.Context) (Container, *stdio, error) {
	io, err := newStdio(!m.cfg.TTY && m.cfg.OpenStdin, !m.cfg.TTY, !m.cfg.TTY)
	if err != nil {
		return nil, nil, err
	}
	c, err := m.runner.Start(context.WithoutCancel(ctx), m.cfg, io.files)
	if err != nil {
		io.close()
		return nil, nil, err
	}
	io.files.close()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cfg.TTY {
		m.console = c.Init().Console()
		m.stdin = &input{f: m.console, tty: true}
		io.out = m.console
	} else if io.in != nil {
		m.stdin = &input{f: io.in}
	}
	return c, io, nil
}

func (m *Monitor) pump(stream string, r *os.File, o *output) {
	o.ended = make(chan struct{})
	o.pumped.Go(func() {
		complained := false
		lines := lineScan{w: m.line}
		defer lines.end()
		pump(r, o.ended, grace, func(p []byte) bool {
			lines.write(p)
			if err := m.json.Write(stream, p); err != nil && !complained {
				complained = true
				m.log.Error("write the log", "stream", stream, "err", err)
			}
			o.write(p)
			return true
		})
		if err := m.json.End(stream); err != nil {
			m.log.Error("write the log", "stream", stream, "err", err)
		}
	})
}

// watch waits for the container's end and brings everything to it. end ends
// what goes on beside it; that is not waited for, as it may be looking at a
// file system that does not answer.
func (m *Monitor) watch(end func()) {
	status, err := m.container.Init().Wait(context.Background())
	end()
	oom := m.container.OOMKilled()
	if err := m.container.Kill(); err != nil {
		m.log.Warn("kill what is left", "err", err)
	}
	for _, o := range m.outputs() {
		close(o.ended)
	}
	for _, o := range m.outputs() {
		o.pumped.Wait()
	}
	m.mu.Lock()
	if m.stdin != nil {
		m.stdin.close()
	}
	m.mu.Unlock()
	exit := status.exit()
	if err != nil {
		exit = Exit{Code: 255, Error: err.Error()}
	}
	m.finish(func(s *State) {
		s.Status, s.Finished, s.Paused = StatusExited, now(), false
		s.ExitCode, s.Signal, s.OOMKilled, s.Error = exit.Code, exit.Signal, oom, exit.Error
		m.readyAtEnd(s)
	})
}

// failed is the end of a container that could not be started.
func (m *Monitor) failed(err error) {
	for _, o := range m.outputs() {
		o.closeAll()
	}
	m.finish(func(s *State) {
		*s = State{Status: StatusExited, Monitor: os.Getpid(), ExitCode: exitCode(err), Error: err.Error(), Finished: now()}
	})
}

// finish records the end, then lets those know who wait for it. What is
// recorded is made durable afterwards, in cleanUp: after a power cut in
// between, a container whose fate is unknown is what the next daemon finds.
func (m *Monitor) finish(change func(*State)) {
	m.recording.Lock()
	defer m.recording.Unlock()
	s := m.snapshot()
	change(&s)
	dir, err := m.dir, error(nil)
	if m.cfg.Remove {
		dir = Trash(m.dir)
		err = os.Rename(m.dir, dir)
		os.Remove(filepath.Join(dir, ConfigFile)) // should we not come to remove the rest, it is no container
	} else {
		err = s.save(m.dir, false)
	}
	if err != nil {
		m.log.Error("record the end", "err", err)
	}
	m.mu.Lock()
	m.state = s
	if err == nil {
		m.dir = dir
	}
	m.mu.Unlock()
	m.goodbye()
	close(m.done)
}

func (m *Monitor) outputs() []*output {
	if m.err == nil {
		return []*output{m.out}
	}
	return []*output{m.out, m.err}
}

func (m *Monitor) snapshot() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

func (m *Monitor) isDone() bool {
	select {
	case <-m.done:
		return true
	default:
		return false
	}
}

func (m *Monitor) exit() Exit {
	s := m.snapshot()
	return Exit{Code: s.ExitCode, Signal: s.Signal, OOMKilled: s.OOMKilled, Error: s.Error}
}

func (m *Monitor) name() string {
	if m.cfg.Name != "" {
		return m.cfg.Name
	}
	return m.cfg.ID[:min(12, len(m.cfg.ID))]
}

// An exitCoder is an error that stands for an exit status: 127 for a program
// that does not exist, 126 for one that cannot be executed.
type exitCoder interface {
	error
	ExitCode() int
}

// exitCode is the status that a container which could not be started ends with: 125 is Docker's for all but the program.
func exitCode(err error) int {
	if e, ok := errors.AsType[exitCoder](err); ok {
		return e.ExitCode()
	}
	return 125
}

// startError gives a failure to start a program its code.
func startError(err error) error {
	code := control.CodeInternal
	switch exitCode(err) {
	case 127:
		code = CodeNoCommand
	case 126:
		code = CodeCannotExec
	}
	return &control.Error{Code: code, Message: err.Error()}
}

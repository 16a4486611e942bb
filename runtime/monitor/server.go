package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

func (m *Monitor) handle(ctx context.Context, r *control.Request) error {
	switch r.Op {
	case OpState:
		return r.Reply(m.view())
	case OpStart:
		return m.handleStart(ctx, r)
	case OpAttach:
		defer m.stir()
		return m.handleAttach(ctx, r)
	case OpExec:
		defer m.stir()
		return m.handleExec(ctx, r)
	case OpWait:
		return m.handleWait(ctx, r)
	case OpWaitReady:
		return m.handleWaitReady(ctx, r)
	case OpQuiet:
		return m.handleQuiet(r)
	case OpKill:
		return m.handleKill(r)
	case OpStop:
		return m.handleStop(ctx, r)
	case OpResize:
		return m.handleResize(r)
	case OpPause, OpUnpause:
		return m.handlePause(r)
	case OpTop:
		return m.handleTop(r)
	case OpJoin:
		return m.handleJoin(r)
	case OpJoined:
		return r.Reply(JoinArgs{Kinds: m.given()})
	case OpRelease:
		return m.handleRelease(r)
	}
	return &control.Error{Code: control.CodeUnsupported, Message: fmt.Sprintf("operation %q: unknown to this monitor", r.Op)}
}

// view is the state with what only matters while the monitor lives.
func (m *Monitor) view() State {
	s := m.snapshot()
	if s.Status == StatusRunning && s.Paused {
		s.Status = StatusPaused
	}
	return s
}

func (m *Monitor) handleStart(ctx context.Context, r *control.Request) error {
	if err := m.begun(ctx); err != nil {
		return err
	}
	return r.Reply(m.view())
}

// handleJoin takes namespaces for the start to come.
func (m *Monitor) handleJoin(r *control.Request) error {
	var a JoinArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if len(a.Kinds) != len(r.Files) {
		return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("%d descriptors came for %d namespaces", len(r.Files), len(a.Kinds))}
	}
	m.starting.Lock()
	defer m.starting.Unlock()
	if m.snapshot().Status == StatusRunning || m.isDone() {
		return &control.Error{Code: CodeRunning, Message: m.name() + " has been started already"}
	}
	var list []Namespace
	for i, kind := range a.Kinds {
		list = append(list, Namespace{kind, r.Files[i]})
	}
	r.Files = nil
	m.join(list)
	return nil
}

// join gives the container namespaces.
func (m *Monitor) join(list []Namespace) {
	kinds := make([]string, 0, len(list))
	for _, n := range list {
		kinds = append(kinds, n.Kind)
	}
	m.mu.Lock()
	m.joined = kinds
	m.mu.Unlock()
	m.runner.Join(list)
}

// given are the kinds of namespaces that it was given last.
func (m *Monitor) given() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.joined
}

// handleWait answers with the end, however long that takes.
func (m *Monitor) handleWait(ctx context.Context, r *control.Request) error {
	if err := m.wait(ctx); err != nil {
		return err
	}
	return r.Reply(m.exit())
}

// wait waits for the end of the container or, if that comes first, of ctx.
func (m *Monitor) wait(ctx context.Context) error {
	select {
	case <-m.done:
		return nil
	case <-ctx.Done():
		if m.isDone() { // the end is why the server stops
			return nil
		}
		return ctx.Err()
	}
}

// live returns the running container.
func (m *Monitor) live() (Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state.Status != StatusRunning {
		return nil, &control.Error{Code: CodeNotRunning, Message: m.name() + " is not running"}
	}
	return m.container, nil
}

func (m *Monitor) handleKill(r *control.Request) error {
	var a KillArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	n, err := parseSignal(a.Signal, unix.SIGKILL)
	if err != nil {
		return &control.Error{Code: control.CodeInvalid, Message: err.Error()}
	}
	if err := m.signal(n); err != nil {
		return err
	}
	return r.Reply(m.view())
}

// signal sends n to the container's first process. One that is paused is
// resumed for SIGKILL: on cgroup v1 it would not be delivered before.
func (m *Monitor) signal(n unix.Signal) error {
	c, err := m.live()
	if err != nil {
		return err
	}
	if err := c.Init().Signal(n); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if n != unix.SIGKILL {
		return nil
	}
	if m.snapshot().Paused {
		return m.pause(false)
	}
	if err := c.Resume(); err != nil && !m.isDone() { // somebody else may have frozen its cgroup
		m.log.Warn("thaw a killed container", "err", err)
	}
	return nil
}

func (m *Monitor) handleStop(ctx context.Context, r *control.Request) error {
	a := StopArgs{Timeout: -1}
	if err := r.Decode(&a); err != nil {
		return err
	}
	if a.Signal == "" {
		a.Signal = m.cfg.StopSignal
	}
	if t := m.cfg.StopTimeout; a.Own && t != nil {
		a.Timeout = *t
	}
	n, err := parseSignal(a.Signal, unix.SIGTERM)
	if err != nil {
		return &control.Error{Code: control.CodeInvalid, Message: err.Error()}
	}
	// Once asked for, a stop is carried through even if the client does not stay.
	if err := m.stop(context.WithoutCancel(ctx), n, a.Timeout); err != nil {
		return err
	}
	return r.Reply(m.exit())
}

func (m *Monitor) stop(ctx context.Context, n unix.Signal, timeout int) error {
	if err := m.signal(n); err != nil {
		return err
	}
	if m.snapshot().Paused {
		if err := m.pause(false); err != nil {
			return err
		}
	}
	if timeout >= 0 {
		timer := time.NewTimer(time.Duration(min(timeout, maxTimeout)) * time.Second)
		defer timer.Stop()
		select {
		case <-m.done:
			return nil
		case <-timer.C:
		}
		if err := m.signal(unix.SIGKILL); err != nil && !m.isDone() {
			return err
		}
	}
	return m.wait(ctx)
}

// maxTimeout is the longest time a stop may be given, seconds: ten years, so that it is no overflow.
const maxTimeout = 10 * 365 * 24 * 3600

func (m *Monitor) handleResize(r *control.Request) error {
	var a Size
	if err := r.Decode(&a); err != nil {
		return err
	}
	c, err := m.live()
	if err != nil {
		return err
	}
	return c.Init().Resize(a.Height, a.Width)
}

func (m *Monitor) handlePause(r *control.Request) error {
	if err := m.pause(r.Op == OpPause); err != nil {
		return err
	}
	return r.Reply(m.view())
}

func (m *Monitor) pause(on bool) error {
	c, err := m.live()
	if err != nil {
		return err
	}
	if on {
		err = c.Pause()
	} else {
		err = c.Resume()
	}
	if err != nil {
		return err
	}
	return m.update(func(s *State) bool { s.Paused = on; return true })
}

func (m *Monitor) handleRelease(r *control.Request) error {
	m.starting.Lock()
	defer m.starting.Unlock()
	if _, err := m.live(); err == nil {
		return &control.Error{Code: CodeRunning, Message: m.name() + " is running"}
	}
	if err := r.Reply(nil); err != nil {
		return err
	}
	m.release()
	return nil
}

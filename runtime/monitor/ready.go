package monitor

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// What made a container ready, in State.ReadyBy.
const (
	ReadyByLine   = "line"   // it wrote a line that Config.Ready asks for
	ReadyByPort   = "port"   // it listens at the port
	ReadyByFile   = "file"   // the file is there
	ReadyByHealth = "health" // its health check succeeded for the first time
	ReadyByQuiet  = "quiet"  // it has none of these, and the daemon saw that it misses nothing any more
	ReadyByExit   = "exit"   // it has none of these, and ended before
)

// A condition is what has to be true for a container to be ready. At most one
// field is set; if none is, the daemon decides (OpQuiet).
type condition struct {
	line   *regexp.Regexp
	port   uint16
	file   string
	health bool
}

func (c condition) none() bool { return c == condition{} }

// maxPattern bounds a regular expression, bytes. Together with package regexp's
// bound of 1000 on nested repetitions it bounds the time that a line takes.
const maxPattern = 1 << 10

// ParseReady reads what --ready says, and tells what is wrong with it:
//
//	line=REGEX   a line of output matches (RE2 syntax)
//	port=NUMBER  a process of the container listens at the TCP port, at any address
//	file=PATH    the path exists in the container; links are followed inside of it
func ParseReady(s string) error {
	_, err := parseReady(s)
	return err
}

func parseReady(s string) (c condition, err error) {
	kind, value, _ := strings.Cut(s, "=")
	switch {
	case s == "":
	case kind == ReadyByLine && value != "" && len(value) <= maxPattern:
		if c.line, err = regexp.Compile(value); err != nil {
			return c, fmt.Errorf("%q: %w", s, err)
		}
	case kind == ReadyByLine && value != "":
		return c, fmt.Errorf("a pattern of %d bytes: want at most %d", len(value), maxPattern)
	case kind == ReadyByPort:
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return c, fmt.Errorf("%q: want a port from 1 to 65535, such as port=8080", s)
		}
		c.port = uint16(n)
	case kind == ReadyByFile:
		if !path.IsAbs(value) || path.Clean(value) == "/" || strings.ContainsRune(value, 0) {
			return c, fmt.Errorf("%q: want an absolute path in the container, such as file=/run/ready", s)
		}
		c.file = path.Clean(value)
	default:
		return c, fmt.Errorf("%q: want line=REGEX, port=NUMBER or file=PATH, such as port=8080", s)
	}
	return c, nil
}

// condition is what makes this container ready.
func (c *Config) condition() (condition, error) {
	cond, err := parseReady(c.Ready)
	if err == nil && cond.none() && c.Health != nil {
		cond.health = true
	}
	return cond, err
}

// watchReady watches until the container, which s describes, is ready, or ctx
// ends, which is its life. Its health is checkHealth's to watch.
func (m *Monitor) watchReady(ctx context.Context, s *State) {
	if m.line != nil { // the pumps look at lines
		select {
		case <-m.line.seen:
			m.becameReady(ReadyByLine, m.line.at)
		case <-ctx.Done():
		}
		return
	}
	if m.ready.file == "" && m.ready.port == 0 {
		return
	}
	p, err := openProc(s.Pid, s.PidStart)
	if err != nil {
		m.log.Debug("not watched for being ready", "err", err) // it has ended
		return
	}
	defer p.close()
	by, look := ReadyByPort, func() bool { return p.listens(m.ready.port) }
	if m.ready.file != "" {
		by, look = ReadyByFile, func() bool { return p.exists(m.ready.file) }
	}
	if poll(ctx, look) {
		m.becameReady(by, now())
	}
}

// Bounds of how long poll sleeps.
const (
	pollMin = 2 * time.Millisecond
	pollMax = 250 * time.Millisecond
)

// poll calls look until that says yes, and false when ctx ends. Between calls
// it sleeps for a twentieth of the time that has passed, so that the moment is
// known to 5 % and one who waits for hours costs little.
func poll(ctx context.Context, look func() bool) bool {
	begun := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
		if look() {
			return ctx.Err() == nil
		}
		timer.Reset(min(max(time.Since(begun)/20, pollMin), pollMax))
	}
}

// becameReady records when the container became ready; the first time counts.
func (m *Monitor) becameReady(by string, at time.Time) {
	m.update(func(s *State) bool {
		if !s.Ready.IsZero() {
			return false
		}
		s.Ready, s.ReadyBy = at, by
		return true
	})
}

// readyAtEnd completes the state of a container that has ended. Its last words
// may have been what was waited for; without a condition, having ended is enough.
func (m *Monitor) readyAtEnd(s *State) {
	if !s.Ready.IsZero() || s.Started.IsZero() {
		return
	}
	if m.ready.none() {
		s.Ready, s.ReadyBy = s.Finished, ReadyByExit
	}
	if m.line.hit() {
		s.Ready, s.ReadyBy = m.line.at, ReadyByLine
	}
}

// update changes the state of a running container, and records it. change says whether it did.
func (m *Monitor) update(change func(*State) bool) error {
	m.recording.Lock()
	defer m.recording.Unlock()
	m.mu.Lock()
	if m.state.Status != StatusRunning || !change(&m.state) {
		m.mu.Unlock()
		return nil
	}
	s, dir := m.state, m.dir
	m.mu.Unlock()
	err := s.save(dir, false)
	if err != nil {
		m.log.Error("record the state", "err", err)
	}
	if !s.Ready.IsZero() {
		m.isReady.Do(func() { close(m.readied) })
	}
	return err
}

// handleWaitReady tells when the container has started, and answers when it is
// ready or will never be.
func (m *Monitor) handleWaitReady(ctx context.Context, r *control.Request) error {
	select {
	case <-m.running:
		if err := r.Event(m.view()); err != nil {
			return err
		}
	case <-m.done:
	case <-ctx.Done():
	}
	select {
	case <-m.readied:
		return r.Reply(m.view())
	default:
	}
	select {
	case <-m.readied:
	case <-m.done:
	case <-ctx.Done():
		if !m.isDone() { // else the end is why the server stops
			return ctx.Err()
		}
	}
	return r.Reply(m.view())
}

// handleQuiet believes the daemon that the container misses nothing any more.
func (m *Monitor) handleQuiet(r *control.Request) error {
	var a QuietArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if !m.ready.none() {
		return &control.Error{Code: control.CodeInvalid, Message: m.name() + " says itself when it is ready"}
	}
	if _, err := m.live(); err != nil {
		return err
	}
	at := a.At.UTC().Round(0)
	if s := m.snapshot(); at.Before(s.Started) {
		at = s.Started
	}
	if n := now(); at.After(n) {
		at = n
	}
	m.becameReady(ReadyByQuiet, at)
	return r.Reply(m.view())
}

// WaitReady asks the monitor at socket to tell when its container is ready.
// started, if not nil, is called once it runs. The State that is returned has a
// zero Ready if it ended before.
func WaitReady(ctx context.Context, socket string, started func(State)) (s State, err error) {
	err = call(ctx, socket, OpWaitReady, nil, &s, started)
	return s, err
}

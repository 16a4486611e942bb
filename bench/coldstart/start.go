package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A started is one start of a task: the client's process, and what it prints.
type started struct {
	begin    time.Time
	cmd      *exec.Cmd
	detached bool      // the process ends once the container runs
	lines    chan line // of stdout and stderr; closed when both are
	done     chan struct{}
	err      error // of the process, once done is closed

	mu   sync.Mutex
	last []string
}

type line struct {
	text string
	at   time.Time
}

// begin starts the client in the node's group.
func (n *node) begin(argv ...string) (*started, error) {
	s := &started{cmd: n.command(argv...), lines: make(chan line, 1024), done: make(chan struct{})}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	complaint, err := s.cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	s.begin = time.Now()
	if err := n.group.start(s.cmd); err != nil {
		return nil, err
	}
	var both sync.WaitGroup
	both.Go(func() { s.read(out) })
	both.Go(func() { s.read(complaint) })
	go func() { // ends with the process
		both.Wait()
		close(s.lines)
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// read passes lines on; nobody need take them.
func (s *started) read(r io.Reader) {
	b := bufio.NewReader(r)
	for {
		text, err := b.ReadString('\n')
		if text != "" {
			l := line{strings.TrimSuffix(text, "\n"), time.Now()}
			s.mu.Lock()
			s.last = append(s.last, l.text)
			s.last = s.last[max(0, len(s.last)-5):]
			s.mu.Unlock()
			select {
			case s.lines <- l:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

func (s *started) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return lastLines(strings.Join(s.last, "\n"), 400)
}

// untilReady returns when the task gave its sign. Of a TCP port, pid finds a
// process in the container's network namespace; it is asked until it knows.
func (s *started) untilReady(ctx context.Context, r ready, pid func() (int, error)) (time.Time, error) {
	if r.Kind == "tcp" {
		return s.untilOpen(ctx, r.Port, pid)
	}
	for {
		select {
		case l, ok := <-s.lines:
			if ok && r.Kind == "line" && strings.Contains(l.text, r.Text) {
				return l.at, nil
			}
			if !ok {
				<-s.done
				if r.Kind == "exit" && s.err == nil {
					return time.Now(), nil
				}
				return time.Time{}, fmt.Errorf("ended before it was ready: %v: %s", s.err, s.said())
			}
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("not ready: %w: %s", context.Cause(ctx), s.said())
		}
	}
}

// untilOpen connects to a port in another network namespace until it is accepted.
func (s *started) untilOpen(ctx context.Context, port int, pid func() (int, error)) (at time.Time, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread is spoilt by its namespace, and ends
		at, err = s.probe(ctx, port, pid)
	}()
	<-done
	if err != nil {
		err = fmt.Errorf("%w: %s", err, s.said())
	}
	return at, err
}

func (s *started) probe(ctx context.Context, port int, pid func() (int, error)) (time.Time, error) {
	inside := false
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	var last error
	for ctx.Err() == nil {
		ended := false
		select {
		case <-s.done:
			ended = true
		default:
		}
		if ended && (s.err != nil || !s.detached) {
			return time.Time{}, fmt.Errorf("ended before it was ready: %v", s.err)
		}
		if !inside && ended == s.detached {
			last = enter(pid)
			inside = last == nil
		}
		if inside {
			var c *net.TCPConn
			if c, last = net.DialTCP("tcp", nil, addr); last == nil {
				return time.Now(), c.Close()
			}
		}
		time.Sleep(time.Millisecond)
	}
	return time.Time{}, fmt.Errorf("port %d: %w: %w", port, context.Cause(ctx), last)
}

// errNoProcess: the container has no process yet.
var errNoProcess = errors.New("the container has no process yet")

// enter moves the thread into the network namespace of a process.
func enter(pid func() (int, error)) error {
	n, err := pid()
	if err != nil {
		return err
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", n), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Setns(fd, unix.CLONE_NEWNET)
}

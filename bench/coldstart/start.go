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
	detached bool           // the process ends once the container runs
	want     string         // what the line that is waited for contains
	line     chan time.Time // when it came
	done     chan struct{}
	err      error // of the process, once done is closed

	mu   sync.Mutex
	last []string
}

// begin starts the client in the node's group.
func (n *node) begin(r ready, argv ...string) (*started, error) {
	s := &started{cmd: n.command(argv...), want: r.Text, line: make(chan time.Time, 2), done: make(chan struct{})}
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
		s.err = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// read takes all that is printed, and looks for the line.
func (s *started) read(r io.Reader) {
	b := bufio.NewReader(r)
	for found := s.want == ""; ; {
		text, err := b.ReadString('\n')
		if !found && strings.Contains(text, s.want) {
			found = true
			s.line <- time.Now()
		}
		if text != "" {
			s.mu.Lock()
			s.last = append(s.last, strings.TrimSuffix(text, "\n"))
			s.last = s.last[max(0, len(s.last)-5):]
			s.mu.Unlock()
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
	select {
	case at := <-s.line:
		return at, nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("not ready: %w: %s", context.Cause(ctx), s.said())
	case <-s.done:
	}
	select {
	case at := <-s.line: // it was its last
		return at, nil
	default:
	}
	if r.Kind == "exit" && s.err == nil {
		return time.Now(), nil
	}
	return time.Time{}, fmt.Errorf("ended before it was ready: %v: %s", s.err, s.said())
}

// untilOpen connects to a port in another network namespace until it is accepted.
func (s *started) untilOpen(ctx context.Context, port int, pid func() (int, error)) (at time.Time, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		home, herr := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		at, err = s.probe(ctx, port, pid)
		if herr == nil && unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the thread ends here
		}
		if herr == nil {
			unix.Close(home)
		}
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
			if last = enter(pid); errors.Is(last, errEnded) {
				return time.Time{}, last
			}
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

// errNoProcess: the container has no process yet. errEnded: it has none any more.
var (
	errNoProcess = errors.New("the container has no process yet")
	errEnded     = errors.New("the container ended before it was ready")
)

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

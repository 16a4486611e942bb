package monitor

import (
	"errors"
	"io"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An output is one stream of the container and the clients that see it.
type output struct {
	ended  chan struct{}  // closed when the container has; made at its start
	pumped sync.WaitGroup // the copying of the stream

	mu    sync.Mutex
	sinks []*sink
}

func (o *output) closeAll() {
	o.mu.Lock()
	sinks := o.sinks
	o.sinks = nil
	o.mu.Unlock()
	for _, s := range sinks {
		s.Close()
	}
}

func (o *output) add(s *sink) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sinks = append(o.sinks, s)
}

func (o *output) remove(s *sink) {
	o.mu.Lock()
	o.sinks = slices.DeleteFunc(slices.Clone(o.sinks), func(x *sink) bool { return x == s })
	o.mu.Unlock()
	s.Close()
}

// write gives p to every client. A slow client slows the container down, as a
// pipe's slow reader does; one that has gone away does not.
func (o *output) write(p []byte) {
	o.mu.Lock()
	sinks := o.sinks // remove makes a new slice
	o.mu.Unlock()
	for _, s := range sinks {
		if _, err := s.Write(p); err != nil {
			o.remove(s)
			s.broken(err)
		}
	}
}

// watched says whether any client is left.
func (o *output) watched() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sinks) > 0
}

// bufferSize is how much of a stream is read at a time: half of a pipe's
// capacity, so that the writer can go on meanwhile.
const bufferSize = 32 << 10

// pump copies r to write until its end, or until ended is closed and what was
// written before has been read: a process that the container's end left behind
// may keep r open for ever. It ends early when write returns false, and closes r.
func pump(r *os.File, ended <-chan struct{}, grace time.Duration, write func([]byte) bool) {
	defer r.Close()
	var watch sync.WaitGroup
	defer watch.Wait()
	finished := make(chan struct{})
	defer close(finished)
	watch.Go(func() {
		select {
		case <-ended:
			r.SetReadDeadline(time.Now().Add(grace))
		case <-finished:
		}
	})
	buf := make([]byte, bufferSize)
	for {
		n, err := r.Read(buf)
		if n > 0 && !write(buf[:n]) {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			drain(r, buf, write)
			return
		}
		if errors.Is(err, unix.EIO) {
			drain(r, buf, write)
		}
		if err != nil { // io.EOF; EIO from a pty that nobody has open
			return
		}
	}
}

// drain copies what r holds now. After a deadline a Read would fail without looking.
// After a pty's EIO there may be something, too: n_tty_read looks for input first
// and for the other end's close second, and what is written and closed in between
// is not seen until the next read (drivers/tty/n_tty.c, Linux 6.18).
func drain(r *os.File, buf []byte, write func([]byte) bool) {
	raw, err := r.SyscallConn()
	if err != nil {
		return
	}
	for total := 0; total < maxDrain; {
		n := 0
		err := raw.Control(func(fd uintptr) {
			for {
				if n, err = unix.Read(int(fd), buf); err != unix.EINTR {
					return
				}
			}
		})
		if err != nil || n <= 0 || !write(buf[:n]) {
			return
		}
		total += n
	}
}

// maxDrain bounds what is read from a stream that somebody keeps writing to:
// the largest capacity of a pipe (/proc/sys/fs/pipe-max-size).
const maxDrain = 1 << 20

// A sink is where a client wants output to go: a descriptor of its own, whose
// flags must not change because others share it.
type sink struct {
	f      *os.File
	socket bool
	broken func(error) // called once, when a write has failed

	mu     sync.Mutex
	closed bool
}

// newSink takes over f. A pipe or terminal is opened anew, non-blocking, so
// that Close wakes a Write that waits for a slow reader.
func newSink(f *os.File, broken func(error)) (*sink, error) {
	s := &sink{f: f, broken: broken}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fstat", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFSOCK:
		s.socket = true
	case unix.S_IFIFO, unix.S_IFCHR:
		if own, err := reopen(f, os.O_WRONLY); err == nil {
			f.Close()
			s.f = own
		}
	}
	return s, nil
}

// reopen opens what f has open a second time, non-blocking.
func reopen(f *os.File, mode int) (*os.File, error) {
	return os.OpenFile(procFd(f), mode|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
}

func (s *sink) Write(p []byte) (int, error) {
	if s.socket {
		return s.send(p)
	}
	return s.f.Write(p)
}

// send writes to a socket without waiting in the kernel, where Close could not wake it.
func (s *sink) send(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		s.mu.Lock()
		closed, fd := s.closed, int(s.f.Fd())
		var n int
		err := error(os.ErrClosed)
		if !closed {
			n, err = unix.SendmsgN(fd, p[sent:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}
		s.mu.Unlock()
		switch {
		case err == nil:
			sent += n
		case errors.Is(err, unix.EAGAIN):
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, socketPoll); err != nil && err != unix.EINTR {
				return sent, err
			}
		case !errors.Is(err, unix.EINTR):
			return sent, err
		}
	}
	return sent, nil
}

// socketPoll is how often a full socket is looked at for Close, milliseconds.
const socketPoll = 100

// Close lets go of the descriptor. A Write that is waiting fails.
func (s *sink) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.f.Close()
}

// An input is the container's standard input: the pty master, or a pipe's end.
type input struct {
	f   *os.File
	tty bool

	mu     sync.Mutex
	closed bool
}

// copyFrom copies r to the container until r ends or one of them is closed.
// With closing, the end of r is then the end of the container's input; on a
// terminal, nothing is: a terminal has no end.
func (in *input) copyFrom(r io.Reader, closing bool) {
	buf := make([]byte, 8<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := in.f.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			if closing && !in.tty && errors.Is(err, io.EOF) {
				in.close()
			}
			return
		}
	}
}

func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.closed && !in.tty { // the pty master is closed by its pump
		in.f.Close()
	}
	in.closed = true
}

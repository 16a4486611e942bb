package monitor

import (
	"context"
	"errors"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// A session is the connection of a client that is attached to a process.
type session struct {
	r     *control.Request
	stdin *os.File
	sinks map[*sink]*output
	ended context.Context // of the connection: the client has hung up
	tasks sync.WaitGroup
	stop  func()
}

// open takes the request's descriptors and gives them to their outputs. With
// a terminal, stderr is unused: it is part of stdout.
func open(ctx context.Context, r *control.Request, want Streams, out, errs *output) (*session, error) {
	if len(r.Files) != want.count() {
		return nil, &control.Error{Code: control.CodeInvalid, Message: r.Op + ": descriptors do not match the streams asked for"}
	}
	s := &session{r: r, sinks: map[*sink]*output{}}
	s.ended, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	files := r.Files
	r.Files = nil
	take := func(on bool) (f *os.File) {
		if on {
			f, files = files[0], files[1:]
		}
		return f
	}
	stdin, stdout, stderr := take(want.Stdin), take(want.Stdout), take(want.Stderr)
	err := errors.Join(s.takeInput(stdin), s.sink(stdout, out, "stdout"), s.sink(stderr, errs, "stderr"))
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// takeInput opens the client's pipe anew, so that its flags stay as they are.
func (s *session) takeInput(f *os.File) error {
	if f == nil {
		return nil
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return &control.Error{Code: control.CodeInvalid, Message: s.r.Op + ": stdin has to be a pipe"}
	}
	var err error
	s.stdin, err = reopen(f, os.O_RDONLY)
	return err
}

func (s *session) sink(f *os.File, o *output, name string) error {
	if f == nil {
		return nil
	}
	if o == nil {
		return f.Close()
	}
	k, err := newSink(f, func(err error) { s.r.Event(Event{Broken: name, Errno: brokenBy(err)}) })
	if err != nil {
		return err
	}
	s.sinks[k] = o
	o.add(k)
	return nil
}

// brokenBy says why a client's descriptor takes no more; a terminal that was hung
// up is as good as a pipe that nobody reads.
func brokenBy(err error) unix.Errno {
	if n, ok := errors.AsType[unix.Errno](err); ok && n != unix.EIO {
		return n
	}
	return unix.EPIPE
}

// listen handles the client's further frames until it hangs up. When the
// server ends, which it does with the container, nobody has hung up.
func (s *session) listen(resize func(Size), signal func(unix.Signal)) {
	for {
		var in Input
		files, err := s.r.Conn.Recv(&in)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			s.stop()
			return
		}
		for _, f := range files {
			f.Close()
		}
		if in.Resize != nil {
			resize(*in.Resize)
		}
		if n, err := parseSignal(in.Signal, 0); err == nil && n != 0 {
			signal(n)
		}
	}
}

// release lets go of the client's descriptors, so that whoever reads the other
// ends of its pipes sees the end of the output before the result comes.
func (s *session) release() {
	for k, o := range s.sinks {
		o.remove(k)
	}
	clear(s.sinks)
	if s.stdin != nil {
		s.stdin.Close()
	}
}

// close ends the session. The connection is shut down on this side to wake listen.
func (s *session) close() {
	s.release()
	s.stop()
	s.r.Conn.CloseRead()
	s.tasks.Wait()
}

// handleAttach connects a client to the container and, if it is to, starts it.
func (m *Monitor) handleAttach(ctx context.Context, r *control.Request) error {
	var a AttachArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	s, err := open(ctx, r, a.Streams, m.out, m.err)
	if err != nil {
		return err
	}
	defer s.close()
	if a.Start {
		m.initialSize(a.Size)
		err = m.begun(ctx)
	} else if _, err = m.live(); err == nil {
		m.redraw(a.Size)
	}
	if err != nil {
		s.release()
		return err
	}
	s.tasks.Go(func() { s.listen(m.resize, func(n unix.Signal) { m.signal(n) }) })
	if err := r.Event(Event{Started: true, Pid: m.snapshot().Pid}); err != nil {
		return err
	}
	if in := m.input(); in != nil && s.stdin != nil {
		s.tasks.Go(func() { in.copyFrom(s.stdin, a.CloseStdin) })
	}
	if err := m.wait(s.ended); err != nil {
		return err // the client has gone
	}
	s.release()
	return r.Reply(m.exit())
}

func (m *Monitor) input() *input {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stdin
}

// initialSize makes z the size that the terminal has from its first moment.
func (m *Monitor) initialSize(z Size) {
	m.starting.Lock()
	defer m.starting.Unlock()
	if z.Height > 0 && z.Width > 0 {
		m.cfg.Height, m.cfg.Width = z.Height, z.Width
	}
}

func (m *Monitor) resize(z Size) {
	c, err := m.live()
	if err != nil || !m.cfg.TTY || z.Height == 0 || z.Width == 0 {
		return
	}
	if err := c.Init().Resize(z.Height, z.Width); err != nil {
		m.log.Debug("resize", "err", err)
	}
}

// redraw sets the terminal's size in two steps, so that programs which draw on
// it learn of a change and do so again for the client that has just come.
func (m *Monitor) redraw(z Size) {
	m.resize(Size{z.Height + 1, z.Width})
	m.resize(z)
}

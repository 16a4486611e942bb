package monitor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// IO are a client's own streams for an attach or exec. Stdin is read here, on
// the client's side; the descriptors of the others are passed on.
type IO struct {
	Stdin          io.Reader // nil: none. It may stay blocked in a Read when the call has returned
	Stdout, Stderr *os.File  // nil: not wanted
}

// An Attached is a connection to a process in a container.
type Attached struct {
	conn   *control.Conn
	feed   *os.File // the end of the pipe that stdin is copied to
	stdin  io.Reader
	broken *BrokenError
}

// Attach connects io to the container whose monitor listens at socket.
func Attach(ctx context.Context, socket string, a AttachArgs, io IO) (*Attached, error) {
	a.Streams = io.streams()
	return begin(ctx, socket, OpAttach, a, io)
}

// Exec starts a program in the container and connects io to it.
func Exec(ctx context.Context, socket string, a ExecArgs, io IO) (*Attached, error) {
	a.Streams = io.streams()
	return begin(ctx, socket, OpExec, a, io)
}

func (io IO) streams() Streams {
	return Streams{Stdin: io.Stdin != nil, Stdout: io.Stdout != nil, Stderr: io.Stderr != nil}
}

func begin(ctx context.Context, socket, op string, args any, io IO) (_ *Attached, err error) {
	conn, err := control.Dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	a := &Attached{conn: conn, stdin: io.Stdin}
	defer func() {
		if err != nil {
			a.Close()
		}
	}()
	var files []*os.File
	if io.Stdin != nil {
		p, err := readPipe() // read by the monitor, which opens its end anew
		if err != nil {
			return nil, err
		}
		defer p.ours.Close()
		a.feed = p.theirs
		files = append(files, p.ours)
	}
	for _, f := range []*os.File{io.Stdout, io.Stderr} {
		if f != nil {
			files = append(files, f)
		}
	}
	return a, conn.Begin(op, args, files...)
}

// Wait copies input until the process has ended, and returns how. started, if
// not nil, is called when it is known to run. With ctx's end the client hangs
// up, which is all that happens.
func (a *Attached) Wait(ctx context.Context, started func(Event)) (Exit, error) {
	var copying sync.Once
	stop := context.AfterFunc(ctx, func() { a.conn.CloseRead() })
	defer stop()
	var exit Exit
	_, err := a.conn.Finish(&exit, func(raw json.RawMessage) {
		var e Event
		if json.Unmarshal(raw, &e) != nil {
			return
		}
		if e.Broken != "" {
			a.broken = &BrokenError{Stream: e.Broken, Errno: cmp.Or(e.Errno, unix.EPIPE)}
			a.conn.CloseRead()
			return
		}
		if e.Started {
			copying.Do(func() { go a.copyInput() }) // ends with the input, or the process
			if started != nil {
				started(e)
			}
		}
	})
	switch {
	case err == nil:
		return exit, nil
	case ctx.Err() != nil:
		return exit, ctx.Err()
	case a.broken != nil:
		return exit, a.broken
	case errors.Is(err, io.ErrUnexpectedEOF):
		return exit, ErrLost
	}
	return exit, err
}

// ErrLost says that the monitor went away without telling how the container ended.
var ErrLost = errors.New("the container's monitor has gone")

// A BrokenError says that one of the client's own descriptors takes no more output.
type BrokenError struct {
	Stream string     // "stdout" or "stderr"
	Errno  unix.Errno // EPIPE: nobody reads it any more
}

func (e *BrokenError) Error() string { return e.Stream + ": " + e.Errno.Error() }

// Unwrap returns the Errno.
func (e *BrokenError) Unwrap() error { return e.Errno }

// copyInput is left behind in a Read of a terminal when the process has ended.
func (a *Attached) copyInput() {
	if a.feed == nil {
		return
	}
	io.Copy(a.feed, a.stdin)
	a.feed.Close()
}

// Resize tells the process the terminal's size.
func (a *Attached) Resize(z Size) error { return a.conn.Send(Input{Resize: &z}) }

// Signal sends the process a signal.
func (a *Attached) Signal(n unix.Signal) error {
	return a.conn.Send(Input{Signal: strconv.Itoa(int(n))})
}

// Close hangs up.
func (a *Attached) Close() error {
	if a.feed != nil {
		a.feed.Close()
	}
	return a.conn.Close()
}

// Call makes a request that needs no streams of the monitor at socket.
func Call(ctx context.Context, socket, op string, args, result any) error {
	return call(ctx, socket, op, args, result, nil)
}

// Join hands namespaces to a monitor whose container has not been started. The
// files stay the caller's.
func Join(ctx context.Context, socket string, a JoinArgs, files []*os.File) error {
	c, err := control.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := c.Begin(OpJoin, a, files...); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	_, err = c.Finish(nil, nil)
	return err
}

// Joined are the kinds of namespaces that the monitor at socket has been given. A monitor of
// an older version, which cannot tell, answers with [control.CodeUnsupported].
func Joined(ctx context.Context, socket string) ([]string, error) {
	var a JoinArgs
	err := Call(ctx, socket, OpJoined, nil, &a)
	return a.Kinds, err
}

// call is Call of an operation that reports the State on its way.
func call(ctx context.Context, socket, op string, args, result any, report func(State)) error {
	_, err := control.Call(ctx, socket, op, args, result, func(raw json.RawMessage) {
		var s State
		if report != nil && json.Unmarshal(raw, &s) == nil {
			report(s)
		}
	})
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrLost
	}
	return err
}

// Gone says whether err is that of a monitor which is no more: its state is on
// disk, or the container has been removed.
func Gone(err error) bool {
	return errors.Is(err, ErrLost) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
}

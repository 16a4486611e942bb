package control

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Request is one request as a server sees it.
type Request struct {
	Op    string
	Args  json.RawMessage
	Files []*os.File // came with the request; closed when the handler returns, unless taken by setting Files to nil
	Peer  unix.Ucred
	Conn  *Conn // for operations that go on talking

	replied bool
}

// Decode decodes the arguments into v. Unknown fields are errors, so that a
// client newer than the daemon learns that it asked for something unknown.
func (r *Request) Decode(v any) error {
	d := json.NewDecoder(bytes.NewReader(r.Args))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &Error{CodeInvalid, fmt.Sprintf("%s: malformed arguments: %v", r.Op, err)}
	}
	return nil
}

// Event sends an event; an error means that the client is gone.
func (r *Request) Event(v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return r.Conn.Send(reply{Event: raw})
}

// Reply sends the result, with duplicates of files. It is sent once, last.
func (r *Request) Reply(v any, files ...*os.File) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	r.replied = true
	return r.Conn.Send(reply{Result: raw}, files...)
}

// A Server answers requests.
type Server struct {
	// Handle carries one request out. The error it returns is sent to the
	// client; if it returns nil without a Reply, the result is empty. Its
	// context ends when the client hangs up or the server stops.
	Handle func(ctx context.Context, r *Request) error
	// Code gives an error its code; nil, or "", is CodeInternal.
	Code func(error) string
	// Streaming says which operations read further frames themselves. For all
	// others, anything the client sends after its request ends it.
	Streaming map[string]bool
	Log       *slog.Logger // nil: discard

	lastWords time.Duration // see the constant; 0 is that
}

// lastWords is how long after the end of its context a handler can still send.
// A client that does not read must not keep the server from ending.
const lastWords = 5 * time.Second

// Serve answers connections from l until ctx ends or l is closed, and returns
// when all handlers have. Only root and the server's own user are answered.
func (s *Server) Serve(ctx context.Context, l *net.UnixListener) error {
	ctx, cancel := context.WithCancel(ctx)
	var handlers sync.WaitGroup
	defer handlers.Wait()
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		u, err := l.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				u.Close()
			}
			return ctx.Err()
		case passing(err):
			time.Sleep(10 * time.Millisecond) // descriptors and memory come back as requests end
			continue
		case err != nil:
			return err
		}
		handlers.Go(func() { s.serve(ctx, NewConn(u)) })
	}
}

// passing says of an error of accept4(2) that it is one of this moment: a monitor
// that took it for the end would end its container.
func passing(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.ECONNABORTED, unix.EINTR, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (s *Server) serve(ctx context.Context, c *Conn) {
	defer c.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		c.u.SetReadDeadline(time.Unix(1, 0))
		c.u.SetWriteDeadline(time.Now().Add(cmp.Or(s.lastWords, lastWords)))
	})
	defer stop()

	peer, err := c.Peer()
	if err != nil || (peer.Uid != 0 && int(peer.Uid) != os.Geteuid()) {
		c.Send(reply{Error: &Error{CodeDenied, "permission denied: only root may talk to this socket"}})
		return
	}
	c.u.SetReadDeadline(time.Now().Add(requestTimeout))
	var q request
	files, err := c.Recv(&q)
	if err != nil {
		return
	}
	c.u.SetReadDeadline(time.Time{})
	r := &Request{Op: q.Op, Args: q.Args, Files: files, Peer: *peer, Conn: c}
	defer func() { closeAll(r.Files) }()
	if q.Protocol > Protocol {
		c.Send(reply{Error: &Error{CodeUnsupported, fmt.Sprintf("request speaks protocol %d, this daemon %d: update the daemon", q.Protocol, Protocol)}})
		return
	}
	if !s.Streaming[q.Op] {
		var watch sync.WaitGroup
		defer watch.Wait()
		defer c.u.CloseRead()
		watch.Go(func() { hangup(c.u, cancel) })
	}
	if err := s.Handle(ctx, r); err != nil {
		c.Send(reply{Error: s.wire(err)})
	} else if !r.replied {
		r.Reply(nil)
	}
}

// requestTimeout bounds how long a client may take to send its request.
const requestTimeout = 10 * time.Second

// hangup waits for the client to go away and then calls gone.
func hangup(u *net.UnixConn, gone func()) {
	var b [1]byte
	if _, err := u.Read(b[:]); err == nil || !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, io.EOF) {
		gone()
	}
}

func (s *Server) wire(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok && e.Message == err.Error() {
		return e
	}
	code := ""
	if s.Code != nil {
		code = s.Code(err)
	}
	if e, ok := errors.AsType[*Error](err); code == "" && ok {
		code = e.Code
	}
	if code == "" {
		code = CodeInternal
	}
	return &Error{code, err.Error()}
}

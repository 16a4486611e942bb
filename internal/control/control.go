// Package control is the protocol between snapctl, snapd and the containers'
// monitors: JSON frames over a unix stream socket, which can carry descriptors.
//
//	frame    = length payload        length: uint32, big-endian, bytes of payload
//	request  = {"op": name, "args": …}
//	reply    = {"event": …}* ( {"result": …} | {"error": {"code": …, "message": …}} )
//
// A connection carries one request. Descriptors travel as SCM_RIGHTS with the
// first byte of a frame. An operation may say that more frames follow in either
// direction; those are its own affair.
//
// Invariants: a frame is at most [MaxFrame] bytes and carries at most [MaxFiles]
// descriptors; a peer that breaks either rule is disconnected.
package control

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Protocol is the version of the protocol; a daemon refuses requests of a newer one.
const Protocol = 1

// Bounds of one frame.
const (
	MaxFrame = 32 << 20 // bytes
	MaxFiles = 16       // descriptors
)

// A Conn is one end of a connection. Send and Recv may run at the same time;
// each by itself is serialised.
type Conn struct {
	u *net.UnixConn

	sending sync.Mutex

	receiving sync.Mutex
	files     []*os.File // descriptors that came with bytes of a frame not yet returned
}

// NewConn makes a Conn of u, which it then owns.
func NewConn(u *net.UnixConn) *Conn { return &Conn{u: u} }

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	return NewConn(c.(*net.UnixConn)), nil
}

// Close closes the connection and the descriptors that nobody has received.
func (c *Conn) Close() error {
	err := c.u.Close() // wakes a Recv
	c.receiving.Lock()
	defer c.receiving.Unlock()
	closeAll(c.files)
	c.files = nil
	return err
}

// CloseWrite tells the peer that nothing more will be sent.
func (c *Conn) CloseWrite() error { return c.u.CloseWrite() }

// CloseRead gives up receiving: a Recv that waits returns io.EOF.
func (c *Conn) CloseRead() error { return c.u.CloseRead() }

// Peer returns the credentials of the process at the other end when it connected.
func (c *Conn) Peer() (*unix.Ucred, error) {
	raw, err := c.u.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, cerr
}

// Send sends v as one frame, with duplicates of files. The caller keeps files.
func (c *Conn) Send(v any, files ...*os.File) error {
	payload, err := encode(v)
	if err != nil {
		return err
	}
	if len(payload) > MaxFrame || len(files) > MaxFiles {
		return fmt.Errorf("frame of %d bytes and %d descriptors: beyond the limit", len(payload), len(files))
	}
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)), uint32(len(payload)))
	frame = append(frame, payload...)

	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	n, _, err := c.u.WriteMsgUnix(frame, oob, nil)
	if err == nil && n < len(frame) {
		_, err = c.u.Write(frame[n:])
	}
	return err
}

// Recv decodes the next frame into v (nil: ignore it) and returns the
// descriptors that came with it, which the caller then owns. At the end of the
// stream the error is io.EOF.
func (c *Conn) Recv(v any) ([]*os.File, error) {
	c.receiving.Lock()
	defer c.receiving.Unlock()
	var head [4]byte
	if err := c.readFull(head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > MaxFrame {
		return nil, fmt.Errorf("frame of %d bytes: beyond the limit", n)
	}
	payload := make([]byte, n)
	if err := c.readFull(payload); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	files := c.files
	c.files = nil
	if v != nil {
		if err := decode(payload, v); err != nil {
			closeAll(files)
			return nil, fmt.Errorf("malformed frame: %w", err)
		}
	}
	return files, nil
}

// readFull fills p, collecting descriptors on the way. The kernel never merges
// bytes across a control message, so they belong to the frame being read.
func (c *Conn) readFull(p []byte) error {
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	for got := 0; got < len(p); {
		n, oobn, flags, _, err := c.u.ReadMsgUnix(p[got:], oob)
		if oobn > 0 {
			if err := c.collect(oob[:oobn]); err != nil {
				return err
			}
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return errors.New("too many descriptors in a frame")
		}
		got += n
		if errors.Is(err, unix.ECONNRESET) { // the peer ended without reading what we sent
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if got == 0 {
				return io.EOF
			}
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

func (c *Conn) collect(oob []byte) error {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			c.files = append(c.files, os.NewFile(uintptr(fd), "received"))
		}
	}
	if len(c.files) > MaxFiles {
		return errors.New("too many descriptors in a frame")
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// An Error is a failure that the other side reported.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func (e *Error) Error() string { return e.Message }

type request struct {
	Protocol int             `json:"v"`
	Op       string          `json:"op"`
	Args     json.RawMessage `json:"args,omitempty"`
}

type reply struct {
	Event  json.RawMessage `json:"event,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  *Error          `json:"error,omitempty"`
}

// resultStart begins a frame with nothing but a result.
const resultStart = `{"result":`

// encode is json.Marshal, which would look at all of a result, a list of many
// containers, for a second time: it is JSON already.
func encode(v any) ([]byte, error) {
	r, ok := v.(reply)
	if !ok || len(r.Result) == 0 || r.Event != nil || r.Error != nil {
		return json.Marshal(v)
	}
	b := make([]byte, 0, len(resultStart)+len(r.Result)+1)
	return append(append(append(b, resultStart...), r.Result...), '}'), nil
}

// decode is json.Unmarshal, and leaves it to who decodes the result to find out whether it is one.
func decode(payload []byte, v any) error {
	if r, ok := v.(*reply); ok {
		if rest, ok := bytes.CutPrefix(payload, []byte(resultStart)); ok && bytes.HasSuffix(rest, []byte("}")) {
			r.Result = rest[:len(rest)-1]
			return nil
		}
	}
	return json.Unmarshal(payload, v)
}

// Begin sends the first frame of a request. For operations that go on talking; others use Call.
func (c *Conn) Begin(op string, args any, files ...*os.File) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return err
	}
	return c.Send(request{Protocol: Protocol, Op: op, Args: raw}, files...)
}

// Finish receives events until the result, decodes it into result (nil:
// ignore it) and returns the descriptors that came with it. A failure that the
// other side reported is an *Error; a connection that ends before the result is io.ErrUnexpectedEOF.
func (c *Conn) Finish(result any, event func(json.RawMessage)) ([]*os.File, error) {
	for {
		var r reply
		files, err := c.Recv(&r)
		switch {
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		case r.Error != nil:
			closeAll(files)
			return nil, r.Error
		case r.Event != nil:
			closeAll(files)
			if event != nil {
				event(r.Event)
			}
		case result == nil && json.Valid(r.Result) || len(r.Result) == 0:
			return files, nil
		case result == nil:
			closeAll(files)
			return nil, errors.New("malformed result")
		default:
			if err := json.Unmarshal(r.Result, result); err != nil {
				closeAll(files)
				return nil, fmt.Errorf("malformed result: %w", err)
			}
			return files, nil
		}
	}
}

// Call makes a whole request on a new connection to the socket at path. It ends early when ctx does.
func Call(ctx context.Context, path, op string, args, result any, event func(json.RawMessage)) ([]*os.File, error) {
	c, err := Dial(ctx, path)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.u.Close() })
	defer stop()
	if err := c.Begin(op, args); err != nil {
		return nil, errors.Join(ctx.Err(), err)
	}
	files, err := c.Finish(result, event)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return files, err
}

package systemd

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Socket is where the machine's service manager listens to root.
const Socket = "/run/systemd/private"

// patience is how long an answer, and the end of a job, may take.
const patience = 30 * time.Second

// A Property is one of a unit, as systemd.resource-control(5) and org.freedesktop.systemd1(5) have them.
type Property struct {
	Name string
	// Value is a string, bool, uint64, []byte, []uint32 or []Device.
	Value any
}

// A Device is an element of the property DeviceAllow.
type Device struct{ Node, Access string }

// Infinity is the value of a limit that is none.
const Infinity = ^uint64(0)

// An Error is what systemd answers to what it does not do.
type Error struct {
	Name string // as "org.freedesktop.systemd1.NoSuchUnit"
	Text string
}

func (e *Error) Error() string {
	if e.Text == "" {
		return "systemd: " + e.Name
	}
	return "systemd: " + e.Text
}

// Is knows the two that callers do something about.
func (e *Error) Is(target error) bool {
	return target == ErrExists && e.Name == "org.freedesktop.systemd1.UnitExists" ||
		target == ErrNotExist && e.Name == "org.freedesktop.systemd1.NoSuchUnit"
}

var (
	// ErrExists says that there is a unit of that name.
	ErrExists = errors.New("the unit exists")
	// ErrNotExist says that there is none.
	ErrNotExist = errors.New("no such unit")
	// ErrAbsent says that nobody listens: systemd is not what runs this machine, or not at the moment.
	ErrAbsent = errors.New("no systemd answers")
)

// A Conn is a connection to a service manager, for one call after the other.
type Conn struct {
	conn   net.Conn
	r      *bufio.Reader
	serial uint32
}

// Dial connects. The caller closes the connection.
func Dial(ctx context.Context, socket string) (*Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAbsent, err)
	}
	c := &Conn{conn: conn, r: bufio.NewReader(conn)}
	if err := c.during(ctx, c.authenticate); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return c, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.conn.Close() }

// during does something that ends with ctx, or when it takes too long.
func (c *Conn) during(ctx context.Context, do func() error) error {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	err := do()
	if !stop() && ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("systemd: no answer in %v", patience)
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: it closed the connection", ErrAbsent)
	}
	return err
}

// authenticate says who we are, which the kernel vouches for (D-Bus specification, "Authentication Protocol").
func (c *Conn) authenticate() error {
	uid := hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid())))
	if _, err := io.WriteString(c.conn, "\x00AUTH EXTERNAL "+uid+"\r\nBEGIN\r\n"); err != nil {
		return err
	}
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !strings.HasPrefix(string(line), "OK ") {
		return fmt.Errorf("systemd: it does not let us in: %q", line)
	}
	return nil
}

const (
	managerPath  = "/org/freedesktop/systemd1"
	managerIface = "org.freedesktop.systemd1.Manager"
)

// call calls a method of the manager's, and returns its answer. What else comes goes to other.
func (c *Conn) call(member, signature string, body []byte, other func(*message)) (*message, error) {
	c.serial++
	m := &message{kind: methodCall, serial: c.serial, path: managerPath, iface: managerIface, member: member, signature: signature, body: body}
	if _, err := c.conn.Write(m.encode()); err != nil {
		return nil, err
	}
	for {
		got, err := readMessage(c.r)
		switch {
		case err != nil:
			return nil, err
		case got.reply != c.serial || got.kind != methodReturn && got.kind != methodError:
			if other != nil {
				other(got)
			}
		case got.kind == methodError:
			e := &Error{Name: got.errorName}
			if text, err := got.strings("s"); err == nil {
				e.Text = text[0]
			}
			return nil, e
		default:
			return got, nil
		}
	}
}

// job calls a method that answers with a job, and waits for that job's end.
// systemd tells of all jobs, to everybody on its private socket.
func (c *Conn) job(unit, member, signature string, body []byte) error {
	results := map[string]string{} // of this unit's jobs
	ended := func(m *message) {
		if m.kind != signal || m.member != "JobRemoved" {
			return
		}
		// id, job, unit, result
		if s, err := m.strings("uoss"); err == nil && s[2] == unit {
			results[s[1]] = s[3]
		}
	}
	answer, err := c.call(member, signature, body, ended)
	if err != nil {
		return err
	}
	job, err := answer.strings("o")
	if err != nil {
		return err
	}
	for {
		switch result, ok := results[job[0]]; {
		case ok && result == "done":
			return nil
		case ok:
			return fmt.Errorf("systemd: %s of %s: %s", member, unit, result)
		}
		m, err := readMessage(c.r)
		if err != nil {
			return err
		}
		ended(m)
	}
}

// Start makes a transient unit and returns when it is there.
func (c *Conn) Start(ctx context.Context, unit string, properties []Property) error {
	var e encoder
	e.string(unit)
	e.string("fail") // rather than replace a job of somebody else's
	if err := e.properties(properties); err != nil {
		return fmt.Errorf("unit %s: %w", unit, err)
	}
	e.array(8, func() {}) // auxiliary units
	return c.during(ctx, func() error { return c.job(unit, "StartTransientUnit", "ssa(sv)a(sa(sv))", e.b) })
}

// Stop ends a unit, and forgets it if it has failed; it is no error if there is none.
func (c *Conn) Stop(ctx context.Context, unit string) error {
	var stop, reset encoder
	stop.string(unit)
	stop.string("replace")
	reset.string(unit)
	err := c.during(ctx, func() error {
		if err := c.job(unit, "StopUnit", "ss", stop.b); err != nil {
			return err
		}
		_, err := c.call("ResetFailedUnit", "s", reset.b, nil)
		return err
	})
	if errors.Is(err, ErrNotExist) {
		return nil
	}
	return err
}

// Set changes properties of a unit until the next boot.
func (c *Conn) Set(ctx context.Context, unit string, properties []Property) error {
	var e encoder
	e.string(unit)
	e.uint32(1) // runtime
	if err := e.properties(properties); err != nil {
		return fmt.Errorf("unit %s: %w", unit, err)
	}
	return c.during(ctx, func() error {
		_, err := c.call("SetUnitProperties", "sba(sv)", e.b, nil)
		return err
	})
}

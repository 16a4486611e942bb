package systemd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Kinds of messages, and codes of header fields: D-Bus specification 0.43, "Message Protocol".
const (
	methodCall   = 1
	methodReturn = 2
	methodError  = 3
	signal       = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSender      = 7
	fieldSignature   = 8
	fieldFDs         = 9
)

// Limits of what is read. The longest that systemd sends to us are signals about jobs.
const (
	maxFields = 64 << 10
	maxBody   = 1 << 20
)

// A message is one of D-Bus, as far as it matters here.
type message struct {
	kind                    byte
	serial, reply           uint32
	path, iface, member     string
	errorName, signature    string
	order                   binary.ByteOrder
	body                    []byte
	destination, senderName string
}

var errMessage = errors.New("bad message of D-Bus")

// readMessage reads one message: 16 bytes that say how long the rest is, header
// fields up to a multiple of 8, and the body.
func readMessage(r io.Reader) (*message, error) {
	var head [16]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	m := &message{kind: head[1]}
	switch head[0] {
	case 'l':
		m.order = binary.LittleEndian
	case 'B':
		m.order = binary.BigEndian
	default:
		return nil, fmt.Errorf("%w: byte order %#x", errMessage, head[0])
	}
	if head[3] != 1 {
		return nil, fmt.Errorf("%w: version %d", errMessage, head[3])
	}
	size, fields := m.order.Uint32(head[4:]), m.order.Uint32(head[12:])
	m.serial = m.order.Uint32(head[8:])
	if size > maxBody || fields > maxFields {
		return nil, fmt.Errorf("%w: header of %d bytes, body of %d", errMessage, fields, size)
	}
	rest := make([]byte, (int(fields)+7)&^7+int(size))
	if _, err := io.ReadFull(r, rest); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	m.body = rest[len(rest)-int(size):]
	return m, m.fields(rest[:fields])
}

// fields reads the array of (code, variant) of a header. It begins at a multiple of 8.
func (m *message) fields(b []byte) error {
	d := &decoder{b: b, order: m.order}
	for d.err == nil && d.off < len(d.b) {
		d.align(8)
		code, kind := d.byte(), d.signature()
		var s string
		var n uint32
		switch kind {
		case "s", "o":
			s = d.string()
		case "g":
			s = d.signature()
		case "u":
			n = d.uint32()
		default: // the specification has no others
			return fmt.Errorf("%w: header field %d is of type %q", errMessage, code, kind)
		}
		switch code {
		case fieldPath:
			m.path = s
		case fieldInterface:
			m.iface = s
		case fieldMember:
			m.member = s
		case fieldErrorName:
			m.errorName = s
		case fieldReplySerial:
			m.reply = n
		case fieldDestination:
			m.destination = s
		case fieldSender:
			m.senderName = s
		case fieldSignature:
			m.signature = s
		}
	}
	return d.err
}

// strings reads the first values of the body, of which each is a string (s), a path (o) or a number (u, then "").
func (m *message) strings(signature string) ([]string, error) {
	if !strings.HasPrefix(m.signature, signature) {
		return nil, fmt.Errorf("%w: a body of %q, want %q", errMessage, m.signature, signature)
	}
	d := &decoder{b: m.body, order: m.order}
	var list []string
	for _, kind := range signature {
		s := ""
		if kind == 'u' {
			d.uint32()
		} else {
			s = d.string()
		}
		list = append(list, s)
	}
	return list, d.err
}

// A decoder reads values; after an error all are zero.
type decoder struct {
	b     []byte
	off   int
	order binary.ByteOrder
	err   error
}

// take returns the next n bytes.
func (d *decoder) take(n int) []byte {
	if d.err != nil || n < 0 || n > len(d.b)-d.off {
		if d.err == nil {
			d.err = fmt.Errorf("%w: it ends too early", errMessage)
		}
		return nil
	}
	d.off += n
	return d.b[d.off-n : d.off]
}

func (d *decoder) align(n int) { d.take((n - d.off%n) % n) }

func (d *decoder) byte() byte {
	b := d.take(1)
	if b == nil {
		return 0
	}
	return b[0]
}

func (d *decoder) uint32() uint32 {
	d.align(4)
	b := d.take(4)
	if b == nil {
		return 0
	}
	return d.order.Uint32(b)
}

func (d *decoder) string() string {
	n := d.uint32()
	if n > maxBody {
		n = maxBody + 1 // which there is not
	}
	b := d.take(int(n) + 1)
	if b == nil {
		return ""
	}
	return string(b[:n])
}

func (d *decoder) signature() string {
	n := int(d.byte())
	b := d.take(n + 1)
	if b == nil {
		return ""
	}
	return string(b[:n])
}

// An encoder writes values, in little endian.
type encoder struct{ b []byte }

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) uint32(n uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, n)
}

func (e *encoder) uint64(n uint64) {
	e.align(8)
	e.b = binary.LittleEndian.AppendUint64(e.b, n)
}

func (e *encoder) string(s string) {
	e.uint32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

func (e *encoder) signature(s string) {
	e.b = append(append(append(e.b, byte(len(s))), s...), 0)
}

// array writes what do writes, with its length in front; of the elements' alignment the length knows nothing.
func (e *encoder) array(align int, do func()) {
	e.uint32(0)
	at := len(e.b) - 4
	e.align(align)
	from := len(e.b)
	do()
	binary.LittleEndian.PutUint32(e.b[at:], uint32(len(e.b)-from))
}

// variant writes a value with its type in front.
func (e *encoder) variant(v any) error {
	switch v := v.(type) {
	case string:
		if strings.ContainsRune(v, 0) {
			return fmt.Errorf("%q has a NUL byte", v)
		}
		e.signature("s")
		e.string(v)
	case bool:
		e.signature("b")
		n := uint32(0)
		if v {
			n = 1
		}
		e.uint32(n)
	case uint64:
		e.signature("t")
		e.uint64(v)
	case []byte:
		e.signature("ay")
		e.array(1, func() { e.b = append(e.b, v...) })
	case []uint32:
		e.signature("au")
		e.array(4, func() {
			for _, n := range v {
				e.uint32(n)
			}
		})
	case []Device:
		e.signature("a(ss)")
		e.array(8, func() {
			for _, d := range v {
				e.align(8)
				e.string(d.Node)
				e.string(d.Access)
			}
		})
	default:
		return fmt.Errorf("a value of type %T", v)
	}
	return nil
}

// properties writes an array of (name, variant).
func (e *encoder) properties(list []Property) (err error) {
	e.array(8, func() {
		for _, p := range list {
			e.align(8)
			e.string(p.Name)
			if verr := e.variant(p.Value); verr != nil {
				err = errors.Join(err, fmt.Errorf("%s: %w", p.Name, verr))
			}
		}
	})
	return err
}

// encode is the message in bytes.
func (m *message) encode() []byte {
	e := &encoder{b: []byte{'l', m.kind, 0, 1}}
	e.uint32(uint32(len(m.body)))
	e.uint32(m.serial)
	e.array(8, func() {
		field := func(code byte, kind, s string) {
			if s == "" {
				return
			}
			e.align(8)
			e.b = append(e.b, code)
			e.signature(kind)
			if kind == "g" {
				e.signature(s)
			} else {
				e.string(s)
			}
		}
		field(fieldPath, "o", m.path)
		field(fieldInterface, "s", m.iface)
		field(fieldMember, "s", m.member)
		field(fieldErrorName, "s", m.errorName)
		if m.reply != 0 {
			e.align(8)
			e.b = append(e.b, fieldReplySerial)
			e.signature("u")
			e.uint32(m.reply)
		}
		field(fieldDestination, "s", m.destination)
		field(fieldSignature, "g", m.signature)
	})
	e.align(8)
	return append(e.b, m.body...)
}

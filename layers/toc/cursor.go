package toc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/snapfs/snapfs/layers"
)

// errShort says that a value meets the end of the window.
var errShort = errors.New("value meets the window's end")

// A cursor reads JSON values of a window (RFC 8259), and is as strict as names
// and numbers need: it does not mind control characters in strings.
type cursor struct {
	b       []byte
	pos     int
	scratch []byte
	keyLost bool // the last key of member was lost, as string says
}

func space(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func (c *cursor) bad(what string) error { return fmt.Errorf("%w: %s", layers.ErrBadTOC, what) }

// peek returns the next byte that is not space.
func (c *cursor) peek() (byte, error) {
	for c.pos < len(c.b) {
		if ch := c.b[c.pos]; !space(ch) {
			return ch, nil
		}
		c.pos++
	}
	return 0, errShort
}

func (c *cursor) expect(want byte) error {
	ch, err := c.peek()
	if err != nil {
		return err
	}
	if ch != want {
		return c.bad(fmt.Sprintf("%q where %q belongs", ch, want))
	}
	c.pos++
	return nil
}

// string reads a string. The bytes are valid until the next call of string, or
// the window moves. Bytes that are not UTF-8 are kept as they are: names need
// not be text. lost says that the writer had such bytes and could not keep them:
// Go's encoders write them as the escape \ufffd, and U+FFFD itself as its three
// bytes.
func (c *cursor) string() (s []byte, lost bool, err error) {
	if err := c.expect('"'); err != nil {
		return nil, false, err
	}
	rest := c.b[c.pos:]
	n := bytes.IndexByte(rest, '"')
	if n < 0 {
		return nil, false, errShort
	}
	if bytes.IndexByte(rest[:n], '\\') < 0 {
		c.pos += n + 1
		return rest[:n], false, nil
	}
	return c.escaped()
}

// escaped reads the rest of a string that has escapes.
func (c *cursor) escaped() (s []byte, lost bool, err error) {
	out := c.scratch[:0]
	for {
		rest := c.b[c.pos:]
		n := bytes.IndexAny(rest, `"\`)
		if n < 0 || n+1 >= len(rest) && rest[n] == '\\' {
			return nil, false, errShort
		}
		out = append(out, rest[:n]...)
		c.pos += n + 1
		if rest[n] == '"' {
			c.scratch = out
			return out, lost, nil
		}
		esc := c.b[c.pos]
		c.pos++
		if esc == 'u' {
			r, err := c.unicode()
			if err != nil {
				return nil, false, err
			}
			lost = lost || r == utf8.RuneError
			out = utf8.AppendRune(out, r)
			continue
		}
		plain, ok := escapes[esc]
		if !ok {
			return nil, false, c.bad("unknown escape in a string")
		}
		out = append(out, plain)
	}
}

var escapes = map[byte]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// unicode reads the digits of \uXXXX, and of the second half of a surrogate pair.
// Half a pair is U+FFFD.
func (c *cursor) unicode() (rune, error) {
	r, err := c.hex4()
	if err != nil || !utf16.IsSurrogate(r) {
		return r, err
	}
	rest := c.b[c.pos:]
	if len(rest) < 6 { // a string's end is shorter, but its object's is not far
		if bytes.IndexByte(rest, '"') < 0 {
			return 0, errShort
		}
		return utf8.RuneError, nil
	}
	if rest[0] != '\\' || rest[1] != 'u' {
		return utf8.RuneError, nil
	}
	c.pos += 2
	low, err := c.hex4()
	if err != nil {
		return 0, err
	}
	full := utf16.DecodeRune(r, low)
	if full == utf8.RuneError {
		c.pos -= 6
	}
	return full, nil
}

func (c *cursor) hex4() (rune, error) {
	if c.pos+4 > len(c.b) {
		return 0, errShort
	}
	var r rune
	for _, ch := range c.b[c.pos : c.pos+4] {
		d := nibble[ch]
		if d > 15 {
			return 0, c.bad("escape without four hex digits")
		}
		r = r<<4 | rune(d)
	}
	c.pos += 4
	return r, nil
}

// nibble is the value of a hex digit, either case; 255 for other bytes.
var nibble = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i := range byte(10) {
		t['0'+i] = i
	}
	for i := range byte(6) {
		t['a'+i], t['A'+i] = 10+i, 10+i
	}
	return t
}()

// integer reads a whole number; fractions, exponents and what int64 cannot hold
// are refused. null is 0.
func (c *cursor) integer() (int64, error) {
	ch, err := c.peek()
	if err != nil {
		return 0, err
	}
	if ch == 'n' {
		return 0, c.word("null")
	}
	neg := ch == '-'
	if neg {
		c.pos++
	}
	var n uint64
	start := c.pos
	for ; c.pos < len(c.b); c.pos++ {
		d := c.b[c.pos] - '0'
		if d > 9 {
			break
		}
		if n > math.MaxInt64/10 {
			return 0, c.bad("number too large")
		}
		n = n*10 + uint64(d)
	}
	switch {
	case c.pos == len(c.b):
		return 0, errShort
	case c.pos == start, n > math.MaxInt64, c.b[start] == '0' && c.pos > start+1:
		return 0, c.bad("not a whole number of 63 bits")
	case c.b[c.pos] == '.' || c.b[c.pos] == 'e' || c.b[c.pos] == 'E':
		return 0, c.bad("not a whole number")
	}
	if neg {
		return -int64(n), nil
	}
	return int64(n), nil
}

// text is string where null stands for "".
func (c *cursor) text() (s []byte, lost bool, err error) {
	ch, err := c.peek()
	if err == nil && ch == 'n' {
		return nil, false, c.word("null")
	}
	return c.string()
}

// word takes a literal.
func (c *cursor) word(w string) error {
	rest := c.b[c.pos:]
	if len(rest) < len(w) {
		return errShort
	}
	if string(rest[:len(w)]) != w {
		return c.bad("unknown word")
	}
	c.pos += len(w)
	return nil
}

// maxDepth bounds the nesting of values that nobody reads.
const maxDepth = 64

// skip passes over a value that nobody reads.
func (c *cursor) skip() error { return c.skipDepth(0) }

func (c *cursor) skipDepth(depth int) error {
	ch, err := c.peek()
	switch {
	case err != nil:
		return err
	case depth > maxDepth:
		return c.bad("nested too deep")
	case ch == '"':
		_, _, err := c.string()
		return err
	case ch == '{':
		return c.skipObject(depth)
	case ch == '[':
		return c.skipList(depth)
	case ch == 't':
		return c.word("true")
	case ch == 'f':
		return c.word("false")
	case ch == 'n':
		return c.word("null")
	}
	return c.skipNumber()
}

func (c *cursor) skipList(depth int) error {
	c.pos++
	for first := true; ; first = false {
		more, err := c.next(first, ']')
		if err != nil || !more {
			return err
		}
		if err := c.skipDepth(depth + 1); err != nil {
			return err
		}
	}
}

func (c *cursor) skipNumber() error {
	start := c.pos
	for c.pos < len(c.b) && bytes.IndexByte([]byte("+-.eE0123456789"), c.b[c.pos]) >= 0 {
		c.pos++
	}
	if c.pos == start {
		return c.bad(fmt.Sprintf("%q where a value belongs", c.b[c.pos]))
	}
	switch {
	case c.pos == len(c.b):
		return errShort
	case !json.Valid(c.b[start:c.pos]):
		return c.bad("malformed number")
	}
	return nil
}

// skipObject passes over an object.
func (c *cursor) skipObject(depth int) error {
	c.pos++
	for first := true; ; first = false {
		_, more, err := c.member(first)
		if err != nil || !more {
			return err
		}
		if err := c.skipDepth(depth + 1); err != nil {
			return err
		}
	}
}

// start begins an object, if it is not null, which stands for an empty one.
func (c *cursor) start() (some bool, err error) {
	if ch, err := c.peek(); err == nil && ch == 'n' {
		return false, c.word("null")
	}
	return true, c.expect('{')
}

// member steps to the next value of an object. Its key is valid until the next
// string is read; at the object's end there is no more.
func (c *cursor) member(first bool) (key []byte, more bool, err error) {
	if more, err = c.next(first, '}'); err != nil || !more {
		return nil, false, err
	}
	if key, c.keyLost, err = c.string(); err != nil {
		return nil, false, err
	}
	return key, true, c.expect(':')
}

func (c *cursor) next(first bool, end byte) (bool, error) {
	ch, err := c.peek()
	switch {
	case err != nil:
		return false, err
	case ch == end:
		c.pos++
		return false, nil
	case first:
		return true, nil
	case ch != ',':
		return false, c.bad(fmt.Sprintf("%q where ',' belongs", ch))
	}
	c.pos++
	return true, nil
}

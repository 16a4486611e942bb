package node

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxConfig bounds a configuration file, bytes.
const maxConfig = 4 << 20

// A LineError is about a place in a configuration file.
type LineError struct {
	File string // may be ""
	Line int    // from 1; 0: all of it
	Err  error
}

func (e *LineError) Error() string {
	s := e.Err.Error()
	if e.Line > 0 {
		s = fmt.Sprintf("line %d: %s", e.Line, s)
	}
	if e.File != "" {
		s = e.File + ": " + s
	}
	return s
}

func (e *LineError) Unwrap() error { return e.Err }

// A document is a TOML file that can be changed as text.
type document struct {
	text   []byte
	data   map[string]any
	tables []table
	values []value
	edits  []edit
}

// A table is a header.
type table struct {
	path  []string
	array bool
	off   int // of the header's line
	next  int // of the line behind it
}

// A value is a key and what it is set to, at any level but not within another value.
type value struct {
	path     []string
	table    int // index in tables, -1: none
	at       int // of the key
	off, end int // of the value
	elements []span
}

type span struct{ off, end int }

// An edit replaces bytes, or inserts some where off and end are the same.
type edit struct {
	span
	text string
}

// parse reads a file. It must be whole and valid TOML.
func parse(text []byte) (*document, error) {
	if len(text) > maxConfig {
		return nil, &LineError{Err: fmt.Errorf("longer than %d bytes", maxConfig)}
	}
	d := &document{text: text, data: map[string]any{}}
	if err := toml.Unmarshal(text, &d.data); err != nil {
		line := 0
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ = e.Position()
		}
		return nil, &LineError{Line: line, Err: err}
	}
	var p unstable.Parser
	p.Reset(text)
	for p.NextExpression() {
		n := p.Expression()
		switch n.Kind {
		case unstable.Table, unstable.ArrayTable:
			path, first, _ := keyOf(n)
			off := bytes.LastIndexByte(text[:first], '\n') + 1
			d.tables = append(d.tables, table{path: path, array: n.Kind == unstable.ArrayTable, off: off, next: d.lineEnd(first)})
		case unstable.KeyValue:
			d.values = append(d.values, d.valueOf(n))
		}
	}
	return d, p.Error() // none: Unmarshal has found none
}

// keyOf returns a key, where it begins, and where its last part ends.
func keyOf(n *unstable.Node) (path []string, off, end int) {
	off = -1
	for it := n.Key(); it.Next(); {
		k := it.Node()
		path = append(path, string(k.Data))
		if off < 0 {
			off = int(k.Raw.Offset)
		}
		end = int(k.Raw.Offset + k.Raw.Length)
	}
	return path, off, end
}

func (d *document) valueOf(n *unstable.Node) value {
	path, at, end := keyOf(n)
	v := value{path: path, table: len(d.tables) - 1, at: at, end: int(n.Raw.Offset + n.Raw.Length)}
	if v.table >= 0 {
		v.path = slices.Concat(d.tables[v.table].path, path)
	}
	v.off = end + bytes.IndexByte(d.text[end:], '=') + 1
	for v.off < v.end && (d.text[v.off] == ' ' || d.text[v.off] == '\t') {
		v.off++
	}
	if n.Value().Kind == unstable.Array {
		for it := n.Value().Children(); it.Next(); {
			if e := it.Node(); e.Kind != unstable.Comment {
				v.elements = append(v.elements, span{int(e.Raw.Offset), int(e.Raw.Offset + e.Raw.Length)})
			}
		}
	}
	return v
}

// lineEnd returns where the line after the one with off begins.
func (d *document) lineEnd(off int) int {
	if i := bytes.IndexByte(d.text[off:], '\n'); i >= 0 {
		return off + i + 1
	}
	return len(d.text)
}

// line returns the number of the line at off.
func (d *document) line(off int) int { return 1 + bytes.Count(d.text[:off], []byte("\n")) }

func (d *document) errorf(off int, format string, args ...any) error {
	return &LineError{Line: d.line(off), Err: fmt.Errorf(format, args...)}
}

// value returns what sets path itself, nil if nothing does.
func (d *document) value(path []string) *value {
	for i := range d.values {
		if slices.Equal(d.values[i].path, path) {
			return &d.values[i]
		}
	}
	return nil
}

// get returns the data at path, nil if there is none.
func get(data map[string]any, path ...string) any {
	for _, key := range path[:len(path)-1] {
		data, _ = data[key].(map[string]any)
	}
	return data[path[len(path)-1]]
}

// put sets the data at path.
func put(data map[string]any, path []string, v any) {
	for _, key := range path[:len(path)-1] {
		m, ok := data[key].(map[string]any)
		if !ok {
			m = map[string]any{}
			data[key] = m
		}
		data = m
	}
	data[path[len(path)-1]] = v
}

// where returns the first place that sets path or something in it, -1: nowhere.
func (d *document) where(path []string) int {
	off := -1
	see := func(p []string, at int) {
		if len(p) >= len(path) && slices.Equal(p[:len(path)], path) && (off < 0 || at < off) {
			off = at
		}
	}
	for _, t := range d.tables {
		see(t.path, t.off)
	}
	for _, v := range d.values {
		see(v.path, v.at)
	}
	return off
}

// set sets a value in a table, where it is or in the table's first place. It
// returns false if the table has no place yet.
func (d *document) set(path []string, text string) (bool, error) {
	if v := d.value(path); v != nil {
		d.edits = append(d.edits, edit{span{v.off, v.end}, text})
		return true, nil
	}
	name, in := path[len(path)-1], path[:len(path)-1]
	if err := d.settable(path); err != nil {
		return false, err
	}
	for _, t := range d.tables {
		if slices.Equal(t.path, in) {
			indent := d.text[t.off : t.off+indentation(d.text[t.off:])]
			d.edits = append(d.edits, edit{span{t.next, t.next}, d.newline(t.next) + string(indent) + "  " + key(name) + " = " + text + "\n"})
			return true, nil
		}
	}
	return false, nil
}

// newline ends the line before off, if it is the last one and has no end.
func (d *document) newline(off int) string {
	if off > 0 && d.text[off-1] != '\n' {
		return "\n"
	}
	return ""
}

func indentation(line []byte) int {
	return len(line) - len(bytes.TrimLeft(line, " \t"))
}

// settable tells whether path can be set in a table of its own.
func (d *document) settable(path []string) error {
	for _, t := range d.tables {
		if t.array && len(t.path) <= len(path) && slices.Equal(t.path, path[:len(t.path)]) {
			return d.errorf(t.off, "%s is an array of tables", join(t.path))
		}
	}
	in := path[:len(path)-1]
	for _, v := range d.values {
		if len(v.path) <= len(in) && slices.Equal(v.path, in[:len(v.path)]) {
			return d.errorf(v.at, "%s is set in one line: write it as a table, [%s]", join(v.path), join(v.path))
		}
		within := 0 // levels that are tables of their own
		if v.table >= 0 {
			within = len(d.tables[v.table].path)
		}
		// A table that dotted keys have made may not be opened again (TOML 1.0, "Table").
		for n := within + 1; n < len(v.path); n++ {
			if n <= len(in) && slices.Equal(v.path[:n], in[:n]) {
				return d.errorf(v.at, "%s is set with a dotted key: write it as a table, [%s]", join(v.path), join(v.path[:n]))
			}
		}
	}
	return nil
}

// add appends an element to the array at v.
func (d *document) add(v *value, text string) {
	if n := len(v.elements); n > 0 {
		end := v.elements[n-1].end
		d.edits = append(d.edits, edit{span{end, end}, ", " + text})
		return
	}
	d.edits = append(d.edits, edit{span{v.off + 1, v.off + 1}, text})
}

// begin returns where a line can be inserted that is in no table: behind the
// version, or at the very beginning.
func (d *document) begin() int {
	if v := d.value([]string{"version"}); v != nil {
		return d.lineEnd(v.end)
	}
	return 0
}

// apply returns the text with all edits made.
func (d *document) apply() []byte {
	edits := slices.Clone(d.edits)
	slices.SortStableFunc(edits, func(a, b edit) int { return a.off - b.off })
	var b bytes.Buffer
	at := 0
	for _, e := range edits {
		b.Write(d.text[at:e.off])
		b.WriteString(e.text)
		at = e.end
	}
	b.Write(d.text[at:])
	return b.Bytes()
}

// key writes a key.
func key(s string) string {
	for _, c := range s {
		if !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", c) {
			return quote(s)
		}
	}
	if s == "" {
		return quote(s)
	}
	return s
}

func join(path []string) string {
	keys := make([]string, len(path))
	for i, k := range path {
		keys[i] = key(k)
	}
	return strings.Join(keys, ".")
}

// quote writes a string, as containerd does if it can.
func quote(s string) string {
	plain := !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == '\'' || r == 0x7f || r == '\ufffd' })
	if plain {
		return "'" + s + "'"
	}
	// A Go string has no escape that a basic string of TOML lacks, except \x, \a and \v.
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func list(s []string) string {
	q := make([]string, len(s))
	for i := range s {
		q[i] = quote(s[i])
	}
	return "[" + strings.Join(q, ", ") + "]"
}

// literal writes a value that Merge sets.
func literal(v any) string {
	switch v := v.(type) {
	case bool:
		return strconv.FormatBool(v)
	case string:
		return quote(v)
	case []any:
		s := make([]string, len(v))
		for i := range v {
			s[i] = v[i].(string)
		}
		return list(s)
	}
	panic(fmt.Sprintf("node: no literal of a %T", v))
}

package soci

import (
	"encoding/binary"
	"fmt"

	"github.com/snapfs/snapfs/layers"
)

var le = binary.LittleEndian

// A flat is a FlatBuffer from outside (flatbuffers.dev, "FlatBuffer Internals").
// The runtime that comes with the format panics where an offset is wrong, and
// reads the same bytes as often as offsets lead to them; this one does neither.
//
//	root     uint32   → table
//	table    int32 back to its vtable, fields
//	vtable   uint16 its bytes, uint16 the table's bytes, uint16 of each field: where in the table, 0: not there
//	string   uint32 n, n bytes      vector   uint32 n, n elements
//	field or element that is a table, string or vector: uint32 from itself to there
//
// Whatever is wrong sets err, and from then on everything is zero or empty.
type flat struct {
	p []byte
	// left bounds what is looked at to the size of the buffer: writers share
	// nothing but vtables, and who shares more could make much of few bytes.
	left int
	err  error
}

// A table is one of a flat; the zero table has no fields.
type table struct {
	f      *flat
	at     int // in p
	size   int
	fields []byte // of the vtable
}

func (f *flat) fail(format string, args ...any) {
	if f.err == nil {
		f.err = fmt.Errorf("%w: "+format, append([]any{layers.ErrBadTOC}, args...)...)
	}
}

// has says whether n bytes at an offset are in the buffer, and fails if not.
func (f *flat) has(at, n int) bool {
	if f.err == nil && (at < 0 || n < 0 || at > len(f.p) || n > len(f.p)-at) {
		f.fail("%d bytes at %d of %d", n, at, len(f.p))
	}
	return f.err == nil
}

// take is has for bytes that nothing else refers to.
func (f *flat) take(at, n int) bool {
	if !f.has(at, n) {
		return false
	}
	if f.left -= n; f.left < 0 {
		f.fail("parts of the buffer are used twice")
		return false
	}
	return true
}

// follow returns where the offset at a place leads to.
func (f *flat) follow(at int) int {
	if !f.has(at, 4) {
		return 0
	}
	return at + int(le.Uint32(f.p[at:]))
}

func (f *flat) root() table { return f.table(f.follow(0)) }

func (f *flat) table(at int) table {
	if !f.has(at, 4) {
		return table{}
	}
	v := at - int(int32(le.Uint32(f.p[at:])))
	if !f.has(v, 4) {
		return table{}
	}
	n, size := int(le.Uint16(f.p[v:])), int(le.Uint16(f.p[v+2:]))
	if n < 4 || size < 4 {
		f.fail("table of %d bytes, its vtable of %d", size, n)
		return table{}
	}
	if !f.has(v, n) || !f.take(at, size) {
		return table{}
	}
	return table{f: f, at: at, size: size, fields: f.p[v+4 : v+n]}
}

// field returns where the i-th field is, of n bytes; false if it is not there.
func (t table) field(i, n int) (int, bool) {
	if t.f == nil || t.f.err != nil || 2*i+2 > len(t.fields) {
		return 0, false
	}
	off := int(le.Uint16(t.fields[2*i:]))
	if off == 0 {
		return 0, false
	}
	if off < 4 || off+n > t.size {
		t.f.fail("field at %d of a table of %d bytes", off, t.size)
		return 0, false
	}
	return t.at + off, true
}

func (t table) int64(i int) int64 {
	if at, ok := t.field(i, 8); ok {
		return int64(le.Uint64(t.f.p[at:]))
	}
	return 0
}

func (t table) uint32(i int) uint32 {
	if at, ok := t.field(i, 4); ok {
		return le.Uint32(t.f.p[at:])
	}
	return 0
}

func (t table) byte(i int, unset byte) byte {
	if at, ok := t.field(i, 1); ok {
		return t.f.p[at]
	}
	return unset
}

func (t table) table(i int) table {
	if at, ok := t.field(i, 4); ok {
		return t.f.table(t.f.follow(at))
	}
	return table{}
}

// run returns the bytes of a string or a vector's elements of n bytes each.
func (t table) run(i, n int) (at int, p []byte) {
	if at, ok := t.field(i, 4); ok {
		return t.f.run(t.f.follow(at), n)
	}
	return 0, nil
}

func (f *flat) run(at, n int) (int, []byte) {
	if !f.has(at, 4) {
		return 0, nil
	}
	size := int64(le.Uint32(f.p[at:])) * int64(n)
	if size > int64(len(f.p)) || !f.take(at, 4+int(size)) {
		f.fail("%d bytes at %d of %d", size, at, len(f.p))
		return 0, nil
	}
	return at + 4, f.p[at+4 : at+4+int(size)]
}

func (t table) string(i int) string {
	_, p := t.run(i, 1)
	return string(p)
}

// tables calls do for each table of a vector, until something is wrong.
func (t table) tables(i int, do func(table)) {
	at, p := t.run(i, 4)
	for n := 0; n < len(p) && t.f.err == nil; n += 4 {
		if e := t.f.table(t.f.follow(at + n)); t.f.err == nil {
			do(e)
		}
	}
}

// strings calls do for each string of a vector, until something is wrong.
func (t table) strings(i int, do func(string)) {
	at, p := t.run(i, 4)
	for n := 0; n < len(p) && t.f.err == nil; n += 4 {
		if _, s := t.f.run(t.f.follow(at+n), 1); t.f.err == nil {
			do(string(s))
		}
	}
}

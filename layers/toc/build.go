package toc

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"github.com/snapfs/snapfs/layers"
)

// A builder makes an Index of entries, and checks each. Chunks of all files lie
// one after another in slabs; entries have slices of them.
type builder struct {
	o       Options
	scan    *scanner // for its progress
	entries []layers.Entry
	slab    []layers.Chunk   // chunks of entries go to its end
	slabs   [][]layers.Chunk // full ones
	count   int              // of chunks
	clean   []byte           // scratch

	file file // the regular file whose chunks are coming
}

// A file is a regular file with bytes, until all its chunks are in.
type file struct {
	open   bool
	hidden bool // part of the format: its chunks count as stored, but it is no entry
	name   string
	size   int64
	end    int64 // where its stored bytes end; 0 if the entry does not say
	next   int64 // where its next chunk begins, in the file
	object layers.Sum
	hasSum bool
	chunks []layers.Chunk // so far; reused
}

// Marks in Chunk.BlobLen until the runs are known. Positive: the entry says so.
const (
	lenUnknown = 0
	lenZeros   = -1
)

func (b *builder) bad(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{layers.ErrBadTOC}, args...)...)
}

func (b *builder) add(e *entry) error {
	if len(b.entries)+b.count >= layers.MaxEntries {
		return fmt.Errorf("%w: more than %d entries", layers.ErrTooLarge, layers.MaxEntries)
	}
	if e.lost {
		return fmt.Errorf("%w that is whole: a name in it, like %q, was not UTF-8 and its writer could not keep it", layers.ErrNoTOC, e.name)
	}
	var err error
	if b.clean, err = Clean(b.clean[:0], e.name); err != nil {
		return err
	}
	if string(e.kind) == "chunk" {
		return b.chunk(e)
	}
	if err := b.finish(); err != nil {
		return err
	}
	if hidden(b.clean) {
		if string(e.kind) == "reg" && e.size > 0 {
			return b.begin(e, true)
		}
		return nil
	}
	return b.entry(e)
}

func (b *builder) entry(e *entry) error {
	n, err := b.common(e)
	if err != nil {
		return err
	}
	switch string(e.kind) {
	case "dir":
		n.Kind = layers.Dir
	case "reg":
		n.Kind, n.Size = layers.Reg, e.size
	case "symlink":
		n.Kind = layers.Symlink
		n.Link, err = b.target(e)
	case "hardlink":
		n.Kind = layers.Hardlink
		n.Link, err = b.linked(e)
	case "char", "block":
		n.Kind = layers.Char
		if string(e.kind) == "block" {
			n.Kind = layers.Block
		}
		n.Major, n.Minor, err = b.device(e)
	case "fifo":
		n.Kind = layers.Fifo
	default:
		err = b.bad("%q: unknown type %q", n.Name, e.kind)
	}
	if err == nil && n.Name == "" && n.Kind != layers.Dir {
		err = b.bad("the root is not a directory but %q", e.kind)
	}
	if err != nil {
		return err
	}
	b.grow()
	b.entries = append(b.entries, n)
	if n.Size > 0 {
		return b.begin(e, false)
	}
	return nil
}

// common makes an entry of what all kinds have.
func (b *builder) common(e *entry) (layers.Entry, error) {
	n := layers.Entry{Name: string(b.clean), Sec: e.sec, Nsec: e.nsec, Xattrs: e.xattrs}
	n.Mode, n.UID, n.GID = uint16(e.mode&0o7777), uint32(e.uid), uint32(e.gid)
	if int64(n.UID) != e.uid || int64(n.GID) != e.gid {
		return n, b.bad("%q: owner %d:%d", n.Name, e.uid, e.gid)
	}
	if e.size < 0 || e.mode < 0 {
		return n, b.bad("%q: size %d, mode %d", n.Name, e.size, e.mode)
	}
	if e.size > layers.MaxFile {
		return n, fmt.Errorf("%w: %q of %d bytes", layers.ErrTooLarge, n.Name, e.size)
	}
	return n, nil
}

func (b *builder) target(e *entry) (string, error) {
	if len(e.link) == 0 || len(e.link) > layers.MaxName || bytes.IndexByte(e.link, 0) >= 0 {
		return "", b.bad("%q: symlink to %.100q", b.clean, e.link)
	}
	return string(e.link), nil
}

func (b *builder) linked(e *entry) (string, error) {
	name, err := Clean(nil, e.link)
	if err == nil && (len(name) == 0 || bytes.Equal(name, b.clean)) {
		err = b.bad("%q: hard link to %.100q", b.clean, e.link)
	}
	return string(name), err
}

func (b *builder) device(e *entry) (major, minor uint32, err error) {
	if e.major < 0 || e.minor < 0 || e.major > math.MaxUint32 || e.minor > math.MaxUint32 {
		err = b.bad("%q: device %d:%d", b.clean, e.major, e.minor)
	}
	return uint32(e.major), uint32(e.minor), err
}

// grow makes room for an entry. The document's progress tells how many there
// will be, so that a large Index is not copied again and again.
func (b *builder) grow() {
	n := len(b.entries)
	if n < cap(b.entries) {
		return
	}
	want := max(2*n, 64)
	if read := b.scan.offset(); b.o.Size > 0 && read > window/2 {
		left := float64(max(b.o.Size-read, 0)) / float64(read)
		want = n + n/64 + int(float64(n)*min(left*1.02, 7)) + 64
	}
	b.entries = slices.Grow(b.entries, min(want, layers.MaxEntries)-n)
}

// index ends the last file and returns what all entries make.
func (b *builder) index() (*layers.Index, error) {
	if err := b.finish(); err != nil {
		return nil, err
	}
	if err := b.runs(); err != nil {
		return nil, err
	}
	if cap(b.entries)-len(b.entries) > len(b.entries)/4 {
		b.entries = append(make([]layers.Entry, 0, len(b.entries)), b.entries...)
	}
	return &layers.Index{Entries: b.entries, Compression: b.o.Compression}, nil
}

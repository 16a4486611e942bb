package indexfile

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/snapfs/snapfs/layers"
)

var le = binary.LittleEndian

// Write keeps ix at path: whole and durable, or not at all. A file that is there
// is replaced; Files that have it open keep the old one.
func Write(path string, ix *layers.Index) error {
	p, err := newPlan(ix)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".idx-*")
	if err != nil {
		return err
	}
	err = errors.Join(p.write(f), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A plan is what has to be known of an Index before it can be written.
type plan struct {
	shape
	ix      *layers.Index
	objects []object // ordered by sum
	order   []uint32 // places in objects, in the order of the blob
	place   []uint32 // of each entry's object in objects
	first   []uint32 // of each entry's chunks
}

type object struct {
	sum          layers.Sum
	size         int64
	entry        uint32 // the first that has it
	first, count uint32 // chunks
	off, inner   int64  // in the blob, for the order
}

func newPlan(ix *layers.Index) (*plan, error) {
	if len(ix.Entries) > layers.MaxEntries {
		return nil, fmt.Errorf("%w: index of %d entries", layers.ErrTooLarge, len(ix.Entries))
	}
	p := &plan{ix: ix, first: make([]uint32, len(ix.Entries)), place: make([]uint32, len(ix.Entries))}
	p.compression, p.entries = ix.Compression, int64(len(ix.Entries))
	files := 0
	for i := range ix.Entries {
		if ix.Entries[i].Size > 0 {
			files++
		}
	}
	objects := make([]object, 0, files)
	for i := range ix.Entries {
		e := &ix.Entries[i]
		if p.chunks+int64(len(e.Chunks)) >= noObject {
			return nil, fmt.Errorf("%w: index of more than %d chunks", layers.ErrTooLarge, p.chunks)
		}
		p.first[i], p.place[i] = uint32(p.chunks), noObject
		p.chunks += int64(len(e.Chunks))
		p.strings += int64(len(e.Name)+len(e.Link)) + xattrSize(e.Xattrs)
		if e.Kind == layers.Reg && e.Size > 0 {
			objects = append(objects, newObject(e, i, p.first[i]))
		}
	}
	p.sortObjects(objects)
	return p, nil
}

func newObject(e *layers.Entry, i int, first uint32) object {
	o := object{sum: e.Object, size: e.Size, entry: uint32(i), first: first, count: uint32(len(e.Chunks))}
	if len(e.Chunks) > 0 {
		o.off, o.inner = e.Chunks[0].BlobOff, e.Chunks[0].Inner
	}
	return o
}

// sortObjects orders objects and makes one of those with the same sum.
func (p *plan) sortObjects(all []object) {
	slices.SortFunc(all, func(a, b object) int {
		return cmp.Or(bytes.Compare(a.sum[:], b.sum[:]), cmp.Compare(a.entry, b.entry))
	})
	p.objects = all[:0] // in place: it never overtakes
	for _, o := range all {
		if n := len(p.objects); n == 0 || p.objects[n-1].sum != o.sum {
			p.objects = append(p.objects, o)
		}
		p.place[o.entry] = uint32(len(p.objects) - 1)
	}
	p.shape.objects = int64(len(p.objects))
	p.order = make([]uint32, len(p.objects))
	for i := range p.order {
		p.order[i] = uint32(i)
	}
	slices.SortFunc(p.order, func(i, j uint32) int {
		a, b := &p.objects[i], &p.objects[j]
		return cmp.Or(cmp.Compare(a.off, b.off), cmp.Compare(a.inner, b.inner), cmp.Compare(a.entry, b.entry))
	})
}

// write writes the sections, then the header with their sum.
func (p *plan) write(f *os.File) error {
	if _, err := f.Seek(headerSize, io.SeekStart); err != nil {
		return err
	}
	sum := crc32.New(castagnoli)
	w := bufio.NewWriterSize(io.MultiWriter(f, sum), 256<<10)
	for _, section := range []func(io.Writer) error{p.writeEntries, p.writeObjects, p.writeChunks, p.writeStrings} {
		if err := section(w); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	h := make([]byte, 0, headerSize)
	h = append(h, magic...)
	h = le.AppendUint32(h, version)
	h = le.AppendUint32(h, uint32(p.compression))
	for _, n := range []int64{p.entries, p.shape.objects, p.chunks, p.strings, p.size()} {
		h = le.AppendUint64(h, uint64(n))
	}
	h = append(h, make([]byte, headerSize-8-len(h))...)
	h = le.AppendUint32(h, sum.Sum32())
	h = le.AppendUint32(h, crc32.Checksum(h, castagnoli))
	_, err := f.WriteAt(h, 0)
	return err
}

func (p *plan) writeEntries(w io.Writer) error {
	var at int64 // in strings
	b := make([]byte, 0, entrySize)
	for i := range p.ix.Entries {
		e := &p.ix.Entries[i]
		link := at + int64(len(e.Name))
		xattrs := link + int64(len(e.Link))
		n := xattrSize(e.Xattrs)
		b = le.AppendUint64(b[:0], uint64(at))
		b = le.AppendUint64(b, uint64(link))
		b = le.AppendUint64(b, uint64(xattrs))
		b = le.AppendUint64(b, uint64(e.Sec))
		b = le.AppendUint64(b, uint64(e.Size))
		b = le.AppendUint32(b, p.first[i])
		b = le.AppendUint32(b, uint32(len(e.Chunks)))
		b = le.AppendUint32(b, p.place[i])
		b = le.AppendUint16(b, e.Mode)
		b = append(b, byte(e.Kind), 0)
		for _, v := range []uint32{e.UID, e.GID, e.Nsec, e.Major, e.Minor, uint32(len(e.Name)), uint32(len(e.Link)), uint32(len(e.Xattrs)), uint32(n)} {
			b = le.AppendUint32(b, v)
		}
		at = xattrs + n
		if _, err := w.Write(b[:entrySize]); err != nil { // what is behind len(b) was never written to: zeros
			return err
		}
	}
	return nil
}

func (p *plan) writeObjects(w io.Writer) error {
	var b []byte
	for i := range p.objects {
		o := &p.objects[i]
		b = append(b[:0], o.sum[:]...)
		b = le.AppendUint64(b, uint64(o.size))
		b = le.AppendUint32(b, o.first)
		b = le.AppendUint32(b, o.count)
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	for _, i := range p.order {
		if _, err := w.Write(le.AppendUint32(b[:0], i)); err != nil {
			return err
		}
	}
	return nil
}

func (p *plan) writeChunks(w io.Writer) error {
	var b []byte
	for i := range p.ix.Entries {
		for _, ck := range p.ix.Entries[i].Chunks {
			b = append(b[:0], ck.Sum[:]...)
			for _, v := range []int64{ck.Off, ck.Size, ck.BlobOff, ck.BlobLen, ck.Inner} {
				b = le.AppendUint64(b, uint64(v))
			}
			if _, err := w.Write(b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *plan) writeStrings(w io.Writer) error {
	var b []byte
	for i := range p.ix.Entries {
		e := &p.ix.Entries[i]
		b = append(append(b[:0], e.Name...), e.Link...)
		for _, x := range e.Xattrs {
			b = le.AppendUint16(b, uint16(len(x.Name)))
			b = le.AppendUint32(b, uint32(len(x.Value)))
			b = append(append(b, x.Name...), x.Value...)
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

const xattrHead = 2 + 4

func xattrSize(xs []layers.Xattr) (n int64) {
	for _, x := range xs {
		n += xattrHead + int64(len(x.Name)+len(x.Value))
	}
	return n
}

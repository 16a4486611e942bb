package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/snapfs/snapfs/layers"
)

// write writes what was planned.
func (w *writer) write(f File) error {
	meta := newStream(f, metaBlock)
	data := newStream(f, w.dataStart)
	for i := range w.items {
		it := &w.items[i]
		meta.pad(it.off)
		if err := w.item(i, meta, data); err != nil {
			return fmt.Errorf("object %s: %w", it.node.Object, err)
		}
	}
	meta.pad((w.sharedStart - metaBlock) << blockBits)
	meta.Write(w.shared.area)
	if err := meta.Flush(); err != nil {
		return err
	}
	if err := data.Flush(); err != nil {
		return err
	}
	_, err := f.WriteAt(w.super(), superOffset)
	return err
}

// stream counts what is written to it. Errors stay until Flush.
type stream struct {
	*bufio.Writer
	off int64
}

func newStream(f io.WriterAt, block int64) *stream {
	return &stream{Writer: bufio.NewWriterSize(io.NewOffsetWriter(f, block<<blockBits), 256<<10)}
}

func (s *stream) Write(p []byte) (int, error) {
	s.off += int64(len(p))
	return s.Writer.Write(p)
}

var zeros [blockSize]byte

// pad writes zeros up to an offset.
func (s *stream) pad(to int64) {
	for s.off < to {
		s.Write(zeros[:min(to-s.off, blockSize)])
	}
}

// super returns the superblock, and the rest of its block, which its checksum
// covers.
func (w *writer) super() []byte {
	b := make([]byte, blockSize-superOffset)
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatChecksum|compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(w.items[0].nid()))
	le.PutUint64(b[16:], uint64(len(w.items)))
	le.PutUint64(b[24:], uint64(w.time.sec))
	le.PutUint32(b[32:], w.time.nsec)
	le.PutUint32(b[36:], uint32(w.dataStart+w.dataBlocks))
	le.PutUint32(b[40:], metaBlock)
	if len(w.shared.area) > 0 {
		le.PutUint32(b[44:], uint32(w.sharedStart))
	}
	copy(b[64:80], "snapfs")
	// The kernel's crc32c does not invert its result.
	le.PutUint32(b[4:], ^crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// item writes one inode with its attributes and tail to meta, and the blocks of
// its data to data.
func (w *writer) item(i int, meta, data *stream) error {
	it := &w.items[i]
	w.head = w.appendXattrs(w.inode(w.head[:0], i, data.off), it.node, it.object())
	meta.Write(w.head)
	var p []byte
	switch {
	case it.node.Kind == layers.Dir:
		p = w.dir(it)
	case it.node.Kind == layers.Symlink:
		w.buf = append(w.buf[:0], it.node.Link...)
		p = w.buf
	case it.inline:
		p = w.scratch(int(it.size))
		if err := w.o.Read(it.node.Object, p); err != nil {
			return err
		}
	}
	cut := len(p) - int(it.tail)
	data.Write(p[:cut])
	data.pad(blocks(data.off) << blockBits)
	meta.Write(p[cut:])
	return nil
}

func (w *writer) scratch(n int) []byte {
	if cap(w.buf) < n {
		w.buf = make([]byte, n)
	}
	w.buf = w.buf[:n]
	return w.buf
}

// inode appends inode i, whose data blocks begin at off of the data area.
func (w *writer) inode(b []byte, i int, off int64) []byte {
	it := &w.items[i]
	n := it.node
	format, u := uint16(layoutPlain), uint32(0)
	switch {
	case n.Kind == layers.Char || n.Kind == layers.Block:
		u = rdev(n.Major, n.Minor)
	case it.object():
		u = nullBlock
	case it.tail > 0:
		format, u = layoutInline, uint32(w.dataStart+off>>blockBits)
	case it.blocks > 0:
		u = uint32(w.dataStart + off>>blockBits)
	}
	icount := uint16(0)
	if it.xattrs > 0 {
		icount = uint16((it.xattrs-xattrHeader)/4 + 1)
	}
	mode, _ := fileType(n.Kind)
	mode |= n.Mode

	b = append(b, zeros[:it.head()-int64(it.xattrs)]...)
	le := binary.LittleEndian
	le.PutUint16(b[2:], icount)
	le.PutUint16(b[4:], mode)
	le.PutUint32(b[16:], u)
	le.PutUint32(b[20:], uint32(i+1))
	if it.compact {
		le.PutUint16(b[0:], format)
		le.PutUint16(b[6:], uint16(n.Nlink))
		le.PutUint32(b[8:], uint32(it.size))
		le.PutUint16(b[24:], uint16(n.UID))
		le.PutUint16(b[26:], uint16(n.GID))
		return b
	}
	le.PutUint16(b[0:], format|formatExtended)
	le.PutUint64(b[8:], uint64(it.size))
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Sec))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], n.Nlink)
	return b
}

// Package erofs writes a Tree as an EROFS image that the kernel mounts: names,
// attributes and links, but not the bytes of files. A regular file that is not
// empty has two attributes instead, which make overlayfs look for its bytes in
// its data-only layers (Documentation/filesystems/overlayfs.rst, "Data-only
// lower layers"):
//
//	trusted.overlay.metacopy  (empty)
//	trusted.overlay.redirect  /ab/cdef…   the name of its object
//
// Small files whose bytes are at hand can be in the image itself; if all are,
// it is called sealed.
//
// Layout of an image, blocks of 4 KiB:
//
//	superblock │ inodes, each directory's beside each other, with their │ blocks of directories,
//	           │ attributes and the last bytes of their data             │ small files and long links
//
// The module github.com/erofs/go-erofs writes such images too, but has no hard
// links; its reader proves ours in the tests.
package erofs

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// Options of Write. The zero value puts no bytes of files into the image.
type Options struct {
	// InlineMax is the size, in bytes, of the largest file whose bytes go into
	// the image, if Has says that they are at hand.
	InlineMax int64
	Has       func(layers.Sum) bool
	// Read fills p with the bytes of an object that Has has said yes to.
	Read func(s layers.Sum, p []byte) error
}

// Summary tells what was written.
type Summary struct {
	Names  int64 // directory entries, the root among them
	Size   int64 // bytes of the image
	Sealed bool  // every file of 1 to InlineMax bytes is in it
}

// Write writes t as an EROFS image to f from its beginning. The image is the
// same for the same tree. Not synced. An error leaves f in an unknown state; it
// wraps layers.ErrTooLarge for what the format cannot hold.
func Write(f *os.File, t *fs.Tree, o Options) (Summary, error) {
	w := &writer{o: o, sum: Summary{Sealed: true}, nids: map[*fs.Inode]int{}}
	if err := w.plan(t.Root()); err != nil {
		return w.sum, err
	}
	if err := f.Truncate(0); err != nil {
		return w.sum, err
	}
	if err := w.write(f); err != nil {
		return w.sum, err
	}
	w.sum.Size = int64(w.dataStart+w.dataBlocks) << blockBits
	return w.sum, f.Truncate(w.sum.Size)
}

// writer is one Write: a plan of where every inode goes, then two sequential
// streams, one of inodes and one of data blocks.
type writer struct {
	o     Options
	sum   Summary
	items []item
	nids  map[*fs.Inode]int // item of an inode that has several names

	metaSize   int64 // bytes of inodes, from the block after the superblock's
	dataStart  int64 // block
	dataBlocks int64
}

// item is an inode and its place.
type item struct {
	node   *fs.Node
	parent int   // item of the directory it is in
	first  int   // item of the first child; of directories
	off    int64 // bytes from the start of the metadata
	xattrs int   // bytes of its attributes
	size   int64 // i_size
	blocks int64 // full blocks in the data area
	tail   int   // bytes of data behind the inode
	nlink  uint32
	inline bool // a regular file with its bytes in the image
}

// metaBlock is the first block of inodes.
const metaBlock = 1

// plan gives every inode a place: breadth first, so that the inodes of a
// directory are together, and the root's number fits into the superblock's 16 bits.
func (w *writer) plan(root *fs.Node) error {
	w.items = append(w.items, item{node: root})
	for i := 0; i < len(w.items); i++ {
		if w.items[i].node.Kind == layers.Dir {
			w.children(i)
		}
		if err := w.place(&w.items[i]); err != nil {
			return fmt.Errorf("%q: %w", w.items[i].node.Name, err)
		}
	}
	w.dataStart = metaBlock + (w.metaSize+blockSize-1)>>blockBits
	w.sum.Names = 1
	for i := range w.items {
		w.sum.Names += int64(w.items[i].kids())
	}
	if w.dataStart+w.dataBlocks >= nullBlock {
		return fmt.Errorf("%w: more than 16 TiB of metadata", layers.ErrTooLarge)
	}
	return nil
}

func (it *item) kids() (n int) {
	for range it.node.Children() {
		n++
	}
	return n
}

// children queues the inodes of a directory that have not been seen under another name.
func (w *writer) children(dir int) {
	w.items[dir].first = len(w.items)
	links := uint32(2)
	for _, kid := range w.items[dir].node.Children() {
		if kid.Kind == layers.Dir {
			links++
		} else if kid.Linked {
			if i, seen := w.nids[kid.Inode]; seen {
				w.items[i].nlink++
				continue
			}
			w.nids[kid.Inode] = len(w.items)
		}
		w.items = append(w.items, item{node: kid, parent: dir, nlink: 1})
	}
	w.items[dir].nlink = links
}

// place lays the inode behind the ones before it. Data that follows it must
// not cross a block (fs/erofs/data.c, erofs_map_blocks).
func (w *writer) place(it *item) error {
	if err := w.measure(it); err != nil {
		return err
	}
	off := (w.metaSize + slotSize - 1) &^ (slotSize - 1)
	head := int64(inodeSize + it.xattrs)
	for it.tail > 0 && (off+head)%blockSize+int64(it.tail) > blockSize {
		off += slotSize
	}
	it.off = off
	w.metaSize = off + head + int64(it.tail) + it.chunkIndex()
	w.dataBlocks += it.blocks
	return nil
}

// maxTail is the longest data put behind an inode: any longer and finding a
// place for it would waste more than a block's rest does.
const maxTail = blockSize / 2

// measure finds out how large an inode is and what of its data goes where.
func (w *writer) measure(it *item) error {
	n := it.node
	it.inline = n.Kind == layers.Reg && n.Size > 0 && n.Size <= w.o.InlineMax && w.o.Has != nil && w.o.Has(n.Object)
	if n.Kind == layers.Reg && n.Size > 0 && !it.inline && n.Size <= w.o.InlineMax {
		w.sum.Sealed = false
	}
	var err error
	if it.xattrs, err = xattrSize(n, !it.inline); err != nil {
		return err
	}
	switch {
	case n.Kind == layers.Dir:
		it.size = dirSize(n)
	case n.Kind == layers.Symlink:
		it.size = int64(len(n.Link))
	case n.Kind == layers.Reg:
		it.size = n.Size
		if !it.inline {
			return nil
		}
	}
	it.blocks, it.tail = it.size>>blockBits, int(it.size&(blockSize-1))
	if it.tail > maxTail {
		it.blocks, it.tail = it.blocks+1, 0
	}
	return nil
}

// chunkIndex is the size of the block map of a file without bytes: one hole per chunk.
func (it *item) chunkIndex() int64 {
	if it.node.Kind != layers.Reg || it.inline || it.size == 0 {
		return 0
	}
	const chunk = int64(blockSize) << maxChunkBits
	return 4 * ((it.size + chunk - 1) / chunk)
}

func (it *item) nid() uint64 { return uint64(it.off / slotSize) }

// write writes what was planned.
func (w *writer) write(f *os.File) error {
	if _, err := f.WriteAt(w.super(), superOffset); err != nil {
		return err
	}
	meta := &stream{Writer: bufio.NewWriterSize(io.NewOffsetWriter(f, metaBlock<<blockBits), 1<<18)}
	data := &stream{Writer: bufio.NewWriterSize(io.NewOffsetWriter(f, w.dataStart<<blockBits), 1<<18)}
	for i := range w.items {
		it := &w.items[i]
		meta.pad(it.off)
		if err := w.inode(i, meta, data); err != nil {
			return fmt.Errorf("%q: %w", it.node.Name, err)
		}
	}
	if err := meta.Flush(); err != nil {
		return err
	}
	return data.Flush()
}

// stream counts what is written to it. Errors stay until Flush.
type stream struct {
	*bufio.Writer
	off int64
}

func (s *stream) Write(p []byte) (int, error) {
	s.off += int64(len(p))
	return s.Writer.Write(p)
}

var zeros [blockSize]byte

func (s *stream) pad(to int64) {
	for s.off < to {
		s.Write(zeros[:min(to-s.off, blockSize)])
	}
}

func (w *writer) super() []byte {
	b := make([]byte, superSize)
	le := binary.LittleEndian
	le.PutUint32(b[0:], superMagic)
	le.PutUint32(b[8:], compatMtime)
	b[12] = blockBits
	le.PutUint16(b[14:], uint16(w.items[0].nid()))
	le.PutUint64(b[16:], uint64(len(w.items)))
	le.PutUint32(b[36:], uint32(w.dataStart+w.dataBlocks))
	le.PutUint32(b[40:], metaBlock)
	copy(b[64:80], "snapfs")
	le.PutUint32(b[80:], incompatChunked)
	return b
}

// inode writes one inode with its attributes and tail to meta, and the full
// blocks of its data to data.
func (w *writer) inode(i int, meta, data *stream) error {
	it := &w.items[i]
	n := it.node
	b := make([]byte, inodeSize, inodeSize+it.xattrs)
	le := binary.LittleEndian
	layout, u := uint16(layoutPlain), uint32(0)
	switch {
	case n.Kind == layers.Char || n.Kind == layers.Block:
		u = rdev(n.Major, n.Minor)
	case it.chunkIndex() > 0:
		layout, u = layoutChunked, maxChunkBits
	case it.tail > 0:
		layout, u = layoutInline, uint32(w.dataStart+data.off>>blockBits)
	case it.blocks > 0:
		u = uint32(w.dataStart + data.off>>blockBits)
	}
	le.PutUint16(b[0:], formatExtended|layout)
	if it.xattrs > 0 {
		le.PutUint16(b[2:], uint16((it.xattrs-xattrHeader)/4+1))
	}
	le.PutUint16(b[4:], mode(n))
	le.PutUint64(b[8:], uint64(it.size))
	le.PutUint32(b[16:], u)
	le.PutUint32(b[20:], uint32(i+1))
	le.PutUint32(b[24:], n.UID)
	le.PutUint32(b[28:], n.GID)
	le.PutUint64(b[32:], uint64(n.Sec))
	le.PutUint32(b[40:], n.Nsec)
	le.PutUint32(b[44:], it.nlink)
	meta.Write(appendXattrs(b, n, !it.inline))

	switch {
	case n.Kind == layers.Dir:
		return w.dir(i, meta, data)
	case n.Kind == layers.Symlink:
		spread([]byte(n.Link), it, meta, data)
	case it.inline:
		p := make([]byte, it.size)
		if err := w.o.Read(n.Object, p); err != nil {
			return err
		}
		spread(p, it, meta, data)
	default:
		for range it.chunkIndex() / 4 {
			meta.Write(le.AppendUint32(nil, nullBlock))
		}
	}
	return nil
}

// spread writes the full blocks of p to data and the rest behind the inode.
func spread(p []byte, it *item, meta, data *stream) {
	cut := len(p) - it.tail
	data.Write(p[:cut])
	data.pad((data.off + blockSize - 1) &^ (blockSize - 1))
	meta.Write(p[cut:])
}

// rdev is the kernel's new_encode_dev.
func rdev(major, minor uint32) uint32 {
	return minor&0xff | major<<8 | minor&^0xff<<12
}

func mode(n *fs.Node) uint16 {
	return map[layers.Kind]uint16{
		layers.Dir: 0o040000, layers.Reg: 0o100000, layers.Symlink: 0o120000,
		layers.Char: 0o020000, layers.Block: 0o060000, layers.Fifo: 0o010000,
	}[n.Kind] | n.Mode
}

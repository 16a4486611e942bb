package erofs

import (
	"fmt"
	"math"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// item is an inode and its place.
type item struct {
	node    *fs.Node
	off     int64 // bytes from the start of the inodes
	size    int64 // i_size
	parent  int   // item of the directory it is in
	first   int   // item of the first child; of directories
	blocks  int64 // of data in the data area
	tail    int32 // bytes of data behind the inode
	xattrs  int32 // bytes of attributes behind the inode
	compact bool
	inline  bool // a regular file with its bytes in the image
}

func (it *item) nid() uint64 { return uint64(it.off / slotSize) }

// object reports whether the bytes of the file are an object.
func (it *item) object() bool { return it.node.Kind == layers.Reg && it.size > 0 && !it.inline }

// linked reports whether n may have further names.
func linked(n *fs.Node) bool { return n.Kind != layers.Dir && n.Nlink > 1 }

// A vote finds the time that more than half of the inodes have, if there is one
// (Boyer and Moore's algorithm). They can then be compact.
type vote struct {
	sec  int64
	nsec uint32
	lead int
}

func (v *vote) see(n *fs.Node) {
	switch {
	case v.sec == n.Sec && v.nsec == n.Nsec:
		v.lead++
	case v.lead == 0:
		*v = vote{n.Sec, n.Nsec, 1}
	default:
		v.lead--
	}
}

// plan gives every inode a place, the root first: its number must fit into the
// superblock's 16 bits.
func (w *writer) plan(root *fs.Node) error {
	if err := w.survey("", root); err != nil {
		return err
	}
	w.metaSize = slotSize // the first slot stays empty: for readdir(3) an entry with the inode number 0 is none
	if err := w.place("", root, 0); err != nil {
		return err
	}
	if err := w.children(0); err != nil {
		return err
	}
	w.sharedStart = metaBlock + blocks(w.metaSize)
	w.dataStart = w.sharedStart + blocks(int64(len(w.shared.area)))
	if w.dataStart+w.dataBlocks >= nullBlock {
		return fmt.Errorf("image of %d blocks: %w", w.dataStart+w.dataBlocks, layers.ErrTooLarge)
	}
	return nil
}

func blocks(n int64) int64 { return (n + blockSize - 1) >> blockBits }

// survey looks at what inodes have in common.
func (w *writer) survey(name string, n *fs.Node) error {
	w.time.see(n)
	if err := w.shared.see(n); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	for _, c := range n.Children() {
		if err := w.survey(c.Name, c.Node); err != nil {
			return err
		}
	}
	return nil
}

// children places the inodes in a directory, side by side for whoever lists it,
// and then those in its directories.
func (w *writer) children(dir int) error {
	kids := w.items[dir].node.Children()
	w.items[dir].first = len(w.items)
	for _, c := range kids {
		if linked(c.Node) {
			if _, seen := w.links[c.Node]; seen {
				continue
			}
			w.links[c.Node] = len(w.items)
		}
		if err := w.place(c.Name, c.Node, dir); err != nil {
			return err
		}
	}
	for i, end := w.items[dir].first, len(w.items); i < end; i++ {
		if w.items[i].node.Kind == layers.Dir {
			if err := w.children(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// place lays an inode behind the ones before it. Data that follows it must not
// cross a block (fs/erofs/data.c, erofs_map_blocks); the inode itself may.
func (w *writer) place(name string, n *fs.Node, parent int) error {
	it := item{node: n, parent: parent}
	if err := w.measure(&it); err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	head := it.head()
	it.off = (w.metaSize + slotSize - 1) &^ (slotSize - 1)
	if it.tail > 0 && (it.off+head)%blockSize+int64(it.tail) > blockSize {
		// The tail goes to the start of the next block, the inode right before it.
		next := (it.off + head + blockSize - 1) &^ (blockSize - 1)
		it.off = (next - head + slotSize - 1) &^ (slotSize - 1)
	}
	w.metaSize = it.off + head + int64(it.tail)
	w.dataBlocks += it.blocks
	w.items = append(w.items, it)
	return nil
}

// head is the size of the inode and its attributes.
func (it *item) head() int64 {
	if it.compact {
		return compactSize + int64(it.xattrs)
	}
	return extendedSize + int64(it.xattrs)
}

// maxTail is the longest data put behind an inode, bytes: any longer and finding
// a place for it would waste more than a block's rest does.
const maxTail = blockSize / 2

// measure finds out how large an inode is and what of its data goes where.
func (w *writer) measure(it *item) error {
	n := it.node
	data := n.Kind == layers.Dir || n.Kind == layers.Symlink
	switch n.Kind {
	case layers.Dir:
		it.size = dirSize(n)
	case layers.Symlink:
		it.size = int64(len(n.Link))
	case layers.Reg:
		it.size = n.Size
		if n.Size > 0 && n.Size <= w.o.InlineMax {
			it.inline = w.o.Has != nil && w.o.Has(n.Object)
			w.sum.Sealed = w.sum.Sealed && it.inline
			data = it.inline
		}
	}
	size, err := w.xattrSize(n, it.object())
	if err != nil {
		return err
	}
	it.xattrs = int32(size)
	it.compact = n.Sec == w.time.sec && n.Nsec == w.time.nsec && n.UID <= math.MaxUint16 && n.GID <= math.MaxUint16 &&
		n.Nlink <= math.MaxUint16 && it.size <= math.MaxUint32
	if !data {
		return nil
	}
	it.blocks, it.tail = it.size>>blockBits, int32(it.size&(blockSize-1))
	if it.tail > maxTail {
		it.blocks, it.tail = it.blocks+1, 0
	}
	return nil
}

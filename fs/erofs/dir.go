package erofs

import (
	"encoding/binary"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// A directory is blocks of entries and then their names, all in the order of
// their bytes, "." and ".." among them:
//
//	nid 8 │ name offset 2 │ type 1 │ 0   × entries   │ name │ name │ … │ zeros to the block's end
//
// The offset of the first name tells how many entries the block has. The last
// block ends with its last name.

// packer cuts a directory into blocks.
type packer struct {
	size int64 // of the blocks before this one
	used int   // bytes of this one
}

// fit makes room for a name and tells whether a new block began.
func (p *packer) fit(name string) (fresh bool) {
	n := direntLen + len(name)
	if fresh = p.used+n > blockSize; fresh {
		p.size, p.used = p.size+blockSize, 0
	}
	p.used += n
	return fresh
}

func (p *packer) total() int64 { return p.size + int64(p.used) }

// names calls f with all names of a directory, in order. Of "." and ".." kid is -1.
func names(dir *fs.Node, f func(name string, kid int)) {
	special := []string{".", ".."}
	for i, c := range dir.Children() {
		for len(special) > 0 && special[0] < c.Name {
			f(special[0], -1)
			special = special[1:]
		}
		f(c.Name, i)
	}
	for _, s := range special {
		f(s, -1)
	}
}

func dirSize(dir *fs.Node) int64 {
	var p packer
	names(dir, func(name string, _ int) { p.fit(name) })
	return p.total()
}

// dirent is one entry of the block being filled.
type dirent struct {
	nid  uint64
	name string
	kind byte
}

// dir returns the data of a directory, good until the next call.
func (w *writer) dir(it *item) []byte {
	var p packer
	kids, next := it.node.Children(), it.first
	block, all := w.block[:0], w.buf[:0]
	names(it.node, func(name string, kid int) {
		if p.fit(name) {
			all = appendBlock(all, block)
			all = append(all, zeros[:-len(all)&(blockSize-1)]...)
			block = block[:0]
		}
		d := dirent{name: name}
		switch {
		case kid >= 0:
			_, d.kind = fileType(kids[kid].Node.Kind)
			d.nid = w.nid(kids[kid].Node, &next)
		default:
			_, d.kind = fileType(layers.Dir)
			d.nid = it.nid()
			if name == ".." {
				d.nid = w.items[it.parent].nid()
			}
		}
		block = append(block, d)
	})
	w.block, w.buf = block, appendBlock(all, block)
	return w.buf
}

// nid is the number of a child. Children are the items from next on, but for
// those that had a name before.
func (w *writer) nid(n *fs.Node, next *int) uint64 {
	at := *next
	if linked(n) {
		at = w.links[n]
	}
	if at == *next {
		*next++
	}
	return w.items[at].nid()
}

func appendBlock(b []byte, entries []dirent) []byte {
	off := len(entries) * direntLen
	for _, d := range entries {
		b = binary.LittleEndian.AppendUint64(b, d.nid)
		b = binary.LittleEndian.AppendUint16(b, uint16(off))
		b = append(b, d.kind, 0)
		off += len(d.name)
	}
	for _, d := range entries {
		b = append(b, d.name...)
	}
	return b
}

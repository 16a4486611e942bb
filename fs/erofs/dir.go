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

// names calls f with all entries of a directory, in order.
func names(n *fs.Node, f func(name string, kid *fs.Node)) {
	special := []string{".", ".."}
	for name, kid := range n.Children() {
		for len(special) > 0 && special[0] < name {
			f(special[0], nil)
			special = special[1:]
		}
		f(name, kid)
	}
	for _, s := range special {
		f(s, nil)
	}
}

func dirSize(n *fs.Node) int64 {
	var p packer
	names(n, func(name string, _ *fs.Node) { p.fit(name) })
	return p.total()
}

// dirent is one entry of the block being filled.
type dirent struct {
	nid  uint64
	name string
	kind byte
}

// dir writes the data of directory i.
func (w *writer) dir(i int, meta, data *stream) error {
	it := &w.items[i]
	var p packer
	var block []dirent
	var full []byte
	next := it.first
	names(it.node, func(name string, kid *fs.Node) {
		if p.fit(name) {
			full = appendBlock(full, block)
			full = append(full, zeros[:-len(full)&(blockSize-1)]...)
			block = block[:0]
		}
		d := dirent{name: name, kind: typeDir}
		switch {
		case name == "." && kid == nil:
			d.nid = it.nid()
		case kid == nil:
			d.nid = w.items[it.parent].nid()
		default:
			d.kind = fileType(kid.Kind)
			at := next
			if known, linked := w.nids[kid.Inode]; linked && kid.Linked {
				at = known
			}
			if at == next {
				next++
			}
			d.nid = w.items[at].nid()
		}
		block = append(block, d)
	})
	spread(appendBlock(full, block), it, meta, data)
	return nil
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

func fileType(k layers.Kind) byte {
	switch k {
	case layers.Dir:
		return typeDir
	case layers.Symlink:
		return typeSymlink
	case layers.Char:
		return typeChar
	case layers.Block:
		return typeBlock
	case layers.Fifo:
		return typeFifo
	}
	return typeReg
}

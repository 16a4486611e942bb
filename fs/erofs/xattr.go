package erofs

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// Attributes follow their inode, those that it does not share:
//
//	name filter 4 │ shared n 1 │ 0 × 7 │ place of a shared one 4 × n │ entry │ entry │ …
//
// An entry, here or in the area of shared ones, is
//
//	name length 1 │ prefix 1 │ value length 2 │ name │ value │ zeros to the word's end
//
// and a place is counted in words from the area's begin.

const (
	metacopy = "trusted.overlay.metacopy"
	redirect = "trusted.overlay.redirect"
)

// objectXattrs is the size of the two entries that lead to an object.
var objectXattrs = entrySize(layers.Xattr{Name: metacopy}) + entrySize(layers.Xattr{Name: redirect, Value: "/" + layers.Sum{}.Path()})

// splitName cuts a name into the index of its prefix and the rest; 0 if the
// format cannot hold it. Package fs lets no such name through.
func splitName(name string) (index byte, rest string) {
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok && p.whole == (rest == "") && len(rest) <= 255 {
			return p.index, rest
		}
	}
	return 0, ""
}

// entrySize is the size of an attribute's entry in bytes.
func entrySize(x layers.Xattr) int {
	_, rest := splitName(x.Name)
	return (xattrEntryHeader + len(rest) + len(x.Value) + 3) &^ 3
}

func appendEntry(b []byte, x layers.Xattr) []byte {
	index, rest := splitName(x.Name)
	b = append(b, byte(len(rest)), index)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(x.Value)))
	b = append(append(b, rest...), x.Value...)
	return append(b, zeros[:-len(b)&3]...)
}

// appendRedirect is appendEntry of the redirect to an object, without garbage:
// most inodes have one.
func appendRedirect(b []byte, sum layers.Sum) []byte {
	index, rest := splitName(redirect)
	b = append(b, byte(len(rest)), index)
	b = binary.LittleEndian.AppendUint16(b, uint16(2+2*len(sum)))
	b = append(append(b, rest...), '/')
	b = append(hex.AppendEncode(b, sum[:1]), '/')
	b = hex.AppendEncode(b, sum[1:])
	return append(b, zeros[:-len(b)&3]...)
}

// shared is the area of attributes that several inodes have. None crosses a
// block: not all readers could follow.
type shared struct {
	count map[layers.Xattr]int
	place map[layers.Xattr]uint32 // in words
	area  []byte
}

// see counts the attributes of an inode.
func (s *shared) see(n *fs.Node) error {
	for _, x := range n.Xattrs {
		if index, _ := splitName(x.Name); index == 0 {
			return fmt.Errorf("extended attribute %.80q: %w", x.Name, layers.ErrBadLayer)
		}
		if len(x.Value) >= 1<<16 {
			return fmt.Errorf("extended attribute %s of %d bytes: %w", x.Name, len(x.Value), layers.ErrTooLarge)
		}
		if s.count == nil {
			s.count, s.place = make(map[layers.Xattr]int), make(map[layers.Xattr]uint32)
		}
		s.count[x]++
	}
	return nil
}

// has reports whether x is better kept in the area: that costs a word for each
// inode.
func (s *shared) has(x layers.Xattr) bool {
	size, n := entrySize(x), s.count[x]
	return size <= blockSize/2 && n*size > 4*n+size
}

// put returns the place of x, at which it is now if it was not.
func (s *shared) put(x layers.Xattr) uint32 {
	at, ok := s.place[x]
	if !ok {
		if len(s.area)&(blockSize-1)+entrySize(x) > blockSize {
			s.area = append(s.area, zeros[:-len(s.area)&(blockSize-1)]...)
		}
		at = uint32(len(s.area) / 4)
		s.place[x] = at
		s.area = appendEntry(s.area, x)
	}
	return at
}

// xattrSize is the size of what follows the inode of n, 0 if nothing does. With
// object there are the two attributes that lead to its object, too.
func (w *writer) xattrSize(n *fs.Node, object bool) (int, error) {
	size, refs := 0, 0
	for _, x := range n.Xattrs {
		if refs < maxShared && w.shared.has(x) {
			w.shared.put(x)
			refs++
			continue
		}
		size += entrySize(x)
	}
	if object {
		size += objectXattrs
	}
	if size += 4 * refs; size == 0 {
		return 0, nil
	}
	if size += xattrHeader; size > maxXattrs {
		return 0, fmt.Errorf("extended attributes of %d bytes: %w", size, layers.ErrTooLarge)
	}
	return size, nil
}

// appendXattrs appends what xattrSize has measured.
func (w *writer) appendXattrs(b []byte, n *fs.Node, object bool) []byte {
	if len(n.Xattrs) == 0 && !object {
		return b
	}
	head := len(b)
	b = append(b, zeros[:xattrHeader]...)
	refs := 0
	for _, x := range n.Xattrs {
		if refs < maxShared && w.shared.has(x) {
			b = binary.LittleEndian.AppendUint32(b, w.shared.put(x))
			refs++
		}
	}
	b[head+4] = byte(refs)
	for _, x := range n.Xattrs {
		if refs > 0 && w.shared.has(x) {
			refs--
			continue
		}
		b = appendEntry(b, x)
	}
	if object {
		b = appendEntry(b, layers.Xattr{Name: metacopy})
		b = appendRedirect(b, n.Object)
	}
	return b
}

package fs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// Merge lays upper over lower, where nil is the empty tree, and changes neither.
// What it makes of a layer is what containerd v2.4 (pkg/archive, with
// OverlayConvertWhiteout) and overlayfs make of it, which includes that:
//
//   - whiteouts and opaque markers hide only what is below, wherever in the layer
//     they stand; but a directory listed beside its own whiteout is merged with
//     the one below, not emptied, and an opaque marker in the root does nothing;
//
//   - the attributes of the root directory are 0755 root:root, whatever a layer says;
//
//   - directories that a layer does not list are made: with the attributes of the
//     directory below, or else root:root 0755. Their time is that of the one
//     below, or 1970: containerd leaves the time of unpacking;
//
//   - symbolic links in the path of an entry are followed if the same layer has
//     them, never out of the root;
//
//   - a hard link's own attributes become those of the file.
//
//   - the character device 0:0 hides a name, as a whiteout does.
//
// Unlike there, a hard link may also lead to a file of a lower layer, which then
// is copied up, as overlayfs does; a whiteout that comes after what the layer
// itself has of that name, or a directory that a later entry replaces, is not an
// error; times before 1970 are kept; and what AUFS left in a layer
// (".wh..wh.plnk" and the like) is left out.
//
// What cannot be unpacked is refused with layers.ErrBadLayer: a hard link to
// nothing or to a directory, a file in the place of a parent directory, a name
// the kernel would not take. layers.ErrTooLarge says that a limit is exceeded.
func Merge(lower *Tree, upper *layers.Index) (*Tree, error) {
	if lower == nil {
		lower = &Tree{}
	}
	b := newBuilder(lower.root, len(upper.Entries))
	for i := range upper.Entries {
		e := &upper.Entries[i]
		if err := b.add(e); err != nil {
			return nil, fmt.Errorf("%s: %w", e.Name, err)
		}
	}
	b.dirTimes(upper.Entries)
	m := merger{n: lower.n}
	m.over(lower.root, b.root)
	if m.n > layers.MaxImageFiles {
		return nil, fmt.Errorf("%d files: %w", m.n, layers.ErrTooLarge)
	}
	return &Tree{root: b.root, n: m.n}, nil
}

// A merger lays the finished tree of a layer, which it changes in place, over
// the tree below it. n is the number of names.
type merger struct{ n int }

// over makes upper what overlayfs shows of upper over lower.
func (m *merger) over(lower, upper *Node) {
	upper.order()
	if lower == nil {
		m.alone(upper)
		return
	}
	upper.Nlink = 1 // fs/overlayfs/inode.c, ovl_getattr: of every merged directory
	upper.kids = m.kids(lower.kids, upper.kids)
}

// kids merges the names of two directories.
func (m *merger) kids(lower, upper []Child) []Child {
	if len(upper) == 0 {
		return lower
	}
	all := make([]Child, 0, len(lower)+len(upper))
	for _, u := range upper {
		i := 0
		if len(lower) > 0 && lower[0].Name < u.Name {
			i, _ = slices.BinarySearchFunc(lower, u.Name, func(c Child, name string) int { return strings.Compare(c.Name, name) })
		}
		all, lower = append(all, lower[:i]...), lower[i:]
		var below *Node
		if len(lower) > 0 && lower[0].Name == u.Name {
			below, lower = lower[0].Node, lower[1:]
			m.n--
		}
		if m.child(below, u.Node) {
			all = append(all, u)
			m.n++
		}
	}
	return append(all, lower...)
}

// child lays one name over what is below it, if anything. It reports whether
// the name remains.
func (m *merger) child(below, u *Node) bool {
	if u.Kind == layers.Dir && u.flags&opaque == 0 && below != nil && below.Kind == layers.Dir {
		m.over(below, u)
		return true
	}
	if below != nil {
		m.n -= below.names()
	}
	if u.Kind == layers.Dir {
		u.order()
		m.alone(u)
	}
	return u.Kind != whiteout
}

// alone finishes a directory with nothing below it.
func (m *merger) alone(dir *Node) {
	dir.Nlink = 2
	dir.flags = 0
	kids := dir.kids[:0]
	for _, c := range dir.kids {
		if m.child(nil, c.Node) {
			kids = append(kids, c)
			m.n++
		}
		if c.Node.Kind == layers.Dir {
			dir.Nlink++
		}
	}
	clear(dir.kids[len(kids):])
	dir.kids = kids
}

// order sorts a directory's kids.
func (n *Node) order() {
	if n.flags&unsorted != 0 {
		slices.SortFunc(n.kids, func(a, b Child) int { return strings.Compare(a.Name, b.Name) })
	}
	n.flags &^= unsorted
}

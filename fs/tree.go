// Package fs turns the indexes of an image's layers into the one tree of files
// that a container sees.
//
// A [Tree] is made of names and [Node]s; several names may share a node: hard
// links. [Merge] lays the index of one layer over the tree of the layers below
// it, as containerd's pkg/archive unpacks a layer into an upper directory and
// the kernel's overlayfs then shows it. Nothing here does I/O.
//
// Invariants: a Tree never changes. Merge shares with its lower tree what the
// layer does not touch. The names in a directory are unique, in byte order, and
// such that the kernel takes them; no name is a whiteout.
package fs

import (
	"iter"
	"path"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// A Tree is what the layers of an image, laid over each other, hold.
type Tree struct {
	root *Node
	n    int
}

// A Node is what a name stands for: an inode. It is not to be changed.
type Node struct {
	Kind  layers.Kind // never Hardlink
	flags uint8
	Mode  uint16 // permission, setuid, setgid and sticky bits: 07777
	UID   uint32
	GID   uint32
	Nsec  uint32
	// Nlink is the link count as overlayfs shows it: that of the layer the node
	// comes from, where names that a higher layer hides still count. Of a
	// directory it is 1 if several layers have it, else 2 and one for each
	// directory in it.
	Nlink  uint32
	Major  uint32 // of Char and Block
	Minor  uint32
	Sec    int64          // modification time, seconds since 1970
	Size   int64          // plain bytes; of regular files only
	Link   string         // target of a Symlink
	Xattrs []layers.Xattr // sorted by name, none of them overlayfs's own
	Object layers.Sum     // of regular files with Size > 0 only
	kids   []Child
}

// A Child is a name in a directory.
type Child struct {
	Name string
	Node *Node
}

// whiteout is the kind of a node that hides a name of the layers below. It
// occurs only while a layer is being built.
const whiteout layers.Kind = 0

const (
	opaque   = 1 << iota // a directory that hides what the layers below have in it
	unsorted             // a directory whose kids are not in order yet
)

// Root returns the root directory.
func (t *Tree) Root() *Node { return t.root }

// Len returns the number of names, the root not counted.
func (t *Tree) Len() int { return t.n }

// Lookup returns what name, relative to the root, stands for, nil if there is
// no such name. Symbolic links are not followed. "" is the root.
func (t *Tree) Lookup(name string) *Node {
	return t.root.at(name)
}

// Walk yields every name and what it stands for: the root first, as "", a
// directory before what is in it, and the names of a directory in byte order.
func (t *Tree) Walk() iter.Seq2[string, *Node] {
	return func(yield func(string, *Node) bool) {
		if yield("", t.root) {
			t.root.walk("", yield)
		}
	}
}

func (n *Node) walk(dir string, yield func(string, *Node) bool) bool {
	for _, c := range n.kids {
		name := path.Join(dir, c.Name)
		if !yield(name, c.Node) || !c.Node.walk(name, yield) {
			return false
		}
	}
	return true
}

// Children returns the names in a directory, in byte order; none of anything
// else. The slice is not to be changed.
func (n *Node) Children() []Child { return n.kids }

// Child returns what name stands for in the directory n, or nil.
func (n *Node) Child(name string) *Node {
	if i, ok := n.find(name); ok {
		return n.kids[i].Node
	}
	return nil
}

// find is the place of name in a directory whose kids are in order.
func (n *Node) find(name string) (int, bool) {
	return slices.BinarySearchFunc(n.kids, name, func(c Child, name string) int { return strings.Compare(c.Name, name) })
}

// at returns the node of a path below n without following symbolic links.
func (n *Node) at(name string) *Node {
	for elem := range elems(name) {
		if n = n.Child(elem); n == nil {
			return nil
		}
	}
	return n
}

// names counts the names below n.
func (n *Node) names() int {
	total := len(n.kids)
	for _, c := range n.kids {
		if len(c.Node.kids) > 0 {
			total += c.Node.names()
		}
	}
	return total
}

// elems yields the elements of a clean relative path; none of "".
func elems(name string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for name != "" {
			elem, rest, _ := strings.Cut(name, "/")
			if !yield(elem) {
				return
			}
			name = rest
		}
	}
}

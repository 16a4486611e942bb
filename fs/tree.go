// Package fs merges the layers of an image into one Tree of names, as overlayfs
// shows a stack of unpacked layers. It does no I/O.
//
// Terms: a *whiteout* is a layer's entry .wh.NAME, which hides NAME of the
// layers below; an *opaque* directory (.wh..wh..opq) hides all that the layers
// below have in it. Both concern lower layers only: what the same layer puts
// there stays, whatever the order.
//
// Invariants: a Tree never changes; Merge shares with its lower tree the
// directories that the upper layer does not touch. Every name of a Tree is one
// that an Index may have, and no file of it can speak to overlayfs: there are
// no trusted.overlay.* and user.overlay.* attributes, and no 0:0 devices.
package fs

import (
	"fmt"
	iofs "io/fs"
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// A Tree is the names of an image. The nil Tree has none.
type Tree struct {
	root *Node
	n    int
}

// A Node is one name of a Tree. Names that are hard links of each other have
// the same Inode.
type Node struct {
	*Inode
	kids map[string]*Node // of a directory
	own  *merge           // who may still change the node
}

// An Inode is what a name stands for. Its Entry's Name is one of its names, its
// Kind is never Hardlink.
type Inode struct {
	*layers.Entry
	Linked bool // there may be further names
}

// Root returns the root directory.
func (t *Tree) Root() *Node { return t.root }

// Len is the number of names, the root among them.
func (t *Tree) Len() int { return t.n }

// Lookup returns the node at path, which is relative and clean as in an Entry;
// "" is the root. Symbolic links are not followed. The error is
// fs.ErrNotExist-wrapped if there is none.
func (t *Tree) Lookup(path string) (*Node, error) {
	n := t.root
	for rest := path; rest != ""; {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		if n = n.kids[elem]; n == nil {
			return nil, fmt.Errorf("%s: %w", path, iofs.ErrNotExist)
		}
	}
	return n, nil
}

// Children returns the names in a directory and their nodes, in the order of their bytes.
func (n *Node) Children() iter.Seq2[string, *Node] {
	return func(yield func(string, *Node) bool) {
		for _, name := range slices.Sorted(maps.Keys(n.kids)) {
			if !yield(name, n.kids[name]) {
				return
			}
		}
	}
}

// Walk calls f for every name, parents first and siblings in the order of
// their bytes. The root's path is "".
func (t *Tree) Walk(f func(path string, n *Node) error) error {
	return walk("", t.root, f)
}

func walk(path string, n *Node, f func(string, *Node) error) error {
	if err := f(path, n); err != nil {
		return err
	}
	for name, kid := range n.Children() {
		if path != "" {
			name = path + "/" + name
		}
		if err := walk(name, kid, f); err != nil {
			return err
		}
	}
	return nil
}

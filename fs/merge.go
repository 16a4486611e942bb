package fs

import (
	"fmt"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// Names that a layer says something with (OCI image-spec, layer.md, "Whiteouts").
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh." // AUFS's own files; nothing but the next is of use
	opaqueMarker   = ".wh..wh..opq"
)

// Merge lays upper over lower and resolves its whiteouts. It does no I/O and
// changes neither. A nil lower is empty. The error wraps layers.ErrBadLayer if
// a hard link has no target, or layers.ErrTooLarge beyond layers.MaxImageFiles names.
func Merge(lower *Tree, upper *layers.Index) (*Tree, error) {
	m := &merge{}
	if lower == nil {
		m.root, m.n = m.newNode(implicitDir("")), 1
	} else {
		m.root, m.n = m.copyOf(lower.root), lower.n
	}
	m.hide(upper)
	for i := range upper.Entries {
		if err := m.add(&upper.Entries[i]); err != nil {
			return nil, err
		}
		if m.n > layers.MaxImageFiles {
			return nil, fmt.Errorf("%w: more than %d names", layers.ErrTooLarge, layers.MaxImageFiles)
		}
	}
	return &Tree{root: m.root, n: m.n}, nil
}

// merge is one Merge. It may change the nodes it owns, and copies others first.
type merge struct {
	root *Node
	n    int
}

func (m *merge) newNode(e *layers.Entry) *Node {
	n := &Node{Inode: &Inode{Entry: e}, own: m}
	if e.Kind == layers.Dir {
		n.kids = map[string]*Node{}
	}
	return n
}

// copyOf returns a node that m may change and that is like n.
func (m *merge) copyOf(n *Node) *Node {
	if n.own == m {
		return n
	}
	c := &Node{Inode: n.Inode, own: m, kids: make(map[string]*Node, len(n.kids)+1)}
	for name, kid := range n.kids {
		c.kids[name] = kid
	}
	return c
}

// implicitDir is a parent that no layer has an entry for (as mkparent of
// containerd v2 pkg/archive makes it, but for the time, which is 1970).
func implicitDir(name string) *layers.Entry {
	return &layers.Entry{Name: name, Kind: layers.Dir, Mode: 0o755}
}

// hide takes away what the whiteouts and opaque markers of a layer name. It
// comes before anything is added, so only lower layers are concerned.
func (m *merge) hide(upper *layers.Index) {
	for i := range upper.Entries {
		dir, base := split(upper.Entries[i].Name)
		if !strings.HasPrefix(base, whiteoutPrefix) {
			continue
		}
		if m.find(dir) == nil {
			continue // nothing below has the directory
		}
		switch {
		case base == opaqueMarker:
			m.clear(m.dir(dir))
		case strings.HasPrefix(base, metaPrefix):
		default:
			m.drop(m.dir(dir), base[len(whiteoutPrefix):])
		}
	}
}

func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	return name[:max(i, 0)], name[i+1:]
}

// find returns the directory at path if there is one.
func (m *merge) find(path string) *Node {
	n := m.root
	for rest := path; rest != ""; {
		var elem string
		elem, rest, _ = strings.Cut(rest, "/")
		if n = n.kids[elem]; n == nil || n.Kind != layers.Dir {
			return nil
		}
	}
	return n
}

// dir returns the directory at path for changing. Missing directories are made;
// what is in the way and no directory is replaced, as it is when it is unpacked.
func (m *merge) dir(path string) *Node {
	n := m.root
	for at := 0; at < len(path); {
		end := strings.IndexByte(path[at:], '/')
		if end < 0 {
			end = len(path) - at
		}
		elem := path[at : at+end]
		kid := n.kids[elem]
		switch {
		case kid == nil || kid.Kind != layers.Dir:
			m.drop(n, elem)
			kid = m.newNode(implicitDir(path[:at+end]))
			m.n++
		default:
			kid = m.copyOf(kid)
		}
		n.kids[elem] = kid
		n, at = kid, at+end+1
	}
	return n
}

// drop removes a name with all below it.
func (m *merge) drop(dir *Node, name string) {
	n := dir.kids[name]
	if n == nil {
		return
	}
	m.n -= count(n)
	delete(dir.kids, name)
}

func (m *merge) clear(dir *Node) {
	for name := range dir.kids {
		m.drop(dir, name)
	}
}

func count(n *Node) int {
	c := 1
	for _, kid := range n.kids {
		c += count(kid)
	}
	return c
}

// add adds one entry of the upper layer.
func (m *merge) add(e *layers.Entry) error {
	if e.Name == "" {
		if e.Kind == layers.Dir {
			m.root.Inode = &Inode{Entry: clean(e)}
		}
		return nil
	}
	parent, base := split(e.Name)
	if strings.Contains("/"+parent, "/"+metaPrefix) {
		return nil
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		if base == opaqueMarker {
			m.dir(parent) // the directory itself is of this layer, marked or not
		}
		return nil
	}
	dir := m.dir(parent)
	if e.Kind == layers.Hardlink {
		return m.link(dir, base, e)
	}
	if old := dir.kids[base]; old != nil && old.Kind == layers.Dir && e.Kind == layers.Dir {
		kid := m.copyOf(old)
		kid.Inode = &Inode{Entry: clean(e)}
		dir.kids[base] = kid
		return nil
	}
	m.drop(dir, base)
	if e.Kind == layers.Char && e.Major == 0 && e.Minor == 0 {
		return nil // overlayfs would take it for a whiteout: it hides the name and is not seen
	}
	dir.kids[base] = m.newNode(clean(e))
	m.n++
	return nil
}

// link adds another name of a file. Below another file system's name, overlayfs
// copies a lower file up first: the two names then share a new inode, and
// further names of the lower file keep the old one.
func (m *merge) link(dir *Node, base string, e *layers.Entry) error {
	targetDir, targetBase := split(e.Link)
	from := m.find(targetDir)
	var target *Node
	if from != nil {
		target = from.kids[targetBase]
	}
	switch {
	case e.Link == e.Name && target != nil:
		return nil
	case target == nil:
		return fmt.Errorf("%w: %q is a hard link to %q, which does not exist", layers.ErrBadLayer, e.Name, e.Link)
	case target.Kind == layers.Dir:
		return fmt.Errorf("%w: %q is a hard link to %q, which is a directory", layers.ErrBadLayer, e.Name, e.Link)
	}
	if target.own != m {
		target = &Node{Inode: &Inode{Entry: target.Entry}, own: m}
		m.dir(targetDir).kids[targetBase] = target
	}
	target.Linked = true
	dir = m.dir(first(split(e.Name))) // the target's directory may be the same one, copied just now
	m.drop(dir, base)
	dir.kids[base] = &Node{Inode: target.Inode, own: m}
	m.n++
	return nil
}

func first(a, _ string) string { return a }

// clean returns e without attributes that overlayfs would obey.
func clean(e *layers.Entry) *layers.Entry {
	if !slices.ContainsFunc(e.Xattrs, private) {
		return e
	}
	c := *e
	c.Xattrs = slices.DeleteFunc(slices.Clone(e.Xattrs), private)
	return &c
}

func private(x layers.Xattr) bool {
	return strings.HasPrefix(x.Name, "trusted.overlay.") || strings.HasPrefix(x.Name, "user.overlay.")
}

package fs

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// A builder applies the entries of one layer, one after the other, to a tree of
// its own, as containerd's applyNaive does to an upper directory: whiteouts
// become nodes, opaque markers flags.
type builder struct {
	lower *Node // root of the layers below; nil if there are none
	root  *Node

	// The directory that dir returned last: entries mostly stand by directory.
	lastName string
	last     *Node

	byName   map[*Node]map[string]int // places in big directories that are not in order
	slab     []Node                   // nodes not yet used
	left     int                      // entries that may still need nodes
	implicit int                      // directories made that no entry names
	replaced bool                     // a directory gave way to something else
}

// maxScan is the number of names up to which a directory that is not in order
// is searched without a map.
const maxScan = 16

func newBuilder(lower *Node, entries int) *builder {
	b := &builder{lower: lower, left: entries}
	b.root = b.node()
	b.root.Kind, b.root.Mode, b.root.Nlink = layers.Dir, 0o755, 1
	if lower != nil {
		b.root.Sec, b.root.Nsec = lower.Sec, lower.Nsec
	}
	b.last = b.root
	return b
}

// node returns a new node, from a slab: hundreds of thousands are made.
func (b *builder) node() *Node {
	if len(b.slab) == 0 {
		b.slab = make([]Node, max(8, min(256, b.left)))
	}
	n := &b.slab[0]
	b.slab = b.slab[1:]
	b.left--
	return n
}

// add applies one entry.
func (b *builder) add(e *layers.Entry) error {
	if e.Name == "" { // pkg/archive ignores what resolves to the root; its time is nobody's
		b.root.Sec, b.root.Nsec = e.Sec, e.Nsec
		return nil
	}
	if len(e.Name) > layers.MaxName {
		return fmt.Errorf("name of %d bytes: %w", len(e.Name), layers.ErrTooLarge)
	}
	if leftByAUFS(e.Name) {
		return nil
	}
	parent, base := "", e.Name
	if i := strings.LastIndexByte(e.Name, '/'); i >= 0 {
		parent, base = e.Name[:i], e.Name[i+1:]
	}
	dir, err := b.dir(parent)
	if err != nil {
		return err
	}
	if strings.HasPrefix(base, whiteoutPrefix) {
		return b.whiteout(dir, base)
	}
	switch e.Kind {
	case layers.Dir:
		return b.directory(dir, base, e)
	case layers.Hardlink:
		return b.hardlink(dir, base, e)
	}
	n, err := b.file(e)
	if err != nil {
		return err
	}
	return b.put(dir, base, n)
}

// The names of OCI image-spec layer.md, "Whiteouts"; AUFS's begin with whiteoutMeta.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

// leftByAUFS reports whether an element of name is one that AUFS kept for itself.
func leftByAUFS(name string) bool {
	if !strings.Contains(name, whiteoutMeta) {
		return false
	}
	dir, base := path.Split(name)
	if strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return true
	}
	return strings.HasPrefix(dir, whiteoutMeta) || strings.Contains(dir, "/"+whiteoutMeta)
}

func (b *builder) whiteout(dir *Node, base string) error {
	if base == whiteoutOpaque {
		if dir != b.root { // of overlayfs's root the mark is never read: ovl_get_root looks nothing up
			dir.flags |= opaque
		}
		return nil
	}
	name := base[len(whiteoutPrefix):]
	if err := checkElem(name); err != nil {
		return err
	}
	if own := b.child(dir, name); own != nil { // a whiteout concerns lower layers only
		own.flags |= opaque
		return nil
	}
	return b.put(dir, name, b.node())
}

func (b *builder) directory(dir *Node, base string, e *layers.Entry) error {
	n := b.child(dir, base)
	if n == nil || n.Kind != layers.Dir {
		n = b.node()
		n.Kind = layers.Dir
		if err := b.put(dir, base, n); err != nil {
			return err
		}
	}
	n.setAttributes(e)
	return nil
}

// file returns a new node for any entry that is neither directory nor hard link.
func (b *builder) file(e *layers.Entry) (*Node, error) {
	n := b.node()
	n.Kind, n.Nlink = e.Kind, 1
	switch e.Kind {
	case layers.Reg:
		if e.Size < 0 || e.Size > layers.MaxFile {
			return nil, fmt.Errorf("file of %d bytes: %w", e.Size, layers.ErrTooLarge)
		}
		n.Size = e.Size
		if e.Size > 0 {
			n.Object = e.Object
		}
	case layers.Symlink:
		if e.Link == "" || len(e.Link) > layers.MaxName || strings.IndexByte(e.Link, 0) >= 0 {
			return nil, fmt.Errorf("symbolic link to %.80q: %w", e.Link, layers.ErrBadLayer)
		}
		n.Link = e.Link
	case layers.Char, layers.Block:
		if e.Major >= 1<<12 || e.Minor >= 1<<20 { // include/linux/kdev_t.h; the kernel would cut them
			return nil, fmt.Errorf("device %d:%d: %w", e.Major, e.Minor, layers.ErrBadLayer)
		}
		n.Major, n.Minor = e.Major, e.Minor
		if e.Kind == layers.Char && e.Major == 0 && e.Minor == 0 {
			n.Kind = whiteout // to overlayfs it is one, however it came to be
		}
	case layers.Fifo:
	default:
		return nil, fmt.Errorf("kind %d: %w", e.Kind, layers.ErrBadLayer)
	}
	n.setAttributes(e)
	return n, nil
}

// setAttributes gives n what the header of e says, as chown, setxattr, chmod and
// utimensat do, in that order.
func (n *Node) setAttributes(e *layers.Entry) {
	n.UID, n.GID = e.UID, e.GID
	n.Sec, n.Nsec = e.Sec, e.Nsec
	n.Mode = e.Mode & 0o7777
	if n.Kind == layers.Symlink {
		n.Mode = 0o777
	}
	if n.Kind != layers.Dir { // chown takes away a file's capabilities (fs/open.c, ATTR_KILL_PRIV)
		n.Xattrs = withoutXattr(n.Xattrs, "security.capability")
	}
	n.Xattrs = mergeXattrs(n.Xattrs, keptXattrs(e.Xattrs, n.Kind))
}

func (b *builder) hardlink(dir *Node, base string, e *layers.Entry) error {
	if i, ok := b.find(dir, base); ok {
		b.drop(dir, i) // before the target is looked for, as containerd does
	}
	target, err := b.linkTarget(e)
	if err != nil {
		return fmt.Errorf("hard link to %s: %w", e.Link, err)
	}
	target.setAttributes(e)
	target.Nlink++
	return b.put(dir, base, target)
}

// child returns what the layer has at a name, or nil.
func (b *builder) child(dir *Node, name string) *Node {
	if i, ok := b.find(dir, name); ok {
		return dir.kids[i].Node // nil if dropped
	}
	return nil
}

// find is the place of name in a directory that is still being filled. New
// names mostly come after all others.
func (b *builder) find(dir *Node, name string) (int, bool) {
	kids := dir.kids
	switch {
	case len(kids) == 0:
		return 0, false
	case dir.flags&unsorted == 0:
		if kids[len(kids)-1].Name < name {
			return len(kids), false
		}
		return dir.find(name)
	case len(kids) > maxScan:
		i, ok := b.byName[dir][name]
		return i, ok
	}
	i := slices.IndexFunc(kids, func(c Child) bool { return c.Name == name })
	return i, i >= 0
}

// put gives n a name. Whatever had the name before loses it.
func (b *builder) put(dir *Node, name string, n *Node) error {
	i, ok := b.find(dir, name)
	if ok {
		b.drop(dir, i)
		dir.kids[i].Node = n
		return nil
	}
	if err := checkElem(name); err != nil {
		return err
	}
	if dir.flags&unsorted == 0 && i < len(dir.kids) {
		dir.flags |= unsorted
	}
	dir.kids = append(dir.kids, Child{name, n})
	if dir.flags&unsorted != 0 && len(dir.kids) > maxScan {
		b.index(dir)
	}
	return nil
}

// index keeps the map of a big directory that is not in order.
func (b *builder) index(dir *Node) {
	if b.byName == nil {
		b.byName = make(map[*Node]map[string]int)
	}
	m := b.byName[dir]
	if m == nil {
		m = make(map[string]int, 2*len(dir.kids))
		b.byName[dir] = m
		for i, c := range dir.kids {
			m[c.Name] = i
		}
	}
	m[dir.kids[len(dir.kids)-1].Name] = len(dir.kids) - 1
}

// drop takes the name at place i away from what has it. A new node is put there
// next, or the layer is refused.
func (b *builder) drop(dir *Node, i int) {
	n := dir.kids[i].Node
	if n == nil {
		return
	}
	b.unlink(n)
	dir.kids[i].Node = nil
	b.lastName, b.last = "", b.root // may be, or lead through, what is gone
}

func (b *builder) unlink(n *Node) {
	if n.Kind != layers.Dir {
		n.Nlink--
		return
	}
	b.replaced = true
	delete(b.byName, n)
	for _, c := range n.kids {
		b.unlink(c.Node)
	}
}

func checkElem(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > layers.MaxNameElem || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("name %.80q: %w", name, layers.ErrBadLayer)
	}
	return nil
}

package fs

import (
	"fmt"
	"path"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// maxLinks is the number of symbolic links in a path at which containerd gives
// up (continuity fs.RootPath).
const maxLinks = 255

// dir returns the directory an entry's parent path leads to, and makes what is
// missing of it.
func (b *builder) dir(name string) (*Node, error) {
	if name == b.lastName {
		return b.last, nil
	}
	dir, link, err := b.mkdirs(name)
	if link {
		var real string
		if real, err = resolve(name, b.layerAt); err != nil {
			return nil, err
		}
		if dir, link, err = b.mkdirs(real); link {
			err = fmt.Errorf("parent %s leads back to a symbolic link: %w", name, layers.ErrBadLayer)
		}
	}
	if err != nil {
		return nil, err
	}
	b.lastName, b.last = name, dir
	return dir, nil
}

// mkdirs returns the directory name, making what is missing. It stops with link
// true at a symbolic link, and then has made nothing.
func (b *builder) mkdirs(name string) (dir *Node, link bool, err error) {
	dir = b.root
	for start := 0; start < len(name); {
		end := strings.IndexByte(name[start:], '/') + start
		if end < start {
			end = len(name)
		}
		elem := name[start:end]
		n := b.child(dir, elem)
		switch {
		case n == nil:
			if n, err = b.makeParent(dir, elem, name[:end]); err != nil {
				return nil, false, err
			}
		case n.Kind == layers.Symlink:
			return nil, true, nil
		case n.Kind != layers.Dir:
			return nil, false, fmt.Errorf("parent %s is not a directory: %w", name[:end], layers.ErrBadLayer)
		}
		dir, start = n, end+1
	}
	return dir, false, nil
}

// makeParent makes a directory that no entry has named so far. It is like the
// one below, as copyDirInfo and copyUpXAttrs of pkg/archive make it, even where
// an opaque directory hides that one.
func (b *builder) makeParent(dir *Node, elem, full string) (*Node, error) {
	if b.implicit++; b.implicit > layers.MaxEntries {
		return nil, fmt.Errorf("directories that no entry names: %w", layers.ErrTooLarge)
	}
	n := b.node()
	n.Kind, n.Mode = layers.Dir, 0o755
	if dir.Mode&0o2000 != 0 { // mkdir(2)
		n.GID = dir.GID
	}
	if b.lower != nil {
		if p, err := resolve(full, b.lower.at); err == nil {
			if below := b.lower.at(p); below != nil && below.Kind == layers.Dir {
				n.Mode, n.UID, n.GID = below.Mode, below.UID, below.GID
				n.Sec, n.Nsec, n.Xattrs = below.Sec, below.Nsec, below.Xattrs
			}
		}
	}
	return n, b.put(dir, elem, n)
}

// layerAt returns what the layer itself has at a clean path, or nil.
func (b *builder) layerAt(name string) *Node {
	n := b.root
	for elem := range elems(name) {
		if n = b.child(n, elem); n == nil {
			return nil
		}
	}
	return n
}

// viewAt returns what the layer so far, over those below it, shows at a clean
// path, or nil.
func (b *builder) viewAt(name string) *Node {
	upper, lower := b.root, b.lower
	for elem := range elems(name) {
		var u, l *Node
		if upper != nil {
			u = b.child(upper, elem)
		}
		if lower != nil && (upper == nil || upper.flags&opaque == 0) {
			l = lower.Child(elem)
		}
		if u != nil && (u.Kind != layers.Dir || l != nil && l.Kind != layers.Dir) {
			l = nil
		}
		if u != nil && u.Kind == whiteout || u == nil && l == nil {
			return nil
		}
		upper, lower = u, l
	}
	if upper != nil {
		return upper
	}
	return lower
}

// resolve follows the symbolic links of a path, the last element's too, within
// the tree, and ends where there are none. What does not exist stays as it is.
// It goes over the path again and again, like continuity's fs.RootPath, because
// that decides where ".." behind a link leads.
func resolve(name string, lstat func(string) *Node) (string, error) {
	r := resolver{lstat: lstat}
	for {
		before := r.links
		next := r.pass(name)
		switch {
		case r.links > maxLinks:
			return "", fmt.Errorf("more than %d symbolic links: %w", maxLinks, layers.ErrBadLayer)
		case len(next) > 2*layers.MaxName:
			return "", fmt.Errorf("path of %d bytes: %w", len(next), layers.ErrTooLarge)
		case r.links == before && next == clean(next):
			if len(next) > layers.MaxName {
				return "", fmt.Errorf("path of %d bytes: %w", len(next), layers.ErrTooLarge)
			}
			return next, nil
		case r.links == before:
			next = clean(next)
		}
		name = next
	}
}

// clean returns a path without "..", as it is below the root.
func clean(name string) string { return path.Join("/", name)[1:] }

type resolver struct {
	lstat func(string) *Node
	links int
}

// pass replaces each element that is a link by its target, once. A relative
// target in a directory is joined to it there and then, ".." and all; any other
// stays as it is for the next pass.
func (r *resolver) pass(name string) string {
	name = strings.TrimRight(name, "/")
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		target, _ := r.follow(name)
		return target
	}
	dir := r.pass(name[:i])
	target, isLink := r.follow(path.Join(dir, name[i+1:]))
	if isLink && target[0] != '/' {
		return path.Join(dir, target)
	}
	return target
}

// follow returns the target of a link, or the path as it is below the root.
func (r *resolver) follow(name string) (string, bool) {
	name = clean(name)
	n := r.lstat(name)
	if r.links > maxLinks || n == nil || n.Kind != layers.Symlink {
		return name, false
	}
	r.links++
	return n.Link, true
}

// linkTarget returns the node a hard link leads to. One that only a lower layer
// has is first copied up, like overlayfs does at link(2): its other names there
// stay with the old inode.
func (b *builder) linkTarget(e *layers.Entry) (*Node, error) {
	dir, base := path.Split(e.Link)
	parent, err := resolve(dir, b.layerAt)
	if err != nil {
		return nil, err
	}
	n := b.layerAt(path.Join(parent, base))
	if n == nil && b.lower != nil && e.Link != e.Name {
		if n, err = b.copyUp(dir, base); err != nil {
			return nil, err
		}
	}
	switch {
	case n == nil || n.Kind == whiteout:
		return nil, fmt.Errorf("there is no such file: %w", layers.ErrBadLayer)
	case n.Kind == layers.Dir:
		return nil, fmt.Errorf("it is a directory: %w", layers.ErrBadLayer)
	}
	return n, nil
}

func (b *builder) copyUp(dir, base string) (*Node, error) {
	parent, err := resolve(dir, b.viewAt)
	if err != nil {
		return nil, err
	}
	below := b.viewAt(path.Join(parent, base))
	if below == nil || below.Kind == layers.Dir || b.layerAt(path.Join(parent, base)) != nil {
		return below, nil
	}
	up, link, err := b.mkdirs(parent)
	if err != nil || link {
		return nil, err
	}
	n := b.node()
	*n = *below
	n.Nlink = 1
	return n, b.put(up, base, n)
}

// dirTimes gives directories their times, at the end like pkg/archive. That
// matters only where a name first was a directory: what the name leads to by
// now gets the time then.
func (b *builder) dirTimes(entries []layers.Entry) {
	if !b.replaced {
		return
	}
	for i := range entries {
		e := &entries[i]
		if e.Kind != layers.Dir || e.Name == "" || leftByAUFS(e.Name) || strings.HasPrefix(path.Base(e.Name), whiteoutPrefix) {
			continue
		}
		name, err := resolve(e.Name, b.layerAt)
		if n := b.layerAt(name); err == nil && n != nil {
			n.Sec, n.Nsec = e.Sec, e.Nsec
		}
	}
}

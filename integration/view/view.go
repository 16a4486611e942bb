// Package view compares what two mounts of one image show: every name, mode,
// owner, time, attribute, link and byte.
package view

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A node is what a mount says of one name.
type node struct {
	typ, mode uint32
	uid, gid  uint32
	size      int64 // not of directories: each file system counts its own way
	sec, nsec int64
	rdev      uint64
	nlink     uint64
	xattrs    string
	target    string
	first     string // the first name of the same inode
}

type inode struct{ dev, ino uint64 }

// A View is all that a mount shows.
type View struct {
	Names []string // in the order of a walk; "" is the root
	dir   string
	nodes map[string]*node
	first map[inode]string
}

// Of looks at a mount. It reads no bytes of files.
func Of(dir string) (*View, error) {
	v := &View{dir: dir, nodes: map[string]*node{}, first: map[inode]string{}}
	return v, v.walk("")
}

func (v *View) walk(name string) error {
	n, err := v.stat(name)
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	v.nodes[name] = n
	v.Names = append(v.Names, name)
	if n.typ != unix.S_IFDIR {
		return nil
	}
	list, err := os.ReadDir(filepath.Join(v.dir, name))
	if err != nil {
		return err
	}
	for _, e := range list {
		// A whiteout in a directory that overlayfs merges with nothing is listed,
		// and then cannot be found: that is overlayfs's fault.
		err := v.walk(filepath.Join(name, e.Name()))
		if err != nil && !(errors.Is(err, unix.ENOENT) && e.Type() == iofs.ModeDevice|iofs.ModeCharDevice) {
			return err
		}
	}
	return nil
}

func (v *View) stat(name string) (*node, error) {
	path := filepath.Join(v.dir, name)
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, err
	}
	n := &node{
		typ: st.Mode & unix.S_IFMT, mode: st.Mode &^ unix.S_IFMT, uid: st.Uid, gid: st.Gid,
		sec: st.Mtim.Sec, nsec: st.Mtim.Nsec, rdev: st.Rdev, nlink: st.Nlink, first: name,
	}
	if n.typ != unix.S_IFDIR {
		n.size = st.Size
		i := inode{st.Dev, st.Ino}
		if _, ok := v.first[i]; !ok {
			v.first[i] = name
		}
		n.first = v.first[i]
	}
	var err error
	if n.typ == unix.S_IFLNK {
		if n.target, err = os.Readlink(path); err != nil {
			return nil, err
		}
	}
	n.xattrs, err = xattrs(path)
	return n, err
}

// xattrs returns the attributes of a file in one string.
func xattrs(path string) (string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, list)
	if err != nil {
		return "", fmt.Errorf("listxattr: %w", err)
	}
	names := slices.Sorted(strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00"))
	var b strings.Builder
	for _, name := range names {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("getxattr %s: %w", name, err)
		}
		fmt.Fprintf(&b, "%s=%q ", name, value[:n])
	}
	return b.String(), nil
}

// Differences lists what differs between what containerd shows and what we do,
// and if read in the bytes of files, too. Both mounts have to be there still.
// Two faults of containerd are let pass (Of knows one of overlayfs):
//
//   - it makes times before 1970 zero (pkg/archive, boundTime);
//   - directories that no entry of the layer names, and the root, have the time
//     of unpacking.
func Differences(theirs, ours *View, unpacked time.Time, read bool) (list []string) {
	for _, name := range theirs.Names {
		a, b := theirs.nodes[name], ours.nodes[name]
		if b == nil {
			list = append(list, fmt.Sprintf("%q is missing", name))
			continue
		}
		if d := a.differs(b, unpacked); d != "" {
			list = append(list, fmt.Sprintf("%q: %s", name, d))
		}
		if !read {
			continue
		}
		if d := sameBytes(filepath.Join(theirs.dir, name), filepath.Join(ours.dir, name), a, b); d != nil {
			list = append(list, fmt.Sprintf("%q: %v", name, d))
		}
	}
	for _, name := range ours.Names {
		if theirs.nodes[name] == nil {
			list = append(list, fmt.Sprintf("%q should not be", name))
		}
	}
	return list
}

func (a *node) differs(b *node, unpacked time.Time) string {
	var list []string
	field := func(name string, x, y any) {
		if x != y {
			list = append(list, fmt.Sprintf("%s is %v, want %v", name, y, x))
		}
	}
	field("type", a.typ, b.typ)
	field("mode", fmt.Sprintf("%o", a.mode), fmt.Sprintf("%o", b.mode))
	field("owner", [2]uint32{a.uid, a.gid}, [2]uint32{b.uid, b.gid})
	field("size", a.size, b.size)
	field("device", a.rdev, b.rdev)
	field("link count", a.nlink, b.nlink)
	field("first name of the inode", a.first, b.first)
	field("target", a.target, b.target)
	field("attributes", a.xattrs, b.xattrs)
	before1970 := b.sec < 0 && a.sec == 0 && a.nsec == 0
	// Kernels stamp files with a clock that is some milliseconds late.
	implicit := a.typ == unix.S_IFDIR && !time.Unix(a.sec, a.nsec).Before(unpacked.Add(-time.Second))
	if !before1970 && !implicit {
		field("time", time.Unix(a.sec, a.nsec), time.Unix(b.sec, b.nsec))
	}
	return strings.Join(list, "; ")
}

func sameBytes(a, b string, x, y *node) (err error) {
	if x.typ != unix.S_IFREG || y.typ != unix.S_IFREG {
		return nil
	}
	f, err := os.Open(a)
	if err != nil {
		return err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return err
	}
	defer g.Close()
	p, q := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; {
		n, err1 := io.ReadFull(f, p)
		m, err2 := io.ReadFull(g, q)
		if !bytes.Equal(p[:n], q[:m]) {
			return fmt.Errorf("bytes from %d on differ", off)
		}
		if off += int64(n); err1 != nil || err2 != nil {
			if ended(err1) && ended(err2) {
				return nil
			}
			return errors.Join(err1, err2)
		}
	}
}

func ended(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

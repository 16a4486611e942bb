// Package plain writes the tree of an image's layers into an ordinary directory:
// what a kernel can show that has no EROFS from files, or no data-only layers.
// All of the image's bytes have to be local, and are there twice afterwards.
//
// A tree holds no name that leads anywhere (see package fs), and nobody else
// writes below the directory meanwhile, so paths are safe to use.
package plain

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// Read reads from an object like io.ReaderAt.
type Read func(sum layers.Sum, p []byte, off int64) (int, error)

// Write makes the directory dir, which must not exist, and in it what t holds,
// with owners, modes, times, links and extended attributes. Attributes in
// "user." are left out where the file system has none (tmpfs before Linux 6.6). What
// it has written by an error stays, for the caller to remove.
func Write(dir string, t *fs.Tree, read Read) error {
	w := &writer{read: read, links: map[*fs.Node]string{}, buf: make([]byte, 1<<20)}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := w.fill(dir, t.Root()); err != nil {
		return err
	}
	return w.finish(dir, t.Root())
}

type writer struct {
	read  Read
	links map[*fs.Node]string // the first name of what has several
	buf   []byte
}

// fill writes what is in a directory.
func (w *writer) fill(dir string, n *fs.Node) error {
	for _, c := range n.Children() {
		if err := w.add(filepath.Join(dir, c.Name), c.Node); err != nil {
			return err
		}
	}
	return nil
}

func (w *writer) add(at string, n *fs.Node) error {
	if n.Kind != layers.Dir {
		if first, ok := w.links[n]; ok {
			return os.Link(first, at)
		}
	}
	if n.Kind == layers.Char && n.Major == 0 && n.Minor == 0 {
		return nil // in an ordinary directory it is a whiteout to overlayfs
	}
	if err := w.make(at, n); err != nil {
		return err
	}
	if n.Kind != layers.Dir {
		w.links[n] = at
	}
	return w.finish(at, n)
}

func (w *writer) make(at string, n *fs.Node) error {
	var err error
	switch n.Kind {
	case layers.Dir:
		if err := os.Mkdir(at, 0o700); err != nil {
			return err
		}
		return w.fill(at, n)
	case layers.Reg:
		return w.file(at, n)
	case layers.Symlink:
		return os.Symlink(n.Link, at)
	case layers.Char:
		err = unix.Mknod(at, unix.S_IFCHR|0o600, int(unix.Mkdev(n.Major, n.Minor)))
	case layers.Block:
		err = unix.Mknod(at, unix.S_IFBLK|0o600, int(unix.Mkdev(n.Major, n.Minor)))
	case layers.Fifo:
		err = unix.Mkfifo(at, 0o600)
	default:
		err = iofs.ErrInvalid
	}
	if err != nil {
		return &iofs.PathError{Op: "mknod", Path: at, Err: err}
	}
	return nil
}

func (w *writer) file(at string, n *fs.Node) error {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	for off := int64(0); off < n.Size && err == nil; {
		p := w.buf[:min(int64(len(w.buf)), n.Size-off)]
		var k int
		k, err = w.read(n.Object, p, off)
		if k < len(p) && (err == nil || errors.Is(err, io.EOF)) {
			err = io.ErrUnexpectedEOF
		}
		if k == len(p) {
			_, err = f.Write(p)
		}
		off += int64(k)
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	return nil
}

// finish sets what is about the file itself. The order matters: a new owner
// takes away set-uid bits and capabilities.
func (w *writer) finish(at string, n *fs.Node) error {
	if err := os.Lchown(at, int(n.UID), int(n.GID)); err != nil {
		return err
	}
	if n.Kind != layers.Symlink {
		if err := unix.Chmod(at, uint32(n.Mode)); err != nil {
			return &iofs.PathError{Op: "chmod", Path: at, Err: err}
		}
	}
	for _, x := range n.Xattrs {
		err := unix.Lsetxattr(at, x.Name, []byte(x.Value), 0)
		if errors.Is(err, unix.ENOTSUP) && strings.HasPrefix(x.Name, "user.") {
			continue
		}
		if err != nil {
			return &iofs.PathError{Op: "setxattr " + x.Name, Path: at, Err: err}
		}
	}
	when := unix.Timespec{Sec: n.Sec, Nsec: int64(n.Nsec)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, at, []unix.Timespec{when, when}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &iofs.PathError{Op: "utimensat", Path: at, Err: err}
	}
	return nil
}

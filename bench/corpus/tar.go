package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// writeTar writes a tree, as overlayfs has it in an upper directory, as a layer
// (image-spec, layer.md): a character device 0:0 is a whiteout, a directory with the
// attribute trusted.overlay.opaque hides what is below it.
func writeTar(w io.Writer, tree string) error {
	t := &treeWriter{tar: tar.NewWriter(w), links: make(map[uint64]string)}
	err := filepath.WalkDir(tree, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(tree, p)
		if err != nil || rel == "." {
			return err
		}
		if err := t.add(p, filepath.ToSlash(rel)); err != nil {
			return fmt.Errorf("%s: %w", rel, err)
		}
		return nil
	})
	return errors.Join(err, t.tar.Close())
}

type treeWriter struct {
	tar   *tar.Writer
	links map[uint64]string // names by inode, of files that have several
}

func (t *treeWriter) add(p, rel string) error {
	fi, err := os.Lstat(p)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return err
	}
	if fi.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 {
		return t.mark(path.Join(path.Dir(rel), ".wh."+path.Base(rel)), fi)
	}
	if fi.Mode()&fs.ModeSocket != 0 {
		return nil // a tar has none
	}
	target := ""
	if fi.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(fi, target)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = rel, tar.FormatPAX, "", ""
	if fi.IsDir() {
		h.Name += "/"
	}
	if first, ok := t.links[st.Ino]; ok && !fi.IsDir() {
		h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		return t.tar.WriteHeader(h)
	}
	if st.Nlink > 1 && !fi.IsDir() {
		t.links[st.Ino] = rel
	}
	opaque, err := addXattrs(h, p)
	if err != nil {
		return err
	}
	if err := t.tar.WriteHeader(h); err != nil {
		return err
	}
	if opaque {
		return t.mark(path.Join(rel, ".wh..wh..opq"), fi)
	}
	if !fi.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(t.tar, f)
	return err
}

// mark writes an empty file.
func (t *treeWriter) mark(name string, like fs.FileInfo) error {
	return t.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: like.ModTime(), Format: tar.FormatPAX})
}

// addXattrs adds those attributes that belong into a layer, and tells whether
// the directory is opaque.
func addXattrs(h *tar.Header, p string) (opaque bool, err error) {
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, names)
	if err != nil {
		if errors.Is(err, unix.ENOTSUP) {
			return false, nil
		}
		return false, err
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		switch {
		case name == "trusted.overlay.opaque":
			n, err := unix.Lgetxattr(p, name, value)
			if err != nil {
				return false, err
			}
			opaque = bytes.Equal(value[:n], []byte("y"))
		case name == "security.capability", strings.HasPrefix(name, "user."):
			n, err := unix.Lgetxattr(p, name, value)
			if err != nil {
				return false, err
			}
			if h.PAXRecords == nil {
				h.PAXRecords = make(map[string]string)
			}
			h.PAXRecords["SCHILY.xattr."+name] = string(value[:n])
		}
	}
	return opaque, nil
}

package vm

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// A File is a file, directory, link or device in the machine.
type File struct {
	Name string      // below "/", without a leading slash
	Mode fs.FileMode // with the type; fs.ModeCharDevice for a device node
	Data []byte      // of a file; the target of a link

	Major, Minor uint32 // of a device

	open func() (io.ReadCloser, error) // size bytes, instead of Data
	size int64
}

// Values of S_IFMT, inode(7).
const (
	typeDir  = 0o040000
	typeFile = 0o100000
	typeLink = 0o120000
	typeChar = 0o020000
)

func (f *File) mode() (uint32, error) {
	m := uint32(f.Mode.Perm())
	switch f.Mode.Type() {
	case 0:
		return m | typeFile, nil
	case fs.ModeDir:
		return m | typeDir, nil
	case fs.ModeSymlink:
		return m | typeLink, nil
	case fs.ModeDevice | fs.ModeCharDevice:
		return m | typeChar, nil
	}
	return 0, fmt.Errorf("%s: mode %v", f.Name, f.Mode)
}

// writeCPIO writes an archive of the format "newc", as an initramfs has it
// (Documentation/driver-api/early-userspace/buffer-format.rst): a header of hex
// numbers, the name with its NUL, the bytes, each padded to 4. Directories above
// a file come before it, made if they are not listed.
func writeCPIO(w io.Writer, files []File) error {
	c := &cpio{w: w, made: map[string]bool{".": true}}
	for i := range files {
		if err := c.put(&files[i]); err != nil {
			return err
		}
	}
	return c.member("TRAILER!!!", 0, 0, 0, 0, strings.NewReader(""))
}

type cpio struct {
	w    io.Writer
	n    int64 // bytes written
	ino  int
	made map[string]bool
}

func (c *cpio) put(f *File) error {
	if !fs.ValidPath(f.Name) || f.Name == "." {
		return fmt.Errorf("%q: %w", f.Name, fs.ErrInvalid)
	}
	if err := c.above(f.Name); err != nil {
		return err
	}
	if f.Mode.IsDir() {
		if c.made[f.Name] {
			return nil
		}
		c.made[f.Name] = true
	}
	mode, err := f.mode()
	if err != nil {
		return err
	}
	if f.open == nil {
		return c.member(f.Name, mode, f.Major, f.Minor, int64(len(f.Data)), bytes.NewReader(f.Data))
	}
	r, err := f.open()
	if err != nil {
		return err
	}
	defer r.Close()
	return c.member(f.Name, mode, f.Major, f.Minor, f.size, r)
}

// above makes the directories that lead to a name.
func (c *cpio) above(name string) error {
	var missing []string
	for dir := path.Dir(name); !c.made[dir]; dir = path.Dir(dir) {
		missing = append(missing, dir)
		c.made[dir] = true
	}
	for _, dir := range slices.Backward(missing) {
		if err := c.member(dir, typeDir|0o755, 0, 0, 0, strings.NewReader("")); err != nil {
			return err
		}
	}
	return nil
}

// member writes one member; r has size bytes.
func (c *cpio) member(name string, mode, major, minor uint32, size int64, r io.Reader) error {
	if size > 1<<32-1 {
		return fmt.Errorf("%s: %d bytes are too many for an archive", name, size)
	}
	c.ino++
	const links, zero = 1, 0
	h := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, zero, zero, links, zero, size, zero, zero, major, minor, len(name)+1, zero, name)
	if err := c.padded(strings.NewReader(h), int64(len(h))); err != nil {
		return err
	}
	if err := c.padded(r, size); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (c *cpio) padded(r io.Reader, size int64) error {
	n, err := io.Copy(c.w, io.LimitReader(r, size))
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return err
	}
	pad := -(c.n + n) & 3
	c.n += n + pad
	_, err = c.w.Write(make([]byte, pad))
	return err
}

package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDepth is how many directories deep tmpcopyup goes. Each takes two descriptors.
const maxDepth = 200

// copyUp fills a file system that was made with what is in the directory that
// it will cover: the option tmpcopyup, which podman gives every --tmpfs. The
// directory is an image's: it is read by descriptors alone, and no link is
// followed. Devices and sockets stay behind.
//
// The bytes are this process's to the kernel, not the container's, so what the
// container may have of memory is a limit here, too.
func (s *start) copyUp(m *mount, from place, to int) error {
	if from.fd < 0 || from.kind != unix.S_IFDIR {
		return nil // below /proc or /sys there is nothing to keep
	}
	src, err := openDir(from.fd, ".")
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openDir(to, ".")
	if err != nil {
		return err
	}
	defer dst.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(src.Fd()), &st); err != nil {
		return err
	}
	given := func(name string) bool {
		return slices.ContainsFunc(m.params, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	}
	if !given("uid") && !given("gid") {
		if err := unix.Fchown(int(dst.Fd()), int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if !given("mode") {
		if err := unix.Fchmod(int(dst.Fd()), st.Mode&0o7777); err != nil {
			return err
		}
	}
	c := copier{limit: s.plan.memory(), used: &s.copied}
	if err := c.dir(src, dst, 0); err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	return nil
}

// memory is what the container may have of memory and swap together; 0: no limit.
func (p *Plan) memory() int64 {
	if p.resources == nil || p.resources.Memory == nil || p.resources.Memory.Limit == nil {
		return 0
	}
	limit := *p.resources.Memory.Limit
	if swap := p.resources.Memory.Swap; swap != nil && (*swap < 0 || *swap > limit) {
		limit = *swap
	}
	return max(limit, 0)
}

// A copier copies no more than limit bytes, if that is not 0.
type copier struct {
	limit int64
	used  *int64
}

// inodeSize is what a file takes without its bytes, about.
const inodeSize = 1 << 10

func (c copier) use(n int64) error {
	if c.limit > 0 && n > c.limit-*c.used {
		return fmt.Errorf("more than the container's limit of memory, %d bytes: %w", c.limit, unix.ENOSPC)
	}
	*c.used += n
	return nil
}

func openDir(dir int, name string) (*os.File, error) {
	fd, err := openAt(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// dir copies what is in a directory.
func (c copier) dir(src, dst *os.File, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("more than %d directories deep", maxDepth)
	}
	for {
		names, err := src.Readdirnames(256)
		for _, name := range names {
			if err := c.entry(src, dst, name, depth); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c copier) entry(src, dst *os.File, name string, depth int) error {
	from, to := int(src.Fd()), int(dst.Fd())
	if err := c.use(inodeSize); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err = unix.Mkdirat(to, name, 0o700); err == nil {
			err = c.subdir(from, to, name, depth)
		}
	case unix.S_IFREG:
		err = c.file(from, to, name)
	case unix.S_IFLNK:
		var target string
		if target, err = linkAt(from, name); err == nil {
			err = unix.Symlinkat(target, to, name)
		}
	case unix.S_IFIFO:
		err = unix.Mknodat(to, name, unix.S_IFIFO|0o600, 0)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK { // after the owner, whose change takes away setuid
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to, name, []unix.Timespec{unix.Timespec(st.Atim), unix.Timespec(st.Mtim)}, unix.AT_SYMLINK_NOFOLLOW)
}

func (c copier) subdir(from, to int, name string, depth int) error {
	src, err := openDir(from, name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := openDir(to, name)
	if err != nil {
		return err
	}
	defer dst.Close()
	return c.dir(src, dst, depth+1)
}

func (c copier) file(from, to int, name string) (err error) {
	in, err := openAt(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(in), name)
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("somebody changes it")
	}
	if err := c.use(st.Size()); err != nil {
		return err
	}
	out, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(out), name)
	_, err = io.Copy(dst, io.LimitReader(src, st.Size()))
	return errors.Join(err, dst.Close())
}

func linkAt(dir int, name string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, b)
	if err == nil && n == len(b) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}

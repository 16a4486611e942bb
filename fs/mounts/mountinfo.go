package mounts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A Mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	ID     int
	Dev    string // major:minor
	Dir    string // mount point
	Type   string // "fuse.snapfs", "erofs", "overlay"
	Source string
}

// List returns the mounts at dir and below it in the order they were made. dir
// is clean and absolute, without symbolic links.
func List(dir string) ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parse(f, dir)
}

func parse(r io.Reader, dir string) ([]Mount, error) {
	var all []Mount
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20) // an overlay's line names all its layers
	for lines.Scan() {
		m, err := parseLine(lines.Bytes())
		if err != nil {
			return nil, err
		}
		if m.Dir == dir || dir == "/" || strings.HasPrefix(m.Dir, dir+"/") {
			all = append(all, m)
		}
	}
	return all, lines.Err()
}

// parseLine reads
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
//	id parent dev root  dir   options  optional*   type source  super options
func parseLine(line []byte) (m Mount, err error) {
	head, tail, ok := bytes.Cut(line, []byte(" - "))
	h, t := bytes.Fields(head), bytes.Split(tail, []byte(" "))
	if !ok || len(h) < 6 || len(t) < 2 {
		return m, fmt.Errorf("mountinfo: malformed line %q", line)
	}
	if m.ID, err = strconv.Atoi(string(h[0])); err != nil {
		return m, fmt.Errorf("mountinfo: malformed line %q", line)
	}
	m.Dev, m.Dir, m.Type, m.Source = string(h[2]), unescape(h[4]), unescape(t[0]), unescape(t[1])
	return m, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline, backslash and '#'.
func unescape(b []byte) string {
	if bytes.IndexByte(b, '\\') < 0 {
		return string(b)
	}
	var s strings.Builder
	for i := 0; i < len(b); i++ {
		if b[i] == '\\' && i+3 < len(b) {
			if n, err := strconv.ParseUint(string(b[i+1:i+4]), 8, 8); err == nil {
				s.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		s.WriteByte(b[i])
	}
	return s.String()
}

// IsMounted says whether dir is a mount point. It asks nothing of the file
// system mounted there, so a dead or stopped one does not hold it up.
func IsMounted(dir string) (bool, error) {
	var st unix.Statx_t
	// AT_STATX_DONT_SYNC: a FUSE root is answered from what the kernel knows.
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, 0, &st)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return false, nil
	case err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	ms, err := List(dir)
	for _, m := range ms {
		if m.Dir == dir {
			return true, nil
		}
	}
	return false, err
}

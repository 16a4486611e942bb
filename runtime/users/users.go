// Package users turns "user[:group]" into numbers by a container's own
// /etc/passwd and /etc/group.
//
// Both files are the image's, so they are opened below the container's root
// with openat2(RESOLVE_IN_ROOT), must be regular, and are read up to a size and
// line by line up to a length (CVE-2026-47262). A string of digits is a number
// and nothing else: it is never looked up as a name, and one that does not fit
// is an error, not root (CVE-2024-40635, CVE-2026-46680, CVE-2026-30892).
package users

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of what is read. Debian's own files are below 2 KiB.
const (
	maxFile   = 4 << 20  // bytes
	maxLine   = 64 << 10 // bytes; a group of several thousand members fits
	maxGroups = 1 << 16  // NGROUPS_MAX of Linux
	maxID     = 1<<31 - 1
)

// Errors about a name, and about the files.
var (
	ErrNoUser   = fmt.Errorf("no such user in the container: %w", fs.ErrNotExist)
	ErrNoGroup  = fmt.Errorf("no such group in the container: %w", fs.ErrNotExist)
	ErrTooLarge = errors.New("file or line is too large")
)

// A User is who a process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary; those that list the user by name, without GID's own unless listed
	Name     string   // "" if /etc/passwd does not know the number
	Home     string   // "/" if it does not
}

// Lookup looks up "user", "uid", "user:group" and their mixtures; "" is user 0.
// A number that /etc/passwd does not have is valid, with group 0. As with
// Docker a group that is given replaces the supplementary ones.
func Lookup(root int, spec string) (User, error) {
	passwd, err := open(root, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	defer passwd.Close()
	group, err := open(root, "/etc/group")
	if err != nil {
		return User{}, err
	}
	defer group.Close()
	u, err := Parse(spec, passwd, group)
	if err != nil {
		return User{}, fmt.Errorf("user %q: %w", spec, err)
	}
	return u, nil
}

// LookupGroups turns names and numbers of groups into numbers.
func LookupGroups(root int, names []string) ([]uint32, error) {
	var ids []uint32
	for _, name := range names {
		group, err := open(root, "/etc/group")
		if err != nil {
			return nil, err
		}
		id, err := findGroup(name, group)
		if err := errors.Join(err, group.Close()); err != nil {
			return nil, fmt.Errorf("group %q: %w", name, err)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

// open opens a file of the container for reading; one that is missing is empty.
//
// What is there may be a device or a file of procfs, whose opening does something,
// or may become one while we look: a container can run, make nodes, and exchange
// names. So what has been looked at is what is opened, and not what its name
// means a moment later.
func open(root int, name string) (_ io.ReadCloser, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := openat2(root, name, &how)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return io.NopCloser(strings.NewReader("")), nil
	}
	if err == nil {
		defer unix.Close(fd)
		err = checkFile(fd)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.Unwrap(err)}
	}
	return f, nil
}

// checkFile accepts a regular file of a file system that keeps files: those of
// procfs, sysfs and cgroups are the kernel's, and to read one may change something.
func checkFile(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return errNoFile
	}
	var of unix.Statfs_t
	if err := unix.Fstatfs(fd, &of); err != nil {
		return err
	}
	switch of.Type {
	case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
		return errNoFile
	}
	return nil
}

var errNoFile = errors.New("not a regular file")

func openat2(root int, name string, how *unix.OpenHow) (int, error) {
	for range 16 { // EAGAIN: a rename elsewhere raced with "..", openat2(2)
		fd, err := unix.Openat2(root, name, how)
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// Parse is Lookup in two files that are read up to their ends.
func Parse(spec string, passwd, group io.Reader) (User, error) {
	name, groupName, withGroup := strings.Cut(spec, ":")
	if withGroup && groupName == "" || strings.ContainsAny(spec, "\n\x00") || strings.Contains(groupName, ":") {
		return User{}, errors.New("want user[:group]")
	}
	if name == "" {
		name = "0"
	}
	u, err := findUser(name, passwd)
	if err != nil {
		return User{}, err
	}
	if withGroup {
		u.GID, err = findGroup(groupName, group)
		return u, err
	}
	if u.Name != "" {
		u.Groups, err = memberships(u.Name, group)
	}
	return u, err
}

func findUser(name string, passwd io.Reader) (User, error) {
	id, numeric, err := number(name)
	if err != nil {
		return User{}, err
	}
	found := User{UID: id, Home: "/"}
	ok := numeric
	err = lines(passwd, func(f []string) bool { // name:password:UID:GID:GECOS:directory:shell
		if len(f) < 6 || f[0] == "" {
			return true
		}
		uid, numericUID, uerr := number(f[2])
		gid, numericGID, gerr := number(f[3])
		if uerr != nil || gerr != nil || !numericUID || !numericGID {
			return true // a line that is not one
		}
		if numeric && uid != id || !numeric && f[0] != name {
			return true
		}
		found, ok = User{UID: uid, GID: gid, Name: f[0], Home: f[5]}, true
		return false
	})
	if err != nil {
		return User{}, fmt.Errorf("/etc/passwd: %w", err)
	}
	if !ok {
		return User{}, ErrNoUser
	}
	if found.Home == "" || strings.ContainsRune(found.Home, 0) {
		found.Home = "/"
	}
	return found, nil
}

func findGroup(name string, group io.Reader) (uint32, error) {
	id, numeric, err := number(name)
	if err != nil || numeric {
		return id, err
	}
	ok := false
	err = lines(group, func(f []string) bool { // name:password:GID:members
		if len(f) < 3 || f[0] != name {
			return true
		}
		gid, isNumber, gerr := number(f[2])
		if gerr == nil && isNumber {
			id, ok = gid, true
		}
		return !ok
	})
	if err != nil {
		return 0, fmt.Errorf("/etc/group: %w", err)
	}
	if !ok {
		return 0, ErrNoGroup
	}
	return id, nil
}

// memberships returns the groups that list a user.
func memberships(name string, group io.Reader) ([]uint32, error) {
	var ids []uint32
	seen := map[uint32]bool{}
	err := lines(group, func(f []string) bool {
		if len(f) < 4 {
			return true
		}
		gid, ok, gerr := number(f[2])
		if gerr != nil || !ok || seen[gid] {
			return true
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member == name {
				ids, seen[gid] = append(ids, gid), true
				break
			}
		}
		return len(ids) < maxGroups
	})
	if err != nil {
		return nil, fmt.Errorf("/etc/group: %w", err)
	}
	return ids, nil
}

// number reads an ID. All digits are always a number, or an error.
func number(s string) (id uint32, ok bool, err error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxID {
		return 0, false, fmt.Errorf("number %.20s is above %d", s, maxID)
	}
	return uint32(n), true, nil
}

// lines calls f with the fields of each line until it returns false.
func lines(r io.Reader, f func([]string) bool) error {
	limited := &io.LimitedReader{R: r, N: maxFile + 1}
	sc := bufio.NewScanner(limited)
	sc.Buffer(make([]byte, 0, 4096), maxLine)
	for sc.Scan() {
		line := sc.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		if !f(strings.Split(line, ":")) {
			return nil
		}
	}
	if limited.N == 0 || errors.Is(sc.Err(), bufio.ErrTooLong) {
		return ErrTooLarge
	}
	return sc.Err()
}

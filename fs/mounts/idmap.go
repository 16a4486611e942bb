package mounts

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// An Extent maps Size IDs from Container, as a file has them on disk, to as many
// from Host, as which they are shown.
type Extent struct{ Container, Host, Size uint32 }

// An IDMap shifts owners as a user namespace with these mappings does.
type IDMap struct{ UID, GID []Extent }

// Bounds of an IDMap.
const (
	maxExtents = 340       // UID_GID_MAP_MAX_EXTENTS of include/linux/user_namespace.h (Linux 6.18)
	maxMapText = 64 * 1024 // bytes: more than so many extents take
)

// ErrIDMap says that a mapping of owners is none.
var ErrIDMap = fmt.Errorf("mapping of owners: %w", os.ErrInvalid)

// ParseIDMap parses mappings as containerd writes them into the labels of
// snapshots: CONTAINER:HOST:SIZE, several with commas between. An error is
// ErrIDMap-wrapped; mappings that the kernel would not take are errors, and so
// are those without root, as whom a container makes what it writes.
func ParseIDMap(uid, gid string) (m IDMap, err error) {
	if m.UID, err = parseExtents(uid); err != nil {
		return IDMap{}, fmt.Errorf("%w: users: %w", ErrIDMap, err)
	}
	if m.GID, err = parseExtents(gid); err != nil {
		return IDMap{}, fmt.Errorf("%w: groups: %w", ErrIDMap, err)
	}
	return m, m.Check()
}

func parseExtents(text string) (all []Extent, err error) {
	if len(text) > maxMapText {
		return nil, fmt.Errorf("%d bytes, at most %d are read", len(text), maxMapText)
	}
	for part := range strings.SplitSeq(text, ",") {
		f := strings.Split(part, ":")
		if len(f) != 3 {
			return nil, fmt.Errorf("%.60q: want CONTAINER:HOST:SIZE", part)
		}
		var n [3]uint32
		for i := range f {
			v, err := strconv.ParseUint(f[i], 10, 32)
			if err != nil {
				return nil, fmt.Errorf("%.60q: %w", part, err)
			}
			n[i] = uint32(v)
		}
		all = append(all, Extent{n[0], n[1], n[2]})
	}
	return all, nil
}

// Check says what is wrong with a map; see [ParseIDMap].
func (m IDMap) Check() error {
	for what, all := range map[string][]Extent{"users": m.UID, "groups": m.GID} {
		if err := checkExtents(all); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrIDMap, what, err)
		}
	}
	return nil
}

func checkExtents(all []Extent) error {
	if len(all) == 0 || len(all) > maxExtents {
		return fmt.Errorf("%d extents, want 1 to %d", len(all), maxExtents)
	}
	text := 0
	for _, e := range all {
		text += len(e.String()) + 1
	}
	if text >= os.Getpagesize() {
		return fmt.Errorf("%d bytes as text, the kernel takes less than a page", text) // map_write
	}
	for _, e := range all {
		// The last ID of all is nobody's (kernel/user_namespace.c, map_write).
		if e.Size == 0 || e.Size > math.MaxUint32-e.Container || e.Size > math.MaxUint32-e.Host {
			return fmt.Errorf("%v: it is empty, or reaches beyond the last ID", e)
		}
	}
	for _, side := range []func(Extent) uint32{func(e Extent) uint32 { return e.Container }, func(e Extent) uint32 { return e.Host }} {
		sorted := slices.SortedFunc(slices.Values(all), func(a, b Extent) int {
			return cmp.Compare(side(a), side(b))
		})
		for i := range sorted[1:] {
			if side(sorted[i])+sorted[i].Size > side(sorted[i+1]) {
				return fmt.Errorf("%v and %v overlap", sorted[i], sorted[i+1])
			}
		}
	}
	if _, ok := shift(all, 0); !ok {
		return errors.New("root is not mapped")
	}
	return nil
}

func shift(all []Extent, id uint32) (uint32, bool) {
	for _, e := range all {
		if id >= e.Container && id-e.Container < e.Size {
			return e.Host + (id - e.Container), true
		}
	}
	return 0, false
}

// Root returns as whom root's files are shown. The map must be a good one.
func (m IDMap) Root() (uid, gid int) {
	u, _ := shift(m.UID, 0)
	g, _ := shift(m.GID, 0)
	return int(u), int(g)
}

func (e Extent) String() string { return fmt.Sprintf("%d:%d:%d", e.Container, e.Host, e.Size) }

// String is the same for equal maps.
func (m IDMap) String() string {
	var b strings.Builder
	for i, all := range [][]Extent{m.UID, m.GID} {
		if i > 0 {
			b.WriteByte(' ')
		}
		for i, e := range all {
			if i > 0 {
				b.WriteByte(',')
			}
			b.WriteString(e.String())
		}
	}
	return b.String()
}

// UserNS makes a user namespace with the mappings of m, in which nobody is. It
// needs a process to begin with: one that is stopped at the first instruction of
// this program, and killed. The caller must not be a process that serves FUSE.
func (m IDMap) UserNS() (*os.File, error) {
	user, _, err := m.namespaces(false)
	return user, err
}

// UserAndNetNS is UserNS, and a network namespace that belongs to it: root of the
// one may do to the other what root does to a host's.
func (m IDMap) UserAndNetNS() (user, net *os.File, err error) { return m.namespaces(true) }

func (m IDMap) namespaces(withNet bool) (user, net *os.File, err error) {
	if err := m.Check(); err != nil {
		return nil, nil, err
	}
	flags, names := uintptr(unix.CLONE_NEWUSER), []string{"user"}
	if withNet {
		flags, names = flags|unix.CLONE_NEWNET, []string{"user", "network"}
	}
	goruntime.LockOSThread() // the child stops for this thread, and dies with it
	defer goruntime.UnlockOSThread()
	p, err := os.StartProcess("/proc/self/exe", []string{"userns", "--version"}, &os.ProcAttr{
		Env: []string{},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  flags,
			UidMappings: procMap(m.UID), GidMappings: procMap(m.GID), GidMappingsEnableSetgroups: true,
			Ptrace: true, Pdeathsig: unix.SIGKILL,
		},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("user namespace %v: %w", m, err)
	}
	defer func() {
		p.Kill()
		p.Wait() // ECHILD, if who reaps all children was faster
	}()
	var files [2]*os.File
	for i, kind := range []uint{unix.PIDFD_GET_USER_NAMESPACE, unix.PIDFD_GET_NET_NAMESPACE}[:len(names)] {
		fd := -1
		if herr := p.WithHandle(func(pidfd uintptr) { fd, err = unix.IoctlRetInt(int(pidfd), kind) }); herr != nil || err != nil {
			err = fmt.Errorf("%s namespace %v: %w", names[i], m, errors.Join(herr, err))
			if files[0] != nil {
				files[0].Close()
			}
			return nil, nil, err
		}
		unix.CloseOnExec(fd)
		files[i] = os.NewFile(uintptr(fd), names[i]+" namespace")
	}
	return files[0], files[1], nil
}

func procMap(all []Extent) (m []syscall.SysProcIDMap) {
	for _, e := range all {
		m = append(m, syscall.SysProcIDMap{ContainerID: int(e.Container), HostID: int(e.Host), Size: int(e.Size)})
	}
	return m
}

// Shift returns as whom a file of uid and gid is shown; false if one of them is not mapped.
func (m IDMap) Shift(uid, gid uint32) (u, g uint32, ok bool) {
	u, known := shift(m.UID, uid)
	g, ok = shift(m.GID, gid)
	return u, g, known && ok
}

// Mapped mounts the directory dir once more, nowhere (see [Attach]): read-only, and with
// owners shifted by m. It shares inodes, and so pages, with the mount that dir is on.
// Mounts below dir are not part of it. The file system must know about it
// (FS_ALLOW_IDMAP: EROFS 5.19, ext4, XFS and btrfs before).
func Mapped(dir string, m IDMap) (_ *os.File, err error) {
	ns, err := m.UserNS()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	f, err := MappedBy(dir, ns)
	if err != nil {
		return nil, fmt.Errorf("by %v: %w", m, err)
	}
	return f, nil
}

// MappedBy is Mapped with the mappings that a user namespace has.
func MappedBy(dir string, users *os.File) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return nil, &os.PathError{Op: "clone mount", Path: dir, Err: err}
	}
	f := os.NewFile(uintptr(fd), dir)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set:    unix.MOUNT_ATTR_IDMAP | unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID,
		Propagation: unix.MS_PRIVATE,
		Userns_fd:   uint64(users.Fd()),
	}); err != nil {
		return nil, errors.Join(fmt.Errorf("map owners of %s: %w", dir, err), f.Close())
	}
	return f, nil
}

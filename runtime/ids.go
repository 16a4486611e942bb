package runtime

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ids are the mappings of a user namespace. The zero value is none: the caller's own.
type ids struct{ uid, gid idMap }

// An idMap is the lines of a uid_map (user_namespaces(7)).
type idMap []idRange

type idRange struct{ inside, outside, size uint32 }

// maxRanges is the kernel's, UID_GID_MAP_MAX_EXTENTS since Linux 4.15.
const maxRanges = 340

func (m ids) none() bool { return len(m.uid)+len(m.gid) == 0 }

func planIDs(uid, gid []specs.LinuxIDMapping) (m ids, err error) {
	if (len(uid) == 0) != (len(gid) == 0) {
		return m, errors.New("uidMappings and gidMappings: one is missing")
	}
	if m.uid, err = planIDMap(uid); err != nil {
		return m, fmt.Errorf("uidMappings: %w", err)
	}
	if m.gid, err = planIDMap(gid); err != nil {
		return m, fmt.Errorf("gidMappings: %w", err)
	}
	return m, nil
}

func planIDMap(list []specs.LinuxIDMapping) (idMap, error) {
	if len(list) > maxRanges {
		return nil, fmt.Errorf("%d ranges: the kernel takes %d", len(list), maxRanges)
	}
	var m idMap
	for _, s := range list {
		r := idRange{s.ContainerID, s.HostID, s.Size}
		switch {
		case r.size == 0:
			return nil, fmt.Errorf("a range at %d of no IDs", r.inside)
		case uint64(r.inside)+uint64(r.size) > math.MaxUint32 || uint64(r.outside)+uint64(r.size) > math.MaxUint32:
			return nil, fmt.Errorf("range %d:%d:%d goes beyond 32 bits", r.inside, r.outside, r.size)
		}
		for _, o := range m {
			if overlap(r.inside, o.inside, r.size, o.size) || overlap(r.outside, o.outside, r.size, o.size) {
				return nil, fmt.Errorf("ranges %d:%d:%d and %d:%d:%d overlap", o.inside, o.outside, o.size, r.inside, r.outside, r.size)
			}
		}
		m = append(m, r)
	}
	return m, nil
}

func overlap(a, b, n, m uint32) bool {
	return uint64(a) < uint64(b)+uint64(m) && uint64(b) < uint64(a)+uint64(n)
}

// String is the text for the kernel.
func (m idMap) String() string {
	var b strings.Builder
	for _, r := range m {
		fmt.Fprintf(&b, "%d %d %d\n", r.inside, r.outside, r.size)
	}
	return b.String()
}

// host returns what an ID inside is outside. Without a map it is the same.
func (m idMap) host(id uint32) (uint32, error) {
	if len(m) == 0 {
		return id, nil
	}
	for _, r := range m {
		if id >= r.inside && id-r.inside < r.size {
			return id - r.inside + r.outside, nil
		}
	}
	return 0, fmt.Errorf("ID %d is not mapped into the user namespace", id)
}

// owner is a user and a group outside.
type owner struct{ uid, gid uint32 }

func (m ids) owner(uid, gid uint32) (o owner, err error) {
	if o.uid, err = m.uid.host(uid); err != nil {
		return o, fmt.Errorf("user: %w", err)
	}
	if o.gid, err = m.gid.host(gid); err != nil {
		return o, fmt.Errorf("group: %w", err)
	}
	return o, nil
}

// root is who owns what is made for the container: its root, or where that is not mapped, ours.
func (m ids) root() owner {
	o, err := m.owner(0, 0)
	if err != nil {
		return owner{}
	}
	return o
}

// lookup is process.lookup, and refuses users and groups that the user namespace
// does not have: the kernel would say that an argument is invalid.
func (s *start) lookup(root int) error {
	if err := s.proc.lookup(root); err != nil {
		return err
	}
	if _, err := s.plan.ids.uid.host(s.proc.uid); err != nil {
		return err
	}
	for _, gid := range s.proc.groups { // its own is one of them
		if _, err := s.plan.ids.gid.host(gid); err != nil {
			return fmt.Errorf("group: %w", err)
		}
	}
	return nil
}

// write gives a process that waits in a new user namespace its IDs.
func (m ids) write(pid int) error {
	return errors.Join(writeProc(pid, "uid_map", m.uid.String()), writeProc(pid, "gid_map", m.gid.String()))
}

// writeProc writes a file of a child of ours in one call.
func writeProc(pid int, name, value string) error {
	dir, err := openProc(pid)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	fd, err := openAt(dir, name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Join("/proc", strconv.Itoa(pid), name), Err: err}
	}
	defer unix.Close(fd)
	if _, err := unix.Write(fd, []byte(value)); err != nil {
		return &os.PathError{Op: "write", Path: filepath.Join("/proc", strconv.Itoa(pid), name), Err: err}
	}
	return nil
}

// openProc opens a process's directory in the host's procfs, and makes sure
// that it is one: no container can mount there, but who knows (CVE-2025-52881).
func openProc(pid int) (int, error) {
	name := "/proc/" + strconv.Itoa(pid)
	fd, err := unix.Open(name, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: name, Err: err}
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(fd)
		return -1, fmt.Errorf("%s is not of a procfs", name)
	}
	return fd, nil
}

// userNamespace makes a user namespace with some mappings, for id-mapped
// mounts, and returns its descriptor. Nobody is in it.
func userNamespace(m ids) (_ int, err error) {
	s := newStart(&Plan{}, process{})
	defer s.close()
	if err := s.openLine(); err != nil {
		return -1, err
	}
	s.sync(msgMapIDs)
	s.prog.link()
	ns := -1
	s.handle = func(kind uint64, p *Process) error {
		if err := m.write(p.pid); err != nil {
			return err
		}
		dir, err := openProc(p.pid)
		if err != nil {
			return err
		}
		defer unix.Close(dir)
		low, err := openAt(dir, "ns/user", unix.O_RDONLY|unix.O_CLOEXEC)
		if err != nil {
			return err
		}
		ns = low
		return errEnough
	}
	_, err = s.run(context.Background(), nil, unix.CLONE_NEWUSER)
	if errors.Is(err, errEnough) && ns >= 0 {
		return ns, nil
	}
	return -1, errors.Join(err, errors.New("make a user namespace"))
}

// errEnough ends a child that has served its purpose.
var errEnough = errors.New("it is not needed any more")

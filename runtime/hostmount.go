package runtime

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// makeFS makes a file system and mounts it, attached to nothing.
func makeFS(kind string, params []string, attrs uint64) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(fs)
	for _, p := range params {
		key, val, ok := strings.Cut(p, "=")
		if ok {
			err = unix.FsconfigSetString(fs, key, val)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", p, fsError(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fsError(fs, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", kind, err)
	}
	return fd, nil
}

// fsError adds what the kernel says in words, if it says something.
func fsError(fs int, err error) error {
	b := make([]byte, 512)
	n, rerr := unix.Read(fs, b)
	if rerr != nil || n < 3 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(b[2:n]))) // "e message"
}

// cloneTree makes a detached copy of the mounts at a descriptor.
func cloneTree(fd int, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.OpenTree(fd, "", flags)
}

// setAttrs changes the attributes and the propagation of a detached mount.
func setAttrs(fd int, set, clear, propagation uint64, recursive bool) error {
	if set|clear|propagation == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation})
}

// detach makes the mount of a container that is not made inside, attached to nothing.
func (p *Plan) detach(m *mount) (int, error) {
	if m.kind != "bind" {
		params, err := p.owned(m)
		if err != nil {
			return -1, err
		}
		attrs := m.set
		if m.copies {
			attrs &^= unix.MOUNT_ATTR_RDONLY // until it is filled
		}
		fd, err := makeFS(m.kind, params, attrs)
		if err != nil {
			return -1, err
		}
		return fd, nil
	}
	// The caller of the runtime names its own file: links in it are followed.
	src, err := unix.Open(m.source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("source %s: %w", m.source, err)
	}
	defer unix.Close(src)
	fd, err := cloneTree(src, m.recursive)
	if err == unix.EINVAL && strings.HasPrefix(m.source, "/proc/self/fd/") {
		// A detached mount of another mount namespace cannot be cloned, but used.
		fd, err = dupHigh(src)
	}
	if err != nil {
		return -1, fmt.Errorf("source %s: open_tree: %w", m.source, err)
	}
	for _, a := range []struct {
		set, clear, propagation uint64
		recursive               bool
	}{
		{0, 0, m.propagation, m.propagationRec}, {m.setRec, m.clearRec, 0, true}, {m.set, m.clear, 0, false},
	} {
		if err := setAttrs(fd, a.set, a.clear, a.propagation, a.recursive); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("mount_setattr: %w", err)
		}
	}
	if err := m.mapIDs(fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("id-mapped mount: %w", err)
	}
	return fd, nil
}

// mapIDs gives a detached mount its mappings, which can be done once.
func (m *mount) mapIDs(fd int) error {
	if !m.idmap {
		return nil
	}
	ns, err := userNamespace(m.ids)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	flags := uint(unix.AT_EMPTY_PATH)
	if m.idmapRec {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
}

// owned are the options of a file system that is made outside for a user
// namespace: its owners are given as they are outside.
func (p *Plan) owned(m *mount) ([]string, error) {
	params := p.labelled(m)
	if p.ids.none() || m.kind != "tmpfs" && m.kind != "devpts" {
		return params, nil
	}
	out := make([]string, 0, len(params)+2)
	root := p.ids.root()
	given := map[string]bool{}
	for _, s := range params {
		key, val, _ := strings.Cut(s, "=")
		if key != "uid" && key != "gid" {
			out = append(out, s)
			continue
		}
		id, err := strconv.ParseUint(val, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", s, err)
		}
		to := p.ids.uid
		if key == "gid" {
			to = p.ids.gid
		}
		host, err := to.host(uint32(id))
		if err != nil {
			return nil, fmt.Errorf("option %s: %w", s, err)
		}
		given[key] = true
		out = append(out, fmt.Sprintf("%s=%d", key, host))
	}
	if m.kind == "tmpfs" && !given["uid"] {
		out = append(out, fmt.Sprintf("uid=%d", root.uid))
	}
	if m.kind == "tmpfs" && !given["gid"] {
		out = append(out, fmt.Sprintf("gid=%d", root.gid))
	}
	return out, nil
}

// fsParams adds the source, which some file systems want and all show.
func (m *mount) fsParams() []string {
	if m.source == "" || m.kind == "devpts" {
		return m.params
	}
	return append([]string{"source=" + m.source}, m.params...)
}

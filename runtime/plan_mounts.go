package runtime

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A mount is one file system of the container, or a part of the host's.
type mount struct {
	kind   string // "bind" or a file system type
	source string
	dest   string   // clean, absolute
	params []string // NAME or NAME=VALUE for fsconfig

	set, clear       uint64 // MOUNT_ATTR_*
	setRec, clearRec uint64 // the same for the whole tree
	recursive        bool   // rbind
	copies           bool   // tmpcopyup
	propagation      uint64 // MS_*; with propagationRec for the whole tree
	propagationRec   bool

	ids      ids  // of an id-mapped mount
	idmap    bool // id-mapped, by ids or as the user namespace
	idmapRec bool // ridmap
}

// madeInside tells the file systems that show a namespace of the process that makes them.
func (m *mount) madeInside() bool {
	return m.kind == "proc" || m.kind == "sysfs" || m.kind == "mqueue"
}

func (m *mount) String() string {
	from := m.kind
	if m.kind == "bind" {
		from = m.source
	}
	return fmt.Sprintf("mount %s on %s", from, m.dest)
}

// mountAttrs are the options that are attributes of a mount, not of the file system.
var mountAttrs = map[string]struct{ set, clear uint64 }{
	"ro": {unix.MOUNT_ATTR_RDONLY, 0}, "rw": {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, 0}, "suid": {0, unix.MOUNT_ATTR_NOSUID},
	"nodev": {unix.MOUNT_ATTR_NODEV, 0}, "dev": {0, unix.MOUNT_ATTR_NODEV},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, 0}, "exec": {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "diratime": {0, unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0}, "symfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	"relatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME}, "atime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"norelatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME}, "nostrictatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"noatime": {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME}, "strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
}

var propagations = map[string]uint64{
	"private": unix.MS_PRIVATE, "shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE,
}

// planMounts reads the mounts of the spec, in its order.
func (p *Plan) planMounts(list []specs.Mount, l *specs.Linux) error {
	for _, sm := range list {
		m, err := planMount(sm)
		if err != nil {
			return fmt.Errorf("mounts: %s: %w", sm.Destination, err)
		}
		if m.idmap && m.ids.none() {
			if m.ids = p.ids; m.ids.none() {
				return fmt.Errorf("mounts: %s: idmap: there are no mappings, neither of the mount nor of a user namespace", sm.Destination)
			}
		}
		p.mounts = append(p.mounts, m)
	}
	if p.mountLabel = l.MountLabel; strings.ContainsAny(p.mountLabel, "\x00\n\"") {
		return fmt.Errorf("linux.mountLabel: %q is none", p.mountLabel)
	}
	if s := l.RootfsPropagation; s != "" {
		flag, ok := propagations[strings.TrimPrefix(s, "r")]
		if !ok {
			return fmt.Errorf("linux.rootfsPropagation: %q is none", s)
		}
		p.propagation = uintptr(flag)
		if strings.HasPrefix(s, "r") {
			p.propagation |= unix.MS_REC
		}
	}
	return nil
}

func planMount(sm specs.Mount) (mount, error) {
	dest := sm.Destination
	if !path.IsAbs(dest) {
		dest = "/" + dest // a relative destination is one below the root, since 1.2 of the specification
	}
	dest, err := cleanPath(dest)
	if err != nil {
		return mount{}, err
	}
	if dest == "/" {
		return mount{}, fmt.Errorf("destination /: the root is no mount point: %w", ErrUnsupported)
	}
	m := mount{kind: sm.Type, source: sm.Source, dest: dest}
	if m.ids, err = planIDs(sm.UIDMappings, sm.GIDMappings); err != nil {
		return mount{}, err
	}
	m.idmap = !m.ids.none()
	for _, o := range sm.Options {
		if err := m.option(o); err != nil {
			return mount{}, err
		}
	}
	return m, m.check()
}

// option reads one option of fstab style.
func (m *mount) option(o string) error {
	name := strings.TrimPrefix(o, "r")
	if a, ok := mountAttrs[o]; ok {
		m.set, m.clear = m.set&^(a.clear|a.set)|a.set, m.clear&^(a.set&^uint64(unix.MOUNT_ATTR__ATIME))|a.clear
		return nil
	}
	if f, ok := propagations[o]; ok {
		m.propagation, m.propagationRec = f, false
		return nil
	}
	if strings.HasPrefix(o, "r") {
		if a, ok := mountAttrs[name]; ok {
			m.setRec, m.clearRec = m.setRec&^(a.clear|a.set)|a.set, m.clearRec&^(a.set&^uint64(unix.MOUNT_ATTR__ATIME))|a.clear
			return nil
		}
		if f, ok := propagations[name]; ok {
			m.propagation, m.propagationRec = f, true
			return nil
		}
	}
	switch o {
	case "bind":
		m.kind = "bind"
	case "rbind":
		m.kind, m.recursive = "bind", true
	case "defaults", "async", "nomand", "loud", "noauto", "auto", "nouser", "_netdev", "z", "Z":
	case "idmap":
		m.idmap = true
	case "ridmap":
		m.idmap, m.idmapRec = true, true
	case "tmpcopyup":
		m.copies = true
	case "remount", "mand", "silent", "user":
		return fmt.Errorf("option %s: %w", o, ErrUnsupported)
	default:
		if o == "" || strings.ContainsRune(o, 0) {
			return fmt.Errorf("option %q is none", o)
		}
		m.params = append(m.params, o)
	}
	return nil
}

// procFiles are the files of /proc that may be mounted over; lxcfs does.
var procFiles = []string{"cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo",
	"sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"}

func (m *mount) check() error {
	if name, ok := strings.CutPrefix(m.dest, "/proc/"); ok && !slices.Contains(procFiles, name) {
		return fmt.Errorf("mounting inside of /proc (CVE-2019-16884): %w", ErrUnsupported)
	}
	if m.dest == "/proc" && m.kind != "proc" {
		return fmt.Errorf("mounting %s on /proc: %w", m.kind, ErrUnsupported)
	}
	if m.idmap && m.kind != "bind" {
		return fmt.Errorf("id mappings of a mount that is not a bind mount: %w", ErrUnsupported)
	}
	if m.copies && m.kind != "tmpfs" {
		return fmt.Errorf("option tmpcopyup: it is of tmpfs, not of %s", m.kind)
	}
	switch m.kind {
	case "bind":
		if !path.IsAbs(m.source) {
			return fmt.Errorf("source %q is not absolute", m.source)
		}
		if len(m.params) > 0 {
			return fmt.Errorf("option %q means nothing to a bind mount", m.params[0])
		}
		if m.propagation == 0 {
			m.propagation, m.propagationRec = unix.MS_PRIVATE, true
		}
	case "cgroup", "cgroup2":
		m.kind, m.params = "cgroup", nil
	case "":
		return fmt.Errorf("type is missing")
	}
	return nil
}

// sortedKeys makes the order of a map's keys fixed.
func sortedKeys[K ~string, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

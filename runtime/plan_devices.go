package runtime

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A device is a node to make in the container.
type device struct {
	path         string
	mode         uint32 // with its type
	major, minor uint32
	uid, gid     uint32
}

// defaultDevices are there in every container, as the runtime specification wants.
func defaultDevices() []device {
	var list []device
	for _, d := range []device{
		{path: "/dev/null", major: 1, minor: 3}, {path: "/dev/zero", major: 1, minor: 5}, {path: "/dev/full", major: 1, minor: 7},
		{path: "/dev/random", major: 1, minor: 8}, {path: "/dev/urandom", major: 1, minor: 9}, {path: "/dev/tty", major: 5, minor: 0},
	} {
		d.mode = unix.S_IFCHR | 0o666
		list = append(list, d)
	}
	return list
}

// devLinks are the symbolic links of every /dev. ptmx is one too.
var devLinks = [...][2]string{
	{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"},
	{"pts/ptmx", "ptmx"},
}

// planDevices adds the spec's devices to the default ones; of two with one path the spec's wins.
func (p *Plan) planDevices(list []specs.LinuxDevice) error {
	index := map[string]int{}
	for _, d := range defaultDevices() {
		index[d.path] = len(p.devices)
		p.devices = append(p.devices, d)
	}
	for _, s := range list {
		d, err := planDevice(s)
		if err != nil {
			return fmt.Errorf("linux.devices: %s: %w", s.Path, err)
		}
		if i, ok := index[d.path]; ok {
			p.devices[i] = d
			continue
		}
		index[d.path] = len(p.devices)
		p.devices = append(p.devices, d)
	}
	return nil
}

// mapped is the device with its owner as it is outside of the user namespace.
func (d device) mapped(m ids) (device, error) {
	o, err := m.owner(d.uid, d.gid)
	d.uid, d.gid = o.uid, o.gid
	return d, err
}

func planDevice(s specs.LinuxDevice) (device, error) {
	d := device{mode: 0o666, major: uint32(s.Major), minor: uint32(s.Minor)}
	var err error
	if d.path, err = cleanPath(s.Path); err != nil {
		return d, err
	}
	if s.FileMode != nil {
		d.mode = uint32(s.FileMode.Perm())
	}
	switch s.Type {
	case "c", "u":
		d.mode |= unix.S_IFCHR
	case "b":
		d.mode |= unix.S_IFBLK
	case "p":
		d.mode |= unix.S_IFIFO
	default:
		return d, fmt.Errorf("type %q is none of c, u, b and p", s.Type)
	}
	if s.Type != "p" && (s.Major < 0 || s.Major >= 1<<12 || s.Minor < 0 || s.Minor >= 1<<20) {
		return d, fmt.Errorf("number %d:%d is out of range", s.Major, s.Minor)
	}
	if s.UID != nil {
		d.uid = *s.UID
	}
	if s.GID != nil {
		d.gid = *s.GID
	}
	return d, nil
}

package mounts

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Rootfs says what an overlay is made of. Directories are named by path, and may
// contain any byte.
type Rootfs struct {
	Lower []string // read-only layers, highest first; at least one
	Data  []string // data-only layers, in the order in which they are searched
	Upper string   // takes the writes; empty: the overlay is read-only
	Work  string   // an empty directory on the file system of Upper; with Upper only
	// ReadOnly makes the mount read-only although it has an Upper. What is in
	// Upper shows.
	ReadOnly bool
	// Volatile leaves out every sync of Upper. The kernel refuses to mount such
	// an Upper again after a crash, so it is for what dies with its container.
	Volatile bool
	// Users is a user namespace by whose mappings the owners in Lower are shown
	// (Linux 6.15, as of descriptors that are attached nowhere). Nil: as they are.
	Users *os.File
	// UserXattr keeps overlay's own attributes as user.overlay.*, for mounts made
	// in a user namespace (Linux 5.11).
	UserXattr bool

	strict bool // by descriptors only (Linux 6.13)
	named  bool // by names of descriptors, as older kernels want it
}

// Overlay mounts r nowhere: see [Attach]. It asks every layer for its statfs, so
// it blocks while the FUSE layer has no worker. Device nodes and set-uid programs
// work in it, as they must in a container that may have them.
func Overlay(r Rootfs) (_ *os.File, err error) {
	// With one layer there is nothing to lay over another, and the kernel refuses.
	alone := len(r.Lower)+len(r.Data) < 2 && r.Upper == ""
	if len(r.Lower) == 0 || alone || (r.Upper == "") != (r.Work == "") {
		return nil, fmt.Errorf("overlay of %d lower and %d data directories, upper %q, work %q: %w",
			len(r.Lower), len(r.Data), r.Upper, r.Work, unix.EINVAL)
	}
	var settings []setting
	defer func() {
		for _, s := range settings {
			if s.file != nil {
				s.file.Close()
			}
		}
	}()
	dir := func(key string, users *os.File, paths ...string) {
		for _, p := range paths {
			f, oerr := openShown(p, users)
			err = errors.Join(err, oerr)
			settings = append(settings, setting{key: key, value: p, file: f})
		}
	}
	settings = append(settings, setting{key: "source", value: "overlay"})
	settings = append(settings, r.options()...)
	dir("lowerdir+", r.Users, r.Lower...)
	dir("datadir+", nil, r.Data...)
	if r.Upper != "" {
		dir("upperdir", nil, r.Upper)
		dir("workdir", nil, r.Work)
	}
	if err != nil {
		return nil, fmt.Errorf("overlay: %w", err)
	}
	attrs := 0
	if r.ReadOnly || r.Upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	if r.named {
		return detached("overlay", attrs, byName(settings)...)
	}
	m, err := detached("overlay", attrs, settings...)
	// Before Linux 6.5 the descriptor is refused, then the parameter.
	old := errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP)
	if old && !r.strict && len(r.Data) == 0 {
		r.named = true
		if m, oerr := Overlay(r); oerr == nil {
			return m, nil
		}
	}
	if r.Users != nil && errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w (layers with shifted owners need Linux 6.15)", err)
	}
	return m, err
}

// byName turns descriptors into names of them, and layers into one list, as
// kernels before 6.13 take them: those have lowerdir only, in at most 255 bytes.
// Before 6.5 overlayfs has no parser of its own, and commas divide its options;
// there are none.
func byName(settings []setting) (list []setting) {
	var lower []string
	for _, s := range settings {
		if s.file == nil {
			list = append(list, s)
			continue
		}
		name := fmt.Sprintf("/proc/self/fd/%d", s.file.Fd())
		if s.key == "lowerdir+" {
			lower = append(lower, name)
			continue
		}
		list = append(list, setting{key: s.key, value: name})
	}
	return append(list, setting{key: "lowerdir", value: strings.Join(lower, ":")})
}

// openShown opens a directory with its owners shifted, unless users is nil.
func openShown(dir string, users *os.File) (*os.File, error) {
	if users == nil {
		return openDir(dir)
	}
	return MappedBy(dir, users)
}

// options are the settings of r that are not directories. All are given, because
// an administrator may have set other defaults as parameters of the module.
func (r Rootfs) options() []setting {
	o := []setting{
		// An upper directory must mean the same wherever it is read: whole files
		// (metacopy would leave metadata alone there, and zeros for who reads it
		// directly), directories under their own names, no index beside it.
		{key: "metacopy", value: "off"},
		{key: "redirect_dir", value: "off"},
		{key: "index", value: "off"},
		{key: "nfs_export", value: "off"},
		{key: "xino", value: xino},
	}
	if r.UserXattr {
		o = append(o, setting{key: "userxattr", flag: true})
	}
	if r.Volatile && r.Upper != "" {
		o = append(o, setting{key: "volatile", flag: true})
	}
	return o
}

// xino would make st_dev the same for all files of a container, at the price of
// translating every inode number that a directory holds.
const xino = "off"

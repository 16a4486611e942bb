package tarindex

import (
	"bytes"
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// Limits of the kernel (include/uapi/linux/limits.h).
const (
	maxXattrName  = 255      // XATTR_NAME_MAX
	maxXattrValue = 64 << 10 // XATTR_SIZE_MAX
)

// entry makes a layer's entry of a header. skip is true of members that stand
// for nothing: the root as anything but a directory, as containerd's pkg/archive
// has it.
func (h *header) entry() (e layers.Entry, skip bool, err error) {
	if e.Name, err = cleanName(h.name); err != nil {
		return e, false, fmt.Errorf("name %.80q: %w", h.name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", e.Name, err)
		}
	}()
	if e.Kind, err = kindOf(h.typ); err != nil {
		return e, false, err
	}
	if e.Name == "" && e.Kind != layers.Dir {
		return e, true, nil
	}
	e.Mode = uint16(h.mode & 0o7777)
	e.Sec, e.Nsec = h.sec, h.nsec
	if err := h.numbers(&e); err != nil {
		return e, false, err
	}
	if err := h.target(&e); err != nil {
		return e, false, err
	}
	e.Xattrs, err = h.xattrs(e.Kind)
	return e, false, err
}

func kindOf(typ byte) (layers.Kind, error) {
	switch typ {
	case typeReg, typeCont, typeGNUSpars:
		return layers.Reg, nil
	case typeLink:
		return layers.Hardlink, nil
	case typeSymlink:
		return layers.Symlink, nil
	case typeChar:
		return layers.Char, nil
	case typeBlock:
		return layers.Block, nil
	case typeDir:
		return layers.Dir, nil
	case typeFifo:
		return layers.Fifo, nil
	}
	return 0, fmt.Errorf("type %q is unknown: %w", typ, layers.ErrBadLayer)
}

// numbers sets owner, size and device, refusing what does not fit.
func (h *header) numbers(e *layers.Entry) error {
	for _, n := range [...]struct {
		from int64
		to   *uint32
		what string
	}{{h.uid, &e.UID, "uid"}, {h.gid, &e.GID, "gid"}, {h.major, &e.Major, "device major"}, {h.minor, &e.Minor, "device minor"}} {
		if device := n.to == &e.Major || n.to == &e.Minor; device && e.Kind != layers.Char && e.Kind != layers.Block {
			continue
		}
		if n.from < 0 || n.from > math.MaxUint32 {
			return fmt.Errorf("%s %d: %w", n.what, n.from, layers.ErrBadLayer)
		}
		*n.to = uint32(n.from)
	}
	if e.Kind == layers.Reg {
		e.Size = h.real
	}
	if e.Size > layers.MaxFile {
		return fmt.Errorf("file of %d bytes: %w", e.Size, layers.ErrTooLarge)
	}
	return nil
}

// target sets what a link points to.
func (h *header) target(e *layers.Entry) (err error) {
	switch e.Kind {
	case layers.Symlink:
		if len(h.link) == 0 || bytes.IndexByte(h.link, 0) >= 0 {
			return fmt.Errorf("symbolic link to %.80q: %w", h.link, layers.ErrBadLayer)
		}
		if len(h.link) > layers.MaxName {
			return fmt.Errorf("symbolic link of %d bytes: %w", len(h.link), layers.ErrTooLarge)
		}
		e.Link = string(h.link)
	case layers.Hardlink:
		if e.Link, err = cleanName(h.link); err == nil && e.Link == "" {
			err = layers.ErrBadLayer
		}
		if err != nil {
			return fmt.Errorf("hard link to %.80q: %w", h.link, err)
		}
	}
	return nil
}

// cleanName makes a relative clean name of one in a tar: lexically, as
// containerd does, "./a", "/a", "a/" and "a//b" lose what is too much. A name
// that leads above the root is refused.
func cleanName(p []byte) (string, error) {
	p = bytes.TrimPrefix(p, []byte("./"))
	if n := len(p); n > 1 && p[n-1] == '/' {
		p = p[:n-1]
	}
	name := string(p)
	if err := checkName(name); err == nil {
		return name, nil
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("it has a NUL: %w", layers.ErrBadLayer)
	}
	if escapes(p) {
		return "", fmt.Errorf("it leads out of the layer: %w", layers.ErrBadLayer)
	}
	name = path.Clean("/" + name)[1:]
	if name == "" {
		return "", nil
	}
	return name, checkName(name)
}

// escapes reports whether p climbs above where it starts at any point, which
// path.Clean hides for absolute names.
func escapes(p []byte) bool {
	depth := 0
	for elem := range bytes.SplitSeq(p, []byte("/")) {
		switch string(elem) {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return true
			}
		default:
			depth++
		}
	}
	return false
}

// checkName returns why name is not a clean one that the kernel takes.
func checkName(name string) error {
	if len(name) > layers.MaxName {
		return fmt.Errorf("it is %d bytes long: %w", len(name), layers.ErrTooLarge)
	}
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			if name[i] == 0 {
				return layers.ErrBadLayer
			}
			continue
		}
		switch elem := name[start:i]; {
		case elem == "" || elem == "." || elem == "..":
			return layers.ErrBadLayer
		case len(elem) > layers.MaxNameElem:
			return fmt.Errorf("an element is %d bytes long: %w", len(elem), layers.ErrTooLarge)
		}
		start = i + 1
	}
	return nil
}

// xattrs are the extended attributes of the PAX records, sorted. Those that
// speak to overlayfs, and those that the kernel would not take on such a file
// (containerd warns and goes on), are left out.
func (h *header) xattrs(kind layers.Kind) ([]layers.Xattr, error) {
	var m map[string]string
	for _, prefix := range [...]string{libarchiveXattr, schilyXattr} { // the latter wins
		for _, r := range h.pax {
			name, value, ok := xattrOf(r, prefix)
			if !ok || !wanted(name, kind) {
				continue
			}
			if m == nil {
				m = make(map[string]string)
			}
			m[name] = value
		}
	}
	if m == nil {
		return nil, nil
	}
	return sortXattrs(m)
}

func sortXattrs(m map[string]string) ([]layers.Xattr, error) {
	list := make([]layers.Xattr, 0, len(m))
	total := 0
	for name, value := range m {
		if len(name) > maxXattrName || len(value) > maxXattrValue {
			return nil, fmt.Errorf("extended attribute %.40q of %d bytes: %w", name, len(value), layers.ErrTooLarge)
		}
		total += len(name) + len(value)
		list = append(list, layers.Xattr{Name: name, Value: value})
	}
	if total > layers.MaxXattrs {
		return nil, fmt.Errorf("extended attributes of %d bytes: %w", total, layers.ErrTooLarge)
	}
	slices.SortFunc(list, func(a, b layers.Xattr) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// wanted reports whether an extended attribute is kept (xattr(7)).
func wanted(name string, kind layers.Kind) bool {
	space, rest, _ := strings.Cut(name, ".")
	if rest == "" || strings.IndexByte(name, 0) >= 0 {
		return false
	}
	switch space {
	case "user":
		return rest != "overlay" && !strings.HasPrefix(rest, "overlay.") &&
			(kind == layers.Reg || kind == layers.Dir || kind == layers.Hardlink)
	case "trusted":
		return rest != "overlay" && !strings.HasPrefix(rest, "overlay.")
	case "security":
		return true
	case "system":
		return rest == "posix_acl_access" || rest == "posix_acl_default"
	}
	return false
}

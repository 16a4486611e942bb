package erofs

import (
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// Attributes follow their inode:
//
//	name filter 4 │ shared 1 │ 0 × 7 │ { name length 1 │ prefix 1 │ value length 2 │ name │ value │ to 4 } …

const (
	metacopy = "trusted.overlay.metacopy"
	redirect = "trusted.overlay.redirect"
)

// attrs calls f with every attribute of n that the format can hold, and those
// that send overlayfs to its object.
func attrs(n *fs.Node, object bool, f func(name, value string) error) error {
	if object && n.Kind == layers.Reg && n.Size > 0 {
		if err := f(metacopy, ""); err != nil {
			return err
		}
		if err := f(redirect, "/"+n.Object.Path()); err != nil {
			return err
		}
	}
	for _, x := range n.Xattrs {
		if err := f(x.Name, x.Value); err != nil {
			return err
		}
	}
	return nil
}

// prefixOf splits a name into the index of its prefix and the rest. Names
// outside the known name spaces have none: the kernel would not show them.
func prefixOf(name string) (index byte, rest string, ok bool) {
	for _, p := range xattrPrefixes {
		if rest, ok := strings.CutPrefix(name, p.prefix); ok && len(rest) <= 255 {
			acl := p.index == 2 || p.index == 3
			return p.index, rest, acl == (rest == "")
		}
	}
	return 0, "", false
}

// xattrSize is how many bytes the attributes of n take; 0 without any.
func xattrSize(n *fs.Node, object bool) (int, error) {
	size := 0
	err := attrs(n, object, func(name, value string) error {
		if _, rest, ok := prefixOf(name); ok {
			if len(value) > 1<<16-1 {
				return fmt.Errorf("attribute %s of %d bytes: %w", name, len(value), layers.ErrTooLarge)
			}
			size += (xattrEntryHeader + len(rest) + len(value) + 3) &^ 3
		}
		return nil
	})
	switch {
	case err != nil || size == 0:
		return 0, err
	case xattrHeader+size > maxXattrIbodySize:
		return 0, fmt.Errorf("attributes of %d bytes: %w", size, layers.ErrTooLarge)
	}
	return xattrHeader + size, nil
}

func appendXattrs(b []byte, n *fs.Node, object bool) []byte {
	begun := false
	attrs(n, object, func(name, value string) error {
		index, rest, ok := prefixOf(name)
		if !ok {
			return nil
		}
		if !begun {
			b = append(b, zeros[:xattrHeader]...)
			begun = true
		}
		b = append(b, byte(len(rest)), index)
		b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, rest...), value...)
		for len(b)&3 != 0 {
			b = append(b, 0)
		}
		return nil
	})
	return b
}

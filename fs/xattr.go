package fs

import (
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// keptXattrs returns those of a layer's extended attributes that a file of that
// kind gets (xattr(7)). No layer may speak to overlayfs, and like containerd
// nothing in "trusted." is taken; what the kernel would not take is left out.
func keptXattrs(list []layers.Xattr, kind layers.Kind) []layers.Xattr {
	drop := func(x layers.Xattr) bool { return !kept(x.Name, kind) }
	if !slices.ContainsFunc(list, drop) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), drop)
}

func kept(name string, kind layers.Kind) bool {
	if strings.IndexByte(name, 0) >= 0 || len(name) > 255 {
		return false
	}
	space, rest, _ := strings.Cut(name, ".")
	switch space {
	case "user":
		return rest != "" && (kind == layers.Reg || kind == layers.Dir) && rest != "overlay" && !strings.HasPrefix(rest, "overlay.")
	case "security":
		return rest != ""
	case "system":
		return rest == "posix_acl_access" && kind != layers.Symlink || rest == "posix_acl_default" && kind == layers.Dir
	}
	return false
}

// mergeXattrs sets those of more on top of list. Neither is changed.
func mergeXattrs(list, more []layers.Xattr) []layers.Xattr {
	if len(list) == 0 {
		return more
	}
	if len(more) == 0 {
		return list
	}
	all := slices.Clone(list)
	for _, x := range more {
		i, ok := slices.BinarySearchFunc(all, x.Name, byName)
		if !ok {
			all = slices.Insert(all, i, x)
		}
		all[i] = x
	}
	return all
}

func withoutXattr(list []layers.Xattr, name string) []layers.Xattr {
	if i, ok := slices.BinarySearchFunc(list, name, byName); ok {
		return slices.Concat(list[:i:i], list[i+1:])
	}
	return list
}

func byName(x layers.Xattr, name string) int { return strings.Compare(x.Name, name) }

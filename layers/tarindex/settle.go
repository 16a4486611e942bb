package tarindex

import (
	"fmt"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/layers"
)

// settle makes of the members of an archive what is there after all of them were
// unpacked in order: of members with one name the last stands, except that
// directories are merged; what was below a directory that something else
// replaced is gone; a hard link keeps the file it linked to when that name was
// replaced later. It takes entries over.
func settle(entries []layers.Entry) ([]layers.Entry, error) {
	s := settler{
		entries: entries,
		last:    make(map[string]int32, len(entries)),
		gone:    make([]bool, len(entries)),
	}
	for i := range entries {
		if err := s.step(int32(i)); err != nil {
			return nil, err
		}
	}
	if err := s.parents(); err != nil {
		return nil, err
	}
	if s.inode != nil {
		s.relink()
	}
	i := -1
	return slices.DeleteFunc(entries, func(layers.Entry) bool { i++; return s.gone[i] }), nil
}

// A settler knows entries by their place in the archive.
type settler struct {
	entries []layers.Entry
	last    map[string]int32 // the last entry of a name
	solid   map[string]int32 // the last one that was no directory, where one was replaced
	gone    []bool
	inode   map[int32]int32 // the entry that a hard link is another name of, in this layer
}

// step takes the next entry.
func (s *settler) step(i int32) error {
	e := &s.entries[i]
	if e.Kind == layers.Hardlink {
		if err := s.link(i, e); err != nil {
			return err
		}
	}
	if old, ok := s.last[e.Name]; ok {
		s.gone[old] = true
		if s.entries[old].Kind != layers.Dir {
			if s.solid == nil {
				s.solid = make(map[string]int32)
			}
			s.solid[e.Name] = old
		}
	}
	s.last[e.Name] = i
	return nil
}

// link finds what a hard link is a name of. It may be in a layer below.
func (s *settler) link(i int32, e *layers.Entry) error {
	if e.Link == e.Name {
		return fmt.Errorf("%s: hard link to itself: %w", e.Name, layers.ErrBadLayer)
	}
	t, ok := s.last[e.Link]
	if !ok {
		return nil
	}
	if s.entries[t].Kind == layers.Hardlink {
		if t, ok = s.inode[t]; !ok {
			e.Link = s.entries[s.last[e.Link]].Link
			return nil
		}
	}
	if s.entries[t].Kind == layers.Dir {
		return fmt.Errorf("%s: hard link to directory %s: %w", e.Name, e.Link, layers.ErrBadLayer)
	}
	if s.inode == nil {
		s.inode = make(map[int32]int32)
	}
	s.inode[i] = t
	return nil
}

// parents drops what is below a directory that was replaced, and refuses what
// is below a file. Below a symbolic link is allowed: it is followed (by package fs).
func (s *settler) parents() error {
	cache := make(map[string]int32)
	lastDir, lastOver := "", int32(-1)
	for i := range s.entries {
		dir, _ := split(s.entries[i].Name)
		if dir == "" {
			continue
		}
		over := lastOver
		if dir != lastDir {
			over = s.over(dir, cache)
			lastDir, lastOver = dir, over
		}
		switch {
		case over < 0:
		case over > int32(i):
			s.gone[i] = true
		case !s.gone[over] && s.entries[over].Kind != layers.Symlink && s.entries[over].Kind != layers.Hardlink && !s.gone[i]:
			return fmt.Errorf("%s: %s is not a directory: %w", s.entries[i].Name, s.entries[over].Name, layers.ErrBadLayer)
		}
	}
	return nil
}

// over returns the last entry that put something else than a directory in the
// place of dir or of a directory above it, -1 if none did.
func (s *settler) over(dir string, cache map[string]int32) int32 {
	if dir == "" {
		return -1
	}
	if i, ok := cache[dir]; ok {
		return i
	}
	above, _ := split(dir)
	i := s.over(above, cache)
	if own, ok := s.last[dir]; ok {
		if s.entries[own].Kind == layers.Dir {
			if own, ok = s.solid[dir]; !ok {
				own = -1
			}
		}
		i = max(i, own)
	}
	cache[dir] = i
	return i
}

// relink lets hard links name what they link to by its present name. Where that
// is gone, the first link becomes the file.
func (s *settler) relink() {
	heir := make(map[int32]int32)
	for i := range s.entries {
		at, ok := s.inode[int32(i)]
		if !ok || s.gone[i] {
			continue
		}
		e, file := &s.entries[i], &s.entries[at]
		if !s.gone[at] {
			e.Link = file.Name
			continue
		}
		if h, ok := heir[at]; ok {
			e.Link = s.entries[h].Name
			continue
		}
		heir[at] = int32(i)
		e.Kind, e.Link, e.Size, e.Object, e.Chunks = file.Kind, file.Link, file.Size, file.Object, file.Chunks
		e.Major, e.Minor = file.Major, file.Minor
		if e.Xattrs == nil {
			e.Xattrs = file.Xattrs
		}
	}
}

func split(name string) (dir, base string) {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return "", name
	}
	return name[:i], name[i+1:]
}

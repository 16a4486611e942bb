package supervisor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
)

// maxID bounds the name of an image, so that with its mapping it is still a file's.
const maxID = 200 // bytes

// checkID refuses what is not the name of a directory below RUN/images.
func checkID(id string) error {
	if id == "" || len(id) > maxID || strings.ContainsAny(id, "/\x00") || strings.HasPrefix(id, ".") || strings.Contains(id, mappedMark) {
		return invalid("image ID %q", id)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf(format, args...)}
}

// mappedMark divides the name of an image from what stands for its mapping.
const mappedMark = "-mapped-"

// short stands for s in the name of a file.
func short(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:12])
}

func mappedImageDir(run, id string, m mounts.IDMap) string {
	return imageDir(run, id+mappedMark+short(m.String()))
}

func mappedDir(run string) string { return filepath.Join(run, "mapped") }

// mountImage mounts a metadata image, and with a mapping once more beside that.
// It is already done if something is mounted there.
func (s *supervisor) mountImage(r *control.Request) error {
	var a mountArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if err := checkID(a.ID); err != nil {
		return err
	}
	if !filepath.IsAbs(a.File) {
		return invalid("image file %q is not absolute", a.File)
	}
	if a.Map != nil {
		if err := a.Map.Check(); err != nil {
			return invalid("%v", err)
		}
	}
	s.images.Lock()
	defer s.images.Unlock()
	dir := imageDir(s.o.Run, a.ID)
	if err := s.mountOnce(dir, func() error { return mounts.MountErofs(a.File, dir) }); err != nil {
		return err
	}
	if a.Map != nil {
		plain := dir
		dir = mappedImageDir(s.o.Run, a.ID, *a.Map)
		if err := s.mountOnce(dir, func() error { return mountMapped(plain, dir, *a.Map) }); err != nil {
			return err
		}
	}
	return r.Reply(mountResult{dir})
}

// mountOnce makes the directory dir and mounts something there, unless something is mounted there.
func (s *supervisor) mountOnce(dir string, mount func() error) error {
	mounted, err := mounts.IsMounted(dir)
	if err != nil || mounted {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := mount(); err != nil {
		os.Remove(dir)
		return err
	}
	return nil
}

func mountMapped(from, at string, m mounts.IDMap) error {
	f, err := mounts.Mapped(from, m)
	if err != nil {
		return err
	}
	defer f.Close()
	return mounts.Attach(f, at)
}

// unmountImage takes an image's mounts away, those of all mappings, too. Overlays
// above them keep the image.
func (s *supervisor) unmountImage(r *control.Request) error {
	var a mountArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if err := checkID(a.ID); err != nil {
		return err
	}
	s.images.Lock()
	defer s.images.Unlock()
	mapped := unmountMapped(imageDir(s.o.Run, ""), func(id string) bool { return id == a.ID }, mappedMark, nil)
	return errors.Join(mapped, unmount(imageDir(s.o.Run, a.ID)))
}

// unmountMapped takes away what is mounted in parent under names that have a
// prefix that is wanted, and after that what stands for a map that is not in keep.
func unmountMapped(parent string, wanted func(prefix string) bool, mark string, keep []mounts.IDMap) error {
	stay := map[string]bool{}
	for _, m := range keep {
		stay[short(m.String())] = true
	}
	entries, err := os.ReadDir(parent)
	for _, e := range entries {
		prefix, of, mapped := strings.Cut(e.Name(), mark)
		if mapped && wanted(prefix) && !stay[of] {
			err = errors.Join(err, unmount(filepath.Join(parent, e.Name())))
		}
	}
	return err
}

// keepMapped takes away mappings that nobody needs any more.
func (s *supervisor) keepMapped(r *control.Request) error {
	var a keepArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	s.images.Lock()
	defer s.images.Unlock()
	if a.Dir == "" {
		return unmountMapped(imageDir(s.o.Run, ""), func(string) bool { return true }, mappedMark, a.Maps)
	}
	return unmountMapped(mappedDir(s.o.Run), func(of string) bool { return of == short(a.Dir) }, "-", a.Maps)
}

func unmount(dir string) error {
	if err := mounts.Clear(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// mapDir mounts a directory once more, with owners shifted. It is already done if
// that directory is mounted there, and not one that had its name before.
func (s *supervisor) mapDir(r *control.Request) error {
	var a mapArgs
	if err := r.Decode(&a); err != nil {
		return err
	}
	if !filepath.IsAbs(a.Dir) || filepath.Clean(a.Dir) != a.Dir {
		return invalid("directory %q: want a clean absolute path", a.Dir)
	}
	if err := a.Map.Check(); err != nil {
		return invalid("%v", err)
	}
	target := filepath.Join(mappedDir(s.o.Run), short(a.Dir)+"-"+short(a.Map.String()))
	s.images.Lock()
	defer s.images.Unlock()
	same, err := sameDir(a.Dir, target)
	if err != nil {
		return err
	}
	if !same {
		if err := mounts.Clear(target); err != nil {
			return err
		}
	}
	if err := s.mountOnce(target, func() error { return mountMapped(a.Dir, target, a.Map) }); err != nil {
		return err
	}
	return r.Reply(mountResult{target})
}

// sameDir says whether dir, which must be there, is what is shown at target.
func sameDir(dir, target string) (bool, error) {
	var d, t unix.Stat_t
	if err := unix.Lstat(dir, &d); err != nil {
		return false, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if d.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, &os.PathError{Op: "map owners", Path: dir, Err: unix.ENOTDIR}
	}
	err := unix.Lstat(target, &t)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	return err == nil && d.Dev == t.Dev && d.Ino == t.Ino, err
}

// dropMountPoints removes directories on which nothing is mounted any more: RUN
// may outlive the boot in which its mounts were made.
func (s *supervisor) dropMountPoints() error {
	var errs []error
	for _, parent := range []string{imageDir(s.o.Run, ""), mappedDir(s.o.Run)} {
		entries, err := os.ReadDir(parent)
		errs = append(errs, err)
		for _, e := range entries {
			dir := filepath.Join(parent, e.Name())
			if mounted, err := mounts.IsMounted(dir); err != nil || mounted {
				errs = append(errs, err)
			} else if err := os.Remove(dir); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

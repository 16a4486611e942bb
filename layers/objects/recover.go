package objects

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// putAside takes everything out of sight that a power cut may have damaged:
// fresh objects and packs, and the bitmaps of partial objects, which from now
// on only claim. All of that is on disk before the record says that this boot
// is the current one.
func (s *Store) putAside() error {
	if err := s.asideFresh(); err != nil {
		return err
	}
	if err := s.asidePacks(); err != nil {
		return err
	}
	if err := s.asidePartials(); err != nil {
		return err
	}
	return s.syncfs()
}

func (s *Store) asideFresh() error {
	for i := 0; ; i++ {
		err := s.rename("fresh", fmt.Sprintf("quarantine/%d", i))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
}

// Recover verifies what an unclean boot left in doubt, brings back what is
// whole, and drops the rest. It does nothing after a clean one. [Store.Run] calls it.
func (s *Store) Recover(ctx context.Context) error {
	if s.aside.Load() {
		if err := s.recoverFresh(ctx); err != nil {
			return err
		}
	}
	for _, p := range s.packs.claims() {
		if err := s.recoverPack(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) recoverFresh(ctx context.Context) error {
	dirs, err := s.list("quarantine")
	if err != nil {
		return err
	}
	for _, d := range dirs {
		dir := "quarantine/" + d
		err := s.walkDir(dir, func(sum layers.Sum, name string) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			_, err := s.restore(name, sum)
			return err
		})
		if err != nil {
			return err
		}
		if err := s.removeTree(dir); err != nil {
			return err
		}
	}
	s.aside.Store(false)
	return nil
}

// adopt brings back one object that waits for its verification, because
// somebody needs it now. It says whether there was one and it is whole.
func (s *Store) adopt(sum layers.Sum) bool {
	if !s.aside.Load() {
		return false
	}
	dirs, err := s.list("quarantine")
	if err != nil {
		s.log.Warn("list quarantine", "err", err)
	}
	for _, d := range dirs {
		ok, err := s.restore("quarantine/"+d+"/"+sum.Path(), sum)
		if err != nil {
			s.log.Warn("verify object", "object", sum, "err", err)
		}
		if ok {
			return true
		}
	}
	return false
}

// restore verifies one object in quarantine and moves it back, or drops it.
func (s *Store) restore(name string, sum layers.Sum) (bool, error) {
	err := s.verifyFile(name, sum)
	if errors.Is(err, fs.ErrNotExist) {
		return s.hasFile(sum), nil // somebody else may have been faster
	}
	if err != nil {
		if _, bad := errors.AsType[*layers.DigestError](err); !bad {
			return false, err
		}
		s.log.Info("dropped an object that the power cut damaged", "object", sum)
		return false, s.unlink(name)
	}
	s.filter.add(sum)
	if err := s.settle(name, "fresh/"+sum.Path()); err != nil {
		return false, err
	}
	s.dirty.Store(true)
	return true, nil
}

// verifyFile reads a file from disk, not from the page cache, and compares its sum.
func (s *Store) verifyFile(name string, want layers.Sum) error {
	fd, err := openAt(s.root, name, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED) // a hint
	got, err := sumOfFile(fd)
	if err != nil {
		return err
	}
	if got != want {
		return &layers.DigestError{Want: want.Digest(), Got: got.Digest(), From: name}
	}
	return nil
}

// sumOfFile hashes all of fd.
func sumOfFile(fd int) (sum layers.Sum, err error) {
	h := sha256.New()
	buf := writeBuffers.Get().(*[writeUnit]byte)
	defer writeBuffers.Put(buf)
	for off := int64(0); ; {
		n, err := pread(fd, buf[:], off)
		h.Write(buf[:n])
		off += int64(n)
		if err == io.EOF {
			h.Sum(sum[:0])
			return sum, nil
		}
		if err != nil {
			return sum, err
		}
	}
}

// removeTree removes a directory with the layout ab/cdef….
func (s *Store) removeTree(dir string) error {
	subs, err := s.list(dir)
	if err != nil {
		return err
	}
	for _, sub := range subs {
		names, err := s.list(dir + "/" + sub)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := s.unlink(dir + "/" + sub + "/" + name); err != nil {
				return err
			}
		}
		if err := s.rmdir(dir + "/" + sub); err != nil {
			return err
		}
	}
	return s.rmdir(dir)
}

func (s *Store) rmdir(name string) error {
	err := unix.Unlinkat(s.root, name, unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("rmdir %s: %w", name, err)
	}
	return nil
}

// asidePacks makes the packs that are not durable mere claims.
func (s *Store) asidePacks() error {
	names, err := s.list("packs")
	if err != nil {
		return err
	}
	for _, name := range names {
		if base, ok := strings.CutSuffix(name, freshSuffix); ok {
			if err := s.rename("packs/"+name, "packs/"+base+claimSuffix); err != nil {
				return err
			}
		}
	}
	return nil
}

// recoverPack verifies every object of a pack. One that is damaged is dropped
// whole: no layer that the database calls complete depends on it.
func (s *Store) recoverPack(ctx context.Context, p *pack) error {
	err := p.verify(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.exclusive(func() error {
		if err != nil {
			s.log.Info("dropped a pack that the power cut damaged", "pack", p.name, "err", err)
			s.dropPack(p)
			return nil
		}
		return s.renamePack(p, claimSuffix, freshSuffix)
	})
}

package objects

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// barrierEvery is the time between two barriers while something is new. A power
// cut costs at most the verification of what came in so much time before it.
const barrierEvery = 5 * time.Second

// Barrier returns when every object that was added before it is durable: the
// file system was synced and the objects carry their durable names.
// Only then may a database say that they are there.
func (s *Store) Barrier(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.exclusive(func() error { return s.barrier(false) })
}

// barriers makes a barrier from time to time, and a last one when ctx ends.
func (s *Store) barriers(ctx context.Context) error {
	tick := time.NewTicker(barrierEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := s.Barrier(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("store barrier", "err", err)
		}
	}
}

// barrier syncs and then moves what was there before. always syncs even if no
// complete object is new: there may be new chunks of partial ones.
func (s *Store) barrier(always bool) (err error) {
	if !s.dirty.Swap(false) && !always {
		return nil
	}
	defer func() {
		if err != nil {
			s.dirty.Store(true)
		}
	}()
	if err := s.loadPacks(); err != nil { // those of a worker that is handing over
		return err
	}
	sums, err := s.fresh()
	if err != nil {
		return err
	}
	packs := s.packs.fresh()
	if err := s.syncfs(); err != nil {
		return err
	}
	if s.suspect.Load() {
		sums, packs = s.doubt(sums, packs)
	}
	for _, sum := range sums {
		if err := s.settle("fresh/"+sum.Path(), "objects/"+sum.Path()); err != nil {
			return err
		}
	}
	for _, p := range packs {
		if err := s.settlePack(p); err != nil {
			return err
		}
	}
	s.suspect.Store(false)
	return nil
}

// syncfs writes the file system to disk. If that fails once, the kernel has
// reported it and forgets: what it covered is in doubt (see doubt).
func (s *Store) syncfs() error {
	fd, err := openAt(s.root, ".", unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil {
		s.suspect.Store(true)
		return os.NewSyscallError("syncfs", err)
	}
	return nil
}

// settle moves a name to where it is durable. One that is gone was moved or
// removed by somebody else; one that is there already is kept.
func (s *Store) settle(from, to string) error {
	err := s.rename(from, to)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, fs.ErrExist):
		return s.unlink(from)
	}
	return err
}

// doubt verifies from disk what an earlier, failed sync covered, drops what did
// not get there, and returns the rest.
func (s *Store) doubt(sums []layers.Sum, packs []*pack) ([]layers.Sum, []*pack) {
	var good []layers.Sum
	for _, sum := range sums {
		if err := s.verifyFile("fresh/"+sum.Path(), sum); err != nil {
			s.log.Warn("dropped an object that was not written", "object", sum, "err", err)
			s.files.drop(sum)
			if err := s.unlink("fresh/" + sum.Path()); err != nil {
				s.log.Warn("drop object", "object", sum, "err", err)
			}
			continue
		}
		good = append(good, sum)
	}
	var whole []*pack
	for _, p := range packs {
		if err := p.verify(context.Background()); err != nil {
			s.log.Warn("dropped a pack that was not written", "pack", p.name, "err", err)
			s.dropPack(p)
			continue
		}
		whole = append(whole, p)
	}
	return good, whole
}

// fresh lists the objects in fresh/.
func (s *Store) fresh() ([]layers.Sum, error) {
	var sums []layers.Sum
	err := s.walkDir("fresh", func(sum layers.Sum, _ string) error {
		sums = append(sums, sum)
		return nil
	})
	return sums, err
}

// walkDir calls f for every object below a directory with the layout ab/cdef…,
// with its name from the root.
func (s *Store) walkDir(dir string, f func(sum layers.Sum, name string) error) error {
	for i := range 256 {
		sub := fmt.Sprintf("%s/%02x", dir, i)
		names, err := s.list(sub)
		if err != nil {
			return err
		}
		for _, name := range names {
			sum, ok := parseSum(sub[len(dir)+1:] + name)
			if !ok {
				continue
			}
			if err := f(sum, sub+"/"+name); err != nil {
				return err
			}
		}
	}
	return nil
}

// parseSum decodes the 64 hex digits of a sum as names hold them.
func parseSum(s string) (sum layers.Sum, ok bool) {
	if len(s) != 2*len(sum) || strings.ToLower(s) != s {
		return sum, false
	}
	_, err := hex.Decode(sum[:], []byte(s))
	return sum, err == nil
}

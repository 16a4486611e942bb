package objects

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// holds protect what is being added from a sweep that does not know of it yet.
type holds struct {
	mu   sync.Mutex
	n    int
	sums map[layers.Sum]struct{}
}

// Hold protects every object that is added, or found to be there when it would
// be added, from now until release: while a layer is unpacked, no index names
// its objects yet. It costs memory for each of them, 32 bytes and a map's slot.
func (s *Store) Hold() (release func()) {
	h := &s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n++; h.sums == nil {
		h.sums = make(map[layers.Sum]struct{})
	}
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.n--; h.n == 0 {
			h.sums = nil
		}
	})
}

// Spared says whether a Sweep with this keep leaves objects for no other reason
// than that they are held, or were added meanwhile: another one will be needed.
func (s *Store) Spared(keep func(layers.Sum) bool) bool {
	h := &s.held
	h.mu.Lock()
	defer h.mu.Unlock()
	for sum := range h.sums {
		if !keep(sum) {
			return true
		}
	}
	return false
}

// note comes before the question whether an object is there: either it sees
// that a sweep removed it, or the sweep sees the note.
func (h *holds) note(sum layers.Sum) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n > 0 {
		h.sums[sum] = struct{}{}
	}
}

// unless runs remove if nobody holds sum.
func (h *holds) unless(sum layers.Sum, remove func() error) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.sums[sum]; ok {
		return false, nil
	}
	return true, remove()
}

// Sweep removes every object that keep does not name and nobody holds, complete,
// partial or in quarantine, and returns how many bytes of disk that freed. Packs that
// are mostly garbage are written anew. Removing an object that is in use is
// safe: open files keep their bytes, and who asks next misses it.
func (s *Store) Sweep(keep func(layers.Sum) bool) (freed int64, err error) {
	err = s.exclusive(func() error {
		for _, sweep := range []func(func(layers.Sum) bool, *int64) error{s.sweepFiles, s.sweepPartials, s.sweepPacks} {
			if err := sweep(keep, &freed); err != nil {
				return err
			}
		}
		return nil
	})
	return freed, err
}

func (s *Store) sweepFiles(keep func(layers.Sum) bool, freed *int64) error {
	dirs := []string{"objects", "fresh"}
	aside, err := s.list("quarantine")
	if err != nil {
		return err
	}
	for _, d := range aside {
		dirs = append(dirs, "quarantine/"+d)
	}
	for _, dir := range dirs {
		err := s.walkDir(dir, func(sum layers.Sum, name string) error {
			if keep(sum) {
				return nil
			}
			return s.sweepFile(sum, name, freed)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepFile(sum layers.Sum, name string, freed *int64) error {
	st, err := s.stat(name)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	gone, err := s.held.unless(sum, func() error {
		s.files.drop(sum)
		return s.unlink(name)
	})
	if gone && err == nil {
		*freed += st.Blocks * 512
	}
	return err
}

// SweepPartials removes parts of objects that are complete by now, and returns
// how many bytes of disk that freed.
func (s *Store) SweepPartials() (freed int64, err error) {
	err = s.exclusive(func() error {
		return s.sweepPartials(func(layers.Sum) bool { return true }, &freed)
	})
	return freed, err
}

// sweepPartials also removes parts of objects that are complete by now.
func (s *Store) sweepPartials(keep func(layers.Sum) bool, freed *int64) error {
	names, err := s.list("partial")
	if err != nil {
		return err
	}
	for _, name := range names {
		sum, ok := partialSum(name)
		if !ok || keep(sum) && !s.Has(sum) {
			continue
		}
		if err := s.sweepFile(sum, "partial/"+name, freed); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) sweepPacks(keep func(layers.Sum) bool, freed *int64) error {
	for _, p := range s.packs.all() {
		var live, dead int64
		for i := range p.n {
			e := p.entry(i)
			if keep(e.sum) || s.held.has(e.sum) {
				live += e.size
			} else {
				dead += e.size
			}
		}
		if dead <= live {
			continue
		}
		before, err := s.stat(p.path())
		if errors.Is(err, unix.ENOENT) { // another process, or a hand, has removed it
			s.packs.remove(p)
			continue
		}
		if err != nil {
			return err
		}
		written, err := s.compact(p, keep)
		if err != nil {
			return fmt.Errorf("compact pack %s: %w", p.name, err)
		}
		*freed += before.Blocks*512 - written
	}
	return nil
}

func (h *holds) has(sum layers.Sum) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.sums[sum]
	return ok
}

// compact writes what is needed of a pack into a new one and removes it. The
// bytes are verified on the way: a damaged object is missed, and comes again.
func (s *Store) compact(p *pack, keep func(layers.Sum) bool) (written int64, err error) {
	name, _, _ := strings.Cut(p.name, ".")
	n, err := s.NewPack(name)
	if err != nil {
		return 0, err
	}
	if err := s.copyLive(n, p, keep); err != nil {
		return 0, errors.Join(err, n.Abort())
	}
	kept := n.own
	written = n.off + int64(len(n.buf)) + int64(len(n.index))
	if err := n.Commit(); err != nil {
		return 0, err
	}
	// What a database calls complete must not be lost with the old pack.
	if err := s.syncfs(); err != nil {
		return 0, err
	}
	s.held.mu.Lock()
	defer s.held.mu.Unlock()
	for i := range p.n {
		sum := p.entry(i).sum
		if _, copied := kept[sum]; copied {
			continue
		}
		if _, held := s.held.sums[sum]; held {
			return written, nil // just now found in the old pack, which stays for the next sweep
		}
	}
	s.dropPack(p)
	return written, nil
}

func (s *Store) copyLive(n *Pack, p *pack, keep func(layers.Sum) bool) error {
	buf := make([]byte, MaxPacked)
	for i := range p.n {
		e := p.entry(i)
		if !keep(e.sum) && !s.held.has(e.sum) {
			continue
		}
		data := buf[:e.size]
		if _, err := pread(p.fd, data, e.off); err != nil {
			return err
		}
		if layers.SumOf(data) != e.sum {
			s.log.Warn("dropped a damaged object", "object", e.sum, "pack", p.name)
			continue
		}
		if err := n.add(e.sum, data); err != nil {
			return err
		}
	}
	return nil
}

// Remove removes an object that is a file of its own, complete or partial.
func (s *Store) Remove(sum layers.Sum) error {
	err := s.exclusive(func() error {
		s.files.drop(sum)
		err := errors.Join(s.unlink("fresh/"+sum.Path()), s.unlink("objects/"+sum.Path()))
		names, lerr := s.list("partial")
		for _, name := range names {
			if got, ok := partialSum(name); ok && got == sum {
				err = errors.Join(err, s.unlink("partial/"+name))
			}
		}
		return errors.Join(err, lerr)
	})
	if err != nil {
		return fmt.Errorf("remove object %s: %w", sum, err)
	}
	return nil
}

// Usage is what a store holds. Bytes are those of the disk, holes not counted.
type Usage struct {
	Objects      int   // complete objects that are files
	ObjectBytes  int64 // theirs
	Partials     int   // objects of which there is a part
	PartialBytes int64 // theirs
	Packs        int
	Packed       int   // objects in packs
	PackBytes    int64 // of the packs
}

// Bytes is the sum of all bytes.
func (u Usage) Bytes() int64 { return u.ObjectBytes + u.PartialBytes + u.PackBytes }

// Usage counts what the store holds. It looks at every file.
func (s *Store) Usage() (u Usage, err error) {
	blocks := func(name string) int64 {
		st, err := s.stat(name)
		if err != nil { // removed or moved meanwhile
			return 0
		}
		return st.Blocks * 512
	}
	for _, dir := range []string{"objects", "fresh"} {
		err := s.walkDir(dir, func(_ layers.Sum, name string) error {
			u.Objects++
			u.ObjectBytes += blocks(name)
			return nil
		})
		if err != nil {
			return u, err
		}
	}
	sums, err := s.Partials()
	if err != nil {
		return u, err
	}
	u.Partials = len(sums)
	names, err := s.list("partial")
	for _, name := range names {
		u.PartialBytes += blocks("partial/" + name)
	}
	for _, p := range s.packs.all() {
		u.Packs++
		u.Packed += p.n
		u.PackBytes += blocks(p.path())
	}
	return u, err
}

// Walk calls f with every complete object and its size in bytes, in no order,
// until f returns an error. Objects that come or go meanwhile may be missed;
// one that is both a file and in a pack comes twice.
func (s *Store) Walk(f func(sum layers.Sum, size int64) error) error {
	for _, dir := range []string{"fresh", "objects"} {
		err := s.walkDir(dir, func(sum layers.Sum, name string) error {
			st, err := s.stat(name)
			if err != nil {
				return nil
			}
			return f(sum, st.Size)
		})
		if err != nil {
			return err
		}
	}
	for _, p := range s.packs.all() {
		for i := range p.n {
			e := p.entry(i)
			if err := f(e.sum, e.size); err != nil {
				return err
			}
		}
	}
	return nil
}

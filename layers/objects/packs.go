package objects

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// A packSet finds objects in all committed packs. Its table is open addressing
// with 8 bytes a slot, half to three quarters of them in use: 11 to 16 bytes of
// memory for each object (21 right after it grew), plus 44 bytes of its pack's
// index, which the kernel may drop and read again. A slot is
//
//	32 bits of the sum | number of the object + 1
//
// where objects are numbered through all packs. The 32 bits only save looks
// into indexes; an index has the whole sum.
type packSet struct {
	mu    sync.RWMutex
	packs []*pack // by base
	slots []uint64
	n     int
}

// find returns the pack that has sum, and where. The caller releases the pack.
func (t *packSet) find(sum layers.Sum) (*pack, packed, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.n == 0 {
		return nil, packed{}, false
	}
	mark := mark(sum)
	for i := home(sum, len(t.slots)); t.slots[i] != 0; i = (i + 1) & (len(t.slots) - 1) {
		if uint32(t.slots[i]>>32) != mark {
			continue
		}
		number := uint32(t.slots[i]) - 1
		p := t.packs[sort.Search(len(t.packs), func(j int) bool { return t.packs[j].base > number })-1]
		if e := p.entry(int(number - p.base)); e.sum == sum {
			p.acquire()
			return p, e, true
		}
	}
	return nil, packed{}, false
}

// home is where the search for sum begins, in a table with a power of two of slots.
func home(sum layers.Sum, slots int) int {
	return int(binary.LittleEndian.Uint64(sum[:]) & uint64(slots-1))
}

func mark(sum layers.Sum) uint32 { return binary.LittleEndian.Uint32(sum[8:]) }

// add makes the objects of p findable and takes over its reference. Of two
// packs with the same object either may answer. A pack that is there already is
// let go: a barrier may load it between the moments when a new pack gets its name
// and when it is added.
func (t *packSet) add(p *pack) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if slices.ContainsFunc(t.packs, func(q *pack) bool { return q.name == p.name }) {
		p.release()
		return
	}
	p.base = uint32(t.n)
	t.packs = append(t.packs, p)
	t.n += p.n
	if 4*t.n > 3*len(t.slots) {
		t.rebuild()
		return
	}
	t.insert(p)
}

func (t *packSet) rebuild() {
	size := 1024
	for 4*t.n > 3*size {
		size *= 2
	}
	t.slots = make([]uint64, size)
	for _, p := range t.packs {
		t.insert(p)
	}
}

func (t *packSet) insert(p *pack) {
	for i := range p.n {
		sum := layers.Sum(p.index[i*packEntry:])
		j := home(sum, len(t.slots))
		for t.slots[j] != 0 {
			j = (j + 1) & (len(t.slots) - 1)
		}
		t.slots[j] = uint64(mark(sum))<<32 | uint64(p.base+uint32(i)+1)
	}
}

// remove takes packs out of sight and gives up their references.
func (t *packSet) remove(gone ...*pack) {
	t.mu.Lock()
	before := len(t.packs)
	t.packs = slices.DeleteFunc(t.packs, func(p *pack) bool { return slices.Contains(gone, p) })
	removed := len(t.packs) < before
	t.n = 0
	for _, p := range t.packs {
		p.base = uint32(t.n)
		t.n += p.n
	}
	t.rebuild()
	t.mu.Unlock()
	for _, p := range gone {
		if removed {
			p.release()
		}
	}
}

// all returns the packs; they stay open while the caller holds the exclusive lock.
func (t *packSet) all() []*pack {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Clone(t.packs)
}

func (t *packSet) with(suffix string) []*pack {
	return slices.DeleteFunc(t.all(), func(p *pack) bool { return p.suffix.Load() != suffix })
}

func (t *packSet) fresh() []*pack  { return t.with(freshSuffix) }
func (t *packSet) claims() []*pack { return t.with(claimSuffix) }

func (t *packSet) close() { t.remove(t.all()...) }

// loadPacks opens the packs that are not open yet. A damaged one is dropped:
// whoever needs its objects misses them, and gets them again.
func (s *Store) loadPacks() error {
	files, err := s.list("packs")
	if err != nil {
		return err
	}
	have := make(map[string]bool)
	for _, p := range s.packs.all() {
		have[p.name] = true
	}
	for _, file := range files {
		name, suffix := splitPack(file)
		if have[name] {
			continue
		}
		if err := s.loadPack(name, suffix); err != nil {
			return fmt.Errorf("open pack %s: %w", file, err)
		}
	}
	return nil
}

func (s *Store) loadPack(name, suffix string) error {
	fd, err := openAt(s.root, "packs/"+name+suffix, unix.O_RDONLY, 0)
	if errors.Is(err, unix.ENOENT) { // moved or removed by another process
		return nil
	}
	if err != nil {
		return err
	}
	p, err := openPack(fd, name, suffix)
	if err == nil {
		s.packs.add(p)
		return nil
	}
	err = errors.Join(err, unix.Close(fd))
	if errors.Is(err, errPack) {
		s.log.Warn("dropped a damaged pack", "pack", name, "err", err)
		return s.unlink("packs/" + name + suffix)
	}
	return err
}

func (s *Store) settlePack(p *pack) error { return s.renamePack(p, freshSuffix, "") }

func (s *Store) renamePack(p *pack, from, to string) error {
	err := s.rename("packs/"+p.name+from, "packs/"+p.name+to)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // another process may have moved it
		return err
	}
	p.suffix.Store(to)
	if to == freshSuffix {
		s.dirty.Store(true)
	}
	return nil
}

// dropPack removes a pack and what it holds.
func (s *Store) dropPack(p *pack) {
	err := s.unlink(p.path())
	s.packs.remove(p)
	if err != nil {
		s.log.Warn("drop pack", "pack", p.name, "err", err)
	}
}

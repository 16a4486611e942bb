package objects

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/snapfs/snapfs/layers"
)

// A filter knows which objects are surely no files of their own: to look for a
// name that is not there costs more than all else that is done to put a small
// object into a pack. It is a Bloom filter, which never forgets: an object that
// was removed, and any at all once there are too many, is looked for as if there
// were no filter.
//
// Invariant: a name is in the filter before it is in fresh/ or objects/. Files
// that other processes add are not: those may come to be in a pack, too.
type filter struct {
	begin sync.Once
	wg    sync.WaitGroup // the one that reads the names that were there before
	stop  atomic.Bool
	bits  [filterWords]uint64
	ready atomic.Bool // all names are in
}

// filterWords make 1 MiB. With two bits an object, of half a million files one
// lookup in a hundred is in vain.
const filterWords = 1 << 17

// places are the bits of a sum.
func (f *filter) places(sum layers.Sum) (a, b uint64) {
	const bits = filterWords * 64
	return binary.LittleEndian.Uint64(sum[8:]) % bits, binary.LittleEndian.Uint64(sum[16:]) % bits
}

// add notes that an object gets a file.
func (f *filter) add(sum layers.Sum) {
	a, b := f.places(sum)
	atomic.OrUint64(&f.bits[a/64], 1<<(a%64))
	atomic.OrUint64(&f.bits[b/64], 1<<(b%64))
}

// excludes says that an object surely has no file.
func (f *filter) excludes(sum layers.Sum) bool {
	if !f.ready.Load() {
		return false
	}
	a, b := f.places(sum)
	return atomic.LoadUint64(&f.bits[a/64])&(1<<(a%64)) == 0 || atomic.LoadUint64(&f.bits[b/64])&(1<<(b%64)) == 0
}

// fill begins to read which files there are, once, in the background.
func (f *filter) fill(s *Store) {
	f.begin.Do(func() {
		f.wg.Go(func() {
			// In this order: names move from fresh/ to objects/.
			for _, dir := range []string{"fresh", "objects"} {
				err := s.walkDir(dir, func(sum layers.Sum, _ string) error {
					if f.stop.Load() {
						return errClosing
					}
					f.add(sum)
					return nil
				})
				if err != nil {
					if !f.stop.Load() {
						s.log.Warn("list objects; small ones are looked for one by one", "err", err)
					}
					return
				}
			}
			f.ready.Store(true)
		})
	})
}

var errClosing = errors.New("the store is being closed")

// close ends what fill has begun.
func (f *filter) close() {
	f.stop.Store(true)
	f.wg.Wait()
}

// hasNow is Has for who is about to add the object.
func (s *Store) hasNow(sum layers.Sum) bool {
	if p, e, ok := s.packs.find(sum); ok {
		defer p.release()
		if p.believe(e) == nil {
			return true
		}
	}
	if s.filter.excludes(sum) && !s.aside.Load() {
		return false
	}
	return s.Has(sum)
}

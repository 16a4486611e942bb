package fetch

import (
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// A shelf is the store, and small objects on their way into it: those that nobody
// waits for are gathered and written many at once, as a pack. A file of its own
// for each costs more than to fetch it. What somebody reads meanwhile becomes a
// file nevertheless: the kernel finds it without us the next time.
type shelf struct {
	*objects.Store
	later  func(func()) // runs work in the background
	failed func(error)  // is told why that did not write what waited

	any     atomic.Bool // there is a batch
	mu      sync.RWMutex
	batches []*batch // what is not written yet; new objects go to the last one, if it is open
}

// A batch is objects that become one pack.
type batch struct {
	objs  map[layers.Sum]*small
	sums  []layers.Sum // in the order in which they came
	size  int
	open  bool
	timer *time.Timer // writes it after batchTime
}

type small struct {
	data []byte
	read atomic.Bool // by somebody
}

const (
	// batchSize bounds the memory that a batch takes. Packs stay open, so there
	// should be few.
	batchSize = 16 << 20
	// minBatch is the fewest objects that are worth a pack.
	minBatch = 256
	// batchTime is how long an object may wait for others. A process that is
	// killed loses what waits: it is fetched again.
	batchTime = 10 * time.Second
)

// Has says whether the store has all of an object, or will.
func (s *shelf) Has(sum layers.Sum) bool { return s.waiting(sum) != nil || s.Store.Has(sum) }

// Size is that of [objects.Store.Size].
func (s *shelf) Size(sum layers.Sum) (int64, bool) {
	if x := s.waiting(sum); x != nil {
		return int64(len(x.data)), true
	}
	return s.Store.Size(sum)
}

// ReadAt is that of [objects.Store.ReadAt].
func (s *shelf) ReadAt(sum layers.Sum, p []byte, off int64) (int, error) {
	if x := s.waiting(sum); x != nil {
		if off < 0 || off >= int64(len(x.data)) {
			return 0, io.EOF
		}
		x.read.Store(true)
		n := copy(p, x.data[off:])
		if n < len(p) {
			return n, io.EOF
		}
		return n, nil
	}
	return s.Store.ReadAt(sum, p, off)
}

// waiting returns an object that is not written yet; nil if it is not one.
func (s *shelf) waiting(sum layers.Sum) *small {
	if !s.any.Load() {
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, b := range s.batches {
		if x := b.objs[sum]; x != nil {
			return x
		}
	}
	return nil
}

// Gather adds a small object like Put, but with others. An error that is not a
// *layers.DigestError may also be of objects that were added before.
func (s *shelf) Gather(sum layers.Sum, plain []byte) error {
	if len(plain) == 0 || len(plain) > objects.MaxPacked {
		return s.Put(sum, plain)
	}
	if got := layers.SumOf(plain); got != sum {
		return &layers.DigestError{Want: sum.Digest(), Got: got.Digest(), From: "object"}
	}
	s.mu.Lock()
	var b *batch
	if n := len(s.batches); n > 0 && s.batches[n-1].open {
		b = s.batches[n-1]
	} else {
		b = &batch{objs: make(map[layers.Sum]*small), open: true}
		s.batches = append(s.batches, b)
		s.any.Store(true)
		b.timer = time.AfterFunc(batchTime, func() { s.later(func() { s.late(b) }) })
	}
	if b.objs[sum] == nil {
		b.objs[sum] = &small{data: slices.Clone(plain)}
		b.sums = append(b.sums, sum)
		b.size += len(plain)
	}
	full := b.size >= batchSize
	s.mu.Unlock()
	if full {
		return s.write(b)
	}
	return nil
}

func (s *shelf) late(b *batch) {
	if err := s.write(b); err != nil {
		s.failed(err)
	}
}

// Flush writes what waits.
func (s *shelf) Flush() error {
	s.mu.RLock()
	all := slices.Clone(s.batches)
	s.mu.RUnlock()
	var errs []error
	for _, b := range all {
		errs = append(errs, s.write(b))
	}
	return errors.Join(errs...)
}

// write writes an open batch. What fails is not there any more.
func (s *shelf) write(b *batch) error {
	s.mu.Lock()
	mine := b.open
	b.open = false
	s.mu.Unlock()
	if !mine {
		return nil
	}
	b.timer.Stop()
	err := s.store(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.batches = slices.DeleteFunc(s.batches, func(o *batch) bool { return o == b })
	s.any.Store(len(s.batches) > 0)
	return err
}

func (s *shelf) store(b *batch) error {
	few := len(b.sums) < minBatch
	var p *objects.Pack
	for _, sum := range b.sums {
		var err error
		x := b.objs[sum]
		if few || x.read.Load() {
			err = s.Put(sum, x.data)
		} else {
			if p == nil {
				p, err = s.NewPack("lazy")
			}
			if err == nil {
				_, err = p.Add(x.data)
			}
		}
		if err != nil && p != nil {
			err = errors.Join(err, p.Abort())
		}
		if err != nil {
			return err
		}
	}
	if p == nil {
		return nil
	}
	return p.Commit()
}

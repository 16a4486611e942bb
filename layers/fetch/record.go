package fetch

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// A Touch is the first read of a chunk.
type Touch struct {
	Object    layers.Sum
	Off, Size int64         // of the chunk in the object
	Sum       layers.Sum    // of the chunk; zero if no layer says it
	At        time.Duration // since the recording began
}

// A Recording notes which chunks are read, whoever reads them and wherever they
// are. It costs a read some 10 ns, and about 100 bytes for each place.
type Recording struct {
	f     *Fetcher
	began time.Time
	// recent remembers places by a hash: most reads are of one that was read
	// before, and look no further.
	recent [1 << 11]atomic.Uint64

	mu      sync.Mutex
	seen    map[place]struct{}
	log     []noted
	dropped int
}

// A place is a block of an object.
type place struct {
	sum   layers.Sum
	block int64
}

type noted struct {
	place
	at time.Duration
}

const (
	// recordBlock is how exactly places are known: finer than chunks.
	recordBlock = 64 << 10
	// maxNoted bounds what a recording remembers: 8 MB, and 4 GiB of reads.
	maxNoted = 64 << 10
)

// Record begins a recording; several may go on at once. Stop ends it.
func (f *Fetcher) Record() *Recording {
	r := &Recording{f: f, began: time.Now(), seen: make(map[place]struct{})}
	f.record(func(rs []*Recording) []*Recording { return append(rs, r) })
	return r
}

// record changes the list of recordings.
func (f *Fetcher) record(change func([]*Recording) []*Recording) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var rs []*Recording
	if p := f.recordings.Load(); p != nil {
		rs = slices.Clone(*p)
	}
	if rs = change(rs); len(rs) == 0 {
		f.recordings.Store(nil)
		return
	}
	f.recordings.Store(&rs)
}

// touch notes a read of n bytes at off.
func (r *Recording) touch(sum *layers.Sum, off, n int64) {
	if off < 0 || n <= 0 {
		return
	}
	name := binary.LittleEndian.Uint64(sum[:])
	for b := off / recordBlock; b <= (off+n-1)/recordBlock; b++ {
		// Two places with the same mark are one in 2^64 for honest sums; others
		// harm their own profile.
		mark := (name + uint64(b)) * 0x9e3779b97f4a7c15
		slot := &r.recent[mark>>(64-11)]
		if slot.Load() == mark {
			continue
		}
		r.note(place{*sum, b})
		slot.Store(mark) // now, so that nobody passes over what is not noted yet
	}
}

func (r *Recording) note(p place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.seen[p]; ok || r.seen == nil {
		return
	}
	if len(r.log) >= maxNoted {
		r.dropped++
		return
	}
	r.seen[p] = struct{}{}
	r.log = append(r.log, noted{p, time.Since(r.began)})
}

// Since returns the objects of which something was noted, from the n-th time on:
// one for each. After Stop there are none.
func (r *Recording) Since(n int) []layers.Sum {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sums []layers.Sum
	for _, x := range r.log[min(n, len(r.log)):] {
		sums = append(sums, x.sum)
	}
	return sums
}

// Stop ends the recording and returns the chunks that were read, in the order of
// their first use, and how many places were too many to remember. They are the
// chunks of the first layer that has the object, or cut by layers.ChunkSize if
// none has. A second call returns nothing.
func (r *Recording) Stop() (touches []Touch, dropped int) {
	r.f.record(func(rs []*Recording) []*Recording {
		return slices.DeleteFunc(rs, func(o *Recording) bool { return o == r })
	})
	r.mu.Lock()
	log := r.log
	r.log, r.seen = nil, nil
	r.mu.Unlock()
	type chunk struct {
		sum layers.Sum
		off int64
	}
	seen := make(map[chunk]bool)
	cut := make(map[layers.Sum][]layers.Chunk)
	for _, n := range log {
		cks, ok := cut[n.sum]
		if !ok {
			cks = r.f.chunksOf(n.sum)
			cut[n.sum] = cks
		}
		first, end := objects.Covering(cks, n.block*recordBlock, recordBlock)
		for _, c := range cks[first:end] {
			if !seen[chunk{n.sum, c.Off}] {
				seen[chunk{n.sum, c.Off}] = true
				touches = append(touches, Touch{Object: n.sum, Off: c.Off, Size: c.Size, Sum: c.Sum, At: n.at})
			}
		}
	}
	return touches, r.dropped
}

// chunksOf returns how an object is cut.
func (f *Fetcher) chunksOf(sum layers.Sum) []layers.Chunk {
	if src := f.sources(sum); len(src) > 0 {
		return src[0].chunks
	}
	size, ok := f.store.Size(sum)
	if !ok {
		return nil
	}
	var cks []layers.Chunk
	for off := int64(0); off < size; off += layers.ChunkSize {
		cks = append(cks, layers.Chunk{Off: off, Size: min(layers.ChunkSize, size-off)})
	}
	if len(cks) == 1 {
		cks[0].Sum = sum
	}
	return cks
}

package objects

import (
	"sync"
	"sync/atomic"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// A fileCache keeps descriptors of complete objects that are read. It forgets
// by the clock algorithm: what was used since the hand came by stays.
type fileCache struct{ shards [16]fileShard }

type fileShard struct {
	mu   sync.RWMutex
	m    map[layers.Sum]*file
	ring []*file
	hand int
	max  int
}

// A file is an open object. The cache and every reader hold a reference; the
// last one closes it.
type file struct {
	sum  layers.Sum
	fd   int
	size int64
	refs atomic.Int32
	used atomic.Bool
}

func newFileCache(n int) *fileCache {
	c := new(fileCache)
	for i := range c.shards {
		c.shards[i].m = make(map[layers.Sum]*file)
		c.shards[i].max = max(1, n/len(c.shards))
	}
	return c
}

func (c *fileCache) shard(sum layers.Sum) *fileShard { return &c.shards[sum[31]%16] }

// get returns the open file of sum, or nil. The caller releases it.
func (c *fileCache) get(sum layers.Sum) *file {
	h := c.shard(sum)
	h.mu.RLock()
	f := h.m[sum]
	if f != nil {
		f.refs.Add(1)
	}
	h.mu.RUnlock()
	if f != nil && !f.used.Load() {
		f.used.Store(true)
	}
	return f
}

// add takes fd over and returns the open file of sum. The caller releases it.
func (c *fileCache) add(sum layers.Sum, fd int, size int64) *file {
	h := c.shard(sum)
	f := &file{sum: sum, fd: fd, size: size}
	f.refs.Store(2)
	h.mu.Lock()
	if old := h.m[sum]; old != nil {
		old.refs.Add(1)
		h.mu.Unlock()
		_ = unix.Close(fd) // opened for reading, nothing to lose
		return old
	}
	var out *file
	h.m[sum] = f
	if len(h.ring) < h.max {
		h.ring = append(h.ring, f)
	} else {
		for h.ring[h.hand].used.Swap(false) {
			h.hand = (h.hand + 1) % len(h.ring)
		}
		out, h.ring[h.hand] = h.ring[h.hand], f
		h.hand = (h.hand + 1) % len(h.ring)
		delete(h.m, out.sum)
	}
	h.mu.Unlock()
	if out != nil {
		out.release()
	}
	return f
}

// drop forgets sum, so that its bytes are freed once its name is gone.
func (c *fileCache) drop(sum layers.Sum) {
	h := c.shard(sum)
	h.mu.Lock()
	f := h.m[sum]
	if f != nil {
		delete(h.m, sum)
		for i := range h.ring {
			if h.ring[i] == f {
				h.ring[i] = h.ring[len(h.ring)-1]
				h.ring = h.ring[:len(h.ring)-1]
				h.hand = 0
				break
			}
		}
	}
	h.mu.Unlock()
	if f != nil {
		f.release()
	}
}

func (c *fileCache) close() {
	for i := range c.shards {
		h := &c.shards[i]
		h.mu.Lock()
		for _, f := range h.m {
			f.release()
		}
		clear(h.m)
		h.ring = nil
		h.mu.Unlock()
	}
}

func (f *file) release() {
	if f.refs.Add(-1) == 0 {
		_ = unix.Close(f.fd) // opened for reading, nothing to lose
	}
}

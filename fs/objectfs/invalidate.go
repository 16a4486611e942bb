package objectfs

import (
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

// stale are the objects whose cached pages the kernel has still to drop.
type stale struct {
	mu   sync.Mutex
	sums map[layers.Sum]struct{}
	wake chan struct{} // room for one: something was added, or a READ has ended
}

// Invalidate makes the kernel forget the bytes and the size of s that it
// caches, so that the next read asks again. It does not wait for that, and may
// be called at any time: without a Serve the next one does it.
func (f *FS) Invalidate(s layers.Sum) {
	f.stale.mu.Lock()
	f.stale.sums[s] = struct{}{}
	f.stale.mu.Unlock()
	f.stale.poke()
}

func (st *stale) poke() {
	select {
	case st.wake <- struct{}{}:
	default:
	}
}

// list returns what is still to be dropped.
func (st *stale) list() []layers.Sum {
	st.mu.Lock()
	defer st.mu.Unlock()
	all := make([]layers.Sum, 0, len(st.sums))
	for s := range st.sums {
		all = append(all, s)
	}
	return all
}

func (st *stale) remove(s layers.Sum) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.sums, s)
}

func (st *stale) empty() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return len(st.sums) == 0
}

// invalidate tells the kernel what is stale until end is closed.
//
// The kernel locks each page to drop it, and a page is locked as long as a READ
// for it is unanswered, so telling may wait for one (mm/truncate.c
// invalidate_inode_pages2_range; nothing interrupts it, not even SIGKILL).
// Hence this is a goroutine of its own, and an object that is being read has to
// wait for its turn.
func (s *server) invalidate(end <-chan struct{}) {
	st := &s.fs.stale
	for {
		for _, sum := range st.list() {
			id, ok := s.fs.nodes.known(sum)
			if ok && s.reading(id) {
				continue // the READ's end wakes us
			}
			st.remove(sum) // first: from here on it may become stale again
			if ok {
				s.drop(id, sum)
			}
		}
		select {
		case <-st.wake:
		case <-end:
			return
		}
	}
}

// reading says whether a READ of the node is being served.
func (s *server) reading(node uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for r := range s.busy {
		if r.node == node {
			return true
		}
	}
	return false
}

func (s *server) drop(node uint64, sum layers.Sum) {
	_, err := unix.Write(s.fd, invalInode(node))
	switch {
	case err == nil, errors.Is(err, unix.ENOENT): // ENOENT: it caches nothing of the node
		s.fs.Stats.Invalidated.Add(1)
	case !errors.Is(gone(err), ErrGone):
		s.fs.log.Error("kernel keeps what it caches", "object", sum, "err", err)
	}
}

// invalInode is the notification that nothing cached of a node is good
// (struct fuse_notify_inval_inode_out: ino uint64, off, len int64; 0 is all).
func invalInode(node uint64) []byte {
	m := make([]byte, outHeader+24)
	binary.NativeEndian.PutUint32(m, uint32(len(m)))
	binary.NativeEndian.PutUint32(m[4:], notifyInvalInode)
	binary.NativeEndian.PutUint64(m[outHeader:], node)
	return m
}

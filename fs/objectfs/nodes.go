package objectfs

import (
	"bufio"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

// Node IDs: 1 is the root (FUSE_ROOT_ID), then one for each directory, then the
// objects in the order of their first lookup.
const (
	rootNode = 1
	dirNode  = 2 // of 00; 2+0xff is ff
	dirCount = 256
	objNode  = 1024 // of the first record
)

const recordSize = int64(len(layers.Sum{}))

// ErrBusy says that another process has the table open.
var ErrBusy = errors.New("node table is in use by another worker")

// Nodes is the persistent table of node IDs: an append-only file of sums, where
// the position of a sum is its ID. An ID is never given again, and not derived
// from the digest: digests can be made that agree in any 64 bits.
//
// The file is written without fsync, because the mount it belongs to ends with
// the kernel, and made anew with every mount.
type Nodes struct {
	f    *os.File
	seed maphash.Seed

	mu    sync.RWMutex
	sums  []layers.Sum
	slots []uint32 // open addressing; position in sums plus one, 0 is free. A power of two long.
}

// OpenNodes reads the table at path, or begins one. It is ErrBusy-wrapped if
// another process has it open.
func OpenNodes(path string) (_ *Nodes, err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrBusy
		}
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	n := &Nodes{f: f, seed: maphash.MakeSeed()}
	if err := n.load(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// load reads all records. A partial one at the end was being written when its
// worker died, so its number was not given to anybody: it is cut off.
func (n *Nodes) load() error {
	st, err := n.f.Stat()
	if err != nil {
		return err
	}
	count := st.Size() / recordSize
	if rest := st.Size() % recordSize; rest != 0 {
		if err := n.f.Truncate(count * recordSize); err != nil {
			return err
		}
	}
	n.sums = make([]layers.Sum, count, count+count/4)
	n.grow(len(n.sums))
	r := bufio.NewReaderSize(io.NewSectionReader(n.f, 0, count*recordSize), 1<<16)
	for i := range n.sums {
		if _, err := io.ReadFull(r, n.sums[i][:]); err != nil {
			return err
		}
	}
	for i := range n.sums {
		n.insert(uint32(i))
	}
	return nil
}

// Close ends the use of the table and lets another process open it.
func (n *Nodes) Close() error { return n.f.Close() }

// Len returns the number of objects that have an ID.
func (n *Nodes) Len() int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return len(n.sums)
}

// ID returns the node ID of s, and gives it one if it has none. A new ID is in
// the file before ID returns.
func (n *Nodes) ID(s layers.Sum) (uint64, error) {
	n.mu.RLock()
	i, ok := n.find(s)
	n.mu.RUnlock()
	if ok {
		return objNode + uint64(i), nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if i, ok := n.find(s); ok {
		return objNode + uint64(i), nil
	}
	return n.append(s)
}

// known returns the node ID of s if it has one already.
func (n *Nodes) known(s layers.Sum) (id uint64, ok bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	i, ok := n.find(s)
	return objNode + uint64(i), ok
}

// Sum returns the object that id stands for.
func (n *Nodes) Sum(id uint64) (s layers.Sum, ok bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if id < objNode || id-objNode >= uint64(len(n.sums)) {
		return s, false
	}
	return n.sums[id-objNode], true
}

// append writes s to the file, then to the tables. A write cut short by a full
// disk is undone, so that the next record starts where its number says.
func (n *Nodes) append(s layers.Sum) (uint64, error) {
	i := len(n.sums)
	if uint64(i) >= 1<<32-1 {
		return 0, fmt.Errorf("node table: %d objects: %w", i, unix.ENOSPC)
	}
	if _, err := n.f.Write(s[:]); err != nil {
		return 0, errors.Join(fmt.Errorf("node table: %w", err), n.f.Truncate(int64(i)*recordSize))
	}
	n.sums = append(n.sums, s)
	if len(n.sums) > len(n.slots)/2 {
		n.grow(2 * len(n.sums))
		for i := range n.sums {
			n.insert(uint32(i))
		}
	} else {
		n.insert(uint32(i))
	}
	return objNode + uint64(i), nil
}

func (n *Nodes) grow(count int) {
	size := 1024
	for size < 2*count+2 {
		size *= 2
	}
	n.slots = make([]uint32, size)
}

// hash is seeded: whoever makes an image chooses digests, but cannot choose
// ones that meet in a slot.
func (n *Nodes) hash(s layers.Sum) int {
	return int(maphash.Bytes(n.seed, s[:]) & uint64(len(n.slots)-1))
}

func (n *Nodes) find(s layers.Sum) (int, bool) {
	for h := n.hash(s); ; h = (h + 1) & (len(n.slots) - 1) {
		switch i := n.slots[h]; {
		case i == 0:
			return 0, false
		case n.sums[i-1] == s:
			return int(i - 1), true
		}
	}
}

// insert enters record i. Of two records of one sum, which only a damaged file
// has, the first counts.
func (n *Nodes) insert(i uint32) {
	h := n.hash(n.sums[i])
	for ; n.slots[h] != 0; h = (h + 1) & (len(n.slots) - 1) {
		if n.sums[n.slots[h]-1] == n.sums[i] {
			return
		}
	}
	n.slots[h] = i + 1
}

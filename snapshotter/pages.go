package snapshotter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// What bbolt writes (go.etcd.io/bbolt 1.5, internal/common). Numbers are the machine's.
//
//	page    id uint64, flags uint16, count uint16, overflow uint32, then
//	meta    magic, version, page size, flags uint32; root bucket: page, sequence uint64;
//	        pages of the free list and of the end, transaction, FNV-1a of all before uint64
//	branch  count × (key's place from here, key's size uint32, page uint64), keys
//	leaf    count × (flags, key's place from here, key's size, value's size uint32), keys and values
//	free    pages uint64; the first is their count if count is 0xffff
//	bucket  a leaf's value with flag 1: page, sequence uint64; page 0: a leaf page follows
const (
	pageHeader  = 16
	pageElement = 16
	metaEnd     = pageHeader + 64
	boltMagic   = 0xED0CDAED

	flagBranch, flagLeaf, flagFree = 1, 2, 16

	maxPageSize = 64 << 10
	maxDepth    = 32 // of pages and of buckets in each other; ours has less than ten
)

// checkDB reads a database of bbolt, page by page. bbolt maps the file and
// believes it: a wrong number of a page ends the process, and with it those of
// everybody else who is served. No file and an empty one are right.
func checkDB(name string) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer f.Close()
	if err := lockShared(f); err != nil {
		return fmt.Errorf("%s: another process has it open: %w", name, err)
	}
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Size() == 0 {
		return nil
	}
	if err := checkPages(f, st.Size()); err != nil {
		return fmt.Errorf("%s: %w: %w", name, ErrTorn, err)
	}
	return nil
}

// lockPatience bounds the wait for another process that has the database open:
// a worker that ends.
const lockPatience = 10 * time.Second

// lockShared waits until nobody writes. bbolt locks in the same way, and tries as
// often. The lock ends with f.
func lockShared(f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// A pageChecker has seen some of the pages of a file.
type pageChecker struct {
	f    io.ReaderAt
	size int64 // of a page
	end  uint64
	seen map[uint64]bool
}

func checkPages(f io.ReaderAt, size int64) error {
	ne := binary.NativeEndian
	c := &pageChecker{f: f, seen: map[uint64]bool{0: true, 1: true}}
	var root, free, newest uint64
	// bbolt takes the newer one of those that are whole. The second is one page behind the first.
	at := int64(0)
	for range 2 {
		var b [metaEnd]byte
		if _, err := f.ReadAt(b[:], at); err != nil {
			if at == 0 {
				return fmt.Errorf("first page: %w", err)
			}
			break
		}
		if at == 0 {
			at = int64(ne.Uint32(b[24:]))
			if at < 512 || at > maxPageSize || at&(at-1) != 0 {
				at = int64(os.Getpagesize())
			}
		}
		sum := fnv.New64a()
		sum.Write(b[pageHeader : metaEnd-8])
		if ne.Uint32(b[16:]) != boltMagic || sum.Sum64() != ne.Uint64(b[metaEnd-8:]) {
			continue
		}
		if tx := ne.Uint64(b[64:]); c.size == 0 || tx > newest {
			newest, c.size = tx, int64(ne.Uint32(b[24:]))
			root, free, c.end = ne.Uint64(b[32:]), ne.Uint64(b[48:]), ne.Uint64(b[56:])
		}
	}
	switch {
	case c.size == 0:
		return errors.New("no page of metadata is whole")
	case c.size != at || c.size < 512 || c.size > maxPageSize:
		return fmt.Errorf("pages of %d bytes", c.size)
	case c.end > uint64(size/c.size):
		return fmt.Errorf("%d pages in %d bytes", c.end, size)
	}
	if err := c.tree(root, nil, 0); err != nil {
		return err
	}
	if free == ^uint64(0) { // there is none (bbolt's NoFreelistSync)
		return nil
	}
	return c.free(free)
}

// page reads a page that nobody else has.
func (c *pageChecker) page(id uint64) (b []byte, flags, count uint16, err error) {
	if id < 2 || id >= c.end {
		return nil, 0, 0, fmt.Errorf("page %d of %d", id, c.end)
	}
	var h [pageHeader]byte
	if _, err := c.f.ReadAt(h[:], int64(id)*c.size); err != nil {
		return nil, 0, 0, fmt.Errorf("page %d: %w", id, err)
	}
	ne := binary.NativeEndian
	overflow := uint64(ne.Uint32(h[12:]))
	if ne.Uint64(h[:]) != id || overflow >= c.end-id {
		return nil, 0, 0, fmt.Errorf("page %d says that it is %d, and %d more", id, ne.Uint64(h[:]), overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if c.seen[i] {
			return nil, 0, 0, fmt.Errorf("page %d is used twice", i)
		}
		c.seen[i] = true
	}
	b = make([]byte, (int64(overflow)+1)*c.size)
	if _, err := c.f.ReadAt(b, int64(id)*c.size); err != nil {
		return nil, 0, 0, fmt.Errorf("page %d: %w", id, err)
	}
	return b, ne.Uint16(b[8:]), ne.Uint16(b[10:]), nil
}

// tree checks a page and all below it. Its keys are not less than least.
func (c *pageChecker) tree(id uint64, least []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d: pages in %d pages", id, depth)
	}
	b, flags, count, err := c.page(id)
	if err != nil {
		return err
	}
	switch flags {
	case flagLeaf:
		err = c.leaf(b, count, least, depth)
	case flagBranch:
		err = c.branch(b, count, least, depth)
	default:
		err = fmt.Errorf("of kind %#x", flags)
	}
	if err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// key is the i-th key of a page, with what follows it; at is where its place is written.
func key(b []byte, i, at int, keySize, more uint32) ([]byte, error) {
	start := uint64(pageHeader+i*pageElement) + uint64(binary.NativeEndian.Uint32(b[at:]))
	end := start + uint64(keySize) + uint64(more)
	if end > uint64(len(b)) {
		return nil, fmt.Errorf("element %d ends at %d of %d", i, end, len(b))
	}
	return b[start:end], nil
}

func (c *pageChecker) branch(b []byte, count uint16, least []byte, depth int) error {
	if count == 0 || pageHeader+int(count)*pageElement > len(b) {
		return fmt.Errorf("%d branches", count)
	}
	ne := binary.NativeEndian
	for i := range int(count) {
		at := pageHeader + i*pageElement
		k, err := key(b, i, at, ne.Uint32(b[at+4:]), 0)
		if err != nil {
			return err
		}
		if i > 0 && bytes.Compare(least, k) >= 0 {
			return fmt.Errorf("branch %d is not in order", i)
		}
		least = k
		if err := c.tree(ne.Uint64(b[at+8:]), least, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *pageChecker) leaf(b []byte, count uint16, least []byte, depth int) error {
	if pageHeader+int(count)*pageElement > len(b) {
		return fmt.Errorf("%d elements", count)
	}
	ne := binary.NativeEndian
	for i := range int(count) {
		at := pageHeader + i*pageElement
		flags, keySize, valueSize := ne.Uint32(b[at:]), ne.Uint32(b[at+8:]), ne.Uint32(b[at+12:])
		kv, err := key(b, i, at+4, keySize, valueSize)
		if err != nil {
			return err
		}
		k, v := kv[:keySize], kv[keySize:]
		if cmp := bytes.Compare(least, k); cmp > 0 || i > 0 && cmp == 0 {
			return fmt.Errorf("element %d is not in order", i)
		}
		least = k
		switch flags {
		case 0:
		case 1:
			if err := c.bucket(v, depth); err != nil {
				return fmt.Errorf("bucket %q: %w", k, err)
			}
		default:
			return fmt.Errorf("element %d is of kind %#x", i, flags)
		}
	}
	return nil
}

func (c *pageChecker) bucket(v []byte, depth int) error {
	ne := binary.NativeEndian
	const header = 16
	if len(v) < header {
		return fmt.Errorf("%d bytes", len(v))
	}
	if root := ne.Uint64(v); root != 0 {
		return c.tree(root, nil, depth+1)
	}
	b := v[header:]
	if len(b) < pageHeader || ne.Uint16(b[8:]) != flagLeaf || depth > maxDepth {
		return errors.New("no leaf in it")
	}
	return c.leaf(b, ne.Uint16(b[10:]), nil, depth+1)
}

// free checks the list of free pages: none is in use, none is there twice.
func (c *pageChecker) free(id uint64) error {
	b, flags, count, err := c.page(id)
	if err != nil {
		return err
	}
	ne := binary.NativeEndian
	n, at := uint64(count), pageHeader
	if count == 0xffff {
		n, at = ne.Uint64(b[at:]), at+8
	}
	if flags != flagFree || n > uint64(len(b)-at)/8 {
		return fmt.Errorf("page %d: %d free pages, of kind %#x", id, n, flags)
	}
	for i := range int(n) {
		p := ne.Uint64(b[at+8*i:])
		if p < 2 || p >= c.end || c.seen[p] {
			return fmt.Errorf("page %d is free and in use, or not there", p)
		}
		c.seen[p] = true
	}
	return nil
}

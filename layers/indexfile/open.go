package indexfile

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
	"os"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

// A File is an open index file. Its methods may be called from several
// goroutines at once. After Close they find nothing.
type File struct {
	shape
	mu sync.RWMutex
	p  []byte // the mapping; nil once closed
}

// Open maps the file at path and checks all of it. The error wraps ErrCorrupt or
// ErrVersion, or is the file system's. The file must not be changed in place while
// it is open: replace it, as Write does.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if n := info.Size(); n < headerSize || n > math.MaxInt {
		return nil, fmt.Errorf("%s: %w: %d bytes", path, ErrCorrupt, n)
	}
	p, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, &os.PathError{Op: "mmap", Path: path, Err: err}
	}
	x, err := parse(p)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), unix.Munmap(p))
	}
	// The checks have read all of it. A daemon has hundreds open and looks up
	// few: the pages stay in the page cache, but are no longer its own. Both
	// calls are advice, so their errors mean nothing.
	unix.Madvise(p, unix.MADV_DONTNEED)
	unix.Madvise(p, unix.MADV_RANDOM)
	return x, nil
}

// Close unmaps the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.p == nil {
		return nil
	}
	p := f.p
	f.p = nil
	return unix.Munmap(p)
}

// parse checks the bytes of a file.
func parse(p []byte) (*File, error) {
	f := &File{p: p}
	if err := f.header(); err != nil {
		return nil, err
	}
	for i := range f.entries {
		if err := f.checkEntry(i); err != nil {
			return nil, fmt.Errorf("%w: entry %d: %s", ErrCorrupt, i, err)
		}
	}
	for i := range f.objects {
		first, n := le.Uint32(f.object(i)[40:]), le.Uint32(f.object(i)[44:])
		switch {
		case int64(first)+int64(n) > f.chunks:
			return nil, fmt.Errorf("%w: object %d has chunks beyond the last", ErrCorrupt, i)
		case i > 0 && bytes.Compare(f.object(i - 1)[:32], f.object(i)[:32]) >= 0:
			return nil, fmt.Errorf("%w: object %d is out of order", ErrCorrupt, i)
		case int64(f.ordered(i)) >= f.objects:
			return nil, fmt.Errorf("%w: blob order names an object beyond the last", ErrCorrupt)
		}
	}
	return f, nil
}

func (f *File) header() error {
	if len(f.p) < headerSize || string(f.p[:8]) != magic {
		return fmt.Errorf("%w: no header", ErrCorrupt)
	}
	if v := le.Uint32(f.p[8:]); v != version {
		return fmt.Errorf("%w: %d", ErrVersion, v)
	}
	if crc32.Checksum(f.p[:headerSize-4], castagnoli) != le.Uint32(f.p[headerSize-4:]) {
		return fmt.Errorf("%w: the header's checksum is wrong", ErrCorrupt)
	}
	f.compression = layers.Compression(f.p[12])
	for i, to := range []*int64{&f.entries, &f.objects, &f.chunks, &f.strings} {
		n := le.Uint64(f.p[16+8*i:])
		if n > uint64(len(f.p)) { // so that their sum cannot overflow
			return fmt.Errorf("%w: more records than bytes", ErrCorrupt)
		}
		*to = int64(n)
	}
	if f.size() != int64(len(f.p)) {
		return fmt.Errorf("%w: %d bytes, want %d", ErrCorrupt, len(f.p), f.size())
	}
	if crc32.Checksum(f.p[headerSize:], castagnoli) != le.Uint32(f.p[headerSize-8:]) {
		return fmt.Errorf("%w: the checksum is wrong", ErrCorrupt)
	}
	return nil
}

var (
	errString = errors.New("text beyond the end")
	errChunks = errors.New("chunks beyond the last")
	errObject = errors.New("object beyond the last")
	errXattrs = errors.New("xattrs do not fill their place")
)

func (f *File) checkEntry(i int64) error {
	e := f.entry(i)
	for _, s := range [][2]int{{0, 76}, {8, 80}, {16, 88}} {
		if off, n := le.Uint64(e[s[0]:]), uint64(le.Uint32(e[s[1]:])); off > uint64(f.strings) || n > uint64(f.strings)-off {
			return errString
		}
	}
	if int64(le.Uint32(e[40:]))+int64(le.Uint32(e[44:])) > f.chunks {
		return errChunks
	}
	if o := le.Uint32(e[48:]); o != noObject && int64(o) >= f.objects {
		return errObject
	}
	n, rest := le.Uint32(e[84:]), f.text(le.Uint64(e[16:]), le.Uint32(e[88:]))
	for ; n > 0; n-- {
		name, _, more, ok := cutXattr(rest)
		if !ok || len(name) == 0 {
			return errXattrs
		}
		rest = more
	}
	if len(rest) > 0 {
		return errXattrs
	}
	return nil
}

// cutXattr returns the first extended attribute of b and what follows it.
func cutXattr(b []byte) (name, value, rest []byte, ok bool) {
	if len(b) < xattrHead {
		return nil, nil, nil, false
	}
	n, v := int64(le.Uint16(b)), int64(le.Uint32(b[2:]))
	b = b[xattrHead:]
	if n+v > int64(len(b)) {
		return nil, nil, nil, false
	}
	return b[:n], b[n : n+v], b[n+v:], true
}

func record(p []byte, at, i, size int64) []byte { return p[at+i*size : at+(i+1)*size : at+(i+1)*size] }

func (f *File) entry(i int64) []byte  { return record(f.p, headerSize, i, entrySize) }
func (f *File) object(i int64) []byte { return record(f.p, f.objectsAt(), i, objectSize) }
func (f *File) chunk(i int64) []byte  { return record(f.p, f.chunksAt(), i, chunkSize) }
func (f *File) ordered(i int64) uint32 {
	return le.Uint32(record(f.p, f.orderAt(), i, orderSize))
}

func (f *File) text(off uint64, n uint32) []byte {
	at := f.stringsAt() + int64(off)
	return f.p[at : at+int64(n)]
}

// Compression is that of the layer's chunks.
func (f *File) Compression() layers.Compression { return f.compression }

// Len is the number of objects.
func (f *File) Len() int { return int(f.objects) }

// Lookup finds the object sum.
func (f *File) Lookup(sum layers.Sum) (Ref, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.p == nil {
		return Ref{}, false
	}
	i := sort.Search(int(f.objects), func(i int) bool { return bytes.Compare(f.object(int64(i))[:32], sum[:]) >= 0 })
	if i == int(f.objects) || !bytes.Equal(f.object(int64(i))[:32], sum[:]) {
		return Ref{}, false
	}
	return f.ref(int64(i)), true
}

func (f *File) ref(i int64) Ref {
	o := f.object(i)
	return Ref{Size: int64(le.Uint64(o[32:])), first: le.Uint32(o[40:]), count: le.Uint32(o[44:])}
}

// Chunks returns the chunks of an object, in order; the slice is the caller's.
func (f *File) Chunks(r Ref) []layers.Chunk {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.p == nil || r.count == 0 || int64(r.first)+int64(r.count) > f.chunks {
		return nil
	}
	cks := make([]layers.Chunk, r.count)
	f.readChunks(cks, int64(r.first))
	return cks
}

func (f *File) readChunks(cks []layers.Chunk, first int64) {
	for i := range cks {
		b := f.chunk(first + int64(i))
		ck := &cks[i]
		copy(ck.Sum[:], b)
		ck.Off, ck.Size = int64(le.Uint64(b[32:])), int64(le.Uint64(b[40:]))
		ck.BlobOff, ck.BlobLen = int64(le.Uint64(b[48:])), int64(le.Uint64(b[56:]))
		ck.Inner = int64(le.Uint64(b[64:]))
	}
}

// Objects lists all objects in the order of the blob. It ends when f is closed.
func (f *File) Objects() iter.Seq2[layers.Sum, Ref] {
	return func(yield func(layers.Sum, Ref) bool) {
		for i := range f.objects {
			sum, ref, ok := f.at(i)
			if !ok || !yield(sum, ref) {
				return
			}
		}
	}
}

// Nth returns the i-th object in the order of the sums; false if there is none.
func (f *File) Nth(i int) (layers.Sum, bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.p == nil || i < 0 || int64(i) >= f.objects {
		return layers.Sum{}, false
	}
	return layers.Sum(f.object(int64(i))[:32]), true
}

// at returns the object at a place of the blob order. It holds the lock only
// itself, so that who iterates may do anything.
func (f *File) at(i int64) (sum layers.Sum, ref Ref, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.p == nil {
		return sum, ref, false
	}
	o := int64(f.ordered(i))
	return layers.Sum(f.object(o)[:32]), f.ref(o), true
}

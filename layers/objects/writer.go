package objects

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// writeUnit is how many bytes a Writer gathers before it writes, a multiple of block.
const writeUnit = 256 << 10

var writeBuffers = sync.Pool{New: func() any { return new([writeUnit]byte) }}

// A Writer adds one object whose sum is not known yet. It is for one goroutine,
// and ends with Commit or Abort.
type Writer struct {
	s    *Store
	fd   int
	hash hash.Hash
	buf  *[writeUnit]byte
	n    int   // bytes in buf
	off  int64 // bytes before buf
	err  error
}

// Create begins an object. Nothing is visible of it before Commit, and nothing
// stays of it if the process dies.
func (s *Store) Create() (*Writer, error) {
	fd, err := s.tempFile()
	if err != nil {
		return nil, fmt.Errorf("create object: %w", err)
	}
	return &Writer{s: s, fd: fd, hash: sha256.New(), buf: writeBuffers.Get().(*[writeUnit]byte)}, nil
}

// Write adds bytes. Blocks of zeros become holes.
func (w *Writer) Write(p []byte) (int, error) {
	if w.err != nil {
		return 0, w.err
	}
	w.hash.Write(p)
	total := len(p)
	for len(p) > 0 {
		if w.n == 0 && len(p) >= writeUnit { // no need to gather
			n := len(p) / block * block
			w.flush(p[:n])
			p = p[n:]
		} else {
			n := copy(w.buf[w.n:], p)
			w.n, p = w.n+n, p[n:]
			if w.n == writeUnit {
				w.n = 0
				w.flush(w.buf[:])
			}
		}
		if w.err != nil {
			return total - len(p), w.err
		}
	}
	return total, nil
}

// Sum returns the sum of what was written so far.
func (w *Writer) Sum() (sum layers.Sum) {
	w.hash.Sum(sum[:0])
	return sum
}

// flush writes p, which begins at a multiple of block in the file, without its blocks of zeros.
func (w *Writer) flush(p []byte) {
	begin := 0 // of the run of blocks that are not zero
	for i := 0; i < len(p) && w.err == nil; i += block {
		end := min(i+block, len(p))
		if !isZero(p[i:end]) {
			continue
		}
		w.err = w.write(p[begin:i], w.off+int64(begin))
		begin = end
	}
	if w.err == nil {
		w.err = w.write(p[begin:], w.off+int64(begin))
	}
	w.off += int64(len(p))
}

func (w *Writer) write(p []byte, off int64) error {
	if err := pwrite(w.fd, p, off); err != nil {
		return fmt.Errorf("write object: %w", err)
	}
	return nil
}

// Commit adds the object and returns its sum. With want, another sum is a
// *layers.DigestError. An object that is there already is success. On any error nothing is added.
func (w *Writer) Commit(want *layers.Sum) (sum layers.Sum, err error) {
	defer func() { err = errors.Join(err, w.Abort()) }()
	if w.err != nil {
		return sum, w.err
	}
	last := w.n
	w.flush(w.buf[:last])
	if w.err != nil {
		return sum, w.err
	}
	w.hash.Sum(sum[:0])
	if want != nil && *want != sum {
		return sum, &layers.DigestError{Want: want.Digest(), Got: sum.Digest(), From: "object"}
	}
	if w.off == 0 {
		return sum, ErrEmpty
	}
	w.s.held.note(sum)
	if w.s.hasNow(sum) {
		return sum, nil
	}
	if err := unix.Ftruncate(w.fd, w.off); err != nil { // the last block may be a hole
		return sum, os.NewSyscallError("ftruncate", err)
	}
	if err := w.s.publish(w.fd, sum); err != nil {
		return sum, fmt.Errorf("store object %s: %w", sum, err)
	}
	return sum, nil
}

// Abort drops what was written. After Commit or Abort it does nothing.
func (w *Writer) Abort() error {
	if w.buf == nil {
		return nil
	}
	writeBuffers.Put(w.buf)
	w.buf, w.err = nil, errors.New("object writer is closed")
	return os.NewSyscallError("close", unix.Close(w.fd))
}

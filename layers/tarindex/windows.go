package tarindex

import (
	"context"
	"fmt"
	"io/fs"
	"os"

	"github.com/klauspost/compress/s2"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// maxHeap is how many bytes of windows of a layer are kept in memory, packed:
// those of 4 GB. More are in a file.
const maxHeap = 4 << 20

// Windows are those of a layer that was unpacked.
type Windows struct {
	at   []int64 // where those before each point end
	mem  []byte
	file *os.File // what was before mem
	base int64    // how much that is

	store *objects.Store
	buf   []byte
	err   error // of the file
}

var _ layers.Windows = (*Windows)(nil)

func newWindows(s *objects.Store) *Windows { return &Windows{store: s} }

// add adds the window of point i, which is greater than before.
func (w *Windows) add(i int, window []byte) {
	if w.err != nil {
		return
	}
	for len(w.at) <= i {
		w.at = append(w.at, w.end())
	}
	w.buf = s2.Encode(w.buf[:cap(w.buf)], window)
	if w.mem = append(w.mem, w.buf...); len(w.mem) >= maxHeap {
		w.err = w.spill()
	}
}

func (w *Windows) end() int64 { return w.base + int64(len(w.mem)) }

func (w *Windows) spill() (err error) {
	if w.file == nil {
		if w.file, err = w.store.TempFile(); err != nil {
			return err
		}
	}
	if _, err := w.file.WriteAt(w.mem, w.base); err != nil {
		return fmt.Errorf("write windows: %w", err)
	}
	w.base, w.mem = w.end(), w.mem[:0]
	return nil
}

// Window returns the window of point i, nil if it needs none. It may be called
// by several goroutines at once, but not after Close.
func (w *Windows) Window(_ context.Context, i int) ([]byte, error) {
	if i < 0 || i >= len(w.at) {
		return nil, nil
	}
	end := w.end()
	if i+1 < len(w.at) {
		end = w.at[i+1]
	}
	p, err := w.packed(w.at[i], end)
	if err != nil || len(p) == 0 {
		return nil, err
	}
	if p, err = s2.Decode(nil, p); err != nil {
		return nil, fmt.Errorf("window %d: %w", i, err)
	}
	return p, nil
}

func (w *Windows) packed(from, to int64) ([]byte, error) {
	if from >= w.base {
		return w.mem[from-w.base : to-w.base], nil
	}
	if w.file == nil {
		return nil, fs.ErrClosed
	}
	p := make([]byte, to-from)
	if _, err := w.file.ReadAt(p, from); err != nil {
		return nil, fmt.Errorf("read windows: %w", err)
	}
	return p, nil
}

// Close frees the windows.
func (w *Windows) Close() error {
	file := w.file
	w.mem, w.file, w.at = nil, nil, nil
	if file == nil {
		return nil
	}
	return file.Close()
}

package indexfile

import (
	"fmt"
	"os"

	"github.com/snapfs/snapfs/layers"
)

// Index restores the Index that was written, on the heap and independent of f.
// Its error wraps os.ErrClosed after Close.
func (f *File) Index() (*layers.Index, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.p == nil {
		return nil, fmt.Errorf("index file: %w", os.ErrClosed)
	}
	chunks := make([]layers.Chunk, f.chunks)
	f.readChunks(chunks, 0)
	ix := &layers.Index{Compression: f.compression, Entries: make([]layers.Entry, f.entries)}
	text := string(f.p[f.stringsAt():]) // one string that all others are parts of
	for i := range ix.Entries {
		f.readEntry(&ix.Entries[i], f.entry(int64(i)), text, chunks)
	}
	return ix, nil
}

func (f *File) readEntry(e *layers.Entry, b []byte, text string, chunks []layers.Chunk) {
	part := func(off, n int) string {
		at := le.Uint64(b[off:])
		return text[at : at+uint64(le.Uint32(b[n:]))]
	}
	e.Name, e.Link = part(0, 76), part(8, 80)
	e.Sec, e.Size = int64(le.Uint64(b[24:])), int64(le.Uint64(b[32:]))
	if first, n := le.Uint32(b[40:]), le.Uint32(b[44:]); n > 0 {
		e.Chunks = chunks[first : first+n : first+n]
	}
	if o := le.Uint32(b[48:]); o != noObject {
		e.Object = layers.Sum(f.object(int64(o))[:32])
	}
	e.Mode, e.Kind = le.Uint16(b[52:]), layers.Kind(b[54])
	e.UID, e.GID, e.Nsec = le.Uint32(b[56:]), le.Uint32(b[60:]), le.Uint32(b[64:])
	e.Major, e.Minor = le.Uint32(b[68:]), le.Uint32(b[72:])
	if n := le.Uint32(b[84:]); n > 0 {
		e.Xattrs = readXattrs(n, f.text(le.Uint64(b[16:]), le.Uint32(b[88:])), part(16, 88))
	}
}

// readXattrs reads n extended attributes from p, and takes their text from text,
// which is the same.
func readXattrs(n uint32, p []byte, text string) []layers.Xattr {
	xs := make([]layers.Xattr, 0, n)
	for range n {
		name, value, rest, _ := cutXattr(p) // Open has seen that they are whole
		mid, end := xattrHead+len(name), xattrHead+len(name)+len(value)
		xs = append(xs, layers.Xattr{Name: text[xattrHead:mid], Value: text[mid:end]})
		p, text = rest, text[end:]
	}
	return xs
}

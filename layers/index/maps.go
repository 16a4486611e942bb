package index

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/snapfs/snapfs/layers"
)

// The columns of a map section. Those up to mapMarkStored are what a MapFile
// has, too.
const (
	mapHead        = iota // compression, plain bytes, stored bytes, points, marks
	mapPointPlain         // of each point, as differences
	mapPointStored        // the same
	mapPointBits          // a byte each
	mapPointWindow        // of each point
	mapWindowLen          // stored bytes, of each point that has a window
	mapWindowSum          // of those that are stored
	mapMarkPlain          // of each mark, as differences
	mapMarkStored         // the same
	mapCuts               // of each file that is cut in its own way: how
	mapChunkSums          // of files of more than one chunk
	mapColumns
)

// encodeMap appends the columns of a map and of its windows, whose table has an
// element for each point.
func encodeMap(cols [][]byte, m *layers.Map, table []Window) {
	for _, v := range []uint64{uint64(m.Compression), uint64(m.Plain), uint64(m.Stored), uint64(len(m.Points)), uint64(len(m.Marks))} {
		cols[mapHead] = binary.AppendUvarint(cols[mapHead], v)
	}
	var p layers.Point
	for i, q := range m.Points {
		cols[mapPointPlain] = binary.AppendUvarint(cols[mapPointPlain], uint64(q.Plain-p.Plain))
		cols[mapPointStored] = binary.AppendUvarint(cols[mapPointStored], uint64(q.Stored-p.Stored))
		cols[mapPointBits] = append(cols[mapPointBits], q.Bits)
		cols[mapPointWindow] = binary.AppendUvarint(cols[mapPointWindow], uint64(q.Window))
		p = q
		if q.Window == 0 {
			continue
		}
		cols[mapWindowLen] = binary.AppendUvarint(cols[mapWindowLen], uint64(table[i].Len))
		if table[i].Len > 0 {
			cols[mapWindowSum] = append(cols[mapWindowSum], table[i].Sum[:]...)
		}
	}
	var k layers.Mark
	for _, q := range m.Marks {
		cols[mapMarkPlain] = binary.AppendUvarint(cols[mapMarkPlain], uint64(q.Plain-k.Plain))
		cols[mapMarkStored] = binary.AppendUvarint(cols[mapMarkStored], uint64(q.Stored-k.Stored))
		k = q
	}
}

// decodeMap reads what encodeMap wrote. The windows are stored one after another
// from off on.
func decodeMap(cols []cursor, off int64) (*layers.Map, []Window, error) {
	h := &cols[mapHead]
	m := &layers.Map{Compression: layers.Compression(h.number(math.MaxUint8)), Plain: h.number(layers.MaxFile), Stored: h.number(layers.MaxFile)}
	np, nm := h.number(layers.MaxPoints), h.number(layers.MaxMarks)
	if h.bad || np > int64(len(cols[mapPointBits].p)) || nm > int64(len(cols[mapMarkPlain].p)) {
		return nil, nil, fmt.Errorf("%w: map of %d points, %d marks", ErrCorrupt, np, nm)
	}
	m.Points = make([]layers.Point, np)
	table := make([]Window, np)
	var p layers.Point
	for i := range m.Points {
		p.Plain += cols[mapPointPlain].number(layers.MaxFile)
		p.Stored += cols[mapPointStored].number(layers.MaxFile)
		p.Bits, p.Window = cols[mapPointBits].byte(), int32(cols[mapPointWindow].number(layers.MaxWindow))
		if p.Plain > m.Plain || p.Stored > m.Stored { // before sums can overflow
			return nil, nil, fmt.Errorf("%w: point %d is outside of the layer", ErrCorrupt, i)
		}
		m.Points[i] = p
		if p.Window == 0 {
			continue
		}
		w := &table[i]
		w.Off, w.Len = off, int32(cols[mapWindowLen].number(uint64(p.Window)))
		if off += int64(w.Len); w.Len > 0 {
			w.Sum = cols[mapWindowSum].sum()
		}
	}
	if nm > 0 {
		m.Marks = make([]layers.Mark, nm)
	}
	var k layers.Mark
	for i := range m.Marks {
		k.Plain += cols[mapMarkPlain].number(layers.MaxFile)
		k.Stored += cols[mapMarkStored].number(layers.MaxFile)
		if k.Plain > m.Plain || k.Stored > m.Stored {
			return nil, nil, fmt.Errorf("%w: mark %d is outside of the layer", ErrCorrupt, i)
		}
		m.Marks[i] = k
	}
	if err := m.Check(); err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return m, table, nil
}

// stored returns how many bytes the windows of a table have.
func stored(table []Window) (n int64) {
	for _, w := range table {
		n += int64(w.Len)
	}
	return n
}

// windowBytes returns how many bytes the windows of a map have.
func windowBytes(m *layers.Map) (n int64) {
	for _, p := range m.Points {
		n += int64(p.Window)
	}
	return n
}

// findFiles lists the files with bytes, and checks entries: what this returns
// can be written.
func findFiles(entries []layers.Entry) ([]file, error) {
	if len(entries) > layers.MaxEntries {
		return nil, fmt.Errorf("%w: %d entries", layers.ErrTooLarge, len(entries))
	}
	var files []file
	objects := make(map[layers.Sum]int32)
	sizes := []int64{}
	for i := range entries {
		e := &entries[i]
		if err := checkEntry(e); err != nil {
			return nil, err
		}
		if err := checkXattrs(e.Xattrs); err != nil {
			return nil, fmt.Errorf("%q: %w", e.Name, err)
		}
		if (e.Size > 0) != (e.Object != layers.Sum{}) || (e.Size > 0) != (len(e.Chunks) > 0) {
			return nil, fmt.Errorf("%q: %d bytes, object %v, %d chunks", e.Name, e.Size, e.Object, len(e.Chunks))
		}
		if e.Size == 0 {
			continue
		}
		f := file{entry: int32(i)}
		var ok bool
		if f.object, ok = objects[e.Object]; !ok {
			f.object, f.fresh = int32(len(sizes)), true
			objects[e.Object] = f.object
			sizes = append(sizes, e.Size)
		} else if sizes[f.object] != e.Size {
			return nil, fmt.Errorf("%q: %d bytes, the same object has %d elsewhere", e.Name, e.Size, sizes[f.object])
		}
		for _, ck := range e.Chunks {
			if ck.BlobLen > 0 {
				f.off = ck.BlobOff
				break
			}
		}
		files = append(files, f)
	}
	return files, nil
}

// regular reports whether a file is cut into chunks of layers.ChunkSize that
// follow one another in the tar.
func regular(e *layers.Entry, off int64) bool {
	if int64(len(e.Chunks)) != numChunks(e.Size) {
		return false
	}
	for i, ck := range e.Chunks {
		at := int64(i) * layers.ChunkSize
		if ck.Off != at || ck.Size != min(layers.ChunkSize, e.Size-at) || ck.BlobOff != off+at || ck.BlobLen != ck.Size || ck.Inner != 0 {
			return false
		}
	}
	return true
}

func numChunks(size int64) int64 { return (size + layers.ChunkSize - 1) / layers.ChunkSize }

// encodeChunks appends the columns of the files' chunks, and returns how many
// there are.
//
// cuts, of each file that is not regular: how many files of the list it is behind
// the last such, its number of chunks, and of each chunk its size and 0 if it is
// a hole, else twice the distance (zigzag) from where the last stored chunk
// ended, or from the file's place, plus one.
func encodeChunks(cols [][]byte, entries []layers.Entry, files []file) (n int64, err error) {
	sums := cols[mapChunkSums]
	had := make([]bool, len(files)) // by object: a regular file of it had its sums
	last := 0
	for i, f := range files {
		e := &entries[f.entry]
		n += int64(len(e.Chunks))
		if len(e.Chunks) == 1 && e.Chunks[0].Sum != e.Object {
			return 0, fmt.Errorf("%q: chunk %v is all of object %v", e.Name, e.Chunks[0].Sum, e.Object)
		}
		whole := regular(e, f.off)
		if !whole {
			cols[mapCuts] = binary.AppendUvarint(cols[mapCuts], uint64(i-last))
			if cols[mapCuts], err = appendCut(cols[mapCuts], e, f.off); err != nil {
				return 0, err
			}
			last = i
		}
		if len(e.Chunks) == 1 || whole && had[f.object] {
			continue
		}
		had[f.object] = had[f.object] || whole
		for j, ck := range e.Chunks {
			if ck.Sum == (layers.Sum{}) {
				return 0, fmt.Errorf("%q: chunk %d has no sum", e.Name, j)
			}
			sums = append(sums, ck.Sum[:]...)
		}
	}
	cols[mapChunkSums] = sums
	return n, nil
}

func appendCut(p []byte, e *layers.Entry, place int64) ([]byte, error) {
	p = binary.AppendUvarint(p, uint64(len(e.Chunks)))
	var off int64
	for i, ck := range e.Chunks {
		if ck.Off != off || ck.Size <= 0 || ck.Size > layers.MaxChunk || ck.Inner != 0 || ck.BlobLen != 0 && ck.BlobLen != ck.Size {
			return nil, fmt.Errorf("%q: chunk %d (%+v) is not one of plain bytes at %d", e.Name, i, ck, off)
		}
		off += ck.Size
		p = binary.AppendUvarint(p, uint64(ck.Size))
		if ck.BlobLen == 0 {
			p = append(p, 0)
			continue
		}
		d := ck.BlobOff - place
		p = binary.AppendUvarint(p, uint64(d<<1)^uint64(d>>63)+1)
		place = ck.BlobOff + ck.BlobLen
	}
	if off != e.Size {
		return nil, fmt.Errorf("%q: chunks of %d bytes, file of %d", e.Name, off, e.Size)
	}
	return p, nil
}

// A cut is how a file that is not regular is cut.
type cut struct {
	file   int // place in the list of files
	chunks []layers.Chunk
}

// readCuts reads the column of cuts. The chunks have no sums.
func readCuts(c *cursor, files []file) (cuts []cut, err error) {
	for at := 0; len(c.p) > 0; {
		at += int(c.number(math.MaxInt32))
		n := c.number(maxChunks)
		if c.bad || at >= len(files) || n == 0 || n > int64(len(c.p)) || len(cuts) > 0 && at == cuts[len(cuts)-1].file {
			return nil, fmt.Errorf("%w: cut %d: %d chunks of file %d of %d", ErrCorrupt, len(cuts), n, at, len(files))
		}
		chunks := make([]layers.Chunk, n)
		var off int64
		place := files[at].off
		for i := range chunks {
			ck := &chunks[i]
			ck.Off, ck.Size = off, c.number(layers.MaxChunk)
			off += ck.Size
			v := c.uvarint()
			if c.bad || ck.Size == 0 {
				return nil, fmt.Errorf("%w: cut %d: chunk %d of %d bytes", ErrCorrupt, len(cuts), i, ck.Size)
			}
			if v > 0 {
				v--
				ck.BlobOff, ck.BlobLen = place+(int64(v>>1)^-int64(v&1)), ck.Size
				place = ck.BlobOff + ck.BlobLen
			}
		}
		cuts = append(cuts, cut{at, chunks})
	}
	return cuts, nil
}

// decodeChunks gives the files of entries their n chunks.
func decodeChunks(cols []cursor, entries []layers.Entry, files []file, n int64) error {
	cuts, err := readCuts(&cols[mapCuts], files)
	if err != nil {
		return err
	}
	var total int64
	rest := cuts
	for i, f := range files {
		if len(rest) > 0 && rest[0].file == i {
			total += int64(len(rest[0].chunks))
			rest = rest[1:]
		} else {
			total += numChunks(entries[f.entry].Size)
		}
	}
	if total != n {
		return fmt.Errorf("%w: files of %d chunks, the header says %d", ErrCorrupt, total, n)
	}
	sums := &cols[mapChunkSums]
	had := make(map[int32][]layers.Chunk) // by object, what a regular file of it has
	all := make([]layers.Chunk, n)        // not more than the header's budget allows
	for i, f := range files {
		e := &entries[f.entry]
		whole := len(cuts) == 0 || cuts[0].file != i
		if whole {
			e.Chunks = cutRegular(all, e.Size, f.off)
		} else {
			e.Chunks = all[:len(cuts[0].chunks):len(cuts[0].chunks)]
			copy(e.Chunks, cuts[0].chunks)
			cuts = cuts[1:]
		}
		all = all[len(e.Chunks):]
		switch last := e.Chunks[len(e.Chunks)-1]; {
		case last.Off+last.Size != e.Size:
			return fmt.Errorf("%w: %q: chunks of %d bytes, file of %d", ErrCorrupt, e.Name, last.Off+last.Size, e.Size)
		case len(e.Chunks) == 1:
			e.Chunks[0].Sum = e.Object
		case whole && had[f.object] != nil:
			for j, ck := range had[f.object] {
				e.Chunks[j].Sum = ck.Sum
			}
		default:
			for j := range e.Chunks {
				if e.Chunks[j].Sum = sums.sum(); e.Chunks[j].Sum == (layers.Sum{}) {
					return fmt.Errorf("%w: %q: chunk %d has no sum", ErrCorrupt, e.Name, j)
				}
			}
			if whole {
				had[f.object] = e.Chunks
			}
		}
	}
	return nil
}

// cutRegular cuts the chunks of a file off the front of all.
func cutRegular(all []layers.Chunk, size, place int64) []layers.Chunk {
	n := numChunks(size)
	chunks := all[:n:n]
	for i := range chunks {
		at := int64(i) * layers.ChunkSize
		ck := &chunks[i]
		ck.Off, ck.Size, ck.BlobOff = at, min(layers.ChunkSize, size-at), place+at
		ck.BlobLen = ck.Size
	}
	return chunks
}

// checkPlaces checks that the stored chunks are inside of a layer of plain bytes
// and that no two overlap.
func checkPlaces(entries []layers.Entry, plain int64) error {
	type run struct{ off, end int64 }
	var runs []run // of neighbouring chunks
	sorted := true
	for i := range entries {
		for _, ck := range entries[i].Chunks {
			if ck.BlobLen == 0 {
				continue
			}
			if ck.BlobOff < 0 || ck.BlobOff > plain-ck.BlobLen {
				return fmt.Errorf("%q: bytes %d to %d of the tar, which has %d", entries[i].Name, ck.BlobOff, ck.BlobOff+ck.BlobLen, plain)
			}
			if n := len(runs); n > 0 && runs[n-1].end == ck.BlobOff {
				runs[n-1].end += ck.BlobLen
				continue
			} else if n > 0 && runs[n-1].end > ck.BlobOff {
				sorted = false
			}
			runs = append(runs, run{ck.BlobOff, ck.BlobOff + ck.BlobLen})
		}
	}
	if sorted {
		return nil
	}
	slices.SortFunc(runs, func(a, b run) int { return cmp.Compare(a.off, b.off) })
	for i := 1; i < len(runs); i++ {
		if runs[i].off < runs[i-1].end {
			return fmt.Errorf("two chunks at byte %d of the tar", runs[i].off)
		}
	}
	return nil
}

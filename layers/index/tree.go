package index

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// The columns of a tree section.
const (
	treeHead    = iota // entries, attribute sets, times, header bytes
	treeSets           // attribute sets: kind, mode, uid, gid, xattrs
	treeSet            // of each entry: its set
	treeShared         // of each entry: how many bytes of its name are those of the one before
	treeNames          // of each entry: the rest of its name, NUL
	treeTimes          // the distinct seconds, ascending, as differences
	treeTime           // of each entry: its seconds' place there
	treeNsec           // of each entry
	treeSizes          // of each regular file
	treeLinks          // of each link: its target, NUL
	treeDevices        // of each device: major, minor
	treeSame           // of each file with bytes: 0, or how many objects back the same one is
	treePlaces         // of each file with bytes: where they are in the tar, against what is expected
	treeObjects        // sums of the objects, as they come first
	treeColumns
)

// A file is a regular file with bytes.
type file struct {
	entry  int32
	object int32 // in the order in which objects come first
	fresh  bool  // it is the first of its object
	off    int64 // of its first byte in the tar
}

// An attrs is what entries share: few combinations occur.
type attrs struct {
	kind     layers.Kind
	mode     uint16
	uid, gid uint32
	xattrs   string // encoded
}

// encodeTree makes a tree section of entries that checkEntry has seen.
func encodeTree(z *zstd.Encoder, entries []layers.Entry, files []file) ([]byte, section) {
	s := section{kind: kindTree, records: uint32(len(entries))}
	w := treeWriter{sets: make(map[attrs]uint64)}
	times, place := distinctTimes(entries)
	for i := range entries {
		e := &entries[i]
		s.plain += int64(len(e.Name))
		w.entry(e)
		w.number(treeTime, place[e.Sec])
	}
	var before int64
	for _, t := range times {
		w.cols[treeTimes] = binary.AppendVarint(w.cols[treeTimes], t-before) // wraps around, and back when read
		before = t
	}
	var objects int32
	for _, f := range files {
		if !f.fresh {
			w.number(treeSame, uint64(objects-f.object))
			continue
		}
		w.number(treeSame, 0)
		w.cols[treeObjects] = append(w.cols[treeObjects], entries[f.entry].Object[:]...)
		objects++
	}
	head, places := encodePlaces(z, entries, files)
	w.cols[treePlaces] = places
	for _, v := range []uint64{uint64(len(entries)), uint64(len(w.sets)), uint64(len(times)), head} {
		w.number(treeHead, v)
	}
	stored, plain := pack(z, 1<<treeObjects, w.cols[:]...)
	s.plain += plain
	return stored, s
}

// A treeWriter gathers the columns that each entry has something in.
type treeWriter struct {
	cols [treeColumns][]byte
	sets map[attrs]uint64
	last string // name of the last entry
}

func (w *treeWriter) number(col int, v uint64) {
	w.cols[col] = binary.AppendUvarint(w.cols[col], v)
}

func (w *treeWriter) text(col int, s string) {
	w.cols[col] = append(append(w.cols[col], s...), 0)
}

func (w *treeWriter) entry(e *layers.Entry) {
	a := attrs{e.Kind, e.Mode, e.UID, e.GID, string(appendXattrs(nil, e.Xattrs))}
	set, ok := w.sets[a]
	if !ok {
		set = uint64(len(w.sets))
		w.sets[a] = set
		w.cols[treeSets] = a.append(w.cols[treeSets])
	}
	w.number(treeSet, set)
	n := shared(w.last, e.Name)
	w.last = e.Name
	w.number(treeShared, uint64(n))
	w.text(treeNames, e.Name[n:])
	w.number(treeNsec, uint64(e.Nsec))
	switch e.Kind {
	case layers.Reg:
		w.number(treeSizes, uint64(e.Size))
	case layers.Symlink, layers.Hardlink:
		w.text(treeLinks, e.Link)
	case layers.Char, layers.Block:
		w.number(treeDevices, uint64(e.Major))
		w.number(treeDevices, uint64(e.Minor))
	}
}

func distinctTimes(entries []layers.Entry) (times []int64, place map[int64]uint64) {
	place = make(map[int64]uint64)
	for i := range entries {
		place[entries[i].Sec] = 0
	}
	for t := range place {
		times = append(times, t)
	}
	slices.Sort(times)
	for i, t := range times {
		place[t] = uint64(i)
	}
	return times, place
}

func (a attrs) append(p []byte) []byte {
	p = append(p, byte(a.kind))
	p = binary.AppendUvarint(p, uint64(a.mode))
	p = binary.AppendUvarint(p, uint64(a.uid))
	p = binary.AppendUvarint(p, uint64(a.gid))
	return append(p, a.xattrs...)
}

func appendXattrs(p []byte, xs []layers.Xattr) []byte {
	p = binary.AppendUvarint(p, uint64(len(xs)))
	for _, x := range xs {
		p = appendText(appendText(p, x.Name), x.Value)
	}
	return p
}

func shared(a, b string) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// Heads of members that are tried: a ustar header alone, and with a PAX header
// and one block of records before it.
var heads = []uint64{512, 1536}

// encodePlaces encodes where files are, with the size of a member's headers that
// fits best.
func encodePlaces(z *zstd.Encoder, entries []layers.Entry, files []file) (head uint64, col []byte) {
	best := math.MaxInt
	for _, h := range heads {
		c := appendPlaces(nil, entries, files, int64(h))
		if n := len(shrink(z, c)); n < best {
			best, head, col = n, h, c
		}
	}
	return head, col
}

// appendPlaces encodes where files are as what remains when every entry between
// two files had headers of head bytes, and the files' bytes were padded to blocks.
// Most remainders are a few blocks: even numbers are blocks, odd ones bytes.
func appendPlaces(p []byte, entries []layers.Entry, files []file, head int64) []byte {
	next := int64(0)
	before := int32(-1)
	for _, f := range files {
		next += head * int64(f.entry-before)
		d := f.off - next
		if d%512 == 0 {
			d = d / 512 << 1
		} else {
			d = d<<1 | 1
		}
		p = binary.AppendVarint(p, d)
		next, before = padded(f.off+entries[f.entry].Size), f.entry
	}
	return p
}

func padded(n int64) int64 { return (n + 511) &^ 511 }

// decodeTree reads a tree section. It does not set the entries' chunks.
func decodeTree(p []byte, s *section) (entries []layers.Entry, files []file, err error) {
	var r treeReader
	cols := &r.cols
	total, err := unpack(p, s.plain, cols[:])
	if err != nil {
		return nil, nil, err
	}
	h := &cols[treeHead]
	n, nsets, ntimes, head := h.number(layers.MaxEntries), h.number(math.MaxUint32), h.number(math.MaxUint32), h.number(1<<20)
	// Of each there is a byte at least: what is made is bounded by what came.
	if h.bad || n != int64(s.records) || n > int64(len(cols[treeSet].p)) || nsets > int64(len(cols[treeSets].p)) || ntimes > int64(len(cols[treeTimes].p)) {
		return nil, nil, fmt.Errorf("%w: %d entries, %d sets of attributes, %d times", ErrCorrupt, n, nsets, ntimes)
	}
	if r.sets, err = readSets(&cols[treeSets], nsets); err != nil {
		return nil, nil, err
	}
	r.times = make([]int64, ntimes)
	var sec int64
	for i := range r.times {
		sec += cols[treeTimes].varint()
		r.times[i] = sec
	}
	entries = make([]layers.Entry, n)
	if err := readNames(entries, &cols[treeShared], &cols[treeNames], s.plain-total); err != nil {
		return nil, nil, err
	}
	r.links = string(cols[treeLinks].p)
	cols[treeLinks].p = nil
	for i := range entries {
		if err := r.entry(&entries[i]); err != nil {
			return nil, nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	if len(r.links) > 0 {
		return nil, nil, fmt.Errorf("%w: targets of more links than there are", ErrCorrupt)
	}
	if files, err = readFiles(entries, r.files, head, &cols[treeSame], &cols[treePlaces], &cols[treeObjects]); err != nil {
		return nil, nil, err
	}
	return entries, files, ended(cols[:])
}

// A treeReader reads the columns that each entry has something in.
type treeReader struct {
	cols  [treeColumns]cursor
	sets  []attrsRead
	times []int64
	links string // targets that are not taken yet
	files int    // regular files with bytes
}

func (r *treeReader) entry(e *layers.Entry) error {
	set, time := r.cols[treeSet].uvarint(), r.cols[treeTime].uvarint()
	if set >= uint64(len(r.sets)) || time >= uint64(len(r.times)) {
		return fmt.Errorf("%q: set of attributes %d, time %d", e.Name, set, time)
	}
	a := &r.sets[set]
	e.Kind, e.Mode, e.UID, e.GID, e.Xattrs = a.kind, a.mode, a.uid, a.gid, a.list
	e.Sec, e.Nsec = r.times[time], uint32(r.cols[treeNsec].number(1e9-1))
	switch e.Kind {
	case layers.Reg:
		if e.Size = r.cols[treeSizes].number(layers.MaxFile); e.Size > 0 {
			r.files++
		}
	case layers.Symlink, layers.Hardlink:
		end := strings.IndexByte(r.links, 0)
		if end < 0 {
			return fmt.Errorf("%q: no target", e.Name)
		}
		e.Link, r.links = r.links[:end], r.links[end+1:]
	case layers.Char, layers.Block:
		d := &r.cols[treeDevices]
		e.Major, e.Minor = uint32(d.number(math.MaxUint32)), uint32(d.number(math.MaxUint32))
	}
	return checkEntry(e)
}

type attrsRead struct {
	attrs
	list []layers.Xattr
}

func readSets(c *cursor, n int64) ([]attrsRead, error) {
	sets := make([]attrsRead, n)
	for i := range sets {
		a := &sets[i]
		a.kind, a.mode = layers.Kind(c.byte()), uint16(c.number(math.MaxUint16))
		a.uid, a.gid = uint32(c.number(math.MaxUint32)), uint32(c.number(math.MaxUint32))
		if m := c.number(layers.MaxXattrs); m > 0 && m <= int64(len(c.p)) {
			a.list = make([]layers.Xattr, m)
			for j := range a.list {
				a.list[j] = layers.Xattr{Name: string(c.text(layers.MaxXattrs)), Value: string(c.text(layers.MaxXattrs))}
			}
		} else if m > 0 {
			c.bad = true
		}
		if c.bad {
			return nil, fmt.Errorf("%w: set of attributes %d", ErrCorrupt, i)
		}
		if err := checkXattrs(a.list); err != nil {
			return nil, fmt.Errorf("%w: set of attributes %d: %w", ErrCorrupt, i, err)
		}
	}
	return sets, nil
}

// readNames gives entries their names, which have size bytes together.
func readNames(entries []layers.Entry, common, rest *cursor, size int64) error {
	text := make([]byte, 0, min(size, 16*int64(len(rest.p)))) // it grows if names are that repetitive
	ends := make([]int, len(entries))
	from := 0
	for i := range entries {
		n := common.uvarint()
		end := slices.Index(rest.p, 0)
		if end < 0 || n > uint64(len(text)-from) || int64(n)+int64(end) > size-int64(len(text)) {
			return fmt.Errorf("%w: name of entry %d", ErrCorrupt, i)
		}
		start := len(text)
		text = append(text, text[from:from+int(n)]...)
		text = append(text, rest.take(end)...)
		rest.take(1)
		from, ends[i] = start, len(text)
	}
	if int64(len(text)) != size {
		return fmt.Errorf("%w: names of %d bytes, want %d", ErrCorrupt, len(text), size)
	}
	all := string(text)
	from = 0
	for i, end := range ends {
		entries[i].Name = all[from:end]
		from = end
	}
	return nil
}

// readFiles finds the n files with bytes, and gives them their objects.
func readFiles(entries []layers.Entry, n int, head int64, same, places, sums *cursor) ([]file, error) {
	if n > len(same.p) {
		return nil, fmt.Errorf("%w: %d files, objects of %d", ErrCorrupt, n, len(same.p))
	}
	files := make([]file, 0, n)
	objects := make([]int32, 0, len(sums.p)/len(layers.Sum{})) // where each comes first, in files
	next, before := int64(0), int32(-1)
	for i := range entries {
		e := &entries[i]
		if e.Size == 0 {
			continue
		}
		f := file{entry: int32(i)}
		next += head * int64(f.entry-before)
		d := places.varint()
		if d&1 == 0 {
			d = d >> 1 * 512
		} else {
			d >>= 1
		}
		if f.off = next + d; f.off < 0 || f.off > layers.MaxFile {
			return nil, fmt.Errorf("%w: %q at %d of the tar", ErrCorrupt, e.Name, f.off)
		}
		next, before = padded(f.off+e.Size), f.entry
		if back := same.uvarint(); back == 0 {
			f.object, f.fresh = int32(len(objects)), true
			objects = append(objects, int32(len(files)))
			e.Object = sums.sum()
		} else if back <= uint64(len(objects)) {
			f.object = int32(len(objects)) - int32(back)
			first := &entries[files[objects[f.object]].entry]
			if e.Object = first.Object; e.Size != first.Size {
				return nil, fmt.Errorf("%w: %q and %q are one object and have not one size", ErrCorrupt, first.Name, e.Name)
			}
		} else {
			return nil, fmt.Errorf("%w: %q is the object %d back of %d", ErrCorrupt, e.Name, back, len(objects))
		}
		if sums.bad || e.Object == (layers.Sum{}) {
			return nil, fmt.Errorf("%w: %q has no object", ErrCorrupt, e.Name)
		}
		files = append(files, f)
	}
	return files, nil
}

// checkEntry checks what layers says of an entry, chunks and object aside.
func checkEntry(e *layers.Entry) error {
	links := e.Kind == layers.Symlink || e.Kind == layers.Hardlink
	devices := e.Kind == layers.Char || e.Kind == layers.Block
	switch {
	case !cleanName(e.Name) || e.Name == "" && e.Kind != layers.Dir:
		return fmt.Errorf("name %.80q of kind %d", e.Name, e.Kind)
	case e.Kind < layers.Dir || e.Kind > layers.Fifo || e.Mode > 0o7777 || e.Nsec >= 1e9:
		return fmt.Errorf("%q: kind %d, mode %o, %d ns", e.Name, e.Kind, e.Mode, e.Nsec)
	case links != (e.Link != "") || len(e.Link) > layers.MaxName || strings.IndexByte(e.Link, 0) >= 0 || e.Kind == layers.Hardlink && !cleanName(e.Link):
		return fmt.Errorf("%q: kind %d, link to %.80q", e.Name, e.Kind, e.Link)
	case e.Size < 0 || e.Size > layers.MaxFile || e.Size > 0 && e.Kind != layers.Reg:
		return fmt.Errorf("%q: kind %d, %d bytes", e.Name, e.Kind, e.Size)
	case !devices && (e.Major != 0 || e.Minor != 0):
		return fmt.Errorf("%q: kind %d, device %d:%d", e.Name, e.Kind, e.Major, e.Minor)
	}
	return nil
}

func checkXattrs(xs []layers.Xattr) error {
	n := 0
	for i, x := range xs {
		if x.Name == "" || i > 0 && cmp.Compare(xs[i-1].Name, x.Name) >= 0 {
			return fmt.Errorf("xattr %.80q is out of order", x.Name)
		}
		if n += len(x.Name) + len(x.Value); n > layers.MaxXattrs {
			return fmt.Errorf("%w: xattrs of more than %d bytes", layers.ErrTooLarge, layers.MaxXattrs)
		}
	}
	return nil
}

// cleanName reports whether name is as layers.Entry.Name says.
func cleanName(name string) bool {
	if name == "" {
		return true
	}
	if len(name) > layers.MaxName {
		return false
	}
	start := 0
	for i := 0; ; i++ {
		if i < len(name) && name[i] != '/' {
			if name[i] == 0 {
				return false
			}
			continue
		}
		n := i - start
		if n == 0 || n > layers.MaxNameElem || name[start] == '.' && (n == 1 || n == 2 && name[start+1] == '.') {
			return false
		}
		if i == len(name) {
			return true
		}
		start = i + 1
	}
}

package index

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// Limits of a profile. A start that reads more than this before it is ready is
// not helped by being told what to read first.
const (
	MaxItems        = 32 << 10
	MaxProfileBytes = 1 << 30 // plain bytes of all items
	MaxStarts       = 8       // starts that a profile remembers: see Merge
	FullWeight      = 1000
	maxAt           = math.MaxUint32 * time.Millisecond
)

// A Profile is what starts of an image read before they were ready, in the order
// of first use. Items name bytes by content, not by layer or name: they mean the
// same in every image that has the file, and one that names an object which an
// image does not have is passed over.
type Profile struct {
	Starts int // how many it was made of; it stays at MaxStarts
	Items  []Item
}

// An Item is a chunk that was read.
type Item struct {
	Object layers.Sum    // of the file
	Off    int64         // of the chunk in the file, bytes
	Size   int64         // of the chunk, plain bytes
	Sum    layers.Sum    // of the chunk; the same as Object if that is all of the file
	At     time.Duration // since the start, in milliseconds
	Weight int           // the share of starts that read it, FullWeight being all
}

// Bytes returns how many plain bytes all items have.
func (p *Profile) Bytes() (n int64) {
	for i := range p.Items {
		n += p.Items[i].Size
	}
	return n
}

// Check returns an error that wraps layers.ErrTooLarge or ErrCorrupt if p is not
// as its comments say.
func (p *Profile) Check() error {
	if len(p.Items) > MaxItems {
		return fmt.Errorf("%w: profile of %d items", layers.ErrTooLarge, len(p.Items))
	}
	if p.Starts < 1 || p.Starts > MaxStarts {
		return fmt.Errorf("%w: profile of %d starts", ErrCorrupt, p.Starts)
	}
	seen := make(map[place]bool, len(p.Items))
	var bytes int64
	for i := range p.Items {
		it := &p.Items[i]
		switch {
		case it.Off < 0 || it.Size <= 0 || it.Size > layers.MaxChunk || it.Off > layers.MaxFile-it.Size:
			return fmt.Errorf("%w: item %d: %d bytes at %d", ErrCorrupt, i, it.Size, it.Off)
		case it.Object == layers.Sum{} || it.Sum == layers.Sum{} || it.Off > 0 && it.Sum == it.Object:
			return fmt.Errorf("%w: item %d: chunk %v of object %v", ErrCorrupt, i, it.Sum, it.Object)
		case it.At < 0 || it.At > maxAt || it.At%time.Millisecond != 0 || it.Weight < 1 || it.Weight > FullWeight:
			return fmt.Errorf("%w: item %d: at %v, weight %d", ErrCorrupt, i, it.At, it.Weight)
		case seen[it.place()]:
			return fmt.Errorf("%w: item %d: %v at %d is there twice", ErrCorrupt, i, it.Object, it.Off)
		}
		seen[it.place()] = true
		bytes += it.Size
	}
	if bytes > MaxProfileBytes {
		return fmt.Errorf("%w: profile of %d bytes", layers.ErrTooLarge, bytes)
	}
	return nil
}

// A place is what an item is of.
type place struct {
	object    layers.Sum
	off, size int64
}

func (it *Item) place() place { return place{it.Object, it.Off, it.Size} }

// Trim drops from the end what is beyond the limits.
func (p *Profile) Trim() {
	p.Items = p.Items[:min(len(p.Items), MaxItems)]
	var bytes int64
	for i := range p.Items {
		if bytes += p.Items[i].Size; bytes > MaxProfileBytes {
			p.Items = p.Items[:i]
			return
		}
	}
}

// minWeight is the weight below which Merge forgets an item: with MaxStarts, what
// every start read is forgotten after 16 that did not, what one start of many
// read after the next.
const minWeight = FullWeight / 8

// Merge returns what is known after the starts of old and those of add, newer
// ones, usually a single one. old may be nil.
//
// An item's weight becomes the mean over the starts of both, in which old counts
// for at most MaxStarts-1: so it is a moving average, what is no longer read
// fades, and below an eighth it is dropped. The order is old's, so that it is the
// same from one start to the next; what is new comes behind the item that was
// before it in add. Of an item in both, Sum is add's and At the mean.
func Merge(old, add *Profile) *Profile {
	if old == nil || len(old.Items) == 0 {
		old = &Profile{}
	}
	no, na := min(old.Starts, MaxStarts-1), min(max(add.Starts, 1), MaxStarts)
	mean := func(a, b int64) int64 { return (a*int64(no) + b*int64(na) + int64(no+na)/2) / int64(no+na) }
	at := make(map[place]int, len(add.Items))
	for i := range add.Items {
		at[add.Items[i].place()] = i
	}
	out := &Profile{Starts: min(no+na, MaxStarts), Items: make([]Item, 0, len(old.Items)+len(add.Items))}
	known := make(map[place]bool, len(old.Items))
	for i := range old.Items {
		known[old.Items[i].place()] = true
	}
	keep := func(it Item, weight int64) {
		if it.Weight = int(weight); it.Weight >= minWeight {
			out.Items = append(out.Items, it)
		}
	}
	// fresh keeps the items of add from i on, up to the next that old has.
	fresh := func(i int) {
		for ; i < len(add.Items) && !known[add.Items[i].place()]; i++ {
			keep(add.Items[i], mean(0, int64(add.Items[i].Weight)))
		}
	}
	fresh(0)
	for _, it := range old.Items {
		i, both := at[it.place()]
		if !both {
			keep(it, mean(int64(it.Weight), 0))
			continue
		}
		b := &add.Items[i]
		it.Sum = b.Sum
		it.At = time.Duration(mean(it.At.Milliseconds(), b.At.Milliseconds())) * time.Millisecond
		keep(it, mean(int64(it.Weight), int64(b.Weight)))
		fresh(i + 1)
	}
	out.Trim()
	return out
}

// The columns of a profile section.
const (
	profileHead    = iota // starts, items
	profileObject         // of each item: 0 the object of the one before, 1 a new one, else how many objects back, plus one
	profileOff            // against the end of the object's last item, zigzag
	profileSize           // bytes
	profileAt             // milliseconds, against the one before, zigzag
	profileWeight         // of each item
	profileWhole          // of each item: 1 if it is all of its object, and has no sum of its own
	profileObjects        // sums
	profileSums           // of the items that are not whole
	profileColumns
)

func encodeProfile(z *zstd.Encoder, p *Profile) ([]byte, section, error) {
	s := section{kind: kindProfile, layer: noLayer, records: uint32(len(p.Items))}
	if err := p.Check(); err != nil {
		return nil, s, err
	}
	var cols [profileColumns][]byte
	add := func(col int, v uint64) { cols[col] = binary.AppendUvarint(cols[col], v) }
	add(profileHead, uint64(p.Starts))
	add(profileHead, uint64(len(p.Items)))
	var w profileWalk
	objects := make(map[layers.Sum]int)
	for i := range p.Items {
		it := &p.Items[i]
		o, ok := objects[it.Object]
		switch {
		case !ok:
			o = len(objects)
			objects[it.Object] = o
			w.ends = append(w.ends, 0)
			cols[profileObjects] = append(cols[profileObjects], it.Object[:]...)
			add(profileObject, 1)
		case o == w.object:
			add(profileObject, 0)
		default:
			add(profileObject, uint64(len(objects)-o)+1)
		}
		w.object = o
		cols[profileOff] = binary.AppendVarint(cols[profileOff], it.Off-w.ends[o])
		w.ends[o] = it.Off + it.Size
		add(profileSize, uint64(it.Size))
		at := it.At.Milliseconds()
		cols[profileAt] = binary.AppendVarint(cols[profileAt], at-w.at)
		w.at = at
		add(profileWeight, uint64(it.Weight))
		if it.Sum == it.Object {
			cols[profileWhole] = append(cols[profileWhole], 1)
			continue
		}
		cols[profileWhole] = append(cols[profileWhole], 0)
		cols[profileSums] = append(cols[profileSums], it.Sum[:]...)
	}
	stored, plain := pack(z, 1<<profileObjects|1<<profileSums, cols[:]...)
	s.plain = plain
	return stored, s, nil
}

// profileWalk is what items are written against.
type profileWalk struct {
	object int     // of the last item
	at     int64   // of the last item, milliseconds
	ends   []int64 // of each object: where its last item ended
}

func decodeProfile(p []byte, s *section) (*Profile, error) {
	var cols [profileColumns]cursor
	if total, err := unpack(p, s.plain, cols[:]); err != nil {
		return nil, err
	} else if total != s.plain {
		return nil, fmt.Errorf("%w: %d plain bytes, want %d", ErrCorrupt, total, s.plain)
	}
	starts, n := cols[profileHead].number(MaxStarts), cols[profileHead].number(math.MaxUint32)
	if n > MaxItems {
		return nil, fmt.Errorf("%w: profile of %d items", layers.ErrTooLarge, n)
	}
	if n != int64(s.records) || n > int64(len(cols[profileWhole].p)) {
		return nil, fmt.Errorf("%w: %d items, the header says %d", ErrCorrupt, n, s.records)
	}
	pr := &Profile{Starts: int(starts), Items: make([]Item, n)}
	var w profileWalk
	var objects []layers.Sum
	for i := range pr.Items {
		switch back := cols[profileObject].uvarint(); {
		case back == 1:
			w.object = len(objects)
			objects = append(objects, cols[profileObjects].sum())
			w.ends = append(w.ends, 0)
		case back > uint64(len(objects))+1 || len(objects) == 0:
			return nil, fmt.Errorf("%w: item %d: object %d back of %d", ErrCorrupt, i, back, len(objects))
		case back > 1:
			w.object = len(objects) - int(back-1)
		}
		it := &pr.Items[i]
		it.Object = objects[w.object]
		it.Off, it.Size = w.ends[w.object]+cols[profileOff].varint(), cols[profileSize].number(layers.MaxChunk)
		w.ends[w.object] = it.Off + it.Size
		w.at += cols[profileAt].varint()
		if w.at < 0 || w.at > math.MaxUint32 {
			return nil, fmt.Errorf("%w: item %d: at %d ms", ErrCorrupt, i, w.at)
		}
		it.At, it.Weight = time.Duration(w.at)*time.Millisecond, int(cols[profileWeight].number(FullWeight))
		if it.Sum = it.Object; cols[profileWhole].byte() == 0 {
			it.Sum = cols[profileSums].sum()
		}
	}
	if err := ended(cols[:]); err != nil {
		return nil, err
	}
	if err := pr.Check(); err != nil {
		return nil, err
	}
	return pr, nil
}

// Equal reports whether two profiles are the same.
func (p *Profile) Equal(q *Profile) bool {
	return p.Starts == q.Starts && slices.Equal(p.Items, q.Items)
}

package toc

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
)

// begin starts a regular file with bytes; its entry is its first chunk too.
func (b *builder) begin(e *entry, hidden bool) error {
	name := "" // of a hidden file: its entry has it otherwise
	if !hidden {
		name = b.entries[len(b.entries)-1].Name
	}
	b.file = file{
		open: true, hidden: hidden, name: name, size: e.size, end: e.end,
		object: e.digest, hasSum: e.hasDigest, chunks: b.file.chunks[:0],
	}
	return b.take(e)
}

// chunk takes an entry of type chunk, which follows its file. Old writers leave
// the name out.
func (b *builder) chunk(e *entry) error {
	f := &b.file
	if !f.open {
		return b.bad("chunk of %q without its file", b.clean)
	}
	if len(b.clean) > 0 && !f.hidden && string(b.clean) != f.name {
		return b.bad("chunk of %q amid %q", b.clean, f.name)
	}
	return b.take(e)
}

// take adds one chunk to the open file: the next, without gap or overlap.
func (b *builder) take(e *entry) error {
	f := &b.file
	size := e.chunkSize
	if size == 0 {
		size = f.size - e.chunkOff // to the end
	}
	switch {
	case e.chunkOff != f.next:
		return b.bad("%q: chunk at %d, want %d", f.name, e.chunkOff, f.next)
	case size <= 0 || size > f.size-f.next:
		return b.bad("%q: chunk of %d bytes at %d, file of %d", f.name, size, f.next, f.size)
	case e.off < 0 || e.inner < 0:
		return b.bad("%q: chunk stored at %d, %d", f.name, e.off, e.inner)
	}
	sum, err := b.chunkSum(e, size)
	if err != nil {
		return err
	}
	f.next += size
	ck := layers.Chunk{Sum: sum, Off: e.chunkOff, Size: size, BlobOff: e.off, Inner: e.inner}
	switch string(e.zeros) {
	case "":
		if size > layers.MaxChunk || e.inner > decode.MaxInner {
			return fmt.Errorf("%w: %q: chunk of %d bytes at %d of its run", layers.ErrTooLarge, f.name, size, e.inner)
		}
		f.chunks = append(f.chunks, ck)
	case "zeros":
		if int64(b.count+len(f.chunks))+size/maxZeros > layers.MaxEntries {
			return fmt.Errorf("%w: %q: %d zeros", layers.ErrTooLarge, f.name, size)
		}
		ck.BlobLen, ck.Inner = lenZeros, 0
		f.chunks = appendZeros(f.chunks, ck)
	default:
		return b.bad("%q: unknown type of chunk %q", f.name, e.zeros)
	}
	if b.count+len(f.chunks) > layers.MaxEntries {
		return fmt.Errorf("%w: more than %d chunks", layers.ErrTooLarge, layers.MaxEntries)
	}
	return nil
}

// chunkSum returns the sum of the chunk e. A file of one chunk may give it as the
// file's own digest, and the other way round; if it gives both, they agree.
func (b *builder) chunkSum(e *entry, size int64) (layers.Sum, error) {
	f := &b.file
	whole := size == f.size
	switch {
	case !whole && !e.hasChunk, whole && !e.hasChunk && !f.hasSum:
		return layers.Sum{}, b.bad("%q: chunk at %d has no digest", f.name, e.chunkOff)
	case !whole:
		return e.chunkDigest, nil
	case !e.hasChunk:
		return f.object, nil
	case f.hasSum && f.object != e.chunkDigest:
		return layers.Sum{}, b.bad("%q: its digest and that of its only chunk differ", f.name)
	}
	f.object, f.hasSum = e.chunkDigest, true
	return e.chunkDigest, nil
}

// finish ends the open file, which must be whole now.
func (b *builder) finish() error {
	f := &b.file
	if !f.open {
		return nil
	}
	f.open = false
	if f.next != f.size {
		return b.bad("%q: chunks of %d bytes, file of %d", f.name, f.next, f.size)
	}
	if !f.hasSum {
		return b.bad("%q: file without a digest", f.name)
	}
	if last := &f.chunks[len(f.chunks)-1]; f.end != 0 && last.BlobLen != lenZeros {
		if last.BlobLen = f.end - last.BlobOff; last.BlobLen <= 0 {
			return b.bad("%q: stored from %d to %d", f.name, last.BlobOff, f.end)
		}
	}
	n := len(f.chunks)
	if cap(b.slab)-len(b.slab) < n {
		b.slabs = append(b.slabs, b.slab)
		b.slab = make([]layers.Chunk, 0, max(n, min(1024, b.count+16)))
	}
	at := len(b.slab)
	b.slab = append(b.slab, f.chunks...)
	b.count += n
	if !f.hidden {
		e := &b.entries[len(b.entries)-1]
		e.Object, e.Chunks = f.object, b.slab[at:at+n:at+n]
	}
	return nil
}

// runs finds how long the stored run of each chunk is: to the next one, unless
// the document says so or the bytes cannot need that much. Runs are disjoint, and
// so are the plain parts of one run. Chunks that share a run get the same one.
func (b *builder) runs() error {
	order := b.stored()
	next := b.o.End
	for end := len(order); end > 0; {
		start := end - 1
		for start > 0 && order[start-1].BlobOff == order[end-1].BlobOff {
			start--
		}
		n, err := b.run(order[start:end], next)
		if err != nil {
			return err
		}
		for _, ck := range order[start:end] {
			ck.BlobLen = n
		}
		next, end = order[start].BlobOff, start
	}
	return nil
}

// stored lists the chunks that have stored bytes, in the order of the blob; of
// the others it says that they have none.
func (b *builder) stored() []*layers.Chunk {
	order := make([]*layers.Chunk, 0, b.count)
	for _, slab := range append(b.slabs, b.slab) {
		for i := range slab {
			if slab[i].BlobLen == lenZeros {
				slab[i].BlobLen = 0
				continue
			}
			order = append(order, &slab[i])
		}
	}
	byPlace := func(x, y *layers.Chunk) int {
		return cmp.Or(cmp.Compare(x.BlobOff, y.BlobOff), cmp.Compare(x.Inner, y.Inner))
	}
	if !slices.IsSortedFunc(order, byPlace) { // writers keep the order, but need not
		slices.SortFunc(order, byPlace)
	}
	return order
}

// run returns the stored length of one run, at most to next.
func (b *builder) run(chunks []*layers.Chunk, next int64) (int64, error) {
	off := chunks[0].BlobOff
	var plain, said int64
	for _, ck := range chunks {
		if ck.Inner < plain {
			return 0, b.bad("chunks overlap at %d of the blob", off)
		}
		plain, said = ck.Inner+ck.Size, max(said, ck.BlobLen)
	}
	n := next - off
	switch {
	case n <= 0 || said > n:
		return 0, b.bad("chunk stored from %d beyond %d", off, next)
	case said != lenUnknown:
		n = said
	}
	// Neither format stores bytes in much more space than they have: both fall
	// back to storing them plain. The rest is what lies between chunks.
	n = min(n, plain+plain/4+128<<10)
	if n > layers.MaxChunk {
		return 0, fmt.Errorf("%w: run of %d stored bytes", layers.ErrTooLarge, n)
	}
	return n, nil
}

// maxZeros is the largest chunk of zeros in an Index; layers have holes of any size.
const maxZeros = 4 << 20

// appendZeros adds a chunk of zeros in pieces. Pieces are powers of two, whose
// sums are known, down to a page: a hostile document cannot make us hash.
func appendZeros(chunks []layers.Chunk, ck layers.Chunk) []layers.Chunk {
	if ck.Size <= maxZeros {
		return append(chunks, ck)
	}
	sums := zeroSums()
	for left := ck.Size; left > 0; left -= ck.Size {
		class := bits.Len64(uint64(min(left, maxZeros))) - 1
		ck.Size = min(left, 1<<class)
		if class < 12 {
			ck.Size = left
			ck.Sum = layers.SumOf(make([]byte, left))
		} else {
			ck.Sum = sums[class]
		}
		chunks = append(chunks, ck)
		ck.Off += ck.Size
	}
	return chunks
}

// zeroSums are the sums of 1<<i zeros, for i of 12 and up.
var zeroSums = sync.OnceValue(func() (sums [23]layers.Sum) {
	zeros := make([]byte, maxZeros)
	for i := 12; i < len(sums); i++ {
		sums[i] = layers.SumOf(zeros[:1<<i])
	}
	return sums
})

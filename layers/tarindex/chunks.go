package tarindex

import (
	"crypto/sha256"
	"sync"

	"github.com/snapfs/snapfs/layers"
)

// A cutter makes the chunks of one file after another. Those whose sum is not
// known by the way have none until finish.
type cutter struct {
	chunks []layers.Chunk // of this file
	off    int64          // of the file that was cut
	blob   int64          // offset in the tar of the chunk that is being made
	size   int64          // of it
	n      int64          // bytes of it that were seen
	left   int64          // bytes of the run that follow it

	// sum takes the bytes of chunks to sum up, one after another; last ends one.
	sum func(p []byte, last bool) error

	slab  []layers.Chunk // room for those of files
	slabs [][]layers.Chunk
	count int
	full  bool // there are too many: none has any
}

const (
	// maxChunks bounds memory, 88 bytes each: 128 GiB of large files.
	maxChunks = 1 << 20
	// maxHole is the largest chunk of zeros.
	maxHole = 4 << 20
)

func (c *cutter) add(ck layers.Chunk) {
	ck.Off = c.off
	c.off += ck.Size
	if c.full = c.full || c.count+len(c.chunks) >= maxChunks; c.full {
		c.chunks = c.chunks[:0]
		return
	}
	c.chunks = append(c.chunks, ck)
}

// whole adds a chunk whose sum is known.
func (c *cutter) whole(sum layers.Sum, size, blob int64) {
	c.add(layers.Chunk{Sum: sum, Size: size, BlobOff: blob, BlobLen: size})
}

// begin says that data is called next, with n bytes that are at blob in the tar.
func (c *cutter) begin(blob, n int64) {
	c.blob, c.left, c.n = blob, n, 0
	c.size = min(n, layers.ChunkSize)
}

// data takes the run's next bytes.
func (c *cutter) data(p []byte) error {
	for len(p) > 0 && !c.full {
		m := min(int64(len(p)), c.size-c.n)
		c.n += m
		if err := c.sum(p[:m], c.n == c.size); err != nil {
			return err
		}
		p = p[m:]
		if c.n == c.size {
			c.whole(layers.Sum{}, c.size, c.blob)
			c.begin(c.blob+c.size, c.left-c.size)
		}
	}
	return nil
}

// hole adds n zeros that are not stored.
func (c *cutter) hole(n int64) {
	for n > 0 && !c.full {
		size := min(n, maxHole)
		c.add(layers.Chunk{Sum: zeroSum(size), Size: size})
		n -= size
	}
}

// take returns the chunks of the file, and begins the next.
func (c *cutter) take() []layers.Chunk {
	n := len(c.chunks)
	c.off = 0
	if n == 0 {
		return nil
	}
	if cap(c.slab)-len(c.slab) < n {
		c.slabs = append(c.slabs, c.slab)
		c.slab = make([]layers.Chunk, 0, max(n, min(1024, c.count+16)))
	}
	at := len(c.slab)
	c.slab = append(c.slab, c.chunks...)
	c.chunks = c.chunks[:0]
	c.count += n
	return c.slab[at : at+n : at+n]
}

// finish gives the chunks the sums of what was given to sum.
func (c *cutter) finish(sums []layers.Sum) {
	if c.full {
		return
	}
	for _, slab := range append(c.slabs, c.slab) {
		for i := range slab {
			if slab[i].Sum == (layers.Sum{}) {
				slab[i].Sum, sums = sums[0], sums[1:]
			}
		}
	}
}

// zeroSum returns the sum of n zeros, up to maxHole.
func zeroSum(n int64) (sum layers.Sum) {
	if n == maxHole {
		return holeSum()
	}
	h := sha256.New()
	for n > 0 {
		m := min(n, int64(len(zeros)))
		h.Write(zeros[:m])
		n -= m
	}
	h.Sum(sum[:0])
	return sum
}

var holeSum = sync.OnceValue(func() layers.Sum { return layers.SumOf(make([]byte, maxHole)) })

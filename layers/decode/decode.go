// Package decode turns stored runs of a layer into the plain bytes of chunks.
//
// A stored run begins at a chunk's BlobOff and is BlobLen bytes long: a gzip
// member, a zstd frame, or plain bytes, often with more of the blob behind it.
//
//	run    | gzip member or zstd frame ........ | what follows in the blob |
//	plain  | Inner | chunk A | gap | chunk B | ...
//
// Nothing is decoded past the last byte that a caller asked for, so a run costs
// no more than its chunks' bounds whatever it would inflate to. Decoders are
// pooled. Sums are not checked here: whoever keeps or serves the bytes does it.
package decode

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
)

// MaxInner bounds where a chunk may begin in the plain bytes of its run. All
// before it is decoded and thrown away, so it bounds the work for one chunk.
const MaxInner = 256 << 20

// Chunk decodes one chunk: it fills dst, which is ck.Size bytes long, from the
// stored run. A chunk with BlobLen 0 is all zeros and needs no stored bytes. Any
// failure wraps layers.ErrBadLayer, because the stored bytes cause it, or
// layers.ErrTooLarge if decoding them takes too much memory.
func Chunk(dst []byte, c layers.Compression, stored []byte, ck layers.Chunk) error {
	if err := check(ck); err != nil {
		return err
	}
	if int64(len(dst)) != ck.Size {
		return fmt.Errorf("%w: %d bytes of space for a chunk of %d", layers.ErrBadLayer, len(dst), ck.Size)
	}
	if ck.BlobLen == 0 {
		clear(dst)
		return nil
	}
	if c == layers.Zstd && zstdWhole(dst, stored, ck.Inner) {
		return nil
	}
	r, err := open(c, stored)
	if err != nil {
		return bad(err)
	}
	defer r.close()
	if err := skip(r, ck.Inner); err != nil {
		return bad(err)
	}
	_, err = io.ReadFull(r, dst)
	return bad(err)
}

// Run decodes a stored run once and cuts chunks from it: it calls put with the
// index of each chunk and its plain bytes, which are valid only during the call.
// The chunks share the run and are in order of Inner, without overlaps. An error
// of put ends the run and is returned as it is; others are those of Chunk.
func Run(c layers.Compression, stored []byte, chunks []layers.Chunk, put func(i int, plain []byte) error) error {
	if len(chunks) == 1 {
		return one(c, stored, chunks[0], put)
	}
	size, err := checkRun(chunks)
	if err != nil {
		return err
	}
	r, err := open(c, stored)
	if err != nil {
		return bad(err)
	}
	defer r.close()
	buf := getBuf(size)
	defer putBuf(buf)
	var pos int64
	for i, ck := range chunks {
		if err := skip(r, ck.Inner-pos); err != nil {
			return bad(err)
		}
		plain := (*buf)[:ck.Size]
		if _, err := io.ReadFull(r, plain); err != nil {
			return bad(err)
		}
		pos = ck.Inner + ck.Size
		if err := put(i, plain); err != nil {
			return err
		}
	}
	return nil
}

func one(c layers.Compression, stored []byte, ck layers.Chunk, put func(i int, plain []byte) error) error {
	if err := check(ck); err != nil {
		return err
	}
	buf := getBuf(ck.Size)
	defer putBuf(buf)
	if err := Chunk(*buf, c, stored, ck); err != nil {
		return err
	}
	return put(0, *buf)
}

// check keeps a chunk within the limits, whoever made it.
func check(ck layers.Chunk) error {
	if ck.Size <= 0 || ck.Size > layers.MaxChunk || ck.Inner < 0 || ck.Inner > MaxInner {
		return fmt.Errorf("%w: chunk of %d bytes at %d of its run", layers.ErrBadLayer, ck.Size, ck.Inner)
	}
	return nil
}

// checkRun also checks the order of chunks, and returns the size of the largest.
func checkRun(chunks []layers.Chunk) (largest int64, err error) {
	var pos int64
	for _, ck := range chunks {
		if err := check(ck); err != nil {
			return 0, err
		}
		if ck.BlobLen == 0 || ck.Inner < pos {
			return 0, fmt.Errorf("%w: chunk at %d of its run, behind %d", layers.ErrBadLayer, ck.Inner, pos)
		}
		pos, largest = ck.Inner+ck.Size, max(largest, ck.Size)
	}
	return largest, nil
}

// bad wraps an error of a decoder. A run that ends too early says so.
func bad(err error) error {
	switch {
	case err == nil:
		return nil
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: stored run ends early", layers.ErrBadLayer)
	case errors.Is(err, layers.ErrBadLayer):
		return err
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return fmt.Errorf("%w: %w", layers.ErrTooLarge, err)
	}
	return fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
}

// skip throws n plain bytes of r away.
func skip(r io.Reader, n int64) error {
	if n == 0 {
		return nil
	}
	buf := getBuf(min(n, 64<<10))
	defer putBuf(buf)
	for n > 0 {
		m, err := io.ReadFull(r, (*buf)[:min(n, int64(len(*buf)))])
		n -= int64(m)
		if err != nil {
			return err
		}
	}
	return nil
}

// buffers are by power of two of their capacity, so that small chunks do not
// hold the space of large ones. The largest holds MaxChunk.
var buffers [27]sync.Pool

func bufClass(n int64) int {
	c := 12
	for int64(1)<<c < n {
		c++
	}
	return c
}

// getBuf returns a buffer of n bytes, at most MaxChunk, with any content.
func getBuf(n int64) *[]byte {
	c := bufClass(n)
	b, ok := buffers[c].Get().(*[]byte)
	if !ok {
		s := make([]byte, 1<<c)
		b = &s
	}
	*b = (*b)[:n]
	return b
}

func putBuf(b *[]byte) { buffers[bufClass(int64(cap(*b)))].Put(b) }

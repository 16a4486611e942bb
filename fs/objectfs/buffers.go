package objectfs

import "sync"

// Replies come in few sizes: everything but READ; the usual read-ahead of
// 128 KiB; the largest.
const smallReply = 4096

var sizes = [...]int{smallReply, outHeader + 16<<10, outHeader + 128<<10, outHeader + maxRead}

// buffers are free reply buffers by size. The garbage collector empties them, so
// an idle worker has none.
type buffers [len(sizes)]sync.Pool

func (b *buffers) get(n int) []byte {
	for i, size := range sizes {
		if n > size {
			continue
		}
		if p, ok := b[i].Get().(*[]byte); ok {
			return *p
		}
		return make([]byte, size)
	}
	return make([]byte, n)
}

func (b *buffers) put(buf []byte) {
	for i, size := range sizes {
		if len(buf) == size {
			b[i].Put(&buf)
		}
	}
}

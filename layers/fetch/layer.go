package fetch

import (
	"cmp"
	"context"
	"slices"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/mapped"
)

// A layer is one that was added.
type layer struct {
	Layer
	m       *mapped.Blob // nil: chunks are stored as they are
	tails   *tails
	key     string
	base    context.Context // ends with Remove
	cancel  context.CancelFunc
	touched atomic.Int64
	fetched atomic.Int64 // stored bytes that came
	down    atomic.Pointer[outage]

	mu      sync.Mutex
	order   *order
	streams [4]stream
	turn    int // of streams, to be replaced next
}

// An outage is remembered for those who ask at once for what somebody has just
// waited long for in vain. The kernel does: of a read-ahead that failed it asks
// for the first page again (filemap_read, Linux 6.18), and waits as long again.
type outage struct {
	until time.Time
	err   error
}

const (
	longWait = 5 * time.Second // of a flight that failed; shorter ones are not remembered
	memory   = time.Second     // for how long
)

// outage is why a reader need not wait for the layer just now; nil: it may.
func (l *layer) outage() error {
	if o := l.down.Load(); o != nil && time.Now().Before(o.until) {
		return o.err
	}
	return nil
}

// An order lists the stored chunks of a layer as they lie in its blob or tar: 24 bytes
// for each chunk and 32 for each object. It is there while chunks are fetched.
type order struct {
	items []item
	sums  []layers.Sum
}

type item struct {
	off   int64 // in the blob, or the tar of a mapped layer
	n     uint32
	obj   uint32 // of sums
	chunk uint32 // of the object
}

// inOrder returns the layer's order and makes it if need be.
func (l *layer) inOrder() *order {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.order != nil {
		return l.order
	}
	o := new(order)
	for sum, ref := range l.Index.Objects() {
		obj := uint32(len(o.sums))
		o.sums = append(o.sums, sum)
		for i, c := range l.Index.Chunks(ref) {
			if c.BlobLen > 0 {
				o.items = append(o.items, item{c.BlobOff, uint32(c.BlobLen), obj, uint32(i)})
			}
		}
	}
	slices.SortStableFunc(o.items, func(a, b item) int { return cmp.Compare(a.off, b.off) })
	l.order = o
	return o
}

// forget gives up the order, when all of the layer is there.
func (l *layer) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.order = nil
	l.tails.drop(l)
}

// after returns the first item that begins at off or later.
func (o *order) after(off int64) int {
	return sort.Search(len(o.items), func(i int) bool { return o.items[i].off >= off })
}

// A stream is a reader that goes through the blob in its order.
type stream struct {
	from, next int64 // of what was last fetched for it, and ahead of it
	window     int64
}

const (
	// near is up to how many stored bytes a request takes what follows along:
	// at 100 Mbit/s that is 5 ms, a quarter of a round trip.
	near = 64 << 10
	// hole is the most that a request reads over.
	hole = 32 << 10
	// maxWindow bounds reading ahead: a third of a second at 100 Mbit/s.
	maxWindow = 4 << 20
)

// sequential notes a miss at [from, to) of the stored bytes and returns how far behind
// it to read ahead: twice as far each time that misses follow one another.
func (l *layer) sequential(from, to int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range l.streams {
		s := &l.streams[i]
		// What was read ahead ends with a whole chunk.
		if s.next > 0 && from >= s.from && from <= s.next+max(hole, to-from) {
			s.window = min(maxWindow, max(2*s.window, 2*(to-from)))
			s.from, s.next = from, to+s.window
			return s.window
		}
	}
	l.streams[l.turn] = stream{from: from, next: to}
	l.turn = (l.turn + 1) % len(l.streams)
	return 0
}

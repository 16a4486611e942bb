package inflate

import (
	"math"

	"github.com/snapfs/snapfs/layers"
)

// Distances, in bytes. What compresses much is cut by its stored bytes, so that
// points and marks stay a small part of them.
const (
	// DefaultSpacing is the most plain bytes between points. With their windows,
	// packed, they take 0.3 to 0.45 % of a layer of programs and sources.
	DefaultSpacing = 3 << 19
	minSpacing     = 128 << 10
	storedPart     = 1.0 / 32 // of the spacing, between points
	memberSpacing  = 32 << 10 // between members that are points: they need no window
	memberStored   = 4 << 10
	markSpacing    = 64 << 10
	markStored     = 4 << 10
	// A point is the cheapest of so many blocks: its window takes a fifth of
	// that of the average block.
	candidates = 8
)

// RecordOptions are those of [Gzip.Record]. The zero value works.
type RecordOptions struct {
	// Spacing is the most plain bytes between two points, where the stream's
	// blocks allow it. 0 is DefaultSpacing.
	Spacing int64
	// Keep, if not nil, is called from Decode with the window of each point that
	// needs one, in their order. The bytes are good until it returns.
	Keep func(point int, window []byte)
}

// A recorder gathers points and marks.
type recorder struct {
	RecordOptions
	points []layers.Point
	marks  []layers.Mark
	next   int64 // plain offset at which to look again
	mark   int64 // plain offset from which on a mark may come
	// A block that may become a point is tracked until nothing can refer to what
	// was before it. Of those since the last point the best is kept.
	cur, best candidate
	tried     int64 // plain offset of the last one that was tracked
	limit     int   // of cur.cost, from which on it is not the best
}

// A candidate is a block that may become a point.
type candidate struct {
	layers.Point
	on     bool
	window *[Window]byte // only what is referred to, else zeros
	first  int           // the first byte of window that is referred to
	cost   int           // lengths of the matches that refer to it
}

// Record lets g gather where decoding can begin and end. It is for a new
// decoder, before the first Decode. It costs two windows, and 24 bytes a point
// and 16 a mark.
func (g *Gzip) Record(o RecordOptions) {
	if o.Spacing == 0 {
		o.Spacing = DefaultSpacing
	}
	o.Spacing = max(o.Spacing, minSpacing)
	g.rec = &recorder{RecordOptions: o, mark: markSpacing}
	g.rec.cur.window, g.rec.best.window = new([Window]byte), new([Window]byte)
}

// Map returns what was recorded, when Decode has returned io.EOF.
func (g *Gzip) Map() *layers.Map {
	r := g.rec
	if n := len(r.points); n > 1 && r.points[n-1].Plain == g.total {
		r.points = r.points[:n-1] // an empty member at the end
	}
	return &layers.Map{Compression: layers.Gzip, Plain: g.total, Stored: g.offset(), Points: r.points, Marks: r.marks}
}

// offset returns how many stored bytes were used; of the last perhaps only some bits.
func (g *Gzip) offset() int64 { return g.before + int64(g.pos) - int64(g.nb>>3) }

// watch looks whether there is something to record at the present place, plain
// bytes from the start. It returns where to look again, and the candidate's place.
func (g *Gzip) watch(plain int64) (next, low int64) {
	r := g.rec
	if plain >= r.next {
		r.pass(plain, g.offset())
	}
	if r.cur.on {
		low = r.cur.Plain
	}
	return r.next, low
}

// early records a match that begins before low, of which a candidate may have to
// know. It is false if the match begins before base.
func (g *Gzip) early(b []byte, n, base, low, distance, length int) bool {
	if distance > n-base {
		return false
	}
	src := n - distance
	g.rec.match(low-src, b[src:min(low, src+length)])
	return true
}

// member is called before a member's header. It needs no window, so it is
// better than any block.
func (r *recorder) member(plain, stored int64) {
	r.cur.on, r.best.on = false, false
	p := layers.Point{Plain: plain, Stored: stored}
	n := len(r.points)
	if n == 0 {
		r.points = append(r.points, p)
		return
	}
	switch last := r.points[n-1]; {
	case plain == last.Plain && last.Window == 0:
		r.points[n-1] = p // the one before is empty
	case n < layers.MaxPoints && plain-last.Plain >= memberSpacing && (stored-last.Stored >= memberStored || plain-last.Plain >= r.Spacing):
		r.points = append(r.points, p)
	}
}

// block is called before a block's header when the member has bytes.
func (r *recorder) block(plain, stored int64, bits uint8) {
	if r.cur.on || len(r.points) >= layers.MaxPoints {
		return
	}
	if r.best.on && plain-r.last().Plain >= r.Spacing {
		r.take()
	}
	if last := r.last(); plain-last.Plain < r.Spacing/2 || stored-last.Stored < int64(storedPart*float64(r.Spacing)) || plain-r.tried < r.Spacing/(2*candidates) {
		return
	}
	clear(r.cur.window[:])
	r.cur = candidate{
		Point: layers.Point{Plain: plain, Stored: stored, Bits: bits},
		on:    true, window: r.cur.window, first: Window - 1,
	}
	r.tried, r.limit = plain, math.MaxInt
	if r.best.on { // fewer points are cheaper, too: what counts is the cost of a plain byte
		last := r.last().Plain
		r.limit = int(float64(r.best.cost) * float64(plain-last) / float64(r.best.Plain-last))
	}
	r.next = min(r.next, plain+Window)
}

func (r *recorder) last() layers.Point { return r.points[len(r.points)-1] }

// match is called with how far before the candidate a match begins, and the
// bytes from there up to the candidate or the match's end.
func (r *recorder) match(before int, p []byte) {
	c := &r.cur
	if c.cost += len(p); c.cost >= r.limit {
		c.on = false
	}
	at := Window - before
	copy(c.window[at:], p)
	c.first = min(c.first, at)
}

// pass is called when plain is next or more, with the number of stored bytes
// that made them.
func (r *recorder) pass(plain, stored int64) {
	if plain >= r.mark {
		r.mark = plain + markSpacing
		if n := len(r.marks); n < layers.MaxMarks && (n == 0 || stored-r.marks[n-1].Stored >= markStored) {
			r.marks = append(r.marks, layers.Mark{Plain: plain, Stored: stored})
		}
	}
	r.next = r.mark
	if !r.cur.on {
		return
	}
	if end := r.cur.Plain + Window; plain < end {
		r.next = min(r.next, end)
		return
	}
	// Nothing refers to what was before the candidate any more, and it costs less than the best.
	r.cur, r.best = r.best, r.cur
	r.cur.on = false
	if r.tried-r.last().Plain >= r.Spacing {
		r.take()
	}
}

// take makes the best candidate a point.
func (r *recorder) take() {
	c := &r.best
	c.on = false
	c.Window = int32(Window - c.first)
	if r.Keep != nil {
		r.Keep(len(r.points), c.window[c.first:])
	}
	r.points = append(r.points, c.Point)
}

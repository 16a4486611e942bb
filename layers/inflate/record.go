package inflate

import (
	"math"

	"github.com/snapfs/snapfs/layers"
)

const (
	// DefaultSpacing is the most plain bytes between points. With their windows,
	// packed, they take 0.3 to 0.45 % of a layer of programs and sources.
	DefaultSpacing = 3 << 19
	minSpacing     = 128 << 10
	storedPart     = 1.0 / 32 // of the spacing, in stored bytes, between points
	// A point is the cheapest of so many blocks, since some refer to much less
	// than others. With eight, windows are a thirtieth smaller, with two a fifth
	// larger; each costs up to half a percent of decoding.
	candidates = 4
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
	m    layers.MapBuilder
	next int64 // plain offset at which to look again
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
	g.rec = &recorder{RecordOptions: o}
	g.rec.cur.window, g.rec.best.window = new([Window]byte), new([Window]byte)
}

// Map returns what was recorded, when Decode has returned io.EOF.
func (g *Gzip) Map() *layers.Map { return g.rec.m.Map(layers.Gzip, g.total, g.offset()) }

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
	r.m.Frame(plain, stored)
}

// block is called before a block's header when the member has bytes.
func (r *recorder) block(plain, stored int64, bits uint8) {
	if r.cur.on || r.m.Full() {
		return
	}
	if r.best.on && plain-r.m.Last().Plain >= r.Spacing {
		r.take()
	}
	last := r.m.Last()
	if plain-last.Plain < r.Spacing/2 || stored-last.Stored < int64(storedPart*float64(r.Spacing)) || plain-r.tried < r.Spacing/(2*candidates) {
		return
	}
	clear(r.cur.window[:])
	r.cur = candidate{
		Point: layers.Point{Plain: plain, Stored: stored, Bits: bits},
		on:    true, window: r.cur.window, first: Window - 1,
	}
	r.tried, r.limit = plain, math.MaxInt
	if r.best.on { // fewer points are cheaper, too: what counts is the cost of a plain byte
		r.limit = int(float64(r.best.cost) * float64(plain-last.Plain) / float64(r.best.Plain-last.Plain))
	}
	r.next = min(r.next, plain+Window)
}

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
	r.m.Mark(plain, stored)
	r.next = r.m.NextMark()
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
	if r.tried-r.m.Last().Plain >= r.Spacing {
		r.take()
	}
}

// take makes the best candidate a point.
func (r *recorder) take() {
	c := &r.best
	c.on = false
	c.Window = int32(Window - c.first)
	i := r.m.Point(c.Point)
	if r.Keep != nil {
		r.Keep(i, c.window[c.first:])
	}
}

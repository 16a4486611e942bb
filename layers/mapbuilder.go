package layers

// Distances in a Map, in bytes.
const (
	// Frames and gzip members need no window: they are points if there are not
	// very many. Small files are often members of their own.
	frameSpacing = 32 << 10
	frameMost    = 1 << 20
	markSpacing  = 64 << 10
	// What compresses much is cut by its stored bytes, so that points and marks
	// stay a small part of them.
	leastStored = 4 << 10
	// With more marks than these, of 16 GiB, every other one is given up.
	maxMarks = 1 << 18
)

// A MapBuilder gathers the points and marks of a Map while a layer is decoded.
// The zero value is ready.
type MapBuilder struct {
	points []Point
	marks  []Mark
	mark   int64 // plain offset at which the last mark was, or was not worth it
	thin   int   // how often marks were given up
}

// Frame says that a gzip member or zstd frame begins. It becomes a point if it
// is worth it, and is the first.
func (b *MapBuilder) Frame(plain, stored int64) {
	p := Point{Plain: plain, Stored: stored}
	n := len(b.points)
	if n == 0 {
		b.points = append(b.points, p)
		return
	}
	switch last := b.points[n-1]; {
	case plain == last.Plain && last.Window == 0:
		b.points[n-1] = p // the one before is empty
	case n < MaxPoints && plain-last.Plain >= frameSpacing && (stored-last.Stored >= leastStored || plain-last.Plain >= frameMost):
		b.points = append(b.points, p)
	}
}

// Point adds a point behind the last, and returns its number.
func (b *MapBuilder) Point(p Point) int {
	b.points = append(b.points, p)
	return len(b.points) - 1
}

// Last returns the last point. There must have been a frame.
func (b *MapBuilder) Last() Point { return b.points[len(b.points)-1] }

// Full says that there can be no more points.
func (b *MapBuilder) Full() bool { return len(b.points) >= MaxPoints }

// Mark says that so many plain bytes were made of so many stored ones.
func (b *MapBuilder) Mark(plain, stored int64) {
	if plain < b.NextMark() {
		return
	}
	b.mark = plain
	n := len(b.marks)
	if n > 0 && stored-b.marks[n-1].Stored < leastStored {
		return
	}
	if n == maxMarks {
		n /= 2
		for i := range n {
			b.marks[i] = b.marks[2*i+1]
		}
		b.marks = b.marks[:n]
		b.thin++
	}
	b.marks = append(b.marks, Mark{Plain: plain, Stored: stored})
}

// NextMark returns from how many plain bytes on a mark may be worth it.
func (b *MapBuilder) NextMark() int64 { return b.mark + markSpacing<<b.thin }

// Map returns the map of a layer that was decoded to its end. The builder is not
// to be used any more.
func (b *MapBuilder) Map(c Compression, plain, stored int64) *Map {
	if len(b.points) == 0 {
		b.points = make([]Point, 1)
	}
	if n := len(b.points); n > 1 && b.points[n-1].Plain == plain {
		b.points = b.points[:n-1] // an empty frame at the end
	}
	return &Map{Compression: c, Plain: plain, Stored: stored, Points: b.points, Marks: b.marks}
}

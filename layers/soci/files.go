package soci

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
)

// Objects is what serves spans, and all that is not a file of a SOCI layer.
// *fetch.Fetcher is one, with Layer.Spans added to it. What it returns is verified.
type Objects interface {
	Size(sum layers.Sum) (int64, bool)
	ReadAt(ctx context.Context, sum layers.Sum, p []byte, off int64) (int, error)
}

// DefaultCache is how many decoded bytes a Files keeps: four usual spans.
const DefaultCache = 16 << 20

// Files serves the files of SOCI layers by their aliases, and all other objects
// from what it stands in front of. Spans are decoded whole, and the last ones are
// kept in memory, since a reader wants all of one, piece by piece.
type Files struct {
	objects Objects
	limit   int64
	base    context.Context // ends with Close: the lifetime of decoding
	cancel  context.CancelFunc
	wg      sync.WaitGroup // spans being decoded

	mu     sync.RWMutex
	closed bool
	layers map[string]*served
	spans  []*decoded // the last used first
	kept   int64      // bytes of those that are done
}

// A served layer is one that was added. It is a key of decoded spans.
type served struct {
	Layer
	real []layers.Sum // of each place; nil until it is settled
}

// A decoded span, or one that is being decoded.
type decoded struct {
	l     *served
	i     int
	done  chan struct{}
	plain []byte // when done
	err   error
}

// NewFiles returns a Files without layers. It keeps up to cache decoded bytes; 0
// is DefaultCache. Close ends it.
func NewFiles(objects Objects, cache int64) *Files {
	if cache == 0 {
		cache = DefaultCache
	}
	f := &Files{objects: objects, limit: cache, layers: make(map[string]*served)}
	f.base, f.cancel = context.WithCancel(context.Background())
	return f
}

// Close ends all reads of files of layers and returns when none is decoded any more.
func (f *Files) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.cancel()
	f.wg.Wait()
}

// Add makes the files of a layer available, in place of an earlier one with the
// same key. Its spans have to be among the objects as long. Neither Index nor
// Spans of l are kept.
func (f *Files) Add(key string, l *Layer) {
	f.Remove(key)
	s := &served{Layer: *l}
	s.Index, s.Spans = nil, nil
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layers[key] = s
}

// Remove forgets a layer. Reads under way end as they would have.
func (f *Files) Remove(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.layers[key]
	delete(f.layers, key)
	f.drop(func(d *decoded) bool { return d.l == l })
}

// Trim gives back the memory of decoded spans.
func (f *Files) Trim() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.drop(func(*decoded) bool { return true })
}

// drop forgets decoded spans, with f.mu held.
func (f *Files) drop(which func(*decoded) bool) {
	f.spans = slices.DeleteFunc(f.spans, func(d *decoded) bool {
		if !which(d) {
			return false
		}
		f.kept -= int64(len(d.plain))
		return true
	})
}

// find returns the layer that has a file, and which of its places.
func (f *Files) find(alias layers.Sum) (*served, int) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, l := range f.layers {
		if i, ok := l.find(alias); ok {
			return l, i
		}
	}
	return nil, 0
}

// Size returns the size of a file or another object, and whether there is such.
func (f *Files) Size(sum layers.Sum) (int64, bool) {
	if l, i := f.find(sum); l != nil {
		return l.places[i].size, true
	}
	return f.objects.Size(sum)
}

// ReadAt reads from a file or another object like [io.ReaderAt]. It returns when ctx ends.
func (f *Files) ReadAt(ctx context.Context, sum layers.Sum, p []byte, off int64) (int, error) {
	l, i := f.find(sum)
	switch {
	case l == nil:
		return f.objects.ReadAt(ctx, sum, p, off)
	case l.real != nil:
		return f.objects.ReadAt(ctx, l.real[i], p, off)
	}
	n, err := f.readSpans(ctx, l, &l.places[i], p, off)
	if err != nil && err != io.EOF {
		if now, _ := f.find(sum); now != nil && now != l && now.real != nil {
			return f.ReadAt(ctx, sum, p, off) // it was settled meanwhile, and its spans may be gone
		}
	}
	return n, err
}

func (f *Files) readSpans(ctx context.Context, l *served, at *place, p []byte, off int64) (int, error) {
	if off < 0 || off >= at.size {
		return 0, io.EOF
	}
	var eof error
	if int64(len(p)) > at.size-off {
		p, eof = p[:at.size-off], io.EOF
	}
	for n := 0; n < len(p); {
		m, err := f.read(ctx, l, p[n:], at.off+off+int64(n))
		n += m
		if err != nil {
			return n, fmt.Errorf("file of a soci layer at %d of its tar: %w", at.off, err)
		}
	}
	return len(p), eof
}

// read reads bytes of a layer's tar from the span that has the first of them. No
// byte is decoded from another span than its own: see the package comment.
func (f *Files) read(ctx context.Context, l *served, p []byte, off int64) (int, error) {
	i := l.span(off)
	s := &l.spans[i]
	p = p[:min(int64(len(p)), s.end-off)]
	if l.Map.Compression == layers.None {
		if err := f.stored(ctx, s, p, off-s.start); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	plain, err := f.plain(ctx, l, i)
	if err != nil {
		return 0, err
	}
	return copy(p, plain[off-s.start:]), nil
}

// stored fills p with the stored bytes of a span.
func (f *Files) stored(ctx context.Context, s *span, p []byte, off int64) error {
	n, err := f.objects.ReadAt(ctx, s.sum, p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = fmt.Errorf("span of %d bytes: %w", n, io.ErrUnexpectedEOF)
	}
	return err
}

// plain returns what a span becomes. Who asks for one that is being decoded waits
// for it; the work goes on when its first reader leaves.
func (f *Files) plain(ctx context.Context, l *served, i int) ([]byte, error) {
	d := f.want(l, i)
	if d == nil {
		return nil, context.Canceled
	}
	select {
	case <-d.done:
		return d.plain, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *Files) want(l *served, i int) *decoded {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := slices.IndexFunc(f.spans, func(d *decoded) bool { return d.l == l && d.i == i })
	if at >= 0 {
		d := f.spans[at]
		copy(f.spans[1:at+1], f.spans[:at])
		f.spans[0] = d
		return d
	}
	if f.closed {
		return nil
	}
	d := &decoded{l: l, i: i, done: make(chan struct{})}
	f.spans = slices.Insert(f.spans, 0, d)
	f.wg.Go(func() { f.decode(d) })
	return d
}

// decode decodes a span and keeps it, in place of those that were not used for longest.
func (f *Files) decode(d *decoded) {
	plain, err := f.inflate(d.l, d.i)
	f.mu.Lock()
	defer f.mu.Unlock()
	defer close(d.done)
	d.plain, d.err = plain, err
	if !slices.Contains(f.spans, d) {
		return // dropped meanwhile
	}
	f.kept += int64(len(plain))
	if err != nil {
		f.drop(func(x *decoded) bool { return x == d })
	}
	for i := len(f.spans) - 1; i >= 0 && f.kept > f.limit; i-- {
		if last := f.spans[i]; len(last.plain) > 0 {
			f.drop(func(x *decoded) bool { return x == last })
		}
	}
}

// header begins a gzip member, of which the first span is the rest: the layer's
// own header is not vouched for.
var header = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}

func (f *Files) inflate(l *served, i int) ([]byte, error) {
	s := &l.spans[i]
	stored := make([]byte, s.to-s.from)
	if err := f.stored(f.base, s, stored, 0); err != nil {
		return nil, err
	}
	window, err := l.Window(f.base, i)
	if err != nil {
		return nil, err
	}
	src := source{stored}
	if i == 0 {
		src = source{header, stored}
	}
	b := make([]byte, len(window)+int(s.end-s.start))
	g := inflate.Resume(&src, l.Map.Points[i])
	for n := copy(b, window); n < len(b); {
		// A span ends where a block does, so with the last byte comes the error
		// that there is no next block.
		if n, err = g.Decode(b, n); err != nil && n < len(b) {
			return nil, bad(i, err)
		}
	}
	return b[len(window):], nil
}

// bad is the error of a span that has the right digest and does not decode.
func bad(i int, err error) error { return fmt.Errorf("%w: span %d: %w", ErrLied, i, err) }

// A source gives one piece after another.
type source [][]byte

func (s *source) Next() ([]byte, error) {
	if len(*s) == 0 {
		return nil, io.EOF
	}
	p := (*s)[0]
	*s = (*s)[1:]
	return p, nil
}

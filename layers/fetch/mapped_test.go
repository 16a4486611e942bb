package fetch

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
)

// A window store that counts, and may fail.
type windowStore struct {
	m    *layers.Map
	w    map[int][]byte
	hook func(ctx context.Context, i int) error
	gets atomic.Int64
}

func (w *windowStore) Window(ctx context.Context, i int) ([]byte, error) {
	w.gets.Add(1)
	if w.hook != nil {
		if err := w.hook(ctx, i); err != nil {
			return nil, err
		}
	}
	return w.w[i], nil
}

// A mappedFixture is a layer without a table of contents.
type mappedFixture struct {
	*fixture
	m *layers.Map
	w *windowStore
}

func (fx *mappedFixture) layer() Layer {
	return Layer{Blob: fx.fixture, Index: fx.index, Map: fx.m, Windows: fx.w}
}

type sliceSource struct{ p []byte }

func (s *sliceSource) Next() ([]byte, error) {
	p := s.p
	if s.p = nil; len(p) == 0 {
		return nil, io.EOF
	}
	return p, nil
}

// pointSpacing makes many points in small layers.
const pointSpacing = 256 << 10

// buildMapped stores files one after another, with something between them that
// belongs to none, as one compressed stream.
func buildMapped(t testing.TB, files [][]byte, c layers.Compression) *mappedFixture {
	t.Helper()
	usual := &files[0] == &mappedFiles()[0] && len(files) == len(mappedFiles())
	if usual {
		builtMaps.Lock()
		defer builtMaps.Unlock()
		if fx := builtMaps.m[c]; fx != nil {
			fx = fx.clone()
			fx.write(t)
			return fx
		}
	}
	fx := &mappedFixture{fixture: &fixture{blob: new(blob)}}
	var tar []byte
	for i, p := range files {
		tar = append(tar, fmt.Appendf(nil, "header %500d", i)...)
		e := fx.entry(p)
		for off := 0; off < len(p); off += layers.ChunkSize {
			ck := p[off:min(off+layers.ChunkSize, len(p))]
			e.Chunks = append(e.Chunks, layers.Chunk{Sum: layers.SumOf(ck), Off: int64(off), Size: int64(len(ck)),
				BlobOff: int64(len(tar) + off), BlobLen: int64(len(ck))})
		}
		fx.entries = append(fx.entries, e)
		tar = append(tar, p...)
	}
	fx.compress(t, tar, c)
	if usual {
		builtMaps.m[c] = fx.clone()
	}
	fx.write(t)
	return fx
}

// builtMaps are layers of mappedFiles: to compress them again and again takes
// most of the tests' time.
var builtMaps = struct {
	sync.Mutex
	m map[layers.Compression]*mappedFixture
}{m: make(map[layers.Compression]*mappedFixture)}

// clone returns a fixture that may be changed, but for the bytes of its blob.
func (fx *mappedFixture) clone() *mappedFixture {
	c := &mappedFixture{fixture: &fixture{blob: &blob{data: fx.data}, entries: slices.Clone(fx.entries)}}
	for i := range c.entries {
		c.entries[i].Chunks = slices.Clone(c.entries[i].Chunks)
	}
	m := *fx.m
	m.Points, m.Marks = slices.Clone(m.Points), slices.Clone(m.Marks)
	c.m = &m
	if fx.w != nil {
		c.w = &windowStore{m: &m, w: maps.Clone(fx.w.w)}
	}
	return c
}

func (fx *mappedFixture) compress(t testing.TB, tar []byte, c layers.Compression) {
	t.Helper()
	switch c {
	case layers.Gzip:
		var out bytes.Buffer
		z := gzip.NewWriter(&out)
		z.Write(tar)
		z.Close()
		fx.data = out.Bytes()
		fx.m, fx.w = recordMap(t, fx.data)
	case layers.Zstd:
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		fx.m = &layers.Map{Compression: layers.Zstd, Plain: int64(len(tar))}
		for off := 0; off < len(tar); off += pointSpacing {
			fx.m.Points = append(fx.m.Points, layers.Point{Plain: int64(off), Stored: int64(len(fx.data))})
			fx.data = z.EncodeAll(tar[off:min(off+pointSpacing, len(tar))], fx.data)
		}
		fx.m.Stored = int64(len(fx.data))
	default:
		fx.data = tar
		fx.m = &layers.Map{Plain: int64(len(tar)), Stored: int64(len(tar)), Points: []layers.Point{{}}}
	}
	if err := fx.m.Check(); err != nil {
		t.Fatal(err)
	}
}

func recordMap(t testing.TB, stored []byte) (*layers.Map, *windowStore) {
	t.Helper()
	w := &windowStore{w: make(map[int][]byte)}
	g := inflate.NewGzip(&sliceSource{stored})
	g.Record(inflate.RecordOptions{Spacing: pointSpacing, Keep: func(i int, p []byte) { w.w[i] = bytes.Clone(p) }})
	b := make([]byte, 1<<20)
	for n := 0; ; {
		m, err := g.Decode(b, n)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n = copy(b, b[m-inflate.Window:m])
	}
	w.m = g.Map()
	return w.m, w
}

// half is n bytes that compress to about half, by matches.
func half(n int) []byte {
	b := random(n)
	for i := 100; i+100 <= n; i += 100 {
		if b[i]&1 == 0 {
			copy(b[i:i+100], b[i-rand.IntN(min(i, 20_000)-99)-100:])
		}
	}
	return b
}

// mappedFiles are made once: whoever changes them clones them.
var mappedFiles = sync.OnceValue(func() [][]byte {
	files := [][]byte{half(100), half(4096), half(70_000), half(1 << 20), half(5), half(300_001)}
	for i := range 30 {
		files = append(files, half(1000+i*500))
	}
	return append(files, half(2<<20), bytes.Repeat([]byte("a"), 500_000), half(10_000))
})

func TestMappedReadAt(t *testing.T) {
	for _, c := range []layers.Compression{layers.Gzip, layers.Zstd, layers.None} {
		for _, n := range []int{1 << 21, 128 << 10, 10_000} {
			t.Run(fmt.Sprint(c, n), func(t *testing.T) {
				f := newFetcher(t, Options{})
				files := mappedFiles()
				fx := buildMapped(t, files, c)
				f.Add("a", fx.layer())
				for _, i := range rand.Perm(len(files)) {
					check(t, f, files[i], n)
				}
				quiet(f)
				before := fx.reads.Load()
				for _, p := range files {
					check(t, f, p, n)
				}
				if n := fx.reads.Load() - before; n != 0 {
					t.Errorf("%d requests for what is there", n)
				}
				if got := f.stats.Fetched.Load(); got != fx.bytes.Load() {
					t.Errorf("%d bytes counted, %d read", got, fx.bytes.Load())
				}
			})
		}
	}
}

// quiet waits until nothing is under way.
func quiet(f *Fetcher) { f.wg.Wait() }

// A miss costs one request: from the point to behind the chunk. All that it
// brings is kept, and what follows begins where it ended.
func TestMappedMiss(t *testing.T) {
	f := newFetcher(t, Options{})
	files := [][]byte{half(1 << 20)}
	for range 40 {
		files = append(files, half(20_000))
	}
	fx := buildMapped(t, files, layers.Gzip)
	f.Add("a", fx.layer())
	wanted := 30
	ck := fx.entries[wanted].Chunks[0]
	first, from, to := fx.m.Locate(ck.BlobOff, ck.BlobLen)
	fx.hook = func(_ context.Context, off, n int64) error {
		if off != from || off+n < to || off+n > max(to, from+near) {
			t.Errorf("request for [%d, %d), want [%d, %d)", off, off+n, from, to)
		}
		return nil
	}
	check(t, f, files[wanted], 1<<20)
	quiet(f)
	if n := fx.reads.Load(); n != 1 {
		t.Fatalf("%d requests, want 1", n)
	}
	if n := fx.w.gets.Load(); n > 1 {
		t.Errorf("%d windows for one miss", n)
	}
	fx.hook = nil
	for i, e := range fx.entries {
		c := e.Chunks[0]
		if len(e.Chunks) == 1 && c.BlobOff >= fx.m.Points[first].Plain && c.BlobOff < ck.BlobOff && !f.store.Has(e.Object) {
			t.Errorf("file %d was decoded and not kept", i)
		}
	}
	// The next file that is missing.
	next := wanted
	for f.store.Has(fx.entries[next].Object) {
		next++
	}
	end := fx.bytes.Load()
	fx.hook = func(_ context.Context, off, _ int64) error {
		if off < from+end {
			t.Errorf("request from %d, want %d, where the one before ended", off, from+end)
		}
		return nil
	}
	check(t, f, files[next], 1<<20)
}

// Whoever reads a file from front to back costs no stored byte twice.
func TestMappedSequential(t *testing.T) {
	f := newFetcher(t, Options{})
	data := half(8 << 20)
	fx := buildMapped(t, [][]byte{data}, layers.Gzip)
	f.Add("a", fx.layer())
	p := make([]byte, layers.ChunkSize)
	for off := int64(0); off < int64(len(data)); off += layers.ChunkSize {
		if _, err := f.ReadAt(t.Context(), layers.SumOf(data), p, off); err != nil {
			t.Fatal(err)
		}
		quiet(f) // a reader that overtakes may begin at a point what is about to be read ahead
	}
	if got := fx.bytes.Load(); got > fx.Size()+fx.reads.Load() { // a byte may belong to two
		t.Errorf("%d bytes fetched of a layer of %d", got, fx.Size())
	}
	if got, chunks := fx.reads.Load(), int64(len(data)/layers.ChunkSize); got > chunks/2 {
		t.Errorf("%d requests for %d chunks", got, chunks)
	}
}

// Every small file in any order: a span is paid for about once. What is paid
// twice is around files that reach over a point, and with points so near one
// another every sixth does.
func TestMappedScattered(t *testing.T) {
	f := newFetcher(t, Options{})
	var files [][]byte
	for range 400 {
		files = append(files, half(20_000))
	}
	fx := buildMapped(t, files, layers.Gzip)
	f.Add("a", fx.layer())
	for _, i := range rand.Perm(len(files)) {
		check(t, f, files[i], 1<<20)
	}
	quiet(f)
	if got := fx.bytes.Load(); got > fx.Size()*5/4 {
		t.Errorf("%d bytes fetched of a layer of %d", got, fx.Size())
	}
}

// hold makes a fixture's next read wait.
func (fx *mappedFixture) hold() (begun <-chan int64, goOn chan error) {
	b, g := make(chan int64, 9), make(chan error, 9)
	fx.hook = func(ctx context.Context, off, _ int64) error {
		b <- off
		select {
		case err := <-g:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return b, g
}

// twoInSpan returns two files whose nearest point is the same, the second far
// enough behind that it does not come along with the first.
func twoInSpan(t *testing.T, fx *mappedFixture) (a, b int) {
	t.Helper()
	for a := range fx.entries {
		pa, _, ta := fx.m.Locate(fx.entries[a].Chunks[0].BlobOff, fx.entries[a].Size)
		for b := a + 1; b < len(fx.entries); b++ {
			pb, _, tb := fx.m.Locate(fx.entries[b].Chunks[0].BlobOff, fx.entries[b].Size)
			if pa == pb && pa > 0 && tb > max(ta, fx.m.Points[pa].Stored+near)+1000 {
				return a, b
			}
		}
	}
	t.Fatal("no two such files")
	return 0, 0
}

// Two misses in one span at once: the second takes only what the first does not.
// If the first comes to nothing the second begins at the point.
func TestMappedChain(t *testing.T) {
	for _, fails := range []bool{false, true} {
		t.Run(fmt.Sprint("fails ", fails), func(t *testing.T) {
			f := newFetcher(t, Options{})
			var files [][]byte
			for range 100 {
				files = append(files, half(20_000))
			}
			fx := buildMapped(t, files, layers.Gzip)
			f.Add("a", fx.layer())
			a, b := twoInSpan(t, fx)
			begun, goOn := fx.hold()
			var wg sync.WaitGroup
			wg.Go(func() { check(t, f, files[a], 1<<20) })
			first := <-begun
			wg.Go(func() { check(t, f, files[b], 1<<20) })
			if second := <-begun; second <= first {
				t.Errorf("the second request begins at %d, the first at %d", second, first)
			}
			if fails {
				goOn <- errors.New("reset")
				goOn <- errors.New("reset")
			}
			close(goOn)
			wg.Wait()
			quiet(f)
			if got := fx.bytes.Load(); !fails && got > fx.Size()-fx.m.Points[1].Stored {
				t.Errorf("%d bytes fetched, of a layer of %d", got, fx.Size())
			}
		})
	}
}

func TestMappedLies(t *testing.T) {
	files := mappedFiles()
	big := 3 // of 8 chunks
	for _, c := range []struct {
		name string
		make func(fx *mappedFixture)
	}{
		{"window", func(fx *mappedFixture) {
			for i := range fx.w.w {
				fx.w.w[i] = random(len(fx.w.w[i]))
			}
		}},
		{"length of window", func(fx *mappedFixture) {
			for i := range fx.w.w {
				fx.w.w[i] = fx.w.w[i][1:]
			}
		}},
		{"bits", func(fx *mappedFixture) {
			for i := range fx.m.Points {
				if fx.m.Points[i].Window > 0 {
					fx.m.Points[i].Bits ^= 1
				}
			}
		}},
		{"place", func(fx *mappedFixture) {
			for i := range fx.m.Points[1:] {
				fx.m.Points[i+1].Stored--
			}
		}},
		{"plain place", func(fx *mappedFixture) {
			for i := range fx.m.Points[1:] {
				fx.m.Points[i+1].Plain++
			}
		}},
		{"marks", func(fx *mappedFixture) {
			for i := range fx.m.Marks {
				fx.m.Marks[i].Stored = max(0, fx.m.Marks[i].Stored-60_000)
			}
		}},
		{"stored bytes", func(fx *mappedFixture) { fx.data = random(len(fx.data)) }},
		{"short blob", func(fx *mappedFixture) { fx.data = fx.data[:10] }},
		{"sums", func(fx *mappedFixture) {
			for i := range fx.entries[big].Chunks {
				fx.entries[big].Chunks[i].Sum[0] ^= 1
			}
			fx.write(t)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log watchLog
			f := newFetcher(t, Options{Watch: log.watch()})
			fx := buildMapped(t, files, layers.Gzip)
			c.make(fx)
			if err := fx.m.Check(); err != nil {
				t.Fatal(err)
			}
			f.Add("liar", fx.layer())
			p := make([]byte, layers.ChunkSize)
			failed := 0
			for i, data := range slices.Backward(files) { // so that each begins at a point
				if len(data) > 1<<20 || i < big {
					continue
				}
				for off := int64(len(data)-1) / layers.ChunkSize * layers.ChunkSize; off >= 0; off -= layers.ChunkSize {
					n, err := f.ReadAt(t.Context(), layers.SumOf(data), p, off)
					if err != nil && err != io.EOF {
						failed++
					} else if !bytes.Equal(p[:n], data[off:][:n]) {
						t.Fatal("wrong bytes")
					}
					quiet(f)
				}
			}
			// With a wrong window a reader may find right bytes behind the wrong ones.
			if failed == 0 && c.name != "window" {
				t.Error("no read failed")
			}
			log.mu.Lock()
			if len(log.lies) == 0 {
				t.Error("nobody was told of the lie")
			}
			log.mu.Unlock()
			good := buildMapped(t, files, layers.Gzip)
			f.Add("good", good.layer())
			check(t, f, files[big], 100_000)
		})
	}
}

// The registry of the index may fail, too.
func TestMappedWindowFails(t *testing.T) {
	f := newFetcher(t, Options{})
	files := mappedFiles()
	fx := buildMapped(t, files, layers.Gzip)
	want := errors.New("503")
	var tries atomic.Int64
	fx.w.hook = func(context.Context, int) error {
		if tries.Add(1) == 1 {
			return want
		}
		return nil
	}
	f.Add("a", fx.layer())
	check(t, f, files[len(files)-1], 1<<20)
	fx.w.hook = func(context.Context, int) error { return want }
	off := int64(1 << 20)
	_, err := f.ReadAt(t.Context(), layers.SumOf(files[len(files)-3]), make([]byte, 100), off)
	if !errors.Is(err, want) || isBad(err) || f.stats.Lies.Load() != 0 {
		t.Errorf("ReadAt = %v, want %v", err, want)
	}
}

func TestMappedUnaffordable(t *testing.T) {
	f := newFetcher(t, Options{})
	files := mappedFiles()
	fx := buildMapped(t, files, layers.Gzip)
	fx.entries[2].Chunks[0].BlobOff = fx.m.Plain - 10 // beyond the end
	fx.entries[3].Chunks[1].BlobLen = 10
	fx.write(t)
	f.Add("a", fx.layer())
	for _, i := range []int{2, 3} {
		if _, err := f.ReadAt(t.Context(), layers.SumOf(files[i]), make([]byte, 10), 0); err == nil {
			t.Errorf("ReadAt of malformed chunks of file %d = nil", i)
		}
	}
	check(t, f, files[5], 1<<20)
}

func TestMappedOverlap(t *testing.T) {
	f := newFetcher(t, Options{})
	data := half(50_000)
	fx := buildMapped(t, [][]byte{data, data[:20_000]}, layers.Gzip)
	fx.entries[1].Chunks[0].BlobOff = fx.entries[0].Chunks[0].BlobOff
	fx.write(t)
	f.Add("a", fx.layer())
	check(t, f, data, 1<<20)
	check(t, f, data[:20_000], 1<<20)
}

func TestMappedComplete(t *testing.T) {
	for _, c := range []layers.Compression{layers.Gzip, layers.Zstd, layers.None} {
		f := newFetcher(t, Options{})
		files := mappedFiles()
		fx := buildMapped(t, files, c)
		f.Add("a", fx.layer())
		if err := f.Complete(t.Context(), []string{"a"}, nil); err != nil {
			t.Fatal(err)
		}
		for _, p := range files {
			if !f.store.Has(layers.SumOf(p)) {
				t.Fatal("an object is missing")
			}
		}
		if c != layers.Zstd && fx.bytes.Load() > fx.Size() {
			t.Errorf("%d bytes fetched of %d", fx.bytes.Load(), fx.Size())
		}
	}
}

// Many readers at once, with a network that fails now and then.
func TestMappedStorm(t *testing.T) {
	f := newFetcher(t, Options{})
	files := mappedFiles()
	for range 200 {
		files = append(slices.Clip(files), half(30_000))
	}
	fx := buildMapped(t, files, layers.Gzip)
	var n atomic.Int64
	fx.hook = func(context.Context, int64, int64) error {
		if n.Add(1)%20 == 0 {
			return errors.New("reset")
		}
		return nil
	}
	f.Add("a", fx.layer())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for _, i := range rand.Perm(len(files)) {
				p := make([]byte, 1<<20)
				for off := 0; off < len(files[i]); {
					m, err := f.ReadAt(t.Context(), layers.SumOf(files[i]), p, int64(off))
					if err != nil && err != io.EOF {
						off += 1 << 20 // failed twice
						continue
					}
					if !bytes.Equal(p[:m], files[i][off:][:m]) {
						t.Errorf("file %d at %d is wrong", i, off)
					}
					off += m
				}
			}
		})
	}
	wg.Wait()
	if f.stats.Lies.Load() != 0 {
		t.Errorf("%d lies", f.stats.Lies.Load())
	}
}

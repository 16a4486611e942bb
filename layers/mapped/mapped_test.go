package mapped

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
)

// memory is a blob in memory that counts what is read.
type memory struct {
	p    []byte
	read int
	fail error
}

func (b *memory) Size() int64 { return int64(len(b.p)) }

func (b *memory) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if err := errors.Join(ctx.Err(), b.fail); err != nil {
		return 0, err
	}
	n := copy(p, b.p[min(off, int64(len(b.p))):])
	b.read += n
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

type windows [][]byte

func (w windows) Window(_ context.Context, i int) ([]byte, error) { return w[i], nil }

// text compresses about as well as a layer does.
func text(n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 2000)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(9))
		for j := range words[i] {
			words[i][j] = byte(r.IntN(256))
		}
	}
	var b []byte
	for len(b) < n {
		b = append(b, words[int(r.ExpFloat64()*300)%len(words)]...)
	}
	return b[:n]
}

type once struct{ p []byte }

func (s *once) Next() ([]byte, error) {
	if len(s.p) == 0 {
		return nil, io.EOF
	}
	p := s.p
	s.p = nil
	return p, nil
}

// record maps a gzip stream.
func record(t testing.TB, stored []byte) (*layers.Map, windows) {
	t.Helper()
	var w windows
	g := inflate.NewGzip(&once{stored})
	g.Record(inflate.RecordOptions{Spacing: 128 << 10, Keep: func(i int, p []byte) {
		for len(w) < i {
			w = append(w, nil)
		}
		w = append(w, bytes.Clone(p))
	}})
	b := make([]byte, 1<<20)
	n := 0
	for {
		m, err := g.Decode(b, n)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n = copy(b, b[m-inflate.Window:m])
	}
	m := g.Map()
	for len(w) < len(m.Points) {
		w = append(w, nil)
	}
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return m, w
}

func gzipped(t testing.TB, level int, parts ...[]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	for _, p := range parts {
		z, err := gzip.NewWriterLevel(&out, level)
		if err != nil {
			t.Fatal(err)
		}
		z.Write(p)
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

// frames compresses parts as a zstd frame each.
func frames(t testing.TB, parts ...[]byte) ([]byte, *layers.Map) {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	m := &layers.Map{Compression: layers.Zstd}
	for _, p := range parts {
		m.Points = append(m.Points, layers.Point{Plain: m.Plain, Stored: int64(len(out))})
		out = z.EncodeAll(p, out)
		m.Plain += int64(len(p))
	}
	m.Stored = int64(len(out))
	if err := m.Check(); err != nil {
		t.Fatal(err)
	}
	return out, m
}

type fixture struct {
	name  string
	plain []byte
	blob  *memory
	*Blob
}

func fixtures(t testing.TB) []fixture {
	var fx []fixture
	add := func(name string, plain, stored []byte, m *layers.Map, w layers.Windows) {
		b := &memory{p: stored}
		fx = append(fx, fixture{name, plain, b, New(b, m, w)})
	}
	p := text(2<<20, 1)
	for _, level := range []int{0, 1, 6, 9} {
		z := gzipped(t, level, p)
		m, w := record(t, z)
		add(fmt.Sprint("gzip ", level), p, z, m, w)
	}
	parts := [][]byte{p[:1<<20], p[1<<20 : 1<<20+5], nil, p[1<<20+5 : 3<<19], p[3<<19:]}
	z := gzipped(t, 6, parts...)
	m, w := record(t, z)
	add("members", p, z, m, w)
	s, m := frames(t, p[:700_000], p[700_000:1_500_000], p[1_500_000:])
	add("zstd", p, s, m, nil)
	add("plain", p, p, &layers.Map{Plain: int64(len(p)), Stored: int64(len(p)), Points: []layers.Point{{}}}, nil)
	return fx
}

func TestReadAt(t *testing.T) {
	for _, fx := range fixtures(t) {
		t.Run(fx.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 4))
			size := int64(len(fx.plain))
			if fx.Size() != size {
				t.Fatalf("Size = %d, want %d", fx.Size(), size)
			}
			for i := range 200 {
				off, n := r.Int64N(size), 1+r.Int64N(300_000)
				if i == 0 {
					off, n = 0, size
				}
				p := make([]byte, n)
				got, err := fx.ReadAt(t.Context(), p, off)
				want := fx.plain[off:min(size, off+n)]
				if err != nil && (err != io.EOF || got == len(p)) || !bytes.Equal(p[:got], want) {
					t.Fatalf("ReadAt(%d bytes at %d) = %d, %v, want %d", n, off, got, err, len(want))
				}
			}
			if n, err := fx.ReadAt(t.Context(), make([]byte, 1), size); n != 0 || err != io.EOF {
				t.Errorf("ReadAt at the end = %d, %v, want EOF", n, err)
			}
			if _, err := fx.ReadAt(t.Context(), make([]byte, 1), -1); err == nil {
				t.Error("ReadAt(-1) = nil")
			}
		})
	}
}

// A read takes the stored bytes from the point to the mark, and no others.
func TestReadAtCost(t *testing.T) {
	for _, fx := range fixtures(t) {
		r := rand.New(rand.NewPCG(5, 6))
		for range 50 {
			off, n := r.Int64N(int64(len(fx.plain))-70_000), 1+r.Int64N(70_000)
			fx.blob.read = 0
			if _, err := fx.ReadAt(t.Context(), make([]byte, n), off); err != nil {
				t.Fatal(err)
			}
			_, from, to := fx.Map().Locate(off, n)
			if fx.blob.read != int(to-from) {
				t.Errorf("%s: %d bytes at %d took %d stored ones, want %d", fx.name, n, off, fx.blob.read, to-from)
			}
			if !fx.Affordable(off, n) {
				t.Errorf("%s: %d bytes at %d are not affordable", fx.name, n, off)
			}
		}
	}
}

// A cursor goes on where it is, without a stored byte twice.
func TestCursor(t *testing.T) {
	for _, fx := range fixtures(t) {
		if fx.Map().Compression != layers.Gzip {
			continue
		}
		t.Run(fx.name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 8))
			c := fx.At(0, nil)
			given := int64(0)
			for c.Plain() < int64(len(fx.plain)) && !c.Spent() {
				var cuts []Cut
				off := c.Plain()
				for range 1 + r.IntN(4) {
					off += r.Int64N(50_000)
					n := 1 + r.Int64N(150_000)
					if off+n > int64(len(fx.plain)) {
						break
					}
					cuts = append(cuts, Cut{off, n})
					off += n
				}
				if len(cuts) == 0 {
					break
				}
				end := cuts[len(cuts)-1].Off + cuts[len(cuts)-1].N
				stored := bytes.Clone(fx.blob.p[c.Stored():fx.Map().StoredEnd(end)])
				if c.Stored() != given {
					t.Fatalf("Stored = %d, want %d", c.Stored(), given)
				}
				given += int64(len(stored))
				n := 0
				err := c.Decode(stored, cuts, func(i int, p []byte) error {
					if n++; i != n-1 || !bytes.Equal(p, fx.plain[cuts[i].Off:][:cuts[i].N]) {
						t.Errorf("cut %d %+v is wrong", i, cuts[i])
					}
					return nil
				})
				clear(stored) // nobody may use it now
				if err != nil || n != len(cuts) {
					t.Fatalf("Decode = %d of %d cuts, %v", n, len(cuts), err)
				}
				if c.Plain() != end {
					t.Fatalf("Plain = %d, want %d", c.Plain(), end)
				}
			}
			if c.Plain() < int64(len(fx.plain))/2 {
				t.Errorf("cannot go on at %d", c.Plain())
			}
		})
	}
}

func TestPutFails(t *testing.T) {
	fx := fixtures(t)[2]
	want := errors.New("disk full")
	c := fx.At(0, nil)
	err := c.Decode(fx.blob.p, []Cut{{10, 20}, {50, 60}}, func(int, []byte) error { return want })
	if err != want || !c.Spent() {
		t.Errorf("Decode = %v, spent %v, want %v", err, c.Spent(), want)
	}
}

func TestBad(t *testing.T) {
	ctx := t.Context()
	p := text(1<<20, 2)
	z := gzipped(t, 6, p)
	read := func(b *Blob, off int64) error {
		q := make([]byte, 1000)
		_, err := b.ReadAt(ctx, q, off)
		if err == nil && bytes.Equal(q, p[off:off+1000]) {
			t.Error("it read the right bytes")
		}
		return err
	}
	m, w := record(t, z)
	last := len(m.Points) - 1
	at := m.Points[last].Plain + 70_000
	for _, c := range []struct {
		name string
		want error // nil: any error, or wrong bytes
		make func(m *layers.Map, w windows, b *memory)
	}{
		{"short blob", layers.ErrBadLayer, func(_ *layers.Map, _ windows, b *memory) { b.p = b.p[:m.Points[last].Stored+100] }},
		{"damaged blob", nil, func(_ *layers.Map, _ windows, b *memory) { clear(b.p[m.Points[last].Stored:][:20_000]) }},
		{"short window", layers.ErrBadLayer, func(_ *layers.Map, w windows, _ *memory) { w[last] = w[last][1:] }},
		{"no window", layers.ErrBadLayer, func(_ *layers.Map, w windows, _ *memory) { w[last] = nil }},
		{"bit off", nil, func(m *layers.Map, _ windows, _ *memory) { m.Points[last].Bits ^= 1 }},
		{"place off", nil, func(m *layers.Map, _ windows, _ *memory) { m.Points[last].Stored++ }},
		{"header that is none", layers.ErrBadLayer, func(m *layers.Map, w windows, _ *memory) {
			m.Points[last].Bits, m.Points[last].Window = 0, 0
			w[last] = nil
		}},
		{"mark too early", layers.ErrBadLayer, func(m *layers.Map, _ windows, _ *memory) {
			m.Marks = []layers.Mark{{Plain: m.Plain, Stored: m.Points[last].Stored + 5}}
		}},
		{"mark before the point", layers.ErrTooLarge, func(m *layers.Map, _ windows, _ *memory) {
			m.Marks = []layers.Mark{{Plain: m.Plain, Stored: 0}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, w := record(t, z)
			b := &memory{p: bytes.Clone(z)}
			c.make(m, w, b)
			if err := m.Check(); err != nil {
				t.Fatal(err)
			}
			if err := read(New(b, m, w), at); c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("ReadAt = %v, want %v", err, c.want)
			}
		})
	}
	t.Run("too far from a point", func(t *testing.T) {
		m := &layers.Map{Compression: layers.Gzip, Plain: 1 << 40, Stored: 1 << 30, Points: []layers.Point{{}}}
		b := New(&memory{p: z}, m, nil)
		if err := read(b, 0); !errors.Is(err, layers.ErrTooLarge) {
			t.Errorf("ReadAt = %v, want ErrTooLarge", err)
		}
		if b.Affordable(0, 1000) {
			t.Error("a whole layer is affordable")
		}
	})
	t.Run("network", func(t *testing.T) {
		want := errors.New("reset")
		b := New(&memory{p: z, fail: want}, m, w)
		if err := read(b, at); !errors.Is(err, want) || errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("ReadAt = %v, want %v", err, want)
		}
	})
	t.Run("no windows", func(t *testing.T) {
		if err := read(New(&memory{p: z}, m, nil), at); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("ReadAt = %v, want ErrBadLayer", err)
		}
	})
}

func TestBadCuts(t *testing.T) {
	fx := fixtures(t)[2]
	for _, cuts := range [][]Cut{{{-1, 5}}, {{0, 0}}, {{10, 5}, {14, 5}}, {{fx.Size(), 1}}, {{0, layers.MaxChunk + 1}}} {
		err := fx.At(0, nil).Decode(fx.blob.p, cuts, func(int, []byte) error { return nil })
		if !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Decode(%v) = %v, want ErrBadLayer", cuts, err)
		}
	}
}

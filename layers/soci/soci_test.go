package soci

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
	"github.com/snapfs/snapfs/layers/layerstest"
)

// TestFixture: the layers have what is hard about them.
func TestFixture(t *testing.T) {
	var inside, long, members, plain int
	for _, s := range samples(t) {
		l := s.open(t)
		for _, p := range l.Map.Points {
			if p.Bits > 0 {
				inside++
			}
		}
		if l.Map.Compression == layers.None {
			plain++
			continue
		}
		if l.spans[0].from > shortHeader {
			long++
		}
		if bytes.Count(s.stored, []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03")) > 2 {
			members++
		}
	}
	if inside == 0 || long == 0 || members == 0 || plain == 0 {
		t.Errorf("%d points inside of a byte, %d long headers, %d layers of members, %d plain ones", inside, long, members, plain)
	}
}

// TestOpen: what the ztocs of SOCI's own program say is what the layers hold.
func TestOpen(t *testing.T) {
	for i, s := range samples(t) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			l := s.open(t)
			checkLayer(t, l, s.desc.Size)
			real := s.unpack(t)
			if len(l.Index.Entries) != len(real.Entries) {
				t.Fatalf("%d entries, want %d", len(l.Index.Entries), len(real.Entries))
			}
			for i := range real.Entries {
				e, r := &l.Index.Entries[i], &real.Entries[i]
				if !same(e, r) {
					t.Errorf("entry %+v, want %+v", e, r)
				}
				if e.Size == 0 {
					continue
				}
				at, ok := l.find(e.Object)
				if !ok || l.places[at].size != e.Size {
					t.Fatalf("%s: found %v, %+v", e.Name, ok, at)
				}
				if got := readMap(t, s, l, l.places[at]); layers.SumOf(got) != r.Object {
					t.Errorf("%s: wrong bytes through the map", e.Name)
				}
			}
		})
	}
}

// readMap reads a file from the blob by the layer's Map and Windows.
func readMap(t *testing.T, s *sample, l *Layer, at place) []byte {
	t.Helper()
	first, from, to := l.Map.Locate(at.off, at.size)
	if l.Map.Compression == layers.None {
		return s.stored[from:to]
	}
	w, err := l.Window(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	p := l.Map.Points[first]
	r := inflate.NewReader(&source{s.stored[from:to]}, p, w)
	got := make([]byte, at.size)
	if err := r.Discard(at.off - p.Plain); err != nil {
		t.Fatalf("from point %d, %+v: %v", first, p, err)
	}
	if _, err := io.ReadFull(r, got); err != nil {
		t.Fatalf("from point %d, %+v: %v", first, p, err)
	}
	return got
}

// checkLayer checks what a Layer promises, whoever wrote its ztoc.
func checkLayer(t testing.TB, l *Layer, size int64) {
	t.Helper()
	layerstest.Index(t, l.Index, 0)
	if err := l.Map.Check(); err != nil {
		t.Error(err)
	}
	end, plain := l.spans[0].from, int64(0)
	for i, s := range l.spans {
		if s.from > end || s.from < end-1 || s.to <= s.from || s.start != plain || s.end < s.start || s.to-s.from > layers.MaxChunk || s.end-s.start > layers.MaxChunk {
			t.Errorf("span %d is %+v, behind %d and %d", i, s, end, plain)
		}
		end, plain = s.to, s.end
		if l.Map.Compression == layers.Gzip {
			w, err := l.Window(t.Context(), i)
			if err != nil || len(w) != int(min(s.start, infoWindow)) {
				t.Errorf("window %d of %d bytes, %v", i, len(w), err)
			}
		}
	}
	if end != size || plain != l.Map.Plain {
		t.Errorf("spans end at %d and %d, want %d and %d", end, plain, size, l.Map.Plain)
	}
	for i, p := range l.places {
		if p.size <= 0 || p.off < block || p.off+p.size > l.Map.Plain {
			t.Errorf("file at %+v of %d bytes", p, l.Map.Plain)
		}
		if i > 0 && bytes.Compare(l.places[i-1].alias[:], p.alias[:]) >= 0 {
			t.Errorf("aliases %d and %d are out of order", i-1, i)
		}
	}
	for i := range l.Index.Entries {
		if e := &l.Index.Entries[i]; e.Size > 0 {
			if at, ok := l.find(e.Object); !ok || l.places[at].size != e.Size {
				t.Errorf("%q has no place", e.Name)
			}
		}
	}
}

// TestEncoder: the tests' own encoder writes what is read as the same.
func TestEncoder(t *testing.T) {
	for _, s := range samples(t) {
		l := s.open(t)
		n := s.with(specOf(t, s)).open(t)
		if !slices.Equal(n.spans, l.spans) || !slices.Equal(n.Map.Points, l.Map.Points) || len(n.places) != len(l.places) {
			t.Errorf("read as %+v, want %+v", n, l)
		}
	}
}

// TestFirstVersion: checkpoints of version 1, which lacks the first.
func TestFirstVersion(t *testing.T) {
	s := samples(t)[1]
	c := specOf(t, s)
	cks := c.gzip(t)
	if cks[0].in != shortHeader {
		t.Fatalf("header of %d bytes", cks[0].in)
	}
	c.checkpoints = gzipZinfo(int32(len(cks)), 0, cks[1:])
	l, want := s.with(c).open(t), s.open(t)
	if !slices.Equal(l.spans, want.spans) || !slices.Equal(l.Map.Points, want.Map.Points) {
		t.Errorf("points %+v, want %+v", l.Map.Points, want.Map.Points)
	}
	for i := range l.spans {
		a, err := l.Window(t.Context(), i)
		b, _ := want.Window(t.Context(), i)
		if err != nil || !bytes.Equal(a, b) {
			t.Errorf("window %d is another: %v", i, err)
		}
	}
}

// TestAlias: an alias is of one ztoc, and no file's sum.
func TestAlias(t *testing.T) {
	s := samples(t)[0]
	l, again := s.open(t), s.open(t)
	other := specOf(t, s)
	other.files[0].mode ^= 0o100
	o := s.with(other).open(t)
	moved := *s
	moved.desc.Digest = digest.FromString("another layer")
	m := moved.open(t)
	a := newAlias(layers.SumOf(s.ztoc), s.desc.Digest)
	for _, p := range l.places {
		if _, ok := again.find(p.alias); !ok {
			t.Errorf("%s: not in the same ztoc", p.alias)
		}
		for _, x := range []*Layer{o, m} {
			if _, ok := x.find(p.alias); ok {
				t.Errorf("%s: in another ztoc or layer", p.alias)
			}
		}
		text := le.AppendUint64(le.AppendUint64(slices.Clone(a), uint64(p.off)), uint64(p.size))
		if a.of(p.off, p.size) != p.alias {
			t.Errorf("%+v: another alias", p)
		}
		if layers.SumOf(text) == p.alias {
			t.Error("a file can be made that has the alias as its sum")
		}
	}
}

// TestBadZTOC: what is wrong is refused, and said.
func TestBadZTOC(t *testing.T) {
	gz := samples(t)[0]
	point := func(i int, f func(*ckpt)) func(t *testing.T, c *spec) {
		return func(t *testing.T, c *spec) {
			cks := c.gzip(t)
			f(&cks[i])
			c.resum(t, gz.stored, cks)
		}
	}
	file := func(i int, f func(*specFile)) func(*testing.T, *spec) {
		return func(_ *testing.T, c *spec) { f(&c.files[i]) }
	}
	info := func(f func(p []byte) []byte) func(*testing.T, *spec) {
		return func(_ *testing.T, c *spec) { c.checkpoints = f(bytes.Clone(c.checkpoints)) }
	}
	count := func(n int32) func(p []byte) []byte {
		return func(p []byte) []byte { le.PutUint32(p, uint32(n)); return p }
	}
	const app = 2 // ./bin/app
	for _, c := range []struct {
		name string
		do   func(t *testing.T, c *spec)
		want error
		text string
	}{
		{"from the future", func(_ *testing.T, c *spec) { c.version = "1.0" }, layers.ErrNoTOC, "version"},
		{"zstd", func(_ *testing.T, c *spec) { c.algorithm = 3 }, layers.ErrNoTOC, "compression"},
		{"another layer", func(_ *testing.T, c *spec) { c.stored++ }, layers.ErrBadTOC, "layer of"},
		{"huge tar", func(_ *testing.T, c *spec) { c.plain = 1 << 50 }, layers.ErrTooLarge, "tar of"},
		{"negative tar", func(_ *testing.T, c *spec) { c.plain = -1 }, layers.ErrTooLarge, "tar of"},
		{"digest missing", func(_ *testing.T, c *spec) { c.digests = c.digests[1:] }, layers.ErrBadTOC, "digests"},
		{"another last span", func(_ *testing.T, c *spec) { c.maxSpan++ }, layers.ErrBadTOC, "digests"},
		{"sha512", func(_ *testing.T, c *spec) { c.digests[0] = "sha512:" + strings.Repeat("0", 128) }, layers.ErrBadTOC, "span 0"},
		{"no digest", func(_ *testing.T, c *spec) { c.digests[1] = "" }, layers.ErrBadTOC, "span 1"},
		{"no checkpoints", info(func([]byte) []byte { return nil }), layers.ErrBadTOC, "checkpoints of 0"},
		{"no checkpoint", info(count(0)), layers.ErrBadTOC, "0 checkpoints"},
		{"-1 checkpoints", info(count(-1)), layers.ErrBadTOC, "-1 checkpoints"},
		{"2^31 checkpoints", info(count(1<<31 - 1)), layers.ErrBadTOC, "checkpoints"},
		{"2^17 checkpoints", info(count(1 << 17)), layers.ErrBadTOC, "checkpoints"}, // times 32785 is more than 32 bits
		{"two missing", info(func(p []byte) []byte { return p[:len(p)-2*infoPoint] }), layers.ErrBadTOC, "checkpoints"},
		{"cut off", info(func(p []byte) []byte { return p[:len(p)-1] }), layers.ErrBadTOC, "checkpoints"},
		{"begins late", point(0, func(k *ckpt) { k.out = 1 }), layers.ErrNoTOC, "first checkpoint"},
		{"begins inside", point(0, func(k *ckpt) { k.bits = 1 }), layers.ErrNoTOC, "first checkpoint"},
		{"zlib", point(0, func(k *ckpt) { k.in = 2 }), layers.ErrNoTOC, "first checkpoint"},
		{"8 bits", point(1, func(k *ckpt) { k.bits = 8 }), layers.ErrBadTOC, "span"},
		{"outside", point(2, func(k *ckpt) { k.in = gz.desc.Size + 1 }), layers.ErrBadTOC, "span"},
		{"far outside", point(2, func(k *ckpt) { k.in = -1 << 63 }), layers.ErrBadTOC, "span"},
		{"backwards", point(2, func(k *ckpt) { k.in = 12 }), layers.ErrBadTOC, "span"},
		{"backwards in the tar", point(2, func(k *ckpt) { k.out = 1 }), layers.ErrBadTOC, "span"},
		{"empty", point(1, func(k *ckpt) { k.out = 0 }), layers.ErrBadTOC, "span"},
		{"negative in the tar", point(1, func(k *ckpt) { k.out = -1 << 63 }), layers.ErrBadTOC, "span"},
		{"huge span", func(t *testing.T, c *spec) {
			cks := c.gzip(t)
			cks[len(cks)-1].out = 1 << 40
			c.resum(t, gz.stored, cks)
		}, layers.ErrTooLarge, "span"},
		{"overlap", file(app, func(f *specFile) { f.size += 2 * block }), layers.ErrBadTOC, "behind"},
		{"no room for a header", file(app, func(f *specFile) { f.off -= block }), layers.ErrBadTOC, "behind"},
		{"inside of a block", file(app, func(f *specFile) { f.off++ }), layers.ErrBadTOC, "behind"},
		{"negative size", file(app, func(f *specFile) { f.size = -1 }), layers.ErrBadTOC, "bytes at"},
		{"negative offset", file(0, func(f *specFile) { f.off = -block }), layers.ErrBadTOC, "bytes at"},
		{"behind the tar", func(_ *testing.T, c *spec) { c.files[len(c.files)-1].size = 1 << 20 }, layers.ErrBadTOC, "bytes at"},
		{"beyond all numbers", func(_ *testing.T, c *spec) { c.files[len(c.files)-1].size = 1<<63 - 1 }, layers.ErrBadTOC, "bytes at"},
		{"escapes", file(app, func(f *specFile) { f.name = "../app" }), layers.ErrBadLayer, "app"},
		{"unknown type", file(app, func(f *specFile) { f.typ = "socket" }), layers.ErrBadLayer, "type"},
		{"no type", file(app, func(f *specFile) { f.typ = "" }), layers.ErrBadLayer, "type"},
		{"link to itself", file(app+1, func(f *specFile) { f.link = f.name }), layers.ErrBadLayer, "itself"},
		{"no time", file(app, func(f *specFile) { f.time = "" }), layers.ErrNoTOC, "time"},
		{"sparse", file(app, func(f *specFile) { f.records = [][2]string{{"GNU.sparse.major", "1"}} }), layers.ErrNoTOC, "sparse"},
	} {
		t.Run(c.name, func(t *testing.T) {
			z := specOf(t, gz)
			c.do(t, z)
			s := gz.with(z)
			_, err := Open(s.ztoc, s.ztocDigest, s.desc)
			if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("Open: %v, want %v with %q", err, c.want, c.text)
			}
		})
	}
}

// TestUsedTwice: a buffer cannot be made to stand for more than it has.
func TestUsedTwice(t *testing.T) {
	var e encoder
	e.root([]any{vector{"a", "b", "c", strings.Repeat("x", 1000)}})
	f := &flat{p: e.p, left: len(e.p)}
	at, p := f.root().run(0, 4)
	last := f.follow(at + len(p) - 4)
	for i := at; i < at+len(p); i += 4 {
		le.PutUint32(e.p[i:], uint32(last-i))
	}
	f = &flat{p: e.p, left: len(e.p)}
	n := 0
	f.root().strings(0, func(string) { n++ })
	if n != 1 || !errors.Is(f.err, layers.ErrBadTOC) {
		t.Errorf("read %d times, %v", n, f.err)
	}
}

func TestBadTarSpans(t *testing.T) {
	for name, p := range map[string][]byte{
		"no step":         tarZinfo(0, 3*block),
		"negative step":   tarZinfo(-1, 3*block),
		"another size":    tarZinfo(4<<20, 4*block),
		"no size":         tarZinfo(4<<20, 0),
		"spans of a byte": tarZinfo(1, 3*block), // 1536 of them, one digest
		"empty":           nil,
		"short":           tarZinfo(4<<20, 3*block)[:20],
	} {
		c, _ := small()
		c.checkpoints = p
		s := (&sample{}).with(c)
		s.desc.Size = 3 * block
		if l, err := Open(s.ztoc, s.ztocDigest, s.desc); !errors.Is(err, layers.ErrBadTOC) {
			t.Errorf("%s: Open: %+v, %v", name, l, err)
		}
	}
}

// TestCutOff: no part of a ztoc is read as one.
func TestCutOff(t *testing.T) {
	c, _ := small()
	s := (&sample{}).with(c)
	s.desc.Size = c.stored
	if l, err := Open(s.ztoc, s.ztocDigest, s.desc); err != nil || len(l.Index.Entries) != 1 || l.Index.Entries[0].Nsec != 5e8 {
		t.Fatalf("Open of the whole: %+v, %v", l, err)
	}
	for n := range s.ztoc {
		p := s.ztoc[:n]
		if _, err := Open(p, digest.FromBytes(p), s.desc); err == nil {
			t.Errorf("Open of %d bytes of %d: no error", n, len(s.ztoc))
		}
	}
}

func TestWrongDigest(t *testing.T) {
	s := samples(t)[0]
	_, err := Open(append(bytes.Clone(s.ztoc), 0), s.ztocDigest, s.desc)
	if _, ok := errors.AsType[*layers.DigestError](err); !ok {
		t.Errorf("Open: %v, want a DigestError", err)
	}
	if _, err := Open(s.ztoc, "sha512:00", s.desc); !errors.Is(err, layers.ErrBadSum) {
		t.Errorf("Open: %v, want ErrBadSum", err)
	}
}

func TestReadWindows(t *testing.T) {
	s := samples(t)[1]
	l := s.open(t)
	l.ReadWindows(bytes.NewReader(s.ztoc))
	checkLayer(t, l, s.desc.Size)
	l.ReadWindows(bytes.NewReader(s.ztoc[:100])) // the file was cut off
	if _, err := l.Window(t.Context(), 2); err == nil {
		t.Error("Window: no error")
	}
}

func FuzzOpen(f *testing.F) {
	c, _ := small()
	f.Add(c.encode())
	// A real one without its windows, which would only slow fuzzing down;
	// checkpoints are for FuzzCheckpoints.
	c = specOf(f, samples(f)[0])
	c.checkpoints, c.maxSpan, c.digests = gzipZinfo(1, 0, nil), 0, c.digests[:1]
	f.Add(c.encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		s := &sample{ztoc: p, ztocDigest: digest.FromBytes(p)}
		if z, err := parse(p); err == nil {
			s.desc.Size = z.stored
		}
		l, err := Open(s.ztoc, s.ztocDigest, s.desc)
		if err == nil {
			checkLayer(t, l, s.desc.Size)
			return
		}
		for _, known := range []error{layers.ErrNoTOC, layers.ErrBadTOC, layers.ErrBadLayer, layers.ErrTooLarge} {
			if errors.Is(err, known) {
				return
			}
		}
		t.Errorf("Open: %v", err)
	})
}

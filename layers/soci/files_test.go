package soci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// TestFiles: every file of a real image is served, in pieces of any size, and
// then becomes what an eager pull makes of it, with no byte fetched twice.
func TestFiles(t *testing.T) {
	for i, s := range samples(t) {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			l := s.open(t)
			k := newStack(t, s, l)
			real := s.unpack(t)
			for i := range l.Index.Entries {
				e, r := &l.Index.Entries[i], &real.Entries[i]
				if e.Size == 0 {
					continue
				}
				if n, ok := k.Files.Size(e.Object); !ok || n != e.Size {
					t.Errorf("%s: Size = %d, %v, want %d", e.Name, n, ok, e.Size)
				}
				for _, n := range []int{100, 1000, 4096, 1 << 20} {
					got, err := readAll(t.Context(), k.Files, e.Object, e.Size, n)
					if err != nil || layers.SumOf(got) != r.Object {
						t.Errorf("%s by %d: wrong bytes or %v", e.Name, n, err)
					}
				}
				if k.store.Has(e.Object) {
					t.Errorf("%s: its alias is in the store", e.Name)
				}
			}
			if err := k.Prove(t.Context(), "layer", l.Index, real); err != nil {
				t.Errorf("Prove: %v", err)
			}
			if err := k.fetcher.Complete(t.Context(), []string{"layer"}, nil); err != nil {
				t.Fatal(err)
			}
			r, err := k.Stream(t.Context(), "layer", k.blob)
			if err != nil {
				t.Fatal(err)
			}
			u, err := tarindex.Unpack(t.Context(), r, s.desc, s.diffID, k.store, tarindex.Options{})
			if err != nil {
				t.Fatalf("Unpack of the stream: %v", err)
			}
			defer u.Close()
			ix := u.Index
			if len(ix.Entries) != len(real.Entries) {
				t.Errorf("%d entries, want %d", len(ix.Entries), len(real.Entries))
			}
			if err := k.Settle("layer", l.Index, ix); err != nil {
				t.Fatal(err)
			}
			files := map[layers.Sum]bool{}
			for i := range ix.Entries {
				files[ix.Entries[i].Object] = true
			}
			if _, err := k.store.Sweep(func(s layers.Sum) bool { return files[s] }); err != nil || k.store.Has(l.spans[0].sum) {
				t.Errorf("Sweep of the spans: %v", err)
			}
			for _, p := range l.places {
				got, err := readAll(t.Context(), k.Files, p.alias, p.size, 4096)
				if err != nil || !bytes.Equal(got, s.plain[p.off:p.off+p.size]) {
					t.Errorf("file at %d: wrong bytes or %v, from the store", p.off, err)
				}
			}
			// Spans overlap by a byte at most.
			if n, most := k.blob.bytes.Load(), s.desc.Size+int64(len(l.spans)); n > most {
				t.Errorf("%d bytes fetched, at most %d are needed", n, most)
			}
		})
	}
}

// TestOthers: what is no file of a layer is left to the objects behind.
func TestOthers(t *testing.T) {
	s := samples(t)[0]
	k := newStack(t, s, s.open(t))
	data := []byte("an object")
	sum := layers.SumOf(data)
	if _, ok := k.Files.Size(sum); ok {
		t.Error("Size of an unknown object")
	}
	if err := k.store.Put(sum, data); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 20)
	n, err := k.ReadAt(t.Context(), sum, p, 3)
	if string(p[:n]) != "object" || err != io.EOF {
		t.Errorf("ReadAt = %q, %v", p[:n], err)
	}
	if n, ok := k.Files.Size(sum); n != 9 || !ok {
		t.Errorf("Size = %d, %v", n, ok)
	}
}

// TestForged: nobody can put a file into the store that answers to an alias.
func TestForged(t *testing.T) {
	s := samples(t)[0]
	l := s.open(t)
	k := newStack(t, s, l)
	p := l.places[0]
	text := le.AppendUint64(le.AppendUint64(newAlias(layers.SumOf(s.ztoc), s.desc.Digest), uint64(p.off)), uint64(p.size))
	for _, forged := range [][]byte{text, p.alias[:]} {
		if err := k.store.Put(layers.SumOf(forged), forged); err != nil {
			t.Fatal(err)
		}
	}
	if k.store.Has(p.alias) {
		t.Error("the alias is in the store")
	}
	got, err := readAll(t.Context(), k.Files, p.alias, p.size, 4096)
	if err != nil || !bytes.Equal(got, s.plain[p.off:p.off+p.size]) {
		t.Errorf("wrong bytes or %v", err)
	}
}

func TestReadAt(t *testing.T) {
	s := samples(t)[0]
	l := s.open(t)
	k := newStack(t, s, l)
	p := l.places[0]
	for _, c := range []struct {
		n    int
		off  int64
		want int
		err  error
	}{{5, -1, 0, io.EOF}, {5, p.size, 0, io.EOF}, {5, 1 << 62, 0, io.EOF}, {0, 0, 0, nil}, {9, p.size - 4, 4, io.EOF}, {4, p.size - 4, 4, nil}} {
		n, err := k.ReadAt(t.Context(), p.alias, make([]byte, c.n), c.off)
		if n != c.want || err != c.err {
			t.Errorf("ReadAt(%d bytes at %d) = %d, %v, want %d, %v", c.n, c.off, n, err, c.want, c.err)
		}
	}
}

// TestWrongSpan: a span with another digest is not served and not kept; others are.
func TestWrongSpan(t *testing.T) {
	for i, s := range samples(t) {
		l := s.open(t)
		k := newStack(t, s, l)
		const bad = 1
		b := l.spans[bad]
		k.blob.p[(b.from+b.to)/2] ^= 1
		for _, p := range l.places {
			first, last := l.span(p.off), l.span(p.off+p.size-1)
			got, err := readAll(t.Context(), k.Files, p.alias, p.size, 1<<20)
			if first > bad || last < bad {
				if err != nil || !bytes.Equal(got, s.plain[p.off:p.off+p.size]) {
					t.Errorf("layer %d: file at %d: wrong bytes or %v", i, p.off, err)
				}
				continue
			}
			if _, ok := errors.AsType[*layers.DigestError](err); !ok {
				t.Errorf("layer %d: file at %d: %v, want a DigestError", i, p.off, err)
			}
			if !bytes.HasPrefix(s.plain[p.off:], got) {
				t.Errorf("layer %d: file at %d: wrong bytes", i, p.off)
			}
		}
		if k.store.Has(b.sum) {
			t.Errorf("layer %d: the span is kept", i)
		}
	}
}

// TestLies: a ztoc whose spans have their digests, and which says of them what is
// not so, gives errors or bytes that are always the same, and is found out.
func TestLies(t *testing.T) {
	s := samples(t)[0]
	real := s.unpack(t)
	for name, lie := range map[string]func(c *spec, k []ckpt){
		"other bits":       func(_ *spec, k []ckpt) { k[1].bits = k[1].bits%7 + 1 },
		"whole byte":       func(_ *spec, k []ckpt) { k[1].bits = 0 },
		"a byte late":      func(_ *spec, k []ckpt) { k[2].in++ },
		"a byte early":     func(_ *spec, k []ckpt) { k[2].in-- },
		"elsewhere in tar": func(_ *spec, k []ckpt) { k[2].out += 3 },
		"other window":     func(_ *spec, k []ckpt) { k[3].window = bytes.Repeat([]byte("lie"), infoWindow/3) },
		"longer header":    func(_ *spec, k []ckpt) { k[0].in += 2 },
		"shorter header":   func(_ *spec, k []ckpt) { k[0].in = shortHeader },
		"a file that is not": func(c *spec, _ []ckpt) {
			c.plain += 1 << 20
			c.files = append(c.files, specFile{name: "ghost", typ: "reg", time: "2023-11-14T22:13:20Z", off: c.plain&^(block-1) - 1<<19, size: 100})
		},
		"file elsewhere": func(c *spec, _ []ckpt) { c.files[2].size -= block },
		"another mode":   func(c *spec, _ []ckpt) { c.files[2].mode = 0o4777 },
		"another owner":  func(c *spec, _ []ckpt) { c.files[2].uid = 0 },
		"a file less":    func(c *spec, _ []ckpt) { c.files = append(c.files[:4:4], c.files[5:]...) },
		"a capability more": func(c *spec, _ []ckpt) {
			c.files[2].records = [][2]string{{"SCHILY.xattr.security.capability", "\x01"}}
		},
		"another link": func(c *spec, _ []ckpt) { c.files[4].link = "/etc/shadow" },
		"another time": func(c *spec, _ []ckpt) { c.files[2].time = "1999-12-31T23:59:59Z" },
	} {
		t.Run(name, func(t *testing.T) {
			c := specOf(t, s)
			cks := c.gzip(t)
			honest := s.with(c)
			lie(c, cks)
			c.resum(t, s.stored, cks)
			evil := s.with(c)
			if evil.ztocDigest == honest.ztocDigest {
				t.Fatal("no lie")
			}
			l := evil.open(t)
			f := inMemoryFiles(t, evil, l)
			twice(t, f, l)
			if err := f.Prove(t.Context(), "layer", l.Index, real); !errors.Is(err, ErrLied) {
				t.Errorf("Prove: %v, want ErrLied", err)
			}
			l = honest.open(t)
			if err := inMemoryFiles(t, honest, l).Prove(t.Context(), "layer", l.Index, real); err != nil {
				t.Errorf("Prove of the honest one: %v", err)
			}
		})
	}
}

// twice checks that files are the same bytes, or errors, in whatever order and
// pieces they are read.
func twice(t testing.TB, k *Files, l *Layer) {
	t.Helper()
	var want [][]byte
	for _, p := range l.places {
		got, _ := readAll(t.Context(), k, p.alias, p.size, 1<<20)
		want = append(want, got)
	}
	k.Trim()
	for i := len(l.places) - 1; i >= 0; i-- {
		p := l.places[i]
		for off := p.size - p.size%7000; off >= 0; off -= 7000 {
			b := make([]byte, min(7000, p.size-off))
			n, err := k.ReadAt(t.Context(), p.alias, b, off)
			if end := off + int64(n); end <= int64(len(want[i])) && !bytes.Equal(b[:n], want[i][off:end]) {
				t.Errorf("file at %d: other bytes at %d", p.off, off)
			}
			if err != nil && err != io.EOF && !errors.Is(err, layers.ErrBadLayer) {
				t.Errorf("file at %d: %v", p.off, err)
			}
		}
		k.Trim()
	}
}

// TestManyReaders reads from many goroutines with little room for spans.
func TestManyReaders(t *testing.T) {
	s := samples(t)[0]
	l := s.open(t)
	k := newStack(t, s, l)
	k.Files.limit = 20_000 // two spans
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for range 200 {
				p := l.places[r.IntN(len(l.places))]
				off := r.Int64N(p.size)
				b := make([]byte, 1+r.IntN(3000))
				n, err := k.ReadAt(t.Context(), p.alias, b, off)
				if err != nil && err != io.EOF || !bytes.Equal(b[:n], s.plain[p.off+off:p.off+off+int64(n)]) {
					t.Errorf("file at %d: wrong bytes or %v", p.off, err)
				}
				if r.IntN(50) == 0 {
					k.Trim()
				}
			}
		})
	}
	wg.Wait()
	k.Files.Close() // waits for what is decoded
	k.mu.Lock()
	defer k.mu.Unlock()
	var sum int64
	for _, d := range k.spans {
		sum += int64(len(d.plain))
	}
	if sum != k.kept || sum > k.limit {
		t.Errorf("%d bytes are kept, counted %d, at most %d", sum, k.kept, k.limit)
	}
}

// TestReaderLeaves: a reader that leaves does not take the span from others.
func TestReaderLeaves(t *testing.T) {
	s := samples(t)[0]
	l := s.open(t)
	k := newStack(t, s, l)
	asked, answer := make(chan struct{}, 1), make(chan struct{})
	k.blob.hook = func(ctx context.Context) error {
		select {
		case asked <- struct{}{}:
		default:
		}
		select {
		case <-answer:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p := l.places[0]
	ctx, leave := context.WithCancel(t.Context())
	left, got := make(chan error, 1), make(chan error, 1)
	read := func(ctx context.Context, to chan<- error) {
		b := make([]byte, 10)
		_, err := k.ReadAt(ctx, p.alias, b, 0)
		if err == nil && !bytes.Equal(b, s.plain[p.off:p.off+10]) {
			err = errors.New("wrong bytes")
		}
		to <- err
	}
	go read(ctx, left)
	<-asked
	go read(t.Context(), got)
	leave()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	close(answer)
	if err := <-got; err != nil {
		t.Errorf("who stayed: %v", err)
	}
}

// TestAgain: what could not be read is tried again.
func TestAgain(t *testing.T) {
	s := samples(t)[0]
	l := s.open(t)
	k := newStack(t, s, l)
	broken := errors.New("the network is gone")
	k.blob.hook = func(context.Context) error { return broken }
	p := l.places[0]
	if _, err := k.ReadAt(t.Context(), p.alias, make([]byte, 10), 0); !errors.Is(err, broken) {
		t.Errorf("ReadAt: %v, want %v", err, broken)
	}
	k.blob.hook = nil
	if _, err := k.ReadAt(t.Context(), p.alias, make([]byte, 10), 0); err != nil {
		t.Errorf("ReadAt: %v", err)
	}
}

func TestRemove(t *testing.T) {
	s := samples(t)[0]
	l := s.open(t)
	k := newStack(t, s, l)
	p := l.places[0]
	if _, err := k.ReadAt(t.Context(), p.alias, make([]byte, 10), 0); err != nil {
		t.Fatal(err)
	}
	k.Remove("layer")
	if _, ok := k.Files.Size(p.alias); ok || len(k.spans) > 0 || k.kept != 0 {
		t.Errorf("it is still there: %v, %d spans of %d bytes", ok, len(k.spans), k.kept)
	}
	if _, err := k.ReadAt(t.Context(), p.alias, make([]byte, 10), 0); err == nil {
		t.Error("ReadAt: no error")
	}
	if _, err := k.Stream(t.Context(), "layer", k.blob); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stream: %v", err)
	}
	k.Files.Close()
	k.Add("layer", l)
	if _, err := k.ReadAt(t.Context(), p.alias, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt after Close: %v", err)
	}
}

// swept are objects of which the spans go when the first is asked for.
type swept struct {
	Objects
	before func()
	spans  map[layers.Sum]bool
}

func (s *swept) ReadAt(ctx context.Context, sum layers.Sum, p []byte, off int64) (int, error) {
	if s.before != nil {
		s.before()
		s.before = nil
	}
	if s.spans[sum] {
		return 0, fs.ErrNotExist
	}
	return s.Objects.ReadAt(ctx, sum, p, off)
}

// TestSettledUnderReader: a read that has begun when the layer is settled, and its
// spans are swept, is answered all the same.
func TestSettledUnderReader(t *testing.T) {
	for i, s := range samples(t) {
		l := s.open(t)
		k := newStack(t, s, l)
		u, err := tarindex.Unpack(t.Context(), bytes.NewReader(s.stored), s.desc, s.diffID, k.store, tarindex.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		for j := range l.Index.Entries {
			e := &l.Index.Entries[j]
			if e.Size == 0 {
				continue
			}
			o := &swept{Objects: k.fetcher, spans: map[layers.Sum]bool{}}
			for _, sp := range l.Spans.Entries {
				o.spans[sp.Object] = true
			}
			f := NewFiles(o, 0)
			f.Add("layer", s.open(t))
			o.before = func() {
				if err := f.Settle("layer", l.Index, u.Index); err != nil {
					t.Error(err)
				}
			}
			p := make([]byte, e.Size+1)
			n, err := f.ReadAt(t.Context(), e.Object, p, 0)
			if int64(n) != e.Size || err != io.EOF || layers.SumOf(p[:n]) != u.Index.Entries[j].Object {
				t.Errorf("layer %d: %s: read %d of %d bytes, %v", i, e.Name, n, e.Size, err)
			}
			if o.before != nil {
				t.Errorf("%s: nothing was read", e.Name)
			}
			f.Close()
		}
	}
}

// TestStreamFails: a stream says why it ends.
func TestStreamFails(t *testing.T) {
	s := samples(t)[1]
	l := s.open(t)
	k := newStack(t, s, l)
	k.blob.p[l.spans[2].from+5] ^= 1
	r, err := k.Stream(t.Context(), "layer", k.blob)
	if err != nil {
		t.Fatal(err)
	}
	p, err := io.ReadAll(r)
	if _, ok := errors.AsType[*layers.DigestError](err); !ok || !bytes.Equal(p, s.stored[:l.spans[1].to]) {
		t.Errorf("ReadAll: %d bytes, %v, want %d and a DigestError", len(p), err, l.spans[1].to)
	}
	broken := errors.New("the network is gone")
	if _, err := k.Stream(t.Context(), "layer", &blob{p: s.stored, hook: func(context.Context) error { return broken }}); !errors.Is(err, broken) {
		t.Errorf("Stream: %v, want %v", err, broken)
	}
}

// inMemory are spans by digest.
type inMemory map[layers.Sum][]byte

func (m inMemory) Size(s layers.Sum) (int64, bool) { return int64(len(m[s])), m[s] != nil }

func (m inMemory) ReadAt(_ context.Context, s layers.Sum, p []byte, off int64) (int, error) {
	return bytes.NewReader(m[s]).ReadAt(p, off)
}

func inMemoryFiles(t testing.TB, s *sample, l *Layer) *Files {
	m := inMemory{}
	for _, sp := range l.spans {
		m[layers.SumOf(s.stored[sp.from:sp.to])] = s.stored[sp.from:sp.to]
	}
	f := NewFiles(m, 0)
	t.Cleanup(f.Close)
	f.Add("layer", l)
	return f
}

// FuzzCheckpoints moves the checkpoints of a real layer, and gives the spans
// between them their digests.
func FuzzCheckpoints(f *testing.F) {
	s := samples(f)[0]
	f.Add(uint8(1), int16(0), int16(0), uint8(3), []byte("window"))
	f.Add(uint8(2), int16(-4), int16(100), uint8(0), []byte{})
	f.Add(uint8(0), int16(12), int16(0), uint8(0), []byte(nil))
	f.Fuzz(func(t *testing.T, i uint8, in, out int16, bits uint8, window []byte) {
		c := specOf(t, s)
		cks := c.gzip(t)
		k := &cks[int(i)%len(cks)]
		k.in, k.out, k.bits, k.window = k.in+int64(in), k.out+int64(out), bits, window[:min(len(window), infoWindow)]
		c.resum(t, s.stored, cks)
		evil := s.with(c)
		l, err := Open(evil.ztoc, evil.ztocDigest, evil.desc)
		if err != nil {
			return
		}
		checkLayer(t, l, s.desc.Size)
		twice(t, inMemoryFiles(t, evil, l), l)
	})
}

var _ Objects = (*fetch.Fetcher)(nil)

package inflate

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/snapfs/snapfs/layers"

	kgzip "github.com/klauspost/compress/gzip"
)

// runs gives its bytes in runs of n.
type runs struct {
	p []byte
	n int
}

func (r *runs) Next() ([]byte, error) {
	if len(r.p) == 0 {
		return nil, io.EOF
	}
	n := min(r.n, len(r.p))
	p := r.p[:n]
	r.p = r.p[n:]
	return p, nil
}

// decode decodes all of p with buffers of size bytes.
func decode(p []byte, run, size int) (out []byte, err error) {
	return decodeAll(NewGzip(&runs{p, run}), size)
}

// decodeAll decodes size bytes at a time.
func decodeAll(g *Gzip, size int) (out []byte, err error) {
	b := make([]byte, 4*Window+size)
	n := 0
	for {
		if n+size > len(b) {
			n = copy(b, b[n-Window:n])
		}
		from := n
		n, err = g.Decode(b[:n+size], n)
		out = append(out, b[from:n]...)
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
	}
}

// texts are plain bytes of several kinds.
func texts(n int) map[string][]byte {
	rnd := rand.New(rand.NewPCG(1, 2))
	noise, words, runs := make([]byte, n), make([]byte, n), make([]byte, n)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
		words[i] = "the quick brown fox, and so on.\n"[rnd.IntN(32)]
	}
	for i := 0; i < n; {
		unit := noise[rnd.IntN(n-64):][:1+rnd.IntN(20)]
		for range 1 + rnd.IntN(60) {
			i += copy(runs[i:], unit)
		}
	}
	return map[string][]byte{"noise": noise, "words": words, "runs": runs, "zeros": make([]byte, n), "empty": nil}
}

func compress(t testing.TB, p []byte, level int) []byte {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func TestDecode(t *testing.T) {
	sizes := []struct{ run, size int }{{1, 1}, {7, 300}, {1000, 65536}, {1 << 20, 1000}, {1 << 20, 1 << 20}}
	for name, plain := range texts(100_000) {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 6, 9} {
			for _, s := range sizes {
				p := plain
				if s.size == 1 { // each byte costs a copy of the window
					p = plain[:min(len(plain), 2000)]
				}
				stored := compress(t, p, level)
				got, err := decode(stored, s.run, s.size)
				if err != nil || !bytes.Equal(got, p) {
					t.Fatalf("%s level %d, %v: %d bytes, %v; want %d", name, level, s, len(got), err, len(p))
				}
			}
		}
	}
}

func TestDecodeMembers(t *testing.T) {
	one := compress(t, []byte("one"), 6)
	none := compress(t, nil, 6)
	for _, tt := range []struct {
		name   string
		stored []byte
		want   string
		err    error
	}{
		{"two members", bytes.Join([][]byte{one, one}, nil), "oneone", nil},
		{"empty members", bytes.Join([][]byte{none, one, none}, nil), "one", nil},
		{"zeros behind", append(bytes.Clone(one), 0, 0, 0), "one", nil},
		{"garbage behind", append(bytes.Clone(one), 'x'), "one", ErrTrailing},
		{"zeros and a member", bytes.Join([][]byte{one, {0}, one}, nil), "one", ErrTrailing},
		{"half a magic behind", append(bytes.Clone(one), 0x1f, 1), "one", ErrHeader},
		{"no magic", []byte("nonsense"), "", ErrHeader},
		{"nothing", nil, "", io.ErrUnexpectedEOF},
		{"wrong checksum", flip(one, len(one)-8), "one", ErrChecksum},
		{"wrong size", flip(one, len(one)-1), "one", ErrChecksum},
		// A match of the second member must not reach into the first.
		{"distance beyond the member", append(bytes.Clone(one), farMatch...), "one", ErrCorrupt},
	} {
		got, err := decode(tt.stored, 3, 100)
		if string(got) != tt.want || err != tt.err {
			t.Errorf("%s: %q, %v; want %q, %v", tt.name, got, err, tt.want, tt.err)
		}
	}
}

// farMatch is a member whose first symbol is a match: fixed codes, length 3
// (0000001), distance 1 (00000).
var farMatch = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0, 0b00000011, 0b00000010, 0, 0, 0}

func flip(p []byte, i int) []byte {
	p = bytes.Clone(p)
	p[i] ^= 1
	return p
}

func TestDecodeTruncated(t *testing.T) {
	stored := compress(t, texts(3000)["words"], 6)
	for i := range stored {
		if _, err := decode(stored[:i], 100, 1000); err != io.ErrUnexpectedEOF {
			t.Fatalf("first %d of %d bytes: %v, want %v", i, len(stored), err, io.ErrUnexpectedEOF)
		}
	}
}

// FuzzDecode compares with compress/gzip: the same bytes and no error, or an
// error from both; and the same bytes from any point on.
func FuzzDecode(f *testing.F) {
	for _, plain := range texts(2000) {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 9} {
			f.Add(compress(f, plain, level), uint16(13), uint16(700))
		}
	}
	f.Add(farMatch, uint16(1), uint16(1))
	f.Fuzz(func(t *testing.T, p []byte, run, size uint16) {
		got, m, windows, err := record(p, 1, int(run)+1, int(size)+1)
		if err == nil {
			if err := m.Check(); err != nil || m.Plain != int64(len(got)) || m.Stored != int64(len(p)) {
				t.Fatalf("map %+v: %v", m, err)
			}
			for i, pt := range m.Points {
				if tail, err := resume(p, pt, windows[i], int(run)+1); err != nil || !bytes.Equal(tail, got[pt.Plain:]) {
					t.Fatalf("from %+v: %d bytes, %v; want %d", pt, len(tail), err, len(got)-int(pt.Plain))
				}
			}
		}
		var want []byte
		r, werr := gzip.NewReader(bytes.NewReader(p))
		if werr == nil {
			want, werr = io.ReadAll(r)
		}
		if err == nil && werr != nil && bytes.HasSuffix(p, []byte{0}) {
			return // we allow zeros behind, compress/gzip does not
		}
		if len(p) == 0 {
			return
		}
		if (err == nil) != (werr == nil) || err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, %v; compress/gzip: %d bytes, %v", len(got), err, len(want), werr)
		}
	})
}

// FuzzResume resumes at points that lie: they cost no more than what is decoded.
func FuzzResume(f *testing.F) {
	for _, plain := range texts(100_000) {
		stored := compress(f, plain, 6)
		_, m, windows, err := record(stored, 1, 1<<20, 1000)
		if err != nil {
			f.Fatal(err)
		}
		for i, p := range m.Points {
			f.Add(stored[p.Stored:][:min(3000, len(stored)-int(p.Stored))], p.Bits, p.Window, windows[i], uint16(100))
		}
	}
	f.Fuzz(func(t *testing.T, stored []byte, bits uint8, size int32, window []byte, run uint16) {
		src := &runs{stored, int(run) + 1}
		r := NewReader(src, layers.Point{Bits: bits, Window: size}, window)
		n, err := io.Copy(io.Discard, r)
		if limit := int64(len(stored))*1032 + 1032; n > limit {
			t.Fatalf("%d bytes of %d", n, len(stored))
		}
		if err == nil && len(src.p) > 0 {
			t.Fatalf("%d of %d stored bytes were not read", len(src.p), len(stored))
		}
		if err != nil && err != io.ErrUnexpectedEOF && !errors.Is(err, layers.ErrBadLayer) {
			t.Fatal(err)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	plain := texts(4 << 20)
	for _, name := range []string{"words", "runs", "noise"} {
		stored := compress(b, plain[name], 6)
		b.Run(name, func(b *testing.B) {
			buf := make([]byte, Window+len(plain[name]))
			b.SetBytes(int64(len(plain[name])))
			for b.Loop() {
				g := NewGzip(&runs{stored, 128 << 10})
				for n, err := 0, error(nil); err == nil; {
					n, err = g.Decode(buf, n)
				}
			}
		})
		b.Run(name+"/compress", func(b *testing.B) {
			b.SetBytes(int64(len(plain[name])))
			for b.Loop() {
				r, _ := kgzip.NewReader(bytes.NewReader(stored))
				io.Copy(io.Discard, r)
			}
		})
	}
}

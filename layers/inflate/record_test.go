package inflate

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// record decodes p and returns what was recorded. A spacing of less than the
// least makes every block a candidate.
func record(p []byte, spacing int64, run, size int) (out []byte, m *layers.Map, windows [][]byte, err error) {
	g := NewGzip(&runs{p, run})
	g.Record(RecordOptions{Keep: func(i int, w []byte) {
		for len(windows) <= i {
			windows = append(windows, nil)
		}
		windows[i] = bytes.Clone(w)
	}})
	g.rec.Spacing = spacing
	if out, err = decodeAll(g, size); err != nil {
		return out, nil, nil, err
	}
	m = g.Map()
	for len(windows) < len(m.Points) {
		windows = append(windows, nil)
	}
	return out, m, windows[:len(m.Points)], nil
}

// resume decodes stored from a point of m on.
func resume(stored []byte, p layers.Point, window []byte, run int) ([]byte, error) {
	return io.ReadAll(NewReader(&runs{stored[p.Stored:], run}, p, window))
}

// Every writer's stream is decoded as compress/gzip does it, and the same from
// any point on.
func TestResume(t *testing.T) {
	for _, s := range samples(t) {
		for _, run := range []int{100, 1 << 20} {
			out, m, windows, err := record(s.stored, 1, run, 50_000)
			if err != nil || !bytes.Equal(out, s.plain) {
				t.Fatalf("%s: %d bytes, %v; want %d", s.name, len(out), err, len(s.plain))
			}
			if err := m.Check(); err != nil || m.Plain != int64(len(s.plain)) || m.Stored != int64(len(s.stored)) {
				t.Fatalf("%s: map of %d bytes, stored %d: %v; want %d, %d", s.name, m.Plain, m.Stored, err, len(s.plain), len(s.stored))
			}
			for i, p := range m.Points {
				if len(windows[i]) != int(p.Window) {
					t.Fatalf("%s: window of %d bytes for %+v", s.name, len(windows[i]), p)
				}
				got, err := resume(s.stored, p, windows[i], run)
				if err != nil || !bytes.Equal(got, s.plain[p.Plain:]) {
					t.Fatalf("%s: from %+v: %d bytes, %v; want %d", s.name, p, len(got), err, len(s.plain)-int(p.Plain))
				}
			}
		}
		if r, err := gzip.NewReader(bytes.NewReader(bytes.TrimRight(s.stored, "\x00"))); err != nil {
			t.Errorf("%s: compress/gzip: %v", s.name, err)
		} else if got, err := io.ReadAll(r); !bytes.Equal(got, s.plain) { // without the zeros its trailer is too short
			t.Errorf("%s: compress/gzip: %d bytes, %v; want %d", s.name, len(got), err, len(s.plain))
		}
	}
}

// What a map says suffices for some bytes does.
func TestResumeCut(t *testing.T) {
	rnd := rand.New(rand.NewPCG(6, 7))
	for _, s := range samples(t) {
		_, m, windows, err := record(s.stored, 1, 1<<20, 50_000)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if m.Plain == 0 {
				break
			}
			off := rnd.Int64N(m.Plain)
			n := 1 + rnd.Int64N(min(m.Plain-off, 50_000))
			i, from, to := m.Locate(off, n)
			r := NewReader(&runs{s.stored[from:to], 1000}, m.Points[i], windows[i])
			if err := r.Discard(off - m.Points[i].Plain); err != nil {
				t.Fatalf("%s: skip to %d from %+v: %v", s.name, off, m.Points[i], err)
			}
			got := make([]byte, n)
			if _, err := io.ReadFull(r, got); err != nil || !bytes.Equal(got, s.plain[off:off+n]) {
				t.Fatalf("%s: %d bytes at %d, stored %d to %d: %v", s.name, n, off, from, to, err)
			}
		}
	}
}

// Points come as often as they should, and the marks between them.
func TestRecordSpacing(t *testing.T) {
	plain := mixed(4 << 20)
	for _, s := range []sample{{"go", plain, compress(t, plain, 6)}, {"go, fast", plain, compress(t, plain, 1)}} {
		out, m, windows, err := record(s.stored, 512<<10, 1<<20, 384<<10)
		if err != nil || !bytes.Equal(out, plain) {
			t.Fatal(err)
		}
		if n := len(m.Points); n < 8 || n > 16 {
			t.Errorf("%s: %d points in %d bytes", s.name, n, m.Plain)
		}
		if n := len(m.Marks); n < 20 || n > 64 {
			t.Errorf("%s: %d marks in %d bytes", s.name, n, m.Plain)
		}
		for i, p := range m.Points {
			if got, err := resume(s.stored, p, windows[i], 1<<20); err != nil || !bytes.Equal(got, plain[p.Plain:]) {
				t.Errorf("%s: from %+v: %v", s.name, p, err)
			}
		}
	}
}

// A window has only what is referred to.
func TestRecordSparse(t *testing.T) {
	noise := texts(200_000)["noise"]
	var w bitWriter
	plain := bytes.Clone(noise[:60_000])
	w.bits(0b010, 3)
	for _, c := range plain {
		w.literal(c)
	}
	w.code(0, 7)
	w.bits(0b011, 3)
	w.match(10, 20_000) // bytes 40,000 to 40,009
	plain = append(plain, plain[40_000:40_010]...)
	for _, c := range noise[:40_000] {
		w.literal(c)
		plain = append(plain, c)
	}
	w.match(3, 32_768)
	plain = append(plain, plain[len(plain)-32_768:][:3]...)
	w.code(0, 7)
	_, m, windows, err := record(member(0, w.p, plain), 1, 1000, 1000)
	if err != nil || len(m.Points) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	want := make([]byte, 20_000)
	copy(want, plain[40_000:40_010])
	if p := m.Points[1]; p.Plain != 60_000 || !bytes.Equal(windows[1], want) {
		t.Errorf("window of %d bytes at %+v: %x…", len(windows[1]), p, windows[1][:20])
	}
}

// The size in a trailer is that of the member modulo 4 GiB.
func TestDecodeLong(t *testing.T) {
	var head, unit bitWriter
	head.bits(0b011, 3)
	head.literal('x')
	head.match(258, 1) // up to here whole bytes
	for range 8 {      // and these, too
		unit.match(258, 1)
	}
	const count, size = 1<<32/(8*258) + 1, 1 + 258 + (1<<32/(8*258)+1)*8*258
	sum, xs := uint32(0), bytes.Repeat([]byte{'x'}, 1<<20)
	for n := size; n > 0; n -= len(xs) {
		sum = crc32.Update(sum, crc32.IEEETable, xs[:min(n, len(xs))])
	}
	tail := binary.LittleEndian.AppendUint32([]byte{0}, sum) // after the end of the block
	tail = binary.LittleEndian.AppendUint32(tail, size-1<<32)
	g := NewGzip(&repeated{
		head: append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, head.p...),
		unit: bytes.Repeat(unit.p, 1000), left: count * len(unit.p), tail: tail,
	})
	g.Record(RecordOptions{})
	b, n := make([]byte, Window+1<<20), 0
	for {
		n = copy(b, b[max(0, n-Window):n])
		var err error
		if n, err = g.Decode(b, n); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	m := g.Map()
	if m.Plain != size || len(m.Points) != 1 || m.Check() != nil {
		t.Errorf("%d bytes, %d points, %v; want %d, 1, nil", m.Plain, len(m.Points), m.Check(), int64(size))
	}
	if n := int64(len(m.Marks)); n > m.Stored/(4<<10) { // that many do not pay
		t.Errorf("%d marks in %d stored bytes", n, m.Stored)
	}
}

// repeated gives head, then left bytes of units, then tail.
type repeated struct {
	head, unit, tail []byte
	left             int
}

func (r *repeated) Next() (p []byte, err error) {
	switch {
	case r.head != nil:
		p, r.head = r.head, nil
	case r.left > 0:
		p = r.unit[:min(r.left, len(r.unit))]
		r.left -= len(p)
	case r.tail != nil:
		p, r.tail = r.tail, nil
	default:
		return nil, io.EOF
	}
	return p, nil
}

// Points that lie are errors or wrong bytes.
func TestResumeLies(t *testing.T) {
	plain := texts(300_000)["words"]
	stored := compress(t, plain, 6)
	_, m, windows, err := record(stored, 1, 1<<20, 50_000)
	if err != nil || len(m.Points) < 3 {
		t.Fatal(m, err)
	}
	p := m.Points[2]
	for name, lie := range map[string]layers.Point{
		"a bit on":     {Stored: p.Stored, Bits: (p.Bits + 1) & 7, Window: p.Window},
		"a byte on":    {Stored: p.Stored + 1, Bits: p.Bits, Window: p.Window},
		"no header":    {Stored: p.Stored},
		"short window": {Stored: p.Stored, Bits: p.Bits, Window: 1},
		"many bits":    {Stored: p.Stored, Bits: 255, Window: p.Window},
		"negative":     {Stored: p.Stored, Window: -1},
		"at the end":   {Stored: m.Stored, Window: 1},
	} {
		got, err := resume(stored, lie, windows[2], 1000)
		if err == nil || !errors.Is(err, layers.ErrBadLayer) && err != io.ErrUnexpectedEOF {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	got, err := resume(stored, p, nil, 1000)
	if err == nil && bytes.Equal(got, plain[p.Plain:]) {
		t.Errorf("without the window the bytes are right")
	}
}

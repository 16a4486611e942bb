package mapped

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// encode and parse are a map's form in the fuzzer's corpus.
func encode(m *layers.Map) []byte {
	b := []byte{byte(m.Compression), byte(len(m.Points))}
	u := func(v int64) { b = binary.AppendUvarint(b, uint64(v)) }
	u(m.Plain)
	u(m.Stored)
	for _, p := range m.Points {
		u(p.Plain)
		u(p.Stored)
		u(int64(p.Window))
		b = append(b, p.Bits)
	}
	for _, k := range m.Marks {
		u(k.Plain)
		u(k.Stored)
	}
	return b
}

func parse(b []byte) *layers.Map {
	if len(b) < 2 {
		return nil
	}
	m := &layers.Map{Compression: layers.Compression(b[0])}
	points := int(b[1])
	r := bytes.NewReader(b[2:])
	u := func() int64 { v, _ := binary.ReadUvarint(r); return int64(v) }
	m.Plain, m.Stored = u(), u()
	for range points {
		p := layers.Point{Plain: u(), Stored: u(), Window: int32(u())}
		p.Bits, _ = r.ReadByte()
		m.Points = append(m.Points, p)
	}
	for r.Len() > 0 {
		m.Marks = append(m.Marks, layers.Mark{Plain: u(), Stored: u()})
	}
	return m
}

// FuzzReadAt reads with a map, windows and stored bytes that may all lie.
func FuzzReadAt(f *testing.F) {
	p := text(300<<10, 9)
	z := gzipped(f, 6, p)
	m, w := record(f, z)
	f.Add(z, encode(m), bytes.Join(w, nil), int64(200_000), 5000)
	f.Add(z[:len(z)/2], encode(m), bytes.Join(w, nil), int64(290_000), 5000)
	s, zm := frames(f, p[:100_000], p[100_000:])
	f.Add(s, encode(zm), []byte(nil), int64(99_000), 70_000)
	members := gzipped(f, 1, p[:50_000], p[50_000:])
	m, w = record(f, members)
	f.Add(members, encode(m), bytes.Join(w, nil), int64(0), 300<<10)
	f.Fuzz(func(t *testing.T, stored, mapped, window []byte, off int64, n int) {
		m := parse(mapped)
		if m == nil || m.Check() != nil || n < 0 || n > 1<<20 || off < 0 {
			return
		}
		w := make(windows, len(m.Points))
		for i, p := range m.Points {
			k := min(int(p.Window), len(window))
			w[i], window = window[:k], window[k:]
		}
		q := make([]byte, n)
		got, err := New(&memory{p: stored}, m, w).ReadAt(t.Context(), q, off)
		switch {
		case got < 0 || got > n || err == nil && got < n:
			t.Errorf("ReadAt = %d, %v of %d", got, err, n)
		case err != nil && err != io.EOF && !errors.Is(err, layers.ErrBadLayer) && !errors.Is(err, layers.ErrTooLarge):
			t.Errorf("ReadAt = %v", err)
		case err == io.EOF && int64(got) != min(int64(n), max(0, m.Plain-off)):
			t.Errorf("ReadAt = %d, EOF, with %d bytes behind %d", got, m.Plain-off, off)
		}
	})
}

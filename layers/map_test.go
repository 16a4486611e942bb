package layers

import (
	"errors"
	"slices"
	"testing"
)

func gzipMap() *Map {
	return &Map{
		Compression: Gzip, Plain: 1000, Stored: 300,
		Points: []Point{{}, {Plain: 400, Stored: 100, Bits: 3, Window: 400}, {Plain: 700, Stored: 200}},
		Marks:  []Mark{{200, 60}, {500, 130}, {600, 170}},
	}
}

func TestMapLocate(t *testing.T) {
	for _, tc := range []struct {
		name     string
		off, n   int64
		first    int
		from, to int64
	}{
		{"up to a mark", 0, 100, 0, 0, 60},
		{"exactly up to a mark", 10, 190, 0, 0, 60},
		{"up to the next point, in whose byte it ends", 0, 201, 0, 0, 101},
		{"from a point", 400, 1, 1, 100, 130},
		{"just before a point", 399, 1, 0, 0, 101},
		{"over two points", 450, 300, 1, 100, 300},
		{"no mark before the next point", 601, 99, 1, 100, 200},
		{"the end", 999, 1, 2, 200, 300},
	} {
		first, from, to := gzipMap().Locate(tc.off, tc.n)
		if first != tc.first || from != tc.from || to != tc.to {
			t.Errorf("%s: Locate(%d, %d) = %d, %d, %d, want %d, %d, %d", tc.name, tc.off, tc.n, first, from, to, tc.first, tc.from, tc.to)
		}
	}
	plain := &Map{Plain: 1000, Stored: 1000, Points: []Point{{}}}
	if first, from, to := plain.Locate(10, 20); first != 0 || from != 10 || to != 30 {
		t.Errorf("Locate(10, 20) of a plain layer = %d, %d, %d", first, from, to)
	}
}

func TestMapCheck(t *testing.T) {
	if err := gzipMap().Check(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*Map){
		"compression":       func(m *Map) { m.Compression = 9 },
		"negative size":     func(m *Map) { m.Plain = -1 },
		"huge size":         func(m *Map) { m.Stored = MaxFile + 1 },
		"no points":         func(m *Map) { m.Points = nil },
		"late start":        func(m *Map) { m.Points = m.Points[1:] },
		"plain bytes lost":  func(m *Map) { m.Compression = None },
		"order":             func(m *Map) { slices.Reverse(m.Points[1:]) },
		"same place twice":  func(m *Map) { m.Points[2].Plain = 400 },
		"stored backwards":  func(m *Map) { m.Points[2].Stored = 99 },
		"outside":           func(m *Map) { m.Points[2].Stored = 301 },
		"bits":              func(m *Map) { m.Points[1].Bits = 8 },
		"bits of a member":  func(m *Map) { m.Points[2].Bits = 1 },
		"window":            func(m *Map) { m.Points[1].Window = MaxWindow + 1 },
		"window before 0":   func(m *Map) { m.Points[1].Window = 401 },
		"zstd with windows": func(m *Map) { m.Compression = Zstd },
		"marks":             func(m *Map) { slices.Reverse(m.Marks) },
		"mark outside":      func(m *Map) { m.Marks[2].Plain = 1001 },
		"many points":       func(m *Map) { m.Points = make([]Point, MaxPoints+1) },
	} {
		m := gzipMap()
		change(m)
		if err := m.Check(); !errors.Is(err, ErrBadLayer) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: Check = %v", name, err)
		}
	}
}

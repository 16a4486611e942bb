package layers

import (
	"reflect"
	"testing"
)

func TestMapBuilder(t *testing.T) {
	var b MapBuilder
	b.Frame(0, 5)
	b.Frame(0, 20) // the first was empty
	b.Frame(10_000, 5_000)
	b.Frame(40_000, 20_000)
	b.Frame(80_000, 20_100) // 40 kB of zeros
	b.Point(Point{Plain: 90_000, Stored: 30_000, Bits: 3, Window: 100})
	b.Frame(90_000, 30_001) // the block was empty
	b.Frame(2_000_000, 30_200)
	for _, k := range []Mark{{60_000, 25_000}, {70_000, 26_000}, {130_000, 40_000}, {140_000, 41_000}, {210_000, 41_500}, {300_000, 46_000}} {
		b.Mark(k.Plain, k.Stored)
	}
	m := b.Map(Gzip, 2_000_000, 50_000)
	want := &Map{
		Compression: Gzip, Plain: 2_000_000, Stored: 50_000,
		Points: []Point{{Stored: 20}, {Plain: 40_000, Stored: 20_000}, {Plain: 90_000, Stored: 30_000, Bits: 3, Window: 100}},
		Marks:  []Mark{{70_000, 26_000}, {140_000, 41_000}, {300_000, 46_000}},
	}
	if !reflect.DeepEqual(m, want) || m.Check() != nil {
		t.Errorf("Map = %+v, %v; want %+v", m, m.Check(), want)
	}
	b = MapBuilder{}
	if m := b.Map(Zstd, 0, 0); m.Check() != nil || len(m.Points) != 1 {
		t.Errorf("map of nothing: %+v, %v", m, m.Check())
	}
}

// However large a layer is, its marks stay few.
func TestMapBuilderMarks(t *testing.T) {
	var b MapBuilder
	b.Frame(0, 0)
	plain, stored := int64(0), int64(0)
	for range 5 * maxMarks {
		plain += markSpacing
		stored += markSpacing / 3
		b.Mark(plain, stored)
	}
	m := b.Map(Gzip, plain, stored)
	if err := m.Check(); err != nil || len(m.Marks) > maxMarks || len(m.Marks) < maxMarks/2 {
		t.Fatalf("%d marks, %v", len(m.Marks), err)
	}
	for i, k := range m.Marks[1:] {
		if d := k.Plain - m.Marks[i].Plain; d > markSpacing<<b.thin {
			t.Fatalf("%d bytes between marks %d and %d", d, i, i+1)
		}
	}
}

package meter

import (
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/snapfs/snapfs/layers/fetch"
)

func TestBucketsAreInOrder(t *testing.T) {
	for i := range Buckets - 1 {
		if i > 0 && Bound(i) <= Bound(i-1) {
			t.Fatalf("Bound(%d) = %v, Bound(%d) = %v", i-1, Bound(i-1), i, Bound(i))
		}
		for d, want := range map[time.Duration]int{Bound(i): i, Bound(i) + 1: i + 1, Bound(i) - 1: i} {
			if got := bucket(d); got != want {
				t.Errorf("bucket(%v) = %d, want %d", d, got, want)
			}
		}
	}
	for _, d := range []time.Duration{-time.Second, 0, 1, unit} {
		if bucket(d) != 0 {
			t.Errorf("bucket(%v) = %d", d, bucket(d))
		}
	}
	for _, d := range []time.Duration{time.Minute, time.Hour, 1<<63 - 1} {
		if bucket(d) != Buckets-1 {
			t.Errorf("bucket(%v) = %d", d, bucket(d))
		}
	}
}

func TestQuantile(t *testing.T) {
	var h Histogram
	empty := h.Counts()
	if got := empty.Quantile(0.5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
	all := make([]time.Duration, 20_000)
	for i := range all {
		all[i] = time.Duration(rand.ExpFloat64() * float64(20*time.Millisecond))
		h.Observe(all[i])
	}
	slices.Sort(all)
	c := h.Counts()
	for _, q := range []float64{0.1, 0.5, 0.9, 0.99, 1} {
		got, want := c.Quantile(q), all[min(int(q*float64(len(all))), len(all)-1)]
		if got < want*3/4-unit || got > want*4/3+unit {
			t.Errorf("Quantile(%v) = %v, it is %v", q, got, want)
		}
	}
	if c.Total() != int64(len(all)) {
		t.Errorf("Total = %d", c.Total())
	}
	var long Histogram
	long.Observe(time.Hour)
	lc := long.Counts()
	if got := lc.Quantile(0.99); got != Bound(Buckets-2) {
		t.Errorf("of an hour: %v", got)
	}
}

func TestMeter(t *testing.T) {
	var m Meter
	began := time.Now()
	m.Waited(fetch.Wait{Layers: []string{"a", "b"}, N: 10, Began: began, Took: time.Millisecond})
	m.Waited(fetch.Wait{Layers: []string{"b"}, N: 5, Began: began, Took: time.Second})
	m.Waited(fetch.Wait{Layers: []string{"c"}, Began: began, Took: time.Second, Err: errors.New("gone")})
	m.Waited(fetch.Wait{Began: began, Took: time.Second}) // of a layer that was removed meanwhile

	all := m.All.Sum()
	if all.Took.Total() != 4 || all.Bytes != 15 || all.Failed != 1 || all.Took.Sum != 3*time.Second+time.Millisecond {
		t.Errorf("all: %+v", all)
	}
	if s := m.Of([]string{"a"}); s.Took.Total() != 1 || s.Bytes != 10 {
		t.Errorf("a: %+v", s)
	}
	if s := m.Of([]string{"b", "c", "unknown"}); s.Took.Total() != 3 || s.Bytes != 15 || s.Failed != 1 {
		t.Errorf("b and c: %+v", s)
	}
	if got := m.Last([]string{"a", "b"}); !got.Equal(began.Add(time.Second)) {
		t.Errorf("Last = %v", got)
	}
	if got := m.Last([]string{"unknown"}); !got.IsZero() {
		t.Errorf("Last of nothing = %v", got)
	}
	if d := m.Of([]string{"b", "c"}).Since(m.Of([]string{"c"})); d.Took.Total() != 2 || d.Bytes != 15 || d.Failed != 0 || d.Took.Sum != time.Second+time.Millisecond {
		t.Errorf("b and c, less c: %+v", d)
	}
	if d := m.Of([]string{"a"}).Since(m.Of([]string{"b"})); d.Took.Total() != 0 || d.Bytes != 0 || d.Took.Sum != 0 {
		t.Errorf("less than before: %+v", d)
	}
	m.Keep(func(key string) bool { return key == "a" })
	if s := m.Of([]string{"a", "b", "c"}); s.Took.Total() != 1 {
		t.Errorf("after b and c were removed: %+v", s)
	}
}

func TestMeterAtOnce(t *testing.T) {
	var m Meter
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 1000 {
				m.Waited(fetch.Wait{Layers: []string{"a", "b"}, N: 1})
			}
		})
	}
	all.Wait()
	if s := m.Of([]string{"a"}); s.Bytes != 8000 || s.Took.Total() != 8000 {
		t.Errorf("%+v", s)
	}
	w := fetch.Wait{Layers: []string{"a", "b"}, N: 1}
	if n := testing.AllocsPerRun(100, func() { m.Waited(w) }); n > 0 {
		t.Errorf("a wait costs %v allocations", n)
	}
}

func BenchmarkWaited(b *testing.B) {
	var m Meter
	w := fetch.Wait{Layers: []string{"aaaaaaaaaaaa", "bbbbbbbbbbbbb"}, N: 1, Took: 20 * time.Millisecond, Began: time.Now()}
	b.ReportAllocs()
	for b.Loop() {
		m.Waited(w)
	}
}

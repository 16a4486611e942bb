package meter

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/snapfs/snapfs/layers/fetch"
)

// A Meter counts reads that have waited. The zero value is ready.
type Meter struct {
	All    Layer
	layers sync.Map // key → *Layer; they are looked up far more often than added
}

// A Layer is what was waited for in one layer, or in all. All fields only grow.
type Layer struct {
	Took   Histogram
	Bytes  atomic.Int64 // that readers got after they had waited
	Failed atomic.Int64 // reads that got an error
	last   atomic.Int64 // when the last wait ended, Unix nanoseconds
}

// Waited counts a read. One of an object that several layers have counts for
// each of them, and once for all. A reader that gave up has waited, too.
func (m *Meter) Waited(w fetch.Wait) {
	now := w.Began.Add(w.Took).UnixNano()
	m.All.add(w, now)
	for _, key := range w.Layers {
		m.layer(key).add(w, now)
	}
}

func (l *Layer) add(w fetch.Wait, now int64) {
	l.Took.Observe(w.Took)
	l.Bytes.Add(int64(w.N))
	if w.Err != nil {
		l.Failed.Add(1)
	}
	l.last.Store(now)
}

func (m *Meter) layer(key string) *Layer {
	if l, ok := m.layers.Load(key); ok {
		return l.(*Layer)
	}
	l, _ := m.layers.LoadOrStore(key, new(Layer))
	return l.(*Layer)
}

// Last is when the last wait for one of the layers ended; zero: there was none.
func (m *Meter) Last(keys []string) (last time.Time) {
	for _, key := range keys {
		if l, ok := m.layers.Load(key); ok {
			if t := time.Unix(0, l.(*Layer).last.Load()); t.After(last) {
				last = t
			}
		}
	}
	return last
}

// A Sum is what several layers have counted together.
type Sum struct {
	Took          Counts
	Bytes, Failed int64
}

// Of adds up the layers. A read of an object that two of them have counts twice.
func (m *Meter) Of(keys []string) (s Sum) {
	for _, key := range keys {
		if l, ok := m.layers.Load(key); ok {
			c := l.(*Layer).Sum()
			s.Took.Add(&c.Took)
			s.Bytes += c.Bytes
			s.Failed += c.Failed
		}
	}
	return s
}

// Since is what was counted after before. What a layer that was forgotten
// meanwhile had counted is not taken away.
func (s Sum) Since(before Sum) Sum {
	for i := range s.Took.N {
		s.Took.N[i] = max(0, s.Took.N[i]-before.Took.N[i])
	}
	s.Took.Sum = max(0, s.Took.Sum-before.Took.Sum)
	s.Bytes, s.Failed = max(0, s.Bytes-before.Bytes), max(0, s.Failed-before.Failed)
	return s
}

// Sum is what l has counted.
func (l *Layer) Sum() Sum { return Sum{l.Took.Counts(), l.Bytes.Load(), l.Failed.Load()} }

// Keep forgets the layers that keep does not name: those that were removed.
func (m *Meter) Keep(keep func(key string) bool) {
	m.layers.Range(func(key, _ any) bool {
		if !keep(key.(string)) {
			m.layers.Delete(key)
		}
		return true
	})
}

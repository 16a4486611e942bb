package fetch

import (
	"errors"
	"sync"
	"time"
)

// Sizes of requests in the background, in stored bytes. While readers miss, a
// request must be short, because theirs shares the line with it.
const (
	minUnit  = 256 << 10
	maxUnit  = 4 << 20
	busyUnit = 128 << 10
	// Time of the whole line that one request may take.
	minPart = 10 * time.Millisecond
	maxPart = 100 * time.Millisecond
)

// A pacer chooses the size of requests. With three under way, the line is full if
// each takes half a round trip of it: two come while the third is asked for.
// More would only make a reader wait.
type pacer struct {
	f *Fetcher

	mu    sync.Mutex
	unit  int64
	least time.Duration // that a request took
}

func newPacer(f *Fetcher) *pacer { return &pacer{f: f, unit: minUnit} }

// limit is how many bytes to ask for at once.
func (p *pacer) limit() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.f.gate.idle() {
		return p.unit
	}
	return min(p.unit, busyUnit)
}

// ahead is how much may wait for who reads in order: three requests under way,
// and one that is being read.
func (p *pacer) ahead() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(4*p.unit, 8*minUnit)
}

// pace is told how long n bytes took.
func (p *pacer) pace(n int64, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	took = max(took, time.Microsecond)
	if p.least == 0 || took < p.least {
		p.least = took
	}
	line := float64(n) / took.Seconds() * float64(p.f.o.Parallel)
	part := min(maxPart, max(minPart, p.least))
	want := min(maxUnit, max(minUnit, int64(line*part.Seconds())))
	p.unit = (3*p.unit + want) / 4
}

// ErrNoRoom says that the background ended because there shall not be more on disk.
var ErrNoRoom = errors.New("no room for what nobody waits for")

// room says whether what nobody waits for may be stored.
func (f *Fetcher) room() bool { return f.o.Room == nil || f.o.Room() }

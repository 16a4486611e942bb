// Package meter counts what readers wait for, so that the daemon can say how
// long a miss takes and whose it is: a [Histogram] of times, and a [Meter] that
// has one for all reads and one for each layer.
//
// Counting is a handful of atomic additions, without a lock and without an
// allocation, on the path of a read that has waited for the network anyway.
package meter

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Buckets of a Histogram: two for every power of two, from unit to 2^17 units
// (16 s), which is further than a read may wait. So a quantile is known to a
// fifth of itself.
const (
	unit    = 125 * time.Microsecond // a miss on loopback takes about as long
	Buckets = 2*17 + 2               // the last is of everything longer
)

// Bound is the longest time that bucket i counts; none for the last.
func Bound(i int) time.Duration {
	d := unit << (i / 2)
	if i%2 == 1 {
		d += d / 2
	}
	return d
}

// bucket is the first whose bound is at least d.
func bucket(d time.Duration) int {
	if d <= unit {
		return 0
	}
	k := bits.Len64(uint64((d-1)/unit)) - 1 // unit<<k < d <= unit<<(k+1)
	if k >= Buckets/2 {
		return Buckets - 1
	}
	if i := 2*k + 1; d <= Bound(i) {
		return i
	}
	return min(2*k+2, Buckets-1)
}

// A Histogram counts times. The zero value is ready; it is safe for concurrent use.
type Histogram struct {
	n   [Buckets]atomic.Int64
	sum atomic.Int64 // nanoseconds
}

// Observe counts d.
func (h *Histogram) Observe(d time.Duration) {
	h.n[bucket(d)].Add(1)
	h.sum.Add(int64(d))
}

// Counts returns what has been counted so far.
func (h *Histogram) Counts() (c Counts) {
	for i := range h.n {
		c.N[i] = h.n[i].Load()
	}
	c.Sum = time.Duration(h.sum.Load())
	return c
}

// Counts is what a Histogram had counted at some time.
type Counts struct {
	N   [Buckets]int64
	Sum time.Duration
}

// Total is how many times were counted.
func (c *Counts) Total() (n int64) {
	for _, k := range c.N {
		n += k
	}
	return n
}

// Add adds what another Histogram has counted.
func (c *Counts) Add(other *Counts) {
	for i := range c.N {
		c.N[i] += other.N[i]
	}
	c.Sum += other.Sum
}

// Quantile is a time that a part q of those counted do not exceed, 0 if there
// are none. It lies in the right bucket, and there as if its times were spread evenly.
func (c *Counts) Quantile(q float64) time.Duration {
	total := c.Total()
	if total == 0 {
		return 0
	}
	rank := q * float64(total)
	for i, n := range c.N {
		if rank > float64(n) && i < Buckets-1 {
			rank -= float64(n)
			continue
		}
		var low time.Duration
		if i > 0 {
			low = Bound(i - 1)
		}
		if i == Buckets-1 || n == 0 {
			return low
		}
		return low + time.Duration(float64(Bound(i)-low)*rank/float64(n))
	}
	return 0
}

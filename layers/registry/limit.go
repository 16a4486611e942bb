package registry

import (
	"context"
	"sync"
	"time"

	"github.com/snapfs/snapfs/layers"
)

const (
	limitPart = 64 << 10  // bytes that a body takes from the limit at once, at most
	minBurst  = 256 << 10 // bytes
)

// A limiter is a token bucket for two classes: the background, see
// [layers.Background], leaves half of it to readers. A reader whose bytes are in
// there is not held up at all, however busy the background is; the background
// pays for it, so that over time both together keep to the rate. It is not
// golang.org/x/time/rate because that knows no classes, and cannot take back
// what was asked for and did not come.
type limiter struct {
	rate, burst float64 // bytes per second, bytes
	part        int     // bytes taken at once

	mu     sync.Mutex
	tokens float64
	at     time.Time // when tokens was right
}

// newLimiter makes a limiter of n bytes per second; nil, which limits nothing,
// if n is not positive.
func newLimiter(n int64) *limiter {
	if n <= 0 {
		return nil
	}
	burst := max(minBurst, float64(n)/4)
	return &limiter{rate: float64(n), burst: burst, part: min(limitPart, int(burst/8)), tokens: burst, at: time.Now()}
}

// take waits until up to n bytes may be read and says how many.
func (l *limiter) take(ctx context.Context, n int) (int, error) {
	if l == nil {
		return n, nil
	}
	n = min(n, l.part)
	for {
		background, hurry := layers.IsBackground(ctx)
		wait := l.try(n, background)
		if wait == 0 {
			return n, nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-hurry:
		case <-ctx.Done():
			t.Stop()
			return 0, context.Cause(ctx)
		}
		t.Stop()
	}
}

// try takes n bytes, or says how long it will be until it may.
func (l *limiter) try(n int, background bool) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.tokens = min(l.burst, l.tokens+now.Sub(l.at).Seconds()*l.rate)
	l.at = now
	floor := 0.0
	if background {
		floor = l.burst / 2
	}
	if missing := floor - l.tokens; missing > 0 {
		return max(time.Duration(missing/l.rate*float64(time.Second)), time.Millisecond)
	}
	l.tokens -= float64(n)
	return 0
}

// back returns n bytes that were taken and not read.
func (l *limiter) back(n int) {
	if l == nil || n == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tokens = min(l.burst, l.tokens+float64(n))
}

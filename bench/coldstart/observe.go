package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/snapfs/snapfs/bench/serve"
)

// An observer notes what crosses a link, while it is told to.
type observer struct {
	mu       sync.Mutex
	begin    time.Time // zero: not now
	bytes    int64
	curve    []arrived
	requests map[int64]serve.Request
}

// step is how fine the curve of bytes is.
const step = 10 * time.Millisecond

func (o *observer) start() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.begin, o.bytes, o.curve, o.requests = time.Now(), 0, nil, make(map[int64]serve.Request)
}

// arrived is told by the link of bytes that have reached the client.
func (o *observer) arrived(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.begin.IsZero() {
		return
	}
	o.bytes += int64(n)
	at := time.Since(o.begin).Truncate(step).Seconds()
	if k := len(o.curve); k > 0 && o.curve[k-1].At == at {
		o.curve[k-1].Bytes = o.bytes
		return
	}
	o.curve = append(o.curve, arrived{at, o.bytes})
}

// seen is told by the registry of a request.
func (o *observer) seen(r serve.Request) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.begin.IsZero() && r.Begin.After(o.begin) {
		o.requests[r.ID] = r
	}
}

// stop returns what came until now, in at most about 300 steps.
func (o *observer) stop() (down int64, line timeline) {
	o.mu.Lock()
	defer o.mu.Unlock()
	line.Bytes = thin(o.curve, 300)
	for _, r := range slices.SortedFunc(maps.Values(o.requests), func(a, b serve.Request) int { return a.Begin.Compare(b.Begin) }) {
		q := request{Begin: round(r.Begin.Sub(o.begin)), What: what(r), Bytes: r.Bytes}
		if !r.End.IsZero() {
			q.End = round(r.End.Sub(o.begin))
		}
		line.Requests = append(line.Requests, q)
	}
	o.begin = time.Time{}
	return o.bytes, line
}

// thin leaves out points of a curve that has too many; never the last.
func thin(curve []arrived, most int) []arrived {
	every := (len(curve) + most - 1) / most
	if every <= 1 {
		return curve
	}
	var list []arrived
	for i, p := range curve {
		if i%every == every-1 || i == len(curve)-1 {
			list = append(list, p)
		}
	}
	return list
}

// what names a request in a few letters.
func what(r serve.Request) string {
	target := r.Target
	if _, hex, ok := strings.Cut(target, ":"); ok {
		target = hex[:min(8, len(hex))]
	}
	s := strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.Kind, target))
	if r.Range != "" {
		s += " " + r.Range[:min(60, len(r.Range))]
	}
	if r.Status >= 400 {
		s += fmt.Sprintf(" → %d", r.Status)
	}
	return s
}

func round(d time.Duration) float64 { return d.Round(10 * time.Microsecond).Seconds() }

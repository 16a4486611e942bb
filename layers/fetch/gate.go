package fetch

import (
	"context"
	"slices"
	"sync"
	"time"
)

// A class orders requests.
type class int

const (
	demand     class = iota // somebody waits for it
	ahead                   // somebody will probably want it next
	boot                    // a start will want it: see Prefetch
	background              // completes a layer
	classes
)

const (
	maxDemand = 16 // requests at once; bounds memory
	maxAhead  = 4
	// busy is how long after a reader's miss the next one is expected. So
	// long, the background has one small request under way at most. A boot
	// profile has one while a reader waits, and else as many as fill the line:
	// most of what the start will miss is in it.
	busy = 250 * time.Millisecond
)

// A gate lets requests through: any class only when nothing of a class before
// it waits, and the background only when nothing else is under way.
// Where that rule has exceptions, they keep the line full.
type gate struct {
	parallel int

	mu    sync.Mutex
	open  [classes]int // requests under way
	queue [classes][]chan struct{}
	last  time.Time // end of the last demand
}

func newGate(parallel int) *gate { return &gate{parallel: parallel} }

// enter waits for its turn; leave ends the request. Who is in a hurry passes
// without a turn.
func (g *gate) enter(ctx context.Context, c class, hurry <-chan struct{}) (leave func(), err error) {
	g.mu.Lock()
	turn := make(chan struct{})
	g.queue[c] = append(g.queue[c], turn)
	g.pass()
	g.mu.Unlock()
	leave = sync.OnceFunc(func() { g.leave(c) })
	select {
	case <-turn:
		return leave, nil
	case <-hurry:
	case <-ctx.Done():
		err = ctx.Err()
	}
	g.mu.Lock()
	i := slices.Index(g.queue[c], turn)
	if i >= 0 {
		g.queue[c] = slices.Delete(g.queue[c], i, i+1)
	}
	g.mu.Unlock()
	if i < 0 { // its turn came as well
		leave()
	}
	return func() {}, err
}

func (g *gate) leave(c class) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[c]--
	if c == demand {
		g.last = time.Now()
	}
	g.pass()
}

// hold counts a request that does not pass the gate as one of class c, until leave.
func (g *gate) hold(c class) (leave func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[c]++
	return sync.OnceFunc(func() { g.leave(c) })
}

// pass lets in all who may enter. g.mu is held.
func (g *gate) pass() {
	for c := range classes {
		for len(g.queue[c]) > 0 && g.may(c) {
			close(g.queue[c][0])
			g.queue[c] = g.queue[c][1:]
			g.open[c]++
		}
		if len(g.queue[c]) > 0 {
			return
		}
	}
}

func (g *gate) may(c class) bool {
	switch c {
	case demand:
		return g.open[demand] < maxDemand
	case ahead:
		return g.open[ahead] < maxAhead
	case boot:
		return g.open[boot] == 0 || g.open[demand]+g.open[ahead] == 0 && g.open[boot] < g.parallel
	}
	if g.open[demand]+g.open[ahead]+g.open[boot] > 0 {
		return false
	}
	if time.Since(g.last) < busy {
		return g.open[background] == 0
	}
	return g.open[background] < g.parallel
}

// idle says whether no reader has missed anything for a while.
func (g *gate) idle() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.open[demand]+g.open[ahead]+g.open[boot]+len(g.queue[demand]) == 0 && time.Since(g.last) >= busy
}

package snapshotter

import (
	"maps"
	"sync"

	"github.com/opencontainers/go-digest"
)

// An index is what is asked of the database by something else than the name of
// a snapshot. It follows the database, so it may be late: it advises, and what it
// has advised is checked where the database is changed.
type index struct {
	mu   sync.Mutex
	held map[string]row // by ID of the snapshot
	// dirs are the chain IDs that snapshots have, or will have, as a directory.
	dirs  map[digest.Digest]int
	chain map[string]digest.Digest // which one: by ID of the snapshot

	// chains of committed snapshots, by ID. They never change.
	chains map[string]chain

	pending map[*needs]struct{} // of snapshots that are being made
}

func (x *index) init() {
	x.held = make(map[string]row)
	x.dirs = make(map[digest.Digest]int)
	x.chain = make(map[string]digest.Digest)
	x.chains = make(map[string]chain)
	x.pending = make(map[*needs]struct{})
}

func (x *index) chainOf(id string) (c chain, ok bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	c, ok = x.chains[id]
	return c, ok
}

// keepChain keeps a chain for who asks next. One that was removed meanwhile is
// never asked for; the next sweep drops it.
func (x *index) keepChain(c chain) {
	if c.id == "" {
		return
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.chains[c.id] = c
}

// dropChains drops the chains of what is not there.
func (x *index) dropChains(alive map[string]bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	maps.DeleteFunc(x.chains, func(id string, _ chain) bool { return !alive[id] })
}

// pend keeps n until the returned function is called.
func (x *index) pend(n needs) (done func()) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pending[&n] = struct{}{}
	return func() {
		x.mu.Lock()
		defer x.mu.Unlock()
		delete(x.pending, &n)
	}
}

// waiting are the needs of snapshots that are being made.
func (x *index) waiting() (all []needs) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for n := range x.pending {
		all = append(all, *n)
	}
	return all
}

// hold notes what the book holds for a snapshot.
func (x *index) hold(id string, r row) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(id)
	x.held[id] = r
}

// dir notes that a snapshot has the layer with this chain ID as a directory.
func (x *index) dir(id string, chain digest.Digest) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(id)
	if chain != "" {
		x.chain[id] = chain
		x.dirs[chain]++
	}
}

// forget is for removed snapshots.
func (x *index) forget(id string) (held bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, held = x.held[id]
	x.drop(id)
	return held
}

func (x *index) drop(id string) {
	delete(x.held, id)
	delete(x.chains, id)
	if chain, ok := x.chain[id]; ok {
		delete(x.chain, id)
		if x.dirs[chain]--; x.dirs[chain] == 0 {
			delete(x.dirs, chain)
		}
	}
}

// onlyHeld says whether every snapshot that has this chain ID, and there is one,
// is held by the book.
func (x *index) onlyHeld(chain digest.Digest) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.dirs[chain] > 0 {
		return false
	}
	for _, r := range x.held {
		if r.Target == chain {
			return true
		}
	}
	return false
}

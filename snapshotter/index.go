package snapshotter

import (
	"maps"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// An index is what is asked of the database by something else than the name of
// a snapshot. It follows the database, so it may be late: it advises, and what it
// has advised is checked where the database is read or changed.
type index struct {
	mu     sync.Mutex
	byID   map[string]labelled
	byRef  map[string]map[string]labelled // label, ID
	chains map[string]chain               // of committed snapshots, by ID; they never change

	pending map[*needs]struct{} // of snapshots that are being made
}

// labelled is an active or committed snapshot that has a chain ID for a label.
type labelled struct {
	name, ref string
	held      digest.Digest // the chain ID that the book holds it as; "": it is a directory
}

func (x *index) init() {
	x.byID = make(map[string]labelled)
	x.byRef = make(map[string]map[string]labelled)
	x.chains = make(map[string]chain)
	x.pending = make(map[*needs]struct{})
}

// put notes what a snapshot is now. r is nil if the book does not hold it.
func (x *index) put(id string, info snapshots.Info, r *row) {
	l := labelled{name: info.Name, ref: info.Labels[snapshots.LabelSnapshotRef]}
	if r != nil {
		l.held = r.Target
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(id)
	if l.ref == "" || info.Kind == snapshots.KindView {
		return
	}
	x.byID[id] = l
	if x.byRef[l.ref] == nil {
		x.byRef[l.ref] = make(map[string]labelled)
	}
	x.byRef[l.ref][id] = l
}

// forget is for removed snapshots.
func (x *index) forget(id string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.drop(id)
	delete(x.chains, id)
}

func (x *index) drop(id string) {
	l, ok := x.byID[id]
	if !ok {
		return
	}
	delete(x.byID, id)
	delete(x.byRef[l.ref], id)
	if len(x.byRef[l.ref]) == 0 {
		delete(x.byRef, l.ref)
	}
}

// onlyHeld says whether every snapshot that has this chain ID, and there is one,
// is held by the book.
func (x *index) onlyHeld(chain digest.Digest) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := x.byRef[chain.String()]
	for _, l := range all {
		if l.held != chain {
			return false
		}
	}
	return len(all) > 0
}

// names are those of snapshots with a label.
func (x *index) names(ref string) (all []string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, l := range x.byRef[ref] {
		all = append(all, l.name)
	}
	slices.Sort(all)
	return all
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

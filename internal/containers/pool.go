package containers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/cgroups"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// MaxPool is the largest pool.
const MaxPool = 256

// A pool keeps monitors that were started ahead of their containers. Each is used
// once; another takes its place in the background, one after the other: not
// while containers are being started, and not never because they always are.
//
// A slot has nothing of any container's, and it ends, with its sandbox, when this
// process lets go of its socket, however that comes. A cgroup that one has left as it was
// killed is removed with it, or when the next worker begins.
type pool struct {
	spawn func(context.Context) (*monitor.Slot, error)
	log   *slog.Logger
	wake  chan struct{} // there may be something to do
	all   sync.WaitGroup

	mu     sync.Mutex
	size   int
	ended  bool            // run has, or is about to
	on     bool            // it is being filled
	slots  []*monitor.Slot // warm, the oldest first
	short  time.Time       // since when some have been missing; zero: none are
	asked  time.Time       // when one was wanted last
	next   time.Time       // not to try before, after failures
	failed int             // in a row
	count  control.PoolCounts
}

// Of the refilling.
const (
	poolRest     = 50 * time.Millisecond  // after a start, as it needs the CPU
	poolPatience = 250 * time.Millisecond // for which a slot is missing at most, while starts come all the time
	poolRetry    = time.Second            // after a failure; twice as long after the next, and so on
	poolMaxRetry = time.Minute
)

// Why a start was not served from the pool.
const (
	missEmpty = "empty" // all slots were in use, or had not been made
	missDied  = "died"  // it was given the container, and did not live to serve it
)

// Why a start that was given a slot did without its sandbox.
const (
	bareNone       = "none"       // there was none
	bareAgain      = "again"      // the container was started before
	bareCgroup     = "cgroup"     // another cgroup parent
	bareNamespaces = "namespaces" // some are the host's, another container's, or a user namespace
	bareHooks      = "hooks"      // of devices (CDI)
	bareLimits     = "limits"     // of controllers that not every container has
)

// sandboxPrefix begins the names of sandboxes' cgroups, which a container keeps.
const sandboxPrefix = "pool-"

// sandboxed says whether a container was made to be started in a sandbox.
func sandboxed(c *monitor.Config) bool {
	return strings.HasPrefix(path.Base(c.Spec.Linux.CgroupsPath), sandboxPrefix)
}

// bareBecause says why a container cannot be started in a sandbox; "" if it can. The
// monitor has the last word (runtime.Ahead.Fits).
func bareBecause(c *monitor.Config) string {
	if len(c.Joins) > 0 {
		return bareNamespaces
	}
	if c.Spec.Hooks != nil {
		return bareHooks
	}
	have := map[specs.LinuxNamespaceType]bool{}
	for _, n := range c.Spec.Linux.Namespaces {
		if n.Path != "" {
			return bareNamespaces
		}
		have[n.Type] = true
	}
	for _, kind := range []specs.LinuxNamespaceType{specs.MountNamespace, specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace} {
		if !have[kind] {
			return bareNamespaces
		}
	}
	if have[specs.UserNamespace] || have[specs.TimeNamespace] {
		return bareNamespaces
	}
	if cgroups.Special(c.Spec.Linux.Resources) {
		return bareLimits
	}
	return ""
}

func newPool(size int, now bool, spawn func(context.Context) (*monitor.Slot, error), log *slog.Logger) *pool {
	p := &pool{spawn: spawn, log: log, size: size, on: now, wake: make(chan struct{}, 1)}
	p.count.Misses, p.count.Bare = map[string]int64{}, map[string]int64{}
	p.rouse()
	return p
}

func (p *pool) rouse() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// takeFor returns a slot for a new container, nil if there is none, and puts the
// container into its sandbox's cgroup if it can be started there. Its owner is the caller.
func (p *pool) takeFor(c *monitor.Config) *monitor.Slot {
	slot := p.take()
	if slot == nil {
		return nil
	}
	why := bareBecause(c)
	if why == "" && path.Dir(c.Spec.Linux.CgroupsPath) != path.Dir(slot.Cgroup) {
		why = bareCgroup
	}
	if has, _ := slot.Sandbox(); why == "" && !has {
		why = bareNone
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if why == "" {
		c.Spec.Linux.CgroupsPath = slot.Cgroup
		p.count.Sandboxes++
	} else {
		p.count.Bare[why]++
	}
	return slot
}

// takeAgain returns a slot for a container that has been started before, in a cgroup of its own.
func (p *pool) takeAgain() *monitor.Slot {
	slot := p.take()
	if slot != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.count.Bare[bareAgain]++
	}
	return slot
}

// take returns a slot, nil if there is none. Its owner is the caller.
func (p *pool) take() *monitor.Slot {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.size == 0 || p.ended {
		return nil
	}
	defer p.rouse()
	p.on, p.asked = true, time.Now()
	for len(p.slots) > 0 {
		s := p.slots[0]
		p.slots = slices.Delete(p.slots, 0, 1)
		if s.Alive() {
			return s
		}
		p.count.Died++
		p.all.Go(func() { p.bury(s) })
	}
	p.count.Misses[missEmpty]++
	return nil
}

// giveBack takes back a slot that was not used; it may be nil.
func (p *pool) giveBack(s *monitor.Slot) {
	if s == nil {
		return
	}
	p.mu.Lock()
	keep := len(p.slots) < p.size && !p.ended
	if keep {
		p.slots = slices.Insert(p.slots, 0, s)
	}
	p.mu.Unlock()
	if !keep {
		s.Close() //nolint:errcheck // it has nothing of anybody's
	}
}

// used says what became of a slot that was taken.
func (p *pool) used(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(err, monitor.ErrSlot) {
		p.count.Died++
		p.count.Misses[missDied]++
		return
	}
	p.count.Hits++
}

// run keeps the pool full until ctx ends, and ends the slots.
func (p *pool) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	defer p.all.Wait()
	defer p.end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-timer.C:
		}
		wait, want := p.due(time.Now())
		switch {
		case !want:
			timer.Stop()
		case wait > 0:
			timer.Reset(wait)
		default:
			p.made(p.make(ctx))
			timer.Reset(0)
		}
	}
}

// due says whether a slot is missing, and how long from now to wait before it is made.
func (p *pool) due(now time.Time) (wait time.Duration, want bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.on || len(p.slots) >= p.size {
		p.short = time.Time{}
		return 0, false
	}
	if p.short.IsZero() {
		p.short = now
	}
	at := p.asked.Add(poolRest)
	if limit := p.short.Add(poolPatience); at.After(limit) {
		at = limit
	}
	if p.next.After(at) {
		at = p.next
	}
	return at.Sub(now), true
}

// make makes one slot, and adds it when it is warm.
func (p *pool) make(ctx context.Context) error {
	s, err := p.spawn(ctx)
	if err != nil {
		return err
	}
	if err := s.Wait(ctx); err != nil {
		return errors.Join(err, s.Close())
	}
	p.mu.Lock()
	keep := p.on && len(p.slots) < p.size // as it is by now
	if keep {
		p.slots = append(p.slots, s)
	}
	p.mu.Unlock()
	if !keep {
		return s.Close()
	}
	p.all.Go(func() { // ends with the slot, which run sees to
		<-s.Ended()
		p.lost(s)
	})
	return nil
}

// made is what follows an attempt.
func (p *pool) made(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if err == nil {
		p.failed, p.short = 0, now // for the next, if there is one missing
		p.count.Made++
		return
	}
	p.failed++
	p.next = now.Add(min(poolRetry<<min(p.failed-1, 10), poolMaxRetry))
	if p.failed == 1 {
		p.log.Warn("no monitor can be started ahead", "err", err)
	}
}

// lost forgets a slot that has ended without having been taken.
func (p *pool) lost(s *monitor.Slot) {
	p.mu.Lock()
	i := slices.Index(p.slots, s)
	if i >= 0 {
		p.slots = slices.Delete(p.slots, i, i+1)
		p.count.Died++
	}
	p.mu.Unlock()
	if i >= 0 {
		p.bury(s)
		p.rouse()
	}
}

// bury removes what a dead slot has left.
func (p *pool) bury(s *monitor.Slot) {
	s.Close()                                                     //nolint:errcheck // it has hung up
	for wait := time.Millisecond; wait < time.Second; wait *= 2 { // what is in it may still be ending
		busy, err := cgroups.RemoveEmpty(path.Dir(s.Cgroup), path.Base(s.Cgroup))
		if err != nil {
			p.log.Warn("cgroup of a monitor that was started ahead", "err", err)
		}
		if !busy {
			return
		}
		time.Sleep(wait)
	}
}

// end ends the slots, and what is given back from now on.
func (p *pool) end() {
	p.mu.Lock()
	p.ended = true
	p.mu.Unlock()
	p.drop(0)
}

// drop ends all slots but n, the youngest first.
func (p *pool) drop(n int) {
	p.mu.Lock()
	n = min(n, len(p.slots))
	gone := slices.Clone(p.slots[n:])
	p.slots = p.slots[:n]
	p.mu.Unlock()
	for _, s := range gone {
		s.Close()
	}
}

// change carries out a request. With drain, slots are made again after the next start.
func (p *pool) change(a control.PoolArgs) {
	p.mu.Lock()
	if a.Size != nil {
		p.size, p.on, p.next = *a.Size, true, time.Time{}
	}
	if a.Drain {
		p.on = false
	}
	n := p.size
	p.mu.Unlock()
	if a.Drain {
		n = 0
	}
	p.drop(n)
	p.rouse()
}

func (p *pool) view() control.Pool {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := control.Pool{Size: p.size, Counts: p.count}
	v.Counts.Misses, v.Counts.Bare = maps.Clone(p.count.Misses), maps.Clone(p.count.Bare)
	for _, s := range p.slots {
		row := control.PoolSlot{Pid: s.Pid, Made: s.Born, Cgroup: s.Cgroup}
		if has, why := s.Sandbox(); !has {
			row.Cgroup, row.Why = "", why
		}
		v.Slots = append(v.Slots, row)
	}
	return v
}

// Pool shows the monitors that were started ahead, after a change if a asks for one.
func (s *Service) Pool(a control.PoolArgs) (control.Pool, error) {
	if a.Size != nil && (*a.Size < 0 || *a.Size > MaxPool) {
		return control.Pool{}, invalid("--size %d: want 0 to %d", *a.Size, MaxPool)
	}
	if a.Size != nil || a.Drain {
		s.pool.change(a)
	}
	return s.pool.view(), nil
}

// spawnSlot starts a monitor that waits for a container.
func (s *Service) spawnSlot(ctx context.Context) (*monitor.Slot, error) {
	like, err := s.like()
	if err != nil {
		return nil, err
	}
	// As long as the name of any container's directory, which it will be replaced by.
	return s.Spawner.SpawnSlot(ctx, s.dir(strings.Repeat("-", len(like.ID))), like)
}

// like is the configuration of a container as most are, in a cgroup of its own. There is none with that ID.
func (s *Service) like() (*monitor.Config, error) {
	a := control.CreateArgs{ID: strings.Repeat("0", 64), Args: []string{"/none"}, Hostname: "none", Network: control.NetworkBridge}
	sp, err := spec(&a, new(ocispec.Image), s.dir(a.ID), s.CgroupParent)
	if err != nil {
		return nil, err
	}
	var random [16]byte
	rand.Read(random[:]) //nolint:errcheck // it never fails
	sp.Linux.CgroupsPath = path.Join(s.CgroupParent, sandboxPrefix+hex.EncodeToString(random[:]))
	return &monitor.Config{
		ID: a.ID, Name: "none", Spec: sp, Remove: true, CgroupParent: s.CgroupParent, Socket: s.socket(a.ID),
		SeccompCache: filepath.Join(s.Root, "seccomp"),
	}, nil
}

// startMonitor has a monitor for a container: slot, or a new one.
func (s *Service) startMonitor(ctx context.Context, c *monitor.Config, join []monitor.Namespace, slot *monitor.Slot) error {
	dir := s.dir(c.ID)
	if slot == nil {
		return s.Spawner.SpawnMonitor(ctx, dir, join)
	}
	err := slot.Give(ctx, dir, filepath.Join(dir, MonitorLog), join, c)
	s.pool.used(err)
	if errors.Is(err, monitor.ErrSlot) {
		s.pool.bury(slot) // the container's cgroup may be its sandbox's
		return s.Spawner.SpawnMonitor(ctx, dir, join)
	}
	slot.Close() //nolint:errcheck // it has hung up
	return err
}

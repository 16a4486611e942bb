package containers

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// fakeSlots are the other ends of slots: of monitors that say they are warm.
type fakeSlots struct {
	t  *testing.T
	mu sync.Mutex

	err  error
	made int
	ends map[*monitor.Slot]*control.Conn
}

// spawn makes a slot.
func (f *fakeSlots) spawn(context.Context) (*monitor.Slot, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.made++
	if f.err != nil {
		return nil, f.err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var ends [2]*control.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		c, err := net.FileConn(file)
		file.Close()
		if err != nil {
			return nil, err
		}
		ends[i] = control.NewConn(c.(*net.UnixConn))
	}
	f.t.Cleanup(func() { ends[1].Close() })
	like := &monitor.Config{Spec: &specs.Spec{Linux: &specs.Linux{CgroupsPath: "/snapfs-none/pool-1"}}}
	s := monitor.NewSlot(ends[0], f.made, like)
	if err := ends[1].Send(map[string]bool{"Sandbox": true}); err != nil {
		return nil, err
	}
	f.ends[s] = ends[1]
	return s, nil
}

// kill ends a slot.
func (f *fakeSlots) kill(s *monitor.Slot) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ends[s].Close()
}

func (f *fakeSlots) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.made
}

// aPool is one that runs until the test's end.
func aPool(t *testing.T, size int, now bool) (*pool, *fakeSlots) {
	t.Helper()
	f := &fakeSlots{t: t, ends: map[*monitor.Slot]*control.Conn{}}
	p := newPool(size, now, f.spawn, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.run(ctx) })
	t.Cleanup(func() {
		cancel()
		running.Wait()
		if n := len(p.view().Slots); n != 0 {
			t.Errorf("%d slots are left", n)
		}
	})
	return p, f
}

// becomes waits until the pool has so many.
func becomes(t *testing.T, p *pool, n int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(p.view().Slots) != n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d slots, want %d", len(p.view().Slots), n)
		}
	}
}

func TestPoolFills(t *testing.T) {
	p, f := aPool(t, 3, true)
	becomes(t, p, 3)
	a := p.take()
	if a == nil || !a.Alive() {
		t.Fatal("no slot in a full pool")
	}
	defer a.Close()
	becomes(t, p, 3)
	if f.count() != 4 {
		t.Errorf("%d were made, want 4", f.count())
	}
	if b := p.take(); b == a {
		t.Error("a slot was given out twice")
	} else {
		p.giveBack(b)
	}
	becomes(t, p, 3)
}

// TestPoolEnds: a slot that is given back when the pool has ended ends, too, and the pool waits for that.
func TestPoolEnds(t *testing.T) {
	f := &fakeSlots{t: t, ends: map[*monitor.Slot]*control.Conn{}}
	p := newPool(1, true, f.spawn, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { p.run(ctx) })
	becomes(t, p, 1)
	s := p.take()
	if s == nil {
		t.Fatal("no slot in a full pool")
	}
	cancel()
	for ended := false; !ended; time.Sleep(time.Millisecond) {
		p.mu.Lock()
		ended = p.ended
		p.mu.Unlock()
	}
	p.giveBack(s)
	running.Wait()
	if n := len(p.view().Slots); n != 0 || s.Alive() {
		t.Errorf("%d slots are left, alive: %v", n, s.Alive())
	}
	if p.take() != nil {
		t.Error("a slot of a pool that has ended")
	}
}

// TestPoolShrinks: a slot that is being made when the pool is made smaller does not stay.
func TestPoolShrinks(t *testing.T) {
	f := &fakeSlots{t: t, ends: map[*monitor.Slot]*control.Conn{}}
	var made *monitor.Slot
	var p *pool
	p = newPool(1, true, func(ctx context.Context) (s *monitor.Slot, err error) {
		p.change(control.PoolArgs{Size: new(int)})
		made, err = f.spawn(ctx)
		return made, err
	}, slog.New(slog.DiscardHandler))
	if err := p.make(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(p.view().Slots); n != 0 || made.Alive() {
		t.Errorf("%d slots are left, alive: %v", n, made.Alive())
	}
}

// TestPoolWaits: it is filled from the first start on.
func TestPoolWaits(t *testing.T) {
	p, f := aPool(t, 1, false)
	if s := p.take(); s != nil {
		t.Fatal("a slot out of nothing")
	}
	becomes(t, p, 1)
	p.change(control.PoolArgs{Drain: true})
	becomes(t, p, 0)
	made := f.count()
	if s := p.take(); s != nil {
		t.Fatal("a slot of a drained pool")
	}
	becomes(t, p, 1)
	if f.count() == made {
		t.Error("none was made after the start")
	}
	if v := p.view(); v.Counts.Misses[missEmpty] != 2 || v.Size != 1 {
		t.Errorf("%+v", v)
	}
}

func TestPoolOff(t *testing.T) {
	p, f := aPool(t, 0, true)
	if s := p.take(); s != nil || len(p.view().Counts.Misses) != 0 {
		t.Error("a pool of none counts")
	}
	size := 2
	p.change(control.PoolArgs{Size: &size})
	becomes(t, p, 2)
	size = 1
	p.change(control.PoolArgs{Size: &size})
	becomes(t, p, 1)
	if f.count() < 2 {
		t.Errorf("%d were made", f.count())
	}
}

// TestPoolDeadSlot: one that was killed is not given out, and another takes its place.
func TestPoolDeadSlot(t *testing.T) {
	p, f := aPool(t, 2, true)
	becomes(t, p, 2)
	p.mu.Lock()
	victim := p.slots[0]
	p.mu.Unlock()
	f.kill(victim)
	<-victim.Ended()
	if s := p.take(); s == nil || s == victim {
		t.Errorf("take = %v, dead %v", s, victim)
	} else {
		defer s.Close()
	}
	becomes(t, p, 2)
	if v := p.view(); v.Counts.Died != 1 {
		t.Errorf("%+v", v.Counts)
	}
}

// TestPoolFails: what cannot be made is not tried without a pause.
func TestPoolFails(t *testing.T) {
	f := &fakeSlots{t: t, err: errors.New("no"), ends: map[*monitor.Slot]*control.Conn{}}
	p := newPool(1, true, f.spawn, slog.New(slog.DiscardHandler))
	for i, want := range []time.Duration{poolRetry, 2 * poolRetry, 4 * poolRetry} {
		before := time.Now()
		p.made(p.make(t.Context()))
		if p.next.Before(before.Add(want)) || p.next.After(time.Now().Add(want)) {
			t.Errorf("after %d failures: in %v, want %v", i+1, p.next.Sub(before), want)
		}
		if wait, ok := p.due(p.next.Add(-time.Millisecond)); !ok || wait != time.Millisecond {
			t.Errorf("after %d failures: due in %v, %v", i+1, wait, ok)
		}
	}
	for range 70 {
		p.made(errors.New("no"))
	}
	before := time.Now()
	p.made(errors.New("no"))
	if p.next.Before(before.Add(poolMaxRetry)) || p.next.After(time.Now().Add(poolMaxRetry)) {
		t.Errorf("after many: in %v", p.next.Sub(before))
	}
}

// TestPoolDue: starts that come all the time put refilling off, but not for good.
func TestPoolDue(t *testing.T) {
	p := newPool(1, true, nil, slog.New(slog.DiscardHandler))
	begin := time.Now()
	for at, want := range map[time.Duration]time.Duration{
		0: poolRest, 40 * time.Millisecond: 40*time.Millisecond + poolRest,
		poolPatience - 10*time.Millisecond: poolPatience, poolPatience + time.Second: poolPatience,
	} {
		p.short, p.asked = begin, begin.Add(at)
		if wait, ok := p.due(begin); !ok || wait != want {
			t.Errorf("asked at %v: due at %v, %v, want %v", at, wait, ok, want)
		}
	}
	p.on = false
	if _, ok := p.due(begin); ok {
		t.Error("it is filled although nobody has asked")
	}
}

// TestBareBecause: containers that share something, or want other controllers, do without a sandbox.
func TestBareBecause(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*control.CreateArgs)
		want   string
	}{
		"usual":          {func(*control.CreateArgs) {}, ""},
		"host network":   {func(a *control.CreateArgs) { a.Network = "host" }, ""},
		"no network":     {func(a *control.CreateArgs) { a.Network = "none" }, ""},
		"memory":         {func(a *control.CreateArgs) { a.Memory, a.PidsLimit = 64<<20, 10 }, ""},
		"privileged":     {func(a *control.CreateArgs) { a.Privileged = true }, ""},
		"host pid":       {func(a *control.CreateArgs) { a.PID = "host" }, bareNamespaces},
		"host ipc":       {func(a *control.CreateArgs) { a.IPC = "host" }, bareNamespaces},
		"host uts":       {func(a *control.CreateArgs) { a.UTS = "host" }, bareNamespaces},
		"cpuset":         {func(a *control.CreateArgs) { a.CPUs = "0" }, bareLimits},
		"cgroup parent":  {func(a *control.CreateArgs) { a.CgroupParent = "/elsewhere" }, bareCgroup},
		"another's pids": {func(a *control.CreateArgs) { a.PID = "container:x" }, bareNamespaces},
	} {
		t.Run(name, func(t *testing.T) {
			a := control.CreateArgs{ID: strings.Repeat("a", 64), Args: []string{"x"}, Network: "bridge"}
			c.change(&a)
			sp, err := build(t, func(b *control.CreateArgs, _ *ocispec.Image) { *b = a })
			if err != nil {
				t.Fatal(err)
			}
			cfg := &monitor.Config{ID: a.ID, Spec: sp}
			if strings.HasPrefix(a.PID, "container:") {
				cfg.Joins = map[string]string{"pid": "x"}
			}
			p, _ := aPool(t, 1, true)
			becomes(t, p, 1)
			p.mu.Lock()
			p.slots[0].Cgroup = path.Dir(sp.Linux.CgroupsPath) + "/pool-1"
			if c.want == bareCgroup {
				p.slots[0].Cgroup = "/snapfs-none/pool-1"
			}
			p.mu.Unlock()
			slot := p.takeFor(cfg)
			if slot == nil {
				t.Fatal("no slot")
			}
			defer slot.Close()
			counts := p.view().Counts
			if c.want == "" && (counts.Sandboxes != 1 || !sandboxed(cfg)) || c.want != "" && (counts.Bare[c.want] != 1 || sandboxed(cfg)) {
				t.Errorf("%+v, cgroup %s; want %q", counts, cfg.Spec.Linux.CgroupsPath, c.want)
			}
		})
	}
}

// TestLike: what a sandbox is made for is what most containers are.
func TestLike(t *testing.T) {
	s := &Service{Options: Options{Root: "/root", Run: "/run", CgroupParent: "/mine"}}
	a, err := s.like()
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.like()
	if err != nil {
		t.Fatal(err)
	}
	if a.Spec.Linux.CgroupsPath == b.Spec.Linux.CgroupsPath || path.Dir(a.Spec.Linux.CgroupsPath) != "/mine" || !sandboxed(a) {
		t.Errorf("cgroups %s and %s", a.Spec.Linux.CgroupsPath, b.Spec.Linux.CgroupsPath)
	}
	if why := bareBecause(a); why != "" {
		t.Errorf("it does not fit itself: %s", why)
	}
	if _, err := json.Marshal(a); err != nil {
		t.Error(err)
	}
}

package containers

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/cni"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/network"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// fakeNets are a bridge and plugins. A namespace is a file whose name has the endpoint's serial.
type fakeNets struct {
	dir string

	mu     sync.Mutex
	serial uint64
	e      *control.Endpoint
	made   int
	refuse error
}

func (n *fakeNets) attach(id string) (*control.Endpoint, *os.File, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.refuse != nil {
		return nil, nil, n.refuse
	}
	if n.e != nil {
		return nil, nil, errors.New("connected already")
	}
	n.serial++
	n.made++
	n.e = &control.Endpoint{ID: id, Serial: n.serial}
	f, err := os.Create(filepath.Join(n.dir, "ns"))
	return n.e, f, err
}

func (n *fakeNets) Attach(_ context.Context, r network.Request) (*control.Endpoint, *os.File, error) {
	return n.attach(r.ID)
}

func (n *fakeNets) Release(_ string, serial uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.e != nil && (serial == 0 || serial == n.e.Serial) {
		n.e = nil
	}
}

func (n *fakeNets) Endpoint(string) *control.Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.e
}

func (n *fakeNets) Reconcile(func(string) bool) error { return nil }

// fakePlugins release what they have attached before, as the true ones do.
type fakePlugins struct{ *fakeNets }

func (fakePlugins) Check(cni.Request) error { return nil }
func (p fakePlugins) Attach(_ context.Context, q cni.Request) (*control.Endpoint, *os.File, error) {
	p.Release(q.ID, 0)
	return p.attach(q.ID)
}
func (fakePlugins) Publisher(control.Port) (string, uint64) { return "", 0 }

// joinRunner remembers what it was given, and starts nothing.
type joinRunner struct {
	mu    sync.Mutex
	kinds []string
	files []*os.File
}

func (r *joinRunner) Prepare(*monitor.Config) error { return nil }
func (r *joinRunner) Start(context.Context, *monitor.Config, monitor.Files) (monitor.Container, error) {
	return nil, errors.New("it starts nothing")
}
func (r *joinRunner) Release() error { r.Join(nil); return nil }
func (r *joinRunner) Join(list []monitor.Namespace) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.files {
		f.Close()
	}
	r.kinds, r.files = nil, nil
	for _, n := range list {
		r.kinds, r.files = append(r.kinds, n.Kind), append(r.files, n.File)
	}
}

func (r *joinRunner) has() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.kinds)
}

// aCreated is a service with one container, which was created, but not started.
func aCreated(t *testing.T, mode string) (*Service, *monitor.Config, *fakeNets, *joinRunner) {
	t.Helper()
	nets := &fakeNets{dir: t.TempDir(), serial: 40}
	base, err := os.MkdirTemp("", "join") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	s := &Service{
		Options:  Options{Root: base, Run: base, Networks: nets, Plugins: fakePlugins{nets}, Log: slog.New(slog.DiscardHandler)},
		spawning: map[string]bool{},
	}
	id := strings.Repeat("a", 64)
	c := &monitor.Config{
		ID: id, Name: "box", Socket: filepath.Join(base, "sock"), Spec: &specs.Spec{Process: &specs.Process{}},
		Network: control.NetworkConfig{Mode: mode, CNI: "net", Hostname: "box"},
	}
	if err := os.MkdirAll(s.dir(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(s.dir(id)); err != nil {
		t.Fatal(err)
	}
	r := &joinRunner{}
	ready, answers := io.Pipe()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := monitor.Run(ctx, s.dir(id), monitor.Options{Ready: answers, Runner: r}); err != nil {
			t.Errorf("monitor: %v", err)
			answers.Close()
		}
	})
	t.Cleanup(func() { cancel(); running.Wait() })
	io.ReadAll(ready) // which ends when it answers
	return s, c, nets, r
}

// TestJoinAfterDeath: the worker was killed after it had connected a container, and before it had
// told the container's monitor. Whoever starts it then must not find it connected.
func TestJoinAfterDeath(t *testing.T) {
	for _, mode := range []string{control.NetworkBridge, control.NetworkPlugins} {
		t.Run(mode, func(t *testing.T) {
			s, c, nets, r := aCreated(t, mode)
			nets.e = &control.Endpoint{ID: c.ID, Serial: 7} // on record, and that is all
			for range 2 {                                   // the second time, all is well
				if err := s.join(t.Context(), c); err != nil {
					t.Fatal(err)
				}
				if has := r.has(); !slices.Equal(has, []string{"network"}) || nets.made != 1 || nets.e.Serial == 7 {
					t.Fatalf("the monitor has %v; %d connections were made, the last is %+v", has, nets.made, nets.e)
				}
			}
			// The endpoint went, and the worker dies again while it makes another: the
			// namespace that the monitor has would be that of nothing.
			nets.Release(c.ID, 0)
			nets.refuse = errors.New("killed")
			if err := s.join(t.Context(), c); err == nil || !strings.Contains(err.Error(), "killed") {
				t.Fatal(err)
			}
			if has := r.has(); len(has) > 0 {
				t.Fatalf("the monitor still has %v", has)
			}
			nets.refuse, nets.e = nil, &control.Endpoint{ID: c.ID, Serial: 8}
			if err := s.join(t.Context(), c); err != nil || len(r.has()) != 1 || nets.made != 2 || nets.e.Serial == 8 {
				t.Errorf("%v; the monitor has %v, %d connections were made", err, r.has(), nets.made)
			}
		})
	}
}

// spawner runs monitors in this process, and has something happen when one answers.
type spawner struct {
	t        *testing.T
	answered func()
	running  sync.WaitGroup
}

func (sp *spawner) SpawnMonitor(ctx context.Context, dir string, _ []monitor.Namespace) error {
	ready, answers := io.Pipe()
	sp.running.Go(func() {
		if err := monitor.Run(sp.t.Context(), dir, monitor.Options{Ready: answers, Runner: &joinRunner{}}); err != nil {
			sp.t.Errorf("monitor: %v", err)
			answers.Close()
		}
	})
	io.ReadAll(ready) // which ends when it answers
	sp.answered()
	return ctx.Err()
}

func (*spawner) SpawnSlot(context.Context, string, *monitor.Config) (*monitor.Slot, error) {
	return nil, os.ErrInvalid
}

// TestClientGoesWhileMonitorStarts: a monitor that answers when nobody waits any more is ended,
// and does not stay behind without a directory.
func TestClientGoesWhileMonitorStarts(t *testing.T) {
	base, err := os.MkdirTemp("", "gone") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	ctx, cancel := context.WithCancel(t.Context())
	sp := &spawner{t: t, answered: cancel}
	s, err := Open(t.Context(), Options{Root: base, Run: base, Spawner: sp})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	id := strings.Repeat("a", 64)
	c := &monitor.Config{ID: id, Name: "box", Socket: s.socket(id), Spec: &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{}}, Network: control.NetworkConfig{Mode: control.NetworkNone, Hostname: "box"}}
	if err := os.MkdirAll(s.dir(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(s.dir(id)); err != nil {
		t.Fatal(err)
	}
	if err := s.spawn(ctx, c, true, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want that nobody waits", err)
	}
	if monitor.Alive(s.dir(id)) {
		t.Fatal("its monitor is there")
	}
	sp.running.Wait()
}

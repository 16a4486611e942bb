package objectfs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/snapfs/snapfs/layers"
)

// change gives an object other bytes, as when two layers promised different ones.
func (m *memory) change(s layers.Sum, data []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data[s] = data
}

func (m *memory) setSlow(s layers.Sum, slow bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow[s] = slow
}

func waitInvalidated(t *testing.T, f *FS, n int64) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); f.Stats.Invalidated.Load() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d objects invalidated, want %d", f.Stats.Invalidated.Load(), n)
		}
	}
}

func wantFile(t *testing.T, path string, want []byte) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read %d bytes, the ones wanted: %v, %v", len(got), bytes.Equal(got, want), err)
	}
}

func TestInvalidate(t *testing.T) {
	m := newMemory()
	dir, f := start(t, m)
	old, changed := random(300<<10), random(300<<10+1)
	s := m.add(old)
	path := filepath.Join(dir, s.Path())
	wantFile(t, path, old)
	m.change(s, changed)
	wantFile(t, path, old) // the kernel's
	f.Invalidate(layers.SumOf([]byte("never seen")))
	f.Invalidate(s)
	waitInvalidated(t, f, 1)
	wantFile(t, path, changed)
	if !f.stale.empty() {
		t.Error("something is still to be dropped")
	}
}

func TestInvalidateBeforeServe(t *testing.T) {
	m := newMemory()
	dir, fd, init := mount(t)
	nodes := newNodes(t, filepath.Join(t.TempDir(), "nodes"))
	first := New(m, nodes, Options{})
	stop := serve(t, fd, init, false, first)
	settle(t, dir, m)
	old, changed := random(5000), random(5001)
	s := m.add(old)
	path := filepath.Join(dir, s.Path())
	wantFile(t, path, old)
	stop()
	first.Invalidate(s) // nobody does it any more
	m.change(s, changed)
	second := New(m, nodes, Options{})
	second.Invalidate(s)
	serve(t, fd, init, true, second)
	waitInvalidated(t, second, 1)
	wantFile(t, path, changed)
}

// A READ that waits for the network holds its pages locked. Neither Invalidate
// nor other requests nor the end of Serve wait for it.
func TestInvalidateWhileReading(t *testing.T) {
	m := newMemory()
	dir, fd, init := mount(t)
	f := New(m, newNodes(t, filepath.Join(t.TempDir(), "nodes")), Options{})
	stop := serve(t, fd, init, false, f)
	settle(t, dir, m)
	data, other := random(5000), random(6000)
	s := m.add(data)
	m.setSlow(s, true)
	result := make(chan error, 1)
	go func() {
		_, err := os.ReadFile(filepath.Join(dir, s.Path()))
		result <- err
	}()
	<-m.waiting
	f.Invalidate(s)
	wantFile(t, filepath.Join(dir, m.add(other).Path()), other)
	if f.Stats.Invalidated.Load() != 0 {
		t.Error("invalidated what is being read")
	}
	stop() // leaves the read to the next
	m.setSlow(s, false)
	serve(t, fd, init, true, f)
	if err := <-result; err != nil {
		t.Error(err)
	}
	waitInvalidated(t, f, 1)
}

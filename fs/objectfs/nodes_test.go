package objectfs

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

func sumOf(i int) layers.Sum { return layers.SumOf([]byte{byte(i), byte(i >> 8), byte(i >> 16)}) }

func TestNodesKeepTheirIDs(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes")
	n := newNodes(t, path)
	ids := map[layers.Sum]uint64{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 3000 {
				id, err := n.ID(sumOf(i))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if old, ok := ids[sumOf(i)]; ok && old != id {
					t.Errorf("object %d has nodes %d and %d", i, old, id)
				}
				ids[sumOf(i)] = id
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n.Len() != 3000 {
		t.Errorf("Len() = %d, want 3000", n.Len())
	}
	n.Close()
	again := newNodes(t, path)
	for s, id := range ids {
		if got, err := again.ID(s); got != id || err != nil {
			t.Fatalf("after a restart: ID = %d, %v, want %d", got, err, id)
		}
		if got, ok := again.Sum(id); got != s || !ok {
			t.Fatalf("after a restart: Sum(%d) = %v, %v", id, got, ok)
		}
	}
	for _, id := range []uint64{0, rootNode, dirNode, objNode - 1, objNode + 3000, 1 << 63} {
		if s, ok := again.Sum(id); ok {
			t.Errorf("Sum(%d) = %v", id, s)
		}
	}
}

func TestNodesAreOneWorkers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes")
	newNodes(t, path)
	if _, err := OpenNodes(path); !errors.Is(err, ErrBusy) {
		t.Errorf("second OpenNodes: %v, want ErrBusy", err)
	}
}

// A record that was being written when the worker died has no number yet.
func TestNodesTornRecord(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes")
	a, b := sumOf(1), sumOf(2)
	if err := os.WriteFile(path, append(a[:], b[:13]...), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNodes(t, path)
	if id, err := n.ID(b); id != objNode+1 || err != nil {
		t.Errorf("ID = %d, %v, want %d", id, err, objNode+1)
	}
	n.Close()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != string(append(a[:], b[:]...)) {
		t.Errorf("file holds %x, %v", got, err)
	}
}

// Two records of one sum: the first number stays the object's.
func TestNodesDuplicate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes")
	a := sumOf(1)
	if err := os.WriteFile(path, append(a[:], a[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNodes(t, path)
	if id, err := n.ID(a); id != objNode || err != nil {
		t.Errorf("ID = %d, %v", id, err)
	}
	if s, ok := n.Sum(objNode + 1); s != a || !ok {
		t.Errorf("Sum = %v, %v", s, ok)
	}
	if id, err := n.ID(sumOf(2)); id != objNode+2 || err != nil {
		t.Errorf("ID of the next = %d, %v", id, err)
	}
}

// A full disk gives an error and no number, and does not shift the numbers after it.
func TestNodesDiskFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "nodes")
	n := newNodes(t, path)
	if _, err := n.ID(sumOf(0)); err != nil {
		t.Fatal(err)
	}
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	good := n.f
	n.f = full
	if _, err := n.ID(sumOf(1)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("ID on a full disk: %v, want ENOSPC", err)
	}
	full.Close()
	n.f = good
	if id, err := n.ID(sumOf(1)); id != objNode+1 || err != nil {
		t.Errorf("ID = %d, %v, want %d", id, err, objNode+1)
	}
}

func BenchmarkNodesID(b *testing.B) {
	n := newNodes(b, filepath.Join(b.TempDir(), "nodes"))
	sums := make([]layers.Sum, 10000)
	for i := range sums {
		sums[i] = sumOf(i)
		if _, err := n.ID(sums[i]); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		n.ID(sums[i%len(sums)])
	}
}

func FuzzNodes(f *testing.F) {
	a := sumOf(1)
	f.Add(a[:])
	f.Add(append(a[:], a[:20]...))
	f.Fuzz(func(t *testing.T, file []byte) {
		path := filepath.Join(t.TempDir(), "nodes")
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		n, err := OpenNodes(path)
		if err != nil {
			t.Fatal(err)
		}
		defer n.Close()
		id, err := n.ID(sumOf(7))
		if s, ok := n.Sum(id); err != nil || !ok || s != sumOf(7) {
			t.Errorf("ID = %d, %v; Sum = %v, %v", id, err, s, ok)
		}
	})
}

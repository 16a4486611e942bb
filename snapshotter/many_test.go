package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

func manyLayers(n int) (all [][]member) {
	for i := range n {
		ms := []member{dir("etc", 0o755), file("etc/last", fmt.Sprint("layer ", i)), file(fmt.Sprintf("etc/%03d", i), fmt.Sprint("in layer ", i))}
		if i > 0 && i%3 == 0 {
			ms = append(ms, whiteout(fmt.Sprintf("etc/%03d", i-1)))
		}
		all = append(all, ms)
	}
	return all
}

// Test128Layers pulls an image of 128 layers in every way, and commits a
// container 100 times on top of it.
func Test128Layers(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := newImage(t, cs, "r.example/deep:1", manyLayers(128)...)
	want := ""
	for _, c := range contracts {
		t.Run(c.name, func(t *testing.T) {
			run, err := os.MkdirTemp("/run", "snapfs-") // as long as it is with a daemon
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(run)
			s := newSnapshotter(t, Options{Layers: newBook(t, im), Run: run})
			if _, err := c.pull(t.Context(), s, cs, im); err != nil {
				t.Fatal(err)
			}
			got := shown(t, s, im.top())
			if want == "" {
				want = got
			}
			if got != want || !strings.Contains(got, "in layer 127") {
				t.Errorf("shown:\n%s\nwant:\n%s", got, want)
			}
			if !c.staged {
				return
			}
			parent := im.top()
			for i := range 100 {
				key := fmt.Sprint("container", i)
				ms, err := s.Prepare(t.Context(), key, parent)
				if err != nil {
					t.Fatal(err)
				}
				if i%10 == 9 {
					mounted(t, ms, func(dir string) { err = os.WriteFile(filepath.Join(dir, "etc/last"), fmt.Append(nil, i), 0o644) })
					if err != nil {
						t.Fatal(err)
					}
				}
				parent = fmt.Sprint("commit", i)
				if err := s.Commit(t.Context(), parent, key); err != nil {
					t.Fatal(err)
				}
			}
			if got := shown(t, s, parent); !strings.Contains(got, `etc/last -rw-r--r-- 0:0 "99"`) {
				t.Errorf("shown:\n%s", got)
			}
			removeAll(t, s)
		})
	}
}

// TestTooLong: names that do not fit into a page are an error that says so.
func TestTooLong(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	s := newSnapshotter(t, Options{Layers: newBook(t, im), Run: filepath.Join(t.TempDir(), strings.Repeat("long", 50))})
	if _, err := contracts[2].pull(t.Context(), s, cs, im); err != nil {
		t.Fatal(err)
	}
	parent := im.top()
	for i := range 100 {
		key := fmt.Sprint("container", i)
		ms, err := s.Prepare(t.Context(), key, parent)
		if err != nil {
			if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "bytes of mount options") {
				t.Error(err)
			}
			if _, err := s.Stat(t.Context(), key); !errdefs.IsNotFound(err) {
				t.Errorf("what was refused is there: %v", err)
			}
			if i < 10 {
				t.Errorf("refused after %d", i)
			}
			return
		}
		mounted(t, ms, func(string) {})
		parent = fmt.Sprint("commit", i)
		if err := s.Commit(t.Context(), parent, key); err != nil {
			t.Fatal(err)
		}
	}
	t.Error("100 layers fit")
}

// TestShifted gives containers of one image other owners.
func TestShifted(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	ctx := t.Context()
	for _, kind := range []string{"held", "unpacked", "both"} {
		t.Run(kind, func(t *testing.T) {
			b, m := newBook(t, im), newMapper(t)
			if kind == "unpacked" {
				b.refuse = errors.New("no index")
			}
			s := newSnapshotter(t, Options{Layers: b, Mapper: m})
			if _, err := contracts[2].pull(ctx, s, cs, im); err != nil {
				t.Fatal(err)
			}
			parent := im.top()
			if kind == "both" {
				if _, err := s.Prepare(ctx, "x", parent); err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(writeInto(s, "x", "above"), s.Commit(ctx, "above", "x")); err != nil {
					t.Fatal(err)
				}
				parent = "above"
			}
			want := shown(t, s, parent)
			for i, at := range []int{100000, 200000} {
				labels := snapshots.WithLabels(map[string]string{
					snapshots.LabelSnapshotUIDMapping: fmt.Sprintf("0:%d:65536", at),
					snapshots.LabelSnapshotGIDMapping: fmt.Sprintf("0:%d:65536", at+1),
				})
				key := fmt.Sprint("container", i)
				ms, err := s.Prepare(ctx, key, parent, labels)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range ms[0].Options {
					if strings.HasPrefix(o, "uidmap") || strings.HasPrefix(o, "gidmap") {
						t.Errorf("option %s, at which containerd takes lowerdir apart", o)
					}
				}
				shifted := func(list string) string {
					for _, id := range [][2]int{{0, 0}, {1000, 1001}} {
						list = strings.ReplaceAll(list, fmt.Sprintf(" %d:%d ", id[0], id[1]), fmt.Sprintf(" %d:%d ", id[0]+at, id[1]+at+1))
					}
					return list
				}
				mounted(t, ms, func(dir string) {
					if got := listing(t, dir); got != shifted(want) {
						t.Errorf("shown:\n%s\nwant:\n%s", got, shifted(want))
					}
					// Copied up, an owner stays.
					if err := os.Chmod(filepath.Join(dir, "srv/owned"), 0o600); err != nil {
						t.Error(err)
					}
					if uid, gid, err := owner(filepath.Join(dir, "srv/owned")); uid != 1000+at || gid != 1001+at+1 || err != nil {
						t.Errorf("owner %d:%d, %v", uid, gid, err)
					}
				})
				ms, err = s.View(ctx, "view"+key, parent, labels)
				if err != nil {
					t.Fatal(err)
				}
				mounted(t, ms, func(dir string) {
					if got := listing(t, dir); got != shifted(want) {
						t.Errorf("view:\n%s\nwant:\n%s", got, shifted(want))
					}
				})
				if ms, err := s.Prepare(ctx, "empty"+key, "", labels); err != nil {
					t.Error(err)
				} else if uid, _, err := owner(ms[0].Source); uid != at || err != nil {
					t.Errorf("owner of an empty one: %d, %v", uid, err)
				}
			}
			if err := s.Cleanup(ctx); err != nil {
				t.Fatal(err)
			}
			n := map[string]int{"held": 0, "unpacked": 2, "both": 2}[kind]
			if len(m.mapped) != n {
				t.Errorf("%d shifted directories, want %d", len(m.mapped), n)
			}
			removeAll(t, s)
			if len(m.mapped) != 0 {
				t.Errorf("shifted directories are left: %v", m.mapped)
			}
		})
	}
}

// TestAtOnce prepares containers, layers and the same again and again side by side.
func TestAtOnce(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := newImage(t, cs, "r.example/app:1", manyLayers(8)...)
	b := newBook(t, im)
	s := newSnapshotter(t, Options{Layers: b})
	ctx := t.Context()
	// 20 clients pull the same image.
	var wg sync.WaitGroup
	for i := range 20 {
		c := contracts[i%len(contracts)]
		c.name = fmt.Sprint("client ", i)
		wg.Go(func() {
			if _, err := c.pull(ctx, s, cs, im); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	// 200 containers, and 200 more that want a key that one of them has.
	var mu sync.Mutex
	taken := 0
	for i := range 400 {
		wg.Go(func() {
			_, err := s.Prepare(ctx, fmt.Sprint("container", i%200), im.top())
			if errdefs.IsAlreadyExists(err) {
				mu.Lock()
				taken++
				mu.Unlock()
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if taken != 200 {
		t.Errorf("%d keys were taken, want 200", taken)
	}
	for i := range 200 {
		wg.Go(func() {
			key := fmt.Sprint("container", i)
			ms, err := s.Mounts(ctx, key)
			if err == nil && i%50 == 0 {
				mounted(t, ms, func(string) {})
			}
			if err := errors.Join(err, s.Remove(ctx, key)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	consistent(t, s)
	removeAll(t, s)
}

// TestNoLockOverNetwork: while the book waits for the network, everything else works.
func TestNoLockOverNetwork(t *testing.T) {
	needsRoot(t)
	cs := newContent(t)
	im := testImage(t, cs, "r.example/app:1")
	b := newBook(t, im)
	b.gate, b.entered = make(chan struct{}), make(chan struct{})
	s := newSnapshotter(t, Options{Layers: b})
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error)
	labels := snapshots.WithLabels(layerLabels(im, 0, contracts[2]))
	for i, ctx := range []context.Context{t.Context(), ctx} {
		go func() {
			_, err := s.Prepare(ctx, fmt.Sprint("waits", i), "", labels)
			waits <- err
		}()
		<-b.entered
	}
	if err := s.store.update(t.Context(), func(context.Context, *bolt.Tx) error { return nil }); err != nil {
		t.Fatal(err)
	}
	_, err := s.Prepare(t.Context(), "other", "")
	err = errors.Join(err, second(s.Mounts(t.Context(), "other")), s.Commit(t.Context(), "committed", "other"), s.Remove(t.Context(), "committed"), s.Cleanup(t.Context()))
	if err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-waits; !errors.Is(err, context.Canceled) {
		t.Errorf("who does not want to wait any more: %v", err)
	}
	close(b.gate)
	if err := <-waits; !errdefs.IsAlreadyExists(err) {
		t.Error(err)
	}
	if len(kinds(t, s)) != 1 {
		t.Errorf("snapshots %v", kinds(t, s))
	}
}

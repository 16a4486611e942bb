package snapshotter

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"
)

// TestPowerCut cuts the power of a file system under clients that make, commit
// and remove snapshots. What they were told was done is there afterwards, with its bytes.
func TestPowerCut(t *testing.T) {
	needsRoot(t)
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("needs loop devices")
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("needs mkfs.ext4")
	}
	img, mnt := filepath.Join(t.TempDir(), "img"), t.TempDir()
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %v: %v\n%s", name, args, err, out)
		}
	}
	if err := os.WriteFile(img, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(img, 64<<20); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-m", "0", img)
	var mu sync.Mutex
	said, text := map[string]snapshots.Kind{}, map[string]string{} // what was acknowledged, and the bytes of committed ones
	for round := range 6 {
		// A copy: another process may have got the dead file system with a copy of
		// this mount namespace, and would keep it for who mounts the same image.
		disk := fmt.Sprint(img, round)
		run("cp", "--sparse=always", img, disk)
		img = disk
		run("mount", "-o", "loop", img, mnt)
		off := func() {
			if err := unix.Unmount(mnt, 0); err != nil {
				t.Error(err)
			}
		}
		s, err := New(Options{Root: filepath.Join(mnt, "root"), Run: t.TempDir(), Layers: noLayers{}})
		if err != nil {
			off()
			t.Fatalf("after cut %d: %v", round, err)
		}
		got := kinds(t, s)
		for name, kind := range said {
			if got[name] != kind {
				t.Errorf("after cut %d: %s is %v, and was %v", round, name, got[name], kind)
			}
		}
		for name, want := range text {
			if b, err := os.ReadFile(filepath.Join(dirOf(t, s, name), "fs/file")); err != nil || string(b) != want {
				t.Errorf("after cut %d: %s has %d bytes, %v; want %d", round, name, len(b), err, len(want))
			}
		}
		consistent(t, s)
		said = got // what was begun only may be there, too; from now on it is
		var wg sync.WaitGroup
		var n atomic.Int64
		cut := make(chan struct{})
		for w := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					key := fmt.Sprintf("%d-%d-%d", round, w, i)
					if _, err := s.Prepare(t.Context(), key, ""); err != nil {
						return
					}
					mu.Lock()
					said[key] = snapshots.KindActive
					mu.Unlock()
					content := strings.Repeat(key, 1+rand.IntN(2000))
					if writeInto(s, key, content) != nil {
						return
					}
					mu.Lock()
					delete(said, key) // one or the other
					mu.Unlock()
					if s.Commit(t.Context(), "c"+key, key) != nil {
						return
					}
					mu.Lock()
					said["c"+key], text["c"+key] = snapshots.KindCommitted, content
					mu.Unlock()
					if i%2 == 0 {
						mu.Lock()
						delete(said, "c"+key)
						delete(text, "c"+key)
						mu.Unlock()
						if s.Remove(t.Context(), "c"+key) != nil {
							return
						}
					}
					if n.Add(1) == int64(40+20*round) {
						close(cut)
					}
				}
			})
		}
		<-cut
		f, err := os.Open(mnt)
		if err != nil {
			t.Fatal(err)
		}
		const shutdown, noLogFlush = 0x8004587d, 2 // EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h
		if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
			t.Fatal(err)
		}
		f.Close()
		wg.Wait()
		s.Close() // it may fail: there is no disk
		off()
		if t.Failed() {
			return
		}
	}
}

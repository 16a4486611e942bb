package integration

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// TestWorkerKilled kills the worker again and again while four readers compare
// what they read, and the objects are taken away so that they must come over FUSE.
func TestWorkerKilled(t *testing.T) {
	t.Parallel()
	kills := 25
	if s := os.Getenv("SNAPFS_KILLS"); s != "" {
		var err error
		if kills, err = strconv.Atoi(s); err != nil {
			t.Fatalf("SNAPFS_KILLS: %v", err)
		}
	}
	hub := newHub(t)
	im := newImage(t, eStargz, someFiles(10, "a", 100), someFiles(11, "b", 100))
	ref := hub.put(t, "killed", im)
	m := startMachine(t, "pull.complete = false\nlog.level = 'error'")
	top := m.mount(ref, true)

	stop := im.load(t, top)
	requests := hub.total()
	for i := range kills {
		s, err := m.status()
		if err != nil {
			t.Fatal(err)
		}
		kill9(t, s.Worker)
		m.evict()
		forget(t)
		m.waitReady(m.d.cmd.Process.Pid)
		// Long enough for reads to be under way, and for the worker to count as one that has worked.
		time.Sleep(60*time.Millisecond + time.Duration(rand.IntN(60))*time.Millisecond)
		if t.Failed() {
			t.Fatalf("after %d kills; the daemon said:\n%s", i+1, m.d.log.String())
		}
	}
	r := stop()
	t.Logf("%d workers killed under 4 readers: %d files read, %d failed, %d wrong; %d requests to the registry",
		kills, r.read.Load(), r.failed.Load(), r.wrong.Load(), hub.total()-requests)
	s, err := m.status()
	if err != nil || s.Restarts != kills {
		t.Errorf("%d restarts, %v; want %d", s.Restarts, err, kills)
	}
	if r.read.Load() < int64(kills) {
		t.Errorf("%d files read in all: the readers stood still", r.read.Load())
	}
	im.check(t, top)
}

// evict removes all complete objects, as a cleaner of disks may.
func (m *machine) evict() {
	m.Helper()
	for _, d := range []string{"objects", "fresh"} {
		err := filepath.WalkDir(filepath.Join(m.root, d), func(p string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // moved by a barrier
			}
			if err != nil || d.IsDir() {
				return err
			}
			if err := os.Remove(p); !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		})
		if err != nil {
			m.Fatal(err)
		}
	}
}

// A result counts what readers saw.
type result struct{ read, failed, wrong atomic.Int64 }

// load reads the image's files in four goroutines until stop is called.
func (im *image) load(t testing.TB, top string) (stop func() *result) {
	names := slices.Sorted(maps.Keys(im.want))
	done, r := make(chan struct{}), new(result)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				for _, i := range rand.Perm(len(names)) {
					select {
					case <-done:
						return
					default:
					}
					sum, err := readCold(filepath.Join(top, names[i]))
					r.read.Add(1)
					if err != nil {
						r.failed.Add(1)
						t.Error(err)
					} else if sum != im.want[names[i]] {
						r.wrong.Add(1)
						t.Errorf("%s has SHA-256 %x, want %x", names[i], sum, im.want[names[i]])
					}
				}
			}
		})
	}
	stopped := sync.OnceFunc(func() { close(done); all.Wait() })
	t.Cleanup(stopped)
	return func() *result { stopped(); return r }
}

// TestWorkerCannotStart: a daemon whose configuration was broken after its start
// answers nobody once its worker has died, and that is said. Its directories are
// those that its command line meant, relative to where it was started.
func TestWorkerCannotStart(t *testing.T) {
	t.Parallel()
	m := newMachine(t, "")
	m.d = m.launch("--config", "snapd.toml", "--root", "root", "--run", "r")
	m.waitReady(m.d.cmd.Process.Pid)
	var info control.Info
	if err := m.call(control.OpInfo, nil, &info); err != nil || info.Root != m.root || info.Run != m.run {
		t.Errorf("root %s, run %s, %v, want %s, %s", info.Root, info.Run, err, m.root, m.run)
	}
	file := filepath.Join(m.dir, "snapd.toml")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("what = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := m.status()
	if err != nil {
		t.Fatal(err)
	}
	kill9(m, s.Worker)
	if says := m.fails("version"); !strings.Contains(says, "its worker has ended at once") {
		t.Errorf("snapctl says %q", says)
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	m.waitReady(m.d.cmd.Process.Pid)
	m.ok("version")
}

// readCold reads a file and has the kernel forget what it read.
func readCold(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return sum, fmt.Errorf("%s: %w", path, err)
	}
	h.Sum(sum[:0])
	return sum, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

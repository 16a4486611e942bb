package fetch

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
	"golang.org/x/sys/unix"
)

// A full disk must not stop readers; completion says why it ends.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("snapfs-test", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("needs tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	s, err := objects.Open(dir, objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	var told atomic.Bool
	f := newFetcher(t, Options{Store: s, Watch: Watch{Unkept: func(err error) {
		if errors.Is(err, unix.ENOSPC) {
			told.Store(true)
		}
	}}})
	var files [][]byte
	for range 6 {
		files = append(files, random(50_000), random(1<<20), random(3<<20))
	}
	fx := build(t, files, 256<<10, 0)
	f.Add("a", fx.layer())
	for _, p := range files {
		check(t, f, p, 1<<20)
	}
	if f.stats.Unkept.Load() == 0 || !told.Load() {
		t.Error("20 MiB in a file system of 2, and nobody was told")
	}
	if err := f.Complete(t.Context(), []string{"a"}, nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Complete = %v, want ENOSPC", err)
	}
	if _, err := s.Sweep(func(layers.Sum) bool { return false }); err != nil {
		t.Fatal(err)
	}
	check(t, f, files[0], 10_000)
	if !s.Has(layers.SumOf(files[0])) {
		t.Error("there is room again, but nothing is kept")
	}
}

package fetch

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

func newShelf(t *testing.T) (*shelf, string) {
	t.Helper()
	dir := t.TempDir()
	s, err := objects.Open(dir, objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	h := &shelf{Store: s, later: func(work func()) { work() }, failed: func(err error) { t.Error(err) }}
	t.Cleanup(func() {
		if err := h.Flush(); err != nil {
			t.Error(err)
		}
	})
	return h, dir
}

// packs is how many packs a store has.
func packs(t *testing.T, dir string) int {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "packs", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// gathered checks that all of data can be read, wherever it is.
func gathered(t *testing.T, s *shelf, all [][]byte) {
	t.Helper()
	for _, p := range all {
		sum := layers.SumOf(p)
		if n, ok := s.Size(sum); !ok || n != int64(len(p)) || !s.Has(sum) {
			t.Fatalf("Size = %d, %v, want %d", n, ok, len(p))
		}
		buf := make([]byte, len(p)+10)
		if n, err := s.ReadAt(sum, buf, 0); err != io.EOF || !bytes.Equal(buf[:n], p) {
			t.Fatalf("ReadAt = %d, %v", n, err)
		}
		if n, err := s.ReadAt(sum, buf[:1], 1); len(p) > 1 && (n != 1 || err != nil || buf[0] != p[1]) {
			t.Fatalf("ReadAt(1) = %d, %v", n, err)
		}
		if n, err := s.ReadAt(sum, buf, int64(len(p))); n != 0 || err != io.EOF {
			t.Fatalf("ReadAt at the end = %d, %v", n, err)
		}
	}
}

func TestGather(t *testing.T) {
	for _, n := range []int{3, 500} {
		s, dir := newShelf(t)
		isFile := func(p []byte) bool { // and not in a pack
			f, err := s.Open(layers.SumOf(p))
			if err == nil {
				f.Close()
			}
			return err == nil
		}
		var all [][]byte
		for i := range n {
			p := random(1 + i*30)
			all = append(all, p)
			for range 2 { // the second time is nothing new
				if err := s.Gather(layers.SumOf(p), p); err != nil {
					t.Fatal(err)
				}
			}
		}
		gathered(t, s, all[:2]) // and so reads them
		if s.Store.Has(layers.SumOf(all[0])) || packs(t, dir) != 0 {
			t.Error("it is written already")
		}
		if err := s.Flush(); err != nil {
			t.Fatal(err)
		}
		gathered(t, s, all)
		if s.any.Load() || !s.Store.Has(layers.SumOf(all[0])) {
			t.Error("it is not written")
		}
		if !isFile(all[0]) || !isFile(all[1]) || isFile(all[2]) != (n < minBatch) {
			t.Error("what was read is no file, or everything is one")
		}
		if got := packs(t, dir); got != min(1, n/minBatch) {
			t.Errorf("%d packs of %d objects", got, n)
		}
		if err := s.Flush(); err != nil {
			t.Error(err)
		}
	}
}

func TestGatherFull(t *testing.T) {
	s, dir := newShelf(t)
	var all [][]byte
	for range batchSize/objects.MaxPacked + 10 {
		p := random(objects.MaxPacked)
		all = append(all, p)
		if err := s.Gather(layers.SumOf(p), p); err != nil {
			t.Fatal(err)
		}
	}
	if packs(t, dir) != 1 || !s.Store.Has(layers.SumOf(all[0])) || s.Store.Has(layers.SumOf(all[len(all)-1])) {
		t.Error("a full batch is not written, or not alone")
	}
	gathered(t, s, all)
	large := random(objects.MaxPacked + 1)
	if err := s.Gather(layers.SumOf(large), large); err != nil || !s.Store.Has(layers.SumOf(large)) {
		t.Errorf("Gather of a large object = %v", err)
	}
	if err := s.Gather(layers.SumOf(large), all[0]); !isDigest(err) {
		t.Errorf("Gather of wrong bytes = %v", err)
	}
	if err := s.Gather(layers.SumOf(nil), nil); err == nil {
		t.Error("Gather of nothing = nil")
	}
}

func TestGatherWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newShelf(t)
		p := random(100)
		if err := s.Gather(layers.SumOf(p), p); err != nil {
			t.Fatal(err)
		}
		time.Sleep(batchTime - 1)
		if s.Store.Has(layers.SumOf(p)) {
			t.Error("it did not wait for others")
		}
		time.Sleep(2 * time.Nanosecond)
		synctest.Wait()
		gathered(t, s, [][]byte{p})
		if !s.Store.Has(layers.SumOf(p)) {
			t.Error("it waits for ever")
		}
	})
}

func TestGatherConcurrently(t *testing.T) {
	s, _ := newShelf(t)
	var all [][]byte
	for i := range 400 {
		all = append(all, random(1+i))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, p := range all {
				if err := s.Gather(layers.SumOf(p), p); err != nil {
					t.Error(err)
				}
				if i%50 == 0 {
					if err := s.Flush(); err != nil {
						t.Error(err)
					}
				}
				gathered(t, s, [][]byte{p})
			}
		})
	}
	wg.Wait()
}

// What cannot be written is not there.
func TestGatherDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("snapfs-test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("needs tmpfs: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	store, err := objects.Open(dir, objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	s := &shelf{Store: store, later: func(func()) {}}
	var all [][]byte
	for range 2 * minBatch {
		p := random(7_000)
		all = append(all, p)
		if err := s.Gather(layers.SumOf(p), p); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Flush(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Flush = %v, want ENOSPC", err)
	}
	for _, p := range all {
		if s.Has(layers.SumOf(p)) {
			t.Fatal("it is said to be there")
		}
	}
}

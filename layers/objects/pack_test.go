package objects

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// putPack adds objects as one pack.
func putPack(t testing.TB, s *Store, data ...[]byte) {
	t.Helper()
	p, err := s.NewPack("layer")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range data {
		if sum, err := p.Add(d); err != nil || sum != layers.SumOf(d) {
			t.Fatalf("Add = %s, %v", sum, err)
		}
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
}

func many(n, size int) [][]byte {
	var all [][]byte
	for range n {
		all = append(all, random(size))
	}
	return all
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	all := many(3000, 700)
	all = append(all, random(1), random(MaxPacked))
	var wg sync.WaitGroup
	for i := range 3 { // one pack for each layer that is unpacked
		wg.Go(func() { putPack(t, s, all[i*1000:min(len(all), i*1000+1002)]...) })
	}
	wg.Wait()
	for round := range 3 {
		for _, d := range all {
			check(t, s, d)
		}
		small, err := s.ReadSmall(layers.SumOf(all[5]))
		if err != nil || string(small) != string(all[5]) {
			t.Fatalf("ReadSmall = %d bytes, %v", len(small), err)
		}
		switch round {
		case 0:
			if err := s.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "packs/*.fresh")); len(left) > 0 {
				t.Fatalf("%v after a barrier", left)
			}
		case 1:
			crash(s)
			s = open(t, dir, "a")
		}
	}
	if s.Has(layers.SumOf([]byte("no"))) {
		t.Error("Has of nothing")
	}
}

func TestPackRefuses(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	for _, name := range []string{"", "..", "a/b", "a.b", "\x00"} {
		if _, err := s.NewPack(name); err == nil {
			t.Errorf("NewPack(%q) = nil", name)
		}
	}
	p, err := s.NewPack("x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add(nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("Add of nothing = %v", err)
	}
	if _, err := p.Add(make([]byte, MaxPacked+1)); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Add of too much = %v", err)
	}
	if err := p.Commit(); err != nil {
		t.Errorf("Commit of nothing = %v", err)
	}
	if _, err := p.Add([]byte("x")); err == nil {
		t.Error("Add after Commit = nil")
	}
	p, _ = s.NewPack("x")
	p.Add([]byte("x"))
	if err := p.Abort(); err != nil {
		t.Error(err)
	}
	if s.Has(layers.SumOf([]byte("x"))) {
		t.Error("an aborted pack has objects")
	}
	if names, _ := os.ReadDir(filepath.Join(dir, "packs")); len(names) > 0 {
		t.Errorf("packs/ has %v", names)
	}
}

func TestPackDoesNotRepeat(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	all := many(100, 500)
	if err := s.Put(layers.SumOf(all[0]), all[0]); err != nil {
		t.Fatal(err)
	}
	putPack(t, s, append(all, all...)...)
	putPack(t, s, all...)
	if u, err := s.Usage(); err != nil || u.Packs != 1 || u.Packed != 99 || u.Objects != 1 {
		t.Errorf("Usage = %+v, %v, want 99 objects in one pack and one file", u, err)
	}
}

func TestDamagedPackIsDropped(t *testing.T) {
	for name, damage := range map[string]func(b []byte) []byte{
		"cut":    func(b []byte) []byte { return b[:len(b)-1] },
		"empty":  func([]byte) []byte { return nil },
		"zeros":  func(b []byte) []byte { clear(b); return b },
		"index":  func(b []byte) []byte { b[len(b)-packFooter-5] ^= 1; return b },
		"footer": func(b []byte) []byte { b[len(b)-40] ^= 1; return b },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, "a")
			putPack(t, s, many(10, 100)...)
			crash(s)
			files, _ := filepath.Glob(filepath.Join(dir, "packs/*"))
			b, err := os.ReadFile(files[0])
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(files[0], damage(b), 0o600); err != nil {
				t.Fatal(err)
			}
			s = open(t, dir, "a")
			if u, err := s.Usage(); err != nil || u.Packs != 0 {
				t.Errorf("Usage = %+v, %v, want no pack", u, err)
			}
		})
	}
}

func TestSweep(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	files, small := many(20, 10_000), many(100, 300)
	for i, d := range files {
		if err := s.Put(layers.SumOf(d), d); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			if err := s.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	putPack(t, s, small[:50]...)
	putPack(t, s, small[50:]...)
	part, _ := partial(t, s, 100_000, 10_000, 0, 3)
	keep := make(map[layers.Sum]bool)
	for _, d := range append(files[5:15:15], small[:60]...) {
		keep[layers.SumOf(d)] = true
		check(t, s, d) // opens it
	}
	freed, err := s.Sweep(func(sum layers.Sum) bool { return keep[sum] })
	if err != nil || freed < 10*10_000 {
		t.Fatalf("Sweep = %d, %v", freed, err)
	}
	for i, d := range append(files, small...) {
		if sum := layers.SumOf(d); s.Has(sum) != keep[sum] {
			t.Errorf("object %d: Has = %v, want %v", i, s.Has(sum), keep[sum])
		} else if keep[sum] {
			check(t, s, d)
		}
	}
	if sums, _ := s.Partials(); len(sums) > 0 {
		t.Errorf("partial object %s is left", part.sum)
	}
	if u, err := s.Usage(); err != nil || u.Packs != 2 || u.Packed != 60 {
		t.Errorf("Usage = %+v, %v, want 60 objects in 2 packs", u, err)
	}
}

func TestHold(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	old, fresh, small := random(5000), random(5000), random(50)
	if err := s.Put(layers.SumOf(old), old); err != nil {
		t.Fatal(err)
	}
	release := s.Hold()
	for _, d := range [][]byte{old, fresh} { // one is found, one is added
		if err := s.Put(layers.SumOf(d), d); err != nil {
			t.Fatal(err)
		}
	}
	putPack(t, s, small)
	none := func(layers.Sum) bool { return false }
	if freed, err := s.Sweep(none); err != nil || freed != 0 {
		t.Errorf("Sweep = %d, %v, want nothing: all is held", freed, err)
	}
	check(t, s, old)
	check(t, s, fresh)
	check(t, s, small)
	release()
	if _, err := s.Sweep(none); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(); err != nil || u != (Usage{}) {
		t.Errorf("Usage = %+v, %v, want nothing", u, err)
	}
}

func TestWalk(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	all := many(30, 200)
	putPack(t, s, all[:10]...)
	for i, d := range all[10:] {
		if err := s.Put(layers.SumOf(d), d); err != nil {
			t.Fatal(err)
		}
		if i == 10 {
			if err := s.Barrier(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen := make(map[layers.Sum]bool)
	if err := s.Walk(func(sum layers.Sum, size int64) error {
		if size != 200 {
			return fmt.Errorf("size %d", size)
		}
		seen[sum] = true
		return nil
	}); err != nil || len(seen) != 30 {
		t.Errorf("Walk saw %d, %v, want 30", len(seen), err)
	}
	if err := s.Walk(func(layers.Sum, int64) error { return io.EOF }); err != io.EOF {
		t.Errorf("Walk = %v, want what its function returned", err)
	}
}

func FuzzPack(f *testing.F) {
	s := open(f, f.TempDir(), "a")
	putPack(f, s, many(5, 40)...)
	p := s.packs.all()[0]
	b := make([]byte, 4096)
	n, _ := pread(p.fd, b, 0)
	f.Add(b[:n])
	f.Add([]byte(packMagic))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := os.CreateTemp(t.TempDir(), "")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		file.Write(b)
		p, err := openPack(int(file.Fd()), "x", "")
		if err != nil {
			if !errors.Is(err, errPack) {
				t.Fatalf("openPack = %v, want errPack", err)
			}
			return
		}
		for i := range p.n { // what it says is in the file
			if _, err := p.readAt(p.entry(i), make([]byte, MaxPacked), 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		p.unmap()
	})
}

// TestPackLoadedBesideCommit: a barrier may load a new pack before its writer
// adds it. It is one pack all the same, and a sweep removes it once.
func TestPackLoadedBesideCommit(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	p, err := s.NewPack("a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Add([]byte("small")); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.loadPack(s.packs.all()[0].name, freshSuffix); err != nil {
		t.Fatal(err)
	}
	if n := len(s.packs.all()); n != 1 {
		t.Errorf("%d packs, want 1", n)
	}
	for range 2 {
		if _, err := s.Sweep(func(layers.Sum) bool { return false }); err != nil {
			t.Error(err)
		}
	}
	if files, err := s.list("packs"); err != nil || len(files) != 0 {
		t.Errorf("%q, %v are left", files, err)
	}
}

package objects

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// open opens a store in dir as in the given boot; it is closed by the test's end.
func open(t testing.TB, dir, boot string) *Store {
	t.Helper()
	s, err := Open(dir, Options{Boot: boot})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if s.root < 0 { // it crashed
			return
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// crash ends a store without what Close does: as kill -9 would, for the files.
func crash(s *Store) {
	if err := s.release(); err != nil {
		panic(err)
	}
	s.root, s.lock, s.users = -1, -1, -1
}

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// check fails unless s gives exactly data for its sum.
func check(t testing.TB, s *Store, data []byte) {
	t.Helper()
	sum := layers.SumOf(data)
	if n, ok := s.Size(sum); !ok || n != int64(len(data)) {
		t.Fatalf("Size(%s) = %d, %v, want %d", sum, n, ok, len(data))
	}
	got := make([]byte, len(data)+1)
	if n, err := s.ReadAt(sum, got, 0); err != io.EOF || !bytes.Equal(got[:n], data) {
		t.Fatalf("ReadAt(%s) = %d bytes, %v, want %d bytes, EOF", sum, n, err, len(data))
	}
}

func TestPutAndRead(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	for _, n := range []int{1, 4095, 4096, 100_000, 3 << 20} {
		data := random(n)
		sum := layers.SumOf(data)
		if s.Has(sum) {
			t.Fatalf("Has before Put of %d bytes", n)
		}
		if _, err := s.ReadAt(sum, make([]byte, 1), 0); !errors.Is(err, ErrNotCached) || !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("ReadAt before Put = %v, want ErrNotCached", err)
		}
		for range 2 { // the second finds it
			if err := s.Put(sum, data); err != nil {
				t.Fatal(err)
			}
		}
		check(t, s, data)
		if err := s.Barrier(t.Context()); err != nil {
			t.Fatal(err)
		}
		check(t, s, data)
		if _, err := os.Stat(filepath.Join(s.DataDirs()[0], sum.Path())); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPutRefuses(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	if err := s.Put(layers.SumOf(nil), nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("Put of nothing = %v, want ErrEmpty", err)
	}
	sum := layers.SumOf([]byte("x"))
	var d *layers.DigestError
	if err := s.Put(sum, []byte("y")); !errors.As(err, &d) {
		t.Errorf("Put of other bytes = %v, want *DigestError", err)
	}
	if s.Has(sum) {
		t.Error("other bytes were kept")
	}
}

func TestWriter(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	zeros := make([]byte, 1<<20)
	for name, data := range map[string][]byte{
		"small":      random(10),
		"one buffer": random(writeUnit),
		"large":      random(3*writeUnit + 77),
		"zeros":      zeros,
		"zero tail":  append(random(5000), zeros[:9000]...),
		"zero head":  append(bytes.Clone(zeros), random(5000)...),
		"hole":       append(append(random(8192), zeros...), random(100)...),
	} {
		for _, step := range []int{1 << 30, 4096, 100_001} {
			t.Run(fmt.Sprint(name, step), func(t *testing.T) {
				w, err := s.Create()
				if err != nil {
					t.Fatal(err)
				}
				for p := data; len(p) > 0; p = p[min(step, len(p)):] {
					if _, err := w.Write(p[:min(step, len(p))]); err != nil {
						t.Fatal(err)
					}
				}
				want := layers.SumOf(data)
				if sum, err := w.Commit(&want); err != nil || sum != want {
					t.Fatalf("Commit = %s, %v", sum, err)
				}
				check(t, s, data)
				if err := s.Remove(want); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestWriterHoles(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	w, err := s.Create()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 64<<20)); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(nil); err != nil {
		t.Fatal(err)
	}
	u, err := s.Usage()
	if err != nil || u.Objects != 1 || u.ObjectBytes > 64<<10 {
		t.Fatalf("Usage = %+v, %v, want one object of no blocks", u, err)
	}
}

func TestWriterRefuses(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	w, _ := s.Create()
	if _, err := w.Commit(nil); !errors.Is(err, ErrEmpty) {
		t.Errorf("Commit of nothing = %v, want ErrEmpty", err)
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after Commit = nil")
	}
	w, _ = s.Create()
	w.Write([]byte("x"))
	other := layers.SumOf([]byte("y"))
	var d *layers.DigestError
	if _, err := w.Commit(&other); !errors.As(err, &d) {
		t.Errorf("Commit = %v, want *DigestError", err)
	}
	if u, _ := s.Usage(); u != (Usage{}) {
		t.Errorf("Usage = %+v, want nothing", u)
	}
}

func TestConcurrentPut(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{open(t, dir, "a"), open(t, dir, "a")} // two processes, as far as files go
	data := make([][]byte, 50)
	for i := range data {
		data[i] = random(1000 * (i + 1))
	}
	var wg sync.WaitGroup
	for _, s := range append(stores, stores...) {
		wg.Go(func() {
			for i, d := range data {
				if err := s.Put(layers.SumOf(d), d); err != nil {
					t.Error(err)
				}
				if i%10 == 0 {
					if err := s.Barrier(t.Context()); err != nil {
						t.Error(err)
					}
				}
				check(t, s, d)
			}
		})
	}
	wg.Wait()
}

func TestFileCacheForgets(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, Options{Boot: "a", Files: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var all [][]byte
	for range 200 {
		all = append(all, random(20))
		if err := s.Put(layers.SumOf(all[len(all)-1]), all[len(all)-1]); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				for _, d := range all {
					check(t, s, d)
				}
			}
		})
	}
	wg.Wait()
	n := 0
	for i := range s.files.shards {
		n += len(s.files.shards[i].ring)
	}
	if n > 16 {
		t.Errorf("%d files are open, want at most 16", n)
	}
}

func TestSymlinksAreNotFollowed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := layers.SumOf([]byte("secret"))
	if err := os.Symlink(secret, filepath.Join(dir, "objects", sum.Path())); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadAt(sum, make([]byte, 6), 0); err == nil {
		t.Error("read through a symbolic link")
	}
}

package objects

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// cut cuts data into chunks of n bytes.
func cut(data []byte, n int) (chunks []layers.Chunk) {
	for off := 0; off < len(data); off += n {
		c := data[off:min(len(data), off+n)]
		chunks = append(chunks, layers.Chunk{Sum: layers.SumOf(c), Off: int64(off), Size: int64(len(c))})
	}
	return chunks
}

// partial makes a partial object of size random bytes with some of its chunks.
func partial(t testing.TB, s *Store, size, n int, have ...int) (*Partial, []byte) {
	t.Helper()
	data := random(size)
	return fill(t, s, data, n, have...), data
}

func fill(t testing.TB, s *Store, data []byte, n int, have ...int) *Partial {
	t.Helper()
	p, err := s.Partial(layers.SumOf(data), int64(len(data)), cut(data, n))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	for _, i := range have {
		if _, err := p.Put(i, data[i*n:min(len(data), (i+1)*n)]); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestPartial(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	p, data := partial(t, s, 95_000, 10_000, 0, 3, 9)
	buf := make([]byte, 10_000)
	if _, err := p.ReadAt(buf, 30_000); err != nil || !bytes.Equal(buf, data[30_000:40_000]) {
		t.Errorf("ReadAt of a chunk that is there = %v", err)
	}
	for _, off := range []int64{10_000, 25_000, 39_999} {
		if _, err := p.ReadAt(buf, off); !errors.Is(err, ErrNotCached) {
			t.Errorf("ReadAt(%d) = %v, want ErrNotCached", off, err)
		}
	}
	crash(s) // and its partial object with it
	s = open(t, dir, "a")
	p = fill(t, s, data, 10_000)
	last := false
	for i := range 10 {
		if want := i == 0 || i == 3 || i == 9; p.Has(i) != want {
			t.Errorf("Has(%d) = %v, want %v", i, p.Has(i), want)
		} else if !want {
			var err error
			if last, err = p.Put(i, data[i*10_000:(i+1)*10_000]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !last {
		t.Fatal("Put of the last chunk did not say so")
	}
	if err := p.Promote(); err != nil {
		t.Fatal(err)
	}
	check(t, s, data)
	if left, _ := os.ReadDir(filepath.Join(dir, "partial")); len(left) > 0 {
		t.Errorf("partial/ has %v", left)
	}
}

func TestPartialRefuses(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	p, data := partial(t, s, 30_000, 10_000)
	var d *layers.DigestError
	for name, bad := range map[string][]byte{"other": random(10_000), "short": data[:9999], "long": data[:10_001], "none": nil} {
		if _, err := p.Put(0, bad); !errors.As(err, &d) {
			t.Errorf("Put of %s bytes = %v, want *DigestError", name, err)
		}
	}
	if p.Has(0) {
		t.Error("wrong bytes are there")
	}
	if err := p.Promote(); !errors.Is(err, ErrNotCached) {
		t.Errorf("Promote of nothing = %v", err)
	}
	good := cut(data, 10_000)
	for name, chunks := range map[string][]layers.Chunk{
		"none": nil, "too few": good[:2], "gap": {good[0], good[2]}, "overlap": {good[0], good[0], good[1], good[2]},
		"empty": {good[0], {Off: 10_000}, good[1], good[2]}, "huge": {{Size: layers.MaxChunk + 1}},
	} {
		if _, err := s.Partial(layers.SumOf(data), 30_000, chunks); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Partial with chunks: %s = %v, want ErrBadLayer", name, err)
		}
	}
}

// The chunks of a lying layer are all verified, but they are not the object.
func TestPromoteVerifiesTheWhole(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	lie, sum := random(30_000), layers.SumOf([]byte("something else"))
	p, err := s.Partial(sum, 30_000, cut(lie, 10_000))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range 3 {
		if _, err := p.Put(i, lie[i*10_000:][:10_000]); err != nil {
			t.Fatal(err)
		}
	}
	var d *layers.DigestError
	if err := p.Promote(); !errors.As(err, &d) {
		t.Errorf("Promote = %v, want *DigestError", err)
	}
	if u, _ := s.Usage(); s.Has(sum) || u != (Usage{}) {
		t.Errorf("it left %+v", u)
	}
}

func TestPartialZeros(t *testing.T) {
	s := open(t, t.TempDir(), "a")
	data := append(make([]byte, 1<<20), random(1000)...)
	p := fill(t, s, data, 64<<10)
	for i := range 17 {
		last, err := p.Put(i, data[i<<16:min(len(data), (i+1)<<16)])
		if err != nil || last != (i == 16) {
			t.Fatalf("Put(%d) = %v, %v", i, last, err)
		}
	}
	if err := p.Promote(); err != nil {
		t.Fatal(err)
	}
	check(t, s, data)
	if u, err := s.Usage(); err != nil || u.ObjectBytes > 16<<10 {
		t.Errorf("Usage = %+v, %v: zeros take space", u, err)
	}
}

// A map that was left by a file that was completed says nothing about its successor.
func TestStaleMap(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, "a")
	p, data := partial(t, s, 30_000, 10_000, 0, 1)
	old, err := os.ReadFile(filepath.Join(dir, p.name+mapSuffix))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Drop(); err != nil {
		t.Fatal(err)
	}
	// The old file stays open, so the new one has another inode number.
	if err := os.WriteFile(filepath.Join(dir, p.name+mapSuffix), old, 0o600); err != nil {
		t.Fatal(err)
	}
	if q := fill(t, s, data, 10_000); q.Has(0) || q.Has(1) {
		t.Error("a stale map is believed: zeros would be served")
	}
}

func TestConcurrentPartial(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{open(t, dir, "a"), open(t, dir, "a")}
	data := random(400_000)
	var wg sync.WaitGroup
	for _, s := range stores {
		p := fill(t, s, data, 10_000)
		for range 2 {
			wg.Go(func() {
				for i := range 40 {
					last, err := p.Put(i, data[i*10_000:][:10_000])
					if err != nil {
						t.Error(err)
					}
					if last {
						if err := p.Promote(); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
	}
	wg.Wait()
	for _, s := range stores {
		check(t, s, data)
	}
}

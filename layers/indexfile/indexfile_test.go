package indexfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/snapfs/snapfs/layers"
)

func sum(s string) layers.Sum { return layers.SumOf([]byte(s)) }

// sample has every kind of entry and each field.
func sample() *layers.Index {
	ck := func(s string, off, blobOff int64) layers.Chunk {
		return layers.Chunk{Sum: sum(s), Off: off, Size: 10, BlobOff: blobOff, BlobLen: 7, Inner: 3}
	}
	return &layers.Index{Compression: layers.Zstd, Entries: []layers.Entry{
		{Kind: layers.Dir, Mode: 0o755},
		{Name: "late", Kind: layers.Reg, Mode: 0o4755, UID: 1<<32 - 1, GID: 7, Sec: -5, Nsec: 999, Size: 20, Object: sum("late"),
			Chunks: []layers.Chunk{ck("l1", 0, 1<<40), ck("l2", 10, 1<<40+100)},
			Xattrs: []layers.Xattr{{Name: "a", Value: strings.Repeat("\x00\xff", 30_000)}, {Name: "b"}}},
		{Name: "early\xff", Kind: layers.Reg, Size: 10, Object: sum("early"), Chunks: []layers.Chunk{ck("e", 0, 5)}},
		{Name: "twin", Kind: layers.Reg, Size: 10, Object: sum("early"), Chunks: []layers.Chunk{ck("e", 0, 50)}},
		{Name: "unpacked", Kind: layers.Reg, Size: 10, Object: sum("unpacked")},
		{Name: "empty", Kind: layers.Reg},
		{Name: "link", Kind: layers.Symlink, Link: strings.Repeat("x", 4095)},
		{Name: "hard", Kind: layers.Hardlink, Link: "late"},
		{Name: "char", Kind: layers.Char, Major: 1<<32 - 1, Minor: 3},
		{Name: "fifo", Kind: layers.Fifo},
	}}
}

func write(t testing.TB, ix *layers.Index) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.idx")
	if err := Write(path, ix); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestRoundTrip(t *testing.T) {
	for name, want := range map[string]*layers.Index{
		"sample": sample(), "empty": {Entries: []layers.Entry{}}, "large": large(10_000),
	} {
		got, err := open(t, write(t, want)).Index()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Index of %s (-want +got):\n%s", name, diff)
		}
	}
}

func TestLookup(t *testing.T) {
	ix := sample()
	f := open(t, write(t, ix))
	for _, e := range ix.Entries {
		if e.Size == 0 || e.Name == "twin" {
			continue
		}
		ref, ok := f.Lookup(e.Object)
		if !ok || ref.Size != e.Size || ref.NumChunks() != len(e.Chunks) {
			t.Errorf("Lookup(%q) = %v, %v", e.Name, ref, ok)
		}
		if diff := cmp.Diff(e.Chunks, f.Chunks(ref)); diff != "" {
			t.Errorf("Chunks(%q) (-want +got):\n%s", e.Name, diff)
		}
	}
	for _, s := range []layers.Sum{{}, sum("none"), sum("e")} {
		if ref, ok := f.Lookup(s); ok {
			t.Errorf("Lookup(%v) = %v, want nothing", s, ref)
		}
	}
	if f.Len() != 3 || f.Compression() != layers.Zstd {
		t.Errorf("Len, Compression = %d, %v, want 3, zstd", f.Len(), f.Compression())
	}
}

func TestObjectsInBlobOrder(t *testing.T) {
	f := open(t, write(t, sample()))
	var got []layers.Sum
	for s, ref := range f.Objects() {
		if want, ok := f.Lookup(s); !ok || want != ref {
			t.Errorf("Objects gives %v, %v, Lookup %v", s, ref, want)
		}
		got = append(got, s)
	}
	want := []layers.Sum{sum("unpacked"), sum("early"), sum("late")}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Objects (-want +got):\n%s", diff)
	}
	for range f.Objects() {
		f.Close() // no deadlock, and the end
	}
}

func TestClosed(t *testing.T) {
	f := open(t, write(t, sample()))
	ref, _ := f.Lookup(sum("late"))
	if err := errors.Join(f.Close(), f.Close()); err != nil {
		t.Errorf("Close twice = %v", err)
	}
	if _, ok := f.Lookup(sum("late")); ok || f.Chunks(ref) != nil {
		t.Error("a closed file finds something")
	}
	if _, err := f.Index(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Index of a closed file = %v, want ErrClosed", err)
	}
}

func TestWriteLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.idx")
	if err := os.Mkdir(path, 0o700); err != nil { // rename fails
		t.Fatal(err)
	}
	if err := Write(path, sample()); err == nil {
		t.Error("Write over a directory succeeds")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".idx-*")); len(left) > 0 {
		t.Errorf("Write left %v", left)
	}
}

func TestReplaceWhileOpen(t *testing.T) {
	path := write(t, sample())
	f := open(t, path)
	if err := Write(path, large(10)); err != nil {
		t.Fatal(err)
	}
	if got, err := f.Index(); err != nil || cmp.Diff(sample(), got) != "" {
		t.Errorf("an open file changes when it is replaced: %v", err)
	}
}

// Every flipped byte and every cut is noticed.
func TestOpenCorrupt(t *testing.T) {
	ix := sample()
	ix.Entries[1].Xattrs[0].Value = "short"
	good, err := os.ReadFile(write(t, ix))
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		p := append([]byte(nil), good...)
		p[i] ^= 0x40
		if _, err := parse(p); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("parse with byte %d flipped = %v, want ErrCorrupt", i, err)
		}
	}
	path := filepath.Join(t.TempDir(), "cut")
	for n := 0; n < len(good); n += 13 {
		if err := os.WriteFile(path, good[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Open of %d bytes = %v, want ErrCorrupt", n, err)
		}
	}
}

// seal makes the checksums of a file right, whatever it holds.
func seal(p []byte) []byte {
	if len(p) < headerSize {
		return p
	}
	p = append([]byte(nil), p...)
	binary.LittleEndian.PutUint32(p[88:], crc32.Checksum(p[headerSize:], castagnoli))
	binary.LittleEndian.PutUint32(p[92:], crc32.Checksum(p[:92], castagnoli))
	return p
}

// References that point outside are refused even with right checksums.
func TestOpenBadReferences(t *testing.T) {
	good, err := os.ReadFile(write(t, sample()))
	if err != nil {
		t.Fatal(err)
	}
	f, err := parse(good)
	if err != nil {
		t.Fatal(err)
	}
	entry := headerSize + entrySize
	for name, at := range map[string]int{
		"version": 8, "entries": 16 + 7, "objects": 24, "name": entry + 7, "link": entry + 8 + 3, "xattrs": entry + 16, "chunk": entry + 43,
		"chunks": entry + 46, "object": entry + 50, "name size": entry + 79, "xattr count": entry + 84, "xattr size": entry + 88,
		"object's chunk": int(f.objectsAt()) + 42, "order": int(f.orderAt()) + 1,
	} {
		p := append([]byte(nil), good...)
		p[at] ^= 0xff
		if _, err := parse(seal(p)); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("parse with a wrong %s = %v, want ErrCorrupt", name, err)
		}
	}
}

func TestOpenSumOrder(t *testing.T) {
	p, err := os.ReadFile(write(t, sample()))
	if err != nil {
		t.Fatal(err)
	}
	f, err := parse(p)
	if err != nil {
		t.Fatal(err)
	}
	copy(f.object(1), f.object(0)[:32])
	if _, err := parse(seal(p)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("parse with an object twice = %v, want ErrCorrupt", err)
	}
}

func FuzzOpen(f *testing.F) {
	for _, ix := range []*layers.Index{sample(), {}} {
		p, err := os.ReadFile(write(f, ix))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		x, err := parse(seal(p))
		if err != nil {
			return
		}
		ix, err := x.Index()
		if err != nil {
			t.Errorf("Index = %v after Open", err)
		}
		for s, ref := range x.Objects() {
			if got, ok := x.Lookup(s); !ok || got != ref || len(x.Chunks(ref)) != ref.NumChunks() {
				t.Errorf("Lookup(%v) = %v, want %v", s, got, ref)
			}
		}
		runtime.KeepAlive(ix)
	})
}

// large is an Index of n files.
func large(n int) *layers.Index {
	ix := &layers.Index{Compression: layers.Gzip, Entries: make([]layers.Entry, n)}
	for i := range ix.Entries {
		s := sum(fmt.Sprint(i))
		ix.Entries[i] = layers.Entry{
			Name: fmt.Sprintf("usr/lib/package%d/some_module_name_%d.py", i/20, i), Kind: layers.Reg, Mode: 0o644, Size: 5000, Object: s,
			Chunks: []layers.Chunk{{Sum: s, Size: 5000, BlobOff: int64(i) * 2000, BlobLen: 2000}},
		}
	}
	return ix
}

func BenchmarkFile(b *testing.B) {
	ix := large(300_000)
	path := write(b, ix)
	b.Run("Write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := Write(path, ix); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Open", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f, err := Open(path)
			if err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
	})
	f := open(b, path)
	b.Run("Index", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := f.Index(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Lookup", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if ref, ok := f.Lookup(ix.Entries[i%len(ix.Entries)].Object); !ok || len(f.Chunks(ref)) != 1 {
				b.Fatal("not found")
			}
		}
	})
}

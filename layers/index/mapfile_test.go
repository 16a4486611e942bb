package index

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

func openMap(tb testing.TB, path string, s Source) *MapFile {
	tb.Helper()
	f, err := OpenMap(tb.Context(), path, s)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	return f
}

func made(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "layer.map")
	if err := MakeMap(tb.Context(), path, sampleMap(), sampleWindows()); err != nil {
		tb.Fatal(err)
	}
	return path
}

// fetched makes a map that came with an index, and counts what is fetched.
type fetched struct {
	path  string
	blob  []byte
	layer *Layer

	mu     sync.Mutex
	ranges [][2]int64
}

func (f *fetched) source(_ context.Context, off, n int64) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ranges = append(f.ranges, [2]int64{off, n})
	return bytes.Clone(f.blob[off:][:n]), nil
}

func newFetched(tb testing.TB) *fetched {
	tb.Helper()
	p, info := write(tb, sampleImage())
	im, err := Parse(p, info.Root)
	if err != nil {
		tb.Fatal(err)
	}
	f := &fetched{path: filepath.Join(tb.TempDir(), "layer.map"), blob: p, layer: &im.Layers[0]}
	if err := WriteMap(f.path, f.layer, Blob{info.Digest, info.Size}); err != nil {
		tb.Fatal(err)
	}
	return f
}

// sameWindows checks that w gives the windows of the sample.
func sameWindows(t *testing.T, w layers.Windows) {
	t.Helper()
	for i, want := range sampleWindows() {
		if got, err := w.Window(t.Context(), i); err != nil || !bytes.Equal(got, want) {
			t.Errorf("Window(%d) = %d bytes, %v, want %d", i, len(got), err, len(want))
		}
	}
}

func TestMakeMap(t *testing.T) {
	f := openMap(t, made(t), nil)
	if diff := cmp.Diff(sampleMap(), f.Map()); diff != "" {
		t.Errorf("Map (-want +got):\n%s", diff)
	}
	sameWindows(t, f)
	if n, _ := f.Missing(); n != 0 || f.From() != (Blob{}) {
		t.Errorf("%d windows are missing, it is from %v", n, f.From())
	}
}

// What was made here is published from here: windows are not packed again.
func TestWriteFromMapFile(t *testing.T) {
	im := sampleImage()
	want, _ := write(t, im)
	im.Layers[0].Windows = openMap(t, made(t), nil)
	if got, _ := write(t, im); !bytes.Equal(want, got) {
		t.Error("an index made from a MapFile is another one")
	}
}

func TestFetchedMap(t *testing.T) {
	f := newFetched(t)
	m := openMap(t, f.path, f.source)
	if m.From() != (Blob{digest.FromBytes(f.blob), int64(len(f.blob))}) {
		t.Errorf("From = %v", m.From())
	}
	if diff := cmp.Diff(f.layer.Table, m.Table()); diff != "" {
		t.Errorf("Table (-want +got):\n%s", diff)
	}
	if n, size := m.Missing(); n != 2 || size != stored(f.layer.Table) {
		t.Errorf("Missing = %d, %d", n, size)
	}
	sameWindows(t, m)
	if n, _ := m.Missing(); n != 0 {
		t.Errorf("%d windows are missing after they were read", n)
	}
	sameWindows(t, openMap(t, f.path, nil)) // and are there the next time
}

// A miss brings those behind it, too.
func TestFetchRun(t *testing.T) {
	f := newFetched(t)
	m := openMap(t, f.path, f.source)
	if _, err := m.Window(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if n, _ := m.Missing(); n != 0 || len(f.ranges) != 1 {
		t.Errorf("%d windows are missing after the first was fetched by %v", n, f.ranges)
	}
	g := newFetched(t)
	if err := openMap(t, g.path, g.source).Fill(t.Context()); err != nil || len(g.ranges) != 1 {
		t.Errorf("Fill = %v, by %v", err, g.ranges)
	}
}

// Sudden death leaves windows torn, or zeros: they are fetched again.
func TestTornWindows(t *testing.T) {
	for name, tear := range map[string]func(string) error{
		"cut":     func(p string) error { return os.Truncate(p, 100) },
		"empty":   func(p string) error { return os.Truncate(p, 0) },
		"gone":    os.Remove,
		"zeros":   func(p string) error { return os.WriteFile(p, make([]byte, 1<<20), 0o600) },
		"garbage": func(p string) error { return os.WriteFile(p, randomBytes(1<<20, 1), 0o600) },
	} {
		f := newFetched(t)
		m := openMap(t, f.path, f.source)
		sameWindows(t, m)
		before := len(f.ranges)
		if err := errors.Join(m.Close(), tear(f.path+windowsSuffix)); err != nil {
			t.Fatal(err)
		}
		_, err := openMap(t, f.path, nil).Window(t.Context(), 3)
		if !errors.Is(err, ErrNoWindow) {
			t.Errorf("%s: Window without a source = %v, want ErrNoWindow", name, err)
		}
		sameWindows(t, openMap(t, f.path, f.source))
		if len(f.ranges) == before {
			t.Errorf("%s: nothing was fetched again", name)
		}
	}
}

func TestSourceFails(t *testing.T) {
	broken := errors.New("no network")
	for name, tc := range map[string]struct {
		source Source
		want   error
	}{
		"error": {func(context.Context, int64, int64) ([]byte, error) { return nil, broken }, broken},
		"short": {func(_ context.Context, _, n int64) ([]byte, error) { return make([]byte, n-1), nil }, ErrCorrupt},
		"wrong": {func(_ context.Context, _, n int64) ([]byte, error) { return make([]byte, n), nil }, ErrCorrupt},
	} {
		f := newFetched(t)
		m := openMap(t, f.path, tc.source)
		if _, err := m.Window(t.Context(), 1); !errors.Is(err, tc.want) {
			t.Errorf("%s: Window = %v, want %v", name, err, tc.want)
		}
		if err := m.Fill(t.Context()); !errors.Is(err, tc.want) {
			t.Errorf("%s: Fill = %v, want %v", name, err, tc.want)
		}
		if n, _ := m.Missing(); n != 2 {
			t.Errorf("%s: %d windows are missing, want 2", name, n)
		}
	}
}

// Who waits for a window leaves when its context ends; the fetch goes on for the
// others, and Close ends it.
func TestWaitForWindow(t *testing.T) {
	f := newFetched(t)
	started, release := make(chan struct{}), make(chan struct{})
	m := openMap(t, f.path, func(ctx context.Context, off, n int64) ([]byte, error) {
		close(started)
		select {
		case <-release:
			return f.source(ctx, off, n)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error)
	go func() { _, err := m.Window(ctx, 1); first <- err }()
	<-started
	second := make(chan error)
	go func() { _, err := m.Window(t.Context(), 1); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first = %v, want Canceled", err)
	}
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the second = %v", err)
	}
	if len(f.ranges) != 1 {
		t.Errorf("fetched %v, want one range", f.ranges)
	}
}

func TestCloseEndsFetches(t *testing.T) {
	f := newFetched(t)
	started := make(chan struct{})
	m := openMap(t, f.path, func(ctx context.Context, _, _ int64) ([]byte, error) {
		close(started)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	got := make(chan error)
	go func() { _, err := m.Window(t.Context(), 1); got <- err }()
	<-started
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Window = %v, want Canceled", err)
	}
	if _, err := m.Window(t.Context(), 1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Window of a closed file = %v, want ErrClosed", err)
	}
	if diff := cmp.Diff(sampleMap(), m.Map()); diff != "" {
		t.Error(diff)
	}
}

func TestRemoveMap(t *testing.T) {
	path := made(t)
	if err := errors.Join(RemoveMap(path), RemoveMap(path)); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) > 0 {
		t.Errorf("RemoveMap left %v", left)
	}
	if _, err := OpenMap(t.Context(), path, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenMap of nothing = %v, want ErrNotExist", err)
	}
}

// A map replaces one that was there, and its windows.
func TestReplaceMap(t *testing.T) {
	path := made(t)
	f := newFetched(t)
	if err := WriteMap(path, f.layer, Blob{digest.FromBytes(f.blob), int64(len(f.blob))}); err != nil {
		t.Fatal(err)
	}
	sameWindows(t, openMap(t, path, f.source))
	if len(f.ranges) == 0 {
		t.Error("windows of another map were used")
	}
}

func TestMakeMapRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "layer.map")
	if err := MakeMap(t.Context(), path, &layers.Map{}, nil); !errors.Is(err, layers.ErrBadLayer) {
		t.Errorf("MakeMap of a bad map = %v, want ErrBadLayer", err)
	}
	if err := MakeMap(t.Context(), path, sampleMap(), nil); !errors.Is(err, ErrNoWindow) {
		t.Errorf("MakeMap without windows = %v, want ErrNoWindow", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("MakeMap left %v", left)
	}
}

func TestOpenMapCorrupt(t *testing.T) {
	path := newFetched(t).path
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		p := bytes.Clone(good)
		p[i] ^= 0x40
		if err := new(MapFile).decode(p); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("decode with byte %d flipped = %v, want ErrCorrupt", i, err)
		}
		if err := new(MapFile).decode(good[:i]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("decode of %d bytes = %v, want ErrCorrupt", i, err)
		}
	}
	if err := os.Truncate(path, maxMapFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenMap(t.Context(), path, nil); !errors.Is(err, ErrCorrupt) {
		t.Errorf("OpenMap of a huge file = %v, want ErrCorrupt", err)
	}
}

func FuzzMapFile(f *testing.F) {
	for _, path := range []string{made(f), newFetched(f).path} {
		p, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		p = bytes.Clone(p)
		sealMap(p)
		m := new(MapFile)
		if err := m.decode(p); err != nil {
			if !sentinel(err) {
				t.Errorf("decode = %v, which wraps no sentinel", err)
			}
			return
		}
		if err := m.m.Check(); err != nil {
			t.Error(err)
		}
		if len(m.table) != len(m.m.Points) {
			t.Errorf("%d windows of %d points", len(m.table), len(m.m.Points))
		}
	})
}

// sealMap makes the checksums of a map file right, whatever it holds.
func sealMap(p []byte) {
	if len(p) < mapFileHead {
		return
	}
	le.PutUint32(p[40:], crc32.Checksum(p[mapFileHead:], castagnoli))
	le.PutUint32(p[44:], crc32.Checksum(p[:44], castagnoli))
}

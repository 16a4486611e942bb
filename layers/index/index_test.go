package index

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/layerstest"
)

func sum(s string) layers.Sum { return layers.SumOf([]byte(s)) }

// file makes a regular file whose bytes are at place of the tar.
func regularFile(name string, size, place int64) layers.Entry {
	e := layers.Entry{Name: name, Kind: layers.Reg, Mode: 0o644, Size: size, Object: sum(fmt.Sprint(name, size))}
	for off := int64(0); off < size; off += layers.ChunkSize {
		n := min(layers.ChunkSize, size-off)
		e.Chunks = append(e.Chunks, layers.Chunk{Sum: sum(fmt.Sprint(name, size, off)), Off: off, Size: n, BlobOff: place + off, BlobLen: n})
	}
	if len(e.Chunks) == 1 {
		e.Chunks[0].Sum = e.Object
	}
	return e
}

// sampleIndex has every kind of entry, each field at its limits, and every way
// in which a file can be cut.
func sampleIndex() *layers.Index {
	large := regularFile("usr/lib/large", 300<<10, 8192)
	twin := large
	twin.Name, twin.Chunks = "usr/lib/twin", nil
	for _, ck := range large.Chunks {
		ck.BlobOff += 400 << 10
		twin.Chunks = append(twin.Chunks, ck)
	}
	odd := large // the same object, with a hole
	odd.Name = "usr/lib/odd"
	odd.Chunks = []layers.Chunk{
		{Sum: sum("hole"), Off: 0, Size: 200 << 10},
		{Sum: sum("odd"), Off: 200 << 10, Size: 100 << 10, BlobOff: 900 << 10, BlobLen: 100 << 10},
	}
	hole := layers.Entry{Name: "hole", Kind: layers.Reg, Size: 10, Object: sum("zeros")}
	hole.Chunks = []layers.Chunk{{Sum: hole.Object, Size: 10}}
	back := regularFile("back", 5, 4099) // before the others, and at no block
	same := regularFile("same", 5, 7000)
	same.Object, same.Chunks[0].Sum = back.Object, back.Object
	return &layers.Index{Entries: []layers.Entry{
		{Kind: layers.Dir, Mode: 0o755, Sec: -1 << 62},
		{Name: "usr", Kind: layers.Dir, Mode: 0o755, Sec: 1 << 62, Nsec: 999_999_999},
		{Name: "usr/lib", Kind: layers.Dir, Mode: 0o7777, UID: 1<<32 - 1, GID: 1<<32 - 1, Sec: 5},
		large, twin, odd, hole, back, same,
		{Name: "usr/lib/\xff\xfe", Kind: layers.Reg, Sec: -7, Nsec: 1, Xattrs: []layers.Xattr{{Name: "a", Value: ""}, {Name: "b", Value: "\x00\xff"}}},
		{Name: strings.Repeat(strings.Repeat("x", 255)+"/", 15) + strings.Repeat("y", 255), Kind: layers.Symlink, Link: strings.Repeat("../", 1365)},
		{Name: "hard", Kind: layers.Hardlink, Link: "usr/lib/large"},
		{Name: "char", Kind: layers.Char, Major: 1<<32 - 1, Minor: 3},
		{Name: "block", Kind: layers.Block, Minor: 1<<32 - 1},
		{Name: "fifo", Kind: layers.Fifo},
		{Name: ".wh.gone", Kind: layers.Reg},
	}}
}

func sampleMap() *layers.Map {
	return &layers.Map{
		Compression: layers.Gzip, Plain: 1 << 20, Stored: 300_000,
		Points: []layers.Point{{}, {Plain: 40_000, Stored: 10_000, Bits: 3, Window: 32 << 10}, {Plain: 50_000, Stored: 10_001},
			{Plain: 70_000, Stored: 20_000, Bits: 7, Window: 10_000}, {Plain: 90_000, Stored: 30_000, Window: 32 << 10}},
		Marks: []layers.Mark{{Plain: 20_000, Stored: 6_000}, {Plain: 45_000, Stored: 9_000}},
	}
}

// memWindows are windows in memory.
type memWindows map[int][]byte

func (w memWindows) Window(_ context.Context, i int) ([]byte, error) {
	if p, ok := w[i]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("no window %d", i)
}

func randomBytes(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(p)
	return p
}

func sampleWindows() memWindows {
	return memWindows{1: []byte(strings.Repeat("snap", 8<<10)), 3: randomBytes(10_000), 4: make([]byte, 32<<10)}
}

func sampleProfile() *Profile {
	whole := Item{Object: sum("o1"), Size: 10, Sum: sum("o1"), Weight: FullWeight}
	return &Profile{Starts: 3, Items: []Item{
		whole,
		{Object: sum("o2"), Off: 128 << 10, Size: 128 << 10, Sum: sum("c2"), At: 5 * time.Millisecond, Weight: 700},
		{Object: sum("o2"), Off: 256 << 10, Size: 7, Sum: sum("c3"), At: 5 * time.Millisecond, Weight: 1},
		{Object: sum("o3"), Size: layers.MaxChunk, Sum: sum("c4"), At: 4 * time.Millisecond, Weight: 500},
		{Object: sum("o2"), Off: 0, Size: 128 << 10, Sum: sum("c1"), At: maxAt, Weight: 300},
	}}
}

func desc(s string, size int64) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString(s), Size: size}
}

func sampleImage() *Image {
	return &Image{
		Manifest: digest.FromString("manifest"),
		Layers: []Layer{
			{Desc: desc("l0", 300_000), DiffID: digest.FromString("d0"), Index: sampleIndex(), Map: sampleMap(), Windows: sampleWindows()},
			{Desc: desc("l1", 77), DiffID: digest.FromString("d1"), Reason: "it has a table of contents"},
			{Desc: desc("l2", 1024), DiffID: digest.FromString("d2"), Index: &layers.Index{Entries: []layers.Entry{}},
				Map: &layers.Map{Plain: 1024, Stored: 1024, Points: []layers.Point{{}}}},
		},
		Profile: sampleProfile(),
	}
}

// write writes im and returns the bytes.
func write(tb testing.TB, im *Image) ([]byte, Info) {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "index")
	info, err := Write(tb.Context(), path, im)
	if err != nil {
		tb.Fatal(err)
	}
	p, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	return p, info
}

func TestRoundTrip(t *testing.T) {
	want := sampleImage()
	p, info := write(t, want)
	if info.Size != int64(len(p)) || info.Digest != digest.FromBytes(p) || info.Prefix >= info.Size {
		t.Errorf("Info = %+v of %d bytes %s", info, len(p), digest.FromBytes(p))
	}
	got, err := Parse(p[:info.Prefix], info.Root)
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Layers {
		l := &got.Layers[i]
		if l.Mapped() {
			layerstest.Index(t, l.Index, l.Map.Plain)
			if err := l.Map.Check(); err != nil {
				t.Error(err)
			}
		}
		checkWindows(t, l, p, want.Layers[i].Windows)
		l.Table, want.Layers[i].Windows = nil, nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse (-want +got):\n%s", diff)
	}
}

func checkWindows(t *testing.T, l *Layer, p []byte, want layers.Windows) {
	t.Helper()
	for i, w := range l.Table {
		if l.Map.Points[i].Window == 0 {
			if w != (Window{}) {
				t.Errorf("point %d has window %+v, want none", i, w)
			}
			continue
		}
		stored := p[w.Off:][:w.Len]
		got, err := l.Window(i, stored)
		plain, _ := want.Window(t.Context(), i)
		if err != nil || !cmp.Equal(got, plain) {
			t.Errorf("Window(%d) = %d bytes, %v", i, len(got), err)
		}
		if len(stored) == 0 {
			continue
		}
		bad := append([]byte(nil), stored...)
		bad[len(bad)/2] ^= 1
		if _, err := l.Window(i, bad); !isDigest(err) || !errors.Is(err, ErrCorrupt) {
			t.Errorf("Window(%d) of wrong bytes = %v, want a DigestError", i, err)
		}
		if _, err := l.Window(i, stored[1:]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Window(%d) of few bytes = %v, want ErrCorrupt", i, err)
		}
	}
}

func isDigest(err error) bool {
	_, ok := errors.AsType[*layers.DigestError](err)
	return ok
}

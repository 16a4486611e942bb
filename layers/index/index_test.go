package index

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
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

func randomBytes(n, seed int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(p)
	return p
}

func sampleWindows() memWindows {
	return memWindows{1: []byte(strings.Repeat("snap", 8<<10)), 3: randomBytes(10_000, 0), 4: make([]byte, 32<<10)}
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

// The root stands for all bytes of the prefix: any that flips is noticed.
func TestParseCorrupt(t *testing.T) {
	good, info := write(t, sampleImage())
	for i := range info.Prefix {
		p := append([]byte(nil), good[:info.Prefix]...)
		p[i] ^= 0x10
		if _, err := Parse(p, info.Root); !sentinel(err) {
			t.Errorf("Parse with byte %d flipped = %v, want ErrCorrupt", i, err)
		}
	}
	for n := int64(0); n < info.Prefix; n += 7 {
		if _, err := Parse(good[:n], info.Root); !errors.Is(err, ErrCorrupt) {
			t.Errorf("Parse of %d bytes = %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := Parse(good, sum("other")); !errors.Is(err, ErrCorrupt) || !isDigest(err) {
		t.Errorf("Parse with another root = %v, want a DigestError", err)
	}
}

func sentinel(err error) bool {
	return errors.Is(err, ErrCorrupt) || errors.Is(err, ErrVersion) || errors.Is(err, layers.ErrTooLarge)
}

// reseal makes the sums of an index right, whatever it says, and returns its root.
func reseal(p []byte) layers.Sum {
	n, err := headerLen(p)
	if err != nil || n > int64(len(p)) {
		return layers.Sum{}
	}
	for i := range min(int64(le.Uint32(p[36:])), (n-headerSize)/sectionSize) {
		s := p[headerSize+i*sectionSize:][:sectionSize]
		off, size := le.Uint64(s[8:]), le.Uint64(s[16:])
		if total := uint64(len(p)); kind(s[0]) != kindWindows && off <= total && size <= total-off {
			sum := layers.SumOf(p[off : off+size])
			copy(s[32:], sum[:])
		}
	}
	return layers.SumOf(p[:n])
}

// Headers that lie are refused though all sums are right.
func TestParseLyingHeader(t *testing.T) {
	good, info := write(t, sampleImage())
	h, err := ParseHeader(good, info.Root)
	if err != nil {
		t.Fatal(err)
	}
	sectionAt := func(k kind) int {
		for i, s := range h.sections {
			if s.kind == k {
				return headerSize + i*sectionSize
			}
		}
		t.Fatalf("no %v section", k)
		return 0
	}
	tail := headerSize + sectionSize*len(h.sections)
	for _, tc := range []struct {
		name string
		at   int
		v    byte
		want error
	}{
		{"magic", 0, 'S', ErrCorrupt},
		{"newer version", 8, 2, ErrVersion},
		{"version 0", 8, 0, ErrCorrupt},
		{"huge header", 15, 1, layers.ErrTooLarge},
		{"short header", 12, 47, ErrCorrupt},
		{"prefix", 16, good[16] + 1, ErrCorrupt},
		{"negative prefix", 23, 0x80, ErrCorrupt},
		{"size", 24, good[24] + 1, ErrCorrupt},
		{"more layers", 32, good[32] + 1, ErrCorrupt},
		{"fewer layers", 32, good[32] - 1, ErrCorrupt},
		{"many layers", 33, 0x80, layers.ErrTooLarge},
		{"many sections", 38, 1, layers.ErrTooLarge},
		{"more sections", 36, good[36] + 1, ErrCorrupt},
		{"reserved", 47, 1, ErrCorrupt},
		{"unknown section", sectionAt(kindWindows), 9, ErrCorrupt},
		{"section flags", sectionAt(kindMap) + 1, 1, ErrCorrupt},
		{"section of a layer that is not mapped", sectionAt(kindTree) + 2, 1, ErrCorrupt},
		{"section of no layer", sectionAt(kindTree) + 2, 77, ErrCorrupt},
		{"profile of a layer", sectionAt(kindProfile) + 2, 0, ErrCorrupt},
		{"two trees of a layer", sectionAt(kindTree) + sectionSize + 2, 0, ErrCorrupt},
		{"entries", sectionAt(kindTree) + 4, 1, ErrCorrupt},
		{"many entries", sectionAt(kindTree) + 7, 0x7f, layers.ErrTooLarge},
		{"chunks", sectionAt(kindMap) + 4, 1, ErrCorrupt},
		{"points", sectionAt(kindWindows) + 4, 1, ErrCorrupt},
		{"items", sectionAt(kindProfile) + 4, 1, ErrCorrupt},
		{"offset", sectionAt(kindTree) + 8, 0, ErrCorrupt},
		{"length", sectionAt(kindTree) + 16, 0, ErrCorrupt},
		{"negative length", sectionAt(kindMap) + 23, 0x80, ErrCorrupt},
		{"plain length of a tree", sectionAt(kindTree) + 24, 0, ErrCorrupt},
		{"large plain length", sectionAt(kindTree) + 28, 1, layers.ErrTooLarge},
		{"plain length of a map", sectionAt(kindMap) + 24, 0, ErrCorrupt},
		{"plain length of a profile", sectionAt(kindProfile) + 24, 0, ErrCorrupt},
		{"plain length of windows", sectionAt(kindWindows) + 24, 1, ErrCorrupt},
		{"manifest digest", tail + 1, 'S', ErrCorrupt},
		{"manifest", tail, 200, ErrCorrupt},
		{"layer digest", tail + 73, 'S', ErrCorrupt},
		{"layer size", tail + 72 + 72 + 1, 1, ErrCorrupt},
	} {
		p := append([]byte(nil), good...)
		p[tc.at] = tc.v
		if _, err := Parse(p, reseal(p)); !errors.Is(err, tc.want) {
			t.Errorf("%s: Parse = %v, want %v", tc.name, err, tc.want)
		}
	}
}

// Whatever is not as package layers says is refused when it is written.
func TestWriteRefuses(t *testing.T) {
	entry := func(change func(*layers.Entry)) func(*Image) {
		return func(im *Image) { change(&im.Layers[0].Index.Entries[3]) }
	}
	for _, tc := range []struct {
		name   string
		change func(*Image)
		want   error
	}{
		{"no manifest", func(im *Image) { im.Manifest = "" }, ErrCorrupt},
		{"no digest", func(im *Image) { im.Layers[1].Desc.Digest = "sha256:0" }, ErrCorrupt},
		{"no diff ID", func(im *Image) { im.Layers[0].DiffID = "" }, ErrCorrupt},
		{"no reason", func(im *Image) { im.Layers[1].Reason = "" }, layers.ErrBadLayer},
		{"long reason", func(im *Image) { im.Layers[1].Reason = strings.Repeat("x", MaxReason+1) }, layers.ErrTooLarge},
		{"a map and a reason", func(im *Image) { im.Layers[0].Reason = "x" }, layers.ErrBadLayer},
		{"no index", func(im *Image) { im.Layers[0].Index = nil }, layers.ErrBadLayer},
		{"an index of gzip members", func(im *Image) { im.Layers[0].Index.Compression = layers.Gzip }, layers.ErrBadLayer},
		{"bad map", func(im *Image) { im.Layers[0].Map.Points = nil }, layers.ErrBadLayer},
		{"map of another blob", func(im *Image) { im.Layers[0].Desc.Size++ }, layers.ErrBadLayer},
		{"no windows", func(im *Image) { im.Layers[0].Windows = nil }, ErrNoWindow},
		{"short window", func(im *Image) { im.Layers[0].Windows = memWindows{1: {}} }, ErrCorrupt},
		{"bad profile", func(im *Image) { im.Profile.Starts = 0 }, ErrCorrupt},
		{"many layers", func(im *Image) { im.Layers = make([]Layer, MaxLayers+1) }, layers.ErrTooLarge},
		{"name", entry(func(e *layers.Entry) { e.Name = "a//b" }), layers.ErrBadLayer},
		{"kind", entry(func(e *layers.Entry) { e.Kind = 99 }), layers.ErrBadLayer},
		{"mode", entry(func(e *layers.Entry) { e.Mode = 0o10000 }), layers.ErrBadLayer},
		{"nanoseconds", entry(func(e *layers.Entry) { e.Nsec = 1e9 }), layers.ErrBadLayer},
		{"link of a file", entry(func(e *layers.Entry) { e.Link = "x" }), layers.ErrBadLayer},
		{"device of a file", entry(func(e *layers.Entry) { e.Minor = 1 }), layers.ErrBadLayer},
		{"xattrs", entry(func(e *layers.Entry) { e.Xattrs = []layers.Xattr{{Name: "b"}, {Name: "a"}} }), layers.ErrBadLayer},
		{"large xattrs", entry(func(e *layers.Entry) {
			e.Xattrs = []layers.Xattr{{Name: "b", Value: strings.Repeat("x", layers.MaxXattrs)}}
		}), layers.ErrTooLarge},
		{"no object", entry(func(e *layers.Entry) { e.Object = layers.Sum{} }), layers.ErrBadLayer},
		{"no chunks", entry(func(e *layers.Entry) { e.Chunks = nil }), layers.ErrBadLayer},
		{"few chunks", entry(func(e *layers.Entry) { e.Chunks = e.Chunks[:2] }), layers.ErrBadLayer},
		{"chunk without a sum", entry(func(e *layers.Entry) { e.Chunks[1].Sum = layers.Sum{} }), layers.ErrBadLayer},
		{"chunk in a run", entry(func(e *layers.Entry) { e.Chunks[1].Inner = 1 }), layers.ErrBadLayer},
		{"chunk that is compressed", entry(func(e *layers.Entry) { e.Chunks[1].BlobLen-- }), layers.ErrBadLayer},
		{"chunk outside", entry(func(e *layers.Entry) { e.Chunks[2].BlobOff = 1 << 20 }), layers.ErrBadLayer},
		{"chunks that overlap", entry(func(e *layers.Entry) { e.Chunks[len(e.Chunks)-1].BlobOff++ }), nil}, // a gap
		{"chunks that overlap", entry(func(e *layers.Entry) { e.Chunks[2].BlobOff-- }), layers.ErrBadLayer},
		{"only chunk of another sum", func(im *Image) { im.Layers[0].Index.Entries[7].Chunks[0].Sum = sum("x") }, layers.ErrBadLayer},
		{"object of two sizes", func(im *Image) { im.Layers[0].Index.Entries[8].Object = im.Layers[0].Index.Entries[3].Object }, layers.ErrBadLayer},
	} {
		im := sampleImage()
		tc.change(im)
		dir := t.TempDir()
		_, err := Write(t.Context(), filepath.Join(dir, "index"), im)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: Write = %v, want %v", tc.name, err, tc.want)
		}
		if left, _ := os.ReadDir(dir); err != nil && len(left) > 0 {
			t.Errorf("%s: Write left %v", tc.name, left)
		}
	}
}

func TestWriteEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	im := sampleImage()
	im.Layers[0].Windows = ctxWindows{}
	if _, err := Write(ctx, filepath.Join(t.TempDir(), "index"), im); !errors.Is(err, context.Canceled) {
		t.Errorf("Write = %v, want Canceled", err)
	}
}

type ctxWindows struct{}

func (ctxWindows) Window(ctx context.Context, _ int) ([]byte, error) { return nil, ctx.Err() }

func TestHeaderCheck(t *testing.T) {
	im := sampleImage()
	p, info := write(t, im)
	h, err := ParseHeader(p, info.Root)
	if err != nil {
		t.Fatal(err)
	}
	args := func() (digest.Digest, []ocispec.Descriptor, []digest.Digest) {
		var ds []ocispec.Descriptor
		var ids []digest.Digest
		for _, l := range im.Layers {
			ds, ids = append(ds, l.Desc), append(ids, l.DiffID)
		}
		return im.Manifest, ds, ids
	}
	if err := h.Check(args()); err != nil {
		t.Errorf("Check = %v", err)
	}
	for name, change := range map[string]func(m *digest.Digest, ds *[]ocispec.Descriptor, ids *[]digest.Digest){
		"manifest": func(m *digest.Digest, _ *[]ocispec.Descriptor, _ *[]digest.Digest) { *m = digest.FromString("x") },
		"count": func(_ *digest.Digest, ds *[]ocispec.Descriptor, ids *[]digest.Digest) {
			*ds, *ids = (*ds)[:2], (*ids)[:2]
		},
		"digest": func(_ *digest.Digest, ds *[]ocispec.Descriptor, _ *[]digest.Digest) {
			(*ds)[1].Digest = digest.FromString("x")
		},
		"size": func(_ *digest.Digest, ds *[]ocispec.Descriptor, _ *[]digest.Digest) { (*ds)[2].Size++ },
		"diff ID": func(_ *digest.Digest, _ *[]ocispec.Descriptor, ids *[]digest.Digest) {
			(*ids)[0] = digest.FromString("x")
		},
	} {
		m, ds, ids := args()
		change(&m, &ds, &ids)
		if err := h.Check(m, ds, ids); !errors.Is(err, ErrOtherImage) {
			t.Errorf("Check with another %s = %v, want ErrOtherImage", name, err)
		}
	}
}

// The tree can be had before the map is there.
func TestTree(t *testing.T) {
	im := sampleImage()
	p, info := write(t, im)
	h, err := ParseHeader(p[:info.Prefix], info.Root)
	if err != nil {
		t.Fatal(err)
	}
	got, err := h.Tree(p[:h.TreeEnd(0)], 0)
	if err != nil {
		t.Fatal(err)
	}
	want := im.Layers[0].Index.Entries
	for i := range want {
		want[i].Chunks = nil
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Tree (-want +got):\n%s", diff)
	}
	if _, err := h.Tree(p[:h.TreeEnd(0)-1], 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Tree of too few bytes = %v, want ErrCorrupt", err)
	}
	if _, err := h.Tree(p, 1); err == nil || h.TreeEnd(1) != 0 {
		t.Error("a layer that is not mapped has a tree")
	}
	if pr, err := h.Profile(p[:h.TreeEnd(0)]); err != nil || !pr.Equal(im.Profile) {
		t.Errorf("Profile = %v, %v", pr, err)
	}
}

func TestNoProfile(t *testing.T) {
	im := sampleImage()
	im.Profile = nil
	p, info := write(t, im)
	got, err := Parse(p, info.Root)
	if err != nil || got.Profile != nil {
		t.Errorf("Parse = profile %v, %v", got.Profile, err)
	}
}

// Whatever bytes come in, with sums that are right: no panic, and what is taken
// is as package layers says and can be written again.
func FuzzParse(f *testing.F) {
	p, info := write(f, sampleImage())
	f.Add(p[:info.Prefix])
	many, info := write(f, &Image{Manifest: digest.FromString("m"), Layers: []Layer{manyFiles(50)}})
	f.Add(many[:info.Prefix])
	z := newEncoder()
	f.Fuzz(func(t *testing.T, p []byte) {
		root := reseal(p)
		h, err := ParseHeader(p, root)
		if err != nil {
			if !sentinel(err) {
				t.Errorf("ParseHeader = %v, which wraps no sentinel", err)
			}
			return
		}
		for _, s := range h.sections {
			if s.plain > 16<<20 && s.kind != kindWindows {
				t.Skip("it only costs time")
			}
		}
		im, err := Parse(p, root)
		if err != nil {
			if !sentinel(err) {
				t.Errorf("Parse = %v, which wraps no sentinel", err)
			}
			return
		}
		for i := range im.Layers {
			if l := &im.Layers[i]; l.Mapped() {
				layerstest.Index(t, l.Index, l.Map.Plain)
				if err := l.Map.Check(); err != nil {
					t.Error(err)
				}
				again(t, z, l)
			}
		}
	})
}

// again encodes the tree and the map of l, and decodes them.
func again(t *testing.T, z *zstd.Encoder, l *Layer) {
	files, err := findFiles(l.Index.Entries)
	if err != nil {
		t.Fatal(err)
	}
	p, s := encodeTree(z, l.Index.Entries, files)
	entries, files2, err := decodeTree(p, &s)
	if err != nil {
		t.Fatal(err)
	}
	var cols [mapColumns][]byte
	n, err := encodeChunks(cols[:], l.Index.Entries, files)
	if err != nil {
		t.Fatal(err)
	}
	encodeMap(cols[:], l.Map, l.Table)
	var in [mapColumns]cursor
	for i, c := range cols {
		in[i].p = c
	}
	var off int64
	for _, w := range l.Table {
		if off = w.Off; off > 0 {
			break
		}
	}
	m, table, err := decodeMap(in[:], off)
	if err != nil {
		t.Fatal(err)
	}
	if err := decodeChunks(in[:], entries, files2, n); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(l.Index.Entries, entries) || !reflect.DeepEqual(l.Map, m) || !slices.Equal(l.Table, table) {
		t.Errorf("again: %s%s%s", cmp.Diff(l.Index.Entries, entries), cmp.Diff(l.Map, m), cmp.Diff(l.Table, table))
	}
}

// forge writes an index of one layer without looking at what it says.
func forge(t *testing.T, entries []layers.Entry, files []file, m *layers.Map) ([]byte, layers.Sum) {
	t.Helper()
	w := &writer{z: newEncoder()}
	w.header.Manifest = digest.FromString("m")
	w.header.Layers = []LayerInfo{{Desc: desc("l", m.Stored), DiffID: digest.FromString("d")}}
	tree, s := encodeTree(w.z, entries, files)
	w.add(&w.trees, s, tree)
	var cols [mapColumns][]byte
	n, err := encodeChunks(cols[:], entries, files)
	if err != nil {
		t.Fatal(err)
	}
	encodeMap(cols[:], m, make([]Window, len(m.Points)))
	maps, plain := pack(w.z, 0, cols[:]...)
	w.add(&w.maps, section{kind: kindMap, records: uint32(n), plain: plain}, maps)
	w.windows = []section{{kind: kindWindows, records: uint32(len(m.Points)), plain: windowBytes(m)}}
	if w.spool, err = os.CreateTemp(t.TempDir(), ""); err != nil {
		t.Fatal(err)
	}
	defer w.spool.Close()
	var b bytes.Buffer
	info, err := w.writeTo(&b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), info.Root
}

// Layers that lie, in an index whose sums are all right.
func TestParseLyingLayer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(es []layers.Entry, m *layers.Map)
		want   error
	}{
		{"nothing", func([]layers.Entry, *layers.Map) {}, nil},
		{"name", func(es []layers.Entry, _ *layers.Map) { es[3].Name = "../x" }, ErrCorrupt},
		{"second root that is a file", func(es []layers.Entry, _ *layers.Map) { es[3].Name = "" }, ErrCorrupt},
		{"kind", func(es []layers.Entry, _ *layers.Map) { es[1].Kind = 0 }, ErrCorrupt},
		{"mode", func(es []layers.Entry, _ *layers.Map) { es[1].Mode = 0xffff }, ErrCorrupt},
		{"nanoseconds", func(es []layers.Entry, _ *layers.Map) { es[1].Nsec = 1e9 }, ErrCorrupt},
		{"hard link to outside", func(es []layers.Entry, _ *layers.Map) { es[11].Link = "../x" }, ErrCorrupt},
		{"long link", func(es []layers.Entry, _ *layers.Map) { es[11].Link = strings.Repeat("x", 5000) }, ErrCorrupt},
		{"xattrs", func(es []layers.Entry, _ *layers.Map) { es[1].Xattrs = []layers.Xattr{{Name: "b"}, {Name: "b"}} }, ErrCorrupt},
		{"large xattrs", func(es []layers.Entry, _ *layers.Map) {
			es[1].Xattrs = []layers.Xattr{{Name: "b", Value: strings.Repeat("x", layers.MaxXattrs)}}
		}, layers.ErrTooLarge},
		{"no object", func(es []layers.Entry, _ *layers.Map) { es[7].Object, es[7].Chunks[0].Sum = layers.Sum{}, layers.Sum{} }, ErrCorrupt},
		{"chunk outside", func(es []layers.Entry, m *layers.Map) { m.Plain = 900 << 10 }, ErrCorrupt},
		{"chunks of two files overlap", func(es []layers.Entry, _ *layers.Map) { es[8].Chunks[0].BlobOff = 4100 }, ErrCorrupt},
		{"points out of order", func(_ []layers.Entry, m *layers.Map) { m.Points[2].Plain = 1 << 21 }, ErrCorrupt},
		{"stored point beyond the blob", func(_ []layers.Entry, m *layers.Map) { m.Points[4].Stored = 1 << 30 }, ErrCorrupt},
		{"large window", func(_ []layers.Entry, m *layers.Map) { m.Points[4].Window = 40 << 10 }, ErrCorrupt},
		{"bits", func(_ []layers.Entry, m *layers.Map) { m.Points[4].Bits = 8 }, ErrCorrupt},
		{"mark beyond", func(_ []layers.Entry, m *layers.Map) { m.Marks[1].Plain = 1 << 30 }, ErrCorrupt},
		{"compression", func(_ []layers.Entry, m *layers.Map) { m.Compression = 7 }, ErrCorrupt},
		{"no points", func(_ []layers.Entry, m *layers.Map) { m.Points = nil }, ErrCorrupt},
	} {
		ix, m := sampleIndex(), sampleMap()
		files, err := findFiles(ix.Entries)
		if err != nil {
			t.Fatal(err)
		}
		tc.change(ix.Entries, m)
		for i, f := range files {
			if ck := ix.Entries[f.entry].Chunks[0]; ck.BlobLen > 0 {
				files[i].off = ck.BlobOff
			}
		}
		p, root := forge(t, ix.Entries, files, m)
		if _, err := Parse(p, root); !errors.Is(err, tc.want) {
			t.Errorf("%s: Parse = %v, want %v", tc.name, err, tc.want)
		}
	}
}

// A blob of another size than the map's.
func TestParseOtherBlob(t *testing.T) {
	ix, m := sampleIndex(), sampleMap()
	files, err := findFiles(ix.Entries)
	if err != nil {
		t.Fatal(err)
	}
	p, root := forge(t, ix.Entries, files, m)
	at := bytes.Index(p, binary.AppendUvarint(nil, uint64(m.Stored))) // in the list of layers
	p[at]++
	if _, err := Parse(p, reseal(p)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Parse = %v (root was %v), want ErrCorrupt", err, root)
	}
}

// Indexes and bundles that version 1 wrote are read for ever. The files are what
// Write and WriteBundle made of the samples once.
func TestGolden(t *testing.T) {
	p, err := os.ReadFile("testdata/v1.prefix")
	if err != nil {
		t.Fatal(err)
	}
	root, err := layers.ParseSum("sha256:20e84b6d80edeb28a77b2fdabc307fb989d98a775316d6d31aa362ab081ac923")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse(p, root)
	if err != nil {
		t.Fatal(err)
	}
	want := sampleImage()
	want.Layers[0].Windows, got.Layers[0].Table, got.Layers[2].Table = nil, nil, nil
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Parse of an old index (-want +got):\n%s", diff)
	}
	b, err := os.ReadFile("testdata/v1.bundle")
	if err != nil {
		t.Fatal(err)
	}
	pr, plain := bundled(100, 2000, 17)
	its, read, err := readBundle(pr, bytes.NewReader(b))
	if err != nil || !slices.Equal(its, pr.Items) || !slices.EqualFunc(read, plain, bytes.Equal) {
		t.Errorf("an old bundle: %d items, %v", len(its), err)
	}
}

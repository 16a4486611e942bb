package tarindex

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// testStore is one for all tests: to make one costs 512 directories, and what
// another test put there is harmless.
var testStore *objects.Store

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "tarindex")
	if err == nil {
		testStore, err = objects.Open(dir, objects.Options{})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := errors.Join(testStore.Close(), os.RemoveAll(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// A file is a member of a hand-made archive.
type file struct {
	tar.Header
	data string
}

// archive makes a tar with end mark.
func archive(t testing.TB, files ...file) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		f.Size = int64(len(f.data))
		if f.Typeflag == 0 {
			f.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gzipped(t testing.TB, p []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(p); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstded(t testing.TB, p []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(p, nil)
}

func describe(stored []byte) ocispec.Descriptor {
	return ocispec.Descriptor{Digest: digest.FromBytes(stored), Size: int64(len(stored))}
}

// unpackBytes unpacks stored, whose tar is plain.
func unpackBytes(t testing.TB, stored, plain []byte) (*objects.Store, *layers.Index, error) {
	t.Helper()
	u, err := Unpack(t.Context(), bytes.NewReader(stored), describe(stored), digest.FromBytes(plain), testStore, Options{})
	if err != nil {
		return testStore, nil, err
	}
	t.Cleanup(func() { u.Close() })
	return testStore, u.Index, nil
}

// content returns the bytes of an entry.
func content(t testing.TB, s *objects.Store, e layers.Entry) string {
	t.Helper()
	if e.Size == 0 {
		return ""
	}
	p := make([]byte, e.Size)
	if _, err := s.ReadAt(e.Object, p, 0); err != nil && err != io.EOF {
		t.Fatalf("%s: %v", e.Name, err)
	}
	return string(p)
}

var sample = []file{
	{Header: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}},
	{Header: tar.Header{Name: "a/", Typeflag: tar.TypeDir, Mode: 0o1777}},
	{Header: tar.Header{Name: "a/small", Mode: 0o4755, Uid: 1, Gid: 2}, data: "small"},
	{Header: tar.Header{Name: "a/empty", Mode: 0o600}},
	{Header: tar.Header{Name: "a/.wh.gone"}},
	{Header: tar.Header{Name: "a/large", Mode: 0o644}, data: strings.Repeat("large\n", 200_000)},
	{Header: tar.Header{Name: "a/edge", Mode: 0o644}, data: strings.Repeat("x", objects.MaxPacked)},
	{Header: tar.Header{Name: "a/over", Mode: 0o644}, data: strings.Repeat("y", objects.MaxPacked+1)},
	{Header: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"}},
	{Header: tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "./a/small"}},
	{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
	{Header: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo}},
}

func TestUnpack(t *testing.T) {
	plain := archive(t, sample...)
	half := len(plain) / 2
	for name, stored := range map[string][]byte{
		"plain":           plain,
		"gzip":            gzipped(t, plain),
		"gzip members":    append(gzipped(t, plain[:half]), gzipped(t, plain[half:])...),
		"gzip, zeros":     append(gzipped(t, plain), make([]byte, 1000)...),
		"zstd":            zstded(t, plain),
		"zstd frames":     append(zstded(t, plain[:half]), zstded(t, plain[half:])...),
		"zstd, skippable": append([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 'x'}, zstded(t, plain)...),
	} {
		t.Run(name, func(t *testing.T) {
			checkSample(t, testStore, unpacked(t, stored, plain).Index)
		})
	}
}

func checkSample(t *testing.T, s *objects.Store, ix *layers.Index) {
	t.Helper()
	if len(ix.Entries) != len(sample) {
		t.Fatalf("%d entries, want %d", len(ix.Entries), len(sample))
	}
	for i, f := range sample {
		e := ix.Entries[i]
		if want := strings.Trim(strings.TrimPrefix(f.Name, "./"), "/"); e.Name != want {
			t.Errorf("entry %d is %q, want %q", i, e.Name, want)
		}
		if got := content(t, s, e); got != f.data {
			t.Errorf("%s: wrong bytes: %d, want %d", e.Name, len(got), len(f.data))
		}
		if int64(e.Mode) != f.Mode || int(e.UID) != f.Uid || int(e.GID) != f.Gid {
			t.Errorf("%s: mode %o owner %d:%d, want %o %d:%d", e.Name, e.Mode, e.UID, e.GID, f.Mode, f.Uid, f.Gid)
		}
	}
}

func TestUnpackRefusesDigests(t *testing.T) {
	plain := archive(t, sample...)
	stored := gzipped(t, plain)
	good, diff := describe(stored), digest.FromBytes(plain)
	other := digest.FromString("other")
	for name, tt := range map[string]struct {
		desc  ocispec.Descriptor
		diff  digest.Digest
		want  digest.Digest
		bytes []byte
	}{
		"blob":      {ocispec.Descriptor{Digest: other, Size: good.Size}, diff, other, stored},
		"diff ID":   {good, other, other, stored},
		"truncated": {good, diff, good.Digest, stored[:len(stored)-9]},
		"nothing":   {good, diff, good.Digest, nil},
	} {
		s := testStore
		ix, err := Unpack(t.Context(), bytes.NewReader(tt.bytes), tt.desc, tt.diff, s, Options{})
		de, ok := errors.AsType[*layers.DigestError](err)
		if ix != nil || !ok || de.Want != tt.want {
			t.Errorf("%s: %v, %v; want a DigestError that wants %s", name, ix, err, tt.want)
		}
	}
	for name, size := range map[string]int64{"short": good.Size - 1, "long": good.Size + 1} {
		desc := good
		desc.Size = size
		if _, err := Unpack(t.Context(), bytes.NewReader(stored), desc, diff, testStore, Options{}); err == nil {
			t.Errorf("a %s size in the descriptor is not noticed", name)
		}
	}
	for _, d := range []digest.Digest{"", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		if _, err := Unpack(t.Context(), bytes.NewReader(stored), good, d, testStore, Options{}); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("diff ID %q: %v", d, err)
		}
	}
	desc := good
	desc.MediaType = "application/vnd.oci.image.layer.v1.tar+encrypted"
	if _, err := Unpack(t.Context(), bytes.NewReader(stored), desc, diff, testStore, Options{}); !errors.Is(err, layers.ErrBadLayer) {
		t.Errorf("media type %s: %v", desc.MediaType, err)
	}
}

// A flipped bit anywhere is a DigestError, also where it breaks the decoder.
func TestUnpackFlipped(t *testing.T) {
	plain := archive(t, sample[:5]...)
	for _, stored := range [][]byte{plain, gzipped(t, plain), zstded(t, plain)} {
		s := testStore
		for i := 0; i < len(stored); i += 1 + len(stored)/300 {
			bad := bytes.Clone(stored)
			bad[i] ^= 1 << (i % 8)
			ix, err := Unpack(t.Context(), bytes.NewReader(bad), describe(stored), digest.FromBytes(plain), s, Options{})
			if _, ok := errors.AsType[*layers.DigestError](err); !ok || ix != nil {
				t.Fatalf("byte %d of %d flipped: %v", i, len(stored), err)
			}
		}
	}
}

// A blob that ends early, with digests that hold for what there is: what is not
// a whole archive is refused, and nothing hangs.
func TestUnpackTruncated(t *testing.T) {
	plain := archive(t, sample[:5]...)
	s := testStore
	for n := range plain {
		if r := n % blockSize; r != 0 && r != 1 && r != blockSize-1 && n%41 != 0 {
			continue
		}
		part := plain[:n]
		ix, err := Unpack(t.Context(), bytes.NewReader(part), describe(part), digest.FromBytes(part), s, Options{})
		want, werr := reference(part)
		if (err == nil) != (werr == nil) {
			t.Fatalf("first %d of %d bytes: %v; archive/tar: %v", n, len(plain), err, werr)
		}
		if err == nil && len(ix.Index.Entries) != len(want) {
			t.Fatalf("first %d of %d bytes: %d entries, archive/tar has %d", n, len(plain), len(ix.Index.Entries), len(want))
		}
	}
	stored := gzipped(t, plain)
	for n := range stored {
		part := stored[:n]
		_, err := Unpack(t.Context(), bytes.NewReader(part), describe(part), digest.FromBytes(plain), s, Options{})
		if err == nil {
			t.Fatalf("first %d of %d stored bytes are taken", n, len(stored))
		}
	}
}

func TestUnpackReadError(t *testing.T) {
	plain := archive(t, sample...)
	lost := errors.New("connection lost")
	r := io.MultiReader(bytes.NewReader(plain[:len(plain)/2]), iotest.ErrReader(lost))
	_, err := Unpack(t.Context(), r, describe(plain), digest.FromBytes(plain), testStore, Options{})
	if !errors.Is(err, lost) {
		t.Errorf("Unpack = %v, want %v", err, lost)
	}
	if _, ok := errors.AsType[*layers.DigestError](err); ok {
		t.Errorf("Unpack = %v: a lost connection is no wrong digest", err)
	}
}

// endless blocks until its context ends.
type endless struct{ ctx context.Context }

func (r endless) Read([]byte) (int, error) { <-r.ctx.Done(); return 0, r.ctx.Err() }

func TestUnpackCancel(t *testing.T) {
	plain := archive(t, sample...)
	ctx, cancel := context.WithCancel(t.Context())
	r := io.MultiReader(bytes.NewReader(plain[:len(plain)/2]), endless{ctx})
	done := make(chan error)
	go func() {
		_, err := Unpack(ctx, r, describe(plain), digest.FromBytes(plain), testStore, Options{})
		done <- err
	}()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Unpack = %v, want %v", err, context.Canceled)
	}
}

func TestUnpackBombs(t *testing.T) {
	huge := file{Header: tar.Header{Name: "huge"}, data: strings.Repeat("\x00", 4<<20)}
	plain := archive(t, huge)
	for name, stored := range map[string][]byte{"gzip": gzipped(t, plain), "zstd": zstded(t, plain), "plain": plain} {
		_, err := Unpack(t.Context(), bytes.NewReader(stored), describe(stored), digest.FromBytes(plain), testStore, Options{MaxPlain: 1 << 20})
		if !errors.Is(err, layers.ErrTooLarge) {
			t.Errorf("%s: %v, want %v", name, err, layers.ErrTooLarge)
		}
	}
}

func TestDefaultMaxPlain(t *testing.T) {
	for size, want := range map[int64]int64{
		0: 1 << 30, -1: 1 << 30, 1 << 20: 1<<30 + 1032<<20, 1 << 39: 1 << 40, 1 << 50: 1 << 50,
	} {
		if got := DefaultMaxPlain(size); got != want {
			t.Errorf("DefaultMaxPlain(%d) = %d, want %d", size, got, want)
		}
	}
}

func TestUnpackAll(t *testing.T) {
	s := testStore
	var list []Layer
	var last [4]int64
	for i := range 4 {
		plain := archive(t, file{Header: tar.Header{Name: fmt.Sprint("f", i%3)}, data: strings.Repeat("z", 100+i%3*100_000)})
		stored := gzipped(t, plain)
		list = append(list, Layer{
			Desc: describe(stored), DiffID: digest.FromBytes(plain),
			Open:    func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stored)), nil },
			Options: Options{Progress: func(off int64) { last[i] = off }},
		})
	}
	got, err := UnpackAll(t.Context(), list, s)
	if err != nil {
		t.Fatal(err)
	}
	for i, u := range got {
		if want := fmt.Sprint("f", i%3); len(u.Index.Entries) != 1 || u.Index.Entries[0].Name != want {
			t.Errorf("layer %d: %v, want %s", i, u.Index.Entries, want)
		}
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	}
	if got[0] != got[3] || last[3] != 0 {
		t.Error("a layer that is there twice was unpacked twice")
	}
	if last[0] != list[0].Desc.Size {
		t.Errorf("last progress %d, want %d", last[0], list[0].Desc.Size)
	}
	list[1].DiffID = digest.FromString("other")
	if _, err := UnpackAll(t.Context(), list, s); err == nil {
		t.Error("a bad layer among good ones is taken")
	}
}

// Windows that zstd --long makes are decoded, also several at once; larger ones
// are refused.
func TestUnpackWindows(t *testing.T) {
	plain := archive(t, sample...)
	for window, want := range map[int]error{1 << 20: nil, 64 << 20: nil, 128 << 20: nil, 256 << 20: layers.ErrTooLarge} {
		var buf bytes.Buffer
		w, err := zstd.NewWriter(&buf, zstd.WithWindowSize(window))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(plain); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		stored := buf.Bytes()
		l := Layer{Desc: describe(stored), DiffID: digest.FromBytes(plain),
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(stored)), nil }}
		other := l
		other.Desc.MediaType = ocispec.MediaTypeImageLayerZstd
		other.DiffID = digest.FromString("another key") // so that both are unpacked
		_, err = UnpackAll(t.Context(), []Layer{l}, testStore)
		if !errors.Is(err, want) {
			t.Errorf("window of %d: %v, want %v", window, err, want)
		}
		if _, err := UnpackAll(t.Context(), []Layer{l, other}, testStore); err == nil {
			t.Errorf("window of %d: a wrong diff ID is taken", window)
		}
	}
}

// BenchmarkUnpack is a layer like a distribution's: many small files, some large.
func BenchmarkUnpack(b *testing.B) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var files []file
	for i := range 4000 {
		p := make([]byte, 1<<rnd.IntN(18))
		for j := range p {
			p[j] = "etaoin shrdlu\n"[min(rnd.IntN(14), rnd.IntN(14))]
		}
		files = append(files, file{Header: tar.Header{Name: fmt.Sprintf("usr/share/%d/%d", i/50, i), Mode: 0o644}, data: string(p)})
	}
	plain := archive(b, files...)
	for name, stored := range map[string][]byte{"gzip": gzipped(b, plain), "zstd": zstded(b, plain)} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				s, err := objects.Open(b.TempDir(), objects.Options{})
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				if _, err := Unpack(b.Context(), bytes.NewReader(stored), describe(stored), digest.FromBytes(plain), s, Options{}); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

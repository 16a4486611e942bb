package convert

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
	"github.com/snapfs/snapfs/layers/lazy"
)

type blob []byte

func (b blob) Size() int64 { return int64(len(b)) }

func (b blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return bytes.NewReader(b).ReadAt(p, off)
}

type sample struct {
	h    tar.Header
	data []byte
}

// noise is n bytes that do not compress.
func noise(n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	r.Read(p)
	return p
}

var when = time.Unix(1_700_000_000, 123_456_789)

// odd is a tar of all that layers have.
func odd() []sample {
	reg := func(name string, data []byte) sample {
		return sample{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: when}, data}
	}
	holes := make([]byte, 2<<20)
	copy(holes[1<<20:], noise(100_000))
	ms := []sample{
		{tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755, ModTime: when}, nil},
		{tar.Header{Typeflag: tar.TypeDir, Name: "./usr//bin/", Mode: 0o1777, Uid: 1000, Gid: 1<<32 - 1, Uname: "user", ModTime: when}, nil},
		reg("usr/bin/sh", noise(70_000)),
		reg("/usr/bin/../bin"[:8]+"/abs", []byte("absolute")),
		reg("empty", nil),
		reg("one", []byte{1}),
		reg("big", noise(2<<20+17)),
		reg("zeros", make([]byte, 1<<20+5)),
		reg("zero", make([]byte, 100)),
		reg("holes", holes),
		reg("text", []byte(strings.Repeat("some text\n", 30_000))),
		reg("caf\xe9", []byte("latin1")),
		reg("caf\xe8", []byte("latin1 too")),
		reg("\ufffd", []byte("replacement")),
		reg("q\"uo\\te\n\x01<&>", []byte("quote")),
		reg(strings.Repeat("n", 255), []byte("long")),
		reg(strings.Repeat(strings.Repeat("d", 200)+"/", 15)+"deep", []byte("deep")),
		reg("dir/.wh.gone", nil),
		reg("dir/.wh..wh..opq", nil),
		reg("stargz.index.json", []byte("an older TOC")),
		reg(".no.prefetch.landmark", []byte{15}),
		reg("twice", []byte("first")),
		reg("twice", []byte("second")),
		{tar.Header{Typeflag: tar.TypeLink, Name: "hard", Linkname: "./usr/bin/sh", Mode: 0o755, ModTime: when}, nil},
		{tar.Header{Typeflag: tar.TypeLink, Name: "hard8", Linkname: "caf\xe9", ModTime: when}, nil},
		{tar.Header{Typeflag: tar.TypeSymlink, Name: "soft", Linkname: "/etc/../x\xff", Mode: 0o777, ModTime: when}, nil},
		{tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3, Mode: 0o666, ModTime: time.Unix(0, 0)}, nil},
		{tar.Header{Typeflag: tar.TypeBlock, Name: "sda", Devmajor: 8, Devminor: 300, ModTime: time.Unix(-5, 0)}, nil},
		{tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600, ModTime: time.Date(2040, 2, 29, 1, 2, 3, 0, time.UTC)}, nil},
	}
	x := reg("xattrs", []byte("x"))
	x.h.Mode = 0o4755
	x.h.PAXRecords = map[string]string{
		"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff\x00", "SCHILY.xattr.user.empty": "", "SCHILY.xattr.user.caf\u00e9": "ü", "comment": "no",
	}
	return append(ms, x)
}

func tarOf(t testing.TB, ms []sample) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range ms {
		m.h.Format = tar.FormatPAX
		if err := w.WriteHeader(&m.h); err != nil {
			t.Fatal(err)
		}
		w.Write(m.data)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// content is what a layer has, by its last entry of each name: headers for people
// and the bytes of files.
func content(t *testing.T, plain io.Reader, wholeSeconds bool) map[string]string {
	t.Helper()
	got := map[string]string{}
	for src := newSource(plain, alive); ; {
		m, err := src.next()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(m.body)
		if err != nil {
			t.Fatal(err)
		}
		nsec := m.ModTime.Nanosecond()
		if wholeSeconds {
			nsec = 0
		}
		name := strings.Trim(strings.TrimPrefix(m.Name, "./"), "/")
		got[name] = fmt.Sprint(kinds[m.Typeflag], m.Mode, m.Uid, m.Gid, m.ModTime.Unix(), nsec, m.Linkname, m.Devmajor, m.Devminor, m.PAXRecords, len(data), layers.SumOf(data))
	}
}

// indexed is the same of an index, whose chunks are all checked.
func indexed(t *testing.T, b blob, ix *layers.Index) map[string]string {
	t.Helper()
	got := map[string]string{}
	for _, e := range ix.Entries {
		var data []byte
		for _, ck := range e.Chunks {
			plain := make([]byte, ck.Size)
			if err := decode.Chunk(plain, ix.Compression, b[ck.BlobOff:ck.BlobOff+ck.BlobLen], ck); err != nil {
				t.Fatalf("%q: chunk at %d: %v", e.Name, ck.Off, err)
			}
			if layers.SumOf(plain) != ck.Sum || ck.Off != int64(len(data)) {
				t.Errorf("%q: chunk at %d is wrong", e.Name, ck.Off)
			}
			data = append(data, plain...)
		}
		if sum := layers.SumOf(data); e.Size > 0 && sum != e.Object || int64(len(data)) != e.Size {
			t.Errorf("%q: %d bytes with sum %v, want %d with %v", e.Name, len(data), sum, e.Size, e.Object)
		}
		kind := map[layers.Kind]string{layers.Reg: "reg", layers.Dir: "dir", layers.Symlink: "symlink", layers.Hardlink: "hardlink", layers.Char: "char", layers.Block: "block", layers.Fifo: "fifo"}[e.Kind]
		xattrs := map[string]string{}
		for _, x := range e.Xattrs {
			xattrs[xattrPrefix+x.Name] = x.Value
		}
		got[e.Name] = fmt.Sprint(kind, e.Mode, e.UID, e.GID, e.Sec, e.Nsec, e.Link, e.Major, e.Minor, xattrs, len(data), layers.SumOf(data))
	}
	return got
}

func alive() error { return nil }

func compress(t testing.TB, kind string, p []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	switch kind {
	case "gzip":
		z := gzip.NewWriter(&b)
		z.Write(p)
		z.Close()
	case "zstd":
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		z.Write(p)
		z.Close()
	default:
		return p
	}
	return b.Bytes()
}

var formats = []string{lazy.EStargz, lazy.ZstdChunked}

func TestRoundTrip(t *testing.T) {
	plain := tarOf(t, odd())
	for _, format := range formats {
		for _, kind := range []string{"tar", "gzip", "zstd"} {
			t.Run(format+" of "+kind, func(t *testing.T) {
				roundTrip(t, compress(t, kind, plain), plain, Options{Format: format})
			})
		}
		t.Run(format+" small chunks", func(t *testing.T) {
			roundTrip(t, plain, plain, Options{Format: format, ChunkSize: 16 << 10, Level: 1})
		})
	}
}

func roundTrip(t *testing.T, stored, plain []byte, o Options) {
	want := content(t, bytes.NewReader(plain), o.Format == lazy.EStargz)
	var out bytes.Buffer
	c, err := Layer(t.Context(), &out, bytes.NewReader(stored), o)
	if err != nil {
		t.Fatal(err)
	}
	b := blob(out.Bytes())
	if c.Desc.Size != b.Size() || c.Desc.Digest != digest.FromBytes(b) {
		t.Errorf("descriptor says %d bytes, %v", c.Desc.Size, c.Desc.Digest)
	}
	ix, format, err := lazy.Open(t.Context(), c.Desc, b)
	if err != nil || format != o.Format {
		t.Fatalf("Open = %q, %v", format, err)
	}
	if diff := cmp.Diff(want, indexed(t, b, ix)); diff != "" {
		t.Errorf("lazily (-want +got):\n%s", diff)
	}
	r, done, err := decompress(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	eager, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if d := digest.FromBytes(eager); d != c.DiffID {
		t.Errorf("diff ID is %v, want %v", c.DiffID, d)
	}
	if diff := cmp.Diff(want, content(t, bytes.NewReader(eager), o.Format == lazy.EStargz)); diff != "" {
		t.Errorf("eagerly (-want +got):\n%s", diff)
	}
}

func TestEmptyLayer(t *testing.T) {
	for _, format := range formats {
		roundTrip(t, tarOf(t, nil), tarOf(t, nil), Options{Format: format})
		roundTrip(t, nil, nil, Options{Format: format})
	}
}

// A converted layer converts again to the same.
func TestAgain(t *testing.T) {
	plain := tarOf(t, odd())
	for _, format := range formats {
		var once, twice bytes.Buffer
		a, err := Layer(t.Context(), &once, bytes.NewReader(plain), Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		b, err := Layer(t.Context(), &twice, bytes.NewReader(once.Bytes()), Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		if a.DiffID != b.DiffID || a.Desc.Digest != b.Desc.Digest {
			t.Errorf("%s: converted again it is another layer", format)
		}
	}
}

// The holes of a GNU sparse file come out as zeros.
func TestSparse(t *testing.T) {
	const size = 3 << 20
	plain := sparseFile(size)
	want := make([]byte, size)
	copy(want[4096:], noise(512))
	for _, format := range formats {
		roundTrip(t, plain, plain, Options{Format: format})
		if got := content(t, bytes.NewReader(plain), false)["sparse"]; !strings.Contains(got, layers.SumOf(want).String()) {
			t.Errorf("sparse file is %s", got)
		}
	}
}

// sparseFile is a tar of one old GNU sparse file with one run of data at 4096;
// archive/tar cannot write one.
func sparseFile(size int64) []byte {
	h := make([]byte, block)
	copy(h, "sparse")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", 512)) // stored
	copy(h[136:], "00000000000\x00")
	h[156] = tar.TypeGNUSparse
	copy(h[257:], "ustar  \x00")
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 4096, 512))
	copy(h[386+24:], number(size)+number(0))
	copy(h[483:], number(size))
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	return append(append(h, noise(512)...), make([]byte, 1024)...)
}

// number is a field of a tar header, in GNU's base 256 if it is large.
func number(n int64) string {
	if n < 1<<33 {
		return fmt.Sprintf("%011o\x00", n)
	}
	return "\x80\x00\x00\x00" + string(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// A few bytes can say that a file has any size: it is refused, and what is not can
// be stopped.
func TestSparseBomb(t *testing.T) {
	for _, format := range formats {
		if _, err := Layer(t.Context(), io.Discard, bytes.NewReader(sparseFile(1<<60)), Options{Format: format}); !errors.Is(err, layers.ErrTooLarge) {
			t.Errorf("Layer(%s, file of 2^60) = %v, want ErrTooLarge", format, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := Layer(ctx, io.Discard, bytes.NewReader(sparseFile(maxFile)), Options{Format: format}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Layer(%s, large hole) = %v, want DeadlineExceeded", format, err)
		}
		cancel()
	}
}

func TestLayerRefuses(t *testing.T) {
	good := tarOf(t, odd())
	one := func(h tar.Header) []byte { return tarOf(t, []sample{{h, nil}}) }
	for name, p := range map[string][]byte{
		"cut":              good[:len(good)/2],
		"cut gzip":         compress(t, "gzip", good)[:10_000],
		"cut zstd":         compress(t, "zstd", good)[:10_000],
		"traversal":        one(tar.Header{Name: "../x", Typeflag: tar.TypeReg}),
		"link traversal":   one(tar.Header{Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"}),
		"root is a file":   one(tar.Header{Name: "./.", Typeflag: tar.TypeReg}),
		"name of 256":      one(tar.Header{Name: strings.Repeat("n", 256), Typeflag: tar.TypeReg}),
		"owner of 33 bits": one(tar.Header{Name: "x", Uid: 1 << 32, Typeflag: tar.TypeReg}),
		"not a tar":        noise(4096),
	} {
		for _, format := range formats {
			if _, err := Layer(t.Context(), io.Discard, bytes.NewReader(p), Options{Format: format}); !errors.Is(err, layers.ErrBadLayer) {
				t.Errorf("Layer(%s) to %s = %v, want ErrBadLayer", name, format, err)
			}
		}
	}
	broken := errors.New("broken pipe")
	for _, format := range formats {
		if _, err := Layer(t.Context(), failing{broken}, bytes.NewReader(good), Options{Format: format}); !errors.Is(err, broken) {
			t.Errorf("Layer(%s) to a broken pipe = %v", format, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Layer(ctx, io.Discard, bytes.NewReader(good), Options{Format: format}); !errors.Is(err, context.Canceled) {
			t.Errorf("Layer(%s) with a context that ended = %v", format, err)
		}
		late := io.MultiReader(bytes.NewReader(good), failingReader{broken})
		if _, err := Layer(t.Context(), io.Discard, late, Options{Format: format}); !errors.Is(err, broken) {
			t.Errorf("Layer(%s) of a stream that fails behind the tar = %v", format, err)
		}
	}
	for _, o := range []Options{{Format: "tar"}, {Level: 10}, {Level: -1}, {Format: lazy.ZstdChunked, Level: 23}, {ChunkSize: 1}, {ChunkSize: 1 << 30}} {
		if _, err := Layer(t.Context(), io.Discard, bytes.NewReader(good), o); err == nil {
			t.Errorf("Layer with %+v succeeds", o)
		}
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

type failingReader struct{ err error }

func (f failingReader) Read([]byte) (int, error) { return 0, f.err }

func TestPiece(t *testing.T) {
	zeros := func(n int) []byte { return make([]byte, n) }
	for _, tc := range []struct {
		name  string
		p     []byte
		n     int
		zeros bool
	}{
		{"data", noise(100_000), 100_000, false},
		{"short zeros", zeros(minZeros - 1), minZeros - 1, false},
		{"zeros", zeros(minZeros), minZeros, true},
		{"zeros first", append(zeros(minZeros), 1), minZeros, true},
		{"data first", append(noise(4096), zeros(minZeros)...), 4096, false},
		{"gap in data", append(append(noise(4096), zeros(8192)...), 1), 4096 + 8192 + 1, false},
		{"hole in data", append(append(noise(5000), zeros(2*minZeros)...), 1), 8192, false},
	} {
		if n, z := piece(tc.p); n != tc.n || z != tc.zeros {
			t.Errorf("piece(%s) = %d, %v, want %d, %v", tc.name, n, z, tc.n, tc.zeros)
		}
	}
}

func BenchmarkLayer(b *testing.B) {
	var ms []sample
	for i := range 500 {
		p := []byte(strings.Repeat(fmt.Sprintf("line %d of some file\n", i), 2000))
		ms = append(ms, sample{tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint("f", i), Size: int64(len(p))}, p})
	}
	plain := tarOf(b, ms)
	for _, format := range formats {
		b.Run(format, func(b *testing.B) {
			b.SetBytes(int64(len(plain)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Layer(b.Context(), io.Discard, bytes.NewReader(plain), Options{Format: format}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

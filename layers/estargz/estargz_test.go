package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
)

// A blob is stored bytes in memory that counts its reads.
type blob struct {
	p     []byte
	reads int
	fail  error // of all reads, if set
}

func (b *blob) Size() int64 { return int64(len(b.p)) }

func (b *blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	b.reads++
	if b.fail != nil {
		return 0, b.fail
	}
	return bytes.NewReader(b.p).ReadAt(p, off)
}

var when = time.Unix(1_700_000_000, 0)

// member is one member of a tar and what Open should make of it.
type member struct {
	h    tar.Header
	data string
	want layers.Entry
}

func members() []member {
	sum := func(s string) layers.Sum { return layers.SumOf([]byte(s)) }
	text := strings.Repeat("all work and no play makes jack a dull boy\n", 3000)
	e := func(e layers.Entry) layers.Entry { e.Sec = when.Unix(); return e }
	return []member{
		{h: tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o755}, want: e(layers.Entry{Kind: layers.Dir, Mode: 0o755})},
		{h: tar.Header{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 3, Gid: 4},
			want: e(layers.Entry{Name: "bin", Kind: layers.Dir, Mode: 0o1777, UID: 3, GID: 4})},
		{h: tar.Header{Name: "bin/sh", Typeflag: tar.TypeReg, Mode: 0o4755}, data: "#!",
			want: e(layers.Entry{Name: "bin/sh", Kind: layers.Reg, Mode: 0o4755, Size: 2, Object: sum("#!")})},
		{h: tar.Header{Name: "bin/empty", Typeflag: tar.TypeReg, Mode: 0o600},
			want: e(layers.Entry{Name: "bin/empty", Kind: layers.Reg, Mode: 0o600})},
		{h: tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644}, data: text,
			want: e(layers.Entry{Name: "big", Kind: layers.Reg, Mode: 0o644, Size: int64(len(text)), Object: sum(text)})},
		{h: tar.Header{Name: "bin/bash", Typeflag: tar.TypeLink, Linkname: "./bin/sh", Mode: 0o755},
			want: e(layers.Entry{Name: "bin/bash", Kind: layers.Hardlink, Mode: 0o755, Link: "bin/sh"})},
		{h: tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd", Mode: 0o777},
			want: e(layers.Entry{Name: "link", Kind: layers.Symlink, Mode: 0o777, Link: "../../etc/passwd"})},
		{h: tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666},
			want: e(layers.Entry{Name: "null", Kind: layers.Char, Mode: 0o666, Major: 1, Minor: 3})},
		{h: tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8, Mode: 0o660},
			want: e(layers.Entry{Name: "sda", Kind: layers.Block, Mode: 0o660, Major: 8})},
		{h: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600},
			want: e(layers.Entry{Name: "pipe", Kind: layers.Fifo, Mode: 0o600})},
		{h: tar.Header{Name: "ping", Typeflag: tar.TypeReg, Mode: 0o755, PAXRecords: map[string]string{
			"SCHILY.xattr.user.z": "", "SCHILY.xattr.security.capability": "\x01\x00\x00\x02\xff"}}, data: "ping",
			want: e(layers.Entry{Name: "ping", Kind: layers.Reg, Mode: 0o755, Size: 4, Object: sum("ping"),
				Xattrs: []layers.Xattr{{Name: "security.capability", Value: "\x01\x00\x00\x02\xff"}, {Name: "user.z"}}})},
		{h: tar.Header{Name: "a \"quoted\\\" näme\n<&>\u2028\ufffd", Typeflag: tar.TypeReg, Mode: 0o644}, data: "x",
			want: e(layers.Entry{Name: "a \"quoted\\\" näme\n<&>\u2028\ufffd", Kind: layers.Reg, Mode: 0o644, Size: 1, Object: sum("x")})},
		{h: tar.Header{Name: "dir/.wh.gone", Typeflag: tar.TypeReg, Mode: 0o644},
			want: e(layers.Entry{Name: "dir/.wh.gone", Kind: layers.Reg, Mode: 0o644})},
	}
}

// build makes an eStargz blob with the snapshotter's own library.
func build(t testing.TB, ms []member, opts ...estargz.Option) (*blob, digest.Digest) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range ms {
		m.h.Size, m.h.ModTime = int64(len(m.data)), when
		if err := w.WriteHeader(&m.h); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, m.data)
	}
	w.Close()
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())), opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	p, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	return &blob{p: p}, built.TOCDigest()
}

func TestOpen(t *testing.T) {
	for name, opts := range map[string][]estargz.Option{
		"plain":         nil,
		"small chunks":  {estargz.WithChunkSize(1000)},
		"shared runs":   {estargz.WithChunkSize(1000), estargz.WithMinChunkSize(5000)},
		"one run":       {estargz.WithMinChunkSize(1 << 30)},
		"prioritized":   {estargz.WithPrioritizedFiles([]string{"big", "ping"})},
		"one worker":    {estargz.WithParallelism(1)},
		"three workers": {estargz.WithParallelism(3)},
	} {
		t.Run(name, func(t *testing.T) {
			ms := members()
			b, d := build(t, ms, opts...)
			ix, err := Open(t.Context(), b, d)
			if err != nil {
				t.Fatal(err)
			}
			if b.reads > 1 {
				t.Errorf("Open read %d times, want once for a small blob", b.reads)
			}
			got := map[string]layers.Entry{}
			for _, e := range ix.Entries {
				if data := readFile(t, b, ix, e); layers.SumOf(data) != e.Object && e.Size > 0 {
					t.Errorf("%q: bytes do not have the object's sum", e.Name)
				}
				e.Chunks = nil
				got[e.Name] = e
			}
			want := map[string]layers.Entry{}
			for _, m := range ms {
				want[m.want.Name] = m.want
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("Open (-want +got):\n%s", diff)
			}
		})
	}
}

// readFile decodes the chunks of e and checks them.
func readFile(t *testing.T, b *blob, ix *layers.Index, e layers.Entry) []byte {
	t.Helper()
	var data []byte
	for _, ck := range e.Chunks {
		plain := make([]byte, ck.Size)
		if err := decode.Chunk(plain, ix.Compression, b.p[ck.BlobOff:ck.BlobOff+ck.BlobLen], ck); err != nil {
			t.Fatalf("%q: chunk at %d: %v", e.Name, ck.Off, err)
		}
		if layers.SumOf(plain) != ck.Sum || ck.Off != int64(len(data)) {
			t.Errorf("%q: chunk at %d is wrong", e.Name, ck.Off)
		}
		data = append(data, plain...)
	}
	return data
}

func TestOpenEmpty(t *testing.T) {
	b, d := build(t, nil)
	if ix, err := Open(t.Context(), b, d); err != nil || len(ix.Entries) != 0 {
		t.Errorf("Open(empty layer) = %v, %v, want no entries", ix, err)
	}
}

// The footer of the first stargz has no header in its extra field.
func TestOpenLegacyFooter(t *testing.T) {
	b, d := build(t, members())
	n := len(b.p) - footerSize
	f := slices.Concat(b.p[n:n+10], []byte("\x16\x00"), b.p[n+16:])
	b.p = append(b.p[:n], f...)
	if len(f) != legacySize {
		t.Fatalf("footer of %d bytes", len(f))
	}
	if ix, err := Open(t.Context(), b, d); err != nil || len(ix.Entries) != len(members()) {
		t.Errorf("Open(legacy footer) = %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	b, d := build(t, members())
	flip := func(off int) *blob {
		p := bytes.Clone(b.p)
		p[off] ^= 1
		return &blob{p: p}
	}
	other := digest.FromString("other")
	for name, tc := range map[string]struct {
		b    *blob
		d    digest.Digest
		want error
	}{
		"other digest":    {b, other, &layers.DigestError{}},
		"no digest":       {b, "", layers.ErrBadSum},
		"sha512":          {b, digest.NewDigestFromEncoded(digest.SHA512, strings.Repeat("0", 128)), layers.ErrBadSum},
		"footer's magic":  {flip(len(b.p) - 14), d, layers.ErrNoTOC},
		"footer's offset": {flip(len(b.p) - 22), d, layers.ErrBadTOC},
		"beyond the end":  {flip(len(b.p) - 51 + 16), d, layers.ErrBadTOC},
		"flipped TOC":     {flip(len(b.p) - 300), d, fs.ErrInvalid}, // or a DigestError
		"empty":           {&blob{}, d, layers.ErrNoTOC},
		"short":           {&blob{p: b.p[len(b.p)-50:]}, d, layers.ErrNoTOC},
		"only footer":     {&blob{p: b.p[len(b.p)-51:]}, d, layers.ErrBadTOC},
		"not eStargz":     {&blob{p: bytes.Repeat([]byte("x"), 100)}, d, layers.ErrNoTOC},
		"network":         {&blob{p: b.p, fail: context.DeadlineExceeded}, d, context.DeadlineExceeded},
	} {
		_, err := Open(t.Context(), tc.b, tc.d)
		if _, wrong := errors.AsType[*layers.DigestError](err); wrong {
			if _, want := tc.want.(*layers.DigestError); want || tc.want == fs.ErrInvalid {
				continue
			}
		}
		if !errors.Is(err, tc.want) {
			t.Errorf("Open(%s) = %v, want %v", name, err, tc.want)
		}
	}
}

// A document that is wrong and also not the right one is not the right one first.
func TestOpenWrongDocument(t *testing.T) {
	var b bytes.Buffer
	w := estargz.NewGzipCompressor()
	if _, err := w.WriteTOCAndFooter(&b, 0, &estargz.JTOC{Version: 1, Entries: []*estargz.TOCEntry{{Name: "../x", Type: "dir"}}}, nil); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), &blob{p: b.Bytes()}, digest.FromString("other"))
	if _, ok := errors.AsType[*layers.DigestError](err); !ok {
		t.Errorf("Open(wrong document) = %v, want a DigestError", err)
	}
}

// Names that are not UTF-8 come out of the library's encoder as U+FFFD: such a
// layer must not be shown.
func TestOpenLostName(t *testing.T) {
	b, d := build(t, []member{{h: tar.Header{Name: "caf\xe9", Typeflag: tar.TypeReg, Format: tar.FormatGNU}}})
	if _, err := Open(t.Context(), b, d); !errors.Is(err, layers.ErrNoTOC) {
		t.Errorf("Open(name in latin1) = %v, want ErrNoTOC", err)
	}
}

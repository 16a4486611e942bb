package zstdchunked

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	stargz "github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/decode"
	"github.com/snapfs/snapfs/layers/layerstest"
)

type blob struct {
	p    []byte
	fail error
}

func (b blob) Size() int64 { return int64(len(b.p)) }

func (b blob) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	if b.fail != nil {
		return 0, b.fail
	}
	return bytes.NewReader(b.p).ReadAt(p, off)
}

func frame(t testing.TB, plain string) []byte {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.EncodeAll([]byte(plain), nil)
}

func skippable(p []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte(frameMagic), uint32(len(p))), p...)
}

const (
	chunk1 = "the first chunk of a file"
	chunk2 = "and its second one"
)

// container makes a blob as containers/storage does, with one file of two chunks
// and a hole between them, and the annotations of its descriptor.
func container(t testing.TB, spoil func(doc string) string) (blob, map[string]string) {
	t.Helper()
	hole := strings.Repeat("\x00", 1000)
	p := frame(t, "a tar header")
	var at []int
	for _, s := range []string{chunk1, hole, chunk2} {
		at = append(at, len(p))
		p = append(p, frame(t, s)...)
	}
	end := len(p)
	p = append(p, frame(t, "padding")...)
	sum := func(s string) layers.Sum { return layers.SumOf([]byte(s)) }
	doc := fmt.Sprintf(`{"version":1,"entries":[{"type":"dir","name":"d/","mode":493,"modtime":"2024-05-01T10:00:00.123456789+02:00"},
		{"type":"reg","name":"d/f","size":%d,"digest":"%v","offset":%d,"endOffset":%d,"chunkSize":%d,"chunkDigest":"%v"},
		{"type":"chunk","name":"d/f","offset":%d,"chunkOffset":%d,"chunkSize":1000,"chunkDigest":"%v","chunkType":"zeros"},
		{"type":"chunk","name":"d/f","offset":%d,"chunkOffset":%d,"chunkSize":%d,"chunkDigest":"%v"}],"tarSplitDigest":"sha256:0"}`,
		len(chunk1+hole+chunk2), sum(chunk1+hole+chunk2), at[0], end, len(chunk1), sum(chunk1),
		at[1], len(chunk1), sum(hole), at[2], len(chunk1+hole), len(chunk2), sum(chunk2))
	if spoil != nil {
		doc = spoil(doc)
	}
	z := frame(t, doc)
	off := len(p) + frameHeader
	p = append(append(p, skippable(z)...), skippable(frame(t, "tar-split"))...)
	var f []byte
	for _, n := range []int{off, len(z), len(doc), 1, 0, 0, 0} {
		f = binary.LittleEndian.AppendUint64(f, uint64(n))
	}
	p = append(p, skippable(append(f, "GNUlInUx"...))...)
	return blob{p: p}, map[string]string{
		ChecksumAnnotation: digest.FromBytes(z).String(),
		PositionAnnotation: fmt.Sprintf("%d:%d:%d:1", off, len(z), len(doc)),
	}
}

func check(t *testing.T, b blob, ix *layers.Index) {
	t.Helper()
	layerstest.Index(t, ix, b.Size())
	for _, e := range ix.Entries {
		var data []byte
		for _, ck := range e.Chunks {
			plain := make([]byte, ck.Size)
			if err := decode.Chunk(plain, ix.Compression, b.p[ck.BlobOff:ck.BlobOff+ck.BlobLen], ck); err != nil || layers.SumOf(plain) != ck.Sum {
				t.Errorf("%q: chunk %+v: %v", e.Name, ck, err)
			}
			data = append(data, plain...)
		}
		if e.Size > 0 && layers.SumOf(data) != e.Object {
			t.Errorf("%q has other bytes", e.Name)
		}
	}
}

func TestOpenContainers(t *testing.T) {
	b, a := container(t, nil)
	old := map[string]string{OldChecksumAnnotation: a[ChecksumAnnotation], OldPositionAnnotation: a[PositionAnnotation]}
	noPosition := map[string]string{ChecksumAnnotation: a[ChecksumAnnotation]}
	for name, a := range map[string]map[string]string{"as podman": a, "old names": old, "by the footer": noPosition} {
		ix, err := Open(t.Context(), b, a)
		if err != nil {
			t.Errorf("Open(%s) = %v", name, err)
			continue
		}
		check(t, b, ix)
		if e := ix.Entries[0]; e.Sec != 1714550400 || e.Nsec != 123456789 || e.Mode != 0o755 {
			t.Errorf("Open(%s): directory is %+v", name, e)
		}
		if cks := ix.Entries[1].Chunks; len(cks) != 3 || cks[1].BlobLen != 0 {
			t.Errorf("Open(%s): chunks are %+v, want a hole amid", name, cks)
		}
	}
}

// stargzBlob is a blob by stargz-snapshotter's own library.
func stargzBlob(t testing.TB, min int) (blob, map[string]string) {
	t.Helper()
	var in bytes.Buffer
	w := tar.NewWriter(&in)
	for name, data := range map[string]string{"a": chunk1, "b": strings.Repeat(chunk2, 10_000), "empty": ""} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(data)), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, data)
	}
	w.Close()
	a := map[string]string{}
	built, err := estargz.Build(io.NewSectionReader(bytes.NewReader(in.Bytes()), 0, int64(in.Len())), estargz.WithChunkSize(10_000),
		estargz.WithMinChunkSize(min), estargz.WithCompression(&compression{Compressor: &stargz.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: a}}))
	if err != nil {
		t.Fatal(err)
	}
	defer built.Close()
	p, err := io.ReadAll(built)
	if err != nil {
		t.Fatal(err)
	}
	a[TOCDigestAnnotation] = built.TOCDigest().String()
	return blob{p: p}, a
}

type compression struct {
	*stargz.Compressor
	stargz.Decompressor
}

func TestOpenStargz(t *testing.T) {
	for _, min := range []int{0, 3000} {
		b, a := stargzBlob(t, min)
		onlyTOC := map[string]string{TOCDigestAnnotation: a[TOCDigestAnnotation]}
		for name, a := range map[string]map[string]string{"all annotations": a, "only the TOC's digest": onlyTOC} {
			ix, err := Open(t.Context(), b, a)
			if err != nil || len(ix.Entries) != 3 {
				t.Errorf("Open(%s) = %v, %v", name, ix, err)
				continue
			}
			check(t, b, ix)
		}
	}
}

func TestOpenRefuses(t *testing.T) {
	b, good := container(t, nil)
	var off, n, plain int
	if _, err := fmt.Sscanf(good[PositionAnnotation], "%d:%d:%d", &off, &n, &plain); err != nil {
		t.Fatal(err)
	}
	with := func(k, v string) map[string]string {
		a := maps.Clone(good)
		a[k] = v
		return a
	}
	at := func(format string, args ...any) map[string]string {
		return with(PositionAnnotation, fmt.Sprintf(format, args...))
	}
	footer := map[string]string{ChecksumAnnotation: good[ChecksumAnnotation]}
	flip := func(off int) blob {
		p := bytes.Clone(b.p)
		p[off] ^= 1
		return blob{p: p}
	}
	wrong := &layers.DigestError{}
	zero := digest.NewDigestFromEncoded(digest.SHA256, strings.Repeat("0", 64)).String()
	for name, tc := range map[string]struct {
		b    blob
		a    map[string]string
		want error
	}{
		"no annotations":       {b, nil, layers.ErrNoTOC},
		"only a position":      {b, map[string]string{PositionAnnotation: good[PositionAnnotation]}, layers.ErrNoTOC},
		"other checksum":       {b, with(ChecksumAnnotation, zero), wrong},
		"other TOC digest":     {b, with(TOCDigestAnnotation, zero), wrong},
		"checksum no sha256":   {b, with(ChecksumAnnotation, "md5:0"), layers.ErrBadSum},
		"TOC digest no sha256": {b, with(TOCDigestAnnotation, "x"), layers.ErrBadSum},
		"flipped TOC":          {flip(off + n/2), good, wrong},
		"type 2":               {b, at("%d:%d:%d:2", off, n, plain), layers.ErrNoTOC},
		"three numbers":        {b, at("%d:%d:%d", off, n, plain), layers.ErrBadTOC},
		"five numbers":         {b, at("%d:%d:%d:1:1", off, n, plain), layers.ErrBadTOC},
		"negative":             {b, at("-1:%d:%d:1", n, plain), layers.ErrBadTOC},
		"overflow":             {b, at("9223372036854775807:9223372036854775807:1:1"), layers.ErrBadTOC},
		"no room for a frame":  {b, at("7:%d:%d:1", n, plain), layers.ErrBadTOC},
		"beyond the blob":      {b, at("%d:%d:%d:1", off, len(b.p), plain), layers.ErrBadTOC},
		"empty":                {b, at("%d:0:0:1", off), layers.ErrBadTOC},
		"huge":                 {b, at("%d:%d:%d:1", off, n, layers.MaxTOC+1), layers.ErrTooLarge},
		"too short a range":    {b, at("%d:%d:%d:1", off, n-1, plain), wrong},
		"another range":        {b, at("%d:%d:%d:1", off-1, n, plain), wrong},
		"chunks in the TOC":    {b, at("8:%d:%d:1", len(b.p)-8, plain), wrong},
		"footer's magic":       {flip(len(b.p) - 1), footer, layers.ErrNoTOC},
		"footer's frame":       {flip(len(b.p) - 72), footer, layers.ErrNoTOC},
		"footer's offset":      {flip(len(b.p) - 64), footer, wrong},
		"footer's sign":        {blob{p: negative(b.p)}, footer, layers.ErrBadTOC},
		"short blob":           {blob{p: b.p[:40]}, footer, layers.ErrNoTOC},
		"network":              {blob{p: b.p, fail: context.DeadlineExceeded}, good, context.DeadlineExceeded},
		"network, footer":      {blob{p: b.p, fail: context.DeadlineExceeded}, footer, context.DeadlineExceeded},
	} {
		_, err := Open(t.Context(), tc.b, tc.a)
		if _, is := errors.AsType[*layers.DigestError](err); is != (tc.want == wrong) || !is && !errors.Is(err, tc.want) {
			t.Errorf("Open(%s) = %v, want %v", name, err, tc.want)
		}
	}
}

func negative(p []byte) []byte {
	p = bytes.Clone(p)
	p[len(p)-64+7] = 0x80
	return p
}

// A document that the manifest vouches for can still be wrong.
func TestOpenBadDocument(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(string) string
		want  error
	}{
		"no JSON":   {func(string) string { return "x" }, layers.ErrBadTOC},
		"name":      {func(s string) string { return strings.Replace(s, "d/f", "../", 1) }, layers.ErrBadTOC},
		"lost name": {func(s string) string { return strings.Replace(s, "d/f", `\ufffd`, 1) }, layers.ErrNoTOC},
	} {
		b, a := container(t, tc.spoil)
		if _, err := Open(t.Context(), b, a); !errors.Is(err, tc.want) {
			t.Errorf("Open(%s) = %v, want %v", name, err, tc.want)
		}
	}
}

// A document that never ends costs what a TOC may cost, whatever it claims to be.
func TestOpenBomb(t *testing.T) {
	z := bytes.Repeat(frame(t, strings.Repeat(" ", 1<<20)), layers.MaxTOC>>20+1)
	b := blob{p: skippable(z)}
	a := map[string]string{ChecksumAnnotation: digest.FromBytes(z).String(), PositionAnnotation: fmt.Sprintf("8:%d:1:1", len(z))}
	if _, err := Open(t.Context(), b, a); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Open(bomb) = %v, want ErrTooLarge", err)
	}
}

func FuzzOpen(f *testing.F) {
	b, a := container(f, nil)
	f.Add(b.p, a[PositionAnnotation])
	s, a := stargzBlob(f, 0)
	f.Add(s.p, a[OldPositionAnnotation])
	f.Add(s.p, "")
	f.Fuzz(func(t *testing.T, p []byte, position string) {
		b := blob{p: p}
		a := map[string]string{PositionAnnotation: position, TOCDigestAnnotation: string(digest.FromString(""))}
		_, err := Open(t.Context(), b, a)
		wrong, ok := errors.AsType[*layers.DigestError](err)
		if !ok {
			if !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, layers.ErrNoTOC) {
				t.Errorf("Open = %v", err)
			}
			return
		}
		a[TOCDigestAnnotation] = wrong.Got.String() // now vouched for
		if ix, err := Open(t.Context(), b, a); err == nil {
			layerstest.Index(t, ix, b.Size())
		}
	})
}

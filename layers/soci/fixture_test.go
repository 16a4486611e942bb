package soci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// files are those of testdata/image.tar.zst, which SOCI's own program has made: see make.sh.
var files = sync.OnceValue(func() map[string][]byte {
	f, err := os.Open("testdata/image.tar.zst")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<28))
	if err != nil {
		panic(err)
	}
	defer z.Close()
	m := make(map[string][]byte)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return m
		}
		if err != nil {
			panic(err)
		}
		if m[strings.TrimPrefix(h.Name, "./")], err = io.ReadAll(r); err != nil {
			panic(err)
		}
	}
})

func blobOf(t testing.TB, d digest.Digest) []byte {
	t.Helper()
	p := files()["blobs/sha256/"+d.Encoded()]
	if p == nil {
		t.Fatalf("the layout lacks %s", d)
	}
	return p
}

func document[T any](t testing.TB, raw []byte) (doc T) {
	t.Helper()
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// An image is the one of the layout, with its index manifests.
type image struct {
	desc     ocispec.Descriptor
	manifest ocispec.Manifest
	config   ocispec.Image
	v1, v2   *Index
	v1Digest digest.Digest
}

func loadImage(t testing.TB) *image {
	t.Helper()
	top := document[ocispec.Index](t, files()["index.json"])
	list := document[ocispec.Index](t, blobOf(t, top.Manifests[0].Digest))
	m := &image{desc: list.Manifests[0], v1Digest: digest.Digest(strings.TrimSpace(string(files()["v1-index"])))}
	m.manifest = document[ocispec.Manifest](t, blobOf(t, m.desc.Digest))
	m.config = document[ocispec.Image](t, blobOf(t, m.manifest.Config.Digest))
	bound, ok := Bound(m.manifest.Annotations)
	if !ok {
		t.Fatalf("Bound(%v): none", m.manifest.Annotations)
	}
	var err error
	if m.v2, err = ParseIndex(blobOf(t, bound), bound); err != nil {
		t.Fatal(err)
	}
	if m.v1, err = ParseIndex(blobOf(t, m.v1Digest), m.v1Digest); err != nil {
		t.Fatal(err)
	}
	return m
}

// A sample is one layer with its ztoc.
type sample struct {
	desc          ocispec.Descriptor
	diffID        digest.Digest
	stored, plain []byte
	ztoc          []byte
	ztocDigest    digest.Digest
}

func samples(t testing.TB) (list []*sample) {
	t.Helper()
	m := loadImage(t)
	for i, desc := range m.manifest.Layers {
		z, ok := m.v2.ZTOC(desc.Digest)
		if !ok {
			t.Fatalf("no ztoc of layer %d", i)
		}
		s := &sample{desc: desc, diffID: m.config.RootFS.DiffIDs[i], stored: blobOf(t, desc.Digest), ztoc: blobOf(t, z.Digest), ztocDigest: z.Digest}
		s.plain = s.stored
		if strings.HasSuffix(desc.MediaType, "gzip") {
			r, err := gzip.NewReader(bytes.NewReader(s.stored))
			if err != nil {
				t.Fatal(err)
			}
			if s.plain, err = io.ReadAll(r); err != nil {
				t.Fatal(err)
			}
		}
		if got := digest.FromBytes(s.plain); got != s.diffID {
			t.Fatalf("layer %d: diff ID %s, want %s", i, got, s.diffID)
		}
		list = append(list, s)
	}
	return list
}

func (s *sample) open(t testing.TB) *Layer {
	t.Helper()
	l, err := Open(s.ztoc, s.ztocDigest, s.desc)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// with is the sample with another ztoc.
func (s *sample) with(z *spec) *sample {
	c := *s
	c.ztoc = z.encode()
	c.ztocDigest = digest.FromBytes(c.ztoc)
	return &c
}

// unpack is what an eager pull makes of the layer.
func (s *sample) unpack(t testing.TB) *layers.Index {
	t.Helper()
	u, err := tarindex.Unpack(t.Context(), bytes.NewReader(s.stored), s.desc, s.diffID, newStore(t), tarindex.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	return u.Index
}

func newStore(t testing.TB) *objects.Store {
	t.Helper()
	s, err := objects.Open(t.TempDir(), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// A blob is a layer's stored bytes in memory.
type blob struct {
	p     []byte
	bytes atomic.Int64 // read
	hook  func(ctx context.Context) error
}

func (b *blob) Size() int64 { return int64(len(b.p)) }

func (b *blob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	if b.hook != nil {
		if err := b.hook(ctx); err != nil {
			return 0, err
		}
	}
	b.bytes.Add(int64(len(p)))
	return bytes.NewReader(b.p).ReadAt(p, off)
}

// A stack is what a daemon has of a layer: store, fetcher and files.
type stack struct {
	*Files
	blob    *blob
	store   *objects.Store
	fetcher *fetch.Fetcher
}

func newStack(t testing.TB, s *sample, l *Layer) *stack {
	t.Helper()
	k := &stack{blob: &blob{p: bytes.Clone(s.stored)}, store: newStore(t)}
	k.fetcher = fetch.New(fetch.Options{Store: k.store})
	t.Cleanup(k.fetcher.Close)
	path := filepath.Join(t.TempDir(), "spans")
	if err := indexfile.Write(path, l.Spans); err != nil {
		t.Fatal(err)
	}
	spans, err := indexfile.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { spans.Close() })
	k.fetcher.Add("layer", fetch.Layer{Blob: k.blob, Index: spans})
	k.Files = NewFiles(k.fetcher, 0)
	t.Cleanup(k.Files.Close)
	k.Files.Add("layer", l)
	return k
}

// readAll reads a file through a Files, n bytes at a time.
func readAll(ctx context.Context, f *Files, sum layers.Sum, size int64, n int) ([]byte, error) {
	var out []byte
	buf := make([]byte, n)
	for int64(len(out)) < size {
		n, err := f.ReadAt(ctx, sum, buf, int64(len(out)))
		out = append(out, buf[:n]...)
		if err != nil && err != io.EOF {
			return out, err
		}
	}
	return out, nil
}

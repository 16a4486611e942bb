package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/lazy"
)

// Formats that images are made in.
const (
	plainTar    = "tar"
	gzipTar     = "gzip"
	zstdTar     = "zstd"
	eStargz     = lazy.EStargz
	zstdChunked = lazy.ZstdChunked
)

// A file is a member of a layer's tar.
type file struct {
	tar.Header
	data []byte
}

func reg(name string, data []byte) file {
	return file{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: epoch}, data}
}

func dir(name string) file {
	return file{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: epoch}, nil}
}

var epoch = time.Unix(1_700_000_000, 0)

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	r.Read(p)
	return p
}

// An image is the documents and blobs of one, and what its files must hold.
type image struct {
	manifest ocispec.Manifest
	raw      []byte // manifest
	config   []byte
	index    []byte // "latest" is this where there is one
	blobs    map[digest.Digest][]byte
	want     map[string][sha256.Size]byte // path → sum of the bytes
	sizes    map[string]int64
}

// size is how many bytes the layers have.
func (im *image) size() (n int64) {
	for _, l := range im.manifest.Layers {
		n += l.Size
	}
	return n
}

func (im *image) layer(i int) digest.Digest { return im.manifest.Layers[i].Digest }

// A document is a manifest or an index, under its tag or digest.
type document struct {
	tag string
	raw []byte
}

// documents returns what makes up the image, in the order it is pushed.
func (im *image) documents() []document {
	if im.index == nil {
		return []document{{"latest", im.raw}}
	}
	return []document{{digest.FromBytes(im.raw).String(), im.raw}, {"latest", im.index}}
}

func mediaType(doc []byte) string {
	var d struct{ MediaType string }
	json.Unmarshal(doc, &d)
	return d.MediaType
}

// newImage makes an image of layers in the format.
func newImage(t testing.TB, format string, list ...[]file) *image {
	t.Helper()
	im := &image{blobs: map[digest.Digest][]byte{}, want: map[string][sha256.Size]byte{}, sizes: map[string]int64{}}
	im.manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	diffIDs := []digest.Digest{}
	for _, files := range list {
		l := newLayer(t, format, files)
		im.blobs[l.Desc.Digest] = l.blob
		im.manifest.Layers = append(im.manifest.Layers, l.Desc)
		diffIDs = append(diffIDs, l.DiffID)
		for _, f := range files {
			if f.Typeflag == tar.TypeReg {
				im.want[filepath.Clean(f.Name)] = sha256.Sum256(f.data)
				im.sizes[filepath.Clean(f.Name)] = f.Size
			}
		}
	}
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", diffIDs
	im.setConfig(t, c)
	return im
}

func (im *image) setConfig(t testing.TB, c any) {
	t.Helper()
	delete(im.blobs, im.manifest.Config.Digest)
	im.config = marshal(t, c)
	im.manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(im.config), Size: int64(len(im.config))}
	im.blobs[im.manifest.Config.Digest] = im.config
	im.seal(t)
}

// seal writes the manifest down.
func (im *image) seal(t testing.TB) { im.raw = marshal(t, im.manifest) }

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func unmarshal(t testing.TB, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

type layer struct {
	convert.Converted
	blob []byte
}

// newLayer makes one layer of files.
func newLayer(t testing.TB, format string, files []file) layer {
	t.Helper()
	plain := newTar(t, files)
	l := layer{Converted: convert.Converted{DiffID: digest.FromBytes(plain)}}
	var b bytes.Buffer
	switch format {
	case plainTar:
		b.Write(plain)
		l.Desc.MediaType = ocispec.MediaTypeImageLayer
	case gzipTar:
		w := gzip.NewWriter(&b)
		w.Write(plain)
		w.Close()
		l.Desc.MediaType = ocispec.MediaTypeImageLayerGzip
	case zstdTar:
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(plain)
		w.Close()
		l.Desc.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		var err error
		l.Converted, err = convert.Layer(t.Context(), &b, bytes.NewReader(plain), convert.Options{Format: format, ChunkSize: 64 << 10})
		if err != nil {
			t.Fatal(err)
		}
	}
	l.blob = b.Bytes()
	l.Desc.Digest, l.Desc.Size = digest.FromBytes(l.blob), int64(len(l.blob))
	return l
}

func newTar(t testing.TB, files []file) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// someFiles returns a layer of n files of different sizes below the directory
// name, all unlike those of another seed.
func someFiles(seed uint64, name string, n int) []file {
	files := []file{dir(name)}
	for i := range n {
		size := 1 + i*3371%40000
		if i%17 == 0 {
			size = 200_000 + i
		}
		files = append(files, reg(fmt.Sprintf("%s/f%03d", name, i), noise(seed<<16+uint64(i), size)))
	}
	return files
}

// sums reads every file below top.
func sums(t testing.TB, top string) map[string][sha256.Size]byte {
	t.Helper()
	got := map[string][sha256.Size]byte{}
	err := filepath.WalkDir(top, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(top, p)
		got[rel] = sha256.Sum256(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// check compares every file below top with what the image was made of.
func (im *image) check(t testing.TB, top string) {
	t.Helper()
	got := sums(t, top)
	if d := cmp.Diff(slices.Sorted(maps.Keys(im.want)), slices.Sorted(maps.Keys(got))); d != "" {
		t.Fatalf("files of %s (-want +got):\n%s", top, d)
	}
	for name, sum := range im.want {
		if got[name] != sum {
			t.Errorf("%s/%s has SHA-256 %x, want %x", top, name, got[name], sum)
		}
	}
}

// forget makes the kernel read everything anew.
func forget(t testing.TB) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

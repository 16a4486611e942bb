// Package imagestest is a registry and images to put into it, for tests of what
// reads images.
package imagestest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/lazy"
)

// A Hub is a registry on loopback that counts, and misbehaves when told to.
type Hub struct {
	*httptest.Server
	store http.Handler

	mu   sync.Mutex
	gets map[string]int // by the last part of the path
	on   func(w http.ResponseWriter, r *http.Request) bool
}

// NewHub starts a registry. It ends with the test.
func NewHub(t testing.TB) *Hub {
	h := &Hub{store: registry.New(registry.Logger(log.New(io.Discard, "", 0))), gets: map[string]int{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

// ServeHTTP counts, and lets the registry answer.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	if r.Method == http.MethodGet {
		h.gets[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]++
	}
	on := h.on
	h.mu.Unlock()
	if on == nil || !on(w, r) {
		h.store.ServeHTTP(w, r)
	}
}

// Got is how often a tag or digest was fetched.
func (h *Hub) Got(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gets[what]
}

// Misbehave makes on answer before the registry does, if it returns true.
func (h *Hub) Misbehave(on func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on = on
}

// A File is a member of a layer's tar.
type File struct {
	tar.Header
	Data []byte
}

var epoch = time.Unix(1_700_000_000, 0)

// Reg is a regular file.
func Reg(name string, data []byte) File {
	return File{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: epoch}, data}
}

// Dir is a directory.
func Dir(name string) File {
	return File{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: epoch}, nil}
}

// Noise returns n bytes that do not compress, the same for the same seed.
func Noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(p)
	return p
}

// Files are n of different sizes below a directory.
func Files(seed uint64, name string, n int) []File {
	all := []File{Dir(name)}
	for i := range n {
		all = append(all, Reg(fmt.Sprintf("%s/f%03d", name, i), Noise(seed*1000+uint64(i), 1+i*7919%60_000)))
	}
	return all
}

// Formats of layers.
const (
	Gzip    = "gzip"
	EStargz = lazy.EStargz
)

// An Image is one that was pushed to the hub.
type Image struct {
	Ref      string
	Desc     ocispec.Descriptor
	Manifest ocispec.Manifest
	DiffIDs  []digest.Digest
	Tars     [][]byte // of the layers
}

// Push makes an image and stores it under test/NAME:latest.
func (h *Hub) Push(t testing.TB, name, format, arch string, list ...[]File) *Image {
	t.Helper()
	im := &Image{Ref: strings.TrimPrefix(h.URL, "http://") + "/test/" + name + ":latest"}
	im.Manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, files := range list {
		plain := newTar(t, files)
		var b bytes.Buffer
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}
		diffID := digest.FromBytes(plain)
		if format == EStargz {
			c, err := convert.Layer(t.Context(), &b, bytes.NewReader(plain), convert.Options{Format: format, ChunkSize: 64 << 10})
			if err != nil {
				t.Fatal(err)
			}
			desc, diffID = c.Desc, c.DiffID
		} else {
			w := gzip.NewWriter(&b)
			w.Write(plain)
			w.Close()
		}
		desc.Digest, desc.Size = digest.FromBytes(b.Bytes()), int64(b.Len())
		h.blob(t, name, b.Bytes())
		im.Manifest.Layers = append(im.Manifest.Layers, desc)
		im.DiffIDs = append(im.DiffIDs, diffID)
		im.Tars = append(im.Tars, plain)
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}}
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", im.DiffIDs
	raw := marshal(t, config)
	h.blob(t, name, raw)
	im.Manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	im.Desc = h.Document(t, name, "latest", im.Manifest.MediaType, im.Manifest)
	return im
}

// Native is the machine's architecture.
const Native = runtime.GOARCH

func (h *Hub) blob(t testing.TB, name string, b []byte) {
	t.Helper()
	h.put(t, http.MethodPost, "/v2/test/"+name+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b)
}

// Document stores a manifest or an index under its digest and a tag.
func (h *Hub) Document(t testing.TB, name, tag, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	raw := marshal(t, v)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	h.put(t, http.MethodPut, "/v2/test/"+name+"/manifests/"+tag, mediaType, raw)
	h.put(t, http.MethodPut, "/v2/test/"+name+"/manifests/"+d.Digest.String(), mediaType, raw)
	return d
}

func (h *Hub) put(t testing.TB, method, path, mediaType string, body []byte) {
	t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", mediaType)
	rec := httptest.NewRecorder()
	h.store.ServeHTTP(rec, r)
	if rec.Code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}

func marshal(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newTar(t testing.TB, files []File) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		if err := w.WriteHeader(&f.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Gate lets nothing of a blob through until it is opened. asked is closed when
// somebody first waits.
func (h *Hub) Gate(blob digest.Digest) (asked <-chan struct{}, open func()) {
	first, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.Misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, string(blob)) && r.Method == http.MethodGet {
			once.Do(func() { close(first) })
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		return false
	})
	return first, sync.OnceFunc(func() { close(gate) })
}

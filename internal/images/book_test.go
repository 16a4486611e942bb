package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"sync"
	"testing"
	"time"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
)

// A book is a Service with a registry, a store and a mounter that mounts nothing.
type book struct {
	testing.TB
	*Service
	root    string
	hub     *hub
	mounter *fakeMounter
	events  *events.Log
	opt     Options

	mu   sync.Mutex
	held Held
}

func newBook(t testing.TB) *book {
	b := &book{TB: t, root: t.TempDir(), hub: newHub(t), mounter: &fakeMounter{at: map[string]string{}}, events: events.New(0)}
	b.open()
	t.Cleanup(func() { b.shut() })
	return b
}

// open opens the book, as a new process does.
func (b *book) open() {
	b.Helper()
	store, err := objects.Open(b.root, objects.Options{})
	if err != nil {
		b.Fatal(err)
	}
	f := fetch.New(fetch.Options{Store: store})
	b.opt = Options{
		Root: b.root, Run: filepath.Join(b.root, "run"), Registry: registry.New(registry.Options{Timeouts: registry.Timeouts{NoProgress: time.Second, Attempts: 2, Backoff: time.Millisecond}}),
		Store: store, Fetcher: f, Files: soci.NewFiles(f, 0), Mounter: b.mounter, Events: b.events,
		Users: func() map[digest.Digest][]User { return nil },
		Held: func(context.Context) (Held, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.held, nil
		},
	}
	if b.Service, err = Open(context.Background(), b.opt); err != nil {
		b.Fatal(err)
	}
}

// shut closes the book.
func (b *book) shut() {
	b.Helper()
	if b.Service == nil {
		return
	}
	err := b.Service.Close()
	b.opt.Files.Close()
	b.opt.Fetcher.Close()
	b.opt.Registry.Close()
	if serr := b.opt.Store.Close(); err != nil || serr != nil {
		b.Error(err, serr)
	}
	b.Service = nil
}

// hold makes a snapshotter hold layers, and nothing else.
func (b *book) hold(l ...Layer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = Held{Layers: l}
}

// layer asks for the i-th layer of an image.
func (b *book) layer(im *image, i int) (Layer, func(), error) {
	return b.Layer(b.Context(), im.wanted(), im.manifest.Layers[i].Digest, im.diffIDs[i])
}

// take asks for all layers of an image, one after the other, and holds them.
func (b *book) take(im *image) (all []Layer) {
	b.Helper()
	for i := range im.manifest.Layers {
		l, release, err := b.layer(im, i)
		if err != nil {
			b.Fatalf("layer %d: %v", i, err)
		}
		defer release()
		all = append(all, l)
	}
	b.hold(all...)
	return all
}

// A fakeMounter remembers what it was asked to mount.
type fakeMounter struct {
	mu sync.Mutex
	at map[string]string // ID → file
}

func (m *fakeMounter) MountImage(_ context.Context, id, file string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Stat(file); err != nil {
		return "", err
	}
	m.at[id] = file
	return "/mounted/" + id, nil
}

func (m *fakeMounter) MountMapped(ctx context.Context, id, file string, shift mounts.IDMap) (string, error) {
	dir, err := m.MountImage(ctx, id, file)
	return fmt.Sprint(dir, shift), err
}

func (m *fakeMounter) UnmountImage(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.at, id)
	return nil
}

func (m *fakeMounter) mounted() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.at)
}

// A hub is a registry on loopback that counts, and misbehaves when told to.
type hub struct {
	*httptest.Server
	store http.Handler

	mu   sync.Mutex
	gets map[string]int // by the last part of the path
	on   func(w http.ResponseWriter, r *http.Request) bool
}

func newHub(t testing.TB) *hub {
	h := &hub{store: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), gets: map[string]int{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
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

// got is how often a tag or digest was fetched.
func (h *hub) got(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gets[what]
}

// misbehave makes on answer before the registry does, if it returns true.
func (h *hub) misbehave(on func(w http.ResponseWriter, r *http.Request) bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.on = on
}

// A file is a member of a layer's tar.
type file struct {
	tar.Header
	data []byte
}

var epoch = time.Unix(1_700_000_000, 0)

func reg(name string, data []byte) file {
	return file{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: epoch}, data}
}

func dir(name string) file {
	return file{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: epoch}, nil}
}

// noise returns n bytes that do not compress, the same for the same seed.
func noise(seed uint64, n int) []byte {
	p := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	r.Read(p)
	return p
}

// files are n of different sizes below a directory.
func files(seed uint64, name string, n int) []file {
	all := []file{dir(name)}
	for i := range n {
		all = append(all, reg(fmt.Sprintf("%s/f%03d", name, i), noise(seed*1000+uint64(i), 1+i*7919%60_000)))
	}
	return all
}

// Formats of layers.
const (
	gzipTar = "gzip"
	eStargz = lazy.EStargz
)

// An image is one that was pushed to the hub.
type image struct {
	ref      string
	desc     ocispec.Descriptor
	manifest ocispec.Manifest
	diffIDs  []digest.Digest
	tars     [][]byte
}

func (im *image) wanted() Wanted { return Wanted{im.ref, im.desc.Digest} }

// push makes an image and stores it under test/NAME:latest.
func (h *hub) push(t testing.TB, name, format, arch string, list ...[]file) *image {
	t.Helper()
	im := &image{ref: strings.TrimPrefix(h.URL, "http://") + "/test/" + name + ":latest"}
	im.manifest = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	for _, files := range list {
		plain := newTar(t, files)
		var b bytes.Buffer
		desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip}
		diffID := digest.FromBytes(plain)
		if format == eStargz {
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
		im.manifest.Layers = append(im.manifest.Layers, desc)
		im.diffIDs = append(im.diffIDs, diffID)
		im.tars = append(im.tars, plain)
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}}
	config.RootFS.Type, config.RootFS.DiffIDs = "layers", im.diffIDs
	raw := marshal(t, config)
	h.blob(t, name, raw)
	im.manifest.Config = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	im.desc = h.document(t, name, "latest", im.manifest.MediaType, im.manifest)
	return im
}

// native is the machine's architecture.
const native = goruntime.GOARCH

func (h *hub) blob(t testing.TB, name string, b []byte) {
	t.Helper()
	h.put(t, http.MethodPost, "/v2/test/"+name+"/blobs/uploads/?digest="+digest.FromBytes(b).String(), "application/octet-stream", b)
}

func (h *hub) document(t testing.TB, name, tag, mediaType string, v any) ocispec.Descriptor {
	t.Helper()
	raw := marshal(t, v)
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	h.put(t, http.MethodPut, "/v2/test/"+name+"/manifests/"+tag, mediaType, raw)
	h.put(t, http.MethodPut, "/v2/test/"+name+"/manifests/"+d.Digest.String(), mediaType, raw)
	return d
}

func (h *hub) put(t testing.TB, method, path, mediaType string, body []byte) {
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

// fsNotExist is what is not there.
var fsNotExist = fs.ErrNotExist

type event = control.Event

// tick is for loops that wait for what nobody tells.
func (b *book) tick() <-chan time.Time { return time.After(time.Millisecond) }

// done waits until all that is coming in has come.
func (b *book) done() {
	b.Service.arrivals.mu.Lock()
	var all []*arrival
	for _, a := range b.Service.arrivals.on {
		all = append(all, a)
	}
	b.Service.arrivals.mu.Unlock()
	for _, a := range all {
		<-a.done
	}
}

// callers is how many wait for layers.
func (b *book) callers() (n int) {
	b.arrivals.mu.Lock()
	defer b.arrivals.mu.Unlock()
	for _, a := range b.arrivals.on {
		n += a.waiting
	}
	return n
}

func (b *book) pinned(key string) bool {
	all := map[string]bool{}
	b.pins.all(all)
	return all[key]
}

// ls lists a directory of the root.
func (b *book) ls(name string) (names []string) {
	list, err := os.ReadDir(filepath.Join(b.root, name))
	if err != nil {
		b.Error(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

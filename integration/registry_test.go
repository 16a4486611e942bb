package integration

import (
	"bytes"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
)

// A hub is a registry on loopback that counts, and misbehaves when told to.
type hub struct {
	*httptest.Server
	store http.Handler

	mu    sync.Mutex
	fault map[string]fault // by the name of the image
	gets  map[string]int   // GETs by the last part of the path: a tag or digest
	bytes int64            // of blobs sent
}

// A fault may answer a request instead of the registry: then it returns true.
// good is the registry's own answer, for those who change it.
type fault func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool

func newHub(t *testing.T, options ...registry.Option) *hub {
	options = append(options, registry.Logger(log.New(io.Discard, "", 0)))
	h := &hub{store: registry.New(options...), gets: map[string]int{}, fault: map[string]fault{}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	return h
}

func (h *hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	var f fault
	if parts := strings.Split(r.URL.Path, "/"); len(parts) > 3 {
		f = h.fault[parts[3]]
	}
	if r.Method == http.MethodGet {
		h.gets[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]++
	}
	h.mu.Unlock()
	good := func() *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		h.store.ServeHTTP(rec, r)
		return rec
	}
	if f != nil && f(w, r, good) {
		return
	}
	if strings.Contains(r.URL.Path, "/blobs/") {
		w = &counted{w, h}
	}
	h.store.ServeHTTP(w, r)
}

type counted struct {
	http.ResponseWriter
	h *hub
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.h.mu.Lock()
	c.h.bytes += int64(n)
	c.h.mu.Unlock()
	return n, err
}

// sent returns how many bytes of blobs were sent since the last call.
func (h *hub) sent() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := h.bytes
	h.bytes = 0
	return n
}

// got returns how often the tag or digest was fetched.
func (h *hub) got(what string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gets[what]
}

// misbehave makes f answer for the image name from now on; nil ends it.
func (h *hub) misbehave(name string, f fault) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.fault[name] = f
}

func (h *hub) ref(name string) string { return h.host() + "/test/" + name + ":latest" }

func (h *hub) host() string { return strings.TrimPrefix(h.URL, "http://") }

// put stores an image and returns its reference.
func (h *hub) put(t testing.TB, name string, im *image) string {
	t.Helper()
	for d, b := range im.blobs {
		h.request(t, http.MethodPost, "/v2/test/"+name+"/blobs/uploads/?digest="+d.String(), "application/octet-stream", b)
	}
	for _, d := range im.documents() {
		h.request(t, http.MethodPut, "/v2/test/"+name+"/manifests/"+d.tag, mediaType(d.raw), d.raw)
	}
	return h.ref(name)
}

func (h *hub) request(t testing.TB, method, path, mediaType string, body []byte) {
	t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", mediaType)
	rec := httptest.NewRecorder()
	h.store.ServeHTTP(rec, r)
	if rec.Code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, rec.Code, rec.Body)
	}
}

// isBlob says whether the request is for the blob d; of any if d is "".
func isBlob(r *http.Request, d digest.Digest) bool {
	return strings.Contains(r.URL.Path, "/blobs/") && strings.HasSuffix(r.URL.Path, d.String())
}

func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

// total returns how many GETs there were.
func (h *hub) total() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, g := range h.gets {
		n += g
	}
	return n
}

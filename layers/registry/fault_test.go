package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// quick are timeouts that let a test of failures end soon.
var quick = Timeouts{
	Connect:    500 * time.Millisecond,
	Header:     150 * time.Millisecond,
	Stall:      80 * time.Millisecond,
	NoProgress: 2 * time.Second,
	Backoff:    time.Millisecond,
	MaxBackoff: 20 * time.Millisecond,
	Down:       time.Minute,
}

// A server is a real registry in front of which faults can be put.
type server struct {
	*httptest.Server
	inner http.Handler
	hits  atomic.Int64

	mu    sync.Mutex
	fault func(w http.ResponseWriter, r *http.Request, n int) bool // true: it has answered
	n     int                                                      // requests since the fault was set
	log   []string
}

func newServer(t testing.TB) *server {
	t.Helper()
	s := &server{inner: registry.New(registry.Logger(log.New(io.Discard, "", 0)))}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Start()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.hits.Add(1)
	s.mu.Lock()
	f, n := s.fault, s.n
	s.n++
	s.log = append(s.log, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	if f == nil || !f(w, r, n) {
		s.inner.ServeHTTP(w, r)
	}
}

func (s *server) set(f func(w http.ResponseWriter, r *http.Request, n int) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.n, s.log = f, 0, nil
}

// host is the address of the server.
func (s *server) host() string { return s.Listener.Addr().String() }

// put stores an image as repo:tag, past all faults.
func (s *server) put(t testing.TB, repo, tag string, img *testImage) string {
	t.Helper()
	for d, b := range img.blobs {
		s.do(t, "POST", "/v2/"+repo+"/blobs/uploads/?digest="+string(d), "", b)
	}
	s.do(t, "PUT", "/v2/"+repo+"/manifests/"+tag, ocispec.MediaTypeImageManifest, img.manifest)
	return s.host() + "/" + repo + ":" + tag
}

func (s *server) do(t testing.TB, method, path, contentType string, body []byte) {
	t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	s.inner.ServeHTTP(w, r)
	if w.Code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
	}
}

func isBlob(r *http.Request) bool      { return strings.Contains(r.URL.Path, "/blobs/sha256:") }
func isManifests(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

// limits of a request for data: [from, to).
func limits(r *http.Request, size int) (from, to int) {
	to = size
	if s, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		a, b, _ := strings.Cut(s, "-")
		from, _ = strconv.Atoi(a)
		if b != "" {
			last, _ := strconv.Atoi(b)
			to = min(size, last+1)
		}
	}
	return from, to
}

// begin writes the header of a proper answer and returns the bytes to send.
func begin(w http.ResponseWriter, r *http.Request, data []byte) []byte {
	from, to := limits(r, len(data))
	w.Header().Set("Content-Length", strconv.Itoa(to-from))
	if r.Header.Get("Range") == "" {
		w.WriteHeader(http.StatusOK)
		return data
	}
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
	w.WriteHeader(http.StatusPartialContent)
	return data[from:to]
}

func flush(w http.ResponseWriter) { http.NewResponseController(w).Flush() }

// reset breaks the connection with a RST.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
	}
}

func wait(r *http.Request) { <-r.Context().Done() }

func TestLoopback(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 5000, 300000)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	stats := new(Stats)
	r := newRegistry(t, Options{Timeouts: quick, Stats: stats})
	got, err := r.Resolve(t.Context(), ref, "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	if got.Desc.Digest != img.desc.Digest || !bytes.Equal(got.RawManifest, img.manifest) || !bytes.Equal(got.RawConfig, img.config) {
		t.Error("Resolve gave another image")
	}
	for i := range img.layers {
		readBoth(t, r, ref, img.layer(i), img.layers[i])
	}
	if got, err = r.Resolve(t.Context(), ref.WithDigest(img.desc.Digest), "linux/amd64"); err != nil || got.Desc.Digest != img.desc.Digest {
		t.Errorf("Resolve by digest = %v", err)
	}
	if stats.Requests.Load() == 0 || stats.Bytes.Load() < 305000 || stats.Retries.Load() != 0 {
		t.Errorf("stats = %d requests, %d bytes, %d retries", stats.Requests.Load(), stats.Bytes.Load(), stats.Retries.Load())
	}
	par := newRegistry(t, Options{Timeouts: quick, Parallel: 3})
	readBoth(t, par, ref, img.layer(1), img.layers[1])
}

// TestBlobNoContact: a Blob is made without the network, and works when it is back.
func TestBlobNoContact(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 5000)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	r := newRegistry(t, Options{Timeouts: quick})
	before := s.hits.Load()
	b, err := r.Blob(ref, img.layer(0))
	if err != nil || s.hits.Load() != before {
		t.Fatalf("Blob() = %v, %d requests", err, s.hits.Load()-before)
	}
	p := make([]byte, 100)
	if n, err := b.ReadAt(t.Context(), p, 50); n != 100 || err != nil {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
}

// TestBlobFaults: every row of what can go wrong with a blob gives the right
// bytes or a clean error, soon.
func TestBlobFaults(t *testing.T) {
	img := makeImage(t, "amd64", 400_000)
	data := img.layers[0]
	status := func(code int, header ...string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			return true
		}
	}
	first := func(k int, f func(http.ResponseWriter, *http.Request, int) bool) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool { return n < k && f(w, r, n) }
	}
	answer := func(f func(w http.ResponseWriter, r *http.Request)) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, _ int) bool { f(w, r); return true }
	}
	var fine error
	none := errors.New("no error is wanted of this way to read")
	for _, c := range []struct {
		name   string
		fault  func(w http.ResponseWriter, r *http.Request, n int) bool
		ranged error // of ReadAt in the middle
		stream error
	}{
		{"404", status(404), ErrNotFound, ErrNotFound},
		{"403", status(403), ErrDenied, ErrDenied},
		{"429 once", first(1, status(429, "Retry-After", "1")), fine, fine},
		{"429 with a date", first(1, status(429, "Retry-After", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat))), fine, fine},
		{"429 for ever", status(429), ErrUnavailable, ErrUnavailable},
		{"burst of 5xx", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n < 3 {
				w.WriteHeader([]int{500, 502, 503}[n])
			}
			return n < 3
		}, fine, fine},
		{"503 for ever", status(503), ErrUnavailable, ErrUnavailable},
		{"501", status(501), none, none},
		{"204", status(204), ErrProtocol, ErrProtocol},
		{"416", status(416), none, none},
		{"reset at once", first(2, answer(func(w http.ResponseWriter, r *http.Request) { reset(w) })), fine, fine},
		{"reset at byte N", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n > 3 {
				return false
			}
			p := begin(w, r, data)
			w.Write(p[:len(p)/2])
			flush(w)
			reset(w)
			return true
		}, fine, fine},
		{"always reset at byte 1", answer(func(w http.ResponseWriter, r *http.Request) {
			w.Write(begin(w, r, data)[:1])
			flush(w)
			reset(w)
		}), ErrUnavailable, ErrUnavailable},
		{"black hole once", first(1, answer(func(w http.ResponseWriter, r *http.Request) { wait(r) })), fine, fine},
		{"black hole", answer(func(w http.ResponseWriter, r *http.Request) { wait(r) }), ErrUnavailable, ErrUnavailable},
		{"black hole in the body", first(2, answer(func(w http.ResponseWriter, r *http.Request) {
			w.Write(begin(w, r, data)[:100])
			flush(w)
			wait(r)
		})), fine, fine},
		{"black hole after each header", answer(func(w http.ResponseWriter, r *http.Request) {
			begin(w, r, data)
			flush(w)
			wait(r)
		}), ErrUnavailable, ErrUnavailable},
		{"drip", answer(func(w http.ResponseWriter, r *http.Request) {
			for i, p := 0, begin(w, r, data); i < len(p) && r.Context().Err() == nil; i++ {
				w.Write(p[i : i+1])
				flush(w)
				time.Sleep(5 * time.Millisecond)
			}
		}), ErrUnavailable, ErrUnavailable},
		{"range ignored", answer(func(w http.ResponseWriter, r *http.Request) { w.Write(data) }), fine, fine},
		{"another range", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-999/%d", len(data)))
			w.WriteHeader(206)
			w.Write(data[:1000])
			return true
		}, ErrProtocol, none},
		{"shorter range", answer(func(w http.ResponseWriter, r *http.Request) {
			from, to := limits(r, len(data))
			to = min(to, from+70_000)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
			w.WriteHeader(206)
			w.Write(data[from:to])
		}), fine, fine},
		{"no Content-Range", answer(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(206)
			w.Write(data)
		}), ErrProtocol, ErrProtocol},
		{"multipart", answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "multipart/byteranges; boundary=x")
			w.WriteHeader(206)
			io.WriteString(w, "--x\r\n")
		}), ErrProtocol, ErrProtocol},
		{"another total", answer(func(w http.ResponseWriter, r *http.Request) {
			from, to := limits(r, len(data))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)+1))
			w.WriteHeader(206)
			w.Write(data[from:to])
		}), &SizeError{}, &SizeError{}},
		{"unknown total", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			from, to := limits(r, len(data))
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/*", from, to-1))
			w.WriteHeader(206)
			w.Write(data[from:to])
			return true
		}, fine, fine},
		{"Content-Length too small", answer(func(w http.ResponseWriter, r *http.Request) {
			from, to := limits(r, len(data))
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
				w.Header().Set("Content-Length", "10")
				w.WriteHeader(206)
			} else {
				w.Header().Set("Content-Length", "10")
			}
			w.Write(data[:10])
		}), ErrProtocol, ErrProtocol},
		{"Content-Length too large", answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(data)+5))
			w.Write(append(bytes.Clone(data), "xxxxx"...))
		}), &SizeError{}, &SizeError{}},
		{"no Content-Length", answer(func(w http.ResponseWriter, r *http.Request) {
			from, to := limits(r, len(data))
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
				w.WriteHeader(206)
			}
			flush(w)
			w.Write(data[from:to])
		}), fine, fine},
		{"no Content-Length, too short", answer(func(w http.ResponseWriter, r *http.Request) {
			from, to := limits(r, len(data))
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, len(data)))
				w.WriteHeader(206)
			}
			flush(w)
			w.Write(data[from : from+10])
		}), ErrUnavailable, ErrUnavailable},
		{"no Content-Length, too long", answer(func(w http.ResponseWriter, r *http.Request) {
			flush(w)
			w.Write(append(bytes.Clone(data), 'x'))
		}), fine, ErrProtocol},
		{"gzip encoding", answer(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(gz(t, data))
		}), ErrProtocol, ErrProtocol},
		{"redirect loop", answer(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), ErrProtocol, ErrProtocol},
		{"redirect to nowhere", status(302), ErrProtocol, ErrProtocol},
		{"redirect to a file", status(302, "Location", "file:///etc/passwd"), ErrProtocol, ErrProtocol},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			ref := mustRef(t, s.put(t, "a/b", "v1", img))
			s.inner = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if isBlob(r) {
					w.Write(begin(w, r, data))
				}
			})
			r := newRegistry(t, Options{Timeouts: quick})
			s.set(c.fault)
			b, err := r.Blob(ref, img.layer(0))
			if err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 100_000)
			n, err := b.ReadAt(t.Context(), p, 150_000)
			compare(t, "ReadAt", err, c.ranged, none)
			if err == nil && (n != len(p) || !bytes.Equal(p, data[150_000:250_000])) {
				t.Error("ReadAt gave wrong bytes")
			}
			s.set(c.fault)
			var got []byte
			rc, err := r.Stream(t.Context(), ref, img.layer(0))
			if err == nil {
				got, err = io.ReadAll(rc)
				rc.Close()
			}
			compare(t, "Stream", err, c.stream, none)
			if err == nil && !bytes.Equal(got, data) {
				t.Error("Stream gave wrong bytes")
			}
		})
	}
}

// compare checks err against want; anything goes where want is none, but on one line.
func compare(t *testing.T, what string, err, want, none error) {
	t.Helper()
	switch {
	case want == none:
	case want == nil && err != nil, want != nil && !isErr(err, want):
		t.Errorf("%s = %v, want %v", what, err, want)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("%s: more than a line: %q", what, err)
	}
}

// TestRangeIgnored: what is near the start is read, and what is not is refused,
// the second time without asking.
func TestRangeIgnored(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 3<<20)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	data := img.layers[0]
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool { w.Write(data); return true })
	stats := new(Stats)
	r := newRegistry(t, Options{Timeouts: quick, Stats: stats})
	b, err := r.Blob(ref, img.layer(0))
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1000)
	if _, err := b.ReadAt(t.Context(), p, 500); err != nil || !bytes.Equal(p, data[500:1500]) {
		t.Errorf("ReadAt near the start = %v", err)
	}
	for range 2 {
		before := s.hits.Load()
		if _, err := b.ReadAt(t.Context(), p, 2<<20); !errors.Is(err, ErrNoRange) {
			t.Errorf("ReadAt far away = %v, want ErrNoRange", err)
		}
		if n := s.hits.Load() - before; n != 0 {
			t.Errorf("%d requests though it is known", n)
		}
	}
	if stats.RangeIgnored.Load() == 0 {
		t.Error("not counted")
	}
}

// TestManifestFaults: flipped, lying and oversized documents.
func TestManifestFaults(t *testing.T) {
	img := makeImage(t, "amd64", 1000)
	send := func(body []byte, contentType string, header ...string) func(w http.ResponseWriter, r *http.Request, n int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if !isManifests(r) {
				return false
			}
			w.Header().Set("Content-Type", contentType)
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.Write(body)
			return true
		}
	}
	confused := bytes.Replace(img.manifest, []byte(`"schemaVersion"`), []byte(`"manifests":[],"schemaVersion"`), 1)
	flipped := bytes.Replace(img.manifest, []byte(`"size":1000`), []byte(`"size":1001`), 1)
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request, n int) bool
		tag   error
		dgst  error
	}{
		{"fine", send(img.manifest, ocispec.MediaTypeImageManifest), nil, nil},
		{"no type told", send(img.manifest, "application/json; charset=utf-8"), nil, nil},
		{"another type told", send(img.manifest, ocispec.MediaTypeImageIndex), ErrBadManifest, ErrBadManifest},
		{"both manifest and index", send(confused, ocispec.MediaTypeImageManifest), ErrBadManifest, &layers.DigestError{}},
		{"flipped", send(flipped, ocispec.MediaTypeImageManifest, "Docker-Content-Digest", string(img.desc.Digest)), &layers.DigestError{}, &layers.DigestError{}},
		{"wrong digest header", send(img.manifest, ocispec.MediaTypeImageManifest, "Docker-Content-Digest", string(digest.FromString("x"))), &layers.DigestError{}, nil},
		{"too large", send(make([]byte, layers.MaxManifest+1), ocispec.MediaTypeImageManifest), layers.ErrTooLarge, layers.ErrTooLarge},
		{"schema 1", send([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "application/vnd.docker.distribution.manifest.v1+prettyjws"), ErrUnsupported, &layers.DigestError{}},
		{"HTML", send([]byte("<html>log in</html>"), "text/html"), ErrBadManifest, &layers.DigestError{}},
		{"encoded", send(gz(t, img.manifest), ocispec.MediaTypeImageManifest, "Content-Encoding", "gzip"), ErrProtocol, ErrProtocol},
		{"cut", send(img.manifest[:50], ocispec.MediaTypeImageManifest, "Content-Length", "60"), ErrUnavailable, ErrUnavailable},
		{"404", func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.WriteHeader(404)
			io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest\nunknown"}]}`)
			return true
		}, ErrNotFound, ErrNotFound},
		{"flipped config", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isBlob(r) {
				p := begin(w, r, bytes.ToUpper(img.config))
				w.Write(p)
			}
			return isBlob(r)
		}, &layers.DigestError{}, &layers.DigestError{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			ref := mustRef(t, s.put(t, "a/b", "v1", img))
			r := newRegistry(t, Options{Timeouts: quick})
			s.set(c.fault)
			_, err := r.Resolve(t.Context(), ref, "linux/amd64")
			compare(t, "Resolve by tag", err, c.tag, errors.New(""))
			s.set(c.fault)
			_, err = r.Resolve(t.Context(), ref.WithDigest(img.desc.Digest), "linux/amd64")
			compare(t, "Resolve by digest", err, c.dgst, errors.New(""))
		})
	}
}

// redirecting answers blobs with a redirect to other, as registries do that
// keep blobs in an object store.
func redirecting(s, other *server, query func() string) {
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if isBlob(r) {
			http.Redirect(w, r, other.URL+r.URL.Path+"?sig="+query(), http.StatusTemporaryRedirect)
		}
		return isBlob(r)
	})
}

// TestRedirect: a signed address is used again until it expires, and no
// credential goes there.
func TestRedirect(t *testing.T) {
	s, store := newServer(t), newServer(t)
	img := makeImage(t, "amd64", 100_000)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	store.put(t, "a/b", "v1", img)
	var sig, leaks atomic.Int64
	redirecting(s, store, func() string { return strconv.FormatInt(sig.Load(), 10) })
	inner := s.fault
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return true
		}
		return inner(w, r, n)
	})
	store.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			leaks.Add(1)
		}
		if r.URL.Query().Get("sig") != strconv.FormatInt(sig.Load(), 10) {
			w.WriteHeader(403)
			return true
		}
		return false
	})
	stats := new(Stats)
	r := newRegistry(t, Options{Timeouts: quick, Stats: stats, Credentials: always("me", "secret")})
	b, err := r.Blob(ref, img.layer(0))
	if err != nil {
		t.Fatal(err)
	}
	read := func() {
		t.Helper()
		p := make([]byte, 1000)
		if _, err := b.ReadAt(t.Context(), p, 5000); err != nil || !bytes.Equal(p, img.layers[0][5000:6000]) {
			t.Fatalf("ReadAt = %v", err)
		}
	}
	read()
	before := s.hits.Load()
	for range 5 {
		read()
	}
	if s.hits.Load() != before {
		t.Errorf("the registry was asked %d times, want 0: the target is known", s.hits.Load()-before)
	}
	sig.Add(1) // all signatures expire
	read()
	if s.hits.Load() == before {
		t.Error("the registry was not asked for a new address")
	}
	if leaks.Load() != 0 {
		t.Errorf("credentials went to another host %d times", leaks.Load())
	}
	if stats.Redirects.Load() != 2 {
		t.Errorf("redirects = %d, want 2", stats.Redirects.Load())
	}
}

// TestRedirectAlwaysRefused: a store that refuses fresh addresses is an outage, not our credentials.
func TestRedirectAlwaysRefused(t *testing.T) {
	s, store := newServer(t), newServer(t)
	img := makeImage(t, "amd64", 1000)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	redirecting(s, store, func() string { return "secret" })
	store.set(func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(403); return true })
	r := newRegistry(t, Options{Timeouts: quick})
	_, err := r.Stream(t.Context(), ref, img.layer(0))
	if !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrDenied) {
		t.Errorf("Stream = %v, want ErrUnavailable", err)
	}
	if strings.Contains(fmt.Sprint(err), "secret") {
		t.Errorf("the signature is in the message: %v", err)
	}
}

// TestDowngrade: from https nobody leads us to http.
func TestDowngrade(t *testing.T) {
	plain := newServer(t)
	img := makeImage(t, "amd64", 1000)
	plain.put(t, "a/b", "v1", img)
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v2/a/b/blobs/") {
			http.Redirect(w, r, "http://store.example"+r.URL.Path, http.StatusFound)
		}
	}))
	defer tls.Close()
	r := newRegistry(t, Options{Timeouts: quick})
	_, err := r.Stream(t.Context(), mustRef(t, tls.Listener.Addr().String()+"/a/b:v1"), img.layer(0))
	if !errors.Is(err, ErrProtocol) {
		t.Errorf("Stream = %v, want ErrProtocol", err)
	}
}

// hostsToml makes mirrors for a domain that does not exist.
func hostsToml(t *testing.T, domain string, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, domain), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, domain, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMirrors: the first mirror fails in every way, and the origin gives the bytes.
func TestMirrors(t *testing.T) {
	img, other := makeImage(t, "amd64", 200_000), makeImage(t, "amd64", 5)
	data := img.layers[0]
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request, n int) bool
	}{
		{"empty", func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(404); return true }},
		{"denies", func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(401); return true }},
		{"broken", func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(500); return true }},
		{"silent", func(w http.ResponseWriter, r *http.Request, n int) bool { wait(r); return true }},
		{"resets", func(w http.ResponseWriter, r *http.Request, n int) bool { reset(w); return true }},
		{"resets in the middle", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if !isBlob(r) {
				return false
			}
			if p := begin(w, r, data); len(p) > 10 {
				w.Write(p[:10])
			}
			flush(w)
			reset(w)
			return true
		}},
		{"ignores ranges", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Length", strconv.Itoa(len(data)))
				w.Write(data)
				return true
			}
			return false
		}},
		{"disagrees on size", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isBlob(r) {
				w.Write(begin(w, r, data[:len(data)-9]))
			}
			return isBlob(r)
		}},
		{"disagrees on the manifest", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if isManifests(r) {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				w.Write(other.manifest)
			}
			return isManifests(r)
		}},
		{"compresses", func(w http.ResponseWriter, r *http.Request, n int) bool {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(gz(t, data))
			return true
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			mirror, origin := newServer(t), newServer(t)
			mirror.put(t, "a/b", "v1", img)
			origin.put(t, "a/b", "v1", img)
			mirror.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
				if r.URL.Query().Get("ns") != "hub.example" {
					t.Error("a mirror was not told the namespace")
				}
				return c.fault(w, r, n)
			})
			dir := hostsToml(t, "hub.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", origin.URL, mirror.URL))
			r := newRegistry(t, Options{Timeouts: quick, HostDirs: []string{"/nonexistent", dir}})
			ref := mustRef(t, "hub.example/a/b:v1")
			got, err := r.Resolve(t.Context(), ref.WithDigest(img.desc.Digest), "linux/amd64")
			if err != nil || got.Desc.Digest != img.desc.Digest {
				t.Fatalf("Resolve = %v", err)
			}
			readBoth(t, r, ref, img.layer(0), data)
			if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); err != nil {
				t.Errorf("Resolve by tag = %v", err)
			}
			mirror.mu.Lock()
			defer mirror.mu.Unlock()
			for _, l := range mirror.log {
				if strings.Contains(l, "/manifests/v1") {
					t.Error("a mirror that may only pull was asked to resolve")
				}
			}
		})
	}
}

// TestMirrorKind: what the registry itself says decides what kind of error it is.
func TestMirrorKind(t *testing.T) {
	mirror, origin := newServer(t), newServer(t)
	mirror.set(func(w http.ResponseWriter, r *http.Request, n int) bool { w.WriteHeader(503); return true })
	dir := hostsToml(t, "hub.example", fmt.Sprintf("server = %q\n[host.%q]\n", origin.URL, mirror.URL))
	r := newRegistry(t, Options{Timeouts: quick, HostDirs: []string{dir}})
	_, err := r.Resolve(t.Context(), mustRef(t, "hub.example/a/b:v1"), "")
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "503") {
		t.Errorf("Resolve = %v, want ErrNotFound, and a word on the mirror", err)
	}
}

func TestBadHosts(t *testing.T) {
	dir := hostsToml(t, "hub.example", "server = ")
	r := newRegistry(t, Options{Timeouts: quick, HostDirs: []string{dir}})
	if _, err := r.Resolve(t.Context(), mustRef(t, "hub.example/a/b:v1"), ""); err == nil || !strings.Contains(err.Error(), "hosts.toml") {
		t.Errorf("Resolve = %v, want an error that names hosts.toml", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := r.Resolve(t.Context(), mustRef(t, l.Addr().String()+"/a/b:v1"), ""); !errors.Is(err, ErrUnavailable) {
		t.Errorf("Resolve where nobody listens = %v, want ErrUnavailable", err)
	}
}

// TestCancel: a read ends with its context, whatever the server does.
func TestCancel(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 1000)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	ctx, cancel := context.WithCancel(t.Context())
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool { cancel(); wait(r); return true })
	r := newRegistry(t, Options{})
	b, err := r.Blob(ref, img.layer(0))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(ctx, make([]byte, 10), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadAt = %v, want Canceled", err)
	}
}

package registry

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rtt is the round trip time of a network in a synctest bubble, where time
// passes only while everybody waits. So what something takes, divided by rtt, is
// the number of its sequential round trips, exactly.
const rtt = time.Second

// A network has hosts that are one round trip apart from the caller, and all the
// bandwidth in the world.
type network struct {
	mu    sync.Mutex
	hosts map[string]*virtual // by address
	count map[string]int      // connections that were used, by address
	wires sync.WaitGroup
}

// virtual is the listener of one host.
type virtual struct {
	addr  string
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (v *virtual) Accept() (net.Conn, error) {
	select {
	case c := <-v.conns:
		return c, nil
	case <-v.done:
		return nil, net.ErrClosed
	}
}
func (v *virtual) Close() error    { v.once.Do(func() { close(v.done) }); return nil }
func (v *virtual) Addr() net.Addr  { return v }
func (v *virtual) Network() string { return "tcp" }
func (v *virtual) String() string  { return v.addr }

// serve makes a host. It must be called in the bubble, and the server be closed there.
func (n *network) serve(addr string, secure bool, h http.Handler) *httptest.Server {
	v := &virtual{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	if n.hosts == nil {
		n.hosts, n.count = make(map[string]*virtual), make(map[string]int)
	}
	n.hosts[addr] = v
	n.mu.Unlock()
	s := &httptest.Server{Listener: v, Config: &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}, EnableHTTP2: true}
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	return s
}

func (n *network) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	v := n.hosts[addr]
	n.mu.Unlock()
	if v == nil {
		return nil, fmt.Errorf("no host %s", addr)
	}
	if err := sleep(ctx, rtt); err != nil { // SYN, SYN ACK
		return nil, err
	}
	near, nearEnd := net.Pipe()
	far, farEnd := net.Pipe()
	n.wires.Go(func() { carry(nearEnd, farEnd, func() {}) })
	n.wires.Go(func() {
		carry(farEnd, nearEnd, func() {
			n.mu.Lock()
			n.count[addr]++
			n.mu.Unlock()
		})
	})
	select {
	case v.conns <- far:
		return near, nil
	case <-v.done:
		near.Close()
		far.Close()
		return nil, fmt.Errorf("no host %s", addr)
	}
}

// carry moves bytes from one end to the other, half a round trip later.
func carry(to, from net.Conn, first func()) {
	type packet struct {
		data []byte
		at   time.Time
	}
	wire := make(chan packet, 1<<16)
	var out sync.WaitGroup
	defer out.Wait()
	defer close(wire)
	out.Go(func() {
		defer to.Close()
		for p := range wire {
			time.Sleep(time.Until(p.at))
			if _, err := to.Write(p.data); err != nil {
				break
			}
		}
		for range wire {
		}
	})
	for n := 0; ; n++ {
		p := make([]byte, 64<<10)
		k, err := from.Read(p)
		if err != nil {
			from.Close()
			return
		}
		if n == 0 {
			first()
		}
		wire <- packet{p[:k], time.Now().Add(rtt / 2)}
	}
}

// trips is how many round trips have passed since start.
func trips(start time.Time) float64 { return float64(time.Since(start)) / float64(rtt) }

// A world is a registry "example.com" with an index of two platforms, an
// artifact attached to one of them, and what else a test needs.
type world struct {
	net    network
	img    *testImage
	index  []byte // the artifact's blobs
	bundle []byte
	mu     sync.Mutex
	log    []string
}

// hub is the registry's handler: a test registry with the image in repositories a/b and c/d.
func (w *world) hub(t *testing.T, withAPI bool) http.Handler {
	s := newServer(t)
	if withAPI {
		s = newAPI(t).server
	}
	w.img = makeImage(t, "amd64", 5000, 6000, 7000)
	w.index, w.bundle = pattern(200_000, 1), pattern(100_000, 2)
	arm := makeImage(t, "arm64", 10)
	amd := w.img.desc
	amd.Platform, arm.desc.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}, &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	list := mustJSON(t, ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{arm.desc, amd}})
	r := newRegistry(t, Options{})
	for _, repo := range []string{"a/b", "c/d"} {
		s.put(t, repo, "arm", arm)
		ref := mustRef(t, s.put(t, repo, "amd", w.img))
		s.do(t, "PUT", "/v2/"+repo+"/manifests/v1", ocispec.MediaTypeImageIndex, list)
		if _, err := r.PushReferrer(t.Context(), ref, referrer(w.img.desc, testType, "one", w.index, w.bundle), nil); err != nil {
			t.Fatal(err)
		}
	}
	inner := s.inner
	s.CloseClientConnections()
	s.Close()
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.log = append(w.log, r.Method+" "+r.Host+r.URL.Path)
		w.mu.Unlock()
		inner.ServeHTTP(rw, r)
	})
}

// start does what a cold node does: everything as soon as it can be known.
func (w *world) start(t *testing.T, r *Registry, name string) {
	t.Helper()
	ctx, ref := t.Context(), mustRef(t, name)
	var beside sync.WaitGroup
	read := func(desc ocispec.Descriptor, n int, want []byte) {
		b, err := r.Blob(ref, desc)
		if err != nil {
			t.Error(err)
			return
		}
		p := make([]byte, n)
		if _, err := b.ReadAt(ctx, p, 0); err != nil && err != io.EOF || !slices.Equal(p, want[:n]) {
			t.Errorf("ReadAt(%s) = %v", desc.Digest, err)
		}
	}
	attached := func(subject ocispec.Descriptor) {
		list, err := r.Referrers(ctx, ref, subject.Digest, testType)
		if err != nil || len(list) != 1 {
			t.Errorf("Referrers = %v, %v", list, err)
			return
		}
		// From here on digests and sizes are known from the annotations.
		beside.Go(func() { read(describe("", w.index), 50_000, w.index) })
		beside.Go(func() {
			d := describe("", w.bundle)
			rc, err := r.Stream(ctx, ref, d)
			if err != nil {
				t.Error(err)
				return
			}
			defer rc.Close()
			if _, err := io.Copy(io.Discard, Verify(rc, d)); err != nil {
				t.Error(err)
			}
		})
	}
	img, err := r.ResolveWith(ctx, ref, ResolveOptions{
		Platform: "linux/amd64", Locate: true,
		OnManifest: func(desc ocispec.Descriptor) { beside.Go(func() { attached(desc) }) },
	})
	if err != nil {
		t.Error(err)
		return
	}
	beside.Wait()
	var data sync.WaitGroup
	for i, l := range img.Manifest.Layers {
		data.Go(func() { read(l, 1000, w.img.layers[i]) })
	}
	data.Wait()
}

// TestConnections: one connection serves what is asked one after the other,
// whatever the answers are.
func TestConnections(t *testing.T) {
	s, store := newServer(t), newServer(t)
	img := makeImage(t, "amd64", 1000, 2000, 3000)
	s.put(t, "a/b", "v1", img)
	store.put(t, "a/b", "v1", img)
	var conns sync.Map
	fault := func(w http.ResponseWriter, r *http.Request, n int) bool {
		conns.Store(r.Host+" "+r.RemoteAddr, true)
		return false
	}
	store.set(fault)
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
		fault(w, r, n)
		if _, _, ok := r.BasicAuth(); !ok {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return true
		}
		if isBlob(r) {
			http.Redirect(w, r, store.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	r := newRegistry(t, Options{Timeouts: quick, PlainHTTP: []string{s.host(), store.host()},
		Credentials: always("me", "secret")})
	ref := mustRef(t, s.host()+"/a/b:v1")
	if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Resolve(t.Context(), mustRef(t, s.host()+"/a/b:none"), ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("Resolve(none) = %v, want ErrNotFound", err)
	}
	for i := range img.layers {
		readBoth(t, r, ref, img.layer(i), img.layers[i])
	}
	if list, err := r.Referrers(t.Context(), ref, img.desc.Digest, ""); err != nil || list != nil {
		t.Errorf("Referrers = %v, %v", list, err)
	}
	n := make(map[string]int)
	for k := range conns.Range {
		host, _, _ := strings.Cut(k.(string), " ")
		n[host]++
	}
	if n[s.host()] > 2 || n[store.host()] != 1 { // the two ways to list referrers are asked at once
		t.Errorf("connections: %v, want 2 to %s and 1 to %s", n, s.host(), store.host())
	}
}

// TestRoundTrips: a cold start takes one round trip to connect and four for
// requests, and what authorization and redirects add.
func TestRoundTrips(t *testing.T) {
	const plain, hub443, cdn, auth = "example.com:80", "example.com:443", "example.com:8443", "example.com:9443"
	for _, c := range []struct {
		name                   string
		secure, api, cdn, auth bool
		first, second, again   float64 // trips: cold; another repository of the host; the same once more
		conns                  map[string]int
	}{
		{"HTTP/1.1", false, true, false, false, 5, 4, 4, map[string]int{plain: 1 + spareConns}},
		{"HTTP/1.1 without the API", false, false, false, false, 5, 4, 4, map[string]int{plain: 1 + spareConns}},
		{"HTTP/2", true, true, false, false, 1 + 5, 4, 4, map[string]int{hub443: 1}},
		// The CDN: the redirect, connect, handshake. The data, known to be there, cost one as
		// ever; in the second repository only the redirect is new.
		{"HTTP/2, CDN", true, true, true, false, 3 + 6, 5, 4, map[string]int{hub443: 1, cdn: 3}},
		// Tokens: refusal, connect, handshake, token. In the second repository only the token.
		{"HTTP/2, CDN, tokens", true, true, true, true, 4 + 9, 6, 4, map[string]int{hub443: 1, cdn: 3, auth: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := new(world)
			inner := w.hub(t, c.api) // with real sockets, so outside of the bubble
			dirs := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				var tokens atomic.Int64
				scheme, hub := "http", plain
				if c.secure {
					scheme, hub = "https", hub443
				}
				var h http.Handler = inner
				if c.cdn {
					h = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						if isBlob(r) {
							http.Redirect(rw, r, scheme+"://"+cdn+r.URL.Path, http.StatusTemporaryRedirect)
							return
						}
						inner.ServeHTTP(rw, r)
					})
					s := w.net.serve(cdn, c.secure, inner)
					defer s.Close()
				}
				if c.auth {
					registry := h
					h = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						repo := strings.Join(strings.Split(r.URL.Path, "/")[2:4], "/")
						if r.Header.Get("Authorization") != "Bearer repository:"+repo+":pull" {
							rw.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s://%s/token",service="hub",scope="repository:%s:pull"`, scheme, auth, repo))
							rw.WriteHeader(http.StatusUnauthorized)
							return
						}
						registry.ServeHTTP(rw, r)
					})
					s := w.net.serve(auth, c.secure, http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
						tokens.Add(1)
						fmt.Fprintf(rw, `{"token":%q}`, r.URL.Query().Get("scope"))
					}))
					defer s.Close()
				}
				s := w.net.serve(hub, c.secure, h)
				r := New(Options{HostDirs: []string{certsDir(t, dirs, s)}, PlainHTTP: plainHosts(c.secure, "example.com", cdn, auth)})
				r.dial = w.net.dial
				defer w.net.wires.Wait()
				defer s.Close()
				defer r.Close()
				for _, run := range []struct {
					ref  string
					want float64
				}{{"example.com/a/b:v1", c.first}, {"example.com/c/d:v1", c.second}, {"example.com/a/b:v1", c.again}} {
					w.log = nil
					start := time.Now()
					w.start(t, r, run.ref)
					if got := trips(start); got != run.want {
						t.Errorf("%s: %v round trips, want %v: %q", run.ref, got, run.want, w.log)
					}
				}
				if n := tokens.Load(); c.auth && n != 2 {
					t.Errorf("%d tokens for two repositories", n)
				}
				for addr, n := range c.conns {
					if got := w.net.count[addr]; got > n {
						t.Errorf("%d connections to %s, want %d at most", got, addr, n)
					}
				}
			})
		})
	}
}

func plainHosts(secure bool, hosts ...string) []string {
	if secure {
		return nil
	}
	return hosts
}

// certsDir makes the certificate of a server the authority for example.com.
func certsDir(t *testing.T, dir string, s *httptest.Server) string {
	t.Helper()
	if s.TLS == nil {
		return dir
	}
	at := filepath.Join(dir, "example.com")
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(at, "ca.crt"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestReferrersPatience: a registry that is out of order holds nobody up for long.
func TestReferrersPatience(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"broken": func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(500) },
		"silent": func(w http.ResponseWriter, r *http.Request) { wait(r) },
	} {
		synctest.Test(t, func(t *testing.T) {
			var net network
			s := net.serve("example.com:80", false, h)
			r := New(Options{HostDirs: []string{t.TempDir()}, PlainHTTP: []string{"example.com"}})
			r.dial = net.dial
			defer net.wires.Wait()
			defer s.Close()
			defer r.Close()
			start := time.Now()
			_, err := r.Referrers(t.Context(), mustRef(t, "example.com/a/b:v1"), someDigest, "")
			if d := time.Since(start); !errors.Is(err, ErrUnavailable) || d > referrersPatience+2*time.Second {
				t.Errorf("%s: Referrers = %v after %v", name, err, d)
			}
		})
	}
}

// TestSpares: a spare connection is used once, not when the other end has closed
// it, and not for ever.
func TestSpares(t *testing.T) {
	const addr = "example.com:80"
	put := func(s *spares, c net.Conn) {
		if !s.reserve(addr) {
			t.Error("no spares are wanted though there are none")
		}
		for range spareConns - 1 {
			s.put(t.Context(), addr, nil, errors.New("refused"))
		}
		s.put(t.Context(), addr, c, nil)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, dead := range []bool{false, true} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		s := new(spares)
		put(s, c)
		if s.reserve(addr) {
			t.Error("spares are wanted though there is one")
		}
		if dead {
			far.Close()
			for silent(c) { // until its end has come over
				runtime.Gosched()
			}
		}
		if got := s.take(addr); (got == nil) != dead {
			t.Errorf("take of a spare, dead: %v = %v", dead, got)
		}
		if got := s.take(addr); got != nil {
			t.Error("it is taken twice")
		}
		c.Close()
		far.Close()
	}
	synctest.Test(t, func(t *testing.T) {
		s := new(spares)
		near, far := net.Pipe()
		put(s, near)
		time.Sleep(spareFor + 1)
		synctest.Wait()
		if _, err := far.Read(make([]byte, 1)); err != io.EOF || s.take(addr) != nil {
			t.Errorf("an old spare lives: %v", err)
		}
	})
}

package registry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	stdlog "log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/google/go-containerregistry/pkg/registry"
)

// A site is a registry that takes notes of what it is asked for, below any path.
type site struct {
	*httptest.Server
	name  string
	inner http.Handler
	notes *notebook
	down  bool
}

// A notebook has the questions to several sites.
type notebook struct {
	mu  sync.Mutex
	all []string
}

func (n *notebook) drain() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.all
	n.all = nil
	return all
}

func (s *site) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i := strings.Index(r.URL.Path, "/a/b/")
	if i < 0 {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	who := ""
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		who = r.TLS.PeerCertificates[0].Subject.CommonName
	}
	s.notes.mu.Lock()
	s.notes.all = append(s.notes.all, fmt.Sprintf("%s %s?%s headers %q client %q", s.name, r.URL.Path, r.URL.RawQuery, r.Header.Values("X-Extra"), who))
	s.notes.mu.Unlock()
	if s.down {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	r.URL.Path = "/v2" + r.URL.Path[i:]
	s.inner.ServeHTTP(w, r)
}

func newSite(t *testing.T, name string, n *notebook, img *testImage, secure bool) *site {
	t.Helper()
	plain := &server{inner: registry.New(registry.Logger(stdlog.New(io.Discard, "", 0)))}
	plain.Server = &httptest.Server{Listener: &virtual{}}
	plain.put(t, "a/b", "v1", img)
	s := &site{name: name, inner: plain.inner, notes: n}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
	if secure {
		s.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// writeClient makes a client's certificate and key.
func writeClient(t *testing.T, cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
	if key == "" {
		certPEM, keyPEM = append(certPEM, keyPEM...), nil
	}
	for name, text := range map[string][]byte{cert: certPEM, key: keyPEM} {
		if name == "" {
			continue
		}
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestHostsAsContainerd: with the same files below certs.d, containerd's resolver and
// ours ask the same hosts for the same paths, with the same headers and certificates.
func TestHostsAsContainerd(t *testing.T) {
	img := makeImage(t, "amd64", 5000)
	n := new(notebook)
	mirror, server, plain := newSite(t, "mirror", n, img, true), newSite(t, "server", n, img, true), newSite(t, "plain", n, img, false)
	down := newSite(t, "down", n, img, true)
	down.down = true
	address := func(s *site) string { return s.Listener.Addr().String() }
	for _, c := range []struct {
		name   string
		domain string // default hub.example
		dir    string // default the domain
		files  string // of hosts.toml; "" there is none
		want   []string
	}{
		// Here containerd 2.4.2 differs: it asks any host for blobs, also one that is not
		// to be pulled from (core/remotes/docker/fetcher.go, Fetch, the loop over r.hosts).
		{onlyUs + "a mirror that only takes pushes", "", "", `server = "{server}"
ca = "ca.crt"
[host."{mirror}"]
ca = "ca.crt"
capabilities = ["push"]`, []string{"server", "server"}},
		{"mirror and server", "", "", `server = "{server}"
ca = "ca.crt"
[host."{mirror}"]
ca = "ca.crt"
capabilities = ["pull", "resolve"]`, []string{"mirror", "mirror"}},
		{"a mirror that only pulls", "", "", `server = "{server}"
ca = "ca.crt"
[host."{mirror}"]
ca = ["ca.crt"]
capabilities = ["pull"]`, []string{"server", "mirror"}},
		{"several, in order", "", "", `server = "{server}"
skip_verify = true
[host."{down}"]
skip_verify = true
[host."{mirror}"]
skip_verify = true
[host."{plain}"]`, []string{"down", "mirror", "down", "mirror"}},
		{"override_path", "", "", `[host."{mirror}/some/prefix"]
ca = "ca.crt"
override_path = true`, []string{"mirror /some/prefix/a/b", "mirror /some/prefix/a/b"}},
		{"a path of the API", "", "", `[host."{mirror}/some/prefix"]
ca = "ca.crt"`, []string{"mirror /some/prefix/v2/a/b", "mirror /some/prefix/v2/a/b"}},
		{"headers of a host", "", "", `[host."{mirror}"]
ca = "ca.crt"
[host."{mirror}".header]
X-Extra = ["one", "two"]`, []string{`"one" "two"`, `"one" "two"`}},
		{"a header of the server", "", "", `server = "{server}"
ca = "ca.crt"
[header]
X-Extra = "one"`, []string{`server /v2/a/b/manifests/v1?ns=hub.example headers ["one"]`, `"one"`}},
		{"client's certificate and key", "", "", `[host."{mirror}"]
ca = "ca.crt"
client = [["client.pem", "client.key"]]`, []string{`client "node"`, `client "node"`}},
		{"client's file of both", "", "", `[host."{mirror}"]
ca = "ca.crt"
client = "both.pem"`, []string{`client "node"`, `client "node"`}},
		{"client's files", "", "", `[host."{mirror}"]
ca = "ca.crt"
client = ["both.pem"]`, []string{`client "node"`, `client "node"`}},
		{"without TLS", "", "", `server = "{plain}"`, []string{"plain", "plain"}},
		{"no scheme", "", "", `server = "{server-address}"
ca = "ca.crt"`, []string{"server", "server"}},
		{"dial_timeout", "", "", `server = "{server}"
ca = "ca.crt"
dial_timeout = "5s"`, []string{"server", "server"}},
		{"_default", "", "_default", `[host."{mirror}"]
ca = "ca.crt"`, []string{"mirror /v2/a/b/manifests/v1?ns=hub.example", "mirror"}},
		{"files as docker has them", address(server), "", "", []string{`server /v2/a/b/manifests/v1? headers [] client "node"`, "server"}},
		{"host_port_", address(server), strings.ReplaceAll(address(server), ":", "_") + "_", "", []string{"server", "server"}},
		{"not a capability", address(server), "", `server = "https://localhost:1"
capabilities = ["fly"]`, []string{`client "node"`, "server"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.domain == "" {
				c.domain = "hub.example"
			}
			if c.dir == "" {
				c.dir = c.domain
			}
			root := t.TempDir()
			dir := filepath.Join(root, c.dir)
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			text := strings.NewReplacer("{mirror}", mirror.URL, "{server}", server.URL, "{plain}", plain.URL, "{down}", down.URL, "{server-address}", address(server)).Replace(c.files)
			ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: mirror.Certificate().Raw})
			files := map[string][]byte{"ca.crt": ca}
			if c.files == "" || strings.Contains(c.files, "fly") {
				writeClient(t, filepath.Join(dir, "client.cert"), filepath.Join(dir, "client.key"))
			} else {
				writeClient(t, filepath.Join(dir, "client.pem"), filepath.Join(dir, "client.key"))
				writeClient(t, filepath.Join(dir, "both.pem"), "")
			}
			if c.files != "" {
				files["hosts.toml"] = []byte(text)
			}
			for name, b := range files {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			ref := mustRef(t, c.domain+"/a/b:v1")
			theirs := askedByContainerd(t, n, root, ref, img)
			ours := askedByUs(t, n, root, ref, img)
			if slices.Equal(ours, theirs) == strings.HasPrefix(c.name, onlyUs) {
				t.Errorf("we ask\n%s\ncontainerd asks\n%s", strings.Join(ours, "\n"), strings.Join(theirs, "\n"))
			}
			if len(ours) != len(c.want) {
				t.Fatalf("we ask\n%s\nwant %q", strings.Join(ours, "\n"), c.want)
			}
			for i, part := range c.want {
				if !strings.Contains(ours[i], part) {
					t.Errorf("question %d: %s, want %s", i, ours[i], part)
				}
			}
		})
	}
}

const onlyUs = "not as containerd: "

// firsts are the questions for the tag and for the first layer, without repetitions.
func firsts(all []string, img *testImage) (list []string) {
	for _, q := range all {
		if strings.Contains(q, "/manifests/v1") || strings.Contains(q, string(img.layer(0).Digest)) {
			list = append(list, q)
		}
	}
	return slices.Compact(list)
}

func askedByContainerd(t *testing.T, n *notebook, root string, ref Ref, img *testImage) []string {
	t.Helper()
	n.drain()
	ctx := log.WithLogger(context.Background(), quietLog())
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(root)})})
	name, _, err := resolver.Resolve(ctx, ref.String())
	if err != nil {
		t.Fatalf("containerd resolves: %v", err)
	}
	f, err := resolver.Fetcher(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := f.Fetch(ctx, img.layer(0))
	if err != nil {
		t.Fatalf("containerd fetches: %v", err)
	}
	defer rc.Close()
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Fatal(err)
	}
	return firsts(n.drain(), img)
}

func askedByUs(t *testing.T, n *notebook, root string, ref Ref, img *testImage) []string {
	t.Helper()
	r := newRegistry(t, Options{HostDirs: []string{root}})
	if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); err != nil {
		t.Fatalf("Resolve: %v", err)
	}
	rc, err := r.Stream(t.Context(), ref, img.layer(0))
	if err != nil {
		t.Fatalf("Stream: %v", err)
	}
	defer rc.Close()
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Fatal(err)
	}
	return firsts(n.drain(), img)
}

package registry

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
)

const (
	idlePerHost = 32        // keep-alive connections: an image's layers at once, and on-demand reads beside them
	maxToken    = 1 << 20   // bytes of a token server's answer
	maxHops     = 5         // redirects of one request
	maxSkip     = 1 << 20   // bytes read and dropped to get to an offset where ranges are ignored
	believedFor = time.Hour // how long it is remembered of a host what it can and does
	readBuffer  = 64 << 10  // of a connection, bytes: fewer reads than the default 4 KiB for whole layers
)

// A host is one server that has some registry's blobs. It is shared by all
// repositories of the registry.
type host struct {
	docker.RegistryHost
	bare    *http.Client // follows no redirects
	ns      string       // the registry's domain, if this host is a mirror of it; else ""
	down    atomic.Int64 // unix nanoseconds until which it is asked last
	noRange atomic.Bool  // it was seen to ignore Range
	many    atomic.Bool  // it speaks HTTP/2: one connection carries many requests
	moves   atomic.Int64 // unix nanoseconds until which it is believed to redirect to where blobs are

	referrersBy referrersBy
	challenge   atomic.Pointer[challenge] // how it asks for authorization, without a scope
}

// hostsOf returns the hosts of a domain, mirrors first. They are read from the
// configuration once.
func (r *Registry) hostsOf(domain string) ([]*host, error) {
	r.mu.Lock()
	hs := r.hosts[domain]
	r.mu.Unlock()
	if hs != nil {
		return hs, nil
	}
	opt := config.HostOptions{HostDir: r.hostDir, UpdateClient: r.tune}
	if r.plain[domain] {
		opt.DefaultScheme = "http"
	}
	list, err := config.ConfigureHosts(log.WithLogger(r.base, quietLog()), opt)(domain)
	if err != nil {
		return nil, fmt.Errorf("hosts of %s: %w", domain, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("hosts of %s: %w: none is configured", domain, ErrNotFound)
	}
	for _, rh := range list {
		h := &host{RegistryHost: rh, bare: bareClient(rh)}
		if rh.Host != domain && (domain != "docker.io" || rh.Host != "registry-1.docker.io") {
			h.ns = domain
		}
		hs = append(hs, h)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.hosts[domain]; old != nil {
		return old, nil
	}
	r.hosts[domain] = hs
	return hs, nil
}

// quietLog is containerd's log without its lines of level info: each use of a
// loopback registry would be one.
func quietLog() *log.Entry {
	l := logrus.New()
	l.SetFormatter(log.L.Logger.Formatter)
	l.SetOutput(log.L.Logger.Out)
	l.SetLevel(logrus.WarnLevel)
	return logrus.NewEntry(l)
}

// hostDir finds the configuration of a host. containerd takes a hosts.toml that
// does not parse for an absent one (core/remotes/docker/config/hosts.go,
// loadHostDir), which would go past a mirror unnoticed: it is an error here.
func (r *Registry) hostDir(name string) (string, error) {
	for _, root := range r.opt.HostDirs {
		dir, err := config.HostDirFromRoot(root)(name)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, "hosts.toml")
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			return dir, nil
		}
		var any map[string]any
		if err == nil {
			err = toml.Unmarshal(text, &any)
		}
		if err != nil {
			return "", fmt.Errorf("%s: %w", path, err)
		}
		return dir, nil
	}
	return "", errdefs.ErrNotFound
}

// tune gives containerd's transport our timeouts and pool. It is called once
// more for hosts with settings of their own, so it must bear being repeated.
func (r *Registry) tune(c *http.Client) error {
	tr, ok := c.Transport.(*http.Transport)
	if !ok {
		return nil
	}
	dial := tr.DialContext // with the dial_timeout of hosts.toml
	if r.dial != nil {
		dial = r.dial
	}
	tr.DialContext = r.dialer(dial)
	tr.TLSHandshakeTimeout = r.opt.Timeouts.Connect
	tr.ResponseHeaderTimeout = 0 // watch does it, and the body too
	tr.ForceAttemptHTTP2 = true  // off by default where DialContext is set (net/http, Transport.ForceAttemptHTTP2)
	tr.DisableCompression = true // a Content-Encoding must be seen, not undone
	tr.MaxIdleConns = 4 * idlePerHost
	tr.MaxIdleConnsPerHost = idlePerHost
	tr.IdleConnTimeout = 90 * time.Second
	tr.ReadBufferSize = readBuffer
	return nil
}

// isDown reports whether the host failed a moment ago.
func (h *host) isDown(now time.Time) bool { return now.UnixNano() < h.down.Load() }

// A repo is one repository of a registry, with what is known of its hosts.
type repo struct {
	reg    *Registry
	domain string
	path   string
	hosts  []*repoHost
}

// A repoHost is one host of a repository, and the right to use it.
type repoHost struct {
	*host
	repo       *repo
	pull, push *access
	targets    targets
}

func (r *Registry) repo(ref Ref) (*repo, error) {
	key := ref.Name()
	r.mu.Lock()
	rp := r.repos[key]
	r.mu.Unlock()
	if rp != nil {
		return rp, nil
	}
	hosts, err := r.hostsOf(ref.Domain)
	if err != nil {
		return nil, err
	}
	rp = &repo{reg: r, domain: ref.Domain, path: ref.Repo}
	for _, h := range hosts {
		rh := &repoHost{host: h, repo: rp}
		rh.pull = newAccess(r, h, rp, "pull")
		rh.push = newAccess(r, h, rp, "pull,push")
		rp.hosts = append(rp.hosts, rh)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if old := r.repos[key]; old != nil {
		return old, nil
	}
	r.repos[key] = rp
	return rp, nil
}

// url is the address of something below the repository.
func (h *repoHost) url(elem ...string) *url.URL {
	u := &url.URL{Scheme: h.Scheme, Host: h.Host}
	u = u.JoinPath(slices.Concat([]string{h.Path, h.repo.path}, elem)...)
	if h.ns != "" {
		u.RawQuery = url.Values{"ns": {h.ns}}.Encode() // tells a proxy whose repository is meant
	}
	return u
}

// tokenTransport carries requests to token servers: never a password in the
// clear, never an endless answer.
type tokenTransport struct {
	reg  *Registry
	base http.RoundTripper
}

func (t tokenTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !t.reg.plainOK(req.URL.Host) {
		return nil, fmt.Errorf("%w: token server %s is not https", ErrProtocol, cleanURL(req.URL))
	}
	resp, err := t.base.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxToken), resp.Body}
	}
	return resp, err
}

// plainOK reports whether a host may be spoken to without TLS.
func (r *Registry) plainOK(name string) bool { return r.plain[name] || docker.IsLocalhost(name) }

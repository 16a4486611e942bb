// Package serve is an OCI registry on loopback for measurements: it holds blobs
// in memory, so that dropping the page cache does not make the server slow; it
// answers every kind of range and the referrers API (distribution-spec 1.1); and
// it tells of each request when it came and when its answer was written.
//
// Anybody who reaches it may push. It is for one machine's own measurements.
package serve

import (
	_ "crypto/sha256" // for digest.SHA256
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// maxManifest bounds a manifest that is pushed, maxBlob a blob.
const (
	maxManifest = 8 << 20
	maxBlob     = 8 << 30
)

// A Registry is an http.Handler. Its zero value is empty and works.
type Registry struct {
	// Seen, if not nil, is told of every request twice: when it is understood,
	// and when it is answered. It must not block.
	Seen func(Request)

	last atomic.Int64 // request's number

	mu      sync.Mutex
	repos   map[string]map[string]ocispec.Descriptor // repository → tag or digest → manifest
	blobs   map[digest.Digest]*blob                  // manifests, too
	uploads map[string]*upload
	next    int
}

// A Request is one to a Registry.
type Request struct {
	ID         int64     // the same both times it is seen
	Begin, End time.Time // End is zero while it is not answered; then Status and Bytes are, too
	Method     string
	Repo       string
	Kind       string // "manifest", "blob", "referrers", "upload" or ""
	Target     string // tag or digest
	Range      string // as asked for
	Status     int
	Bytes      int64 // of the body
}

var (
	manifestPath  = regexp.MustCompile(`^/v2/(.+)/manifests/([^/]+)$`)
	blobPath      = regexp.MustCompile(`^/v2/(.+)/blobs/([a-z0-9]+:[0-9a-f]+)$`)
	uploadPath    = regexp.MustCompile(`^/v2/(.+)/blobs/uploads/([^/]*)$`)
	referrersPath = regexp.MustCompile(`^/v2/(.+)/referrers/([a-z0-9]+:[0-9a-f]+)$`)
)

// counter is a ResponseWriter that knows what became of it.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counter) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// problem is an answer that is an error (distribution-spec, error codes).
type problem struct {
	status int
	code   string
	detail string
}

func (p *problem) Error() string { return p.code + ": " + p.detail }

func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	seen := Request{ID: g.last.Add(1), Begin: time.Now(), Method: r.Method, Range: r.Header.Get("Range")}
	seen.Kind, seen.Repo, seen.Target = parsePath(r.URL.Path)
	if g.Seen != nil {
		g.Seen(seen)
	}
	c := &counter{ResponseWriter: w}
	if err := g.route(c, r, seen); err != nil {
		p, ok := errors.AsType[*problem](err)
		if !ok {
			p = &problem{http.StatusInternalServerError, "UNKNOWN", err.Error()}
		}
		c.Header().Set("Content-Type", "application/json")
		c.WriteHeader(p.status)
		json.NewEncoder(c).Encode(map[string]any{"errors": []map[string]string{{"code": p.code, "message": p.detail}}})
	}
	if g.Seen != nil {
		seen.End, seen.Status, seen.Bytes = time.Now(), c.status, c.bytes
		g.Seen(seen)
	}
}

// parsePath returns the parts of a path of the distribution-spec.
func parsePath(path string) (kind, repo, target string) {
	for _, p := range []struct {
		kind string
		re   *regexp.Regexp
	}{{"upload", uploadPath}, {"blob", blobPath}, {"manifest", manifestPath}, {"referrers", referrersPath}} {
		if m := p.re.FindStringSubmatch(path); m != nil {
			return p.kind, m[1], m[2]
		}
	}
	return "", "", ""
}

func (g *Registry) route(w http.ResponseWriter, r *http.Request, q Request) error {
	read := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case r.URL.Path == "/v2/" || r.URL.Path == "/v2":
		w.WriteHeader(http.StatusOK)
		return nil
	case q.Kind == "upload":
		return g.upload(w, r, q.Repo, q.Target)
	case q.Kind == "blob" && read:
		return g.getBlob(w, r, digest.Digest(q.Target))
	case q.Kind == "manifest" && read:
		return g.getManifest(w, r, q.Repo, q.Target)
	case q.Kind == "manifest" && r.Method == http.MethodPut:
		return g.putManifest(w, r, q.Repo, q.Target)
	case q.Kind == "referrers" && read:
		return g.getReferrers(w, r, q.Repo, digest.Digest(q.Target))
	}
	return &problem{http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method + " " + r.URL.Path}
}

// manifest finds a manifest by tag or digest.
func (g *Registry) manifest(repo, target string) (ocispec.Descriptor, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	d, ok := g.repos[repo][target]
	return d, ok
}

func (g *Registry) getManifest(w http.ResponseWriter, r *http.Request, repo, target string) error {
	d, ok := g.manifest(repo, target)
	if !ok {
		return &problem{http.StatusNotFound, "MANIFEST_UNKNOWN", repo + ":" + target}
	}
	b, err := g.bytes(d.Digest)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", d.MediaType)
	w.Header().Set("Docker-Content-Digest", d.Digest.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method == http.MethodGet {
		w.Write(b)
	}
	return nil
}

func (g *Registry) putManifest(w http.ResponseWriter, r *http.Request, repo, target string) error {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
	if err != nil {
		return &problem{http.StatusRequestEntityTooLarge, "SIZE_INVALID", err.Error()}
	}
	d := digest.FromBytes(b)
	if strings.Contains(target, ":") && target != d.String() {
		return &problem{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("%s is %s", target, d)}
	}
	m, err := parseManifest(b)
	if err != nil {
		return &problem{http.StatusBadRequest, "MANIFEST_INVALID", err.Error()}
	}
	for _, need := range m.needs() {
		if !g.has(need) {
			return &problem{http.StatusNotFound, "MANIFEST_BLOB_UNKNOWN", need.String()}
		}
	}
	g.addManifest(repo, target, r.Header.Get("Content-Type"), b)
	if m.Subject != nil {
		w.Header().Set("OCI-Subject", m.Subject.Digest.String())
	}
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Location", "/v2/"+repo+"/manifests/"+d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// addManifest makes a manifest known by its digest and, if target is one, a tag.
func (g *Registry) addManifest(repo, target, mediaType string, b []byte) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: g.addBytes(b), Size: int64(len(b))}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.repos == nil {
		g.repos = make(map[string]map[string]ocispec.Descriptor)
	}
	if g.repos[repo] == nil {
		g.repos[repo] = make(map[string]ocispec.Descriptor)
	}
	g.repos[repo][d.Digest.String()] = d
	g.repos[repo][target] = d
}

// anyManifest has what image manifests and indexes refer to.
type anyManifest struct {
	MediaType    string               `json:"mediaType"`
	ArtifactType string               `json:"artifactType"`
	Config       *ocispec.Descriptor  `json:"config"`
	Layers       []ocispec.Descriptor `json:"layers"`
	Manifests    []ocispec.Descriptor `json:"manifests"`
	Subject      *ocispec.Descriptor  `json:"subject"`
	Annotations  map[string]string    `json:"annotations"`
}

func parseManifest(b []byte) (*anyManifest, error) {
	m := new(anyManifest)
	if err := json.Unmarshal(b, m); err != nil {
		return nil, err
	}
	for _, d := range m.needs() {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("%q: %w", d, err)
		}
	}
	return m, nil
}

func (m *anyManifest) needs() (list []digest.Digest) {
	if m.Config != nil {
		list = append(list, m.Config.Digest)
	}
	for _, d := range append(m.Layers, m.Manifests...) {
		list = append(list, d.Digest)
	}
	return list
}

// artifactType is what a referrer is listed as (distribution-spec, listing referrers).
func (m *anyManifest) artifactType() string {
	if m.ArtifactType == "" && m.Config != nil {
		return m.Config.MediaType
	}
	return m.ArtifactType
}

func (g *Registry) getReferrers(w http.ResponseWriter, r *http.Request, repo string, subject digest.Digest) error {
	want := r.URL.Query().Get("artifactType")
	list, err := g.referrers(repo, subject, want)
	if err != nil {
		return err
	}
	if want != "" {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	return json.NewEncoder(w).Encode(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: list,
	})
}

func (g *Registry) referrers(repo string, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	var all []ocispec.Descriptor
	g.mu.Lock()
	for target, d := range g.repos[repo] {
		if target == d.Digest.String() {
			all = append(all, d)
		}
	}
	g.mu.Unlock()
	list := []ocispec.Descriptor{}
	for _, d := range all {
		b, err := g.bytes(d.Digest)
		if err != nil {
			return nil, err
		}
		m, err := parseManifest(b)
		if err != nil {
			return nil, err
		}
		if m.Subject == nil || m.Subject.Digest != subject || artifactType != "" && m.artifactType() != artifactType {
			continue
		}
		d.ArtifactType, d.Annotations = m.artifactType(), m.Annotations
		list = append(list, d)
	}
	return list, nil
}

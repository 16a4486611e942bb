// Package registry goes from a reference to verified documents and random
// access to stored bytes: [ParseRef] reads a reference, [Registry.Resolve] turns
// it into an [Image] (manifest and config of one platform, their digests
// checked), [Registry.Blob] and [Registry.Stream] read layers, and
// [Registry.Referrers] lists what is attached to an image. A reference names an
// image in a registry, in an OCI layout, or in an archive; all behave alike.
//
// A registry is reached through hosts: the mirrors of containerd's hosts.toml in
// order, then the registry itself. What one host cannot give, the next is asked
// for; what fails for a while is tried again, with growing pauses, until
// [Timeouts].NoProgress has passed without a byte.
//
// Invariants: every document is hashed before it is decoded, and is decoded once
// it is known to be at most [layers.MaxManifest] bytes. Credentials go only to
// the host they are for, never along a redirect to another one. Blobs are sized
// here but hashed by their reader (chunk by chunk, or with [Verify]), because
// ranges cannot be.
package registry

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// DefaultHostDirs are searched for hosts.toml: ours first, then containerd's, so
// that a machine set up for containerd needs nothing of us.
var DefaultHostDirs = []string{"/etc/snapfs/certs.d", "/etc/containerd/certs.d"}

// Options of a Registry. The zero value works: DefaultHostDirs, no credentials.
type Options struct {
	// HostDirs hold HOST/hosts.toml, or HOST/*.crt; the first that knows a host
	// counts. nil is DefaultHostDirs.
	HostDirs []string
	// Credentials returns what to log in with at a host for an image: the next
	// credential that was not refused yet, or the zero value if there is none.
	// Without any, and when all were refused, the registry is asked as by anybody.
	// An error denies the request. It is called by several goroutines at once, and
	// may block; see [DockerCredentials]. nil: no credentials.
	Credentials func(ctx context.Context, ask Ask) (Credential, error)
	// PlainHTTP lists hosts, with their ports, that are spoken to without TLS.
	// Loopback hosts need no mention.
	PlainHTTP []string
	Timeouts  Timeouts
	// Parallel is how many ranges of one blob [Registry.Stream] fetches at the
	// same time. 0 or 1: one request for all of it.
	Parallel int
	// Limit bounds what all downloads together take, bytes per second; 0: no
	// limit. Work under [layers.Background] gets what others leave.
	Limit     int64
	UserAgent string // default "snapfs"
	// SpoolDir holds compressed archives while they are read, in files without
	// names; default os.TempDir.
	SpoolDir string
	// MaxSpool bounds the plain bytes of a compressed archive; default 64 GiB.
	MaxSpool int64
	Log      *slog.Logger // nil discards
	Stats    *Stats       // nil: counted nowhere
}

// Timeouts bound each wait. A zero field has the default given with it.
type Timeouts struct {
	Connect    time.Duration // to connect, and again for the TLS handshake: 10 s
	Header     time.Duration // from a request to its response's header: 15 s
	Stall      time.Duration // of a body in which fewer than 4 KiB come: 10 s
	NoProgress time.Duration // of retries in which nothing comes: 28 s
	Commit     time.Duration // for a registry to store what it was sent: 2 min
	Backoff    time.Duration // first pause before a retry, doubled each time: 100 ms
	MaxBackoff time.Duration // longest pause, also where Retry-After asks for more: 8 s
	Redirect   time.Duration // how long a redirect's target is used again: 5 min
	Down       time.Duration // how long a host that failed is asked after all others: 30 s
	Denied     time.Duration // how long sources of credentials are not asked anew when nothing helped: 3 s
	Attempts   int           // requests to one host without progress: 6
}

func (t Timeouts) withDefaults() Timeouts {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&t.Connect, 10*time.Second)
	def(&t.Header, 15*time.Second)
	def(&t.Stall, 10*time.Second)
	def(&t.NoProgress, 28*time.Second)
	def(&t.Commit, 2*time.Minute)
	def(&t.Backoff, 100*time.Millisecond)
	def(&t.MaxBackoff, 8*time.Second)
	def(&t.Redirect, 5*time.Minute)
	def(&t.Down, 30*time.Second)
	def(&t.Denied, 3*time.Second)
	if t.Attempts <= 0 {
		t.Attempts = 6
	}
	return t
}

// Stats counts what a Registry does.
type Stats struct {
	Requests     atomic.Int64 // HTTP requests, without those for tokens
	Bytes        atomic.Int64 // body bytes received
	Sent         atomic.Int64 // body bytes pushed
	Retries      atomic.Int64 // requests that repeated a failed one
	Failovers    atomic.Int64 // times another host was asked instead
	Refreshes    atomic.Int64 // tokens and credentials replaced because they were refused
	Renewals     atomic.Int64 // tokens and credentials replaced ahead of their end
	Redirects    atomic.Int64 // redirects followed
	Stalls       atomic.Int64 // requests given up because nothing came
	RangeIgnored atomic.Int64 // ranges answered with the whole blob
}

// A Registry reads images by reference. It is safe for concurrent use.
type Registry struct {
	opt   Options
	log   *slog.Logger
	stats *Stats
	plain map[string]bool
	dial  dialFunc // nil: the system's; for tests

	spares spares
	limit  *limiter

	base context.Context // ends at Close; parent of work that outlives its first caller
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu       sync.Mutex
	hosts    map[string][]*host  // by domain
	repos    map[string]*repo    // by domain/path
	archives map[string]*archive // by path
}

// New returns a Registry. It reads no files and contacts nothing.
func New(opt Options) *Registry {
	if opt.HostDirs == nil {
		opt.HostDirs = DefaultHostDirs
	}
	if opt.UserAgent == "" {
		opt.UserAgent = "snapfs"
	}
	if opt.MaxSpool <= 0 {
		opt.MaxSpool = 64 << 30
	}
	opt.Timeouts = opt.Timeouts.withDefaults()
	r := &Registry{
		opt:   opt,
		log:   opt.Log,
		stats: opt.Stats,
		plain: make(map[string]bool),
		limit: newLimiter(opt.Limit),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.stats == nil {
		r.stats = new(Stats)
	}
	for _, h := range opt.PlainHTTP {
		r.plain[h] = true
	}
	r.base, r.stop = context.WithCancel(context.Background())
	r.reset()
	return r
}

func (r *Registry) reset() {
	r.hosts = make(map[string][]*host)
	r.repos = make(map[string]*repo)
	r.archives = make(map[string]*archive)
}

// Reload forgets hosts.toml, tokens and open archives; blobs that are open see
// the new state at their next read.
func (r *Registry) Reload() {
	r.mu.Lock()
	hosts, archives := r.hosts, r.archives
	r.reset()
	r.mu.Unlock()
	for _, hs := range hosts {
		for _, h := range hs {
			h.Client.CloseIdleConnections()
		}
	}
	r.spares.clear()
	for _, a := range slices.Collect(maps.Values(archives)) {
		a.release()
	}
}

// Close drops connections and files. Nothing may be read afterwards.
func (r *Registry) Close() error {
	r.stop()
	r.Reload()
	r.wg.Wait()
	return nil
}

// Resolve returns the image that ref names for a platform ("linux/arm64"; "" is
// the machine's). Manifest and config have been fetched, verified and decoded.
// It fails with ErrNotFound, ErrDenied, ErrUnavailable, ErrBadManifest,
// ErrUnsupported, *PlatformError or *layers.DigestError.
func (r *Registry) Resolve(ctx context.Context, ref Ref, platform string) (*Image, error) {
	return r.ResolveWith(ctx, ref, ResolveOptions{Platform: platform})
}

// ResolveOptions of ResolveWith.
type ResolveOptions struct {
	Platform string // "": the machine's
	// Exact takes the manifest that the reference names, by its digest say,
	// whatever its platform is. Platform chooses from an index.
	Exact bool
	// OnManifest, if not nil, is called as soon as the digest of the image's
	// manifest is known, which for an index is before the manifest is fetched:
	// what depends on the digest alone, [Registry.Referrers] most of all,
	// begins here and costs no round trip of its own. If an index leaves open
	// which manifest is meant it is called for each that is tried; the last one
	// is the image's. It must not block.
	OnManifest func(desc ocispec.Descriptor)
	// OnFetched, if not nil, is called with each of these manifests when it was
	// fetched: what depends on its annotations or layers begins here, beside the
	// config. It must neither block nor change m.
	OnFetched func(m *ocispec.Manifest)
	// Locate finds out where the layers are, while the config is fetched, if
	// the registry redirects to its blobs: then the first read of each goes
	// straight there.
	Locate bool
}

// ResolveWith is Resolve for those who want to begin further work before its
// end. From nothing, it takes at most three round trips: the reference, the
// manifest if that was an index, the config.
func (r *Registry) ResolveWith(ctx context.Context, ref Ref, opt ResolveOptions) (*Image, error) {
	want, err := parsePlatform(opt.Platform)
	if err != nil {
		return nil, err
	}
	img, err := r.resolve(ctx, ref, want, opt)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return img, nil
}

// Blob returns random access to the stored bytes of desc, part of the image ref.
// It contacts nothing and opens no file before the first read, so it works
// after a restart without the network. Reads are retried, not verified.
func (r *Registry) Blob(ref Ref, desc ocispec.Descriptor) (layers.Blob, error) {
	s, err := r.source(ref)
	if err != nil {
		return nil, err
	}
	if err := checkBlobDesc(desc); err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return s.blob(desc), nil
}

// Stream returns the stored bytes of desc from the first to the last. What the
// network interrupts is resumed where it stopped; io.EOF comes only after
// exactly desc.Size bytes. The bytes are not hashed; see [Verify].
func (r *Registry) Stream(ctx context.Context, ref Ref, desc ocispec.Descriptor) (io.ReadCloser, error) {
	s, err := r.source(ref)
	if err != nil {
		return nil, err
	}
	if err := checkBlobDesc(desc); err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return s.stream(ctx, desc)
}

// A source is where the documents and blobs of a reference are. Its blobs are
// read without being hashed; its documents are whole and hash to their descriptor.
type source interface {
	// root returns the document that the reference names, or what stands for it.
	root(ctx context.Context) (document, error)
	// document fetches and verifies a manifest or an index.
	document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	// small fetches and verifies a blob of at most layers.MaxManifest bytes.
	small(ctx context.Context, desc ocispec.Descriptor) ([]byte, error)
	blob(desc ocispec.Descriptor) layers.Blob
	stream(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	// referrers lists what is attached to a manifest, perhaps with entries that
	// do not tell their type.
	referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error)
}

func (r *Registry) source(ref Ref) (source, error) {
	switch ref.Transport {
	case TransportRegistry:
		return &remote{reg: r, ref: ref}, nil
	case TransportOCI:
		return &layout{ref: ref, files: dirFiles(ref.Path)}, nil
	case TransportOCIArchive:
		return &layout{ref: ref, files: archiveFiles{reg: r, path: ref.Path}}, nil
	case TransportDockerArchive:
		return &saved{reg: r, ref: ref}, nil
	}
	return nil, fmt.Errorf("%w: transport %q", ErrBadRef, ref.Transport)
}

// bareClient returns a client that follows no redirect: host.send does, because
// credentials must not go along.
func bareClient(h docker.RegistryHost) *http.Client {
	c := *h.Client
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}

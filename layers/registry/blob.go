package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// A remoteBlob is the stored bytes of one descriptor in a registry.
type remoteBlob struct {
	reg  *Registry
	ref  Ref
	desc ocispec.Descriptor
	// moved, if not nil, is called when a host redirects to where the blob is.
	moved func()
}

// A target is where a host redirected to, most often a signed address.
type target struct {
	url   *url.URL
	until time.Time
}

// targets are where a host has redirected to, by blob. All that read a blob
// share them, so that only the first of them pays for the redirect.
type targets struct {
	mu sync.Mutex
	m  map[digest.Digest]target
}

const maxTargets = 4096

// get returns where a blob is, or nil.
func (t *targets) get(d digest.Digest) *url.URL {
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := t.m[d]; time.Now().Before(at.until) {
		return at.url
	}
	return nil
}

// put remembers where a blob is; nil is that it is not known.
func (t *targets) put(d digest.Digest, u *url.URL, until time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if u == nil {
		delete(t.m, d)
		return
	}
	if len(t.m) >= maxTargets {
		clear(t.m) // each costs one request to find again
	}
	if t.m == nil {
		t.m = make(map[digest.Digest]target)
	}
	t.m[d] = target{u, until}
}

var _ layers.Blob = (*remoteBlob)(nil)

// Size returns the size that the descriptor states.
func (b *remoteBlob) Size() int64 { return b.desc.Size }

// ReadAt reads a range. What one host cannot give or broke off is asked of the
// next, from where it stopped.
func (b *remoteBlob) ReadAt(ctx context.Context, p []byte, off int64) (n int, err error) {
	p, eof, err := clipRange(p, off, b.desc.Size)
	if err != nil || len(p) == 0 {
		return 0, err
	}
	plan, err := b.plan()
	if err != nil {
		return 0, err
	}
	err = plan.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		start := n
		for n < len(p) {
			body, err := b.get(ctx, h, deadline, off+int64(n), off+int64(len(p)), maxSkip)
			if err != nil {
				return int64(n - start), err
			}
			m, err := io.ReadFull(body, p[n:min(len(p), n+int(body.left))])
			n += m
			if cerr := body.Close(); err != nil {
				return int64(n - start), errors.Join(err, cerr)
			}
		}
		return int64(n - start), nil
	})
	if err != nil {
		return n, fmt.Errorf("blob %s: %w", b.desc.Digest, err)
	}
	return n, eof
}

// clipRange shortens p to what lies before size and says whether the end is met.
func clipRange(p []byte, off, size int64) (_ []byte, eof, err error) {
	if off < 0 {
		return nil, nil, fmt.Errorf("read at %d: %w", off, fs.ErrInvalid)
	}
	if off >= size {
		if len(p) == 0 {
			return nil, nil, nil
		}
		return nil, nil, io.EOF
	}
	if int64(len(p)) > size-off {
		return p[:size-off], io.EOF, nil
	}
	return p, nil, nil
}

func (b *remoteBlob) plan() (*plan, error) {
	rp, err := b.reg.repo(b.ref)
	if err != nil {
		return nil, err
	}
	return rp.plan(docker.HostCapabilityPull)
}

// get asks h for the bytes [off, end). The answer may end earlier, never begin
// elsewhere. At most skip bytes are read and dropped where ranges are ignored.
func (b *remoteBlob) get(ctx context.Context, h *repoHost, deadline time.Time, off, end, skip int64) (*ranged, error) {
	if h.noRange.Load() && off > skip {
		return nil, fmt.Errorf("GET %s: %w", cleanURL(h.url("blobs", string(b.desc.Digest))), ErrNoRange)
	}
	header := http.Header{}
	if off > 0 || end < b.desc.Size {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", off, end-1))
	}
	if u := h.targets.get(b.desc.Digest); u != nil {
		resp, _, err := h.send(ctx, &call{method: http.MethodGet, url: u, header: header, deadline: deadline})
		if err == nil {
			return b.check(h, resp, off, end, skip)
		}
		if ctx.Err() != nil {
			return nil, err
		}
		h.moved(b.desc.Digest, nil) // expired, most likely
	}
	c := &call{method: http.MethodGet, url: h.url("blobs", string(b.desc.Digest)), header: header, access: h.pull, deadline: deadline, moved: b.moved}
	resp, to, err := h.send(ctx, c)
	if err != nil {
		return nil, err
	}
	h.moved(b.desc.Digest, to)
	return b.check(h, resp, off, end, skip)
}

// moved notes where the host has redirected to for a blob; nil: nowhere.
func (h *repoHost) moved(d digest.Digest, u *url.URL) {
	now := time.Now()
	h.targets.put(d, u, now.Add(h.repo.reg.opt.Timeouts.Redirect))
	if u != nil {
		h.moves.Store(now.Add(believedFor).UnixNano())
	}
}

// check makes sure that resp is what was asked for, and closes it if not.
func (b *remoteBlob) check(h *repoHost, resp *http.Response, off, end, skip int64) (*ranged, error) {
	body, err := b.accept(h, resp, off, end, skip)
	if err != nil {
		resp.Body.Close()
		h.moved(b.desc.Digest, nil)
		if _, ok := errors.AsType[*bodyError](err); ok {
			return nil, err
		}
		return nil, fmt.Errorf("GET %s: %w", cleanURL(resp.Request.URL), err)
	}
	return body, nil
}

func (b *remoteBlob) accept(h *repoHost, resp *http.Response, off, end, skip int64) (*ranged, error) {
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, fmt.Errorf("%w: content encoding %q", ErrProtocol, clip(e))
	}
	size := b.desc.Size
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != size {
			return nil, &SizeError{From: "body", Want: size, Got: resp.ContentLength}
		}
		if off > 0 || end < size {
			h.noRange.Store(true)
			b.reg.stats.RangeIgnored.Add(1)
			b.reg.log.Debug("range ignored", "host", resp.Request.URL.Host, "layer", b.desc.Digest, "off", off)
		}
		if off > skip {
			return nil, ErrNoRange
		}
		if n, err := io.CopyN(io.Discard, resp.Body, off); err != nil {
			return nil, &bodyError{"GET " + cleanURL(resp.Request.URL), fmt.Errorf("after %d bytes: %w", n, noEOF(err))}
		}
		return newRanged(resp, size-off, resp.ContentLength < 0), nil
	case http.StatusPartialContent:
		first, last, total, err := parseContentRange(resp.Header.Get("Content-Range"))
		switch {
		case err != nil:
			return nil, err
		case total >= 0 && total != size:
			return nil, &SizeError{From: "Content-Range", Want: size, Got: total}
		case first != off || last < off || last >= end:
			return nil, fmt.Errorf("%w: bytes %d-%d instead of %d-%d", ErrProtocol, first, last, off, end-1)
		case resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
			return nil, fmt.Errorf("%w: Content-Length %d of %d bytes", ErrProtocol, resp.ContentLength, last-first+1)
		}
		h.noRange.Store(false)
		return newRanged(resp, last-first+1, resp.ContentLength < 0), nil
	}
	return nil, fmt.Errorf("%w: status %d", ErrProtocol, resp.StatusCode)
}

// parseContentRange reads "bytes FIRST-LAST/TOTAL"; a TOTAL of "*" is -1 (RFC 9110, 14.4).
func parseContentRange(s string) (first, last, total int64, err error) {
	bad := fmt.Errorf("%w: Content-Range %q", ErrProtocol, clip(s))
	s, ok := strings.CutPrefix(s, "bytes ")
	span, whole, ok2 := strings.Cut(s, "/")
	from, to, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, 0, bad
	}
	total = -1
	nums := []struct {
		text string
		p    *int64
	}{{from, &first}, {to, &last}, {whole, &total}}
	for _, n := range nums {
		if n.p == &total && n.text == "*" {
			continue
		}
		v, err := strconv.ParseUint(n.text, 10, 63)
		if err != nil {
			return 0, 0, 0, bad
		}
		*n.p = int64(v)
	}
	if first > last {
		return 0, 0, 0, bad
	}
	return first, last, total, nil
}

// ranged is a body of which exactly left bytes are to come. It never returns
// more; fewer are a *bodyError.
type ranged struct {
	body io.ReadCloser
	from string
	left int64
	open bool // its end is not known from a header: see that nothing follows
}

func newRanged(resp *http.Response, n int64, open bool) *ranged {
	return &ranged{body: resp.Body, from: "GET " + cleanURL(resp.Request.URL), left: n, open: open}
}

func (r *ranged) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, r.end()
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.body.Read(p)
	r.left -= int64(n)
	switch {
	case err == io.EOF && r.left > 0:
		return n, &bodyError{r.from, io.ErrUnexpectedEOF}
	case r.left == 0 && n > 0 && (err == nil || err == io.EOF):
		return n, nil // the end is told by the next Read
	case err == io.EOF:
		return n, nil
	}
	return n, err
}

func (r *ranged) end() error {
	if !r.open {
		return io.EOF
	}
	var one [1]byte
	if n, err := io.ReadFull(r.body, one[:]); n > 0 {
		return fmt.Errorf("%s: %w: more bytes than announced", r.from, ErrProtocol)
	} else if err != io.EOF {
		return err
	}
	return io.EOF
}

func (r *ranged) Close() error { return r.body.Close() }

// noEOF makes an end that came too early an error.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// checkBlobDesc refuses descriptors that cannot be read safely.
func checkBlobDesc(desc ocispec.Descriptor) error {
	if desc.Digest.Validate() != nil {
		return badDigest("a blob", desc.Digest)
	}
	if desc.Size < 0 || desc.Size > layers.MaxFile {
		return fmt.Errorf("blob %s: %w: size %d", desc.Digest, ErrBadManifest, desc.Size)
	}
	return nil
}

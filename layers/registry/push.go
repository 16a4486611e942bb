package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/layers"
)

// pushAtOnce is how many blobs are pushed at the same time.
const pushAtOnce = 4

// A Source is an image to push: its blobs, and the documents that name them.
type Source struct {
	Root     Document   // what the destination's tag is to name
	Children []Document // where Root is an index: the manifests it lists that are pushed with it
	Blobs    []SourceBlob
}

// A Document is a manifest or an index, byte for byte. Desc.MediaType is how it is pushed.
type Document struct {
	Desc ocispec.Descriptor
	Raw  []byte
}

// A SourceBlob is a layer or config to push.
type SourceBlob struct {
	Desc ocispec.Descriptor
	// Open returns the blob from its first byte; it may be called again after
	// a failure. What it gives is verified on the way.
	Open func(ctx context.Context) (io.ReadCloser, error)
	// From, if it is on the registry that is pushed to, is a repository that
	// has the blob: it is mounted from there instead of being sent.
	From Ref
}

// PushProgress is a step of a push.
type PushProgress struct {
	Desc ocispec.Descriptor
	Off  int64  // bytes sent; back at 0 when a try failed
	Done bool   // it is at the destination
	How  string // when Done: "exists", "mounted" or "pushed"
}

// Source is m as something to push. Its layers are read from where m is.
func (m *Image) Source() *Source {
	s := &Source{Root: Document{m.Desc, m.RawManifest}}
	s.Blobs = append(s.Blobs, BytesBlob(m.Manifest.Config, m.RawConfig))
	for _, l := range m.Manifest.Layers {
		s.Blobs = append(s.Blobs, SourceBlob{
			Desc: l,
			Open: func(ctx context.Context) (io.ReadCloser, error) { return m.Stream(ctx, l) },
			From: m.Ref,
		})
	}
	return s
}

// BytesBlob is a blob in memory.
func BytesBlob(desc ocispec.Descriptor, raw []byte) SourceBlob {
	return SourceBlob{Desc: desc, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(raw)), nil
	}}
}

// Push puts an image at dst, a registry or an OCI layout, which is made if it
// does not exist. What is there already is not sent again. progress, if not
// nil, is called by one goroutine at a time. It returns the descriptor that dst now names.
func (r *Registry) Push(ctx context.Context, dst Ref, src *Source, progress func(PushProgress)) (ocispec.Descriptor, error) {
	desc := src.Root.Desc
	if dst.Digest != "" && dst.Digest != desc.Digest {
		return desc, fmt.Errorf("push %s: %w: the image is %s", dst, ErrBadRef, desc.Digest)
	}
	for _, d := range append(slices.Clone(src.Children), src.Root) {
		if err := verify(d.Raw, d.Desc, "manifest"); err != nil {
			return desc, fmt.Errorf("push %s: %w", dst, err)
		}
	}
	to, err := r.sink(dst)
	if err == nil {
		err = push(ctx, to, src, oneByOne(progress))
		err = errors.Join(err, to.close())
	}
	if err != nil {
		return desc, fmt.Errorf("push %s: %w", dst, err)
	}
	return desc, nil
}

func (r *Registry) sink(dst Ref) (sink, error) {
	switch dst.Transport {
	case TransportRegistry:
		return r.upload(dst)
	case TransportOCI:
		return openLayout(dst)
	}
	return nil, fmt.Errorf("%w: only registries and OCI layouts are pushed to", ErrUnsupported)
}

// A sink is where images are pushed to. Everything that a document names is
// there before the document.
type sink interface {
	// blob stores a blob and says how; sent is called with each number of bytes.
	blob(ctx context.Context, b SourceBlob, sent func(off int64)) (how string, err error)
	// document stores a child, or, last, the root.
	document(ctx context.Context, d Document, root bool) error
	// refer stores the manifest d of an artifact, described by desc, and sees to
	// it that it is listed among the referrers of subject. Those of the same
	// type that drop picks are taken off the list, where it is ours to write.
	refer(ctx context.Context, d Document, desc ocispec.Descriptor, subject digest.Digest, drop func(ocispec.Descriptor) bool) error
	close() error
}

// oneByOne makes progress, which may be nil, safe for concurrent use.
func oneByOne(progress func(PushProgress)) func(PushProgress) {
	if progress == nil {
		return func(PushProgress) {}
	}
	var mu sync.Mutex
	return func(p PushProgress) {
		mu.Lock()
		defer mu.Unlock()
		progress(p)
	}
}

func push(ctx context.Context, to sink, src *Source, say func(PushProgress)) error {
	if err := pushBlobs(ctx, to, src.Blobs, say); err != nil {
		return err
	}
	for _, d := range src.Children {
		if err := to.document(ctx, d, false); err != nil {
			return fmt.Errorf("manifest %s: %w", d.Desc.Digest, err)
		}
	}
	if err := to.document(ctx, src.Root, true); err != nil {
		return fmt.Errorf("manifest %s: %w", src.Root.Desc.Digest, err)
	}
	say(PushProgress{Desc: src.Root.Desc, Off: src.Root.Desc.Size, Done: true, How: "pushed"})
	return nil
}

// pushBlobs pushes each blob once, several at the same time.
func pushBlobs(ctx context.Context, to sink, blobs []SourceBlob, say func(PushProgress)) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(pushAtOnce)
	seen := make(map[digest.Digest]bool)
	for _, b := range blobs {
		if seen[b.Desc.Digest] {
			continue
		}
		seen[b.Desc.Digest] = true
		g.Go(func() error {
			if err := checkBlobDesc(b.Desc); err != nil {
				return err
			}
			how, err := to.blob(gctx, b, func(off int64) { say(PushProgress{Desc: b.Desc, Off: off}) })
			if err != nil {
				return fmt.Errorf("blob %s: %w", b.Desc.Digest, err)
			}
			say(PushProgress{Desc: b.Desc, Off: b.Desc.Size, Done: true, How: how})
			return nil
		})
	}
	return g.Wait()
}

// open returns b's bytes, verified, and told to sent as they are read.
func (b SourceBlob) open(ctx context.Context, sent func(int64)) (io.ReadCloser, error) {
	rc, err := b.Open(ctx)
	if err != nil {
		return nil, &sourceError{err}
	}
	return &counted{rc: Verify(rc, b.Desc), sent: sent}, nil
}

// A sourceError is a failure to read what is to be pushed. It is not the
// destination's, and trying that again does not help.
type sourceError struct{ err error }

func (e *sourceError) Error() string { return "read: " + e.err.Error() }
func (e *sourceError) Unwrap() error { return e.err }

type counted struct {
	rc   io.ReadCloser
	n    int64
	sent func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.rc.Read(p)
	c.n += int64(n)
	c.sent(c.n)
	if err != nil && err != io.EOF {
		err = &sourceError{err}
	}
	return n, err
}

func (c *counted) Close() error { return c.rc.Close() }

// uploader pushes to one repository of a registry.
type uploader struct {
	reg *Registry
	ref Ref
	rp  *repo
}

func (r *Registry) upload(dst Ref) (*uploader, error) {
	rp, err := r.repo(dst)
	if err != nil {
		return nil, err
	}
	return &uploader{r, dst, rp}, nil
}

func (u *uploader) close() error { return nil }

// run tries op on the first host that takes pushes: all of an image must go to
// the same one.
func (u *uploader) run(ctx context.Context, op func(h *repoHost, deadline time.Time) (sent int64, err error)) error {
	p, err := u.rp.plan(docker.HostCapabilityPush)
	if err != nil {
		return err
	}
	p.hosts = p.hosts[:1]
	return p.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		sent, err := op(h, deadline)
		if se, ok := errors.AsType[*sourceError](err); ok {
			return 0, &finalError{se}
		}
		if sent >= minProgress {
			p.last = time.Now() // it was no silence; but the next try begins at 0, so it still counts as one
		}
		return 0, err
	})
}

// A finalError is not tried again.
type finalError struct{ err error }

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

func (u *uploader) blob(ctx context.Context, b SourceBlob, sent func(int64)) (how string, err error) {
	err = u.run(ctx, func(h *repoHost, deadline time.Time) (n int64, err error) {
		ok, err := u.exists(ctx, h, deadline, b.Desc)
		if err != nil || ok {
			how = "exists"
			return 0, err
		}
		loc, err := u.begin(ctx, h, deadline, b)
		if err != nil || loc == nil {
			how = "mounted"
			return 0, err
		}
		how = "pushed"
		var last atomic.Int64 // the transport's goroutine calls back
		err = u.send(ctx, h, deadline, b, loc, func(off int64) {
			last.Store(off)
			sent(off)
		})
		return last.Load(), err
	})
	return how, err
}

// exists asks whether the repository has a blob. A redirect says so too.
func (u *uploader) exists(ctx context.Context, h *repoHost, deadline time.Time, desc ocispec.Descriptor) (bool, error) {
	resp, _, err := h.send(ctx, &call{method: http.MethodHead, url: h.url("blobs", string(desc.Digest)), access: h.push, deadline: deadline})
	if err == nil {
		resp.Body.Close()
		return resp.ContentLength < 0 || resp.ContentLength == desc.Size, nil
	}
	se, ok := errors.AsType[*StatusError](err)
	switch {
	case ok && isRedirect(se.Code):
		return true, nil
	case ok && (errors.Is(se, ErrNotFound) || se.Code == http.StatusMethodNotAllowed):
		return false, nil
	}
	return false, err
}

// begin opens an upload and returns where it goes, or nil if the blob has been
// mounted instead.
func (u *uploader) begin(ctx context.Context, h *repoHost, deadline time.Time, b SourceBlob) (*url.URL, error) {
	c := &call{method: http.MethodPost, url: h.url("blobs", "uploads/"), access: h.push, deadline: deadline}
	mount := b.From.IsRemote() && b.From.Domain == u.ref.Domain && b.From.Repo != u.ref.Repo
	if mount {
		m := *c
		from := *c.url
		q := from.Query()
		q.Set("mount", string(b.Desc.Digest))
		q.Set("from", b.From.Repo)
		from.RawQuery = q.Encode()
		m.url, m.scopes = &from, []string{"repository:" + b.From.Repo + ":pull"}
		resp, _, err := h.send(ctx, &m)
		if err == nil {
			defer resp.Body.Close()
			if resp.StatusCode == http.StatusCreated {
				return nil, nil
			}
			return location(c.url, resp)
		}
		if ok, _ := transient(err); ok || ctx.Err() != nil {
			return nil, err
		} // no right to the other repository, most likely
	}
	resp, _, err := h.send(ctx, c)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return location(c.url, resp)
}

// location is where an opened upload goes.
func location(from *url.URL, resp *http.Response) (*url.URL, error) {
	loc, err := resp.Location()
	if err != nil {
		return nil, fmt.Errorf("POST %s: %w: %w", cleanURL(from), ErrProtocol, err)
	}
	if loc.Scheme != "https" && (loc.Scheme != "http" || resp.Request.URL.Scheme == "https") {
		return nil, fmt.Errorf("POST %s: %w: upload to %s", cleanURL(from), ErrProtocol, clip(cleanURL(loc)))
	}
	return loc, nil
}

func (u *uploader) send(ctx context.Context, h *repoHost, deadline time.Time, b SourceBlob, loc *url.URL, sent func(int64)) error {
	q := loc.Query()
	q.Set("digest", string(b.Desc.Digest))
	loc.RawQuery = q.Encode()
	c := &call{
		method:   http.MethodPut,
		url:      loc,
		header:   http.Header{"Content-Type": {"application/octet-stream"}},
		body:     func() (io.ReadCloser, error) { return b.open(ctx, sent) },
		size:     b.Desc.Size,
		deadline: deadline,
	}
	if loc.Host == h.Host {
		c.access = h.push
	}
	resp, _, err := h.send(ctx, c)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

func (u *uploader) document(ctx context.Context, d Document, root bool) error {
	name := string(d.Desc.Digest)
	if root && u.ref.Tag != "" {
		name = u.ref.Tag
	}
	return u.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		_, err := h.put(ctx, deadline, name, d, nil)
		return 0, err
	})
}

// put stores a document under a tag or its digest, and returns the header of the answer.
func (h *repoHost) put(ctx context.Context, deadline time.Time, name string, d Document, header http.Header) (http.Header, error) {
	c := &call{
		method:   http.MethodPut,
		url:      h.url("manifests", name),
		header:   http.Header{"Content-Type": {d.Desc.MediaType}},
		body:     func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d.Raw)), nil },
		size:     int64(len(d.Raw)),
		access:   h.push,
		deadline: deadline,
	}
	maps.Copy(c.header, header)
	resp, _, err := h.send(ctx, c)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if got := digest.Digest(resp.Header.Get("Docker-Content-Digest")); got.Validate() == nil && got != d.Desc.Digest {
		return nil, &finalError{&layers.DigestError{Want: d.Desc.Digest, Got: got, From: "PUT " + cleanURL(resp.Request.URL)}}
	}
	return resp.Header, nil
}

// notExist reports whether err says that a file is not there.
func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

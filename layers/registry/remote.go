package registry

import (
	"context"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// remote is an image in a registry.
type remote struct {
	reg *Registry
	ref Ref
	// moved, if not nil, is called when a small blob turns out to be elsewhere.
	moved func()
}

var _ source = (*remote)(nil)

func (s *remote) root(ctx context.Context) (document, error) {
	if s.ref.Digest != "" {
		return s.manifest(ctx, docker.HostCapabilityPull, ocispec.Descriptor{Digest: s.ref.Digest})
	}
	return s.manifest(ctx, docker.HostCapabilityPull|docker.HostCapabilityResolve, ocispec.Descriptor{})
}

func (s *remote) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > layers.MaxManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes: %w", ErrBadManifest, desc.Size, layers.ErrTooLarge)
	}
	doc, err := s.manifest(ctx, docker.HostCapabilityPull, desc)
	return doc.raw, err
}

// manifest fetches the document want, or that of the reference's tag if want
// has no digest. One GET does it: a HEAD first would cost a round trip.
func (s *remote) manifest(ctx context.Context, caps docker.HostCapabilities, want ocispec.Descriptor) (document, error) {
	rp, err := s.reg.repo(s.ref)
	if err != nil {
		return document{}, err
	}
	plan, err := rp.plan(caps)
	if err != nil {
		return document{}, err
	}
	name := s.ref.Tag
	if want.Digest != "" {
		name = string(want.Digest)
	}
	accept := slices.Clone(manifestTypes)
	if want.MediaType != "" {
		accept = []string{want.MediaType}
	}
	var doc document
	err = plan.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		// Plain HTTP is HTTP/1.1; a loopback host of which nothing else is known may be.
		ctx := withSpares(ctx, h.Scheme == "http" || docker.IsLocalhost(h.Host))
		c := &call{
			method:   http.MethodGet,
			url:      h.url("manifests", name),
			header:   http.Header{"Accept": {strings.Join(append(accept, "*/*"), ", ")}},
			access:   h.pull,
			deadline: deadline,
		}
		resp, _, err := h.send(ctx, c)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		doc, err = readDocument(resp, want)
		if err != nil {
			return 0, fmt.Errorf("GET %s: %w", cleanURL(c.url), err)
		}
		return 0, nil
	})
	return doc, err
}

// readDocument reads a manifest or index and checks that it is want, or, where
// that has no digest, what the server says it is.
func readDocument(resp *http.Response, want ocispec.Descriptor) (document, error) {
	raw, err := readSmall(resp, layers.MaxManifest)
	if err != nil {
		return document{}, err
	}
	if want.Digest == "" {
		want.Digest = digest.FromBytes(raw)
		said := digest.Digest(resp.Header.Get("Docker-Content-Digest"))
		if said != "" && said.Validate() == nil {
			want.Digest = said
		}
	}
	if err := verify(raw, want, "manifest"); err != nil {
		return document{}, err
	}
	want.Size = int64(len(raw))
	if want.MediaType == "" {
		want.MediaType = contentType(resp.Header.Get("Content-Type"))
	}
	return document{desc: want, raw: raw}, nil
}

// contentType is the media type of a document as a server tells it, or "" if it
// tells only that it is some text: then the document's own counts.
func contentType(s string) string {
	t, _, err := mime.ParseMediaType(s)
	if err != nil {
		return ""
	}
	switch t {
	case "text/plain", "application/json", "application/octet-stream":
		return ""
	}
	return t
}

// readSmall reads a whole body of at most limit bytes.
func readSmall(resp *http.Response, limit int64) ([]byte, error) {
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return nil, fmt.Errorf("%w: content encoding %q", ErrProtocol, clip(e))
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%w: status %d", ErrProtocol, resp.StatusCode)
	}
	if resp.ContentLength > limit {
		return nil, fmt.Errorf("%w: document of %d bytes: %w", ErrBadManifest, resp.ContentLength, layers.ErrTooLarge)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%w: document of more than %d bytes: %w", ErrBadManifest, limit, layers.ErrTooLarge)
	}
	return raw, nil
}

func (s *remote) small(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > layers.MaxManifest {
		return nil, fmt.Errorf("%w: document of %d bytes: %w", ErrBadManifest, desc.Size, layers.ErrTooLarge)
	}
	b := &remoteBlob{reg: s.reg, ref: s.ref, desc: desc, moved: s.moved}
	plan, err := b.plan()
	if err != nil {
		return nil, err
	}
	raw := make([]byte, desc.Size)
	err = plan.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		body, err := b.get(ctx, h, deadline, 0, desc.Size, 0)
		if err != nil {
			return 0, err
		}
		defer body.Close()
		if _, err := io.ReadFull(body, raw); err != nil {
			return 0, err
		}
		if err := verify(raw, desc, "GET "+cleanURL(h.url("blobs", string(desc.Digest)))); err != nil {
			return 0, err // of this host; another may have the right bytes
		}
		if err := body.end(); err != io.EOF {
			return 0, err
		}
		return 0, nil
	})
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	return raw, nil
}

func (s *remote) blob(desc ocispec.Descriptor) layers.Blob {
	return &remoteBlob{reg: s.reg, ref: s.ref, desc: desc}
}

func (s *remote) stream(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	return (&remoteBlob{reg: s.reg, ref: s.ref, desc: desc}).stream(ctx)
}

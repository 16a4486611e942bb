package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/layers"
)

const (
	maxReferrers = 4096 // of one manifest, that are kept
	maxPages     = 32   // of a list of referrers
	maxLookups   = 16   // artifact manifests fetched because a list does not say enough of them

	// referrersPatience is how long a list is tried for: an image can be used
	// without what is attached to it, and somebody waits for its start.
	referrersPatience = 6 * time.Second
)

// Referrers returns what is attached to the manifest subject in the repository or
// layout of ref: artifact manifests that have it as their subject, of one
// artifactType, or of any if that is "". There may be none. Each descriptor has
// ArtifactType and the artifact manifest's annotations. Their order means
// nothing, and what they say is the host's word until [Registry.Artifact] has
// fetched the manifest.
//
// A registry is asked by the referrers API, and where it has none, for the tag
// that stands in for it (distribution-spec 1.1, "Listing Referrers" and
// "Referrers Tag Schema"). Which it is, is remembered per host; until it is
// known, both are asked at the same time, to save a round trip. A registry that
// is out of order is given six seconds.
func (r *Registry) Referrers(ctx context.Context, ref Ref, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	if err := subject.Validate(); err != nil {
		return nil, fmt.Errorf("%s: referrers: %w", ref, badDigest("the manifest", subject))
	}
	s, err := r.source(ref)
	if err != nil {
		return nil, err
	}
	list, err := s.referrers(ctx, subject, artifactType)
	if err == nil {
		list, err = r.lookUp(ctx, s, list, subject, artifactType)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: referrers of %s: %w", ref, subject, err)
	}
	return list, nil
}

// An Artifact is the verified manifest of something attached to an image.
type Artifact struct {
	Desc     ocispec.Descriptor // with ArtifactType and Annotations as the manifest has them
	Manifest ocispec.Manifest
	Raw      []byte
}

// Artifact fetches the artifact manifest desc and verifies that it is what desc
// says and that it refers to subject. Its blobs are read with [Registry.Blob]
// and [Registry.Stream].
func (r *Registry) Artifact(ctx context.Context, ref Ref, desc ocispec.Descriptor, subject digest.Digest) (*Artifact, error) {
	s, err := r.source(ref)
	if err != nil {
		return nil, err
	}
	a, err := artifact(ctx, s, desc, subject)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", ref, err)
	}
	return a, nil
}

// Document fetches the manifest that desc names, whatever it is of, from the
// repository or layout of ref. Its digest is verified, and its size if desc has
// one; it has at most layers.MaxManifest bytes.
func (r *Registry) Document(ctx context.Context, ref Ref, desc ocispec.Descriptor) ([]byte, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", ref, badDigest("the document", desc.Digest))
	}
	s, err := r.source(ref)
	if err != nil {
		return nil, err
	}
	raw, err := s.document(ctx, desc)
	if err != nil {
		return nil, fmt.Errorf("%s: document %s: %w", ref, desc.Digest, err)
	}
	return raw, nil
}

func artifact(ctx context.Context, s source, desc ocispec.Descriptor, subject digest.Digest) (*Artifact, error) {
	if !listable(desc) {
		return nil, fmt.Errorf("artifact %s: %w: size %d, media type %q", clip(string(desc.Digest)), ErrBadManifest, desc.Size, clip(desc.MediaType))
	}
	raw, err := s.document(ctx, ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size})
	if err != nil {
		return nil, fmt.Errorf("artifact %s: %w", desc.Digest, err)
	}
	m, err := parseArtifact(raw)
	if err == nil && m.Subject.Digest != subject {
		err = fmt.Errorf("%w: its subject is %s", ErrBadManifest, m.Subject.Digest)
	}
	if err == nil && desc.ArtifactType != "" && desc.ArtifactType != ocispec.MediaTypeEmptyJSON && desc.ArtifactType != m.ArtifactType {
		err = fmt.Errorf("%w: artifact type is %q, said to be %q", ErrBadManifest, clip(m.ArtifactType), clip(desc.ArtifactType))
	}
	if err != nil {
		return nil, fmt.Errorf("artifact %s: %w", desc.Digest, err)
	}
	return &Artifact{Desc: describeArtifact(m, raw), Manifest: *m, Raw: raw}, nil
}

func describeArtifact(m *ocispec.Manifest, raw []byte) ocispec.Descriptor {
	d := describe(ocispec.MediaTypeImageManifest, raw)
	d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
	return d
}

// parseArtifact decodes an artifact manifest that refers to something. Its type
// is set, also where it is only told by the config, as before OCI 1.1.
func parseArtifact(raw []byte) (*ocispec.Manifest, error) {
	if len(raw) > layers.MaxManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes: %w", ErrBadManifest, len(raw), layers.ErrTooLarge)
	}
	has, err := members(raw, "schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations", "manifests")
	if err != nil {
		return nil, err
	}
	m := new(ocispec.Manifest)
	if err := json.Unmarshal(raw, m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBadManifest, err)
	}
	switch {
	case m.SchemaVersion != 2 || has["manifests"] || m.MediaType != "" && m.MediaType != ocispec.MediaTypeImageManifest:
		return nil, fmt.Errorf("%w: not an artifact manifest: media type %q", ErrUnsupported, clip(m.MediaType))
	case m.Subject == nil:
		return nil, fmt.Errorf("%w: no subject", ErrBadManifest)
	case m.Subject.Digest.Validate() != nil:
		return nil, badDigest("the subject", m.Subject.Digest)
	case len(m.Layers) > maxLayers:
		return nil, fmt.Errorf("%w: %d blobs: %w", ErrBadManifest, len(m.Layers), layers.ErrTooLarge)
	}
	for _, d := range append(slices.Clone(m.Layers), m.Config) {
		if err := checkBlobDesc(d); err != nil {
			return nil, err
		}
	}
	if m.ArtifactType == "" {
		m.ArtifactType = m.Config.MediaType
	}
	return m, nil
}

// parseReferrers decodes a list of referrers, and leaves out entries that can be
// none: they may be of another tool, or for a newer version of us.
func parseReferrers(raw []byte) ([]ocispec.Descriptor, error) {
	if len(raw) > layers.MaxManifest {
		return nil, fmt.Errorf("%w: list of %d bytes: %w", ErrBadManifest, len(raw), layers.ErrTooLarge)
	}
	has, err := members(raw, "schemaVersion", "mediaType", "manifests", "config", "layers")
	if err != nil {
		return nil, err
	}
	var ix struct {
		SchemaVersion int                  `json:"schemaVersion"`
		MediaType     string               `json:"mediaType"`
		Manifests     []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &ix); err != nil {
		return nil, fmt.Errorf("%w: list of referrers: %w", ErrBadManifest, err)
	}
	if ix.SchemaVersion != 2 || ix.MediaType != "" && ix.MediaType != ocispec.MediaTypeImageIndex || has["config"] || has["layers"] {
		return nil, fmt.Errorf("%w: list of referrers: not an image index: media type %q", ErrBadManifest, clip(ix.MediaType))
	}
	var list []ocispec.Descriptor
	seen := make(map[digest.Digest]bool)
	for _, d := range ix.Manifests {
		if !listable(d) || seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		list = append(list, ocispec.Descriptor{
			MediaType: d.MediaType, Digest: d.Digest, Size: d.Size,
			ArtifactType: d.ArtifactType, Annotations: d.Annotations,
		})
	}
	if len(list) > maxReferrers {
		return nil, fmt.Errorf("%w: %d referrers: %w", ErrBadManifest, len(list), layers.ErrTooLarge)
	}
	return list, nil
}

// listable reports whether d can be an artifact manifest.
func listable(d ocispec.Descriptor) bool {
	return d.MediaType == ocispec.MediaTypeImageManifest && d.Digest.Validate() == nil && d.Size > 0 && d.Size <= layers.MaxManifest
}

// wanted keeps the entries of a type, and those that do not tell theirs. Some
// registries name the config's type instead, which of an artifact is the empty one.
func wanted(list []ocispec.Descriptor, artifactType string) []ocispec.Descriptor {
	return slices.DeleteFunc(list, func(d ocispec.Descriptor) bool {
		return artifactType != "" && d.ArtifactType != artifactType && !mute(d)
	})
}

func mute(d ocispec.Descriptor) bool {
	return d.ArtifactType == "" || d.ArtifactType == ocispec.MediaTypeEmptyJSON
}

// lookUp completes a list: it fetches the manifests of entries without a type or
// without annotations. Those that are not what the list says are left out; that
// is an error only if nothing remains.
func (r *Registry) lookUp(ctx context.Context, s source, list []ocispec.Descriptor, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	type result struct {
		desc ocispec.Descriptor
		err  error
	}
	got := make([]result, len(list))
	var g errgroup.Group
	g.SetLimit(4)
	lookups := 0
	for i, d := range list {
		got[i].desc = d
		if !mute(d) && d.Annotations != nil {
			continue
		}
		if lookups++; lookups > maxLookups {
			got[i].err = fmt.Errorf("%w: more than %d referrers without annotations: %w", ErrBadManifest, maxLookups, layers.ErrTooLarge)
			continue
		}
		g.Go(func() error {
			a, err := artifact(ctx, s, d, subject)
			if err != nil {
				got[i].err = err
			} else {
				got[i].desc = a.Desc
			}
			return nil
		})
	}
	g.Wait() // the errors are in got
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	var found []ocispec.Descriptor
	var failed error
	for _, g := range got {
		switch {
		case g.err != nil:
			r.log.Debug("referrer left out", "digest", g.desc.Digest, "err", g.err)
			failed = g.err
		case artifactType == "" || g.desc.ArtifactType == artifactType:
			found = append(found, g.desc)
		}
	}
	if len(found) == 0 {
		return nil, failed
	}
	return found, nil
}

// referrersTag is the tag that lists the referrers of a manifest where there is
// no API (distribution-spec 1.1, "Referrers Tag Schema").
func referrersTag(d digest.Digest) string {
	algorithm, encoded := d.Algorithm().String(), d.Encoded()
	return algorithm[:min(len(algorithm), 32)] + "-" + encoded[:min(len(encoded), 64)]
}

// isReferrersTag reports whether a tag may be a referrersTag.
func isReferrersTag(tag string) bool {
	algorithm, encoded, ok := strings.Cut(tag, "-")
	return ok && (algorithm == "sha256" || algorithm == "sha512") && len(encoded) == 64 && strings.Trim(encoded, "0123456789abcdef") == ""
}

// referrersBy is what is known of a host: whether it has the referrers API.
type referrersBy struct {
	api, tag atomic.Int64 // unix nanoseconds until which that is believed
}

func (b *referrersBy) learn(api bool) {
	until := time.Now().Add(believedFor).UnixNano()
	if api {
		b.api.Store(until)
		b.tag.Store(0)
		return
	}
	b.tag.Store(until)
	b.api.Store(0)
}

func (b *referrersBy) known() (api, tag bool) {
	now := time.Now().UnixNano()
	return now < b.api.Load(), now < b.tag.Load()
}

// errNoAPI says that a host has no referrers API.
var errNoAPI = fmt.Errorf("no referrers API: %w", ErrUnsupported)

func (s *remote) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	rp, err := s.reg.repo(s.ref)
	if err != nil {
		return nil, err
	}
	list := (*repoHost).referrers
	p, err := rp.plan(docker.HostCapabilityReferrers)
	if err != nil { // hosts.toml allows no host to be asked; a tag is another thing
		list = (*repoHost).listByTag
		p, err = rp.plan(docker.HostCapabilityPull | docker.HostCapabilityResolve)
	}
	if err != nil {
		return nil, err
	}
	p.patience = min(p.patience, referrersPatience)
	var found []ocispec.Descriptor
	err = p.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		found, err = list(h, ctx, deadline, subject, artifactType)
		return 0, err
	})
	if errors.Is(err, ErrNotFound) { // the last host's word: no tag
		return nil, nil
	}
	return found, err
}

// referrers asks a host by the API or the tag, whichever it has.
func (h *repoHost) referrers(ctx context.Context, deadline time.Time, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	api, tag := h.referrersBy.known()
	if tag {
		return h.listByTag(ctx, deadline, subject, artifactType)
	}
	type answer struct {
		list []ocispec.Descriptor
		err  error
	}
	byTag := make(chan answer, 1)
	reg := h.repo.reg
	ask := func(ctx context.Context) {
		list, err := h.listByTag(ctx, deadline, subject, artifactType)
		byTag <- answer{list, err}
	}
	if !api {
		// It is not called off when the API answers: that would cost the connection.
		reg.wg.Go(func() { ask(reg.base) })
	}
	list, err := h.listByAPI(ctx, deadline, subject, artifactType)
	if !errors.Is(err, errNoAPI) {
		if err == nil {
			h.referrersBy.learn(true)
		}
		return list, err
	}
	if !errors.Is(err, errNoRepo) {
		h.referrersBy.learn(false)
	}
	reg.log.Debug("no referrers API", "host", h.Host, "err", err)
	if api {
		ask(ctx)
	}
	select {
	case a := <-byTag:
		return a.list, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// listByAPI reads all pages of the API's answer. It is errNoAPI if the host does
// not know the API: by a status, or because it answers with something else.
func (h *repoHost) listByAPI(ctx context.Context, deadline time.Time, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	at := h.url("referrers", string(subject))
	home := path.Clean("/" + at.Path)
	if artifactType != "" {
		q := at.Query()
		q.Set("artifactType", artifactType)
		at.RawQuery = q.Encode()
	}
	var found []ocispec.Descriptor
	left := int64(layers.MaxManifest)
	for i := range maxPages {
		list, next, n, err := h.page(ctx, deadline, at, left)
		if i > 0 && errors.Is(err, errNoAPI) {
			err = fmt.Errorf("%w: page %d: %v", ErrProtocol, i+1, err)
		}
		if err != nil {
			return nil, err
		}
		left -= n
		// Also where OCI-Filters-Applied says that it is done.
		found = append(found, wanted(list, artifactType)...)
		if next == nil {
			return found, nil
		}
		if path.Clean("/"+next.Path) != home {
			return nil, fmt.Errorf("GET %s: %w: the next page is at %s", cleanURL(at), ErrProtocol, clip(cleanURL(next)))
		}
		at = next
	}
	return nil, fmt.Errorf("GET %s: %w: more than %d pages: %w", cleanURL(at), ErrProtocol, maxPages, layers.ErrTooLarge)
}

// page reads one page of at most limit bytes, and says where the next is and how
// long this one was.
func (h *repoHost) page(ctx context.Context, deadline time.Time, at *url.URL, limit int64) ([]ocispec.Descriptor, *url.URL, int64, error) {
	resp, _, err := h.send(ctx, &call{
		method: http.MethodGet, url: at, access: h.pull, deadline: deadline,
		header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
	})
	if err != nil {
		return nil, nil, 0, noAPI(err)
	}
	defer resp.Body.Close()
	fail := func(err error) ([]ocispec.Descriptor, *url.URL, int64, error) {
		return nil, nil, 0, fmt.Errorf("GET %s: %w", cleanURL(at), err)
	}
	if t := contentType(resp.Header.Get("Content-Type")); t != "" && t != ocispec.MediaTypeImageIndex {
		return fail(fmt.Errorf("%w: content type %q", errNoAPI, clip(t)))
	}
	raw, err := readSmall(resp, limit)
	if err != nil {
		return fail(err)
	}
	list, err := parseReferrers(raw)
	if err != nil {
		return fail(err)
	}
	next, err := nextPage(at, resp.Header.Values("Link"))
	if err != nil {
		return fail(err)
	}
	return list, next, int64(len(raw)), nil
}

// errNoRepo is an errNoAPI that is about the repository, not the host.
var errNoRepo = errors.New("no such repository")

// noAPI makes errors that mean "I do not know this" an errNoAPI. Only 404 is in
// the specification; the others come from proxies and from registries that
// match paths.
func noAPI(err error) error {
	se, ok := errors.AsType[*StatusError](err)
	if !ok {
		return err
	}
	switch se.Code {
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone, http.StatusNotImplemented:
		if strings.HasPrefix(se.Detail, "name_unknown") {
			err = fmt.Errorf("%w: %w", errNoRepo, err)
		}
		return noAPIError{err}
	}
	return err
}

// noAPIError is an errNoAPI that is no ErrNotFound, whatever its status: the
// tag decides on that.
type noAPIError struct{ err error }

func (e noAPIError) Error() string { return errNoAPI.Error() + ": " + e.err.Error() }
func (e noAPIError) Is(target error) bool {
	return target == errNoAPI || target == ErrUnsupported || target == errNoRepo && errors.Is(e.err, errNoRepo)
}

// nextPage finds the link to the next page (RFC 8288), on the same host; nil if
// there is none.
func nextPage(at *url.URL, links []string) (*url.URL, error) {
	for _, text := range links {
		for text != "" {
			_, rest, ok := strings.Cut(text, "<")
			target, rest, ok2 := strings.Cut(rest, ">")
			if !ok || !ok2 {
				break
			}
			params, rest, _ := strings.Cut(rest, "<")
			text = "<" + rest
			if rest == "" {
				text = ""
			}
			if !isNext(params) {
				continue
			}
			next, err := at.Parse(target)
			if err != nil || next.Host != at.Host || next.User != nil {
				return nil, fmt.Errorf("%w: the next page is %q", ErrProtocol, clip(target))
			}
			next.Scheme, next.Fragment = at.Scheme, "" // a loopback registry may say http and have been asked for https
			return next, nil
		}
	}
	return nil, nil
}

// isNext reports whether the parameters of a link say rel=next.
func isNext(params string) bool {
	for p := range strings.FieldsFuncSeq(params, func(r rune) bool { return r == ';' || r == ',' }) {
		k, v, _ := strings.Cut(p, "=")
		if strings.EqualFold(strings.TrimSpace(k), "rel") && strings.EqualFold(strings.Trim(strings.TrimSpace(v), `"`), "next") {
			return true
		}
	}
	return false
}

// listByTag reads the list under the referrers tag. It is ErrNotFound if there is none.
func (h *repoHost) listByTag(ctx context.Context, deadline time.Time, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	raw, _, err := h.tagged(ctx, deadline, subject, h.pull)
	if err != nil {
		return nil, err
	}
	list, err := parseReferrers(raw)
	if err != nil {
		return nil, fmt.Errorf("tag %s: %w", referrersTag(subject), err)
	}
	return wanted(list, artifactType), nil
}

// tagged fetches the document under the referrers tag, and its ETag.
func (h *repoHost) tagged(ctx context.Context, deadline time.Time, subject digest.Digest, a *access) (raw []byte, etag string, err error) {
	c := &call{
		method: http.MethodGet, url: h.url("manifests", referrersTag(subject)), access: a, deadline: deadline,
		header: http.Header{"Accept": {ocispec.MediaTypeImageIndex}},
	}
	resp, _, err := h.send(ctx, c)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	doc, err := readDocument(resp, ocispec.Descriptor{})
	if err != nil {
		return nil, "", fmt.Errorf("GET %s: %w", cleanURL(c.url), err)
	}
	return doc.raw, resp.Header.Get("ETag"), nil
}

// referrers of a layout are entries of its index.json whose manifests have the
// subject, as oras writes them and we do, and those listed under the referrers
// tag, as regclient does.
func (s *layout) referrers(ctx context.Context, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	ix, _, err := s.index(ctx)
	if err != nil {
		return nil, err
	}
	var list []ocispec.Descriptor
	tag := referrersTag(subject)
	for _, d := range ix.Manifests {
		if d.MediaType == ocispec.MediaTypeImageIndex && d.Annotations[ocispec.AnnotationRefName] == tag {
			raw, err := s.document(ctx, d)
			if err == nil {
				var more []ocispec.Descriptor
				more, err = parseReferrers(raw)
				list = append(list, more...)
			}
			if err != nil {
				return nil, fmt.Errorf("tag %s: %w", tag, err)
			}
		}
	}
	own, err := s.attached(ctx, ix, subject, artifactType)
	if err != nil {
		return nil, err
	}
	list = append(wanted(list, artifactType), own...)
	seen := make(map[digest.Digest]bool)
	return slices.DeleteFunc(list, func(d ocispec.Descriptor) bool {
		dup := seen[d.Digest]
		seen[d.Digest] = true
		return dup
	}), nil
}

// maxScan is how many manifests of a layout are looked into for their subject.
const maxScan = 1024

// attached are the entries of an index.json that refer to subject. Those that
// cannot be read are passed over.
func (s *layout) attached(ctx context.Context, ix *ocispec.Index, subject digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	var list []ocispec.Descriptor
	for i, d := range ix.Manifests {
		if i == maxScan {
			return nil, fmt.Errorf("%w: index.json has %d entries: %w", ErrBadManifest, len(ix.Manifests), layers.ErrTooLarge)
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if d.Platform != nil || len(wanted([]ocispec.Descriptor{d}, artifactType)) == 0 {
			continue
		}
		a, err := artifact(ctx, s, d, subject)
		if err == nil {
			list = append(list, a.Desc)
		}
	}
	return wanted(list, artifactType), nil
}

// A docker archive has no place for referrers.
func (s *saved) referrers(context.Context, digest.Digest, string) ([]ocispec.Descriptor, error) {
	return nil, nil
}

// addReferrer is the list of referrers raw (nil: none yet) with desc, and without
// the others of its type that drop picks; all else in it stays as it is. It
// returns raw itself if nothing is to be changed.
func addReferrer(raw []byte, desc ocispec.Descriptor, drop func(ocispec.Descriptor) bool) ([]byte, error) {
	if raw != nil {
		if _, err := parseReferrers(raw); err != nil {
			return nil, err
		}
	}
	changed := true
	out, err := editIndex(raw, func(list []ocispec.Descriptor) (keep []bool, add *ocispec.Descriptor) {
		keep = make([]bool, len(list))
		changed = false
		found := false
		for i, d := range list {
			found = found || d.Digest == desc.Digest
			keep[i] = d.Digest == desc.Digest || drop == nil || d.ArtifactType != desc.ArtifactType || !drop(d)
			changed = changed || !keep[i]
		}
		if found {
			return keep, nil
		}
		changed = true
		return keep, &desc
	})
	if err != nil || !changed {
		return raw, err
	}
	return out, nil
}

// editIndex changes the entries of an index and leaves everything else as it is,
// unknown members too. raw nil is an index without entries. edit says which
// entries stay and which one is added, if any.
func editIndex(raw []byte, edit func([]ocispec.Descriptor) (keep []bool, add *ocispec.Descriptor)) ([]byte, error) {
	if raw == nil {
		raw = []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[]}`)
	}
	top := make(map[string]json.RawMessage)
	var list []json.RawMessage
	err := json.Unmarshal(raw, &top)
	if err == nil && top["manifests"] != nil {
		err = json.Unmarshal(top["manifests"], &list)
	}
	descs := make([]ocispec.Descriptor, len(list))
	for i := range list {
		if err == nil {
			err = json.Unmarshal(list[i], &descs[i])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: index: %w", ErrBadManifest, err)
	}
	keep, add := edit(descs)
	kept := make([]json.RawMessage, 0, len(list)+1)
	for i, e := range list {
		if keep[i] {
			kept = append(kept, e)
		}
	}
	if add != nil {
		entry, err := json.Marshal(*add)
		if err != nil {
			return nil, err
		}
		kept = append(kept, entry)
	}
	if top["manifests"], err = marshal(kept); err != nil {
		return nil, err
	}
	return marshal(top)
}

// marshal is json.Marshal for people to read, and without a change to what is
// JSON already but white space.
func marshal(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(v)
	return out.Bytes(), err
}

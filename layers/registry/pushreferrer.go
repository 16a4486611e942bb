package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// maxTagged bounds the list that we write under a referrers tag: registries
// refuse manifests beyond 4 MiB (distribution-spec 1.1, "Pushing Manifests").
const maxTagged = 4 << 20

// A Referrer is something to attach to an image.
type Referrer struct {
	Subject      ocispec.Descriptor // the image's manifest, in the repository that is pushed to
	ArtifactType string             // a media type
	Blobs        []SourceBlob       // their descriptors become the artifact's layers, in this order
	Annotations  map[string]string  // of the artifact's manifest; lists of referrers repeat them
	// Replace says of an earlier referrer of the same Subject and ArtifactType
	// whether it is to leave the list; nil: none is. It is asked where the
	// list is ours to write: in layouts, and under a registry's referrers tag.
	// Nothing is deleted.
	Replace func(old ocispec.Descriptor) bool
}

// A RefusedError says which part of an artifact a registry does not take. It is
// ErrUnsupported, unless the registry said that it is a matter of credentials.
type RefusedError struct {
	What string // "the artifact manifest", …
	Err  error
}

func (e *RefusedError) Error() string { return "the registry refuses " + e.What + ": " + e.Err.Error() }
func (e *RefusedError) Unwrap() error { return e.Err }

// Is makes a RefusedError unsupported, if it is not about credentials.
func (e *RefusedError) Is(target error) bool {
	return target == ErrUnsupported && !errors.Is(e.Err, ErrDenied)
}

// refused makes the answer "no" of a registry a RefusedError.
func refused(what string, err error) error {
	se, ok := errors.AsType[*StatusError](err)
	if ok && !se.transient() || errors.Is(err, ErrDenied) {
		return &RefusedError{what, err}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// PushReferrer pushes an artifact that refers to an image in the repository or
// OCI layout dst, whose tag does not matter, and returns its descriptor. An
// artifact that is there already is pushed no second time, but listed. Where the
// registry does not list referrers by itself, the list under the referrers tag
// is updated; of several that do so at the same time each looks whether its
// entry was lost, and repeats. progress is as in [Registry.Push]. It fails with
// *RefusedError if the registry does not take such things.
func (r *Registry) PushReferrer(ctx context.Context, dst Ref, a Referrer, progress func(PushProgress)) (ocispec.Descriptor, error) {
	desc, err := r.pushReferrer(ctx, dst, a, oneByOne(progress))
	if err != nil {
		return desc, fmt.Errorf("push %s to %s: %w", clip(a.ArtifactType), dst.Name(), err)
	}
	return desc, nil
}

func (r *Registry) pushReferrer(ctx context.Context, dst Ref, a Referrer, say func(PushProgress)) (ocispec.Descriptor, error) {
	d, desc, err := a.document()
	if err != nil {
		return desc, err
	}
	to, err := r.sink(dst)
	if err != nil {
		return desc, err
	}
	empty := BytesBlob(emptyConfig(), []byte("{}"))
	if err = pushBlobs(ctx, to, append([]SourceBlob{empty}, a.Blobs...), say); err != nil {
		err = refused("the artifact's blobs", err)
	} else if err = to.refer(ctx, d, desc, a.Subject.Digest, a.Replace); err == nil {
		say(PushProgress{Desc: desc, Off: desc.Size, Done: true, How: "pushed"})
	}
	return desc, errors.Join(err, to.close())
}

// emptyConfig is what stands where an artifact without a config must have one
// (image-spec 1.1, "Guidance for an Empty Descriptor"). It is not embedded:
// registries need not know how to read that.
func emptyConfig() ocispec.Descriptor {
	d := ocispec.DescriptorEmptyJSON
	d.Data = nil
	return d
}

// document makes the artifact's manifest, and describes it as lists do.
func (a *Referrer) document() (Document, ocispec.Descriptor, error) {
	bad := func(format string, args ...any) (Document, ocispec.Descriptor, error) {
		return Document{}, ocispec.Descriptor{}, fmt.Errorf("%w: %s", ErrBadManifest, fmt.Sprintf(format, args...))
	}
	if a.Subject.Digest.Validate() != nil || a.Subject.Size <= 0 || a.Subject.MediaType == "" {
		return bad("the subject %q is described incompletely", a.Subject.Digest)
	}
	if !strings.Contains(a.ArtifactType, "/") {
		return bad("artifact type %q is no media type", clip(a.ArtifactType))
	}
	m := ocispec.Manifest{
		Versioned:    versioned(),
		MediaType:    ocispec.MediaTypeImageManifest,
		ArtifactType: a.ArtifactType,
		Config:       emptyConfig(),
		Subject:      &ocispec.Descriptor{MediaType: a.Subject.MediaType, Digest: a.Subject.Digest, Size: a.Subject.Size},
		Annotations:  a.Annotations,
	}
	for _, b := range a.Blobs {
		m.Layers = append(m.Layers, b.Desc)
	}
	if len(m.Layers) == 0 {
		m.Layers = []ocispec.Descriptor{emptyConfig()}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return bad("%v", err)
	}
	if _, err := parseArtifact(raw); err != nil {
		return bad("%v", err)
	}
	return Document{describe(m.MediaType, raw), raw}, describeArtifact(&m, raw), nil
}

func (u *uploader) refer(ctx context.Context, d Document, desc ocispec.Descriptor, subject digest.Digest, drop func(ocispec.Descriptor) bool) error {
	return u.run(ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		header, err := h.put(ctx, deadline, string(d.Desc.Digest), d, nil)
		if err != nil {
			return 0, refused("the artifact manifest", err)
		}
		if digest.Digest(header.Get("OCI-Subject")) == subject {
			h.referrersBy.learn(true)
			return 0, nil
		}
		return 0, h.list(ctx, deadline, desc, subject, drop)
	})
}

// tries is how often a list is written again because somebody else did so too.
const tries = 8

// list puts desc into the list under the referrers tag.
func (h *repoHost) list(ctx context.Context, deadline time.Time, desc ocispec.Descriptor, subject digest.Digest, drop func(ocispec.Descriptor) bool) error {
	what := "the list of referrers, tag " + referrersTag(subject)
	for range tries {
		old, etag, err := h.tagged(ctx, deadline, subject, h.push)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return refused(what, err)
		}
		raw, err := addReferrer(old, desc, drop)
		if err != nil { // not ours to overwrite
			return &finalError{fmt.Errorf("%s: %w", what, err)}
		}
		if old != nil && string(raw) == string(old) {
			return nil // which also says, the second time, that nobody has overwritten it
		}
		if len(raw) > maxTagged {
			return &finalError{fmt.Errorf("%s: %w: it would have %d bytes", what, ErrUnsupported, len(raw))}
		}
		header := http.Header{}
		if strings.HasPrefix(etag, `"`) { // a strong one; a registry may ignore it
			header.Set("If-Match", etag)
		}
		_, err = h.put(ctx, deadline, referrersTag(subject), Document{describe(ocispec.MediaTypeImageIndex, raw), raw}, header)
		if se, ok := errors.AsType[*StatusError](err); ok && (se.Code == http.StatusPreconditionFailed || se.Code == http.StatusConflict) {
			continue
		}
		if err != nil {
			return refused(what, err)
		}
	}
	return &finalError{fmt.Errorf("%s: %w: it changes all the time", what, ErrUnavailable)}
}

// refer stores the manifest and names it in index.json, without a tag.
func (s *layoutSink) refer(ctx context.Context, d Document, desc ocispec.Descriptor, subject digest.Digest, drop func(ocispec.Descriptor) bool) error {
	if err := s.write(blobPath(d.Desc.Digest), d.Raw); err != nil {
		return err
	}
	if err := s.sync(); err != nil {
		return err
	}
	return s.change(func(raw []byte) ([]byte, error) {
		gone := make(map[digest.Digest]bool)
		if raw != nil && drop != nil {
			ix, err := parseLayoutIndex(raw)
			if err != nil {
				return nil, err
			}
			l := &layout{ref: s.ref, files: dirFiles(s.ref.Path)}
			old, err := l.attached(ctx, ix, subject, desc.ArtifactType)
			if err != nil {
				return nil, err
			}
			for _, o := range old {
				gone[o.Digest] = drop(o)
			}
		}
		return nameIn(raw, desc, "", gone)
	})
}

// change replaces index.json (nil: none yet) under the lock of the layout.
func (s *layoutSink) change(f func(raw []byte) ([]byte, error)) (err error) {
	lock, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }() // ends the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	raw, err := s.root.ReadFile(ocispec.ImageIndexFile)
	if err != nil && !notExist(err) {
		return err
	}
	if raw, err = f(raw); err != nil {
		return err
	}
	if err := s.write(ocispec.ImageIndexFile, raw); err != nil {
		return err
	}
	return s.sync()
}

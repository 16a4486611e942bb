package index

import (
	"fmt"
	"math"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

// Annotations of the artifact manifest that publishes an index. A registry
// repeats them in its list of referrers, so that a node needs no manifest of the
// artifact to go on.
const (
	AnnotationVersion      = "dev.snapfs.index.version"
	AnnotationRoot         = "dev.snapfs.index.root"
	AnnotationPrefix       = "dev.snapfs.index.prefix"
	AnnotationDigest       = "dev.snapfs.index.digest"
	AnnotationSize         = "dev.snapfs.index.size"
	AnnotationBundleDigest = "dev.snapfs.index.bundle.digest"
	AnnotationBundleSize   = "dev.snapfs.index.bundle.size"
	AnnotationEnvelope     = "dev.snapfs.index.envelope"
)

// Limits of what annotations say.
const (
	MaxEnvelope = 64 << 10 // bytes of a DSSE envelope
	MaxBundle   = 2 << 30  // bytes: more than MaxProfileBytes can become
)

// ErrNoAnnotations says that something is not a published index.
var ErrNoAnnotations = fmt.Errorf("no annotations of an index")

// A Blob is a blob of the artifact.
type Blob struct {
	Digest digest.Digest
	Size   int64
}

// Annotations are what has to be known of a published index to fetch and believe
// it.
type Annotations struct {
	Version  int        // of the format
	Root     layers.Sum // of the index's header
	Prefix   int64      // bytes to fetch at first
	Index    Blob
	Bundle   Blob   // zero if there is none
	Envelope string // DSSE, as JSON; "" if it is not signed
}

// Annotations returns those of an index that was written and is not signed yet.
func (i *Info) Annotations() Annotations {
	return Annotations{Version: Version, Root: i.Root, Prefix: i.Prefix, Index: Blob{i.Digest, i.Size}}
}

// Encode returns a as annotations of an OCI manifest.
func (a *Annotations) Encode() map[string]string {
	m := map[string]string{
		AnnotationVersion: strconv.Itoa(a.Version),
		AnnotationRoot:    a.Root.String(),
		AnnotationPrefix:  strconv.FormatInt(a.Prefix, 10),
		AnnotationDigest:  a.Index.Digest.String(),
		AnnotationSize:    strconv.FormatInt(a.Index.Size, 10),
	}
	if a.Bundle != (Blob{}) {
		m[AnnotationBundleDigest] = a.Bundle.Digest.String()
		m[AnnotationBundleSize] = strconv.FormatInt(a.Bundle.Size, 10)
	}
	if a.Envelope != "" {
		m[AnnotationEnvelope] = a.Envelope
	}
	return m
}

// DecodeAnnotations reads annotations that Encode made, among others. Without a
// version it is ErrNoAnnotations; of a version of the future it wraps ErrVersion;
// other errors wrap ErrCorrupt or layers.ErrTooLarge. It believes nothing: what
// the annotations say has to be checked against the bytes, and they themselves
// against a signature.
func DecodeAnnotations(m map[string]string) (Annotations, error) {
	var a Annotations
	text, ok := m[AnnotationVersion]
	if !ok {
		return a, ErrNoAnnotations
	}
	d := &annotationReader{m: m}
	version := d.number(AnnotationVersion, math.MaxInt32)
	switch {
	case d.err != nil:
		return a, d.err
	case version == 0:
		return a, fmt.Errorf("annotation %s: %w: %q", AnnotationVersion, ErrCorrupt, text)
	case version > Version:
		return a, fmt.Errorf("annotation %s: %w: %d, this program reads %d", AnnotationVersion, ErrVersion, version, Version)
	}
	a = Annotations{
		Version: int(version), Root: d.sum(AnnotationRoot), Prefix: d.number(AnnotationPrefix, MaxPrefix),
		Index:    Blob{d.digest(AnnotationDigest), d.number(AnnotationSize, layers.MaxFile)},
		Envelope: m[AnnotationEnvelope],
	}
	_, b := m[AnnotationBundleDigest]
	if _, n := m[AnnotationBundleSize]; b || n {
		a.Bundle = Blob{d.digest(AnnotationBundleDigest), d.number(AnnotationBundleSize, MaxBundle)}
	}
	if d.err == nil && a.Prefix > a.Index.Size {
		d.err = fmt.Errorf("annotation %s: %w: %d bytes of %d", AnnotationPrefix, ErrCorrupt, a.Prefix, a.Index.Size)
	}
	if d.err == nil && len(a.Envelope) > MaxEnvelope {
		d.err = fmt.Errorf("annotation %s: %w: %d bytes", AnnotationEnvelope, layers.ErrTooLarge, len(a.Envelope))
	}
	if d.err != nil {
		return Annotations{}, d.err
	}
	return a, nil
}

// An annotationReader keeps the first error.
type annotationReader struct {
	m   map[string]string
	err error
}

func (d *annotationReader) fail(key string, err error) {
	if d.err == nil {
		d.err = fmt.Errorf("annotation %s: %w: %.80q", key, err, d.m[key])
	}
}

// number reads what strconv.FormatInt writes of a positive number, nothing else.
func (d *annotationReader) number(key string, limit int64) int64 {
	n, err := strconv.ParseInt(d.m[key], 10, 64)
	switch {
	case err != nil || n < 0 || strconv.FormatInt(n, 10) != d.m[key]:
		d.fail(key, ErrCorrupt)
	case n > limit:
		d.fail(key, layers.ErrTooLarge)
	default:
		return n
	}
	return 0
}

func (d *annotationReader) digest(key string) digest.Digest {
	s := digest.Digest(d.m[key])
	if s.Validate() != nil {
		d.fail(key, ErrCorrupt)
	}
	return s
}

func (d *annotationReader) sum(key string) layers.Sum {
	s, err := layers.ParseSum(digest.Digest(d.m[key]))
	if err != nil {
		d.fail(key, ErrCorrupt)
	}
	return s
}

package registry

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Transports of a Ref.
const (
	TransportRegistry      = ""
	TransportOCI           = "oci"
	TransportOCIArchive    = "oci-archive"
	TransportDockerArchive = "docker-archive"
)

var transports = []string{TransportOCI, TransportOCIArchive, TransportDockerArchive}

// maxRef bounds a reference string, bytes.
const maxRef = 8192

// A Ref names an image. It is comparable; its String is parsed back to an equal Ref.
type Ref struct {
	Transport string
	Domain    string // of a registry: host and perhaps port, "docker.io"
	Repo      string // below Domain: "library/debian"
	Path      string // of a layout or archive, clean; relative to the daemon's directory if not absolute
	// Tag may be "" where Digest is set, and in layouts and archives, which
	// may hold one image only. There, it is any name the layout gives.
	Tag string
	// Digest, if set, is of the manifest or index; Tag is then only a label.
	Digest digest.Digest
}

// ParseRef reads a reference:
//
//	debian, debian:12, ghcr.io/a/b@sha256:…, localhost:5000/x
//	oci:DIR[:TAG][@DIGEST]
//	oci-archive:FILE[:TAG][@DIGEST]
//	docker-archive:FILE[:NAME[:TAG]][@DIGEST]
//
// A name without a domain is Docker Hub's, one without tag and digest is tagged
// "latest". DIR and FILE end at the first colon. Errors wrap ErrBadRef.
func ParseRef(s string) (Ref, error) {
	if len(s) > maxRef {
		return Ref{}, fmt.Errorf("%w: %d bytes long", ErrBadRef, len(s))
	}
	for _, t := range transports {
		if rest, ok := strings.CutPrefix(s, t+":"); ok {
			return parseFileRef(t, rest, s)
		}
	}
	named, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return Ref{}, fmt.Errorf("%w: %q: %w", ErrBadRef, clip(s), err)
	}
	r := Ref{Domain: reference.Domain(named), Repo: reference.Path(named)}
	if t, ok := named.(reference.Tagged); ok {
		r.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		r.Digest = d.Digest()
		if err := r.Digest.Validate(); err != nil {
			return Ref{}, fmt.Errorf("%w: %q: %w", ErrBadRef, clip(s), err)
		}
	}
	if r.Tag == "" && r.Digest == "" {
		r.Tag = "latest"
	}
	return r, nil
}

func parseFileRef(transport, rest, whole string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, fmt.Errorf("%w: %q: %s", ErrBadRef, clip(whole), why)
	}
	r := Ref{Transport: transport}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 && digest.Digest(rest[i+1:]).Validate() == nil {
		r.Digest = digest.Digest(rest[i+1:])
		rest = rest[:i]
	}
	path, tag, tagged := strings.Cut(rest, ":")
	switch {
	case path == "":
		return bad("no path")
	case strings.ContainsRune(rest, 0):
		return bad("a NUL byte")
	case tagged && tag == "":
		return bad("empty tag")
	case len(tag) > 512 || clip(tag) != tag && len(tag) <= 160 || strings.ContainsAny(tag, " @"):
		return bad("a tag no layout can have")
	}
	r.Path, r.Tag = filepath.Clean(path), tag
	if strings.ContainsRune(r.Path, '@') && r.Digest == "" && strings.Contains(rest, "@sha256:") {
		return bad("a digest that is none")
	}
	return r, nil
}

// IsRemote reports whether r is read over the network.
func (r Ref) IsRemote() bool { return r.Transport == TransportRegistry }

// Name is r without tag and digest: "docker.io/library/debian" or "oci:/dir".
func (r Ref) Name() string {
	if r.IsRemote() {
		return r.Domain + "/" + r.Repo
	}
	return r.Transport + ":" + r.Path
}

// String is the canonical form: "docker.io/library/debian:latest".
func (r Ref) String() string { return r.suffix(r.Name()) }

// Familiar is the short form that people write: "debian:latest".
func (r Ref) Familiar() string {
	if !r.IsRemote() {
		return r.String()
	}
	named, err := reference.WithName(r.Name())
	if err != nil {
		return r.String()
	}
	short := reference.FamiliarName(named)
	if slices.Contains(transports, short) {
		return r.String() // docker.io/library/oci: "oci:latest" would be a directory
	}
	return r.suffix(short)
}

func (r Ref) suffix(s string) string {
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + string(r.Digest)
	}
	return s
}

// WithDigest is r pinned to one manifest.
func (r Ref) WithDigest(d digest.Digest) Ref {
	r.Digest = d
	return r
}

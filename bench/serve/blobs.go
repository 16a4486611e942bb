package serve

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A blob is in memory, or in a file until it is first asked for.
type blob struct {
	file string
	once sync.Once
	data []byte
	err  error
}

func (b *blob) bytes() ([]byte, error) {
	b.once.Do(func() {
		if b.file != "" {
			b.data, b.err = os.ReadFile(b.file)
		}
	})
	return b.data, b.err
}

func (g *Registry) find(d digest.Digest) *blob {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.blobs[d]
}

func (g *Registry) has(d digest.Digest) bool { return g.find(d) != nil }

func (g *Registry) bytes(d digest.Digest) ([]byte, error) {
	b := g.find(d)
	if b == nil {
		return nil, &problem{http.StatusNotFound, "BLOB_UNKNOWN", d.String()}
	}
	return b.bytes()
}

func (g *Registry) addBlob(d digest.Digest, b *blob) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.blobs == nil {
		g.blobs = make(map[digest.Digest]*blob)
	}
	if g.blobs[d] == nil {
		g.blobs[d] = b
	}
}

func (g *Registry) addBytes(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	g.addBlob(d, &blob{data: data})
	return d
}

func (g *Registry) getBlob(w http.ResponseWriter, r *http.Request, d digest.Digest) error {
	data, err := g.bytes(d)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("ETag", strconv.Quote(d.String()))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	return nil
}

// An upload is a blob that is being pushed.
type upload struct {
	mu   sync.Mutex
	data bytes.Buffer
}

func (g *Registry) upload(w http.ResponseWriter, r *http.Request, repo, id string) error {
	q := r.URL.Query()
	if r.Method == http.MethodPost && id == "" {
		if d := digest.Digest(q.Get("mount")); d != "" && g.has(d) {
			return created(w, repo, d)
		}
		if q.Get("digest") == "" {
			return g.beginUpload(w, repo)
		}
	}
	u := new(upload)
	if id != "" {
		g.mu.Lock()
		u = g.uploads[id]
		g.mu.Unlock()
	}
	if u == nil {
		return &problem{http.StatusNotFound, "BLOB_UPLOAD_UNKNOWN", id}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.take(w, r); err != nil {
		return err
	}
	switch r.Method {
	case http.MethodPatch:
		return accepted(w, repo, id, u.data.Len())
	case http.MethodPut, http.MethodPost:
		return g.endUpload(w, repo, id, u, digest.Digest(q.Get("digest")))
	}
	return &problem{http.StatusMethodNotAllowed, "UNSUPPORTED", r.Method}
}

func (u *upload) take(w http.ResponseWriter, r *http.Request) error {
	if from, _, ok := strings.Cut(r.Header.Get("Content-Range"), "-"); ok && from != strconv.Itoa(u.data.Len()) {
		return &problem{http.StatusRequestedRangeNotSatisfiable, "BLOB_UPLOAD_INVALID", "have " + strconv.Itoa(u.data.Len()) + " bytes, not " + from}
	}
	if _, err := io.Copy(&u.data, http.MaxBytesReader(w, r.Body, maxBlob-int64(u.data.Len()))); err != nil {
		return &problem{http.StatusBadRequest, "BLOB_UPLOAD_INVALID", err.Error()}
	}
	return nil
}

func (g *Registry) beginUpload(w http.ResponseWriter, repo string) error {
	g.mu.Lock()
	g.next++
	id := strconv.Itoa(g.next)
	if g.uploads == nil {
		g.uploads = make(map[string]*upload)
	}
	g.uploads[id] = new(upload)
	g.mu.Unlock()
	return accepted(w, repo, id, 0)
}

func (g *Registry) endUpload(w http.ResponseWriter, repo, id string, u *upload, want digest.Digest) error {
	g.mu.Lock()
	delete(g.uploads, id)
	g.mu.Unlock()
	if got := digest.FromBytes(u.data.Bytes()); got != want {
		return &problem{http.StatusBadRequest, "DIGEST_INVALID", fmt.Sprintf("%s, want %q", got, want)}
	}
	g.addBlob(want, &blob{data: bytes.Clone(u.data.Bytes())})
	return created(w, repo, want)
}

func accepted(w http.ResponseWriter, repo, id string, have int) error {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/uploads/"+id)
	w.Header().Set("Docker-Upload-UUID", id)
	w.Header().Set("Range", "0-"+strconv.Itoa(max(have-1, 0)))
	w.WriteHeader(http.StatusAccepted)
	return nil
}

func created(w http.ResponseWriter, repo string, d digest.Digest) error {
	w.Header().Set("Location", "/v2/"+repo+"/blobs/"+d.String())
	w.Header().Set("Docker-Content-Digest", d.String())
	w.WriteHeader(http.StatusCreated)
	return nil
}

// AddLayout makes the images of an OCI layout known as what name returns for
// their tags: repository and tag. An empty repository leaves one out.
// Their blobs are read when they are first asked for.
func (g *Registry) AddLayout(dir string, name func(tag string) (repo, newTag string)) error {
	b, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile))
	if err != nil {
		return err
	}
	var ix ocispec.Index
	if err := json.Unmarshal(b, &ix); err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	for _, d := range ix.Manifests {
		repo, tag := name(d.Annotations[ocispec.AnnotationRefName])
		if repo == "" {
			continue
		}
		if err := g.addFrom(dir, repo, tag, d); err != nil {
			return fmt.Errorf("%s: %s: %w", dir, d.Digest, err)
		}
	}
	return nil
}

// addFrom makes a manifest in a layout known, and what it refers to.
func (g *Registry) addFrom(dir, repo, target string, d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil {
		return err
	}
	b, err := os.ReadFile(blobFile(dir, d.Digest))
	if err != nil {
		return err
	}
	m, err := parseManifest(b)
	if err != nil {
		return err
	}
	for _, child := range m.Manifests {
		// A layout may have an image for some of its platforms only.
		if err := g.addFrom(dir, repo, child.Digest.String(), child); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	m.Manifests = nil
	for _, need := range m.needs() {
		if _, err := os.Stat(blobFile(dir, need)); err != nil {
			return err
		}
		g.addBlob(need, &blob{file: blobFile(dir, need)})
	}
	g.addManifest(repo, target, d.MediaType, b)
	return nil
}

func blobFile(dir string, d digest.Digest) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// Copy makes an image known in a second repository. Referrers are left behind.
func (g *Registry) Copy(repo, tag, toRepo, toTag string) error {
	d, ok := g.manifest(repo, tag)
	if !ok {
		return fmt.Errorf("%s:%s: %w", repo, tag, fs.ErrNotExist)
	}
	b, err := g.bytes(d.Digest)
	if err != nil {
		return err
	}
	m, err := parseManifest(b)
	if err != nil {
		return err
	}
	for _, child := range m.Manifests {
		if !g.Has(repo, child.Digest.String()) {
			continue // another platform's, left out
		}
		if err := g.Copy(repo, child.Digest.String(), toRepo, child.Digest.String()); err != nil {
			return err
		}
	}
	g.addManifest(toRepo, toTag, d.MediaType, b)
	return nil
}

// Has tells whether an image is known.
func (g *Registry) Has(repo, tag string) bool {
	_, ok := g.manifest(repo, tag)
	return ok
}

// Load reads all blobs of an image into memory and returns the digest of its
// manifest, and the stored bytes of its layers.
func (g *Registry) Load(repo, tag string) (d digest.Digest, size int64, err error) {
	desc, ok := g.manifest(repo, tag)
	if !ok {
		return "", 0, fmt.Errorf("%s:%s: %w", repo, tag, fs.ErrNotExist)
	}
	b, err := g.bytes(desc.Digest)
	if err != nil {
		return "", 0, err
	}
	m, err := parseManifest(b)
	if err != nil {
		return "", 0, err
	}
	for _, l := range m.Layers {
		size += l.Size
	}
	children := m.Manifests
	m.Manifests = nil
	for _, need := range m.needs() {
		if _, err := g.bytes(need); err != nil {
			return "", 0, err
		}
	}
	for _, child := range children {
		if !g.Has(repo, child.Digest.String()) {
			continue // another platform's, left out
		}
		_, n, err := g.Load(repo, child.Digest.String())
		if err != nil {
			return "", 0, err
		}
		size += n
	}
	return desc.Digest, size, nil
}

// Save adds a tagged image to the OCI layout dir, making one if there is none,
// as the given tag.
func (g *Registry) Save(dir, repo, tag, as string) error {
	d, ok := g.manifest(repo, tag)
	if !ok {
		return fmt.Errorf("%s:%s: %w", repo, tag, fs.ErrNotExist)
	}
	ix := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	ix.SchemaVersion = 2
	file := filepath.Join(dir, ocispec.ImageIndexFile)
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &ix)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", file, err)
	}
	if err := g.saveBlobs(dir, d.Digest); err != nil {
		return err
	}
	var rest []ocispec.Descriptor
	for _, m := range ix.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != as {
			rest = append(rest, m)
		}
	}
	d.Annotations = map[string]string{ocispec.AnnotationRefName: as}
	ix.Manifests = append(rest, d)
	if b, err = json.Marshal(ix); err != nil {
		return err
	}
	layout := []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)
	return errors.Join(os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), layout, 0o644), replace(file, b))
}

// saveBlobs writes a manifest and what it refers to.
func (g *Registry) saveBlobs(dir string, d digest.Digest) error {
	b, err := g.bytes(d)
	if err != nil {
		return err
	}
	m, err := parseManifest(b)
	if err != nil {
		return err
	}
	for _, child := range m.Manifests {
		if !g.has(child.Digest) {
			continue // another platform's, left out
		}
		if err := g.saveBlobs(dir, child.Digest); err != nil {
			return err
		}
	}
	m.Manifests = nil
	for _, need := range append(m.needs(), d) {
		file := blobFile(dir, need)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		data, err := g.bytes(need)
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := replace(file, data); err != nil {
			return err
		}
	}
	return nil
}

// replace writes a file whole or not at all.
func replace(file string, data []byte) error {
	if err := os.WriteFile(file+".new", data, 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

package registry

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

func (img *testImage) source() *Source {
	s := &Source{Root: Document{img.desc, img.manifest}}
	for _, l := range img.layers {
		s.Blobs = append(s.Blobs, BytesBlob(describe(ocispec.MediaTypeImageLayer, l), l))
	}
	s.Blobs = append(s.Blobs, BytesBlob(describe(ocispec.MediaTypeImageConfig, img.config), img.config))
	return s
}

// pushTo pushes and returns how each thing got there.
func pushTo(t *testing.T, r *Registry, dst string, src *Source) map[string]int {
	t.Helper()
	how := make(map[string]int)
	desc, err := r.Push(t.Context(), mustRef(t, dst), src, func(p PushProgress) {
		if p.Done {
			how[p.How]++
		}
	})
	if err != nil {
		t.Fatalf("Push(%s) = %v", dst, err)
	}
	if desc.Digest != src.Root.Desc.Digest {
		t.Errorf("Push(%s) = %s, want %s", dst, desc.Digest, src.Root.Desc.Digest)
	}
	return how
}

func TestPush(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 1000, 200_000, 0)
	r := newRegistry(t, Options{Timeouts: quick})
	dir := filepath.Join(t.TempDir(), "new")
	for _, dst := range []string{s.host() + "/x/y:v1", "oci:" + dir + ":v1"} {
		if how := pushTo(t, r, dst, img.source()); how["pushed"] != 5 {
			t.Errorf("Push(%s) = %v, want 5 pushed", dst, how)
		}
		if how := pushTo(t, r, dst, img.source()); how["exists"] != 4 {
			t.Errorf("Push(%s) again = %v, want 4 that exist", dst, how)
		}
		got, err := r.Resolve(t.Context(), mustRef(t, dst), "linux/amd64")
		if err != nil || got.Desc.Digest != img.desc.Digest {
			t.Fatalf("Resolve(%s) = %v", dst, err)
		}
		readBoth(t, r, got.Ref, img.layer(1), img.layers[1])
		// From there to elsewhere.
		other := filepath.Join(t.TempDir(), "copy")
		pushTo(t, r, "oci:"+other+":c", got.Source())
		if _, err := r.Resolve(t.Context(), mustRef(t, "oci:"+other), "linux/amd64"); err != nil {
			t.Errorf("Resolve of the copy = %v", err)
		}
	}
}

// TestPushIndex: an index with its manifests, and the layout's other entries stay.
func TestPushIndex(t *testing.T) {
	s := newServer(t)
	amd, arm, old := makeImage(t, "amd64", 1000), makeImage(t, "arm64", 2000), makeImage(t, "amd64", 30)
	src := amd.source()
	src.Children = []Document{{amd.desc, amd.manifest}, {arm.desc, arm.manifest}}
	src.Blobs = append(src.Blobs, arm.source().Blobs...)
	a, b := amd.desc, arm.desc
	a.Platform, b.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}, &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	raw := mustJSON(t, ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{a, b}})
	src.Root = Document{describe(ocispec.MediaTypeImageIndex, raw), raw}
	r := newRegistry(t, Options{Timeouts: quick})
	files := layoutFiles(t, []ocispec.Descriptor{old.entry("old"), old.entry("v1")}, old.all())
	files["index.json"] = bytes.Replace(files["index.json"], []byte("{"), []byte(`{"x-kept":{"a":1},`), 1)
	dir := writeDir(t, files)
	for _, dst := range []string{s.host() + "/x/y:v1", "oci:" + dir + ":v1"} {
		pushTo(t, r, dst, src)
		for _, p := range []string{"amd64", "arm64"} {
			got, err := r.Resolve(t.Context(), mustRef(t, dst), "linux/"+p)
			if err != nil || got.Config.Architecture != p || got.Root.Digest != src.Root.Desc.Digest {
				t.Errorf("Resolve(%s, %s) = %v", dst, p, err)
			}
		}
	}
	if _, err := r.Resolve(t.Context(), mustRef(t, "oci:"+dir+":old"), "linux/amd64"); err != nil {
		t.Errorf("the other image of the layout: %v", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil || !bytes.Contains(text, []byte("x-kept")) {
		t.Errorf("index.json lost what it had: %s", text)
	}
	tmp, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/.tmp-*"))
	if err != nil || len(tmp) != 0 {
		t.Errorf("left behind: %v, %v", tmp, err)
	}
}

// TestPushMount: a blob of another repository of the registry is not sent.
func TestPushMount(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 1000)
	from := mustRef(t, s.put(t, "lib/base", "v1", img))
	for _, c := range []struct {
		name string
		code int
		want string
	}{{"mounted", 201, "mounted"}, {"not allowed", 401, "pushed"}, {"not known", 0, "pushed"}} {
		t.Run(c.name, func(t *testing.T) {
			src := img.source()
			for i := range src.Blobs {
				src.Blobs[i].From = from
			}
			var asked sync.Map
			s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
				if r.Method == http.MethodHead && isBlob(r) { // the test registry keeps blobs of all repositories together
					w.WriteHeader(404)
					return true
				}
				if r.URL.Query().Get("mount") == "" {
					return false
				}
				asked.Store(r.URL.Query().Get("from"), true)
				if c.code != 0 {
					w.WriteHeader(c.code)
				}
				return c.code != 0
			})
			r := newRegistry(t, Options{Timeouts: quick})
			if how := pushTo(t, r, s.host()+"/my/app:v1", src); how[c.want] < 2 {
				t.Errorf("Push = %v, want 2 %s", how, c.want)
			}
			if _, ok := asked.Load("lib/base"); !ok {
				t.Error("no mount was asked for")
			}
		})
	}
}

func TestPushFaults(t *testing.T) {
	img := makeImage(t, "amd64", 300_000)
	uploads := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/uploads/") }
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request, n int) bool
		want  error
	}{
		{"503 for a while", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if n < 2 {
				w.WriteHeader(503)
			}
			return n < 2
		}, nil},
		{"reset in the upload, once", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method == http.MethodPut && uploads(r) && r.ContentLength > 100_000 && n < 8 {
				io.CopyN(io.Discard, r.Body, 1000)
				reset(w)
				return true
			}
			return false
		}, nil},
		{"reset in each upload", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method == http.MethodPut {
				reset(w)
			}
			return r.Method == http.MethodPut
		}, ErrUnavailable},
		{"denied", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method != http.MethodHead {
				w.WriteHeader(403)
			}
			return r.Method != http.MethodHead
		}, ErrDenied},
		{"no Location", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method == http.MethodPost {
				w.WriteHeader(202)
			}
			return r.Method == http.MethodPost
		}, ErrProtocol},
		{"another digest stored", func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method == http.MethodPut && isManifests(r) {
				w.Header().Set("Docker-Content-Digest", someDigest)
				w.WriteHeader(201)
				return true
			}
			return false
		}, &layers.DigestError{}},
		{"silent", func(w http.ResponseWriter, r *http.Request, n int) bool { wait(r); return true }, ErrUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			s.set(c.fault)
			r := newRegistry(t, Options{Timeouts: quick})
			_, err := r.Push(t.Context(), mustRef(t, s.host()+"/x/y:v1"), img.source(), nil)
			compare(t, "Push", err, c.want, errors.New(""))
		})
	}
}

// TestPushBadSource: bytes that are not what they should be never get a name.
func TestPushBadSource(t *testing.T) {
	s := newServer(t)
	img := makeImage(t, "amd64", 1000)
	boom := errors.New("boom")
	r := newRegistry(t, Options{Timeouts: quick})
	for _, c := range []struct {
		name string
		open func(context.Context) (io.ReadCloser, error)
		want error
	}{
		{"flipped", func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(make([]byte, 1000))), nil
		}, &layers.DigestError{}},
		{"short", func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(img.layers[0][:10])), nil
		}, &SizeError{}},
		{"fails", func(context.Context) (io.ReadCloser, error) { return nil, boom }, boom},
	} {
		for _, dst := range []string{s.host() + "/x/y:v1", "oci:" + t.TempDir() + ":v1"} {
			src := img.source()
			src.Blobs[0].Open = c.open
			_, err := r.Push(t.Context(), mustRef(t, dst), src, nil)
			compare(t, c.name+" to "+dst, err, c.want, errors.New(""))
			if _, err := r.Resolve(t.Context(), mustRef(t, dst), "linux/amd64"); !errors.Is(err, ErrNotFound) {
				t.Errorf("%s: Resolve afterwards = %v, want ErrNotFound", c.name, err)
			}
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "precious"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for dst, want := range map[string]error{
		"oci:" + dir + ":v1":            ErrBadRef,
		"oci-archive:x.tar:v1":          ErrUnsupported,
		"oci:" + dir + "@" + someDigest: ErrBadRef,
	} {
		if _, err := r.Push(t.Context(), mustRef(t, dst), img.source(), nil); !errors.Is(err, want) {
			t.Errorf("Push(%s) = %v, want %v", dst, err, want)
		}
	}
}

package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

const testType = "application/vnd.test.index.v1"

// api is a referrers API with all that the specification has, over a registry
// without one: the subject header, the filter, and pages.
type api struct {
	*server
	inner  http.Handler
	filter bool
	size   int // of a page; 0: all

	mu   sync.Mutex
	list map[string][]ocispec.Descriptor // by subject, in order of arrival
}

func newAPI(t testing.TB) *api {
	a := &api{server: newServer(t), filter: true, list: make(map[string][]ocispec.Descriptor)}
	a.inner, a.server.inner = a.server.inner, a
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case r.Method == http.MethodPut && isManifests(r):
		raw, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(raw))
		if m, err := parseArtifact(raw); err == nil {
			s := string(m.Subject.Digest)
			w.Header().Set("OCI-Subject", s)
			a.list[s] = append(slices.DeleteFunc(a.list[s], func(d ocispec.Descriptor) bool { return d.Digest == digest.FromBytes(raw) }), describeArtifact(m, raw))
		}
	case strings.Contains(r.URL.Path, "/referrers/"):
		a.answer(w, r)
		return
	}
	a.inner.ServeHTTP(w, r)
}

func (a *api) answer(w http.ResponseWriter, r *http.Request) {
	list := a.list[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
	if t := r.URL.Query().Get("artifactType"); t != "" && a.filter {
		w.Header().Set("OCI-Filters-Applied", "artifactType")
		list = slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool { return d.ArtifactType != t })
	}
	if from, _ := strconv.Atoi(r.URL.Query().Get("from")); a.size > 0 {
		list = list[from:]
		if len(list) > a.size {
			list = list[:a.size]
			q := r.URL.Query()
			q.Set("from", strconv.Itoa(from+a.size))
			w.Header().Set("Link", fmt.Sprintf(`<%s?%s>; rel="next"`, r.URL.Path, q.Encode()))
		}
	}
	w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
	json.NewEncoder(w).Encode(ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: list})
}

// plainAPI is the test registry's own: no header, no filter, no artifact types.
func plainAPI(t testing.TB) *server {
	s := newServer(t)
	s.inner = registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithReferrersSupport(true))
	return s
}

func referrer(subject ocispec.Descriptor, artifactType, note string, blobs ...[]byte) Referrer {
	a := Referrer{Subject: subject, ArtifactType: artifactType, Annotations: map[string]string{"note": note}}
	for _, b := range blobs {
		a.Blobs = append(a.Blobs, BytesBlob(describe("application/vnd.test.blob", b), b))
	}
	return a
}

// notes are the notes of a list, sorted.
func notes(list []ocispec.Descriptor) string {
	var all []string
	for _, d := range list {
		all = append(all, d.Annotations["note"])
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// TestReferrers: what is pushed is found again, with its annotations, whatever
// kind of place it is.
func TestReferrers(t *testing.T) {
	img, other := makeImage(t, "amd64", 1000), makeImage(t, "amd64", 2000)
	unfiltered, paged := newAPI(t), newAPI(t)
	unfiltered.filter, paged.size = false, 1
	for _, c := range []struct {
		name string
		ref  string
		s    *server
		tag  bool // whether the list under the tag is written, too
	}{
		{"API", "", newAPI(t).server, false},
		{"API without a filter", "", unfiltered.server, false},
		{"API with pages", "", paged.server, false},
		{"API without subject header and types", "", plainAPI(t), true},
		{"tag", "", newServer(t), true},
		{"layout", "oci:" + filepath.Join(t.TempDir(), "new") + ":v1", nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			stats := new(Stats)
			r := newRegistry(t, Options{Timeouts: quick, Stats: stats})
			if c.s != nil {
				c.ref = c.s.put(t, "a/b", "v1", img)
				c.s.put(t, "a/b", "v2", other)
			} else {
				pushTo(t, r, c.ref, img.source())
			}
			ref := mustRef(t, c.ref)
			find := func(r *Registry, subject digest.Digest, artifactType, want string) []ocispec.Descriptor {
				t.Helper()
				list, err := r.Referrers(t.Context(), ref, subject, artifactType)
				if err != nil || notes(list) != want {
					t.Errorf("Referrers(%s) = %q, %v, want %q", artifactType, notes(list), err, want)
				}
				return list
			}
			find(r, img.desc.Digest, testType, "")
			push := func(a Referrer) ocispec.Descriptor {
				t.Helper()
				d, err := r.PushReferrer(t.Context(), ref, a, nil)
				if err != nil {
					t.Fatalf("PushReferrer = %v", err)
				}
				return d
			}
			index, bundle := pattern(300_000, 1), pattern(100_000, 2)
			one := push(referrer(img.desc, testType, "one", index, bundle))
			push(referrer(img.desc, testType, "two", index))
			push(referrer(img.desc, "application/vnd.other", "signature"))
			push(referrer(other.desc, testType, "elsewhere"))
			push(referrer(img.desc, testType, "one", index, bundle)) // again: it changes nothing
			find(r, img.desc.Digest, testType, "one two")
			list := find(newRegistry(t, Options{Timeouts: quick}), img.desc.Digest, testType, "one two")
			find(r, img.desc.Digest, "", "one signature two")
			find(r, img.desc.Digest, "application/vnd.none", "")
			if c.s != nil {
				find(r, other.desc.Digest, testType, "elsewhere")
				r := get(c.s, "/v2/a/b/manifests/"+referrersTag(img.desc.Digest))
				if (r.Code == 200) != c.tag {
					t.Errorf("GET of the referrers tag: %d, want it to exist: %v", r.Code, c.tag)
				}
			}
			i := slices.IndexFunc(list, func(d ocispec.Descriptor) bool { return d.Digest == one.Digest })
			if i < 0 || list[i].ArtifactType != testType || list[i].Size != one.Size {
				t.Fatalf("Referrers = %v, want %v in it", list, one)
			}
			a, err := r.Artifact(t.Context(), ref, list[i], img.desc.Digest)
			if err != nil || len(a.Manifest.Layers) != 2 || a.Manifest.Config.MediaType != ocispec.MediaTypeEmptyJSON {
				t.Fatalf("Artifact = %v, %v", a, err)
			}
			readBoth(t, r, ref, a.Manifest.Layers[0], index)
			readBoth(t, r, ref, a.Manifest.Layers[1], bundle)
			if _, err := r.Artifact(t.Context(), ref, list[i], other.desc.Digest); !errors.Is(err, ErrBadManifest) {
				t.Errorf("Artifact for another image = %v, want ErrBadManifest", err)
			}
			if got, err := r.Resolve(t.Context(), ref, "linux/amd64"); err != nil || got.Desc.Digest != img.desc.Digest {
				t.Errorf("Resolve of the image = %v", err)
			}
			if ref.Transport == TransportOCI { // what is attached is no image of the layout
				if got, err := r.Resolve(t.Context(), mustRef(t, ref.Name()), "linux/amd64"); err != nil || got.Desc.Digest != img.desc.Digest {
					t.Errorf("Resolve of the only image = %v", err)
				}
			}
			if c.tag || ref.Transport == TransportOCI {
				a := referrer(img.desc, testType, "three", index)
				a.Replace = func(old ocispec.Descriptor) bool { return old.Annotations["note"] != "two" }
				push(a)
				if c.s == nil || !strings.HasPrefix(c.name, "API") { // an API lists everything
					find(r, img.desc.Digest, "", "signature three two")
				}
			}
		})
	}
}

// get asks a registry past all faults.
func get(s *server, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	s.inner.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// TestReferrersArchive: an archive of a layout, and the way regclient lists.
func TestReferrersArchive(t *testing.T) {
	img := makeImage(t, "amd64", 1000)
	a := referrer(img.desc, testType, "one")
	doc, desc, err := a.document()
	if err != nil {
		t.Fatal(err)
	}
	bare := desc
	bare.ArtifactType, bare.Annotations = "", nil // as oras writes it
	listed, err := addReferrer(nil, desc, nil)
	if err != nil {
		t.Fatal(err)
	}
	list := describe(ocispec.MediaTypeImageIndex, listed)
	list.Annotations = map[string]string{ocispec.AnnotationRefName: referrersTag(img.desc.Digest)}
	blobs := map[digest.Digest][]byte{doc.Desc.Digest: doc.Raw, list.Digest: listed}
	for _, c := range []struct {
		name  string
		entry []ocispec.Descriptor
	}{
		{"entry", []ocispec.Descriptor{desc}},
		{"bare entry", []ocispec.Descriptor{bare}},
		{"tag", []ocispec.Descriptor{list}},
		{"all", []ocispec.Descriptor{list, desc, bare}},
	} {
		files := layoutFiles(t, append([]ocispec.Descriptor{img.entry("one")}, c.entry...), img.all(), blobs)
		for _, name := range []string{"oci-archive:" + writeFile(t, gz(t, writeTar(t, files))), "oci:" + writeDir(t, files)} {
			r := newRegistry(t, Options{SpoolDir: t.TempDir()})
			ref := mustRef(t, name+":one")
			for _, want := range []string{testType, ""} {
				got, err := r.Referrers(t.Context(), ref, img.desc.Digest, want)
				if err != nil || notes(got) != "one" || got[0].ArtifactType != testType {
					t.Errorf("%s: Referrers(%s, %q) = %v, %v", c.name, name, want, got, err)
				}
			}
		}
	}
}

// TestReferrersFaults: what a host answers that has no API, or a broken or lying one.
func TestReferrersFaults(t *testing.T) {
	img, other := makeImage(t, "amd64", 1000), makeImage(t, "amd64", 2000)
	doc := func(subject *testImage, note string) (Document, ocispec.Descriptor) {
		a := referrer(subject.desc, testType, note)
		d, desc, err := a.document()
		if err != nil {
			t.Fatal(err)
		}
		return d, desc
	}
	ours, desc := doc(img, "one")
	theirs, wrong := doc(other, "wrong subject")
	list := func(all ...ocispec.Descriptor) []byte {
		return mustJSON(t, ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: all})
	}
	bare := func(d ocispec.Descriptor) ocispec.Descriptor {
		d.Annotations, d.ArtifactType = nil, ""
		return d
	}
	missing := desc
	missing.Digest = someDigest
	lie := desc
	lie.Annotations, lie.Size = nil, desc.Size+1
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	send := func(body []byte, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.Write(body)
		}
	}
	tagged := list(desc)
	for _, c := range []struct {
		name string
		api  http.HandlerFunc
		tag  []byte // under the referrers tag; nil: nothing
		want string
		err  error
	}{
		{"404", status(404), tagged, "one", nil},
		{"404 and no tag", status(404), nil, "", nil},
		{"400", status(400), tagged, "one", nil},
		{"405", status(405), tagged, "one", nil},
		{"501", status(501), tagged, "one", nil},
		{"HTML", send([]byte("<html>"), "Content-Type", "text/html; charset=utf-8"), tagged, "one", nil},
		{"HTML and no tag", send([]byte("<html>"), "Content-Type", "text/html"), nil, "", nil},
		{"401", status(401), tagged, "", ErrDenied},
		{"403", status(403), tagged, "", ErrDenied},
		{"500", status(500), tagged, "", ErrUnavailable},
		{"silent", func(w http.ResponseWriter, r *http.Request) { wait(r) }, tagged, "", ErrUnavailable},
		{"HTML said to be an index", send([]byte("<html>")), tagged, "", ErrBadManifest},
		{"another document", send(img.manifest), tagged, "", ErrBadManifest},
		{"gigabytes", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			p := bytes.Repeat([]byte(" "), 1<<20)
			for err := error(nil); err == nil; {
				_, err = w.Write(p)
			}
		}, tagged, "", layers.ErrTooLarge},
		{"gigabytes announced", send(nil, "Content-Length", "2000000000"), tagged, "", layers.ErrTooLarge},
		{"compressed", send(gz(t, tagged), "Content-Encoding", "gzip"), tagged, "", ErrProtocol},
		{"cut", send(tagged[:50], "Content-Length", "60"), tagged, "", ErrUnavailable},
		{"empty", send(list()), tagged, "", nil},
		{"null", send([]byte(`{"schemaVersion":2,"manifests":null}`)), tagged, "", nil},
		{"no annotations", send(list(bare(desc))), nil, "one", nil},
		{"wrong subject", send(list(bare(wrong))), nil, "", ErrBadManifest},
		{"wrong subject among others", send(list(bare(wrong), desc)), nil, "one", nil},
		{"wrong digest", send(list(bare(missing))), nil, "", ErrNotFound},
		{"wrong digest among others", send(list(bare(missing), desc)), nil, "one", nil},
		{"wrong size", send(list(lie)), nil, "", &SizeError{}},
		{"wrong type", send(list(func() ocispec.Descriptor { d := bare(desc); d.ArtifactType = "application/vnd.other"; return d }())), nil, "", nil},
		{"entries that are none", send([]byte(strings.Replace(string(list(desc)), "[", `[{},{"digest":"sha256:../../x"},{"mediaType":"text/html","digest":"`+someDigest+`","size":1},null,`, 1))), nil, "one", nil},
		{"huge manifests", send(list(func() ocispec.Descriptor { d := bare(desc); d.Size = 1 << 40; return d }())), nil, "", nil},
		{"endless pages", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "<"+r.URL.Path+`?n=1>; rel="next"`)
			send(list(desc))(w, r)
		}, nil, "", layers.ErrTooLarge},
		{"next page elsewhere", send(list(desc), "Link", `<https://evil.example/v2/a/b/referrers/x>; rel="next"`), nil, "", ErrProtocol},
		{"next page of another repository", send(list(desc), "Link", `</v2/private/referrers/x>; rel="next"`), nil, "", ErrProtocol},
		{"another link", send(list(desc), "Link", `</v2/private/referrers/x>; rel="prev", <x>; title=next`), nil, "one", nil},
		{"tag is HTML", status(404), []byte("<html>"), "", ErrBadManifest},
		{"tag is an image", status(404), img.manifest, "", ErrBadManifest},
		{"tag is cut", status(404), tagged[:30], "", ErrBadManifest},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			ref := mustRef(t, s.put(t, "a/b", "v1", img))
			for _, d := range []Document{ours, theirs} {
				s.do(t, "PUT", "/v2/a/b/manifests/"+string(d.Desc.Digest), ocispec.MediaTypeImageManifest, d.Raw)
			}
			if c.tag != nil {
				s.do(t, "PUT", "/v2/a/b/manifests/"+referrersTag(img.desc.Digest), "application/octet-stream", c.tag)
			}
			asked := 0
			s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
				if !strings.Contains(r.URL.Path, "/referrers/") {
					return false
				}
				s.mu.Lock()
				asked++
				s.mu.Unlock()
				c.api(w, r)
				return true
			})
			r := newRegistry(t, Options{Timeouts: quick})
			for i := range 2 {
				got, err := r.Referrers(t.Context(), ref, img.desc.Digest, testType)
				compare(t, "Referrers", err, c.err, nil)
				if notes(got) != c.want {
					t.Errorf("Referrers = %q, want %q", notes(got), c.want)
				}
				if i == 0 && c.err == nil && c.tag != nil && c.want == "one" {
					s.mu.Lock()
					asked = 0
					s.mu.Unlock()
				}
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if c.err == nil && c.tag != nil && c.want == "one" && asked != 0 {
				t.Errorf("the API was asked %d times though it is known to be absent", asked)
			}
		})
	}
}

// TestReferrersMirror: a mirror that knows nothing of referrers is passed over,
// and one that must not be asked is not.
func TestReferrersMirror(t *testing.T) {
	img := makeImage(t, "amd64", 1000)
	mirror, origin := newServer(t), newServer(t)
	mirror.put(t, "a/b", "v1", img)
	ref := mustRef(t, origin.put(t, "a/b", "v1", img))
	r := newRegistry(t, Options{Timeouts: quick})
	if _, err := r.PushReferrer(t.Context(), ref, referrer(img.desc, testType, "one"), nil); err != nil {
		t.Fatal(err)
	}
	for _, caps := range []string{`"pull", "resolve", "referrers"`, `"pull", "resolve"`} {
		dir := hostsToml(t, "hub.example", fmt.Sprintf("server = %q\n[host.%q]\ncapabilities = [%s]\n", origin.URL, mirror.URL, caps))
		r := newRegistry(t, Options{Timeouts: quick, HostDirs: []string{dir}})
		before := mirror.hits.Load()
		got, err := r.Referrers(t.Context(), mustRef(t, "hub.example/a/b:v1"), img.desc.Digest, testType)
		if err != nil || notes(got) != "one" {
			t.Errorf("Referrers = %q, %v", notes(got), err)
		}
		if asked := mirror.hits.Load() > before; asked != strings.Contains(caps, "referrers") {
			t.Errorf("a mirror with %s was asked: %v", caps, asked)
		}
	}
}

// TestPushReferrerFaults: the message says what the registry does not take.
func TestPushReferrerFaults(t *testing.T) {
	img := makeImage(t, "amd64", 1000)
	isTag := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/sha256-") }
	on := func(method string, is func(*http.Request) bool, code int) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, r *http.Request, n int) bool {
			if r.Method != method || !is(r) {
				return false
			}
			w.WriteHeader(code)
			io.WriteString(w, `{"errors":[{"code":"NO","message":"we do not do this"}]}`)
			return true
		}
	}
	any := func(*http.Request) bool { return true }
	for _, c := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request, n int) bool
		want  error
		says  string
	}{
		{"uploads denied", on("POST", any, 403), ErrDenied, "refuses the artifact's blobs"},
		{"uploads unknown", on("POST", any, 404), ErrUnsupported, "refuses the artifact's blobs"},
		{"read only", on("POST", any, 405), ErrUnsupported, "refuses the artifact's blobs"},
		{"uploads broken", on("POST", any, 500), ErrUnavailable, "the artifact's blobs"},
		{"artifacts", on("PUT", isManifests, 400), ErrUnsupported, "refuses the artifact manifest"},
		{"artifacts' type", on("PUT", isManifests, 415), ErrUnsupported, "refuses the artifact manifest"},
		{"artifacts denied", on("PUT", isManifests, 401), ErrDenied, "refuses the artifact manifest"},
		{"tag", on("PUT", isTag, 400), ErrUnsupported, "refuses the list of referrers, tag sha256-"},
		{"tags immutable", on("PUT", isTag, 403), ErrDenied, "refuses the list of referrers, tag sha256-"},
		{"tag cannot be read", on("GET", isTag, 403), ErrDenied, "refuses the list of referrers, tag sha256-"},
		{"always another list", on("PUT", isTag, 412), ErrUnavailable, "changes all the time"},
		{"list is lost each time", on("PUT", isTag, 201), ErrUnavailable, "changes all the time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			ref := mustRef(t, s.put(t, "a/b", "v1", img))
			s.set(c.fault)
			r := newRegistry(t, Options{Timeouts: quick})
			_, err := r.PushReferrer(t.Context(), ref, referrer(img.desc, testType, "one", pattern(1000, 1)), nil)
			compare(t, "PushReferrer", err, c.want, nil)
			if !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("PushReferrer = %v, want it to say %q", err, c.says)
			}
			if errors.Is(err, ErrDenied) && errors.Is(err, ErrUnsupported) {
				t.Errorf("%v is both denied and unsupported", err)
			}
		})
	}
	t.Run("what cannot be attached", func(t *testing.T) {
		s := newServer(t)
		ref := mustRef(t, s.put(t, "a/b", "v1", img))
		r := newRegistry(t, Options{Timeouts: quick})
		before := s.hits.Load()
		for _, a := range []Referrer{
			{ArtifactType: testType},
			{Subject: img.desc},
			{Subject: img.desc, ArtifactType: "index"},
			{Subject: img.desc, ArtifactType: testType, Blobs: []SourceBlob{{Desc: ocispec.Descriptor{Digest: "x"}}}},
		} {
			if _, err := r.PushReferrer(t.Context(), ref, a, nil); !errors.Is(err, ErrBadManifest) {
				t.Errorf("PushReferrer(%+v) = %v, want ErrBadManifest", a, err)
			}
		}
		if s.hits.Load() != before {
			t.Error("the registry was asked")
		}
		if _, err := r.PushReferrer(t.Context(), mustRef(t, "docker-archive:x.tar"), referrer(img.desc, testType, ""), nil); !errors.Is(err, ErrUnsupported) {
			t.Errorf("PushReferrer to an archive = %v, want ErrUnsupported", err)
		}
	})
	t.Run("tag that is no list", func(t *testing.T) {
		s := newServer(t)
		ref := mustRef(t, s.put(t, "a/b", "v1", img))
		tag := "/v2/a/b/manifests/" + referrersTag(img.desc.Digest)
		s.do(t, "PUT", tag, ocispec.MediaTypeImageManifest, img.manifest)
		r := newRegistry(t, Options{Timeouts: quick})
		_, err := r.PushReferrer(t.Context(), ref, referrer(img.desc, testType, "one"), nil)
		compare(t, "PushReferrer", err, ErrBadManifest, nil)
		if got := get(s, tag).Body.Bytes(); !bytes.Equal(got, img.manifest) {
			t.Errorf("what was under the tag is now %s", got)
		}
	})
}

// TestPushReferrersAtOnce: who has read the list before another has written it
// overwrites that; the other finds out and puts its entry back.
func TestPushReferrersAtOnce(t *testing.T) {
	img := makeImage(t, "amd64", 1000)
	s := newServer(t)
	ref := mustRef(t, s.put(t, "a/b", "v1", img))
	tag := "/v2/a/b/manifests/" + referrersTag(img.desc.Digest)
	bothRead, firstWrote, secondWrote := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	var log []string
	s.set(func(w http.ResponseWriter, r *http.Request, n int) bool {
		if r.URL.Path != tag {
			return false
		}
		mu.Lock()
		step := r.Header.Get("User-Agent") + " " + r.Method
		log = append(log, step)
		first := !slices.Contains(log[:len(log)-1], step)
		mu.Unlock()
		switch {
		case step == "first GET" && first:
			<-bothRead
		case step == "second GET" && first:
			close(bothRead)
		case step == "first PUT" && first:
			defer close(firstWrote)
		case step == "second PUT" && first:
			<-firstWrote
			defer close(secondWrote)
		case step == "first GET":
			<-secondWrote
		}
		s.inner.ServeHTTP(w, r)
		return true
	})
	var wg sync.WaitGroup
	for _, who := range []string{"first", "second"} {
		r := newRegistry(t, Options{UserAgent: who})
		wg.Go(func() {
			if _, err := r.PushReferrer(t.Context(), ref, referrer(img.desc, testType, who), nil); err != nil {
				t.Errorf("PushReferrer by the %s = %v", who, err)
			}
		})
	}
	wg.Wait()
	got, err := newRegistry(t, Options{}).Referrers(t.Context(), ref, img.desc.Digest, testType)
	if err != nil || notes(got) != "first second" {
		t.Errorf("Referrers = %q, %v; what happened: %q", notes(got), err, log)
	}
}

// TestAddReferrer: what else is in the list stays, byte for byte.
func TestAddReferrer(t *testing.T) {
	img := makeImage(t, "amd64", 10)
	d := describe(ocispec.MediaTypeImageManifest, []byte("new"))
	d.ArtifactType = testType
	old := []byte(`{"x-kept":{"b":1,"a":2.50},"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[
		{"mediaType":"application/vnd.unknown","digest":"blake3:00","size":-1,"x":"<&>"},
		{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":5,"artifactType":"` + testType + `","annotations":{"old":"y"}}]}`)
	raw, err := addReferrer(old, d, nil)
	if err != nil {
		t.Fatal(err)
	}
	var flat bytes.Buffer
	if err := json.Compact(&flat, raw); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"b":1,"a":2.50}`, `"blake3:00","size":-1,"x":"<&>"`, someDigest, string(d.Digest)} {
		if !strings.Contains(flat.String(), want) {
			t.Errorf("%s is not in %s", want, flat.String())
		}
	}
	if again, err := addReferrer(raw, d, nil); err != nil || !bytes.Equal(again, raw) {
		t.Errorf("addReferrer of what is there = %s, %v", again, err)
	}
	raw, err = addReferrer(raw, d, func(old ocispec.Descriptor) bool { return old.Annotations["old"] == "y" })
	if err != nil || strings.Contains(string(raw), someDigest) || !strings.Contains(string(raw), "blake3:00") {
		t.Errorf("addReferrer in place of an old one = %s, %v", raw, err)
	}
	if _, err := addReferrer(img.manifest, d, nil); !errors.Is(err, ErrBadManifest) {
		t.Errorf("addReferrer to an image = %v, want ErrBadManifest", err)
	}
}

func TestReferrersTag(t *testing.T) {
	for d, want := range map[digest.Digest]string{
		digest.FromString("x"):        "sha256-" + digest.FromString("x").Encoded(),
		digest.SHA512.FromString("x"): "sha512-" + digest.SHA512.FromString("x").Encoded()[:64],
	} {
		if got := referrersTag(d); got != want || !isReferrersTag(got) {
			t.Errorf("referrersTag(%s) = %s, want %s", d, got, want)
		}
	}
	for _, s := range []string{"v1", "sha256-", "sha256-abc", "sha256-" + strings.Repeat("G", 64), "sha256:" + strings.Repeat("a", 64)} {
		if isReferrersTag(s) {
			t.Errorf("isReferrersTag(%s)", s)
		}
	}
}

func FuzzParseReferrers(f *testing.F) {
	img := makeImage(f, "amd64", 10)
	a := referrer(img.desc, testType, "one")
	doc, desc, err := a.document()
	if err != nil {
		f.Fatal(err)
	}
	listed, err := addReferrer(nil, desc, nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(listed)
	f.Add(doc.Raw)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[null,{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := parseArtifact(raw); err == nil {
			for _, d := range append(m.Layers, m.Config, ocispec.Descriptor{Digest: m.Subject.Digest}) {
				if checkBlobDesc(d) != nil {
					t.Errorf("parseArtifact(%q) has %+v", raw, d)
				}
			}
		}
		list, err := parseReferrers(raw)
		if err != nil {
			return
		}
		for _, d := range list {
			if !listable(d) {
				t.Errorf("parseReferrers(%q) has %+v", raw, d)
			}
		}
		out, err := addReferrer(raw, desc, nil)
		if err != nil {
			t.Fatalf("addReferrer to what parses = %v", err)
		}
		again, err := parseReferrers(out)
		n := len(list)
		if !slices.ContainsFunc(list, func(d ocispec.Descriptor) bool { return d.Digest == desc.Digest }) {
			n++
		}
		if err != nil || len(again) > n || len(again) < len(list) {
			t.Errorf("after addReferrer to %q: %d entries, %v, want %d", raw, len(again), err, n)
		}
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="x",scope="repository:a/b:pull",error="invalid_token"`)
	f.Add(`Basic realm="a\"b\\c"`)
	f.Fuzz(func(t *testing.T, text string) {
		c, err := challengeOf(t.Context(), "r.example", http.Header{"Www-Authenticate": {text}})
		if err != nil {
			if !errors.Is(err, ErrDenied) || c.scheme != 0 {
				t.Errorf("challengeOf(%q) = %v, %v", text, c, err)
			}
			return
		}
		list := auth.ParseAuthHeader(http.Header{"Www-Authenticate": {text}})
		i := slices.IndexFunc(list, func(ch auth.Challenge) bool { return ch.Scheme == c.scheme })
		if i < 0 {
			t.Fatalf("challengeOf(%q) = %v, which is not in it", text, c)
		}
		if c.scheme == auth.BearerAuth && (c.options.Service != list[i].Parameters["service"] || c.options.Secret != "" || len(c.options.Scopes) == 0 && list[i].Parameters["scope"] != "") {
			t.Errorf("challengeOf(%q) = %+v", text, c)
		}
		if g := c.general(); len(g.options.Scopes) != 0 || g.options.Realm != c.options.Realm {
			t.Errorf("general() of %q = %+v", text, g)
		}
	})
}

func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/a/b/referrers/x?n=1>; rel="next"`)
	f.Add(`<https://other/>; rel=next, <>;rel=next`)
	f.Fuzz(func(t *testing.T, link string) {
		at := &url.URL{Scheme: "https", Host: "r.example", Path: "/v2/a/b/referrers/x"}
		next, err := nextPage(at, []string{link})
		if err == nil && next != nil && (next.Host != at.Host || next.Scheme != "https" || next.User != nil) {
			t.Errorf("nextPage(%q) = %v", link, next)
		}
	})
}

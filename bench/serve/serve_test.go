package serve

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/registry"
)

// start serves g and returns its host.
func start(t *testing.T, g *Registry) string {
	s := httptest.NewServer(g)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func do(t *testing.T, method, url, body string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

func read(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// image is a source of an image with one layer.
func image(t *testing.T, layer string, subject *ocispec.Descriptor) *registry.Source {
	t.Helper()
	desc := func(mediaType, text string) ocispec.Descriptor {
		return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromString(text), Size: int64(len(text))}
	}
	m := ocispec.Manifest{
		MediaType: ocispec.MediaTypeImageManifest, Config: desc(ocispec.MediaTypeImageConfig, "{}"),
		Layers: []ocispec.Descriptor{desc(ocispec.MediaTypeImageLayerGzip, layer)}, Subject: subject,
	}
	m.SchemaVersion = 2
	if subject != nil {
		m.ArtifactType, m.Annotations = "application/vnd.test", map[string]string{"k": "v"}
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return &registry.Source{
		Root: registry.Document{Desc: desc(ocispec.MediaTypeImageManifest, string(raw)), Raw: raw},
		Blobs: []registry.SourceBlob{registry.BytesBlob(m.Config, []byte("{}")), {Desc: m.Layers[0],
			Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(layer)), nil }}},
	}
}

func push(t *testing.T, host, name string, src *registry.Source) {
	t.Helper()
	reg := registry.New(registry.Options{})
	defer reg.Close()
	ref, err := registry.ParseRef(host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reg.Push(t.Context(), ref, src, nil); err != nil {
		t.Fatal(err)
	}
}

func TestPushPullSave(t *testing.T) {
	var mu sync.Mutex
	var seen []Request
	g := &Registry{Seen: func(r Request) { mu.Lock(); defer mu.Unlock(); seen = append(seen, r) }}
	host := start(t, g)
	src := image(t, "a layer", nil)
	push(t, host, "a/b:1", src)

	dir := t.TempDir()
	if err := g.Save(dir, "a/b", "1", "kept"); err != nil {
		t.Fatal(err)
	}
	again := new(Registry)
	if err := again.AddLayout(dir, func(tag string) (string, string) { return "c", tag }); err != nil {
		t.Fatal(err)
	}
	d, size, err := again.Load("c", "kept")
	if d != src.Root.Desc.Digest || size != int64(len("a layer")) || err != nil {
		t.Errorf("Load of the saved image: %s, %d, %v", d, size, err)
	}
	resp := do(t, "GET", "http://"+start(t, again)+"/v2/c/manifests/kept", "")
	if got := read(t, resp); got != string(src.Root.Raw) || resp.Header.Get("Content-Type") != ocispec.MediaTypeImageManifest {
		t.Errorf("the saved manifest reads %q, %q", got, resp.Header.Get("Content-Type"))
	}
	mu.Lock()
	defer mu.Unlock()
	first, last := seen[len(seen)-2], seen[len(seen)-1]
	if first.ID != last.ID || !first.End.IsZero() || first.Target != "1" {
		t.Errorf("the last request was first seen as %+v", first)
	}
	if last.Method != "PUT" || last.Kind != "manifest" || last.Repo != "a/b" || last.Target != "1" || last.Status != 201 || last.End.Before(last.Begin) {
		t.Errorf("the last request seen is %+v", last)
	}
}

// TestPlatformsLeftOut: an index may name manifests that a layout does not have.
func TestPlatformsLeftOut(t *testing.T) {
	g := new(Registry)
	host := start(t, g)
	src := image(t, "a layer", nil)
	push(t, host, "a:1", src)
	index, err := json.Marshal(ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{
		src.Root.Desc, {MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("another platform's"), Size: 7},
	}})
	if err != nil {
		t.Fatal(err)
	}
	g.addManifest("a", "both", ocispec.MediaTypeImageIndex, index)
	dir := t.TempDir()
	if err := g.Save(dir, "a", "both", "both"); err != nil {
		t.Fatal(err)
	}
	again := new(Registry)
	if err := again.AddLayout(dir, func(tag string) (string, string) { return "b", tag }); err != nil {
		t.Fatal(err)
	}
	if err := again.Copy("b", "both", "c", "both"); err != nil {
		t.Fatal(err)
	}
	if d, size, err := again.Load("c", "both"); d != digest.FromBytes(index) || size != int64(len("a layer")) || err != nil {
		t.Errorf("Load = %s, %d, %v", d, size, err)
	}
}

func TestReferrers(t *testing.T) {
	g := new(Registry)
	host := start(t, g)
	src := image(t, "a layer", nil)
	push(t, host, "a:1", src)
	push(t, host, "a:index", image(t, "an index", &src.Root.Desc))
	if err := g.Copy("a", "1", "b", "1"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		url  string
		want int
	}{
		{"/v2/a/referrers/" + src.Root.Desc.Digest.String(), 1},
		{"/v2/a/referrers/" + src.Root.Desc.Digest.String() + "?artifactType=application/vnd.test", 1},
		{"/v2/a/referrers/" + src.Root.Desc.Digest.String() + "?artifactType=application/other", 0},
		{"/v2/a/referrers/" + digest.FromString("x").String(), 0},
		{"/v2/b/referrers/" + src.Root.Desc.Digest.String(), 0}, // left behind
	} {
		resp := do(t, "GET", "http://"+host+c.url, "")
		var ix ocispec.Index
		if err := json.NewDecoder(resp.Body).Decode(&ix); err != nil {
			t.Fatal(err)
		}
		if len(ix.Manifests) != c.want {
			t.Errorf("%s: %d manifests, want %d", c.url, len(ix.Manifests), c.want)
		}
		for _, d := range ix.Manifests {
			if d.ArtifactType != "application/vnd.test" || d.Annotations["k"] != "v" {
				t.Errorf("%s: %+v", c.url, d)
			}
		}
	}
}

func TestRanges(t *testing.T) {
	g := new(Registry)
	host := start(t, g)
	data := bytes.Repeat([]byte("0123456789"), 100)
	d := g.addBytes(data)
	url := "http://" + host + "/v2/a/blobs/" + d.String()
	if resp := do(t, "GET", url, "", "Range", "bytes=10-19"); resp.StatusCode != 206 || read(t, resp) != "0123456789" {
		t.Errorf("a range: %s", resp.Status)
	}
	resp := do(t, "GET", url, "", "Range", "bytes=0-1,500-502")
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := multipart.NewReader(resp.Body, params["boundary"])
	for _, want := range []string{"01", "012"} {
		p, err := parts.NextPart()
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(p); string(b) != want || err != nil {
			t.Errorf("part %q, %v; want %q", b, err, want)
		}
	}
	if resp := do(t, "GET", url, "", "Range", "bytes=1000-"); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a range past the end: %s", resp.Status)
	}
}

func TestChunkedUpload(t *testing.T) {
	host := start(t, new(Registry))
	begin := func() string {
		resp := do(t, "POST", "http://"+host+"/v2/a/blobs/uploads/", "")
		return "http://" + host + resp.Header.Get("Location")
	}
	whole := digest.FromString("one two")
	at := begin()
	if resp := do(t, "PATCH", at, "one ", "Content-Range", "0-3"); resp.StatusCode != 202 || resp.Header.Get("Range") != "0-3" {
		t.Errorf("PATCH: %s, Range %s", resp.Status, resp.Header.Get("Range"))
	}
	if resp := do(t, "PATCH", at, "x", "Content-Range", "9-9"); resp.StatusCode != 416 {
		t.Errorf("PATCH with a gap: %s", resp.Status)
	}
	if resp := do(t, "PUT", at+"?digest="+whole.String(), "two"); resp.StatusCode != 201 {
		t.Errorf("PUT: %s", resp.Status)
	}
	if resp := do(t, "GET", "http://"+host+"/v2/a/blobs/"+whole.String(), ""); read(t, resp) != "one two" {
		t.Error("the blob is not what was pushed")
	}
	if resp := do(t, "PUT", begin()+"?digest="+whole.String(), "something else"); resp.StatusCode != 400 {
		t.Errorf("PUT with a wrong digest: %s", resp.Status)
	}
	if resp := do(t, "POST", "http://"+host+"/v2/b/blobs/uploads/?mount="+whole.String()+"&from=a", ""); resp.StatusCode != 201 {
		t.Errorf("mount: %s", resp.Status)
	}
	if resp := do(t, "PUT", "http://"+host+"/v2/a/blobs/uploads/77?digest="+whole.String(), ""); resp.StatusCode != 404 {
		t.Errorf("PUT to an upload that is not: %s", resp.Status)
	}
}

func TestRefuses(t *testing.T) {
	g := new(Registry)
	host := start(t, g)
	missing := digest.FromString("missing").String()
	manifest := `{"config":{"digest":"` + missing + `"}}`
	for _, c := range []struct {
		name, method, path, body string
		want                     int
	}{
		{"a manifest that is not", "GET", "/v2/a/manifests/latest", "", 404},
		{"a blob that is not", "GET", "/v2/a/blobs/" + missing, "", 404},
		{"a manifest without its blobs", "PUT", "/v2/a/manifests/1", manifest, 404},
		{"a manifest under another digest", "PUT", "/v2/a/manifests/" + missing, "{}", 400},
		{"no JSON", "PUT", "/v2/a/manifests/1", "x", 400},
		{"no digest", "PUT", "/v2/a/manifests/1", `{"config":{"digest":"sha256:../../x"}}`, 400},
		{"a large manifest", "PUT", "/v2/a/manifests/1", strings.Repeat(" ", maxManifest+1), 413},
		{"another verb", "DELETE", "/v2/a/manifests/1", "", 405},
		{"another path", "GET", "/v2/a/tags", "", 405},
	} {
		if resp := do(t, c.method, "http://"+host+c.path, c.body); resp.StatusCode != c.want {
			t.Errorf("%s: %s, want %d", c.name, resp.Status, c.want)
		}
	}
	if err := g.Save(t.TempDir(), "a", "b", "c"); err == nil {
		t.Error("saved an image that is not")
	}
	if _, _, err := g.Load("a", "b"); err == nil {
		t.Error("loaded an image that is not")
	}
	if err := g.AddLayout(t.TempDir(), nil); err == nil {
		t.Error("added a directory that is no layout")
	}
	if _, ok := errors.AsType[*problem](g.Copy("a", "b", "c", "d")); ok || g.Has("c", "d") {
		t.Error("copied an image that is not")
	}
}

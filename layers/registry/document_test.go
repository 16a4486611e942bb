package registry

import (
	"bytes"
	"errors"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// TestDocument: a manifest that is no image comes by its digest from wherever the image is.
func TestDocument(t *testing.T) {
	img := makeImage(t, "amd64", 100)
	raw := []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","config":{"mediaType":"application/vnd.x"}}`)
	big := bytes.Repeat([]byte(" "), layers.MaxManifest+1)
	s := newServer(t)
	s.put(t, "a/b", "v1", img)
	known := map[digest.Digest][]byte{digest.FromBytes(raw): raw, digest.FromBytes(big): big}
	for d, p := range known {
		s.do(t, "PUT", "/v2/a/b/manifests/"+d.String(), ocispec.MediaTypeImageManifest, p)
	}
	dir := writeDir(t, layoutFiles(t, []ocispec.Descriptor{img.entry("v1")}, img.all(), known))
	for _, name := range []string{s.host() + "/a/b:v1", "oci:" + dir + ":v1"} {
		r := newRegistry(t, Options{Timeouts: quick})
		ref := mustRef(t, name)
		desc := describe(ocispec.MediaTypeImageManifest, raw)
		for _, size := range []int64{0, desc.Size} {
			desc.Size = size
			if got, err := r.Document(t.Context(), ref, desc); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s: Document of size %d = %q, %v", name, size, got, err)
			}
		}
		other := describe(desc.MediaType, []byte("other"))
		for what, c := range map[string]struct {
			desc ocispec.Descriptor
			want error
		}{
			"no digest":  {ocispec.Descriptor{Digest: "sha256:x"}, ErrBadManifest},
			"other size": {ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: 7}, nil},
			"too large":  {ocispec.Descriptor{MediaType: desc.MediaType, Digest: digest.FromBytes(big)}, layers.ErrTooLarge},
			"not there":  {other, ErrNotFound},
		} {
			if got, err := r.Document(t.Context(), ref, c.desc); err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("%s: %s: Document = %d bytes, %v, want %v", name, what, len(got), err, c.want)
			}
		}
	}
}

// TestOnFetched: the manifest is told of before the config has come, and after its digest.
func TestOnFetched(t *testing.T) {
	img, other := makeImage(t, "amd64", 100, 200), makeImage(t, "arm64", 10)
	list := mustJSON(t, ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{other.desc, img.desc}})
	s := newServer(t)
	s.put(t, "a/b", "arm", other)
	ref := mustRef(t, s.put(t, "a/b", "plain", img))
	s.do(t, "PUT", "/v2/a/b/manifests/list", ocispec.MediaTypeImageIndex, list)
	for tag, want := range map[string]int{"plain": 1, "list": 2} { // the list does not say which is which
		ref.Tag = tag
		var told []digest.Digest
		var fetched []ocispec.Manifest
		got, err := newRegistry(t, Options{Timeouts: quick}).ResolveWith(t.Context(), ref, ResolveOptions{
			Platform:   "linux/amd64",
			OnManifest: func(d ocispec.Descriptor) { told = append(told, d.Digest) },
			OnFetched: func(m *ocispec.Manifest) {
				if fetched = append(fetched, *m); len(fetched) != len(told) {
					t.Errorf("%s: manifest %d is told of, %d digests were", tag, len(fetched), len(told))
				}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(fetched) != want || fetched[want-1].Config.Digest != got.Manifest.Config.Digest || told[want-1] != got.Desc.Digest {
			t.Errorf("%s: told of %v and %v, want %d, the last of them the image's", tag, told, fetched, want)
		}
	}
}

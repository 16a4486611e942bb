package convert

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/lazy"
)

type closer struct {
	bytes.Buffer
	closed int
}

func (c *closer) Close() error { c.closed++; return nil }

// image is an image of two layers, one gzip by Docker's name, and its new blobs.
func image(t *testing.T) (Source, []*closer) {
	t.Helper()
	stored := [][]byte{compress(t, "gzip", tarOf(t, odd())), compress(t, "zstd", tarOf(t, odd()[:5]))}
	out := []*closer{{}, {}}
	src := Source{
		Config: []byte(`{"architecture":"amd64","os":"linux","x-own":{"a":1},"config":{"Cmd":["sh"]},
			"history":[{"created_by":"a"},{"created_by":"b","empty_layer":true},{"created_by":"c"}],
			"rootfs":{"type":"layers","diff_ids":["sha256:1","sha256:2"]}}`),
		Open: func(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
			for _, p := range stored {
				if digest.FromBytes(p) == d.Digest {
					return io.NopCloser(bytes.NewReader(p)), nil
				}
			}
			return nil, errors.New("no such blob")
		},
		Create: func(i int, _ ocispec.Descriptor) (io.WriteCloser, error) { return out[i], nil },
	}
	src.Manifest.Annotations = map[string]string{"who": "me"}
	src.Manifest.Subject = &ocispec.Descriptor{Digest: "sha256:0"}
	for i, mt := range []string{"application/vnd.docker.image.rootfs.diff.tar.gzip", ocispec.MediaTypeImageLayerZstd} {
		src.Manifest.Layers = append(src.Manifest.Layers, ocispec.Descriptor{
			MediaType: mt, Digest: digest.FromBytes(stored[i]), Size: int64(len(stored[i])),
			Annotations: map[string]string{"keep": "it", "containerd.io/snapshot/stargz/toc.digest": "sha256:old", "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1"},
		})
	}
	return src, out
}

func TestImageOf(t *testing.T) {
	for _, format := range formats {
		src, out := image(t)
		img, err := ImageOf(t.Context(), src, Options{Format: format})
		if err != nil {
			t.Fatal(err)
		}
		var m ocispec.Manifest
		var c ocispec.Image
		if err := errors.Join(json.Unmarshal(img.Manifest, &m), json.Unmarshal(img.Config, &c)); err != nil {
			t.Fatal(err)
		}
		if img.Desc.Digest != digest.FromBytes(img.Manifest) || m.Config.Digest != digest.FromBytes(img.Config) || m.Subject != nil {
			t.Errorf("%s: manifest %s does not fit", format, img.Manifest)
		}
		if len(c.History) != 3 || c.Config.Cmd[0] != "sh" || m.Annotations["who"] != "me" || !bytes.Contains(img.Config, []byte(`"x-own":{"a":1}`)) {
			t.Errorf("%s: config is %s", format, img.Config)
		}
		for i, desc := range m.Layers {
			b := blob(out[i].Bytes())
			ix, got, err := lazy.Open(t.Context(), desc, b)
			if err != nil || got != format || out[i].closed != 1 {
				t.Fatalf("layer %d: Open = %q, %v; closed %d times", i, got, err, out[i].closed)
			}
			indexed(t, b, ix)
			r, done, err := decompress(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			d, err := digest.FromReader(r)
			done()
			if err != nil || d != c.RootFS.DiffIDs[i] {
				t.Errorf("%s: diff ID of layer %d is %v, %v, want %v", format, i, c.RootFS.DiffIDs[i], err, d)
			}
			want := map[string]string{"keep": "it"}
			for k := range desc.Annotations {
				if aboutTOC(k) {
					want[k] = img.Layers[i].Desc.Annotations[k]
				}
			}
			if diff := cmp.Diff(want, desc.Annotations); diff != "" {
				t.Errorf("%s: annotations (-want +got):\n%s", format, diff)
			}
		}
	}
}

func TestImageOfRefuses(t *testing.T) {
	for name, spoil := range map[string]func(*Source){
		"media type":   func(s *Source) { s.Manifest.Layers[1].MediaType = "application/json" },
		"missing blob": func(s *Source) { s.Manifest.Layers[1].Digest = "sha256:0" },
		"config":       func(s *Source) { s.Config = []byte("{") },
		"diff IDs":     func(s *Source) { s.Config = []byte(`{"rootfs":{"diff_ids":["sha256:1"]}}`) },
		"no rootfs":    func(s *Source) { s.Config = []byte(`{}`) },
		"nowhere to put": func(s *Source) {
			s.Create = func(int, ocispec.Descriptor) (io.WriteCloser, error) { return nil, errors.New("full") }
		},
		"fewer layers": func(s *Source) { s.Manifest.Layers = s.Manifest.Layers[:1] },
	} {
		src, out := image(t)
		spoil(&src)
		if _, err := ImageOf(t.Context(), src, Options{}); err == nil {
			t.Errorf("ImageOf(%s) succeeds", name)
		}
		for i, w := range out {
			if w.Len() > 0 && w.closed != 1 {
				t.Errorf("ImageOf(%s) leaves the blob of layer %d open", name, i)
			}
		}
	}
	src, _ := image(t)
	src.Manifest.Layers[0].MediaType = "text/plain"
	if _, err := ImageOf(t.Context(), src, Options{}); !errors.Is(err, layers.ErrBadLayer) {
		t.Errorf("ImageOf(text) = %v, want ErrBadLayer", err)
	}
}

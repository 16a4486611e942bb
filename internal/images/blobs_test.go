package images

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

func TestBlob(t *testing.T) {
	d, err := openDB(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	s := &Service{db: d}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("layer"), Size: 5}
	config := []byte(`{"architecture":"amd64"}`)
	manifest, err := json.Marshal(ocispec.Manifest{Config: ocispec.Descriptor{Digest: digest.FromBytes(config), Size: int64(len(config))}, Layers: []ocispec.Descriptor{layer}})
	if err != nil {
		t.Fatal(err)
	}
	image := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
	row := func(bucket, key string, v any) {
		t.Helper()
		if err := d.Update(func(tx *bolt.Tx) error {
			if v == nil {
				return del(tx, bucket, key)
			}
			return put(tx, bucket, key, v)
		}); err != nil {
			t.Fatal(err)
		}
	}
	unknown := func(d digest.Digest) {
		t.Helper()
		if _, _, _, err := s.Blob(d); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Blob(%s): %v, want that it does not exist", d, err)
		}
	}
	unknown(layer.Digest)
	unknown(digest.FromBytes(config))

	hex := layer.Digest.Encoded()
	row("layers", hex, layerRow{Desc: layer, Source: "a/b:1"})
	row("layers", hex+"-00", layerRow{Desc: layer, Source: "a/b:1"})
	row("layers", hex+"-01", layerRow{Desc: layer, Source: "c/d:1"})
	row("layers", "z"+hex, layerRow{Desc: layer, Source: "e/f:1"})
	row("manifests", image.Digest.String(), manifestRow{Desc: image, Source: "a/b:1", Manifest: manifest, Config: config})

	desc, sources, data, err := s.Blob(layer.Digest)
	if err != nil || desc.Size != 5 || data != nil || !slices.Equal(sources, []string{"a/b:1", "c/d:1"}) {
		t.Errorf("layer: %+v from %v, %d bytes, %v", desc, sources, len(data), err)
	}
	for _, want := range [][]byte{manifest, config, manifest} {
		desc, sources, data, err := s.Blob(digest.FromBytes(want))
		if err != nil || string(data) != string(want) || desc.Size != int64(len(want)) || !slices.Equal(sources, []string{"a/b:1"}) {
			t.Errorf("document: %+v from %v, %q, %v", desc, sources, data, err)
		}
	}
	unknown(digest.FromString("another"))
	if _, _, _, err := s.Blob("sha256:0"); err == nil {
		t.Error("a digest that is none is known")
	}

	row("manifests", image.Digest.String(), manifestRow{Desc: image, Source: "a/b:1", Manifest: manifest, Config: []byte("torn")})
	if _, _, _, err := s.Blob(digest.FromBytes(config)); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a config with other bytes: %v", err)
	}
	row("manifests", image.Digest.String(), nil)
	unknown(digest.FromBytes(config))
	unknown(image.Digest)
}

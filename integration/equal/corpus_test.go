package equal

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCorpus compares an image of an OCI layout, named by SNAPFS_CORPUS (and
// SNAPFS_CORPUS_IMAGE, "zoo" if that is empty).
func TestCorpus(t *testing.T) {
	needRoot(t)
	layout := os.Getenv("SNAPFS_CORPUS")
	if layout == "" {
		t.Skip("SNAPFS_CORPUS names no OCI layout")
	}
	image := os.Getenv("SNAPFS_CORPUS_IMAGE")
	if image == "" {
		image = "zoo"
	}
	manifest, config := readImage(t, layout, image)
	a, b := &theirs{}, newOurs(t)
	base, start := t.TempDir(), time.Now()
	for i, desc := range manifest.Layers {
		for _, add := range []func(f *os.File) error{
			func(f *os.File) error { return a.unpack(t.Context(), base, f) },
			func(f *os.File) error { return b.add(t.Context(), desc, config.RootFS.DiffIDs[i], f) },
		} {
			f, err := os.Open(blob(layout, desc.Digest))
			if err != nil {
				t.Fatal(err)
			}
			if err := add(f); err != nil {
				t.Fatalf("layer %d: %v", i, err)
			}
			f.Close()
		}
	}
	t.Logf("%d names", b.tree.Len())
	compare(t, a, b, start)
}

func blob(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

func readImage(t *testing.T, layout, image string) (m ocispec.Manifest, c ocispec.Image) {
	var index ocispec.Index
	readJSON(t, filepath.Join(layout, ocispec.ImageIndexFile), &index)
	for _, desc := range index.Manifests {
		if desc.Annotations[ocispec.AnnotationRefName] == image {
			readJSON(t, blob(layout, desc.Digest), &m)
			readJSON(t, blob(layout, m.Config.Digest), &c)
			return m, c
		}
	}
	t.Fatalf("%s has no image %q", layout, image)
	return m, c
}

func readJSON(t *testing.T, name string, v any) {
	b, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

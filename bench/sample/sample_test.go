package sample

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers/registry"
)

// small is a writer of a toolchain of three files.
func small(t *testing.T) *writer {
	w := &writer{blobs: t.TempDir(), goroot: t.TempDir()}
	for _, name := range []string{"bin/go", "src/fmt/print.go", "test/x.go"} {
		p := filepath.Join(w.goroot, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// check reads an image's blobs and compares them with what its documents say.
func check(t *testing.T, src *registry.Source) {
	t.Helper()
	var m ocispec.Manifest
	if err := json.Unmarshal(src.Root.Raw, &m); err != nil {
		t.Fatal(err)
	}
	blobs := make(map[digest.Digest]registry.SourceBlob)
	for _, b := range src.Blobs {
		blobs[b.Desc.Digest] = b
	}
	read := func(d digest.Digest, gunzip bool) []byte {
		r, err := blobs[d].Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var from io.Reader = r
		if gunzip {
			if from, err = gzip.NewReader(r); err != nil {
				t.Fatal(err)
			}
		}
		b, err := io.ReadAll(from)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	var c ocispec.Image
	if err := json.Unmarshal(read(m.Config.Digest, false), &c); err != nil {
		t.Fatal(err)
	}
	if len(m.Layers) != len(goLayers) || len(c.RootFS.DiffIDs) != len(goLayers) {
		t.Fatalf("%d layers, %d diff IDs", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, l := range m.Layers {
		if stored := read(l.Digest, false); digest.FromBytes(stored) != l.Digest || int64(len(stored)) != l.Size {
			t.Errorf("layer %d: %d bytes, %s; want %+v", i, len(stored), digest.FromBytes(stored), l)
		}
		if got := digest.FromBytes(read(l.Digest, true)); got != c.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: its tar is %s, its diff ID %s", i, got, c.RootFS.DiffIDs[i])
		}
	}
}

func TestGzip(t *testing.T) {
	src, err := small(t).gzip()
	if err != nil {
		t.Fatal(err)
	}
	check(t, src)
}

func TestEStargz(t *testing.T) {
	src, err := small(t).estargz(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check(t, src)
}

func TestNoToolchain(t *testing.T) {
	w := &writer{blobs: t.TempDir(), goroot: filepath.Join(t.TempDir(), "none")}
	if _, err := w.gzip(); err == nil {
		t.Error("an image of no toolchain")
	}
}

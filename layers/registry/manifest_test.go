package registry

import (
	"archive/tar"
	"bytes"
	"errors"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

func TestParseDocument(t *testing.T) {
	good := string(makeImage(t, "amd64", 10).manifest)
	sub := func(old, repl string) string {
		s := strings.Replace(good, old, repl, 1)
		if s == good {
			t.Fatalf("%q is not in %s", old, good)
		}
		return s
	}
	index := `{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageIndex + `","manifests":[{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + someDigest + `","size":5}]}`
	mt := `"mediaType":"` + ocispec.MediaTypeImageManifest + `",`
	for _, c := range []struct {
		name, raw, said string
		want            error
	}{
		{"manifest", good, "", nil},
		{"manifest, said", good, ocispec.MediaTypeImageManifest, nil},
		{"manifest, only said", sub(mt, ""), ocispec.MediaTypeImageManifest, nil},
		{"index", index, "", nil},
		{"docker", strings.Replace(good, ocispec.MediaTypeImageManifest, dockerManifest, 1), dockerManifest, nil},
		{"docker list", strings.Replace(index, ocispec.MediaTypeImageIndex, dockerList, 1), "", nil},
		{"empty index", `{"schemaVersion":2,"manifests":null}`, ocispec.MediaTypeImageIndex, nil},
		{"no type", sub(mt, ""), "", ErrBadManifest},
		{"said to be an index", good, ocispec.MediaTypeImageIndex, ErrBadManifest},
		{"index said to be a manifest", index, ocispec.MediaTypeImageManifest, ErrBadManifest},
		{"manifest with manifests", sub(`"layers"`, `"manifests":[],"layers"`), "", ErrBadManifest},
		{"index with layers", strings.Replace(index, `"manifests"`, `"layers":[],"manifests"`, 1), "", ErrBadManifest},
		{"index with config", strings.Replace(index, `"manifests"`, `"config":{},"manifests"`, 1), "", ErrBadManifest},
		{"repeated layers", sub(`"layers"`, `"layers":[],"layers"`), "", ErrBadManifest},
		{"layers in another case", sub(`"layers"`, `"Layers"`), "", ErrBadManifest},
		{"Manifests in another case", sub(`"layers"`, `"Manifests":[],"layers"`), "", ErrBadManifest},
		{"schema 1", `{"schemaVersion":1,"fsLayers":[]}`, "", ErrUnsupported},
		{"schema 3", sub(`"schemaVersion":2`, `"schemaVersion":3`), "", ErrBadManifest},
		{"array", `[]`, ocispec.MediaTypeImageIndex, ErrBadManifest},
		{"empty", ``, ocispec.MediaTypeImageIndex, ErrBadManifest},
		{"cut", good[:len(good)-1], "", ErrBadManifest},
		{"more after it", good + good, "", ErrBadManifest},
		{"artifact", strings.Replace(good, ocispec.MediaTypeImageConfig, "application/vnd.x", 1), "", ErrUnsupported},
		{"layer type", strings.Replace(good, ocispec.MediaTypeImageLayer, "application/vnd.in-toto+json", 1), "", ErrUnsupported},
		{"encrypted layer", strings.Replace(good, ocispec.MediaTypeImageLayer, ocispec.MediaTypeImageLayer+"+encrypted", 1), "", ErrUnsupported},
		{"digest with a path", sub(`"digest":"sha256:`, `"digest":"sha256:../`), "", ErrBadManifest},
		{"digest of another kind", sub(`"digest":"sha256:`, `"digest":"md5:`), "", ErrBadManifest},
		{"negative size", sub(`"size":10`, `"size":-1`), "", ErrBadManifest},
		{"size as text", sub(`"size":10`, `"size":"10"`), "", ErrBadManifest},
		{"huge config", sub(`"size":`, `"size":99999999999`), "", layers.ErrTooLarge},
		{"unknown type", strings.Replace(good, ocispec.MediaTypeImageManifest, "text/x", 1), "", ErrUnsupported},
		{"deep", strings.Repeat(`{"a":`, 20000), "", ErrBadManifest},
		{"too large", strings.Repeat(" ", layers.MaxManifest+1), "", layers.ErrTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := parseDocument([]byte(c.raw), c.said)
			if !errors.Is(err, c.want) {
				t.Errorf("parseDocument = %v, want %v", err, c.want)
			}
			if err == nil && (p.index == nil) == (p.manifest == nil) {
				t.Error("it is both, or neither")
			}
		})
	}
}

func TestParseConfig(t *testing.T) {
	good := string(makeImage(t, "amd64", 10).config)
	for _, c := range []struct {
		name, raw string
		n         int
		want      error
	}{
		{"good", good, 1, nil},
		{"fewer layers", good, 0, ErrBadManifest},
		{"more layers", good, 2, ErrBadManifest},
		{"rootfs type", strings.Replace(good, `"layers"`, `"x"`, 1), 1, ErrBadManifest},
		{"diff ID", strings.Replace(good, `"sha256:`, `"sha256:x`, 1), 1, ErrBadManifest},
		{"cut", good[:20], 1, ErrBadManifest},
		{"null", "null", 0, ErrBadManifest},
	} {
		if _, err := parseConfig([]byte(c.raw), c.n); !errors.Is(err, c.want) {
			t.Errorf("%s: parseConfig = %v, want %v", c.name, err, c.want)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	img := makeImage(f, "amd64", 10)
	f.Add(img.manifest, "")
	f.Add(img.manifest, ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[]}`), ocispec.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, raw []byte, said string) {
		p, err := parseDocument(raw, said)
		if err != nil {
			return
		}
		if (p.index == nil) == (p.manifest == nil) {
			t.Fatal("it is both, or neither")
		}
		if p.manifest != nil && p.manifest.Config.Digest.Validate() != nil {
			t.Error("a manifest without a config")
		}
		if _, err := nameIn(raw, describe(ocispec.MediaTypeImageManifest, nil), "x", nil); p.index != nil && p.mediaType == ocispec.MediaTypeImageIndex && err != nil {
			t.Errorf("nameIn of what parses = %v", err)
		}
	})
}

func FuzzParseConfig(f *testing.F) {
	f.Add(makeImage(f, "amd64", 10).config, 1)
	f.Fuzz(func(t *testing.T, raw []byte, n int) {
		if c, err := parseConfig(raw, n); err == nil && len(c.RootFS.DiffIDs) != n {
			t.Error("diff ID count")
		}
	})
}

func FuzzParseSaved(f *testing.F) {
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["a:1"],"Layers":["l.tar"]}]`), "a:1")
	f.Add([]byte(`[{"Config":"c","RepoTags":null},{"Config":"c"}]`), "")
	f.Fuzz(func(t *testing.T, raw []byte, tag string) {
		if list, err := parseSaved(raw); err == nil {
			if m, err := pick(list, tag); err == nil && m.Config == "" {
				t.Error("an image without a config")
			}
		}
	})
}

func FuzzIndexTar(f *testing.F) {
	f.Add(writeTar(f, map[string][]byte{"a": []byte("hello")}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "a"})[:2048]) // without the blocks of zeros at the end
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := indexTar(bytes.NewReader(raw))
		if err != nil {
			return
		}
		a := &archive{members: m}
		for name := range m {
			if s, err := a.member(name); err == nil && (s.off < 0 || s.size < 0 || s.off+s.size > int64(len(raw))) {
				t.Errorf("member %q at %d, %d bytes, of %d", name, s.off, s.size, len(raw))
			}
		}
	})
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 0-9/10")
	f.Add("bytes 5-9/*")
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, err := parseContentRange(s)
		if err == nil && (first < 0 || last < first || total < -1) {
			t.Errorf("parseContentRange(%q) = %d, %d, %d", s, first, last, total)
		}
	})
}

package soci

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// TestIndexes: the index manifests of SOCI's own program, of both versions.
func TestIndexes(t *testing.T) {
	m := loadImage(t)
	if m.v1.Version != 1 || m.v2.Version != 2 || m.v1.Subject != m.desc.Digest || m.v2.Subject != "" {
		t.Errorf("versions %d and %d, subjects %s and %s, want that of %s", m.v1.Version, m.v2.Version, m.v1.Subject, m.v2.Subject, m.desc.Digest)
	}
	for i, layer := range m.manifest.Layers {
		a, ok1 := m.v1.ZTOC(layer.Digest)
		b, ok2 := m.v2.ZTOC(layer.Digest)
		if !ok1 || !ok2 || a.Digest != b.Digest || a.Size != int64(len(blobOf(t, a.Digest))) {
			t.Errorf("layer %d: ztocs %+v and %+v", i, a, b)
		}
	}
	if _, ok := m.v2.ZTOC(m.manifest.Config.Digest); ok || m.v2.Len() != 3 {
		t.Errorf("a ztoc of no layer, or %d", m.v2.Len())
	}
	if _, ok := m.v1.Prefetch(m.manifest.Layers[1].Digest); ok {
		t.Error("version 1 here prefetches nothing")
	}
}

func TestPrefetch(t *testing.T) {
	m, s := loadImage(t), samples(t)[1]
	d, ok := m.v2.Prefetch(s.desc.Digest)
	if !ok {
		t.Fatal("Prefetch: none")
	}
	l := s.open(t)
	list, err := ParsePrefetch(blobOf(t, d.Digest), d.Digest, l)
	if err != nil {
		t.Fatal(err)
	}
	// make.sh asked for data/part03.
	i := slices.IndexFunc(l.Index.Entries, func(e layers.Entry) bool { return e.Name == "data/part03" })
	at, _ := l.find(l.Index.Entries[i].Object)
	if span := l.span(l.places[at].off); !slices.Contains(list, span) {
		t.Errorf("spans %v, the file is in %d", list, span)
	}
	for name, doc := range map[string]string{
		"version":   `{"version":"2.0","prefetch_spans":[{"start_span":1,"end_span":1}]}`,
		"beyond":    `{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":1000}]}`,
		"negative":  `{"version":"1.0","prefetch_spans":[{"start_span":-1,"end_span":1}]}`,
		"backwards": `{"version":"1.0","prefetch_spans":[{"start_span":2,"end_span":1}]}`,
		"twice":     `{"version":"1.0","prefetch_spans":[{"start_span":0,"end_span":1},{"start_span":1,"end_span":2}]}`,
		"text":      `all`,
	} {
		if list, err := ParsePrefetch([]byte(doc), digest.FromString(doc), l); !errors.Is(err, ErrBadIndex) {
			t.Errorf("%s: ParsePrefetch = %v, %v", name, list, err)
		}
	}
	if _, err := ParsePrefetch(blobOf(t, d.Digest), digest.FromString("x"), l); errors.Is(err, ErrBadIndex) || err == nil {
		t.Errorf("ParsePrefetch with another digest: %v", err)
	}
}

func TestReferrers(t *testing.T) {
	d := digest.FromString("x")
	got := Referrers([]ocispec.Descriptor{
		{ArtifactType: "application/vnd.snapfs.index.v1", Digest: d},
		{ArtifactType: TypeV1, Digest: d, Size: 1},
		{ArtifactType: TypeV2, Digest: d}, // is no referrer
		{ArtifactType: TypeV1, Digest: "sha256:no"},
		{ArtifactType: TypeV1, Digest: d, Size: 2},
	})
	if len(got) != 2 || got[0].Size != 1 || got[1].Size != 2 {
		t.Errorf("Referrers = %+v", got)
	}
}

func TestBound(t *testing.T) {
	for _, bad := range []string{"", "sha256:", "sha512:00", "x"} {
		if d, ok := Bound(map[string]string{digestAnnotation: bad}); ok {
			t.Errorf("Bound(%q) = %s", bad, d)
		}
	}
	if d, ok := Bound(nil); ok {
		t.Errorf("Bound(nil) = %s", d)
	}
}

func TestBadIndex(t *testing.T) {
	layer, z := digest.FromString("layer"), digest.FromString("ztoc")
	good := func() ocispec.Manifest {
		return ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: ocispec.Descriptor{MediaType: TypeV2},
			Layers: []ocispec.Descriptor{{MediaType: ztocType, Digest: z, Size: 1, Annotations: map[string]string{layerAnnotation: string(layer)}}}}
	}
	for name, c := range map[string]struct {
		do   func(m *ocispec.Manifest)
		want error
	}{
		"good":          {func(*ocispec.Manifest) {}, nil},
		"later kinds":   {func(m *ocispec.Manifest) { m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: "application/x"}) }, nil},
		"same twice":    {func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]) }, nil},
		"image":         {func(m *ocispec.Manifest) { m.Config.MediaType = ocispec.MediaTypeImageConfig }, ErrBadIndex},
		"no subject":    {func(m *ocispec.Manifest) { m.Config.MediaType = TypeV1 }, ErrBadIndex},
		"oci index":     {func(m *ocispec.Manifest) { m.MediaType = ocispec.MediaTypeImageIndex }, ErrBadIndex},
		"no layer":      {func(m *ocispec.Manifest) { m.Layers[0].Annotations = nil }, ErrBadIndex},
		"bad layer":     {func(m *ocispec.Manifest) { m.Layers[0].Annotations[layerAnnotation] = "sha256:../x" }, ErrBadIndex},
		"bad ztoc":      {func(m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:x" }, ErrBadIndex},
		"huge ztoc":     {func(m *ocispec.Manifest) { m.Layers[0].Size = layers.MaxTOC + 1 }, layers.ErrTooLarge},
		"negative ztoc": {func(m *ocispec.Manifest) { m.Layers[0].Size = -1 }, layers.ErrTooLarge},
		"huge prefetch": {func(m *ocispec.Manifest) {
			m.Layers[0].MediaType, m.Layers[0].Size = prefetchType, layers.MaxManifest+1
		}, layers.ErrTooLarge},
		"two of a layer": {func(m *ocispec.Manifest) { m.Layers = append(m.Layers, m.Layers[0]); m.Layers[1].Digest = layer }, ErrBadIndex},
	} {
		m := good()
		c.do(&m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if x, err := ParseIndex(raw, digest.FromBytes(raw)); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("%s: ParseIndex = %+v, %v, want %v", name, x, err, c.want)
		}
	}
	raw, _ := json.Marshal(good())
	if _, err := ParseIndex(raw, z); err == nil || errors.Is(err, ErrBadIndex) {
		t.Errorf("ParseIndex with another digest: %v", err)
	}
	if _, err := ParseIndex(raw, "md5:00"); !errors.Is(err, layers.ErrBadSum) {
		t.Errorf("ParseIndex with no digest: %v", err)
	}
	huge := make([]byte, layers.MaxManifest+1)
	if _, err := ParseIndex(huge, digest.FromBytes(huge)); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("ParseIndex of %d bytes: %v", len(huge), err)
	}
}

func FuzzParseIndex(f *testing.F) {
	m := loadImage(f)
	bound, _ := Bound(m.manifest.Annotations)
	f.Add(blobOf(f, bound))
	f.Add(blobOf(f, m.v1Digest))
	f.Add([]byte(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[{}]}`))
	l := samples(f)[1].open(f)
	d, _ := m.v2.Prefetch(m.manifest.Layers[1].Digest)
	f.Add(blobOf(f, d.Digest))
	f.Fuzz(func(t *testing.T, p []byte) {
		want := digest.FromBytes(p)
		x, err := ParseIndex(p, want)
		if err == nil {
			for layer, z := range x.ztocs {
				if layer.Validate() != nil || z.Size < 0 || z.Size > layers.MaxTOC {
					t.Errorf("ztoc %+v of layer %s", z, layer)
				}
			}
		}
		list, err := ParsePrefetch(p, want, l)
		if err == nil && !slices.IsSorted(list) {
			t.Errorf("spans %v", list)
		}
	})
}

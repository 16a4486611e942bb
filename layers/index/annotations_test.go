package index

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

func sampleAnnotations() Annotations {
	return Annotations{Version: 1, Root: sum("root"), Prefix: 100, Index: Blob{digest.FromString("i"), 1000},
		Bundle: Blob{digest.FromString("b"), 7}, Envelope: `{"payload":""}`}
}

func TestAnnotations(t *testing.T) {
	want := sampleAnnotations()
	m := want.Encode()
	m["org.opencontainers.image.created"] = "2026-01-01T00:00:00Z"
	if got, err := DecodeAnnotations(m); err != nil || got != want {
		t.Errorf("DecodeAnnotations = %+v, %v, want %+v", got, err, want)
	}
	want.Bundle, want.Envelope = Blob{}, ""
	if m = want.Encode(); len(m) != 5 {
		t.Errorf("Encode = %v, want no bundle and no envelope", m)
	}
	if got, err := DecodeAnnotations(m); err != nil || got != want {
		t.Errorf("DecodeAnnotations = %+v, %v, want %+v", got, err, want)
	}
	info := Info{Root: want.Root, Prefix: want.Prefix, Digest: want.Index.Digest, Size: want.Index.Size}
	if diff := cmp.Diff(want, info.Annotations()); diff != "" {
		t.Errorf("Annotations (-want +got):\n%s", diff)
	}
}

func TestDecodeBadAnnotations(t *testing.T) {
	if _, err := DecodeAnnotations(nil); !errors.Is(err, ErrNoAnnotations) {
		t.Errorf("DecodeAnnotations of none = %v, want ErrNoAnnotations", err)
	}
	a := sampleAnnotations()
	good := a.Encode()
	for _, tc := range []struct {
		key, value string
		want       error
	}{
		{AnnotationVersion, "2", ErrVersion},
		{AnnotationVersion, "0", ErrCorrupt},
		{AnnotationVersion, "one", ErrCorrupt},
		{AnnotationVersion, "01", ErrCorrupt},
		{AnnotationVersion, "9999999999", layers.ErrTooLarge},
		{AnnotationRoot, "", ErrCorrupt},
		{AnnotationRoot, "sha512:" + strings.Repeat("0", 128), ErrCorrupt},
		{AnnotationPrefix, "-1", ErrCorrupt},
		{AnnotationPrefix, "+1", ErrCorrupt},
		{AnnotationPrefix, "1001", ErrCorrupt},
		{AnnotationPrefix, "9999999999", layers.ErrTooLarge},
		{AnnotationDigest, "sha256:12", ErrCorrupt},
		{AnnotationSize, "", ErrCorrupt},
		{AnnotationSize, "99999999999999999999", ErrCorrupt},
		{AnnotationBundleDigest, "x", ErrCorrupt},
		{AnnotationBundleSize, "9999999999", layers.ErrTooLarge},
		{AnnotationEnvelope, strings.Repeat("x", MaxEnvelope+1), layers.ErrTooLarge},
	} {
		m := maps.Clone(good)
		m[tc.key] = tc.value
		if got, err := DecodeAnnotations(m); !errors.Is(err, tc.want) || got != (Annotations{}) {
			t.Errorf("%s = %.40q: DecodeAnnotations = %+v, %v, want %v", tc.key, tc.value, got, err, tc.want)
		}
	}
	for key := range good {
		m := maps.Clone(good)
		delete(m, key)
		_, err := DecodeAnnotations(m)
		if want := key != AnnotationEnvelope; (err != nil) != want {
			t.Errorf("without %s: DecodeAnnotations = %v", key, err)
		}
	}
}

func FuzzAnnotations(f *testing.F) {
	a := sampleAnnotations()
	m := a.Encode()
	f.Add(m[AnnotationVersion], m[AnnotationRoot], m[AnnotationPrefix], m[AnnotationDigest], m[AnnotationSize], m[AnnotationBundleDigest], m[AnnotationBundleSize], "")
	f.Fuzz(func(t *testing.T, version, root, prefix, d, size, bundle, bundleSize, envelope string) {
		m := map[string]string{AnnotationVersion: version, AnnotationRoot: root, AnnotationPrefix: prefix, AnnotationDigest: d, AnnotationSize: size}
		if bundle != "" {
			m[AnnotationBundleDigest], m[AnnotationBundleSize] = bundle, bundleSize
		}
		if envelope != "" {
			m[AnnotationEnvelope] = envelope
		}
		a, err := DecodeAnnotations(m)
		if err != nil {
			if !sentinel(err) {
				t.Errorf("DecodeAnnotations = %v, which wraps no sentinel", err)
			}
			return
		}
		if diff := cmp.Diff(m, a.Encode()); diff != "" {
			t.Errorf("Encode of what was decoded (-want +got):\n%s", diff)
		}
	})
}

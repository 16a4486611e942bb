package registry

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// A testImage is a small image in memory.
type testImage struct {
	manifest, config []byte
	layers           [][]byte
	desc             ocispec.Descriptor
	blobs            map[digest.Digest][]byte // config and layers
}

// makeImage makes an image with layers of the given sizes, for a platform.
func makeImage(t testing.TB, arch string, sizes ...int) *testImage {
	t.Helper()
	img := &testImage{blobs: make(map[digest.Digest][]byte)}
	m := ocispec.Manifest{Versioned: versioned(), MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: arch}}
	c.RootFS.Type = "layers"
	for i, n := range sizes {
		data := pattern(n, i)
		d := describe(ocispec.MediaTypeImageLayer, data)
		img.layers = append(img.layers, data)
		img.blobs[d.Digest] = data
		m.Layers = append(m.Layers, d)
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, d.Digest)
	}
	img.config = mustJSON(t, c)
	m.Config = describe(ocispec.MediaTypeImageConfig, img.config)
	img.blobs[m.Config.Digest] = img.config
	img.manifest = mustJSON(t, m)
	img.desc = describe(ocispec.MediaTypeImageManifest, img.manifest)
	return img
}

func (img *testImage) layer(i int) ocispec.Descriptor {
	return describe(ocispec.MediaTypeImageLayer, img.layers[i])
}

// pattern is n bytes no two parts of which are alike.
func pattern(n, seed int) []byte {
	p := make([]byte, n)
	x := uint32(seed + 1)
	for i := range p {
		x = x*1664525 + 1013904223
		p[i] = byte(x >> 24)
	}
	return p
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func newRegistry(t testing.TB, opt Options) *Registry {
	t.Helper()
	if opt.HostDirs == nil {
		opt.HostDirs = []string{t.TempDir()}
	}
	r := New(opt)
	t.Cleanup(func() { r.Close() })
	return r
}

func mustRef(t testing.TB, s string) Ref {
	t.Helper()
	ref, err := ParseRef(s)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// readBoth reads a layer as a stream and by ranges, and compares it with want.
func readBoth(t testing.TB, r *Registry, ref Ref, desc ocispec.Descriptor, want []byte) {
	t.Helper()
	ctx := t.Context()
	rc, err := r.Stream(ctx, ref, desc)
	if err != nil {
		t.Fatalf("Stream(%s) = %v", ref, err)
	}
	got, err := io.ReadAll(Verify(rc, desc))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("Stream(%s): %d bytes, %v; want %d bytes", ref, len(got), err, len(want))
	}
	rc.Close()
	b, err := r.Blob(ref, desc)
	if err != nil {
		t.Fatal(err)
	}
	if b.Size() != int64(len(want)) {
		t.Errorf("Size() = %d, want %d", b.Size(), len(want))
	}
	for _, c := range []struct{ off, n int }{{0, 10}, {len(want) / 2, len(want) / 4}, {len(want) - 7, 7}} {
		p := make([]byte, c.n)
		n, err := b.ReadAt(ctx, p, int64(c.off))
		if n != c.n || err != nil || !bytes.Equal(p, want[c.off:c.off+c.n]) {
			t.Errorf("ReadAt(%d bytes, %d) = %d, %v, or wrong bytes", c.n, c.off, n, err)
		}
	}
	p := make([]byte, 20)
	if n, err := b.ReadAt(ctx, p, int64(len(want)-8)); n != 8 || err != io.EOF || !bytes.Equal(p[:n], want[len(want)-8:]) {
		t.Errorf("ReadAt over the end = %d, %v, want 8, EOF", n, err)
	}
	if n, err := b.ReadAt(ctx, p, int64(len(want))); n != 0 || err != io.EOF {
		t.Errorf("ReadAt at the end = %d, %v, want 0, EOF", n, err)
	}
	if _, err := b.ReadAt(ctx, p, -1); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("ReadAt(-1) = %v, want ErrInvalid", err)
	}
}

// layoutFiles are the files of an OCI layout with the given entries.
func layoutFiles(t testing.TB, entries []ocispec.Descriptor, blobs ...map[digest.Digest][]byte) map[string][]byte {
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": mustJSON(t, ocispec.Index{Versioned: versioned(), MediaType: ocispec.MediaTypeImageIndex, Manifests: entries}),
	}
	for _, m := range blobs {
		for d, b := range m {
			files[blobPath(d)] = b
		}
	}
	return files
}

func writeDir(t testing.TB, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func writeTar(t testing.TB, files map[string][]byte, more ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for name, data := range files {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		tw.Write(data)
	}
	for _, h := range more {
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func gz(t testing.TB, data []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func (img *testImage) entry(name string) ocispec.Descriptor {
	d := img.desc
	d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	return d
}

func (img *testImage) all() map[digest.Digest][]byte {
	m := map[digest.Digest][]byte{img.desc.Digest: img.manifest}
	for d, b := range img.blobs {
		m[d] = b
	}
	return m
}

// TestCorpus reads the layout that shared/lab/build-corpus makes, if it is there.
func TestCorpus(t *testing.T) {
	const dir = "/var/tmp/corpus/oci"
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no corpus on this machine: ", err)
	}
	r := newRegistry(t, Options{})
	for _, name := range []string{"debian", "redis", "zoo"} {
		img, err := r.Resolve(t.Context(), mustRef(t, "oci:"+dir+":"+name), "linux/amd64")
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range img.Manifest.Layers {
			rc, err := img.Stream(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, Verify(rc, l)); err != nil {
				t.Error(err)
			}
			rc.Close()
		}
	}
}

func TestLayouts(t *testing.T) {
	img := makeImage(t, "amd64", 5000, 70000)
	files := layoutFiles(t, []ocispec.Descriptor{img.entry("one")}, img.all())
	dir := writeDir(t, files)
	plain := writeTar(t, files)
	docker := writeTar(t, map[string][]byte{
		"manifest.json": mustJSON(t, []savedImage{{Config: "c.json", RepoTags: []string{"busybox:latest"}, Layers: []string{"a/layer.tar", "b/layer.tar"}}}),
		"c.json":        img.config,
		"a/layer.tar":   img.layers[0],
		"x/real.tar":    img.layers[1],
	}, tar.Header{Name: "b/layer.tar", Typeflag: tar.TypeSymlink, Linkname: "../x/real.tar"})
	for _, c := range []struct{ name, ref string }{
		{"dir", "oci:" + dir},
		{"dir with tag", "oci:" + dir + ":one"},
		{"dir with digest", "oci:" + dir + "@" + string(img.desc.Digest)},
		{"archive", "oci-archive:" + writeFile(t, plain)},
		{"archive with tag", "oci-archive:" + writeFile(t, plain) + ":one"},
		{"compressed archive", "oci-archive:" + writeFile(t, gz(t, plain))},
		{"docker", "docker-archive:" + writeFile(t, docker)},
		{"docker with name", "docker-archive:" + writeFile(t, docker) + ":docker.io/library/busybox"},
		{"compressed docker", "docker-archive:" + writeFile(t, gz(t, docker)) + ":busybox:latest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegistry(t, Options{SpoolDir: t.TempDir()})
			ref := mustRef(t, c.ref)
			got, err := r.Resolve(t.Context(), ref, "linux/amd64")
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.RawConfig, img.config) || len(got.Manifest.Layers) != 2 || digest.FromBytes(got.RawManifest) != got.Desc.Digest {
				t.Errorf("Resolve(%s) = another image", ref)
			}
			again := newRegistry(t, Options{SpoolDir: t.TempDir()}) // a daemon that was restarted
			for i, l := range got.Manifest.Layers {
				readBoth(t, r, ref, l, img.layers[i])
				readBoth(t, again, ref, l, img.layers[i])
			}
			if _, err := r.Resolve(t.Context(), got.Ref.WithDigest(got.Desc.Digest), "linux/amd64"); err != nil {
				t.Errorf("Resolve by digest = %v", err)
			}
			var pe *PlatformError
			if _, err := r.Resolve(t.Context(), ref, "linux/riscv64"); !errors.As(err, &pe) || pe.Have[0] != "linux/amd64" {
				t.Errorf("Resolve for another platform = %v", err)
			}
		})
	}
}

// TestDockerArchiveGzip: layers of podman save --compress and old docker versions.
func TestDockerArchiveGzip(t *testing.T) {
	img := makeImage(t, "amd64", 9000)
	stored := gz(t, img.layers[0])
	path := writeFile(t, writeTar(t, map[string][]byte{
		"manifest.json": mustJSON(t, []savedImage{{Config: "c.json", Layers: []string{"l.tar.gz"}}}),
		"c.json":        img.config,
		"l.tar.gz":      stored,
	}))
	r := newRegistry(t, Options{})
	ref := mustRef(t, "docker-archive:"+path)
	got, err := r.Resolve(t.Context(), ref, "linux/amd64")
	if err != nil {
		t.Fatal(err)
	}
	l := got.Manifest.Layers[0]
	if l.MediaType != ocispec.MediaTypeImageLayerGzip || l.Digest != digest.FromBytes(stored) {
		t.Errorf("layer = %v", l)
	}
	readBoth(t, r, ref, l, stored)
}

func TestLayoutFaults(t *testing.T) {
	img, other := makeImage(t, "amd64", 3000), makeImage(t, "amd64", 4000)
	good := func() map[string][]byte {
		return layoutFiles(t, []ocispec.Descriptor{img.entry("one"), other.entry("two")}, img.all(), other.all())
	}
	lp := blobPath(img.layer(0).Digest)
	for _, c := range []struct {
		name, tag string
		change    func(m map[string][]byte)
		want      error
	}{
		{"no tag of two", "", func(map[string][]byte) {}, ErrBadRef},
		{"unknown tag", ":three", func(map[string][]byte) {}, ErrNotFound},
		{"no layout file", ":one", func(m map[string][]byte) { delete(m, "oci-layout") }, ErrNotFound},
		{"layout version", ":one", func(m map[string][]byte) { m["oci-layout"] = []byte(`{"imageLayoutVersion":"2"}`) }, ErrUnsupported},
		{"index is a manifest", ":one", func(m map[string][]byte) { m["index.json"] = img.manifest }, ErrBadManifest},
		{"index is no JSON", ":one", func(m map[string][]byte) { m["index.json"] = []byte("{") }, ErrBadManifest},
		{"empty index", ":one", func(m map[string][]byte) { m["index.json"] = []byte(`{"schemaVersion":2,"manifests":[]}`) }, ErrNotFound},
		{"manifest missing", ":one", func(m map[string][]byte) { delete(m, blobPath(img.desc.Digest)) }, ErrNotFound},
		{"manifest flipped", ":one", func(m map[string][]byte) {
			m[blobPath(img.desc.Digest)] = bytes.Replace(img.manifest, []byte("2"), []byte("3"), 1)
		}, &layers.DigestError{}},
		{"config flipped", ":one", func(m map[string][]byte) {
			m[blobPath(describe("", img.config).Digest)] = bytes.ToUpper(img.config)
		}, &layers.DigestError{}},
		{"config short", ":one", func(m map[string][]byte) {
			m[blobPath(describe("", img.config).Digest)] = img.config[1:]
		}, &SizeError{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			files := good()
			c.change(files)
			for _, ref := range []string{"oci:" + writeDir(t, files), "oci-archive:" + writeFile(t, writeTar(t, files))} {
				_, err := newRegistry(t, Options{}).Resolve(t.Context(), mustRef(t, ref+c.tag), "linux/amd64")
				if !isErr(err, c.want) {
					t.Errorf("Resolve = %v, want %v", err, c.want)
				}
				if err != nil && strings.Contains(err.Error(), "\n") {
					t.Errorf("more than a line: %q", err)
				}
			}
		})
	}
	t.Run("blob size", func(t *testing.T) {
		files := good()
		files[lp] = files[lp][1:]
		r := newRegistry(t, Options{})
		for _, ref := range []string{"oci:" + writeDir(t, files), "oci-archive:" + writeFile(t, writeTar(t, files))} {
			if _, err := r.Stream(t.Context(), mustRef(t, ref), img.layer(0)); !isErr(err, &SizeError{}) {
				t.Errorf("Stream = %v, want *SizeError", err)
			}
		}
	})
}

// isErr is errors.Is for sentinels, and errors.As for the types of this package.
func isErr(err, want error) bool {
	switch want.(type) {
	case *layers.DigestError:
		_, ok := errors.AsType[*layers.DigestError](err)
		return ok
	case *SizeError:
		_, ok := errors.AsType[*SizeError](err)
		return ok
	case *PlatformError:
		_, ok := errors.AsType[*PlatformError](err)
		return ok
	}
	return errors.Is(err, want)
}

func TestLayoutSymlink(t *testing.T) {
	img := makeImage(t, "amd64", 3000)
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, img.layers[0], 0o600); err != nil {
		t.Fatal(err)
	}
	files := layoutFiles(t, []ocispec.Descriptor{img.entry("one")}, img.all())
	delete(files, blobPath(img.layer(0).Digest))
	dir := writeDir(t, files)
	if err := os.Symlink(secret, filepath.Join(dir, blobPath(img.layer(0).Digest))); err != nil {
		t.Fatal(err)
	}
	r := newRegistry(t, Options{})
	if _, err := r.Stream(t.Context(), mustRef(t, "oci:"+dir), img.layer(0)); err == nil {
		t.Error("a symlink out of the layout was followed")
	}
}

func TestNestedIndex(t *testing.T) {
	arm, amd := makeImage(t, "arm64", 100), makeImage(t, "amd64", 200)
	blobs := make(map[digest.Digest][]byte)
	put := func(ix ocispec.Index) ocispec.Descriptor {
		ix.Versioned, ix.MediaType = versioned(), ocispec.MediaTypeImageIndex
		raw := mustJSON(t, ix)
		d := describe(ocispec.MediaTypeImageIndex, raw)
		blobs[d.Digest] = raw
		return d
	}
	armDesc := arm.desc
	armDesc.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	attest := amd.desc
	attest.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest"}
	// SOCI's index of version 2: for the platform of the image, and no image.
	index := describe(ocispec.MediaTypeImageManifest, []byte("soci"))
	index.ArtifactType, index.Platform = "application/vnd.amazon.soci.index.v2+json", armDesc.Platform
	inner := put(ocispec.Index{Manifests: []ocispec.Descriptor{attest, index, armDesc, amd.desc}})
	outer := put(ocispec.Index{Manifests: []ocispec.Descriptor{inner}})
	dir := writeDir(t, layoutFiles(t, []ocispec.Descriptor{outer}, blobs, arm.all(), amd.all()))
	r := newRegistry(t, Options{})
	for _, p := range []string{"arm64", "amd64"} {
		img, err := r.Resolve(t.Context(), mustRef(t, "oci:"+dir), "linux/"+p)
		if err != nil || img.Config.Architecture != p {
			t.Errorf("Resolve(linux/%s) = %v", p, err)
		}
	}
	_, err := r.Resolve(t.Context(), mustRef(t, "oci:"+dir), "linux/s390x")
	if pe, ok := errors.AsType[*PlatformError](err); !ok || fmt.Sprint(pe.Have) != "[linux/amd64 linux/arm64]" {
		t.Errorf("Resolve(linux/s390x) = %v", err)
	}
	deep := outer
	for range maxDepth + 1 {
		deep = put(ocispec.Index{Manifests: []ocispec.Descriptor{deep}})
	}
	dir = writeDir(t, layoutFiles(t, []ocispec.Descriptor{deep}, blobs, arm.all(), amd.all()))
	if _, err := r.Resolve(t.Context(), mustRef(t, "oci:"+dir), ""); !errors.Is(err, ErrBadManifest) {
		t.Errorf("Resolve of deep indexes = %v, want ErrBadManifest", err)
	}
}

func TestArchiveFaults(t *testing.T) {
	img := makeImage(t, "amd64", 3000)
	docker := map[string][]byte{
		"manifest.json": mustJSON(t, []savedImage{{Config: "c.json", RepoTags: []string{"a:1"}, Layers: []string{"l.tar"}}}),
		"c.json":        img.config,
		"l.tar":         img.layers[0],
	}
	with := func(name string, data []byte, more ...tar.Header) []byte {
		m := make(map[string][]byte)
		for k, v := range docker {
			m[k] = v
		}
		delete(m, name)
		if data != nil {
			m[name] = data
		}
		return writeTar(t, m, more...)
	}
	whole := writeTar(t, docker)
	for _, c := range []struct {
		name string
		file []byte
		tag  string
		want error
	}{
		{"empty", nil, "", ErrNotFound},
		{"no tar", []byte(strings.Repeat("x", 2000)), "", ErrBadManifest},
		{"cut", whole[:1500], "", nil},
		{"cut gzip", gz(t, whole)[:900], "", io.ErrUnexpectedEOF},
		{"bzip2", []byte("BZh91AY&SY"), "", ErrUnsupported},
		{"no manifest", with("manifest.json", nil), "", ErrNotFound},
		{"bad manifest", with("manifest.json", []byte("{}")), "", ErrBadManifest},
		{"no config", with("c.json", nil), "", ErrNotFound},
		{"diff ID count", with("c.json", makeImage(t, "amd64").config), "", ErrBadManifest},
		{"no layer", with("l.tar", nil), "", ErrNotFound},
		{"other tag", whole, ":b:1", ErrNotFound},
		{"link loop", with("l.tar", nil, tar.Header{Name: "l.tar", Typeflag: tar.TypeSymlink, Linkname: "l.tar"}), "", ErrBadManifest},
		{"link outside", with("l.tar", nil, tar.Header{Name: "l.tar", Typeflag: tar.TypeSymlink, Linkname: "../../etc/passwd"}), "", ErrNotFound},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRegistry(t, Options{SpoolDir: t.TempDir()})
			_, err := r.Resolve(t.Context(), mustRef(t, "docker-archive:"+writeFile(t, c.file)+c.tag), "linux/amd64")
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("Resolve = %v, want %v", err, c.want)
			}
		})
	}
	t.Run("bomb", func(t *testing.T) {
		r := newRegistry(t, Options{SpoolDir: t.TempDir(), MaxSpool: 1 << 20})
		_, err := r.Resolve(t.Context(), mustRef(t, "docker-archive:"+writeFile(t, gz(t, make([]byte, 2<<20)))), "")
		if !errors.Is(err, layers.ErrTooLarge) {
			t.Errorf("Resolve = %v, want ErrTooLarge", err)
		}
	})
	t.Run("replaced", func(t *testing.T) {
		r := newRegistry(t, Options{})
		path := writeFile(t, whole)
		ref := mustRef(t, "docker-archive:"+path)
		if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, with("l.tar", nil), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Resolve(t.Context(), ref, "linux/amd64"); !errors.Is(err, ErrNotFound) {
			t.Errorf("Resolve after it was replaced = %v, want ErrNotFound", err)
		}
	})
}

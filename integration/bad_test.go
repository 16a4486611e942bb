package integration

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/control"
)

// A badRow is an image or a registry that is not as it should be.
type badRow struct {
	name string
	// image makes what the registry has; nil: an ordinary image in format.
	image  func(t *testing.T) *image
	format string
	fault  func(im *image) fault // nil: the registry behaves
	ref    string                // "": that of the image

	code string   // of the error; "": it works all the same
	says []string // parts of the message; the reference's name is always one
}

func ordinary(seed uint64) []file { return someFiles(seed, "etc", 12) }

func faultOf(f func(selector) fault, which func(im *image) selector) func(*image) fault {
	return func(im *image) fault { return f(which(im)) }
}

func always(f fault) func(*image) fault { return func(*image) fault { return f } }

// claim is a registry that says something else of a range than what it is.
func claim(f func(first, last, size int64) string) func(*image) fault {
	return func(im *image) fault { return claims(firstLayer(im), f) }
}

func firstLayer(im *image) selector { return blob(im.layer(0)) }

func ofStatus(code int) func(*image) fault { return always(status(everything, code)) }

// blobStatus fails for the first layer alone.
func blobStatus(code int) func(*image) fault {
	return func(im *image) fault { return status(firstLayer(im), code) }
}

var answers = []badRow{
	{name: "nobody listens", ref: "127.0.0.1:1/test/nobody:latest", code: control.CodeUnavailable, says: []string{"127.0.0.1:1", "connection refused"}},
	{name: "401", fault: always(status(everything, 401, "Www-Authenticate", `Basic realm="x"`)), code: control.CodeDenied},
	{name: "403", fault: ofStatus(403), code: control.CodeDenied, says: []string{"403"}},
	{name: "404", fault: ofStatus(404), code: control.CodeNotFound},
	{name: "429", fault: always(status(everything, 429, "Retry-After", "1")), code: control.CodeUnavailable, says: []string{"429"}},
	{name: "500", fault: ofStatus(500), code: control.CodeUnavailable, says: []string{"500"}},
	{name: "503 for a layer", fault: blobStatus(503), code: control.CodeUnavailable, says: []string{"503", "layer"}},
	{name: "403 for a layer", fault: blobStatus(403), code: control.CodeDenied, says: []string{"403", "layer"}},
	{name: "404 for a layer", fault: blobStatus(404), code: control.CodeNotFound, says: []string{"layer"}},
	{name: "404 for the config", fault: func(im *image) fault { return status(blob(im.manifest.Config.Digest), 404) }, code: control.CodeNotFound},
	{name: "silence", fault: always(silent(everything)), code: control.CodeUnavailable},
	{name: "silence for a layer", fault: faultOf(silent, firstLayer), code: control.CodeUnavailable, says: []string{"layer"}},
	{name: "ranges ignored", format: eStargz, fault: faultOf(whole, firstLayer)},
	{name: "ranges ignored for tar", format: gzipTar, fault: faultOf(whole, firstLayer)},
	{name: "another range", format: eStargz, fault: claim(later), code: control.CodeInvalid, says: []string{"layer", "instead of"}},
	{name: "a longer range", format: eStargz, fault: claim(func(first, last, size int64) string { return fmt.Sprintf("bytes %d-%d/%d", first, last+1, size+1) }), code: control.CodeInvalid, says: []string{"layer", "Content-Range"}},
	{name: "a range of another blob", format: eStargz, fault: claim(func(first, last, size int64) string { return fmt.Sprintf("bytes %d-%d/%d", first, last, size+1) }), code: control.CodeInvalid, says: []string{"layer", "Content-Range"}},
	{name: "a range of unknown place", format: eStargz, fault: claim(func(first, last, size int64) string { return "" }), code: control.CodeInvalid, says: []string{"layer", "Content-Range"}},
	{name: "a range in other units", format: eStargz, fault: claim(func(first, last, size int64) string { return fmt.Sprintf("pages %d-%d/%d", first, last, size) }), code: control.CodeInvalid, says: []string{"layer", "Content-Range"}},
	{name: "a range of a blob of unknown size", format: eStargz, fault: claim(func(first, last, size int64) string { return fmt.Sprintf("bytes %d-%d/*", first, last) })},
	// No table of contents is found there, so the layer is unpacked, with the file that is its table.
	{name: "another range, not told", image: func(t *testing.T) *image {
		im := newImage(t, eStargz, ordinary(124))
		im.want["stargz.index.json"] = sha256.Sum256(tocOf(t, im))
		return im
	}, fault: func(im *image) fault { return shifted(im, 0) }},
	{name: "layer shorter", format: gzipTar, fault: faultOf(shorten, firstLayer), code: control.CodeInvalid, says: []string{"layer"}},
	// An attempt that brings 64 KiB forgives those before (layers/registry, enough); one that brings less does not.
	{name: "layer breaks off after much", format: gzipTar, fault: func(im *image) fault { return cut(firstLayer(im), 128<<10) }},
	{name: "lazy layer breaks off after much", format: eStargz, fault: func(im *image) fault { return cut(firstLayer(im), 128<<10) }},
	{name: "layer breaks off after little", format: gzipTar, fault: func(im *image) fault { return cut(firstLayer(im), 1) }, code: control.CodeUnavailable, says: []string{"layer", "unexpected EOF"}},
	{name: "lazy layer breaks off after little", format: eStargz, fault: func(im *image) fault { return cut(firstLayer(im), 1) }, code: control.CodeUnavailable, says: []string{"layer", "unexpected EOF"}},
	{name: "layer breaks off at once", format: gzipTar, fault: faultOf(broken, firstLayer), code: control.CodeUnavailable, says: []string{"layer", "unexpected EOF"}},
	{name: "everything breaks off", fault: always(cut(everything, 0)), code: control.CodeUnavailable},
	{name: "HTML instead of a manifest", fault: always(change(isManifest, func(_ *http.Request, a *httptest.ResponseRecorder, _ []byte) []byte {
		b := []byte("<html>log in to use this network</html>")
		a.Header().Set("Content-Type", "text/html")
		a.Header().Del("Docker-Content-Digest")
		a.Header().Del("Content-Length")
		return b
	})), code: control.CodeInvalid},
}

var bytesChanged = []badRow{
	{name: "flipped in a gzip layer", format: gzipTar, fault: func(im *image) fault {
		return flip(im.layer(0), im.size(), im.size()/2)
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "flipped at the end of a zstd layer", format: zstdTar, fault: func(im *image) fault {
		return flip(im.layer(0), im.size(), -1)
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "flipped in a tar", format: plainTar, fault: func(im *image) fault {
		return flip(im.layer(0), im.size(), 700)
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "flipped in the manifest", fault: always(change(isManifest, func(_ *http.Request, _ *httptest.ResponseRecorder, b []byte) []byte {
		b[len(b)/2] ^= 1
		return b
	})), code: control.CodeInvalid},
	{name: "flipped in the config", fault: func(im *image) fault {
		return flip(im.manifest.Config.Digest, im.manifest.Config.Size, 10)
	}, code: control.CodeInvalid, says: []string{"digest"}},
	{name: "flipped in the TOC", format: eStargz, fault: func(im *image) fault {
		return flip(im.layer(0), im.size(), -tocFooter-200)
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "flipped in the TOC of zstd:chunked", format: zstdChunked, fault: func(im *image) fault {
		return change(blob(im.layer(0)), func(_ *http.Request, _ *httptest.ResponseRecorder, b []byte) []byte {
			for i := range b {
				b[i] ^= 0x40
			}
			return b
		})
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "another layer of the same size", format: plainTar, fault: func(im *image) fault {
		return change(firstLayer(im), func(_ *http.Request, _ *httptest.ResponseRecorder, b []byte) []byte {
			return make([]byte, len(b))
		})
	}, code: control.CodeInvalid, says: []string{"digest"}},
}

var images = []badRow{
	{name: "wrong diff ID", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(101))
		setDiffIDs(t, im, digest.FromString("something else"))
		return im
	}, code: control.CodeInvalid, says: []string{"diff ID"}},
	{name: "fewer diff IDs", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(102))
		setDiffIDs(t, im)
		return im
	}, code: control.CodeInvalid},
	{name: "huge manifest", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(103))
		im.manifest.Annotations = map[string]string{"x": strings.Repeat("x", 9<<20)}
		im.seal(t)
		return im
	}, code: control.CodeInvalid},
	{name: "deep manifest", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(104))
		im.raw = []byte(`{"schemaVersion":2,"mediaType":"` + ocispec.MediaTypeImageManifest + `","x":` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + "}")
		return im
	}, code: control.CodeInvalid},
	{name: "wrong platform", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(105))
		p := ocispec.Platform{OS: "windows", Architecture: "s390x"}
		im.index = marshal(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []ocispec.Descriptor{{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(im.raw), Size: int64(len(im.raw)), Platform: &p}}})
		return im
	}, code: control.CodeNotFound, says: []string{"platform", "windows/s390x"}},
	{name: "empty index", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(106))
		im.index = marshal(t, map[string]any{"schemaVersion": 2, "mediaType": ocispec.MediaTypeImageIndex, "manifests": []any{}})
		return im
	}, code: control.CodeNotFound, says: []string{"platform"}},
	{name: "no layers", image: func(t *testing.T) *image { return newImage(t, gzipTar) }},
	{name: "an empty layer", image: func(t *testing.T) *image { return newImage(t, gzipTar, nil) }},
	{name: "layer of an unknown kind", image: func(t *testing.T) *image {
		im := newImage(t, gzipTar, ordinary(107))
		im.manifest.Layers[0].MediaType = "application/vnd.example.model.weights"
		im.seal(t)
		return im
	}, code: control.CodeUnsupported, says: []string{"application/vnd.example.model.weights"}},
	{name: "TOC of overlapping chunks", image: func(t *testing.T) *image {
		return lie(t, ordinary(110), func(c *toc) { c.find("etc/f002")["offset"] = c.find("etc/f001")["offset"] })
	}, code: control.CodeInvalid, says: []string{"layer", "table of contents"}},
	{name: "TOC leads out of the blob", image: func(t *testing.T) *image {
		return lie(t, ordinary(111), func(c *toc) { c.find("etc/f011")["offset"] = 1 << 40 })
	}, code: control.CodeInvalid, says: []string{"layer", "table of contents"}},
	{name: "TOC of a negative offset", image: func(t *testing.T) *image {
		return lie(t, ordinary(112), func(c *toc) { c.find("etc/f001")["offset"] = -1 })
	}, code: control.CodeInvalid, says: []string{"layer", "table of contents"}},
	{name: "TOC without digests", image: func(t *testing.T) *image {
		return lie(t, ordinary(113), func(c *toc) {
			for _, e := range c.Entries {
				delete(e, "digest")
				delete(e, "chunkDigest")
			}
		})
	}, code: control.CodeInvalid, says: []string{"layer", "digest"}},
	{name: "TOC of a huge file", image: func(t *testing.T) *image {
		return lie(t, ordinary(114), func(c *toc) { c.find("etc/f001")["size"] = 1 << 62 })
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "TOC names out of the layer", image: func(t *testing.T) *image {
		return lie(t, ordinary(115), func(c *toc) { c.find("etc/f001")["name"] = "../../../etc/passwd" })
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "names out of the layer", image: func(t *testing.T) *image {
		return newImage(t, gzipTar, []file{reg("../../../../../tmp/escaped", []byte("x"))})
	}, code: control.CodeInvalid, says: []string{"layer", "../../tmp/escaped"}},
	{name: "hard link out of the layer", image: func(t *testing.T) *image {
		return newImage(t, gzipTar, []file{{Header: tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "../../etc/shadow"}}})
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "hard link to nothing", image: func(t *testing.T) *image {
		return newImage(t, gzipTar, []file{{Header: tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "nothing"}}})
	}, code: control.CodeInvalid},
	{name: "a name longer than any", image: func(t *testing.T) *image {
		return newImage(t, gzipTar, []file{reg(strings.Repeat("x", 256), []byte("x"))})
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "zstd frame of an endless window", image: func(t *testing.T) *image {
		return rewrite(t, newImage(t, zstdTar, ordinary(122)), func([]byte) []byte {
			return append([]byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xf8}, noise(6, 4096)...) // Window_Descriptor: 2^41 bytes (RFC 8878, 3.1.1.1.2)
		})
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "no annotation for the TOC", image: func(t *testing.T) *image {
		im := newImage(t, eStargz, ordinary(123))
		im.manifest.Layers[0].Annotations = nil
		im.seal(t)
		im.want["stargz.index.json"] = sha256.Sum256(tocOf(t, im))
		return im
	}},
	{name: "gzip bomb behind the tar", image: bomb, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "gzip cut short", image: func(t *testing.T) *image {
		return rewrite(t, newImage(t, gzipTar, ordinary(120)), func(b []byte) []byte { return b[:len(b)/2] })
	}, code: control.CodeInvalid, says: []string{"layer"}},
	{name: "no archive", image: func(t *testing.T) *image {
		return rewrite(t, newImage(t, gzipTar, ordinary(121)), func(b []byte) []byte { return noise(5, len(b)) })
	}, code: control.CodeInvalid, says: []string{"layer"}},
}

var requests = []badRow{
	{name: "malformed reference", ref: "UPPER CASE!", code: control.CodeInvalid, says: []string{"UPPER CASE!"}},
	{name: "empty reference", ref: "", code: control.CodeInvalid},
	{name: "layout that is not there", ref: "oci:/nonexistent:x", code: control.CodeNotFound, says: []string{"/nonexistent"}},
	{name: "archive that is a directory", ref: "oci-archive:/etc:x", code: control.CodeInvalid, says: []string{"/etc"}},
}

// bomb is a layer that ends after one file and goes on with 128 MiB of zeros.
func bomb(t *testing.T) *image {
	im := newImage(t, gzipTar, ordinary(108))
	return rewrite(t, im, func(b []byte) []byte {
		r, w := io.Pipe()
		go func() {
			z := gzip.NewWriter(w)
			zero := make([]byte, 1<<20)
			for range 1 << 7 {
				z.Write(zero)
			}
			z.Close()
			w.Close()
		}()
		tail, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		return append(b, tail...) // a further gzip member
	})
}

// rewrite makes another blob of the first layer; the manifest agrees.
func rewrite(t testing.TB, im *image, f func([]byte) []byte) *image {
	t.Helper()
	desc := &im.manifest.Layers[0]
	b := f(im.blobs[desc.Digest])
	delete(im.blobs, desc.Digest)
	desc.Digest, desc.Size = digest.FromBytes(b), int64(len(b))
	im.blobs[desc.Digest] = b
	im.seal(t)
	return im
}

func setDiffIDs(t testing.TB, im *image, ids ...digest.Digest) {
	t.Helper()
	var c ocispec.Image
	if err := json.Unmarshal(im.config, &c); err != nil {
		t.Fatal(err)
	}
	c.RootFS.DiffIDs = append([]digest.Digest{}, ids...)
	im.setConfig(t, c)
}

// TestBadInput pulls what cannot be pulled, all at once from one daemon, which
// must go on serving and have nothing left of it.
func TestBadInput(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startMachine(t, "")
	t.Run("rows", func(t *testing.T) {
		for group, rows := range map[string][]badRow{"answers": answers, "bytes": bytesChanged, "images": images, "requests": requests} {
			for i, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					t.Parallel()
					tryBad(t, m, hub, fmt.Sprint(group, i), row, group == "requests")
				})
			}
		}
	})
	good := newImage(t, eStargz, someFiles(200, "good", 20))
	ref := hub.put(t, "good", good)
	top := m.mount(ref, false)
	good.check(t, top)
	m.unmount(top)
	for _, im := range m.images() {
		m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{im.Ref}}, nil)
	}
	m.nothingLeft()
}

func tryBad(t *testing.T, m *machine, hub *hub, name string, row badRow, noImage bool) {
	m = m.on(t)
	ref := row.ref
	var im *image
	if ref == "" && !noImage {
		if row.image != nil {
			im = row.image(t)
		} else {
			if row.format == "" {
				row.format = gzipTar
			}
			seed := uint64(1000)
			for _, c := range name {
				seed = seed*31 + uint64(c)
			}
			im = newImage(t, row.format, ordinary(seed))
		}
		ref = hub.put(t, name, im)
		if row.fault != nil {
			hub.misbehave(name, row.fault(im))
			defer hub.misbehave(name, nil) // for those who wait for silence to end
		}
		row.says = append(row.says, name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience+5*time.Second) // the daemon gives up by itself before
	defer cancel()
	err := m.callCtx(ctx, control.OpPull, control.PullArgs{Ref: ref, Wait: true}, nil)
	if ctx.Err() != nil {
		t.Fatalf("pull hangs: %v", err)
	}
	if row.code == "" {
		if err != nil {
			t.Fatalf("pull: %v", err)
		}
		top := m.mount(ref, false)
		im.check(t, top)
		m.unmount(top)
		return
	}
	checkError(t, err, row.code, row.says...)
	for _, im := range m.images() {
		if im.Ref == ref {
			t.Errorf("listed all the same: %+v", im)
		}
	}
}

// checkError wants an error of the daemon that fits on a line.
func checkError(t testing.TB, err error, code string, says ...string) {
	t.Helper()
	e, ok := errors.AsType[*control.Error](err)
	if !ok {
		t.Fatalf("error is %v, want one of the daemon's with code %s", err, code)
	}
	t.Logf("%s: %s", e.Code, e.Message)
	if e.Code != code {
		t.Errorf("code is %s (%s), want %s", e.Code, e.Message, code)
	}
	if strings.ContainsAny(e.Message, "\n\r\x1b") || len(e.Message) > 1000 {
		t.Errorf("message is not a line: %q", e.Message)
	}
	for _, s := range says {
		if !strings.Contains(e.Message, s) {
			t.Errorf("message %q does not say %q", e.Message, s)
		}
	}
}

// nothingLeft looks for what a daemon without images should not have.
func (m *machine) nothingLeft() {
	m.Helper()
	if left := m.images(); len(left) > 0 {
		m.Errorf("images are left: %+v", left)
	}
	left := m.leftovers()
	for _, p := range left[:min(len(left), 10)] {
		m.Errorf("left behind, of %d: %s", len(left), p)
	}
	if dirs, err := filepath.Glob(filepath.Join(m.run, "images", "*")); err != nil || len(dirs) > 0 {
		m.Errorf("metadata images are left mounted: %v, %v", dirs, err)
	}
}

// leftovers are the files below the root that belong to an image, or to none.
func (m *machine) leftovers() (left []string) {
	for _, d := range []string{"layers", "images", "objects", "fresh", "partial", "packs", "quarantine", "tmp"} {
		filepath.WalkDir(filepath.Join(m.root, d), func(p string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && filepath.Base(p) != "lock" && filepath.Base(p) != "users" {
				left = append(left, p)
			}
			return nil
		})
	}
	return left
}

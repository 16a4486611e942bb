package integration

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/index"
	"github.com/snapfs/snapfs/layers/objects"
	ours "github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// TestAnyImageIsLazy: one node pulls an ordinary image whole and publishes its
// index, by which another starts it lazily.
func TestAnyImageIsLazy(t *testing.T) {
	t.Parallel()
	for _, format := range []string{plainTar, gzipTar, zstdTar} {
		t.Run(format, func(t *testing.T) {
			hub := newHub(t, registry.WithReferrersSupport(format != gzipTar)) // gzip: by the tag instead
			im := newImage(t, format, someFiles(1, "a", 120), someFiles(2, "b", 120))
			ref := hub.put(t, "any", im)

			a := startMachine(t, "")
			if row := a.pull(ref, false); !row.Complete {
				t.Errorf("the first node has %+v, want all", row)
			}
			a.publish(ref)

			hub.sent()
			b := startMachine(t, "pull.complete = false\nindex.trust = 'any'")
			lifeOf(t, hub, im, ref, b, im.size()/2)
			a.own(ref)
		})
	}
}

// publish makes and publishes the index of an image.
func (m *machine) publish(ref string) (made control.IndexInfo) {
	m.Helper()
	m.must(control.OpIndex, control.IndexArgs{Ref: ref, Push: true}, &made)
	if made.Digest == "" || made.Size == 0 || made.Prefix > made.Size {
		m.Errorf("published: %+v", made)
	}
	return made
}

// own checks that an image that was unpacked here can be read piecewise, too.
func (m *machine) own(ref string) {
	m.Helper()
	var d control.ImageDetail
	m.must(control.OpInspect, control.RefArgs{Ref: ref}, &d)
	for _, l := range d.LayerDetails {
		if !l.Lazy || l.Origin != "own" || l.Why != "" {
			m.Errorf("layer of the first node: %+v, want a lazy one with an index of its own", l)
		}
	}
}

// TestUnpackedObjectsComeBack: what was unpacked and is lost is fetched piecewise.
func TestUnpackedObjectsComeBack(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, gzipTar, someFiles(3, "a", 60))
	ref := hub.put(t, "back", im)
	m := startMachine(t, "")
	m.pull(ref, false)
	m.stop()
	for _, dir := range []string{"objects", "fresh", "packs", "images"} {
		if err := os.RemoveAll(filepath.Join(m.root, dir)); err != nil {
			t.Fatal(err)
		}
	}
	m.start()
	forget(t)
	im.check(t, m.mount(ref, false))
}

// TestIndexSignatures: a node with a key believes what is signed by it, and nothing else.
func TestIndexSignatures(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, gzipTar, someFiles(4, "a", 30))
	ref := hub.put(t, "signed", im)
	a := startMachine(t, "")
	a.pull(ref, false)
	a.publish(ref)
	keys := t.TempDir()
	good, other := filepath.Join(keys, "good"), filepath.Join(keys, "other")
	id := strings.TrimSpace(a.ok("index", "keygen", good))
	a.ok("index", "keygen", other)
	if _, code := a.snapctl("index", "keygen", good); code != 1 {
		t.Errorf("keygen over a key: exit status %d, want 1", code)
	}

	lazy := func(config string) bool {
		m := startMachine(t, "pull.complete = false\n"+config)
		return !m.pull(ref, false).Complete
	}
	believe := fmt.Sprintf("index.keys = [%q]", good+".pub")
	if lazy(believe) {
		t.Error("an index without a signature was believed")
	}
	if _, code := a.snapctl("index", "verify", "--key", good+".pub", ref); code != 1 {
		t.Errorf("verify without a signature: exit status %d, want 1", code)
	}
	a.ok("index", "sign", "--key", good, ref)
	if out := a.ok("index", "verify", "--key", good+".pub", ref); !strings.Contains(out, "signed by "+id) {
		t.Errorf("verify: %q, want the key %s", out, id)
	}
	if _, code := a.snapctl("index", "verify", "--key", other+".pub", ref); code != 1 {
		t.Errorf("verify by another key: exit status %d, want 1", code)
	}
	if !lazy(believe) {
		t.Error("a signed index was not believed")
	}
	if lazy(fmt.Sprintf("index.keys = [%q]", other+".pub")) {
		t.Error("an index signed by another key was believed")
	}
	if lazy("") {
		t.Error("an index was believed by a node without keys")
	}
	if err := os.Chmod(good, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, code := a.snapctl("index", "sign", "--key", good, ref); code != 1 {
		t.Errorf("sign with a key that all can read: exit status %d, want 1", code)
	}
}

// TestPublishByItself: a node that is told to publishes after its first pull.
func TestPublishByItself(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	im := newImage(t, gzipTar, someFiles(5, "a", 30))
	ref := hub.put(t, "itself", im)
	keys := t.TempDir()
	key := filepath.Join(keys, "key")
	first := startMachine(t, "")
	first.ok("index", "keygen", key)
	a := startMachine(t, fmt.Sprintf("[index]\npublish = true\nsign_key = %q", key))
	a.pull(ref, false)
	deadline := time.Now().Add(patience)
	for {
		var list []control.IndexInfo
		a.must(control.OpIndexes, control.IndexListArgs{Ref: ref, Keys: []string{key + ".pub"}}, &list)
		if len(list) == 1 && list[0].Signer != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("published: %+v, want one with a signature", list)
		}
		time.Sleep(20 * time.Millisecond)
	}
	b := startMachine(t, fmt.Sprintf("pull.complete = false\nindex.keys = [%q]", key+".pub"))
	if row := b.pull(ref, false); row.Complete || !row.Lazy {
		t.Errorf("the second node has %+v, want a lazy image", row)
	}
	im.check(t, b.mount(ref, false))
}

// forge publishes an index that was changed before it was written.
func (h *hub) forge(t *testing.T, name string, im *image, change func(*index.Image)) {
	t.Helper()
	store, err := objects.Open(t.TempDir(), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	subject := ocispec.Descriptor{MediaType: im.manifest.MediaType, Digest: digest.FromBytes(im.raw), Size: int64(len(im.raw))}
	ix := &index.Image{Manifest: subject.Digest}
	for _, l := range im.manifest.Layers {
		plain := gunzip(t, im.blobs[l.Digest])
		u, err := tarindex.Unpack(t.Context(), bytes.NewReader(im.blobs[l.Digest]), l, digest.FromBytes(plain), store, tarindex.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		ix.Layers = append(ix.Layers, index.Layer{Desc: l, DiffID: digest.FromBytes(plain), Index: u.Index, Map: u.Map, Windows: u.Windows})
	}
	change(ix)
	path := filepath.Join(t.TempDir(), "index")
	info, err := index.Write(t.Context(), path, ix)
	if err != nil {
		t.Fatal(err)
	}
	ann := info.Annotations()
	ref, err := ours.ParseRef(h.ref(name))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ours.New(ours.Options{}).PushReferrer(t.Context(), ref, ours.Referrer{
		Subject: subject, ArtifactType: index.ArtifactType, Annotations: ann.Encode(),
		Blobs: []ours.SourceBlob{{
			Desc: ocispec.Descriptor{MediaType: index.MediaTypeIndex, Digest: info.Digest, Size: info.Size},
			Open: func(context.Context) (io.ReadCloser, error) { return os.Open(path) },
		}},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestLyingIndex: no byte is served that an index lies about, and nothing more
// is started on its image until it was pulled again.
func TestLyingIndex(t *testing.T) {
	t.Parallel()
	entry := func(ix *index.Image, name string) *layers.Entry {
		for i := range ix.Layers[0].Index.Entries {
			if e := &ix.Layers[0].Index.Entries[i]; e.Name == name {
				return e
			}
		}
		t.Fatalf("no %s", name)
		return nil
	}
	for _, tc := range []struct {
		name   string
		change func(*index.Image)
		read   bool // the lie is found by reading a/f000; else by completing the layer
	}{
		{"sum of a file", func(ix *index.Image) {
			e := entry(ix, "a/f003")
			e.Object[0]++
			e.Chunks[0].Sum = e.Object
		}, true},
		{"sum of a chunk", func(ix *index.Image) { entry(ix, "a/f000").Chunks[1].Sum[0]++ }, true},
		{"place of a file", func(ix *index.Image) { entry(ix, "a/f003").Chunks[0].BlobOff++ }, true},
		{"mode of a file", func(ix *index.Image) { entry(ix, "a/f005").Mode = 0o4755 }, false},
		{"a name too many", func(ix *index.Image) {
			l := ix.Layers[0].Index
			l.Entries = append(l.Entries, layers.Entry{Name: "etc", Kind: layers.Symlink, Link: "/tmp", Mode: 0o777})
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			hub := newHub(t)
			im := newImage(t, gzipTar, append(someFiles(6, "a", 30), inside(t)))
			ref := hub.put(t, "lies", im)
			hub.forge(t, "lies", im, tc.change)
			m := startMachine(t, "pull.complete = false\nindex.trust = 'any'")
			if row := m.pull(ref, false); row.Complete {
				t.Fatal("the index was not used")
			}
			if tc.read {
				failed := 0
				top := m.mount(ref, false)
				for name, sum := range im.want {
					switch b, err := os.ReadFile(filepath.Join(top, name)); {
					case err != nil:
						failed++
					case sha256.Sum256(b) != sum:
						t.Errorf("%s: wrong bytes were served", name)
					}
				}
				if failed == 0 {
					t.Error("every file could be read")
				}
				m.unmount(top)
			} else if err := m.call(control.OpPull, control.PullArgs{Ref: ref, Policy: "missing", Wait: true}, nil); err == nil {
				t.Error("the layer was completed")
			}
			var d control.ImageDetail
			for deadline := time.Now().Add(patience); d.Quarantine == ""; time.Sleep(5 * time.Millisecond) {
				if m.must(control.OpInspect, control.RefArgs{Ref: ref}, &d); time.Now().After(deadline) {
					t.Fatalf("the image is not quarantined")
				}
			}
			if _, code := m.snapctl("run", "--rm", "--network", "none", ref, "/inside", "exit", "0"); code != 125 {
				t.Errorf("run on a quarantined image: exit status %d, want 125", code)
			}
			if words := m.ok("explain", ref); !strings.Contains(words, "  QUARANTINED: ") || tc.read && (!strings.Contains(words, "  those of /a/f00") || !strings.Contains(words, ": digest is sha256:")) {
				t.Errorf("explain does not say that it is quarantined, or not why:\n%s", words)
			}
			if text := m.ok("stat", "--prometheus"); !strings.Contains(text, "\nsnapfs_images{state=\"quarantined\"} 1\n") {
				t.Errorf("no metric says that it is quarantined:\n%s", text)
			}
			told := m.events(control.EventsArgs{Filter: map[string][]string{"event": {"quarantine"}}})
			if len(told) != 1 || told[0].ID != ref || told[0].Attributes["error"] == "" {
				t.Errorf("events: %+v", told)
			}
			m.stop()
			m.start()
			if _, code := m.snapctl("run", "--rm", "--network", "none", ref, "/inside", "exit", "0"); code != 125 {
				t.Errorf("run after a restart: exit status %d, want 125", code)
			}
			if row := m.pull(ref, false); !row.Complete {
				t.Errorf("pulled again: %+v, want all, without the index", row)
			}
			im.check(t, m.mount(ref, false))
		})
	}
}

// TestIndexFaults: whatever is wrong with a published index, the image can be pulled.
func TestIndexFaults(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	for name, broken := range map[string]fault{
		"refused": func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			return isReferrers(r) && answer(w, http.StatusForbidden)
		},
		"failing": func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			return isReferrers(r) && answer(w, http.StatusInternalServerError)
		},
		"html": func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			if isReferrers(r) {
				io.WriteString(w, "<html>")
			}
			return isReferrers(r)
		},
		"lost": func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			return isIndexBlob(hub, r) && answer(w, http.StatusNotFound)
		},
		"cut": func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
			if isIndexBlob(hub, r) {
				rec := good()
				w.Header().Set("Content-Length", "10")
				w.WriteHeader(rec.Code)
				w.Write(rec.Body.Bytes()[:10])
			}
			return isIndexBlob(hub, r)
		},
		"flipped": func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
			if isIndexBlob(hub, r) {
				rec := good()
				b := bytes.Clone(rec.Body.Bytes())
				b[len(b)/2] ^= 1
				for k, v := range rec.Header() {
					w.Header()[k] = v
				}
				w.WriteHeader(rec.Code)
				w.Write(b)
			}
			return isIndexBlob(hub, r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			im := newImage(t, gzipTar, someFiles(7, "a", 20))
			ref := hub.put(t, name, im)
			hub.forge(t, name, im, func(*index.Image) {})
			hub.misbehave(name, broken)
			m := startMachine(t, "pull.complete = false\nindex.trust = 'any'")
			if row := m.pull(ref, false); !row.Complete {
				t.Errorf("pulled: %+v, want all, without the index", row)
			}
			im.check(t, m.mount(ref, false))
		})
	}
}

func isReferrers(r *http.Request) bool {
	return strings.Contains(r.URL.Path, "/referrers/") || strings.Contains(r.URL.Path, "/manifests/sha256-")
}

// isIndexBlob says whether the request is for a blob that begins as an index does.
func isIndexBlob(h *hub, r *http.Request) bool {
	if !isBlob(r, "") || r.Method != http.MethodGet {
		return false
	}
	rec := httptest.NewRecorder()
	whole := r.Clone(r.Context())
	whole.Header.Del("Range")
	h.store.ServeHTTP(rec, whole)
	return bytes.HasPrefix(rec.Body.Bytes(), []byte("snapfsim"))
}

// answer sends a status instead of what was asked for.
func answer(w http.ResponseWriter, status int) bool {
	w.WriteHeader(status)
	return true
}

func gunzip(t testing.TB, b []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

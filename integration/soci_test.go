package integration

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/layers/soci"
)

// sociLayout is the OCI layout that SOCI's own program has indexed, by names.
var sociLayout = sync.OnceValue(func() map[string][]byte {
	f, err := os.Open("../layers/soci/testdata/image.tar.zst")
	if err != nil {
		panic(err)
	}
	defer f.Close()
	z, err := zstd.NewReader(f, zstd.WithDecoderMaxWindow(1<<28))
	if err != nil {
		panic(err)
	}
	defer z.Close()
	m := map[string][]byte{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return m
		}
		if err == nil && h.Typeflag == tar.TypeReg {
			m[strings.TrimPrefix(h.Name, "./")], err = io.ReadAll(r)
		}
		if err != nil {
			panic(err)
		}
	}
})

// A sociImage is an image with an index of SOCI, of version 1 or 2.
type sociImage struct {
	*image
	version  int
	indexRaw []byte // the index manifest
	ztocs    [][]byte
}

func read[T any](t testing.TB, raw []byte) (doc T) {
	t.Helper()
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	return doc
}

// newSOCI is the image of the layout. What SOCI has written of it is as it was,
// but for what change does to ztocs, if it is not nil.
func newSOCI(t testing.TB, version int, change func(layer int, ztoc []byte)) *sociImage {
	t.Helper()
	blob := func(d digest.Digest) []byte { return sociLayout()["blobs/sha256/"+d.Encoded()] }
	top := read[ocispec.Index](t, sociLayout()["index.json"])
	im := &sociImage{version: version, image: &image{blobs: map[digest.Digest][]byte{}}}
	im.index = blob(top.Manifests[0].Digest)
	im.raw = blob(read[ocispec.Index](t, im.index).Manifests[0].Digest)
	im.manifest = read[ocispec.Manifest](t, im.raw)
	im.config = blob(im.manifest.Config.Digest)
	im.blobs[im.manifest.Config.Digest] = im.config
	bound, _ := soci.Bound(im.manifest.Annotations)
	if im.indexRaw = blob(bound); version == 1 {
		im.indexRaw = blob(digest.Digest(strings.TrimSpace(string(sociLayout()["v1-index"]))))
	}
	ix := read[ocispec.Manifest](t, im.indexRaw)
	im.blobs[ix.Config.Digest] = blob(ix.Config.Digest)
	for i, l := range im.manifest.Layers {
		im.blobs[l.Digest] = blob(l.Digest)
		z := bytes.Clone(blob(ix.Layers[i].Digest))
		if change != nil {
			change(i, z)
			ix.Layers[i].Digest = digest.FromBytes(z)
		}
		im.blobs[digest.FromBytes(z)] = z
		im.ztocs = append(im.ztocs, z)
	}
	if change != nil {
		im.bind(t, &ix)
	}
	im.want = im.merged(t)
	return im
}

// bind makes the image and an index that was changed refer to each other.
func (im *sociImage) bind(t testing.TB, ix *ocispec.Manifest) {
	if im.index = nil; im.version == 2 {
		im.indexRaw = marshal(t, ix)
		im.manifest.Annotations = map[string]string{"com.amazon.soci.index-digest": digest.FromBytes(im.indexRaw).String()}
		im.seal(t)
		return
	}
	im.manifest.Annotations = nil
	im.seal(t)
	ix.Subject = &ocispec.Descriptor{MediaType: im.manifest.MediaType, Digest: digest.FromBytes(im.raw), Size: int64(len(im.raw))}
	im.indexRaw = marshal(t, ix)
}

// merged says what the files hold: of the tars, by the rules of the image-spec.
func (im *sociImage) merged(t testing.TB) map[string][sha256.Size]byte {
	t.Helper()
	all := map[string][sha256.Size]byte{}
	for _, l := range im.manifest.Layers {
		plain := im.blobs[l.Digest]
		if strings.HasSuffix(l.MediaType, "gzip") {
			plain = gunzip(t, plain)
		}
		layer, gone := map[string][sha256.Size]byte{}, []string{}
		for r := tar.NewReader(bytes.NewReader(plain)); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			name := path.Clean(h.Name)
			dir, base := path.Split(name)
			switch {
			case base == ".wh..wh..opq":
				gone = append(gone, dir)
			case strings.HasPrefix(base, ".wh."):
				gone = append(gone, dir+base[len(".wh."):])
			case h.Typeflag == tar.TypeLink:
				layer[name] = layer[path.Clean(h.Linkname)]
			case h.Typeflag == tar.TypeReg:
				sum := sha256.New()
				io.Copy(sum, r)
				layer[name] = [sha256.Size]byte(sum.Sum(nil))
			}
		}
		for name := range all {
			for _, g := range gone {
				if name == g || strings.HasSuffix(g, "/") && strings.HasPrefix(name, g) {
					delete(all, name)
				}
			}
		}
		for name, sum := range layer {
			all[name] = sum
		}
	}
	return all
}

// putSOCI stores the image with its index.
func (h *hub) putSOCI(t testing.TB, name string, im *sociImage) string {
	t.Helper()
	index := func() {
		h.request(t, http.MethodPut, "/v2/test/"+name+"/manifests/"+digest.FromBytes(im.indexRaw).String(), ocispec.MediaTypeImageManifest, im.indexRaw)
	}
	ref := h.put(t, name, &image{blobs: im.blobs, raw: im.raw}) // blobs first
	if im.version == 2 {
		index()
		return h.put(t, name, im.image)
	}
	index()
	return ref
}

const sociPlatform = "linux/amd64" // of the layout

func (m *machine) pullSOCI(ref string, wait bool) (im control.Image) {
	m.Helper()
	m.must(control.OpPull, control.PullArgs{Ref: ref, Platform: sociPlatform, Wait: wait}, &im)
	return im
}

// origins are those of the image's layers.
func (m *machine) origins(ref string) string {
	m.Helper()
	var d control.ImageDetail
	m.must(control.OpInspect, control.RefArgs{Ref: ref}, &d)
	var all []string
	for _, l := range d.LayerDetails {
		all = append(all, l.Origin)
	}
	return strings.Join(all, " ")
}

// hasObject says whether an object is in the store as a file.
func (m *machine) hasObject(sum digest.Digest) bool {
	for _, dir := range []string{"objects", "fresh"} {
		if _, err := os.Stat(filepath.Join(m.root, dir, sum.Encoded()[:2], sum.Encoded()[2:])); err == nil {
			return true
		}
	}
	return false
}

// TestSOCI follows an image that SOCI has indexed from its first byte to a life
// without its registry.
func TestSOCI(t *testing.T) {
	t.Parallel()
	for version, config := range map[int]string{1: "index.trust = 'any'", 2: ""} {
		t.Run("v"+string(rune('0'+version)), func(t *testing.T) {
			t.Parallel()
			sociLife(t, newSOCI(t, version, nil), "pull.complete = false\n"+config)
		})
	}
}

func sociLife(t *testing.T, im *sociImage, config string) {
	hub := newHub(t, registry.WithReferrersSupport(true))
	ref := hub.putSOCI(t, "soci", im)
	m := startMachine(t, config)
	row := m.pullSOCI(ref, false)
	if !row.Lazy || row.Complete || row.Local != 0 {
		t.Errorf("pulled: %+v, want lazy and nothing local", row)
	}
	if got := m.origins(ref); got != "soci soci soci" {
		t.Errorf("origins %q, want soci's", got)
	}
	top := m.mount(ref, true)
	for i := range im.manifest.Layers {
		if n := hub.got(im.layer(i).String()); n != 1 { // one byte, to know whether it can be read piecewise
			t.Errorf("layer %d was asked for %d times before anything was read", i, n)
		}
	}
	if b, err := os.ReadFile(filepath.Join(top, "etc/motd")); string(b) != "hello\n" {
		t.Fatalf("read %q, %v", b, err)
	}
	for i, want := range []int{1, 1, 2} {
		if n := hub.got(im.layer(i).String()); n != want {
			t.Errorf("layer %d was asked for %d times for one file of the last, want %d", i, n, want)
		}
	}
	span := digest.FromBytes(im.blobs[im.layer(2)][:8<<10])
	if !m.hasObject(span) {
		t.Errorf("the span that was read is not kept")
	}
	for i, end := range []func(){m.stop, m.kill} {
		end()
		m.start()
		name := []string{"etc/words", "data/part03"}[i]
		b, err := os.ReadFile(filepath.Join(top, name))
		if err != nil || sha256.Sum256(b) != im.want[name] {
			t.Fatalf("%s after restart %d: %d bytes, %v; the daemon said:\n%s", name, i, len(b), err, m.d.log.String())
		}
	}
	im.check(t, top)
	if err := os.WriteFile(filepath.Join(top, "etc/new"), []byte("written"), 0o644); err != nil {
		t.Fatal(err)
	}

	if row := m.pullSOCI(ref, true); !row.Complete || row.Local != row.Size {
		t.Errorf("pulled with Wait: %+v, want complete", row)
	}
	if got := m.origins(ref); got != "own own own" {
		t.Errorf("origins %q when complete, want the node's own", got)
	}
	if m.hasObject(span) {
		t.Error("a span is still there when the image is complete")
	}
	if left, _ := filepath.Glob(filepath.Join(m.root, "layers", "*.spans")); len(left) > 0 {
		t.Errorf("left when the image is complete: %v", left)
	}
	hub.CloseClientConnections()
	hub.Close()
	again := func() {
		t.Helper()
		forget(t)
		for name, sum := range sums(t, top) {
			if name != "etc/new" && sum != im.want[name] {
				t.Errorf("%s has SHA-256 %x, want %x", name, sum, im.want[name])
			}
		}
		second := m.mount(ref, false)
		im.check(t, second)
		m.unmount(second)
	}
	again()
	m.stop()
	m.start()
	again()
	m.kill()
	m.start()
	again()
	if row := m.images(); len(row) != 1 || !row[0].Complete || !row[0].Lazy {
		t.Errorf("images: %+v, want one, lazy, complete", row)
	}
	if err := m.call(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}, Force: true}, nil); err == nil {
		t.Error("an image was removed of which an old metadata image is mounted")
	}
	other := hub.ref("other")
	m.must(control.OpTag, control.TagArgs{Src: ref, Dst: other}, nil)
	ztocs := func(removal string, want int) {
		t.Helper()
		m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{removal}}, nil)
		if left, _ := filepath.Glob(filepath.Join(m.root, "layers", "*.ztoc")); len(left) != want {
			t.Errorf("left of SOCI: %v, want %d", left, want)
		}
	}
	ztocs(other, 3) // while they are mounted
	again()
	m.unmount(top)
	m.must(control.OpTag, control.TagArgs{Src: ref, Dst: other}, nil)
	ztocs(other, 0)
	top = m.mount(ref, false)
	im.check(t, top)
	m.unmount(top)
	ztocs(ref, 0)
	if left := m.left(); left != "" {
		t.Errorf("left of a removed image: %s", left)
	}
}

// TestSOCISettles: readers notice nothing of a layer's files getting their real
// sums, nor of the worker being killed on the way there.
func TestSOCISettles(t *testing.T) {
	t.Parallel()
	hub := newHub(t, registry.WithReferrersSupport(true))
	im := newSOCI(t, 2, nil)
	ref := hub.putSOCI(t, "settles", im)
	m := startMachine(t, "pull.complete = false\nlog.level = 'error'")
	for i := range 8 {
		m.pullSOCI(ref, false)
		top := m.mount(ref, false)
		stop := im.load(t, top)
		s, err := m.status()
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			ended <- m.callCtx(t.Context(), control.OpPull, control.PullArgs{Ref: ref, Platform: sociPlatform, Policy: "missing", Wait: true}, nil)
		}()
		time.Sleep(time.Duration(i) * 7 * time.Millisecond)
		kill9(t, s.Worker)
		at := m.left() // where it was
		m.waitReady(m.d.cmd.Process.Pid)
		<-ended
		m.pullSOCI(ref, true)
		if got := m.origins(ref); got != "own own own" {
			t.Errorf("kill %d: origins %q, want the node's own", i, got)
		}
		m.evict()
		forget(t)
		im.check(t, top)
		r := stop()
		t.Logf("killed at %s: %d files read, %d failed, %d wrong", at, r.read.Load(), r.failed.Load(), r.wrong.Load())
		second := m.mount(ref, false)
		im.check(t, second)
		m.unmount(second)
		m.unmount(top)
		m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{ref}}, nil)
		if left := m.left(); left != "" {
			t.Errorf("killed at %s: left of a removed image: %s", at, left)
		}
	}
}

// left counts the files of layers by their kind.
func (m *machine) left() string {
	m.Helper()
	files, err := os.ReadDir(filepath.Join(m.root, "layers"))
	if err != nil {
		m.Fatal(err)
	}
	n := map[string]int{}
	for _, f := range files {
		n[filepath.Ext(f.Name())]++
	}
	var all []string
	for _, ext := range slices.Sorted(maps.Keys(n)) {
		all = append(all, fmt.Sprint(n[ext], " ", ext))
	}
	return strings.Join(all, ", ")
}

// with adds a layer that has no ztoc, as SOCI leaves small ones.
func (im *sociImage) with(t testing.TB, f file) {
	t.Helper()
	l := newLayer(t, gzipTar, []file{f})
	im.blobs[l.Desc.Digest] = l.blob
	im.manifest.Layers = append(im.manifest.Layers, l.Desc)
	c := read[ocispec.Image](t, im.config)
	c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, l.DiffID)
	im.setConfig(t, c)
	ix := read[ocispec.Manifest](t, im.indexRaw)
	im.bind(t, &ix)
	im.want[f.Name] = sha256.Sum256(f.data)
}

// TestSOCIContainer: a container sees the same files from its start, by aliases,
// to its end, when the image has long had real sums and no registry.
func TestSOCIContainer(t *testing.T) {
	t.Parallel()
	hub := newHub(t, registry.WithReferrersSupport(true))
	im := newSOCI(t, 2, func(int, []byte) {})
	im.with(t, inside(t))
	ref := hub.putSOCI(t, "container", im)
	m := startMachine(t, "pull.complete = false")
	m.ok("run", "-d", "--name", "stays", "--network", "none", "--platform", sociPlatform, ref, "/inside", "wait")
	if got := m.origins(ref); got != "soci soci soci own" {
		t.Errorf("origins %q, want soci's but for the last", got)
	}
	sums := func() {
		t.Helper()
		forget(t)
		for _, dir := range []string{"bin", "data", "deep"} {
			im.checkSums(t, dir+"/", m.ok("exec", "stays", "/inside", "sums", "/"+dir))
		}
	}
	m.kill()
	m.start()
	sums()
	m.pullSOCI(ref, true)
	hub.CloseClientConnections()
	hub.Close()
	sums()
	collect := func(want string) {
		t.Helper()
		m.must(control.OpTag, control.TagArgs{Src: ref, Dst: hub.ref("other")}, nil)
		m.must(control.OpRmi, control.RemoveImagesArgs{Refs: []string{hub.ref("other")}}, nil)
		if got := m.left(); got != want {
			t.Errorf("files of layers: %q, want %q", got, want)
		}
	}
	collect("7 .idx, 4 .map, 4 .windows, 3 .ztoc")
	sums()
	m.stop()
	m.start()
	sums()
	m.ok("run", "--rm", "--network", "none", ref, "/inside", "exit", "0")
	m.ok("rm", "-f", "stays")
	collect("4 .idx, 4 .map, 4 .windows")
}

// TestSOCILayout: an image in a directory starts as one in a registry does.
func TestSOCILayout(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, data := range sociLayout() {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := startMachine(t, "pull.complete = false")
	ref := "oci:" + dir
	if m.pullSOCI(ref, false); m.origins(ref) != "soci soci soci" {
		t.Errorf("origins %q, want soci's", m.origins(ref))
	}
	newSOCI(t, 2, nil).check(t, m.mount(ref, false))
}

// TestSOCITrust: an index that the manifest is bound to is believed as the
// manifest is; another only if anybody's is. One in our format goes before both.
func TestSOCITrust(t *testing.T) {
	t.Parallel()
	const trustAny, trustSigned, trustNone = "index.trust = 'any'", "index.trust = 'signed'", "index.trust = 'none'"
	hub := newHub(t, registry.WithReferrersSupport(true))
	refs := map[int]string{1: hub.putSOCI(t, "v1", newSOCI(t, 1, func(int, []byte) {})), 2: hub.putSOCI(t, "v2", newSOCI(t, 2, nil))}
	for _, tc := range []struct {
		version int
		config  string
		want    string
	}{
		{1, trustAny, "soci soci soci"},
		{1, trustSigned, "own own own"},
		{1, trustNone, "own own own"},
		{2, trustAny, "soci soci soci"},
		{2, trustSigned, "soci soci soci"},
		{2, trustNone, "soci soci soci"},
	} {
		m := startMachine(t, "pull.complete = false\n"+tc.config)
		m.pullSOCI(refs[tc.version], false)
		if got := m.origins(refs[tc.version]); got != tc.want {
			t.Errorf("version %d, %s: origins %q, want %q", tc.version, tc.config, got, tc.want)
		}
	}
	m := startMachine(t, "index.publish = true")
	m.pullSOCI(refs[2], true)
	var list []control.IndexInfo
	for deadline := time.Now().Add(patience); len(list) == 0; time.Sleep(20 * time.Millisecond) {
		m.must(control.OpIndexes, control.IndexListArgs{Ref: refs[2]}, &list)
		if time.Now().After(deadline) {
			t.Fatal("a node that publishes has not done so when the image was complete")
		}
	}
	m = startMachine(t, "pull.complete = false\n"+trustAny)
	m.pullSOCI(refs[2], false)
	if got := m.origins(refs[2]); got != "published published published" {
		t.Errorf("origins %q, want the published index's", got)
	}
}

// TestSOCIAfterEager: a layer that is here is not looked for in an index.
func TestSOCIAfterEager(t *testing.T) {
	t.Parallel()
	hub := newHub(t, registry.WithReferrersSupport(true))
	bare, bound := newSOCI(t, 1, func(int, []byte) {}), newSOCI(t, 2, nil)
	eager, lazy := hub.putSOCI(t, "eager", bare), hub.putSOCI(t, "bound", bound)
	m := startMachine(t, "pull.complete = false")
	if row := m.pullSOCI(eager, false); !row.Complete {
		t.Errorf("pulled without an index: %+v, want all", row)
	}
	if row := m.pullSOCI(lazy, false); !row.Complete {
		t.Errorf("pulled when all layers are here: %+v, want all", row)
	}
	if n := hub.got(digest.FromBytes(bound.indexRaw).String()); n != 0 {
		t.Errorf("the SOCI index was fetched %d times", n)
	}
	bound.check(t, m.mount(lazy, false))
}

// TestSOCIFaults: whatever is wrong with a SOCI index, the image can be pulled.
func TestSOCIFaults(t *testing.T) {
	t.Parallel()
	hub := newHub(t, registry.WithReferrersSupport(true))
	im := newSOCI(t, 2, nil)
	isIndex := func(r *http.Request) bool {
		return strings.HasSuffix(r.URL.Path, digest.FromBytes(im.indexRaw).String())
	}
	isZTOC := func(r *http.Request, i int) bool { return isBlob(r, digest.FromBytes(im.ztocs[i])) }
	flip := func(w http.ResponseWriter, good *httptest.ResponseRecorder) bool {
		b := bytes.Clone(good.Body.Bytes())
		b[len(b)/2] ^= 1
		for k, v := range good.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(good.Code)
		w.Write(b)
		return true
	}
	for _, tc := range []struct {
		name string
		want string
		f    fault
	}{
		{"index-lost", "own own own", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			return isIndex(r) && answer(w, http.StatusNotFound)
		}},
		{"index-flipped", "own own own", func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
			return isIndex(r) && flip(w, good())
		}},
		{"no-ranges", "own own own", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			return r.Header.Get("Range") != "" && answer(w, http.StatusBadRequest)
		}},
		{"ztoc-lost", "soci own soci", func(w http.ResponseWriter, r *http.Request, _ func() *httptest.ResponseRecorder) bool {
			return isZTOC(r, 1) && answer(w, http.StatusNotFound)
		}},
		{"ztoc-flipped", "own soci soci", func(w http.ResponseWriter, r *http.Request, good func() *httptest.ResponseRecorder) bool {
			return isZTOC(r, 0) && r.Method == http.MethodGet && flip(w, good())
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			ref := hub.putSOCI(t, tc.name, im)
			hub.misbehave(tc.name, tc.f)
			m := startMachine(t, "pull.complete = false")
			m.pullSOCI(ref, false)
			if got := m.origins(ref); got != tc.want {
				t.Errorf("origins %q, want %q", got, tc.want)
			}
			im.check(t, m.mount(ref, false))
			if row := m.pullSOCI(ref, true); !row.Complete {
				t.Errorf("pulled with Wait: %+v, want complete", row)
			}
			im.check(t, m.mount(ref, false))
		})
	}
}

// TestSOCILies: a ztoc that lies is found out at the latest when the layer is
// complete, and nothing more is started on the image until it was pulled again.
func TestSOCILies(t *testing.T) {
	t.Parallel()
	// checkpoint returns where the i-th one of a gzip layer is; see layers/soci/zinfo.go.
	checkpoint := func(t *testing.T, ztoc []byte, i int) []byte {
		at := bytes.Index(ztoc, binary.LittleEndian.AppendUint64(nil, 8<<10))
		if at < 0 {
			t.Fatal("no checkpoints")
		}
		return ztoc[at+8+i*(17+32<<10):]
	}
	replace := func(t *testing.T, ztoc []byte, old, new string) {
		at := bytes.Index(ztoc, []byte(old))
		if at < 0 {
			t.Fatalf("no %q", old)
		}
		copy(ztoc[at:], new)
	}
	for _, tc := range []struct {
		name   string
		change func(t *testing.T, layer int, ztoc []byte, stored []byte)
		read   string // the lie is found by reading that; "": by completing the layer
	}{
		{"digest of a span", func(t *testing.T, layer int, ztoc, stored []byte) {
			if layer == 2 {
				sum := sha256.Sum256(stored[:8<<10])
				old := hex.EncodeToString(sum[:])
				replace(t, ztoc, old, strings.Repeat("0", len(old)))
			}
		}, "etc/motd"},
		{"bits of a checkpoint", func(t *testing.T, layer int, ztoc, _ []byte) {
			if layer == 0 {
				c := checkpoint(t, ztoc, 2)
				c[16] = c[16]%7 + 1
			}
		}, "bin/app"},
		{"window", func(t *testing.T, layer int, ztoc, _ []byte) {
			if layer == 0 {
				c := checkpoint(t, ztoc, 2)
				for i := range 32 << 10 {
					c[17+i] ^= 1
				}
			}
		}, ""},
		{"name", func(t *testing.T, layer int, ztoc, _ []byte) {
			if layer == 2 {
				replace(t, ztoc, "etc/motd", "etc/mott")
			}
		}, ""},
	} {
		for version := 1; version <= 2; version++ {
			t.Run(tc.name+"/v"+string(rune('0'+version)), func(t *testing.T) {
				t.Parallel()
				hub := newHub(t, registry.WithReferrersSupport(true))
				im := newSOCI(t, version, func(layer int, ztoc []byte) {
					tc.change(t, layer, ztoc, sociLayout()["blobs/sha256/"+sociLayer(t, layer)])
				})
				ref := hub.putSOCI(t, "lies", im)
				m := startMachine(t, "pull.complete = false\nindex.trust = 'any'")
				if m.pullSOCI(ref, false); m.origins(ref) != "soci soci soci" {
					t.Fatalf("origins %q, want soci's; the daemon said:\n%s", m.origins(ref), m.d.log.String())
				}
				if tc.read != "" {
					top := m.mount(ref, false)
					if _, err := os.ReadFile(filepath.Join(top, tc.read)); err == nil || !strings.Contains(err.Error(), unix.EIO.Error()) {
						t.Errorf("read %s: %v, want EIO", tc.read, err)
					}
					m.unmount(top)
				} else if err := m.call(control.OpPull, control.PullArgs{Ref: ref, Platform: sociPlatform, Policy: "missing", Wait: true}, nil); err == nil {
					t.Error("the layer was completed")
				}
				var d control.ImageDetail
				for deadline := time.Now().Add(patience); d.Quarantine == ""; time.Sleep(5 * time.Millisecond) {
					if m.must(control.OpInspect, control.RefArgs{Ref: ref}, &d); time.Now().After(deadline) {
						t.Fatalf("the image is not quarantined; the daemon said:\n%s", m.d.log.String())
					}
				}
				m.stop()
				m.start()
				if err := m.call(control.OpMount, control.MountArgs{Ref: ref, Target: t.TempDir(), Platform: sociPlatform}, nil); err == nil {
					t.Error("a quarantined image was mounted after a restart")
				}
				m.pullSOCI(ref, true)
				if got := m.origins(ref); got != "own own own" {
					t.Errorf("origins %q when pulled again, want none of SOCI's", got)
				}
				im.check(t, m.mount(ref, false))
			})
		}
	}
}

// sociLayer returns the hex digest of a layer of the layout.
func sociLayer(t testing.TB, i int) string {
	top := read[ocispec.Index](t, sociLayout()["index.json"])
	list := read[ocispec.Index](t, sociLayout()["blobs/sha256/"+top.Manifests[0].Digest.Encoded()])
	m := read[ocispec.Manifest](t, sociLayout()["blobs/sha256/"+list.Manifests[0].Digest.Encoded()])
	return m.Layers[i].Digest.Encoded()
}

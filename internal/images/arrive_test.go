package images

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/layers"
)

func TestLayers(t *testing.T) {
	for _, format := range []string{gzipTar, eStargz} {
		t.Run(format, func(t *testing.T) {
			b := newBook(t)
			shared := files(1, "usr", 30)
			im := b.hub.push(t, "a", format, native, shared, files(2, "opt", 20), files(3, "srv", 5))
			all := b.take(im)
			for i, l := range all {
				if l.Blob != im.manifest.Layers[i].Digest || l.DiffID != im.diffIDs[i] || l.Of != im.wanted() {
					t.Errorf("layer %d is %+v", i, l)
				}
			}
			if n := b.hub.got(im.desc.Digest.String()); n != 1 {
				t.Errorf("the manifest was fetched %d times", n)
			}
			if format == gzipTar {
				for _, l := range im.manifest.Layers {
					if n := b.hub.got(string(l.Digest)); n != 1 {
						t.Errorf("layer %s was fetched %d times", l.Digest, n)
					}
				}
			}
			b.done()
			if list, err := b.List(); err != nil || len(list) > 0 {
				t.Errorf("List = %v, %v: the book has no name for it", list, err)
			}
			for _, name := range []string{im.ref, string(im.desc.Digest), im.desc.Digest.Encoded()[:8]} {
				if k, err := b.Find(name); err != nil || k.Desc.Digest != im.desc.Digest || k.Ref != im.ref {
					t.Errorf("Find(%s) = %+v, %v", name, k, err)
				}
			}
			if _, err := b.Get(im.ref); err == nil {
				t.Error("Get knows it by a name that nobody here has given")
			}
			m, err := b.Mount(t.Context(), Stack{Layers: all})
			if err != nil || m.Dir == "" || len(m.Data) != 3 {
				t.Fatalf("Mount = %+v, %v", m, err)
			}
			b.arrivals.mu.Lock()
			defer b.arrivals.mu.Unlock()
			if len(b.arrivals.on) != 1 {
				t.Errorf("%d images came in", len(b.arrivals.on))
			}
		})
	}
}

// TestLayersAtOnce: however many ask in whatever order, the image comes in once.
func TestLayersAtOnce(t *testing.T) {
	b := newBook(t)
	im := b.hub.push(t, "a", gzipTar, native, files(1, "a", 3), files(2, "b", 3), files(3, "c", 3), files(4, "d", 3))
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			i := 3 - i%4
			l, release, err := b.layer(im, i)
			if err != nil || l.DiffID != im.diffIDs[i] {
				t.Errorf("layer %d: %+v, %v", i, l, err)
				return
			}
			release()
		})
	}
	all.Wait()
	for _, d := range append(slices.Clone(im.manifest.Layers), im.desc) {
		if n := b.hub.got(string(d.Digest)); n != 1 {
			t.Errorf("%s was fetched %d times", d.Digest, n)
		}
	}
}

// gate lets nothing of a blob through until it is opened.
func (h *hub) gate(blob digest.Digest) (asked <-chan struct{}, open func()) {
	first, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.misbehave(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, string(blob)) && r.Method == http.MethodGet {
			once.Do(func() { close(first) })
			select {
			case <-gate:
			case <-r.Context().Done():
			}
		}
		return false
	})
	return first, sync.OnceFunc(func() { close(gate) })
}

// TestLayerComesAlone: who wants one layer does not wait for another, slower one.
func TestLayerComesAlone(t *testing.T) {
	b := newBook(t)
	im := b.hub.push(t, "a", gzipTar, native, files(1, "a", 3), files(2, "b", 3))
	_, open := b.hub.gate(im.manifest.Layers[0].Digest)
	defer open()
	if _, release, err := b.layer(im, 1); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
	open()
	if _, release, err := b.layer(im, 0); err != nil {
		t.Fatal(err)
	} else {
		release()
	}
}

// TestLayerCallers: one who goes away takes nothing from the others, and the
// last one everything.
func TestLayerCallers(t *testing.T) {
	b := newBook(t)
	im := b.hub.push(t, "a", gzipTar, native, files(1, "a", 3), files(2, "b", 3))
	asked, open := b.hub.gate(im.manifest.Layers[0].Digest)
	defer open()
	ask := func() (cancel func(), got chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		got = make(chan error, 1)
		go func() { // ends with ctx
			_, release, err := b.Layer(ctx, im.wanted(), im.manifest.Layers[0].Digest, im.diffIDs[0])
			if err == nil {
				release()
			}
			got <- err
		}()
		return cancel, got
	}
	leave1, got1 := ask()
	<-asked
	leave2, got2 := ask()
	defer leave2()
	for b.callers() < 2 {
		<-b.tick()
	}
	leave1()
	if err := <-got1; !errors.Is(err, context.Canceled) || errors.Is(err, ErrNotOurs) {
		t.Fatalf("who went away: %v", err)
	}
	open()
	if err := <-got2; err != nil {
		t.Fatalf("who stayed: %v", err)
	}

	other := b.hub.push(t, "b", gzipTar, native, files(5, "a", 3))
	asked, open2 := b.hub.gate(other.manifest.Layers[0].Digest)
	defer open2()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, _, err := b.Layer(ctx, other.wanted(), other.manifest.Layers[0].Digest, other.diffIDs[0])
		got <- err
	}()
	<-asked
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for b.pinned(ownKey(other.manifest.Layers[0])) { // until its flight has ended
		<-b.tick()
	}
	if l, err := b.Left(other.ref); err != nil || l != nil {
		t.Errorf("an image that nobody wanted any more is remembered: %+v, %v", l, err)
	}
}

func TestLayerRefused(t *testing.T) {
	b := newBook(t)
	im := b.hub.push(t, "a", gzipTar, native, files(1, "a", 3), files(2, "b", 3))
	bad := im.manifest.Layers[1].Digest
	b.hub.misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, string(bad)) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	if _, _, err := b.layer(im, 1); !errors.Is(err, ErrNotOurs) || !errors.Is(err, fsNotExist) {
		t.Fatalf("a layer that is not there: %v", err)
	}
	tries := b.hub.got(im.desc.Digest.String())
	if _, _, err := b.layer(im, 0); !errors.Is(err, ErrNotOurs) {
		t.Fatalf("another layer of the same pull: %v", err)
	}
	if n := b.hub.got(im.desc.Digest.String()); n != tries {
		t.Error("the image was tried again for another layer")
	}
	l, err := b.Left(im.ref)
	if err != nil || l == nil || l.Digest != string(im.desc.Digest) || !strings.Contains(l.Why, "layer "+short(bad)) {
		t.Fatalf("Left = %+v, %v", l, err)
	}
	if e, _, err := b.events.Read(0).Next(t.Context()); err != nil || !slices.ContainsFunc(e, func(e event) bool { return e.Action == "left" }) {
		t.Errorf("events: %v, %v", e, err)
	}
	b.hub.misbehave(nil)
	b.take(im) // the next pull
	b.done()
	if l, err := b.Left(im.ref); err != nil || l != nil {
		t.Errorf("after it came in: Left = %+v, %v", l, err)
	}
}

// TestLayerLies: what labels say is compared with the manifest.
func TestLayerLies(t *testing.T) {
	b := newBook(t)
	im := b.hub.push(t, "a", gzipTar, native, files(1, "a", 3), files(2, "b", 3))
	other := b.hub.push(t, "b", gzipTar, native, files(3, "c", 3))
	mine, theirs := im.manifest.Layers[0].Digest, other.manifest.Layers[0].Digest
	for name, test := range map[string]struct {
		w            Wanted
		blob, diffID digest.Digest
	}{
		"another image's layer":    {im.wanted(), theirs, other.diffIDs[0]},
		"another layer's diff ID":  {im.wanted(), mine, im.diffIDs[1]},
		"no digest":                {im.wanted(), "latest", im.diffIDs[0]},
		"manifest that is none":    {Wanted{im.ref, "sha256:0"}, mine, im.diffIDs[0]},
		"manifest of nothing":      {Wanted{im.ref, digest.FromString("x")}, mine, im.diffIDs[0]},
		"no reference":             {Wanted{"", im.desc.Digest}, mine, im.diffIDs[0]},
		"files of this machine":    {Wanted{"oci:/etc", ""}, mine, im.diffIDs[0]},
		"an archive":               {Wanted{"docker-archive:/etc/passwd", im.desc.Digest}, mine, im.diffIDs[0]},
		"a reference that is huge": {Wanted{strings.Repeat("a", 1<<20), im.desc.Digest}, mine, im.diffIDs[0]},
		"a layer is no manifest":   {Wanted{im.ref, mine}, mine, im.diffIDs[0]},
	} {
		if _, _, err := b.Layer(t.Context(), test.w, test.blob, test.diffID); !errors.Is(err, ErrNotOurs) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.take(im) // none of it has harmed the image
}

// TestLayerManifests: a manifest by digest is taken whatever its platform; by an
// index, or a tag, it is the machine's.
func TestLayerManifests(t *testing.T) {
	b := newBook(t)
	foreign := "s390x"
	im := b.hub.push(t, "a", gzipTar, native, files(1, "a", 3))
	far := b.hub.push(t, "a", gzipTar, foreign, files(2, "b", 3))
	near, there := im.desc, far.desc
	near.Platform = &ocispec.Platform{OS: "linux", Architecture: native}
	there.Platform = &ocispec.Platform{OS: "linux", Architecture: foreign}
	index := b.hub.document(t, "a", "latest", ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: im.manifest.Versioned, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{there, near}})
	for name, test := range map[string]struct {
		w  Wanted
		im *image
	}{
		"manifest of another platform": {far.wanted(), far},
		"index":                        {Wanted{im.ref, index.Digest}, im},
		"tag":                          {Wanted{im.ref, ""}, im},
		"tag and digest":               {Wanted{im.ref + "@" + string(im.desc.Digest), im.desc.Digest}, im},
	} {
		l, release, err := b.Layer(t.Context(), test.w, test.im.manifest.Layers[0].Digest, test.im.diffIDs[0])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		release()
		if l.Of.Manifest != test.im.desc.Digest {
			t.Errorf("%s: the layer is of manifest %s", name, l.Of.Manifest)
		}
	}
}

// TestLayersAreHeld: what snapshots hold stays, and the manifest as long as they
// hold all of it.
func TestLayersAreHeld(t *testing.T) {
	b := newBook(t)
	one, two := files(1, "a", 10), files(2, "b", 10)
	im := b.hub.push(t, "a", gzipTar, native, one, two)
	all := b.take(im)
	b.done()
	b.settle()
	if _, err := b.Mount(t.Context(), Stack{Layers: all}); err != nil {
		t.Fatal(err)
	}
	has := func(fs []file, want bool) {
		t.Helper()
		for _, f := range fs {
			if len(f.data) > 0 && b.Store.Has(layers.SumOf(f.data)) != want {
				t.Errorf("%s: in the store = %t", f.Name, !want)
			}
		}
	}
	b.collect1()
	has(one, true)
	has(two, true)
	if _, err := b.Find(im.ref); err != nil {
		t.Errorf("all layers are held: %v", err)
	}
	b.hold(all[0])
	b.collect1()
	has(one, true)
	has(two, false)
	if _, err := b.Find(im.ref); err == nil {
		t.Error("the manifest outlives its layers")
	}
	if n := b.mounter.mounted(); n != 0 {
		t.Errorf("%d images are mounted", n)
	}
	b.hold()
	b.collect1()
	has(one, false)
	b.nothing()
}

// settle makes it later than anybody could ask for the rest of an image.
func (b *book) settle() {
	as := &b.Service.arrivals
	as.mu.Lock()
	for id, a := range as.on {
		if a.waiting == 0 && a.timer.Stop() {
			as.drop(id, a)
		}
	}
	as.mu.Unlock()
	for {
		b.pins.mu.Lock()
		n := len(b.pins.n)
		b.pins.mu.Unlock()
		if n == 0 {
			return
		}
		<-b.tick()
	}
}

func (b *book) collect1() {
	b.Helper()
	if err := b.Collect(b.Context()); err != nil {
		b.Error(err)
	}
}

// nothing checks that no row and no file is left.
func (b *book) nothing() {
	b.Helper()
	b.db.View(func(tx *bolt.Tx) error {
		for _, name := range []string{"names", "manifests", "layers", "trees"} {
			if n := tx.Bucket([]byte(name)).Stats().KeyN; n != 0 {
				b.Errorf("%d rows are left in %s", n, name)
			}
		}
		return nil
	})
	for _, d := range []string{"layers", "images", "profiles"} {
		if left := b.ls(d); len(left) > 0 {
			b.Errorf("left in %s: %v", d, left)
		}
	}
	if u, err := b.Store.Usage(); err != nil || u.Bytes() != 0 {
		b.Errorf("left in the store: %+v, %v", u, err)
	}
}

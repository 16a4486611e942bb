package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images/imagestest"
	"github.com/snapfs/snapfs/layers"
)

func TestLayers(t *testing.T) {
	for _, format := range []string{imagestest.Gzip, imagestest.EStargz} {
		t.Run(format, func(t *testing.T) {
			b := newBook(t)
			shared := imagestest.Files(1, "usr", 30)
			im := b.hub.Push(t, "a", format, imagestest.Native, shared, imagestest.Files(2, "opt", 20), imagestest.Files(3, "srv", 5))
			all := b.take(im)
			for i, l := range all {
				if l.Blob != im.Manifest.Layers[i].Digest || l.DiffID != im.DiffIDs[i] || l.Of != wanted(im) {
					t.Errorf("layer %d is %+v", i, l)
				}
			}
			if n := b.hub.Got(im.Desc.Digest.String()); n != 1 {
				t.Errorf("the manifest was fetched %d times", n)
			}
			if format == imagestest.Gzip {
				for _, l := range im.Manifest.Layers {
					if n := b.hub.Got(string(l.Digest)); n != 1 {
						t.Errorf("layer %s was fetched %d times", l.Digest, n)
					}
				}
			}
			b.done()
			if list, err := b.List(); err != nil || len(list) > 0 {
				t.Errorf("List = %v, %v: the book has no name for it", list, err)
			}
			for _, name := range []string{im.Ref, string(im.Desc.Digest), im.Desc.Digest.Encoded()[:8]} {
				if k, err := b.Find(name); err != nil || k.Desc.Digest != im.Desc.Digest || k.Ref != im.Ref {
					t.Errorf("Find(%s) = %+v, %v", name, k, err)
				}
			}
			if _, err := b.Get(im.Ref); err == nil {
				t.Error("Get knows it by a name that nobody here has given")
			}
			m, err := b.Mount(t.Context(), Stack{Layers: all})
			if err != nil || m.Dir == "" || len(m.Data) != 3 {
				t.Fatalf("Mount = %+v, %v", m, err)
			}
		})
	}
}

// TestLayersAtOnce: however many ask in whatever order, the image comes in once.
func TestLayersAtOnce(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3), imagestest.Files(2, "b", 3), imagestest.Files(3, "c", 3), imagestest.Files(4, "d", 3))
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			i := 3 - i%4
			l, release, err := b.layer(im, i)
			if err != nil || l.DiffID != im.DiffIDs[i] {
				t.Errorf("layer %d: %+v, %v", i, l, err)
				return
			}
			release()
		})
	}
	all.Wait()
	for _, d := range append(slices.Clone(im.Manifest.Layers), im.Desc) {
		if n := b.hub.Got(string(d.Digest)); n != 1 {
			t.Errorf("%s was fetched %d times", d.Digest, n)
		}
	}
}

// TestLayerTwice: an image may have a layer twice.
func TestLayerTwice(t *testing.T) {
	b := newBook(t)
	same := imagestest.Files(1, "a", 3)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, same, imagestest.Files(2, "b", 3), same)
	for range 2 { // the second time out of the book
		all := b.take(im)
		if all[0] != all[2] {
			t.Errorf("the same layer is %+v and %+v", all[0], all[2])
		}
		b.mount(all...)
	}
}

// TestLayerComesAlone: who wants one layer does not wait for another, slower one.
func TestLayerComesAlone(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3), imagestest.Files(2, "b", 3))
	_, open := b.hub.Gate(im.Manifest.Layers[0].Digest)
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
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3), imagestest.Files(2, "b", 3))
	asked, open := b.hub.Gate(im.Manifest.Layers[0].Digest)
	defer open()
	ask := func() (cancel func(), got chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		got = make(chan error, 1)
		go func() { // ends with ctx
			_, release, err := b.Layer(ctx, wanted(im), im.Manifest.Layers[0].Digest, im.DiffIDs[0])
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

	other := b.hub.Push(t, "b", imagestest.Gzip, imagestest.Native, imagestest.Files(5, "a", 3))
	asked, open2 := b.hub.Gate(other.Manifest.Layers[0].Digest)
	defer open2()
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() {
		_, _, err := b.Layer(ctx, wanted(other), other.Manifest.Layers[0].Digest, other.DiffIDs[0])
		got <- err
	}()
	<-asked
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for b.pinned(ownKey(other.Manifest.Layers[0])) { // until its flight has ended
		<-b.tick()
	}
	if l, err := b.Left(other.Ref); err != nil || l != nil {
		t.Errorf("an image that nobody wanted any more is remembered: %+v, %v", l, err)
	}
}

func TestLayerRefused(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3), imagestest.Files(2, "b", 3))
	bad := im.Manifest.Layers[1].Digest
	b.hub.Misbehave(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, string(bad)) {
			w.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	if _, _, err := b.layer(im, 1); !errors.Is(err, ErrNotOurs) || !errors.Is(err, fsNotExist) {
		t.Fatalf("a layer that is not there: %v", err)
	}
	tries := b.hub.Got(im.Desc.Digest.String())
	if _, _, err := b.layer(im, 0); !errors.Is(err, ErrNotOurs) {
		t.Fatalf("another layer of the same pull: %v", err)
	}
	if n := b.hub.Got(im.Desc.Digest.String()); n != tries {
		t.Error("the image was tried again for another layer")
	}
	b.Leave(wanted(im), errors.New("what is below it is a directory")) // which comes of the first
	l, err := b.Left(im.Ref)
	if err != nil || l == nil || l.Digest != string(im.Desc.Digest) || !strings.Contains(l.Why, "layer "+short(bad)) {
		t.Fatalf("Left = %+v, %v", l, err)
	}
	if e, _, err := b.events.Read(0).Next(t.Context()); err != nil || !slices.ContainsFunc(e, func(e event) bool { return e.Action == "left" }) {
		t.Errorf("events: %v, %v", e, err)
	}
	b.hub.Misbehave(nil)
	b.take(im) // the next pull
	b.done()
	if l, err := b.Left(im.Ref); err != nil || l != nil {
		t.Errorf("after it came in: Left = %+v, %v", l, err)
	}
	b.Leave(wanted(im), errors.New("a reason of the snapshotter's"))
	if l, err := b.Left(im.Ref); err != nil || l == nil || l.Why != "a reason of the snapshotter's" {
		t.Errorf("Left = %+v, %v", l, err)
	}
}

// TestLayerLies: what labels say is compared with the manifest.
func TestLayerLies(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3), imagestest.Files(2, "b", 3))
	other := b.hub.Push(t, "b", imagestest.Gzip, imagestest.Native, imagestest.Files(3, "c", 3))
	mine, theirs := im.Manifest.Layers[0].Digest, other.Manifest.Layers[0].Digest
	for name, test := range map[string]struct {
		w            Wanted
		blob, diffID digest.Digest
	}{
		"another image's layer":    {wanted(im), theirs, other.DiffIDs[0]},
		"another layer's diff ID":  {wanted(im), mine, im.DiffIDs[1]},
		"no digest":                {wanted(im), "latest", im.DiffIDs[0]},
		"manifest that is none":    {Wanted{im.Ref, "sha256:0"}, mine, im.DiffIDs[0]},
		"manifest of nothing":      {Wanted{im.Ref, digest.FromString("x")}, mine, im.DiffIDs[0]},
		"no reference":             {Wanted{"", im.Desc.Digest}, mine, im.DiffIDs[0]},
		"files of this machine":    {Wanted{"oci:/etc", ""}, mine, im.DiffIDs[0]},
		"an archive":               {Wanted{"docker-archive:/etc/passwd", im.Desc.Digest}, mine, im.DiffIDs[0]},
		"a reference that is huge": {Wanted{strings.Repeat("a", 1<<20), im.Desc.Digest}, mine, im.DiffIDs[0]},
		"a layer is no manifest":   {Wanted{im.Ref, mine}, mine, im.DiffIDs[0]},
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
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3))
	far := b.hub.Push(t, "a", imagestest.Gzip, foreign, imagestest.Files(2, "b", 3))
	near, there := im.Desc, far.Desc
	near.Platform = &ocispec.Platform{OS: "linux", Architecture: imagestest.Native}
	there.Platform = &ocispec.Platform{OS: "linux", Architecture: foreign}
	index := b.hub.Document(t, "a", "latest", ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: im.Manifest.Versioned, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{there, near}})
	for name, test := range map[string]struct {
		w  Wanted
		im *imagestest.Image
	}{
		"manifest of another platform": {wanted(far), far},
		"index":                        {Wanted{im.Ref, index.Digest}, im},
		"tag":                          {Wanted{im.Ref, ""}, im},
		"tag and digest":               {Wanted{im.Ref + "@" + string(im.Desc.Digest), im.Desc.Digest}, im},
	} {
		l, release, err := b.Layer(t.Context(), test.w, test.im.Manifest.Layers[0].Digest, test.im.DiffIDs[0])
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		release()
		if l.Of.Manifest != test.im.Desc.Digest {
			t.Errorf("%s: the layer is of manifest %s", name, l.Of.Manifest)
		}
	}
}

// TestLayersAreHeld: what snapshots hold stays, and the manifest as long as they
// hold all of it.
func TestLayersAreHeld(t *testing.T) {
	b := newBook(t)
	one, two := imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, one, two)
	all := b.take(im)
	b.waitFor(func() bool { return !b.pinned(all[0].Key) }) // there is no more to ask for
	if _, err := b.Mount(t.Context(), Stack{Layers: all}); err != nil {
		t.Fatal(err)
	}
	has := func(fs []imagestest.File, want bool) {
		t.Helper()
		for _, f := range fs {
			if len(f.Data) > 0 && b.Store.Has(layers.SumOf(f.Data)) != want {
				t.Errorf("%s: in the store = %t", f.Name, !want)
			}
		}
	}
	b.collect1()
	has(one, true)
	has(two, true)
	if _, err := b.Find(im.Ref); err != nil {
		t.Errorf("all layers are held: %v", err)
	}
	b.hold(all[0])
	b.collect1()
	has(one, true)
	has(two, false)
	if _, err := b.Find(im.Ref); err == nil {
		t.Error("the manifest outlives its layers")
	}
	if n := b.mounter.mounted(); n != 0 {
		t.Errorf("%d images are mounted", n)
	}
	b.hold()
	b.collect1()
	has(one, false)
	b.settle()
	b.nothing()
}

// TestLinger: who asks for the highest layer soon wants no other one.
func TestLinger(t *testing.T) {
	a := &arrival{}
	if got := a.linger(); got != linger {
		t.Errorf("of an unknown image: %v, want %v", got, linger)
	}
	a.parts = []*part{{given: true}, {}}
	if got := a.linger(); got != linger {
		t.Errorf("before the highest layer: %v, want %v", got, linger)
	}
	a.parts = []*part{{}, {given: true}}
	if got := a.linger(); got != lingerAtTop {
		t.Errorf("after the highest layer: %v, want %v", got, lingerAtTop)
	}
}

// TestCollectionIsMarked: one that a crash prevents is made up for at the start.
func TestCollectionIsMarked(t *testing.T) {
	b := newBook(t)
	mark := filepath.Join(b.root, "images", pullingMark)
	b.CollectSoon()
	if _, err := os.Stat(mark); err != nil {
		t.Error(err)
	}
	b.settle()
	if _, err := os.Stat(mark); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mark stays: %v", err)
	}
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

// collected waits until the collections that are to come by themselves are over.
func (b *book) collected() {
	b.waitFor(func() bool { return !slices.Contains(b.ls("images"), pullingMark) })
}

// nothing checks that no row and no file is left.
func (b *book) nothing() {
	b.Helper()
	b.collected()
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

// TestFindNewest: a name stands for what it was last asked for as.
func TestFindNewest(t *testing.T) {
	b := newBook(t)
	one := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3))
	two := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(2, "b", 3))
	for _, im := range []*imagestest.Image{one, two, one} {
		b.take(im)
		b.done()
		if k, err := b.Find(im.Ref); err != nil || k.Desc.Digest != im.Desc.Digest {
			t.Errorf("Find: %v, %v; want %s", k, err, im.Desc.Digest)
		}
	}
	if _, err := b.Find("sha256:"); err == nil {
		t.Error("everything begins with nothing")
	}
}

// TestAsked: somebody may listen to how an image comes in.
func TestAsked(t *testing.T) {
	b := newBook(t)
	var mu sync.Mutex
	var heard []string
	b.Options.Asked = func(ref string) (func(control.Progress), func(*Known, error)) {
		return func(p control.Progress) {
				mu.Lock()
				defer mu.Unlock()
				if p.Done {
					heard = append(heard, p.Action)
				}
			}, func(k *Known, err error) {
				mu.Lock()
				defer mu.Unlock()
				heard = append(heard, fmt.Sprint(ref, k != nil && k.Ref == ref, err != nil))
			}
	}
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 3))
	ask := func() []string {
		b.layer(im, 0)
		b.done()
		mu.Lock()
		defer mu.Unlock()
		list := heard
		heard = nil
		return list
	}
	b.hub.Misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	if got, want := ask(), []string{im.Ref + "false true"}; !slices.Equal(got, want) {
		t.Errorf("an image that cannot be had: %q, want %q", got, want)
	}
	b.hub.Misbehave(nil)
	if got, want := ask(), []string{"resolving", "searching", "pulling", "building", im.Ref + "true false"}; !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("an image that comes in: %q, want %q", got, want)
	}
	if got := ask(); got != nil {
		t.Errorf("an image that is here: %q", got)
	}
}

func TestCanonical(t *testing.T) {
	d := "@sha256:" + strings.Repeat("a", 64)
	for name, want := range map[string]string{
		"redis": "docker.io/library/redis:latest", "redis:7": "docker.io/library/redis:7", "redis:7" + d: "docker.io/library/redis:7",
		"docker.io/library/redis" + d: "docker.io/library/redis" + d, "Redis": "", "": "",
	} {
		if got := canonical(name); got != want {
			t.Errorf("canonical(%q) = %q, want %q", name, got, want)
		}
	}
}

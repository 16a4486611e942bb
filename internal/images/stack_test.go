package images

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/internal/images/imagestest"
	"github.com/snapfs/snapfs/layers"
)

// mount mounts layers and returns what was mounted.
func (b *book) mount(l ...Layer) (Mounted, string) {
	b.Helper()
	m, err := b.Mount(b.Context(), Stack{Layers: l})
	if err != nil {
		b.Fatal(err)
	}
	b.mounter.mu.Lock()
	defer b.mounter.mu.Unlock()
	return m, b.mounter.at[filepath.Base(m.Dir)]
}

func TestMount(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10), imagestest.Files(3, "c", 10))
	all := b.take(im)
	whole, file := b.mount(all...)
	if !strings.HasSuffix(file, sealedSuffix+".erofs") {
		t.Errorf("all is local, and the image is not sealed: %s", file)
	}
	again, _ := b.mount(all...)
	if again.Dir != whole.Dir {
		t.Errorf("mounted twice: %s, %s", whole.Dir, again.Dir)
	}
	part, _ := b.mount(all[:2]...)
	if part.Dir == whole.Dir {
		t.Error("two of three layers are mounted as all of them")
	}
	mapped, err := b.Mount(t.Context(), Stack{Layers: all, Map: IDMap{"0:100000:65536", "0:200000:65536"}})
	if err != nil || mapped.Dir == whole.Dir {
		t.Errorf("with shifted owners: %+v, %v", mapped, err)
	}
	if _, err := b.Mount(t.Context(), Stack{Layers: all, Map: IDMap{UID: "0:100000:65536"}}); err != nil {
		t.Errorf("with the owners shifted, and not the groups: %v", err)
	}
	for _, m := range []IDMap{{"0:1", "0:1:1"}, {"0:1:1", "x"}, {"1:1:1", "0:0:1"}} {
		if _, err := b.Mount(t.Context(), Stack{Layers: all, Map: m}); err == nil {
			t.Errorf("owners shifted by %+v", m)
		}
	}
	if _, err := b.Mount(t.Context(), Stack{}); !errors.Is(err, ErrNoLayers) {
		t.Errorf("no layers: %v", err)
	}
}

// TestMountedStays: what a container may be mounted from stays, also if its image
// goes.
func TestMountedStays(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10))
	all := b.take(im)
	b.done()
	b.settle()
	b.mount(all...)
	b.mount(all[0])
	b.mu.Lock()
	b.held = Held{Stacks: []Stack{{Layers: all[:1]}}}
	b.mu.Unlock()
	b.collect1()
	if n := b.mounter.mounted(); n != 1 {
		t.Errorf("%d images are mounted, want that of the stack that is held", n)
	}
	if b.knownTree(treeID([]string{all[0].Key})) == nil || !b.knownLayer(all[0].Key) || b.knownLayer(all[1].Key) {
		t.Error("not what is held is kept")
	}
	b.hold()
	b.collect1()
	b.nothing()
}

// TestMountAfterLoss: what an unclean boot has cost is fetched again.
func TestMountAfterLoss(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10))
	all := b.take(im)
	b.done()
	b.settle()
	lose := func() {
		t.Helper()
		b.shut()
		d, err := openDB(filepath.Join(b.root, "snapfs.db"))
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Update(func(tx *bolt.Tx) error {
			// This format says that nothing of it can be fetched piecewise.
			lost := func(l *layerRow) { l.Durable, l.Mapped = false, false }
			return errors.Join(change(tx, "layers", all[1].Key, lost), put(tx, "meta", "boot", bootRow{ID: "another"}))
		}); err != nil {
			t.Fatal(err)
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		b.open()
	}
	lose()
	if m, err := b.Mount(t.Context(), Stack{Layers: all}); err != nil || m.Dir == "" {
		t.Fatalf("Mount = %+v, %v", m, err)
	}
	for i, want := range []int{1, 2} {
		if n := b.hub.Got(string(all[i].Blob)); n != want {
			t.Errorf("layer %d was fetched %d times, want %d", i, n, want)
		}
	}
	b.done()
	b.settle()
	lose()
	b.hub.Misbehave(func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	for range 2 {
		if _, err := b.Mount(t.Context(), Stack{Layers: all}); err == nil || !strings.Contains(err.Error(), "must be fetched again") {
			t.Fatalf("nobody has the layer: %v", err)
		}
	}
	b.hub.Misbehave(nil)
	b.mount(all...) // the same mount, later
}

func TestQuarantinedImage(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10))
	all := b.take(im)
	b.done()
	b.settle()
	b.lied(all[0].Key, layers.Sum{}, errors.New("a wrong byte"))
	if _, _, err := b.layer(im, 1); !errors.Is(err, ErrNotOurs) || !errors.Is(err, ErrQuarantined) || !strings.Contains(err.Error(), "a wrong byte") {
		t.Errorf("Layer of a quarantined image: %v", err)
	}
	if _, err := b.Mount(t.Context(), Stack{Layers: all}); !errors.Is(err, ErrQuarantined) {
		t.Errorf("Mount of a quarantined image: %v", err)
	}
	if _, err := b.Pull(t.Context(), control.PullArgs{Ref: im.Ref}, nil); err != nil {
		t.Fatal(err)
	}
	b.mount(all...)
	b.take(im)
}

// TestNamedToo: an image that has a name here, too, outlives either.
func TestNamedToo(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10))
	all := b.take(im)
	b.done()
	b.settle()
	pull := func() {
		t.Helper()
		if _, err := b.Pull(t.Context(), control.PullArgs{Ref: im.Ref, Policy: PullMissing}, nil); err != nil {
			t.Fatal(err)
		}
	}
	pull()
	if n := b.hub.Got(string(all[0].Blob)); n != 1 {
		t.Errorf("the layer was fetched %d times", n)
	}
	if _, err := b.Remove(t.Context(), []string{im.Ref}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Find(im.Ref); err != nil || !b.knownLayer(all[0].Key) {
		t.Errorf("snapshots hold it: %v", err)
	}
	pull()
	b.hold()
	b.collect1()
	if k, err := b.Get(im.Ref); err != nil || !b.usable(&k.manifestRow) {
		t.Errorf("it has a name: %v", err)
	}
	if _, err := b.Remove(t.Context(), []string{im.Ref}, false); err != nil {
		t.Fatal(err)
	}
	b.nothing()
}

// TestCutOff: a process that dies in the middle leaves nothing.
func TestCutOff(t *testing.T) {
	b := newBook(t)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10))
	_, open := b.hub.Gate(im.Manifest.Layers[1].Digest)
	defer open()
	if _, release, err := b.layer(im, 0); err != nil {
		t.Fatal(err)
	} else {
		defer release()
	}
	dead := filepath.Join(t.TempDir(), "root") // as it would be found
	if err := os.CopyFS(dead, os.DirFS(b.root)); err != nil {
		t.Fatal(err)
	}
	other := &book{TB: t, root: dead, hub: b.hub, mounter: b.mounter, events: b.events}
	other.open()
	defer other.shut()
	if other.knownLayer(ownKey(im.Manifest.Layers[0])) {
		other.waitFor(func() bool { return !other.knownLayer(ownKey(im.Manifest.Layers[0])) })
	}
	other.collect1() // waits for the one that is under way
	other.nothing()
}

// waitFor waits until something is so that nobody tells.
func (b *book) waitFor(done func() bool) {
	for !done() {
		select {
		case <-b.Context().Done():
			b.Fatal("it does not come about")
		case <-b.tick():
		}
	}
}

// TestCompletes: after a start what it has read becomes the image's profile, and
// the rest follows.
func TestCompletes(t *testing.T) {
	b := newBook(t)
	b.Options.Complete = true
	b.pace = pace{look: time.Millisecond, quiet: 20 * time.Millisecond, none: time.Hour, most: time.Hour}
	read := imagestest.Files(2, "b", 30)
	im := b.hub.Push(t, "a", imagestest.EStargz, imagestest.Native, imagestest.Files(1, "a", 10), read)
	all := b.take(im)
	b.done()
	b.settle()
	_, unsealed := b.mount(all...)
	log, ctx := b.events.Read(0), t.Context()
	var seen []event
	for i := 1; !slices.ContainsFunc(seen, func(e event) bool { return e.Action == events.Seal }); i++ {
		if i < len(read) {
			if _, err := b.opt.Files.ReadAt(ctx, layers.SumOf(read[i].Data), make([]byte, 10), 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		wait, cancel := context.WithTimeout(ctx, 2*time.Millisecond)
		batch, _, err := log.Next(wait)
		cancel()
		if err == nil {
			seen = append(seen, batch...)
		}
		if ctx.Err() != nil {
			t.Fatalf("it does not complete: %v", seen)
		}
	}
	if p := b.profile(im.Desc.Digest); p == nil || p.Starts != 1 || len(p.Items) == 0 {
		t.Errorf("profile %+v", p)
	}
	if _, sealed := b.mount(all...); sealed == unsealed {
		t.Errorf("%s is mounted once more", sealed)
	}
	if k, err := b.Find(im.Ref); err != nil || len(b.incomplete(k.Layers)) > 0 {
		t.Errorf("not complete: %v", err)
	}
}

// TestRecords: where indexes are published, the first start on an image is
// recorded although all of it is local.
func TestRecords(t *testing.T) {
	b := newBook(t)
	b.Indexes.Publish = true
	b.pace = pace{look: time.Millisecond, quiet: 20 * time.Millisecond, none: time.Hour, most: time.Hour}
	read := imagestest.Files(2, "b", 30)
	im := b.hub.Push(t, "a", imagestest.Gzip, imagestest.Native, read)
	all := b.take(im)
	b.done()
	m, file := b.mount(all...)
	if len(m.Data) != 1 || strings.HasSuffix(file, sealedSuffix+".erofs") {
		t.Errorf("reads of %s with %v pass the daemon by", file, m.Data)
	}
	if m, _ := b.mount(all...); len(m.Data) != 3 {
		t.Errorf("the second start is recorded, too: %v", m.Data)
	}
	i := 0
	b.waitFor(func() bool {
		if i = min(i+1, len(read)-1); read[i].Data != nil {
			if _, err := b.opt.Files.ReadAt(t.Context(), layers.SumOf(read[i].Data), make([]byte, 10), 0); err != nil && err != io.EOF {
				t.Fatal(err)
			}
		}
		return b.profile(im.Desc.Digest) != nil
	})
	b.waitFor(func() bool { return b.following.begin(treeID([]string{all[0].Key})) })
	b.following.end(treeID([]string{all[0].Key}))
	if m, _ := b.mount(all...); len(m.Data) != 3 {
		t.Errorf("a start is recorded although there is a profile: %v", m.Data)
	}
}

// TestCompletesStack: of a stack that is only a part of an image, too.
func TestCompletesStack(t *testing.T) {
	b := newBook(t)
	b.Options.Complete = true
	b.pace = pace{look: time.Millisecond, none: time.Millisecond, most: time.Millisecond}
	im := b.hub.Push(t, "a", imagestest.EStargz, imagestest.Native, imagestest.Files(1, "a", 10), imagestest.Files(2, "b", 10))
	all := b.take(im)
	b.done()
	b.settle()
	_, unsealed := b.mount(all[0])
	b.waitFor(func() bool {
		_, file := b.mount(all[0])
		return file != unsealed
	})
}

func TestCollectSoon(t *testing.T) {
	b := newBook(t)
	asked := make(chan struct{}, 1000)
	held := b.Options.Held
	b.Options.Held = func(ctx context.Context) (Held, error) {
		asked <- struct{}{}
		return held(ctx)
	}
	for range 100 {
		b.CollectSoon()
	}
	<-asked
	<-asked
	if n := len(asked); n > 4 {
		t.Errorf("a hundred calls asked %d times more what is held", n)
	}
}

// TestSpared: what a collection has to spare, because something else is held,
// goes when that is over, and nobody needs to ask for it.
func TestSpared(t *testing.T) {
	b := newBook(t)
	over := b.Store.Hold()
	data := []byte("of a layer that was removed while it was completed")
	sum := layers.SumOf(data)
	if err := b.Store.Put(sum, data); err != nil {
		t.Fatal(err)
	}
	if err := b.Collect(t.Context()); err != nil || !b.Store.Has(sum) {
		t.Fatalf("collected while it is held: %v", err)
	}
	over()
	b.waitFor(func() bool { return !b.Store.Has(sum) })
}

package images

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/internal/images/imagestest"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
)

// A book is a Service with a registry, a store and a mounter that mounts nothing.
type book struct {
	testing.TB
	*Service
	root    string
	hub     *imagestest.Hub
	mounter *fakeMounter
	events  *events.Log
	opt     Options

	mu   sync.Mutex
	held Held
}

func newBook(t testing.TB) *book {
	b := &book{TB: t, root: t.TempDir(), hub: imagestest.NewHub(t), mounter: &fakeMounter{at: map[string]string{}}, events: events.New(0)}
	b.open()
	t.Cleanup(func() { b.shut() })
	return b
}

// open opens the book, as a new process does.
func (b *book) open() {
	b.Helper()
	store, err := objects.Open(b.root, objects.Options{})
	if err != nil {
		b.Fatal(err)
	}
	f := fetch.New(fetch.Options{Store: store})
	b.opt = Options{
		Root: b.root, Run: filepath.Join(b.root, "run"), Registry: registry.New(registry.Options{Timeouts: registry.Timeouts{NoProgress: time.Second, Attempts: 2, Backoff: time.Millisecond}}),
		Store: store, Fetcher: f, Files: soci.NewFiles(f, 0), Mounter: b.mounter, Events: b.events,
		Users: func() map[digest.Digest][]User { return nil },
		Held: func(context.Context) (Held, error) {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.held, nil
		},
	}
	if b.Service, err = Open(context.Background(), b.opt); err != nil {
		b.Fatal(err)
	}
}

// shut closes the book.
func (b *book) shut() {
	b.Helper()
	if b.Service == nil {
		return
	}
	err := b.Service.Close()
	b.opt.Files.Close()
	b.opt.Fetcher.Close()
	b.opt.Registry.Close()
	if serr := b.opt.Store.Close(); err != nil || serr != nil {
		b.Error(err, serr)
	}
	b.Service = nil
}

// hold makes a snapshotter hold layers, and nothing else.
func (b *book) hold(l ...Layer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held = Held{Layers: l}
}

// layer asks for the i-th layer of an image.
func (b *book) layer(im *imagestest.Image, i int) (Layer, func(), error) {
	return b.Layer(b.Context(), wanted(im), im.Manifest.Layers[i].Digest, im.DiffIDs[i])
}

// take asks for all layers of an image, one after the other, and holds them.
func (b *book) take(im *imagestest.Image) (all []Layer) {
	b.Helper()
	for i := range im.Manifest.Layers {
		l, release, err := b.layer(im, i)
		if err != nil {
			b.Fatalf("layer %d: %v", i, err)
		}
		defer release()
		all = append(all, l)
	}
	b.hold(all...)
	return all
}

// A fakeMounter remembers what it was asked to mount.
type fakeMounter struct {
	mu sync.Mutex
	at map[string]string // ID → file
}

func (m *fakeMounter) MountImage(_ context.Context, id, file string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, err := os.Stat(file); err != nil {
		return "", err
	}
	m.at[id] = file
	return "/mounted/" + id, nil
}

func (m *fakeMounter) MountMapped(ctx context.Context, id, file string, shift mounts.IDMap) (string, error) {
	dir, err := m.MountImage(ctx, id, file)
	return fmt.Sprint(dir, shift), err
}

func (m *fakeMounter) UnmountImage(_ context.Context, id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.at, id)
	return nil
}

func (m *fakeMounter) mounted() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.at)
}

// fsNotExist is what is not there.
var fsNotExist = fs.ErrNotExist

type event = control.Event

// tick is for loops that wait for what nobody tells.
func (b *book) tick() <-chan time.Time { return time.After(time.Millisecond) }

// done waits until all that is coming in has come.
func (b *book) done() {
	b.Service.arrivals.mu.Lock()
	var all []*arrival
	for _, a := range b.Service.arrivals.on {
		all = append(all, a)
	}
	b.Service.arrivals.mu.Unlock()
	for _, a := range all {
		<-a.done
	}
}

// callers is how many wait for layers.
func (b *book) callers() (n int) {
	b.arrivals.mu.Lock()
	defer b.arrivals.mu.Unlock()
	for _, a := range b.arrivals.on {
		n += a.waiting
	}
	return n
}

func (b *book) pinned(key string) bool {
	all := map[string]bool{}
	b.pins.all(all)
	return all[key]
}

// ls lists a directory of the root.
func (b *book) ls(name string) (names []string) {
	list, err := os.ReadDir(filepath.Join(b.root, name))
	if err != nil {
		b.Error(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// wanted is an image as containerd names it.
func wanted(im *imagestest.Image) Wanted { return Wanted{im.Ref, im.Desc.Digest} }

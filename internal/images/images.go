// Package images is the worker's book of images: it brings them in, keeps what
// is known of them in the database, makes their metadata images, says how to
// mount them, and lets go of what nothing needs.
//
// An image is known when every layer has an index on disk. A lazily readable
// layer gets its index from its table of contents, and its bytes come later,
// through package fetch; any other layer is unpacked into the store in one pass.
// The metadata image (a *tree*) is made from the indexes, so it can be made again.
//
// Invariants: a row of the database names only files that exist; what cannot be
// fetched again piecewise is marked durable after a barrier of the store, and
// rows without the mark are dropped after an unclean boot. Nothing here needs
// the network to start.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/registry"
	"github.com/snapfs/snapfs/layers/soci"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// A Mounter mounts metadata images. It is the supervisor: this process must
// not touch mounts that it serves.
type Mounter interface {
	// MountImage mounts the EROFS image file at RUN/images/id, once.
	MountImage(ctx context.Context, id, file string) (dir string, err error)
	// MountMapped is MountImage with owners shifted by m, at another place.
	MountMapped(ctx context.Context, id, file string, m mounts.IDMap) (dir string, err error)
	// UnmountImage undoes MountImage, and MountMapped for all maps; it is nil if
	// nothing is mounted there.
	UnmountImage(ctx context.Context, id string) error
}

// Options of a Service. All but Held, Asked, Complete, Events and Log are needed.
type Options struct {
	Root, Run string
	Registry  *registry.Registry
	Store     *objects.Store
	Fetcher   *fetch.Fetcher
	Files     *soci.Files // in front of Fetcher
	Mounter   Mounter
	// Users says which manifests are in use and by whom, so that they are not
	// removed: manifest digest → names of running or stopped containers.
	Users func() map[digest.Digest][]User
	// Held says what snapshotters keep from being collected; nil: there are none.
	// It waits until they are there to ask. It is called while things are removed,
	// when Layer and Mount wait: a lock that it takes must not be held around them.
	Held func(ctx context.Context) (Held, error)
	// Asked hears when an image begins to come in because a snapshotter has asked
	// for ref, and of its progress, and how it went; nil: nobody listens.
	Asked func(ref string) (progress func(control.Progress), done func(*Known, error))
	// Directories shows images as ordinary directories, once they are local as a
	// whole, instead of by Mounter: for a kernel that cannot mount metadata images.
	// Snapshotters get none of ours.
	Directories bool
	// Complete fetches the rest of an image in the background once it was asked for.
	Complete bool
	Indexes  Indexes
	Events   *events.Log  // nil: nobody is told
	Log      *slog.Logger // nil: discard
}

// A User is a container that an image may not be taken from.
type User struct {
	Name    string
	Running bool
}

// A Service is the book of images of one daemon. It is safe for concurrent use.
type Service struct {
	Options
	base context.Context // lifetime of work that outlives its first caller
	end  context.CancelFunc
	db   *db

	pulls      flights[*manifestRow]
	ingests    flights[*layerRow]
	trees      flights[*treeRow]
	completing flights[struct{}]
	surveyed   survey
	booting    booting
	starts     starts
	localParts locals
	arrivals   arrivals
	refused    refusals
	following  following
	used       used
	pace       pace
	collecting atomic.Bool // a collection is about to begin
	sparing    atomic.Bool // one is due because another had to spare something
	background sync.WaitGroup
	booted     bool                // the machine, since the book was open last
	worked     atomic.Bool         // something was pulled or built since memory was given back
	ztocs      *semaphore.Weighted // bytes of them in memory
	unpacking  chan struct{}       // has room for as many layers as are unpacked at once

	// live is held for writing while unneeded things are removed, and for reading
	// while something is made that they may not lack. Nobody waits for the
	// network with it: what a pull needs is pinned.
	live     sync.RWMutex
	sweeping sync.Mutex // is held before live, while a collection goes on; it reads and removes many files
	pins     pins
	uses     uses

	configs configs

	mu   sync.Mutex
	open map[string]*held // lazily readable layers, by key
}

// Open opens the book. It contacts nothing. Close ends it.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, dir := range []string{"layers", "images", "profiles"} {
		if err := os.MkdirAll(filepath.Join(o.Root, dir), 0o700); err != nil {
			return nil, err
		}
	}
	d, err := openDB(filepath.Join(o.Root, "snapfs.db"))
	if err != nil {
		return nil, err
	}
	cutOff, err := tidy(o.Root)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	s := &Service{Options: o, db: d, pace: usualPace, open: map[string]*held{}, unpacking: make(chan struct{}, tarindex.Parallel), ztocs: semaphore.NewWeighted(maxZTOCs)}
	s.base, s.end = context.WithCancel(ctx)
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	s.background.Go(s.barriers)
	if s.booted && !s.Directories { // of another kernel; nothing of them is mounted
		s.background.Go(func() {
			if err := os.RemoveAll(s.directoryPath("")); err != nil {
				s.Log.Error("release images as directories", "err", err)
			}
		})
	}
	if cutOff {
		s.background.Go(func() {
			keepAliased := func() error { return nil } // which containers there are is not known yet
			if err := s.collect(s.base, keepAliased); err != nil && s.base.Err() == nil {
				s.Log.Error("release what a pull that was cut off has left", "err", err)
			}
		})
	}
	return s, nil
}

// Close waits for what is under way, after telling it to end, and marks the
// state clean if all of it is durable.
func (s *Service) Close() error {
	s.end()
	s.background.Wait()
	err := s.barrier(context.Background())
	if err == nil {
		err = s.db.Update(func(tx *bolt.Tx) error {
			return put(tx, "meta", "boot", bootRow{ID: bootID(), Clean: true})
		})
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, h := range s.open {
		err = errors.Join(err, s.remove(key, h))
	}
	return errors.Join(err, s.db.Close())
}

// recover drops what an unclean boot may have torn and opens the rest.
func (s *Service) recover() error {
	boot := bootID()
	lazy := map[string]*layerRow{}
	err := s.db.Update(func(tx *bolt.Tx) error {
		var was bootRow
		if err := get(tx, "meta", "boot", &was); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.booted = was.ID != boot
		if was.ID != boot && !was.Clean && was.ID != "" {
			if err := s.dropUndurable(tx); err != nil {
				return err
			}
		}
		if err := put(tx, "meta", "boot", bootRow{ID: boot}); err != nil {
			return err
		}
		return each(tx, "layers", func(key string, l *layerRow) error {
			if l.lazy() {
				lazy[key] = l
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if err := s.dropDeadMounts(); err != nil {
		return err
	}
	for key, l := range lazy { // one bad layer must not keep the others from being served
		if err := s.serve(key, l, nil); err != nil {
			s.Log.Warn("layer cannot be served", "layer", l.Desc.Digest, "err", err)
			s.forgetLayer(key)
		}
	}
	return nil
}

func (s *Service) dropUndurable(tx *bolt.Tx) error {
	var layerKeys, treeIDs []string
	partly := map[string]*layerRow{}
	if err := each(tx, "layers", func(key string, l *layerRow) error {
		switch {
		case l.Durable:
		case !l.lazy():
			layerKeys = append(layerKeys, key)
		case l.Complete: // what was lost comes back when it is read
			l.Complete = false
			partly[key] = l
		}
		return nil
	}); err != nil {
		return err
	}
	for key, l := range partly {
		if err := put(tx, "layers", key, l); err != nil {
			return err
		}
	}
	if err := each(tx, "trees", func(id string, t *treeRow) error {
		if !t.Durable {
			treeIDs = append(treeIDs, id)
		}
		return nil
	}); err != nil {
		return err
	}
	for _, key := range layerKeys {
		s.Log.Warn("layer dropped: the machine went down before it was safely on disk", "layer", key)
		os.Remove(s.indexPath(key))
		if err := del(tx, "layers", key); err != nil {
			return err
		}
	}
	for _, id := range treeIDs {
		os.Remove(s.treePath(id, false))
		os.Remove(s.treePath(id, true))
		if err := del(tx, "trees", id); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) forgetLayer(key string) {
	if err := s.db.Update(func(tx *bolt.Tx) error { return del(tx, "layers", key) }); err != nil {
		s.Log.Error("database", "err", err)
	}
}

// bootID names this boot of the machine.
func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// layerKey names the index of a layer. An unpacked layer is proven, so its
// digest is enough; a table of contents is believed only together with the
// annotations that vouch for it, since another manifest may name the same blob
// and another table.
func layerKey(desc ocispec.Descriptor) string {
	if lazy.Format(desc) == lazy.Tar {
		return desc.Digest.Encoded()
	}
	a, err := json.Marshal(desc.Annotations) // keys come sorted
	if err != nil {
		panic(err) // a map of strings has a JSON form
	}
	sum := sha256.Sum256(a)
	return desc.Digest.Encoded() + "-" + hex.EncodeToString(sum[:16])
}

// publishedKey names what a published index says of a layer.
func publishedKey(desc ocispec.Descriptor, root layers.Sum) string {
	return desc.Digest.Encoded() + "-" + root.Digest().Encoded()[:32]
}

// tarFormat is what users see of a layer without a table of contents of its own.
func tarFormat(c layers.Compression) string {
	switch c {
	case layers.Gzip:
		return lazy.Tar + "+gzip"
	case layers.Zstd:
		return lazy.Tar + "+zstd"
	}
	return lazy.Tar
}

// layerPath is one of the files of a layer.
func (s *Service) layerPath(key, suffix string) string {
	return filepath.Join(s.Root, "layers", key+suffix)
}

func (s *Service) indexPath(key string) string { return s.layerPath(key, ".idx") }

func (s *Service) mapPath(key string) string { return s.layerPath(key, ".map") }

// sealedSuffix ends the name of a tree's metadata image that has small files in it.
const sealedSuffix = "-sealed"

// treeName is a tree's name as a mount and, with .erofs, as a file.
func treeName(id string, sealed bool) string {
	if sealed {
		return id + sealedSuffix
	}
	return id
}

func (s *Service) treePath(id string, sealed bool) string {
	return filepath.Join(s.Root, "images", treeName(id, sealed)+".erofs")
}

// barrierEvery is how much work a power cut may cost.
const barrierEvery = 5 * time.Second

func (s *Service) barriers() {
	t := time.NewTicker(barrierEvery)
	defer t.Stop()
	for {
		select {
		case <-s.base.Done():
			return
		case <-t.C:
			if s.worked.Swap(false) { // a pull's garbage is most of a resting worker's memory
				s.Files.Trim()
				debug.FreeOSMemory()
			}
			if err := s.barrier(s.base); err != nil && s.base.Err() == nil {
				s.Log.Error("barrier", "err", err)
			}
		}
	}
}

// barrier makes what was recorded before it durable.
func (s *Service) barrier(ctx context.Context) error {
	var layerKeys, treeIDs []string
	if err := s.db.View(func(tx *bolt.Tx) error {
		if err := each(tx, "layers", func(key string, l *layerRow) error {
			if !l.Durable {
				layerKeys = append(layerKeys, key)
			}
			return nil
		}); err != nil {
			return err
		}
		return each(tx, "trees", func(id string, t *treeRow) error {
			if !t.Durable {
				treeIDs = append(treeIDs, id)
			}
			return nil
		})
	}); err != nil {
		return err
	}
	if err := s.Store.Barrier(ctx); err != nil {
		return err
	}
	if len(layerKeys)+len(treeIDs) == 0 {
		return nil
	}
	return s.db.Update(func(tx *bolt.Tx) error {
		for _, key := range layerKeys {
			if err := change(tx, "layers", key, func(l *layerRow) { l.Durable = true }); err != nil {
				return err
			}
		}
		for _, id := range treeIDs {
			if err := change(tx, "trees", id, func(t *treeRow) { t.Durable = true }); err != nil {
				return err
			}
		}
		return nil
	})
}

// change alters a row that may have been removed meanwhile.
func change[T any](tx *bolt.Tx, bucket, key string, f func(*T)) error {
	row := new(T)
	switch err := get(tx, bucket, key, row); {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	f(row)
	return put(tx, bucket, key, row)
}

// ErrInUse says that something still needs an image.
var ErrInUse = errors.New("image is in use")

// notFound says which reference is not known. It is fs.ErrNotExist, whose words say nothing more.
func notFound(ref string) error { return noImage(ref) }

type noImage string

func (ref noImage) Error() string { return "no such image: " + string(ref) }

func (noImage) Is(target error) bool { return target == fs.ErrNotExist }

// event tells that something has happened to an image; pairs are as in events.Attrs.
func (s *Service) event(action, ref string, pairs ...any) {
	s.Events.Emit(control.Event{Type: events.Image, Action: action, ID: familiar(ref), Attributes: events.Attrs(pairs...)})
}

// short is the usual abbreviation of a digest.
func short(d digest.Digest) string { return d.Encoded()[:12] }

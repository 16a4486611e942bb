package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// A Mapper shows directories with shifted owners. The supervisor is one.
type Mapper interface {
	// MapDir mounts dir, with all below it and read-only, where its owners are
	// shifted by m, once, and says where. An empty list of m shifts nothing.
	MapDir(ctx context.Context, dir string, m IDMap) (mapped string, err error)
	// KeepMapped ends all mounts that MapDir made of dir but those for maps. Who
	// has an overlay above one keeps it.
	KeepMapped(ctx context.Context, dir string, maps []IDMap) error
}

// Options of a Snapshotter. Root and Run are needed.
type Options struct {
	Root string // absolute: the database and the directories of snapshots. Nobody else's
	// Run is absolute, and nobody else's: it holds short names of long paths. The
	// shorter it is the more directories fit above an image: 127 if it is as long
	// as /run/snapfs/l/default.
	Run    string
	Layers Layers // the book of images; nil: every layer is left to containerd
	Mapper Mapper // nil: user namespaces work on images that the book holds whole, and else are refused
	// Held, if it is not nil, is told of each layer that was asked for and has
	// become, or was, a committed snapshot that is held, with the blob that it is, in
	// the context of the call: package entries makes it exist in the call's
	// namespace. It must not block.
	Held func(ctx context.Context, blob digest.Digest)
	Log  *slog.Logger // nil: discard
}

// Stats counts what a Snapshotter did.
type Stats struct {
	Prepared, Viewed, Committed, Removed atomic.Int64 // snapshots
	Held                                 atomic.Int64 // layers that were not unpacked: the book of images holds them
	Left                                 atomic.Int64 // layers that were left to containerd
	Unstaged                             atomic.Int64 // layers that containerd unpacked although they were there: before 2.4, with rebase
	Reaped                               atomic.Int64 // directories of removed snapshots
	Remade                               atomic.Int64 // empty directories made again, after a power cut had taken them
}

// A Snapshotter is containerd's snapshots.Snapshotter over overlayfs. Layers
// that the book of images holds have no directory: they are shown by it.
type Snapshotter struct {
	Stats Stats

	root, dirs, links string
	layers            Layers
	mapper            Mapper
	held              func(context.Context, digest.Digest)
	log               *slog.Logger
	store             *store
	index             index
	umask             os.FileMode
	// mapping is held for reading while a mount with shifted owners is made for a
	// snapshot that the index or the database tells of already, and for writing
	// while those are ended that nobody tells of.
	mapping  sync.RWMutex
	unstaged atomic.Int64 // when containerd last unpacked what was staged, Unix time

	base    context.Context // until Close
	stop    context.CancelFunc
	wg      sync.WaitGroup
	reaper  reaper
	closing sync.Once
	closed  error
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// New opens the snapshots below o.Root and puts right what a crash left. It
// needs no network. One that cannot be read is an ErrTorn.
func New(o Options) (_ *Snapshotter, err error) {
	for _, dir := range []string{o.Root, o.Run} {
		// They are written into options of mounts.
		if !filepath.IsAbs(dir) || strings.ContainsAny(dir, `:,\`) {
			return nil, fmt.Errorf("snapshots at %q: the path must be absolute and without ':', ',' and '\\': %w", dir, errdefs.ErrInvalidArgument)
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Snapshotter{
		root: filepath.Clean(o.Root), dirs: filepath.Join(o.Root, "snapshots"),
		links:  filepath.Clean(o.Run),
		layers: o.Layers, mapper: o.Mapper, held: o.Held, log: o.Log, umask: umask(),
	}
	for _, dir := range []string{s.root, s.dirs, s.links} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if ok, err := fs.SupportsDType(s.root); err != nil {
		return nil, err
	} else if !ok {
		return nil, fmt.Errorf("%s: its file system does not say the types of files in directories (xfs: ftype=0), and overlayfs needs that: %w", s.root, errdefs.ErrFailedPrecondition)
	}
	if err := s.noneWithout(filepath.Join(s.root, "metadata.db")); err != nil {
		return nil, err
	}
	if s.store, err = openStore(filepath.Join(s.root, "metadata.db")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.store.close())
		}
	}()
	s.index.init()
	s.reaper.init()
	if err := s.recover(); err != nil {
		return nil, err
	}
	s.base, s.stop = context.WithCancel(context.Background())
	s.wg.Go(s.reap)
	return s, nil
}

// Close waits for what is being done. The snapshots stay. Closing twice is no error.
func (s *Snapshotter) Close() error {
	s.closing.Do(func() {
		s.stop()
		s.wg.Wait()
		s.closed = s.store.close()
	})
	return s.closed
}

// upper is the directory of what a snapshot has and its parents have not; work is overlayfs's own.
func (s *Snapshotter) upper(id string) string { return filepath.Join(s.dirs, id, "fs") }
func (s *Snapshotter) work(id string) string  { return filepath.Join(s.dirs, id, "work") }

// full makes an error say that the disk is full, as containerd says it.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// stagedPatience is how long a containerd that has unpacked what was staged is
// not offered it again. It may have been replaced by one that knows better.
const stagedPatience = 10 * time.Minute

// knowsStaged says whether to stage a layer.
func (s *Snapshotter) knowsStaged() bool {
	last := s.unstaged.Load()
	return last == 0 || time.Since(time.Unix(last, 0)) > stagedPatience
}

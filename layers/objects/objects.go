// Package objects is the store of plain bytes, keyed by their content. An
// object is all bytes of one file; its key is their SHA-256. Images share
// objects, so one copy of a file is on disk and in the page cache.
//
// Below one directory:
//
//	objects/ab/cdef…   complete objects that are on disk, whatever happens
//	fresh/ab/cdef…     complete objects that a power cut may still damage
//	partial/…          sparse files with some of an object's chunks, and bitmaps of which
//	packs/…            files with many small objects each, and an index at their end
//	quarantine/…       what was in fresh/ when the machine went down, until it is verified
//	boot               in which boot the store was last open, and whether it was closed well
//	tmp/               where files without a name are made, and locks
//
// Objects get a name in fresh/ after all their bytes were verified, by a link
// from a file without a name, so nobody sees a part of one. Writing is not
// waited for. Every few seconds, a barrier ([Store.Barrier]) makes the kernel
// write everything (syncfs) and then moves what it covered from fresh/ to
// objects/: that name is the durable record. fresh/ is believed as long as the
// machine stays up, also when the process is killed. After an unclean boot it
// is put aside, and each object is verified before it comes back.
//
// Invariants: a name in objects/ or fresh/ always stands for exactly the bytes
// with that SHA-256, at least one of them. A bit in a partial object's bitmap
// is set after its bytes were verified and written.
//
// Several goroutines and processes may use one store at the same time.
package objects

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

// Errors of a store.
var (
	// ErrNotCached says that the store lacks the object, or the part of it that was asked for.
	ErrNotCached = fmt.Errorf("not in the store: %w", fs.ErrNotExist)
	// ErrEmpty refuses an object without bytes: an empty file needs none.
	ErrEmpty = fmt.Errorf("an object has at least one byte: %w", fs.ErrInvalid)
)

// Options of a store. The zero value works.
type Options struct {
	Log   *slog.Logger // nil discards
	Files int          // descriptors kept open for reading; 0 is 1024
	Boot  string       // the current boot; "" asks the kernel. For tests
}

// A Store keeps objects below one directory.
//
// Lock order: excl, held, then the locks of files and packs.
type Store struct {
	dir   string
	root  int // directory
	lock  int // tmp/lock: held while names are moved or removed
	users int // tmp/users: held shared while the store is open
	boot  string
	log   *slog.Logger

	excl    sync.Mutex
	dirty   atomic.Bool // something came into fresh/ or packs/ since the last barrier
	suspect atomic.Bool // a syncfs failed: what it covered may not be on disk

	held   holds
	files  *fileCache
	packs  packSet
	filter *filter

	aside   atomic.Bool // quarantine/ has something in it
	unclean bool
}

// Open returns the store in dir, which it creates if need be. If the machine
// went down while the store was in use, what was not yet on disk is put aside:
// [Store.Run] verifies it, and so does whoever asks for it first.
func Open(dir string, o Options) (s *Store, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Files == 0 {
		o.Files = 1024
	}
	if o.Boot == "" {
		if o.Boot, err = bootID(); err != nil {
			return nil, fmt.Errorf("open store %s: %w", dir, err)
		}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	s = &Store{filter: new(filter), dir: dir, root: -1, lock: -1, users: -1, boot: o.Boot, log: o.Log, files: newFileCache(o.Files)}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("open store %s: %w", dir, errors.Join(err, s.release()))
	}
	return s, nil
}

func (s *Store) open() (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	if s.root, err = unix.Open(s.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: s.dir, Err: err}
	}
	for _, d := range []string{"tmp", "objects", "partial", "packs", "quarantine"} {
		if err := s.mkdir(d); err != nil {
			return err
		}
	}
	if s.lock, err = openAt(s.root, "tmp/lock", unix.O_CREAT|unix.O_RDWR, 0o600); err != nil {
		return err
	}
	if s.users, err = openAt(s.root, "tmp/users", unix.O_CREAT|unix.O_RDWR, 0o600); err != nil {
		return err
	}
	return s.exclusive(func() error {
		if err := flock(s.users, unix.LOCK_SH); err != nil {
			return err
		}
		if err := s.sweepTemp(); err != nil {
			return err
		}
		return s.start()
	})
}

// start decides whether fresh objects are believed, and opens the store in this boot.
func (s *Store) start() error {
	rec, err := s.readRecord()
	if err != nil {
		return err
	}
	if !trusted(rec, s.boot) {
		_, err := s.stat("fresh")
		s.unclean = err == nil // else it is new
		if err := s.putAside(); err != nil {
			return err
		}
	}
	for _, d := range []string{"objects", "fresh"} {
		if err := s.mkdir(d); err != nil {
			return err
		}
		for i := range 256 {
			if err := s.mkdir(fmt.Sprintf("%s/%02x", d, i)); err != nil {
				return err
			}
		}
	}
	if err := s.writeRecord(stateOpen); err != nil {
		return err
	}
	aside, err := s.list("quarantine")
	if err != nil {
		return err
	}
	s.aside.Store(len(aside) > 0)
	s.dirty.Store(true) // what an earlier process left in fresh/
	return s.loadPacks()
}

// sweepTemp removes what a dead process left in tmp/: a record's temporary file,
// which is written under the lock that is held, and what others keep there.
func (s *Store) sweepTemp() error {
	names, err := s.list("tmp")
	for _, name := range names {
		if name != "lock" && name != "users" {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, "tmp", name))) // it may be a directory
		}
	}
	return err
}

// Close makes everything durable and releases the store. If no other process
// uses it, the next Open believes what is there, also in another boot.
func (s *Store) Close() error {
	err := s.exclusive(func() error {
		if err := s.barrier(true); err != nil {
			return err
		}
		if s.suspect.Load() || s.aside.Load() || flock(s.users, unix.LOCK_EX|unix.LOCK_NB) != nil {
			return nil
		}
		return s.writeRecord(stateClean)
	})
	return errors.Join(err, s.release())
}

func (s *Store) release() (err error) {
	s.filter.close()
	s.files.close()
	s.packs.close()
	for _, fd := range []int{s.root, s.lock, s.users} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}

// DataDirs returns the directories that hold complete objects by [layers.Sum.Path],
// in the order in which overlayfs should look into them. An object moves from
// the second to the first, so a lookup between may miss it in both.
func (s *Store) DataDirs() []string {
	return []string{filepath.Join(s.dir, "objects"), filepath.Join(s.dir, "fresh")}
}

// Unclean says whether the machine went down while the store was in use, before this Open.
func (s *Store) Unclean() bool { return s.unclean }

// Has says whether the store has all bytes of an object.
func (s *Store) Has(sum layers.Sum) bool {
	_, ok := s.Size(sum)
	return ok
}

// Size returns the size of a complete object in bytes, and whether the store has it.
func (s *Store) Size(sum layers.Sum) (int64, bool) {
	if f := s.files.get(sum); f != nil {
		defer f.release()
		return f.size, true
	}
	if p, e, ok := s.packs.find(sum); ok {
		defer p.release()
		if p.believe(e) == nil {
			return e.size, true
		}
	}
	size, ok := s.fileSize(sum)
	if !ok && s.adopt(sum) {
		size, ok = s.fileSize(sum)
	}
	return size, ok
}

func (s *Store) fileSize(sum layers.Sum) (int64, bool) {
	for _, dir := range dataDirs {
		if st, err := s.stat(dir + sum.Path()); err == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return st.Size, true
		}
	}
	return 0, false
}

func (s *Store) hasFile(sum layers.Sum) bool {
	_, ok := s.fileSize(sum)
	return ok
}

// dataDirs hold complete objects. fresh/ comes first: names move from it to
// objects/, so a look in this order misses nothing.
var dataDirs = []string{"fresh/", "objects/"}

// Open returns a complete object for reading; it is ErrNotCached if there is
// none that is a file of its own. The caller closes it.
func (s *Store) Open(sum layers.Sum) (*os.File, error) {
	fd, err := s.openFile(sum)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), sum.Path()), nil
}

func (s *Store) openFile(sum layers.Sum) (int, error) {
	for _, dir := range dataDirs {
		fd, err := openAt(s.root, dir+sum.Path(), unix.O_RDONLY|unix.O_NOATIME, 0)
		if errors.Is(err, unix.EPERM) { // O_NOATIME is the owner's
			fd, err = openAt(s.root, dir+sum.Path(), unix.O_RDONLY, 0)
		}
		if !errors.Is(err, unix.ENOENT) {
			return fd, err
		}
	}
	if s.adopt(sum) {
		return s.openFile(sum)
	}
	return -1, fmt.Errorf("object %s: %w", sum, ErrNotCached)
}

// ReadAt reads from a complete object like [io.ReaderAt]. It is ErrNotCached if
// the store does not have all of it. It neither allocates nor hashes for an
// object that was read not long ago.
func (s *Store) ReadAt(sum layers.Sum, p []byte, off int64) (int, error) {
	if f := s.files.get(sum); f != nil {
		defer f.release()
		return pread(f.fd, p, off)
	}
	if pk, e, ok := s.packs.find(sum); ok {
		defer pk.release()
		if pk.believe(e) == nil {
			return pk.readAt(e, p, off)
		}
	}
	f, err := s.cacheFile(sum)
	if err != nil {
		return 0, err
	}
	defer f.release()
	return pread(f.fd, p, off)
}

func (s *Store) cacheFile(sum layers.Sum) (*file, error) {
	fd, err := s.openFile(sum)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, errors.Join(os.NewSyscallError("fstat", err), unix.Close(fd))
	}
	return s.files.add(sum, fd, st.Size), nil
}

// Put adds an object. It is a *layers.DigestError if data has another sum; any
// other error says that it could not be written. An object that is there is not written again.
func (s *Store) Put(sum layers.Sum, data []byte) error {
	if len(data) == 0 {
		return ErrEmpty
	}
	if got := layers.SumOf(data); got != sum {
		return &layers.DigestError{Want: sum.Digest(), Got: got.Digest(), From: "object"}
	}
	s.held.note(sum)
	if s.hasNow(sum) {
		return nil
	}
	if err := s.putFile(sum, data); err != nil {
		return fmt.Errorf("store object %s: %w", sum, err)
	}
	return nil
}

func (s *Store) putFile(sum layers.Sum, data []byte) (err error) {
	fd, err := s.tempFile()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	if err := pwrite(fd, data, 0); err != nil {
		return err
	}
	return s.publish(fd, sum)
}

// publish gives the nameless file fd, which holds exactly the bytes of sum, its name.
func (s *Store) publish(fd int, sum layers.Sum) error {
	s.filter.add(sum)
	err := s.link(fd, "fresh/"+sum.Path())
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err == nil {
		s.dirty.Store(true)
	}
	return err
}

// Run verifies what an unclean boot left in doubt and makes a barrier every few
// seconds while there is something new, until ctx ends. Errors go to the log.
func (s *Store) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		if err := s.Recover(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("verify the store after an unclean boot", "err", err)
		}
	})
	return s.barriers(ctx)
}

// ReadSmall returns a complete object of at most MaxPacked bytes, and is
// ErrNotCached for any other. It leaves no descriptor open: it is for going
// through many objects once.
func (s *Store) ReadSmall(sum layers.Sum) ([]byte, error) {
	if p, e, ok := s.packs.find(sum); ok {
		defer p.release()
		if p.believe(e) == nil {
			data := make([]byte, e.size)
			_, err := p.readAt(e, data, 0)
			return data, err
		}
	}
	fd, err := s.openFile(sum)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	if st.Size > MaxPacked {
		return nil, fmt.Errorf("object %s has %d bytes: %w", sum, st.Size, ErrNotCached)
	}
	data := make([]byte, st.Size)
	_, err = pread(fd, data, 0)
	return data, err
}

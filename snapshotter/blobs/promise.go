package blobs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A promise is a blob that is said to be here, and where it can be had.
type promise struct {
	Desc    ocispec.Descriptor
	Sources []string // references of images
	Made    time.Time
}

// promises are on disk, and all in memory: a few hundred bytes each, of blobs
// that containerd has an entry for or is about to.
type promises struct {
	dir string
	mu  sync.Mutex // also held while a file is written or removed
	m   map[digest.Digest]*promise
}

// openPromises reads what was promised. A file that a power cut has torn is
// dropped: the book usually knows its blob, too.
func openPromises(dir string, log *slog.Logger) (*promises, error) {
	ps := &promises{dir: dir, m: map[digest.Digest]*promise{}}
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(dir, f.Name())
		p, err := readPromise(path)
		if err != nil {
			log.Warn("promise of a blob dropped", "err", err)
			if err := os.RemoveAll(path); err != nil {
				return nil, err
			}
			continue
		}
		ps.m[p.Desc.Digest] = p
	}
	return ps, nil
}

func readPromise(path string) (*promise, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	p, err := parsePromise(raw)
	if err == nil && fileName(p.Desc.Digest) != filepath.Base(path) {
		err = fmt.Errorf("is of %s", p.Desc.Digest)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func parsePromise(raw []byte) (*promise, error) {
	p := new(promise)
	if err := json.Unmarshal(raw, p); err != nil {
		return nil, err
	}
	if err := p.Desc.Digest.Validate(); err != nil {
		return nil, err
	}
	if p.Desc.Size < 0 || len(p.Sources) == 0 {
		return nil, errors.New("no size or no source")
	}
	return p, nil
}

// get returns the promise of a blob, nil if there is none.
func (ps *promises) get(d digest.Digest) *promise {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.m[d]
}

// all returns the promises in the order of their digests.
func (ps *promises) all() []*promise {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return slices.SortedFunc(maps.Values(ps.m), func(a, b *promise) int {
		return strings.Compare(string(a.Desc.Digest), string(b.Desc.Digest))
	})
}

// add writes a promise down, if that was not done already.
func (ps *promises) add(desc ocispec.Descriptor, sources []string) (_ *promise, added bool, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if p := ps.m[desc.Digest]; p != nil {
		return p, false, nil
	}
	p := &promise{
		Desc:    ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size},
		Sources: sources, Made: time.Now().UTC(),
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, false, err
	}
	if _, err := parsePromise(raw); err != nil { // what could not be read back is not promised
		return nil, false, fmt.Errorf("promise %s: %w", desc.Digest, err)
	}
	// Without a sync: containerd holds its database's lock meanwhile, and what a
	// power cut takes the book yet knows, as long as a snapshot needs it.
	if err := writeFile(filepath.Join(ps.dir, fileName(desc.Digest)), raw, false); err != nil {
		return nil, false, err
	}
	ps.m[desc.Digest] = p
	return p, true, nil
}

// remove withdraws a promise. It is nil if there was none.
func (ps *promises) remove(d digest.Digest) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.m[d] == nil {
		return nil
	}
	if err := os.Remove(filepath.Join(ps.dir, fileName(d))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(ps.m, d)
	return nil
}

// fileName is what a valid digest's file is called.
func fileName(d digest.Digest) string { return d.Algorithm().String() + "-" + d.Encoded() }

// tmpPrefix begins names of files that are being written. No digest begins so.
const tmpPrefix = ".tmp-"

// writeFile makes or replaces a file, whole or not at all, and if durable so
// that a power cut does not undo it.
func writeFile(path string, data []byte, durable bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix+"*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil || !durable {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // it is there, if not for certain after a power cut
	}
	return errors.Join(dir.Sync(), dir.Close())
}

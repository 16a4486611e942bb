package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path"
	"strconv"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layoutSink writes into an OCI layout. Blobs appear by rename, whole and
// durable; then index.json is replaced, also by rename, under a lock on the directory.
type layoutSink struct {
	ref  Ref
	root *os.Root
	mu   sync.Mutex
	dirs map[string]bool // made, and in need of an fsync
}

var _ sink = (*layoutSink)(nil)

// openLayout opens a layout to write to, or makes one of an empty or missing directory.
func openLayout(ref Ref) (*layoutSink, error) {
	if err := os.MkdirAll(ref.Path, 0o755); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(ref.Path)
	if err != nil {
		return nil, err
	}
	s := &layoutSink{ref: ref, root: root, dirs: make(map[string]bool)}
	if err := s.init(); err != nil {
		return nil, errors.Join(err, root.Close())
	}
	return s, nil
}

func (s *layoutSink) init() error {
	_, err := s.root.Stat(ocispec.ImageLayoutFile)
	if err == nil {
		return nil
	}
	if !notExist(err) {
		return err
	}
	d, err := s.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	if names, err := d.Readdirnames(1); err != io.EOF {
		return errors.Join(err, fmt.Errorf("%w: %s is neither empty nor an OCI layout: it has %v", ErrBadRef, s.ref.Path, names))
	}
	return s.write(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
}

// create writes a new file and gives it its name when it is on disk.
func (s *layoutSink) create(name string, fill func(io.Writer) error) (err error) {
	dir := path.Dir(name)
	if err := s.root.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	tmp := path.Join(dir, ".tmp-"+strconv.FormatUint(rand.Uint64(), 36))
	f, err := s.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.root.Remove(tmp))
		}
	}()
	if err := errors.Join(fill(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	s.mu.Lock()
	s.dirs[dir] = true
	s.mu.Unlock()
	return s.root.Rename(tmp, name)
}

func (s *layoutSink) write(name string, data []byte) error {
	return s.create(name, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// sync makes the names of new files durable.
func (s *layoutSink) sync() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for dir := range s.dirs {
		for at := dir; ; at = path.Dir(at) {
			d, err := s.root.Open(at)
			if err != nil {
				return err
			}
			if err := errors.Join(d.Sync(), d.Close()); err != nil {
				return err
			}
			if at == "." {
				break
			}
		}
	}
	clear(s.dirs)
	return nil
}

// has reports whether a blob is there and sound: a layout comes from anywhere.
func (s *layoutSink) has(ctx context.Context, desc ocispec.Descriptor) bool {
	f, err := s.root.Open(blobPath(desc.Digest))
	if err != nil {
		return false
	}
	rc := Verify(f, desc)
	defer rc.Close()
	_, err = io.Copy(io.Discard, &ctxReader{ctx, rc})
	return err == nil
}

func (s *layoutSink) blob(ctx context.Context, b SourceBlob, sent func(int64)) (string, error) {
	if s.has(ctx, b.Desc) {
		return "exists", nil
	}
	return "pushed", s.create(blobPath(b.Desc.Digest), func(w io.Writer) error {
		rc, err := b.open(ctx, sent)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, &ctxReader{ctx, rc})
		return errors.Join(err, rc.Close())
	})
}

func (s *layoutSink) document(_ context.Context, d Document, root bool) error {
	if err := s.write(blobPath(d.Desc.Digest), d.Raw); err != nil {
		return err
	}
	if err := s.sync(); err != nil || !root {
		return err
	}
	return s.name(d.Desc)
}

// name makes index.json name desc by the reference's tag. Everything else in it stays.
func (s *layoutSink) name(desc ocispec.Descriptor) error {
	return s.change(func(raw []byte) ([]byte, error) { return nameIn(raw, desc, s.ref.Tag, nil) })
}

// nameIn is index.json raw (nil: none yet) with the further entry desc called
// tag, in place of what had that name, and without what is gone.
func nameIn(raw []byte, desc ocispec.Descriptor, tag string, gone map[digest.Digest]bool) ([]byte, error) {
	if raw != nil {
		if _, err := parseLayoutIndex(raw); err != nil {
			return nil, err
		}
	}
	if tag != "" {
		a := map[string]string{ocispec.AnnotationRefName: tag}
		for k, v := range desc.Annotations {
			if k != ocispec.AnnotationRefName && k != containerdName {
				a[k] = v
			}
		}
		desc.Annotations = a
	}
	return editIndex(raw, func(list []ocispec.Descriptor) ([]bool, *ocispec.Descriptor) {
		keep := make([]bool, len(list))
		for i, d := range list {
			keep[i] = !gone[d.Digest] && (d.Annotations[ocispec.AnnotationRefName] != tag || tag == "" && d.Digest != desc.Digest)
		}
		return keep, &desc
	})
}

func (s *layoutSink) close() error { return s.root.Close() }

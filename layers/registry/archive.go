package registry

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

const (
	maxMembers = 1 << 17 // of an archive
	maxLinks   = 8       // symlinks from one member to the next
)

// An archive is a tar file of which the members' places are known. It is shared
// by all that read from it, and read again when the file at its path is another.
type archive struct {
	path string
	id   fileID
	done chan struct{} // closed when the fields below are set

	f       *os.File
	members map[string]span
	err     error
	layers  sync.Map // of a docker-archive: member name → layerInfo, as they are learnt

	mu   sync.Mutex
	refs int // Invariant: f is open while refs > 0
}

// fileID tells whether a path still names the same bytes.
type fileID struct {
	dev, ino   uint64
	size       int64
	sec, nsec  int64
	csec, cnns int64
}

// A span is where a member's bytes are. link is the name of the member it
// stands for instead.
type span struct {
	off, size int64
	link      string
	sparse    bool
}

// archive returns the archive at path, indexed; the caller must release it.
// Indexing is shared and outlives its first caller.
func (r *Registry) archive(ctx context.Context, name string) (*archive, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: notFound(err)}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s: %w: not a regular file", name, ErrBadManifest)
	}
	id := fileID{st.Dev, st.Ino, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec}
	r.mu.Lock()
	a := r.archives[name]
	if a != nil && a.id != id {
		a.release()
		a = nil
	}
	if a == nil {
		a = &archive{path: name, id: id, done: make(chan struct{}), refs: 2} // the map's, and the loader's
		r.archives[name] = a
		r.wg.Go(func() { a.load(r) })
	}
	a.hold()
	r.mu.Unlock()
	select {
	case <-a.done:
	case <-ctx.Done():
		a.release()
		return nil, context.Cause(ctx)
	}
	if a.err != nil {
		r.forget(a)
		a.release()
		return nil, fmt.Errorf("%s: %w", name, a.err)
	}
	return a, nil
}

// forget makes the next caller try again.
func (r *Registry) forget(a *archive) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.archives[a.path] == a {
		delete(r.archives, a.path)
		a.release()
	}
}

func (a *archive) hold() {
	a.mu.Lock()
	a.refs++
	a.mu.Unlock()
}

func (a *archive) release() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.refs--; a.refs == 0 && a.f != nil {
		a.f.Close() // it was only read
	}
}

func (a *archive) load(r *Registry) {
	defer a.release()
	defer close(a.done)
	f, err := os.OpenFile(a.path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		a.err = err
		return
	}
	if f, err = r.spool(f); err == nil {
		a.members, err = indexTar(f)
	}
	if err != nil && f != nil {
		err = errors.Join(err, f.Close())
		f = nil
	}
	a.f, a.err = f, err
}

// spool returns f, or a nameless file with its plain bytes if it is compressed.
func (r *Registry) spool(f *os.File) (_ *os.File, err error) {
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && err != io.EOF {
		return f, err
	}
	plain, err := decompressor(magic[:], f)
	if plain == nil || err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, plain.Close(), f.Close()) }()
	tmp, err := os.CreateTemp(r.opt.SpoolDir, "snapfs-archive-")
	if err != nil {
		return nil, err
	}
	if err := os.Remove(tmp.Name()); err != nil {
		return nil, errors.Join(err, tmp.Close())
	}
	n, err := io.Copy(tmp, &ctxReader{r.base, io.LimitReader(plain, r.opt.MaxSpool+1)})
	if err == nil && n > r.opt.MaxSpool {
		err = fmt.Errorf("%w: more than %d bytes: %w", ErrBadManifest, r.opt.MaxSpool, layers.ErrTooLarge)
	} else if err != nil {
		err = fmt.Errorf("decompress: %w", err)
	}
	if err != nil {
		return nil, errors.Join(err, tmp.Close())
	}
	return tmp, nil
}

// decompressor returns a reader of r's plain bytes, or nil if magic, its first
// bytes, is of no compression we know.
func decompressor(magic []byte, r io.Reader) (io.ReadCloser, error) {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case bytes.HasPrefix(magic, []byte("BZh")), bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X'}):
		return nil, fmt.Errorf("%w: compressed with bzip2 or xz: decompress it first", ErrUnsupported)
	}
	return nil, nil
}

type ctxReader struct {
	ctx context.Context // the life of the copy
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// indexTar notes where each member's bytes are. Of members of one name the last
// counts, as when a tar is unpacked.
func indexTar(f io.ReadSeeker) (map[string]span, error) {
	members := make(map[string]span)
	names := 0
	size, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, err
	}
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return members, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: archive: %w", ErrBadManifest, err)
		}
		names += len(h.Name) + len(h.Linkname)
		if len(members) >= maxMembers || names > layers.MaxTOC {
			return nil, fmt.Errorf("%w: archive of more than %d members: %w", ErrBadManifest, maxMembers, layers.ErrTooLarge)
		}
		off, err := f.Seek(0, io.SeekCurrent) // archive/tar reads headers block by block and no further
		if err != nil {
			return nil, err
		}
		s := span{off: off, size: h.Size}
		switch h.Typeflag {
		case tar.TypeReg:
			s.sparse = isSparse(h)
		case tar.TypeGNUSparse:
			s.sparse = true
		case tar.TypeSymlink:
			s = span{link: memberName(path.Join(path.Dir(h.Name), h.Linkname))}
		case tar.TypeLink:
			s = span{link: memberName(h.Linkname)}
		default:
			continue
		}
		if s.link == "" && !s.sparse && s.size > size-off {
			return nil, fmt.Errorf("%w: archive ends in %s", ErrBadManifest, clip(h.Name))
		}
		members[memberName(h.Name)] = s
	}
}

// isSparse tells the sparse files of PAX, whose stored bytes are not their bytes.
func isSparse(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

// memberName is a name below the archive's root, whatever it looks like.
func memberName(s string) string { return path.Clean("/" + s)[1:] }

// member finds the bytes of a member, through symlinks inside of the archive.
func (a *archive) member(name string) (span, error) {
	at := memberName(name)
	for range maxLinks {
		s, ok := a.members[at]
		switch {
		case !ok:
			return s, fmt.Errorf("%w: no member %s", ErrNotFound, clip(name))
		case s.sparse:
			return s, fmt.Errorf("%w: member %s is a sparse file", ErrUnsupported, clip(name))
		case s.link == "":
			return s, nil
		}
		at = s.link
	}
	return span{}, fmt.Errorf("%w: member %s is a symlink loop", ErrBadManifest, clip(name))
}

// archiveFiles are the members of an archive.
type archiveFiles struct {
	reg  *Registry
	path string
}

type archiveFile struct {
	*io.SectionReader
	a *archive
}

func (f archiveFile) Close() error {
	f.a.release()
	return nil
}

func (s archiveFiles) open(ctx context.Context, name string) (file, error) {
	a, err := s.reg.archive(ctx, s.path)
	if err != nil {
		return nil, err
	}
	m, err := a.member(name)
	if err != nil {
		a.release()
		return nil, fmt.Errorf("%s: %w", s.path, err)
	}
	return archiveFile{io.NewSectionReader(a.f, m.off, m.size), a}, nil
}

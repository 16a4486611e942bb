package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
)

// files are the members of a layout: a directory, or the tar of one.
type files interface {
	// open returns a regular file; its path is slash-separated and clean.
	open(ctx context.Context, name string) (file, error)
}

// A file is one opened member.
type file interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// dirFiles are the files below a directory.
type dirFiles string

type dirFile struct {
	*os.File
	size int64
}

func (f dirFile) Size() int64 { return f.size }

// open walks down with O_NOFOLLOW: a layout that came from elsewhere must not
// name files outside of it.
func (d dirFiles) open(_ context.Context, name string) (_ file, err error) {
	fd, err := unix.Open(string(d), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: string(d), Err: notFound(err)}
	}
	parts := strings.Split(name, "/")
	for i, part := range parts {
		flags := unix.O_PATH | unix.O_DIRECTORY
		if i == len(parts)-1 {
			flags = unix.O_RDONLY | unix.O_NONBLOCK // a FIFO must not block
		}
		next, err := unix.Openat(fd, part, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(fd)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(string(d), name), Err: notFound(err)}
		}
		fd = next
	}
	f := os.NewFile(uintptr(fd), filepath.Join(string(d), name))
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: %w: not a regular file", f.Name(), ErrBadManifest)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return dirFile{f, info.Size()}, nil
}

func notFound(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return ErrNotFound
	}
	return err
}

// readMember reads a whole small file.
func readMember(ctx context.Context, fs files, name string) ([]byte, error) {
	f, err := fs.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Size() > layers.MaxManifest {
		return nil, fmt.Errorf("%s: %w: %d bytes: %w", name, ErrBadManifest, f.Size(), layers.ErrTooLarge)
	}
	raw := make([]byte, f.Size())
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, f.Size()), raw); err != nil {
		return nil, fmt.Errorf("%s: %w", name, noEOF(err))
	}
	return raw, nil
}

// A fileBlob is a blob in a file, which is opened for each read: a Blob has no
// Close, and an open takes a few microseconds.
type fileBlob struct {
	desc ocispec.Descriptor
	open func(context.Context) (file, error)
}

var _ layers.Blob = (*fileBlob)(nil)

func (b *fileBlob) Size() int64 { return b.desc.Size }

// checked opens the file and compares its size.
func (b *fileBlob) checked(ctx context.Context) (file, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	f, err := b.open(ctx)
	if err != nil {
		return nil, fmt.Errorf("blob %s: %w", b.desc.Digest, err)
	}
	if f.Size() != b.desc.Size {
		err := &SizeError{From: "blob " + string(b.desc.Digest), Want: b.desc.Size, Got: f.Size()}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (b *fileBlob) ReadAt(ctx context.Context, p []byte, off int64) (int, error) {
	p, eof, err := clipRange(p, off, b.desc.Size)
	if err != nil || len(p) == 0 {
		return 0, err
	}
	f, err := b.checked(ctx)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return n, eof
	}
	return n, fmt.Errorf("blob %s: %w", b.desc.Digest, noEOF(err))
}

func (b *fileBlob) stream(ctx context.Context) (io.ReadCloser, error) {
	f, err := b.checked(ctx)
	if err != nil {
		return nil, err
	}
	return &fileStream{ctx: ctx, f: f, r: io.NewSectionReader(f, 0, b.desc.Size), left: b.desc.Size}, nil
}

// fileStream reads a file until its ctx ends.
type fileStream struct {
	ctx  context.Context // of the caller of Stream: the life of the stream
	f    file
	r    io.Reader
	left int64
}

func (s *fileStream) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := s.r.Read(p)
	s.left -= int64(n)
	if err == io.EOF && s.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

func (s *fileStream) Close() error { return s.f.Close() }

package convert

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/toc"
)

// maxFile bounds a file, because some bytes of tar can say that a sparse file is
// of any size, and its holes would be written as zeros.
const maxFile = 256 << 30

const (
	block       = 512 // of a tar
	xattrPrefix = "SCHILY.xattr."
)

// A source reads a tar and gives each member a header that every format and
// reader agrees about.
type source struct {
	tr      *tar.Reader
	alive   func() error // asked before each read of content
	seconds bool         // cut times to seconds, because the format's TOC would round them
	buf     bytes.Buffer
}

// A member of a layer: its header, also as the bytes of a tar, and its content.
type member struct {
	*tar.Header
	raw  []byte // valid until the next
	body io.Reader
}

// padding is what fills the last block of the content.
func (m member) padding() []byte { return make([]byte, -m.Size&(block-1)) }

func newSource(r io.Reader, alive func() error) *source {
	return &source{tr: tar.NewReader(r), alive: alive}
}

// Read reads the content of the current member.
func (s *source) Read(p []byte) (int, error) {
	if err := s.alive(); err != nil {
		return 0, err
	}
	return s.tr.Read(p)
}

// next returns the next member, io.EOF at the end.
func (s *source) next() (member, error) {
	for {
		h, err := s.tr.Next()
		if err == io.EOF {
			return member{}, err
		}
		if err != nil {
			return member{}, fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if s.seconds {
			h.ModTime = time.Unix(h.ModTime.Unix(), 0)
		}
		clean, err := normal(h)
		if err != nil {
			return member{}, err
		}
		if ofFormat(clean.Name) {
			continue
		}
		s.buf.Reset()
		if err := tar.NewWriter(&s.buf).WriteHeader(clean); err != nil {
			return member{}, fmt.Errorf("%w: %q: %w", layers.ErrBadLayer, h.Name, err)
		}
		return member{Header: clean, raw: s.buf.Bytes(), body: s}, nil
	}
}

// ofFormat says that a name is part of eStargz. A layer that was converted before
// has some; its TOC would describe another blob now.
func ofFormat(name string) bool {
	return name == "stargz.index.json" || name == ".prefetch.landmark" || name == ".no.prefetch.landmark"
}

// normal makes a header of what an image has. A sparse file becomes a plain one
// (archive/tar fills its holes); access and change times, which images do not
// have, and records of other programs are left out.
func normal(h *tar.Header) (*tar.Header, error) {
	name, err := toc.Clean(nil, []byte(h.Name))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
	}
	for _, id := range []int64{int64(h.Uid), int64(h.Gid), h.Devmajor, h.Devminor} {
		if id < 0 || id > math.MaxUint32 {
			return nil, fmt.Errorf("%w: %q: owner or device number %d", layers.ErrBadLayer, h.Name, id)
		}
	}
	n := &tar.Header{
		Typeflag: h.Typeflag, Name: string(name), Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid,
		Uname: h.Uname, Gname: h.Gname, ModTime: representable(h.ModTime), PAXRecords: map[string]string{},
	}
	if h.ModTime.Nanosecond() != 0 {
		n.Format = tar.FormatPAX // others round
	}
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, xattrPrefix) {
			n.PAXRecords[k] = v
			n.Format = tar.FormatPAX
		}
	}
	return n, kind(n, h)
}

// representable brings a time into the years that RFC 3339 can write.
func representable(t time.Time) time.Time {
	first, last := time.Unix(-62135596799, 0), time.Unix(253402300799, 0)
	switch {
	case t.Before(first):
		return first
	case t.After(last):
		return last
	}
	return t
}

// kind fills in what the type of a member needs.
func kind(n, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont:
		n.Typeflag, n.Size = tar.TypeReg, h.Size
		if h.Size > maxFile {
			return fmt.Errorf("%w: %q of %d bytes", layers.ErrTooLarge, h.Name, h.Size)
		}
	case tar.TypeDir:
		n.Name += "/" // "/" is the root
		if n.Name == "/" {
			n.Name = "./"
		}
	case tar.TypeSymlink:
		n.Linkname = h.Linkname
	case tar.TypeLink:
		link, err := toc.Clean(nil, []byte(h.Linkname))
		if err != nil {
			return fmt.Errorf("%w: %q: %w", layers.ErrBadLayer, h.Name, err)
		}
		n.Linkname = string(link)
	case tar.TypeChar, tar.TypeBlock:
		n.Devmajor, n.Devminor = h.Devmajor, h.Devminor
	case tar.TypeFifo:
	default:
		return fmt.Errorf("%w: %q: type %q", layers.ErrBadLayer, h.Name, h.Typeflag)
	}
	if n.Name == "" {
		return fmt.Errorf("%w: the root is not a directory", layers.ErrBadLayer)
	}
	return nil
}

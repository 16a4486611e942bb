package soci

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/snapfs/snapfs/layers"
)

// Stream reads the stored bytes of a layer from its first to its last: from its
// spans, and what no span has from the blob. It fails when ctx ends.
func (f *Files) Stream(ctx context.Context, key string, blob layers.Blob) (io.Reader, error) {
	l, err := f.layer(key)
	if err != nil {
		return nil, err
	}
	head := make([]byte, l.spans[0].from)
	if n, err := blob.ReadAt(ctx, head, 0); n < len(head) {
		return nil, fmt.Errorf("bytes before the first span: %w", err)
	}
	return &stream{ctx: ctx, f: f, l: l, p: head, pos: int64(len(head))}, nil
}

func (f *Files) layer(key string) (*served, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if l := f.layers[key]; l != nil {
		return l, nil
	}
	return nil, fmt.Errorf("soci layer %s: %w", key, fs.ErrNotExist)
}

type stream struct {
	ctx context.Context // of the caller of Stream, which is one call of Unpack
	f   *Files
	l   *served
	buf []byte
	p   []byte // not read yet
	pos int64  // in the blob, behind p
	i   int    // the next span
}

func (s *stream) Read(p []byte) (int, error) {
	for len(s.p) == 0 {
		if s.i == len(s.l.spans) {
			return 0, io.EOF
		}
		sp := &s.l.spans[s.i]
		n := int(sp.to - sp.from)
		s.buf = slices.Grow(s.buf[:0], n)[:n]
		if err := s.f.stored(s.ctx, sp, s.buf, 0); err != nil {
			return 0, fmt.Errorf("span %d: %w", s.i, err)
		}
		s.p = s.buf[s.pos-sp.from:]
		s.pos, s.i = sp.to, s.i+1
	}
	n := copy(p, s.p)
	s.p = s.p[n:]
	return n, nil
}

// ErrLied says that a ztoc does not tell what its layer holds: a span with the
// right digest does not decode, or Prove has found something else. It is never
// gone the next time.
var ErrLied = fmt.Errorf("its ztoc does not tell what the layer holds: %w", layers.ErrBadLayer)

// Prove compares what the ztoc of a layer says, which is index, and the bytes of
// every file as they are served, with what unpacking the layer has shown. The
// error wraps ErrLied if they differ, and says where first. It decodes the layer once.
func (f *Files) Prove(ctx context.Context, key string, index, real *layers.Index) error {
	if _, err := f.layer(key); err != nil {
		return err
	}
	if len(index.Entries) != len(real.Entries) {
		return fmt.Errorf("%w: it has %d entries, not %d", ErrLied, len(real.Entries), len(index.Entries))
	}
	buf := make([]byte, 256<<10)
	for i := range index.Entries {
		e, r := &index.Entries[i], &real.Entries[i]
		if !same(e, r) {
			return fmt.Errorf("%w: %.80q is another than %.80q", ErrLied, r.Name, e.Name)
		}
		if e.Size == 0 {
			continue
		}
		if err := f.proveFile(ctx, e, r.Object, buf); err != nil {
			return fmt.Errorf("%.80q: %w", e.Name, err)
		}
	}
	return nil
}

// Settle lets the files of a layer be read from what unpacking has made of them,
// real, so that its spans are not needed any more. It must have been proven: by
// Prove, now or in an earlier life of the layer.
func (f *Files) Settle(key string, index, real *layers.Index) error {
	l, err := f.layer(key)
	if err != nil {
		return err
	}
	if len(index.Entries) != len(real.Entries) {
		return fmt.Errorf("%w: it has %d entries, not %d", ErrLied, len(real.Entries), len(index.Entries))
	}
	s := &served{Layer: l.Layer, real: make([]layers.Sum, len(l.places))}
	for i := range index.Entries {
		e, r := &index.Entries[i], &real.Entries[i]
		at, ok := l.find(e.Object)
		switch {
		case e.Size == 0:
		case !ok || !same(e, r):
			return fmt.Errorf("%w: %.80q is another than %.80q", ErrLied, r.Name, e.Name)
		default:
			s.real[at] = r.Object
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.layers[key] == l {
		f.layers[key] = s
	}
	f.drop(func(d *decoded) bool { return d.l == l })
	return nil
}

func (f *Files) proveFile(ctx context.Context, e *layers.Entry, want layers.Sum, buf []byte) error {
	h := sha256.New()
	for off := int64(0); off < e.Size; {
		n, err := f.ReadAt(ctx, e.Object, buf, off)
		if err != nil && err != io.EOF {
			return err
		}
		h.Write(buf[:n])
		off += int64(n)
	}
	if got := layers.Sum(h.Sum(nil)); got != want {
		return fmt.Errorf("%w: %w", ErrLied, &layers.DigestError{Want: want.Digest(), Got: got.Digest(), From: "file"})
	}
	return nil
}

// same says whether two entries are the same but for their bytes.
func same(a, b *layers.Entry) bool {
	return a.Name == b.Name && a.Kind == b.Kind && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID &&
		a.Sec == b.Sec && a.Nsec == b.Nsec && a.Size == b.Size && a.Link == b.Link &&
		a.Major == b.Major && a.Minor == b.Minor && slices.Equal(a.Xattrs, b.Xattrs)
}

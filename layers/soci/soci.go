// Package soci reads the indexes of SOCI (github.com/awslabs/soci-snapshotter),
// so that images which have one start lazily.
//
// A SOCI index manifest names a *ztoc* for each of an image's larger layers. A
// ztoc lists the members of the layer's tar, checkpoints at which its gzip stream
// can be entered, and the SHA-256 of each *span*: the stored bytes from one
// checkpoint to the next, 4 MiB of tar by default.
//
//	manifest digest → index manifest → ztoc → spans → plain bytes
//
// [ParseIndex] reads the manifest and [Open] a ztoc; [Files] serves the files.
//
// # Names of files
//
// A ztoc has no digest of any file, while everything here names a file by the
// SHA-256 of its bytes and keeps it under that name. So a file of a SOCI layer
// gets another name until all of its layer was read: its *alias*, a SHA-512/256
// of the ztoc's digest, the layer's, and the file's place in the tar. What an
// alias stands for never changes: the ztoc fixes the spans' digests, so their
// bytes, the checkpoints and so what they decode to; no file is decoded across a
// checkpoint. A ztoc that lies only chooses other bytes for aliases of its own.
//
// An alias is never a name in the store, whose names stand for the bytes with
// that SHA-256. Nor can anybody make it one: a file with the bytes that an alias
// is made of has another SHA-256. So a metadata image that refers to aliases is
// never answered by overlayfs from the store's directories, only over FUSE, by
// Files. What goes into the store are the spans as they are stored, under their
// own SHA-256: to the store, and to package fetch that brings them in, they are
// objects of one chunk like any others (Layer.Spans).
//
// When all spans are there, [Files.Stream] gives the whole layer to be unpacked,
// without fetching anything twice, and what comes of that has real sums, which
// the next mount uses. [Files.Prove] compares all that the aliases stood for with
// it, and [Files.Settle] lets mounts that still have aliases read the same objects,
// so that the spans can go.
//
// Invariants: no byte is returned that does not come from a span with the right
// digest. The bytes before the first span, gzip's header, have none and are never
// used: a header of our own takes their place.
package soci

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha512"
	"fmt"
	"io"
	"slices"
	"sort"
	"strconv"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// A Layer is what a ztoc says of one. It is immutable but for ReadWindows.
type Layer struct {
	// Index lists the entries. Objects are aliases, and have no chunks.
	Index *layers.Index
	// Spans has a file for each span, named by its number: an object to be
	// fetched, of one chunk, with compression None. Spans overlap by a byte where
	// a checkpoint is inside of one.
	Spans *layers.Index
	// Map is that of the layer's blob. Decoding at its first point means to
	// believe bytes that nothing vouches for; Files does not. Map.Plain may lack
	// zeros behind the tar's end.
	Map *layers.Map

	ztoc   io.ReaderAt
	window []int64 // where in the ztoc that of each point is
	spans  []span
	places []place
}

// A span is the stored bytes between two checkpoints and what they become.
type span struct {
	sum        layers.Sum
	from, to   int64 // in the blob
	start, end int64 // in the tar
}

// A place is where a file lies in the tar.
type place struct {
	alias     layers.Sum
	off, size int64
}

// Open reads the ztoc of a layer. want is its digest, of sha256; it is believed as
// far as that is. The error is a *layers.DigestError, or wraps layers.ErrNoTOC,
// and says why, if the layer cannot start lazily with this ztoc; layers.ErrBadTOC,
// ErrBadLayer or ErrTooLarge if it is wrong. The ztoc must not be changed later;
// see [Layer.ReadWindows].
func Open(ztoc []byte, want digest.Digest, layer ocispec.Descriptor) (*Layer, error) {
	l, err := open(ztoc, want, layer)
	if err != nil {
		return nil, fmt.Errorf("ztoc %s: %w", want, err)
	}
	return l, nil
}

func open(p []byte, want digest.Digest, layer ocispec.Descriptor) (*Layer, error) {
	sum, err := layers.ParseSum(want)
	if err != nil {
		return nil, err
	}
	if len(p) > layers.MaxTOC {
		return nil, fmt.Errorf("%d bytes: %w", len(p), layers.ErrTooLarge)
	}
	if got := layers.SumOf(p); got != sum {
		return nil, &layers.DigestError{Want: want, Got: got.Digest(), From: "ztoc"}
	}
	z, err := parse(p)
	if err != nil {
		return nil, err
	}
	if z.stored != layer.Size {
		return nil, fmt.Errorf("%w: it is of a layer of %d bytes, not %d", layers.ErrBadTOC, z.stored, layer.Size)
	}
	if most := tarindex.DefaultMaxPlain(layer.Size); z.plain < 0 || z.plain > most {
		return nil, fmt.Errorf("tar of %d bytes: %w", z.plain, layers.ErrTooLarge)
	}
	l := &Layer{ztoc: bytesAt(p)}
	if err := l.cut(p, z); err != nil {
		return nil, err
	}
	return l, l.list(z, newAlias(sum, layer.Digest))
}

// ReadWindows lets l read windows from r, which holds the ztoc, instead of
// keeping it in memory, 32 KiB for each span. It is for a Layer that is not in use yet.
func (l *Layer) ReadWindows(r io.ReaderAt) { l.ztoc = r }

// Window returns the window of a point; see [layers.Windows]. It does not block on the network.
func (l *Layer) Window(_ context.Context, i int) ([]byte, error) {
	w := make([]byte, l.Map.Points[i].Window)
	if n, err := l.ztoc.ReadAt(w, l.window[i]); n < len(w) {
		return nil, fmt.Errorf("window %d: %w", i, err)
	}
	return w, nil
}

var _ layers.Windows = (*Layer)(nil)

type bytesAt []byte

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	n := copy(p, b[min(off, int64(len(b))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// cut makes the spans and the Map.
func (l *Layer) cut(p []byte, z *ztoc) error {
	l.Map = &layers.Map{Compression: z.compression, Plain: z.plain, Stored: z.stored}
	var err error
	if z.compression == layers.Gzip {
		err = l.gzip(p, z)
	} else {
		err = l.uncompressed(z)
	}
	if err != nil {
		return err
	}
	if n := len(l.spans); n != len(z.digests) || int64(n) != z.maxSpan+1 {
		return fmt.Errorf("%w: %d checkpoints for %d digests, the last is %d", layers.ErrBadTOC, n, len(z.digests), z.maxSpan)
	}
	l.Spans = &layers.Index{Entries: make([]layers.Entry, len(l.spans))}
	for i := range l.spans {
		s := &l.spans[i]
		if s.sum, err = layers.ParseSum(digest.Digest(z.digests[i])); err != nil {
			return fmt.Errorf("%w: span %d: %w", layers.ErrBadTOC, i, err)
		}
		n := s.to - s.from
		if n > layers.MaxChunk || s.end-s.start > layers.MaxChunk {
			return fmt.Errorf("span %d of %d bytes for %d: %w", i, n, s.end-s.start, layers.ErrTooLarge)
		}
		l.Spans.Entries[i] = layers.Entry{Name: strconv.Itoa(i), Kind: layers.Reg, Size: n, Object: s.sum,
			Chunks: []layers.Chunk{{Sum: s.sum, Size: n, BlobOff: s.from, BlobLen: n}}}
	}
	return l.Map.Check()
}

// uncompressed makes the spans of a plain tar: pieces of one size.
func (l *Layer) uncompressed(z *ztoc) error {
	size, step, err := tarInfo(z.checkpoints)
	if err != nil {
		return err
	}
	if size != z.stored || z.plain > size || size == 0 || step < 1 || (size-1)/step+1 != int64(len(z.digests)) {
		return fmt.Errorf("%w: %d spans of %d bytes in a tar of %d", layers.ErrBadTOC, len(z.digests), step, size)
	}
	for off := int64(0); off < size; off += step {
		end := off + min(step, size-off)
		l.spans = append(l.spans, span{from: off, to: end, start: off, end: end})
	}
	l.Map.Plain, l.Map.Points = size, []layers.Point{{}}
	return nil
}

// list makes the entries and the places of their bytes.
func (l *Layer) list(z *ztoc, name alias) error {
	var end int64 // of what the member before has in the tar
	all := make(map[layers.Sum]place)
	entries, err := tarindex.Entries(func(yield func(*tarindex.Member, error) bool) {
		z.members(func(m *tarindex.Member, off int64) bool {
			err := z.f.err
			if err == nil {
				end, err = checkMember(m, off, end, z.plain)
			}
			if err == nil && m.Size > 0 {
				m.Object = name.of(off, m.Size)
				all[m.Object] = place{m.Object, off, m.Size}
			}
			return yield(m, err)
		})
	})
	if err = cmp.Or(z.f.err, err); err != nil {
		return err
	}
	for i := range entries { // not all members: others may have taken their names
		if p, ok := all[entries[i].Object]; ok && entries[i].Size > 0 {
			l.places = append(l.places, p)
		}
	}
	slices.SortFunc(l.places, func(a, b place) int { return bytes.Compare(a.alias[:], b.alias[:]) })
	l.Index = &layers.Index{Entries: entries}
	return nil
}

// checkMember checks that the bytes of a member lie where the tar can have them:
// behind a header, which is behind the member before. It returns where they end.
func checkMember(m *tarindex.Member, off, end, plain int64) (int64, error) {
	if m.Type != typeReg { // whatever the header says, it has none
		m.Size = 0
	}
	if off < block || off%block != 0 || off-block < end || m.Size < 0 || off > plain || m.Size > plain-off {
		return 0, fmt.Errorf("%w: %.80q: %d bytes at %d, behind %d of %d", layers.ErrBadTOC, m.Name, m.Size, off, end, plain)
	}
	return (off + m.Size + block - 1) &^ (block - 1), nil
}

// find returns which place is that of the file with an alias.
func (l *Layer) find(alias layers.Sum) (int, bool) {
	i := sort.Search(len(l.places), func(i int) bool { return bytes.Compare(l.places[i].alias[:], alias[:]) >= 0 })
	return i, i < len(l.places) && l.places[i].alias == alias
}

// span returns which one has a byte of the tar that is in the Map.
func (l *Layer) span(off int64) int {
	return sort.Search(len(l.spans), func(i int) bool { return l.spans[i].end > off })
}

// An alias makes the names of one ztoc's files.
type alias []byte

func newAlias(ztoc layers.Sum, layer digest.Digest) alias {
	a := append(alias("snapfs file of a soci layer\n"), ztoc[:]...)
	a = le.AppendUint32(a, uint32(len(layer)))
	return append(a, layer...)
}

// of is SHA-512/256, not the store's SHA-256: see the package comment.
func (a alias) of(off, size int64) layers.Sum {
	return sha512.Sum512_256(le.AppendUint64(le.AppendUint64(slices.Clip(a), uint64(off)), uint64(size)))
}

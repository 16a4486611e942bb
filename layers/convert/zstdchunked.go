package convert

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/zstdchunked"
)

// zstdChunked writes a zstd:chunked blob as containers/storage does: headers and
// padding in frames of their own, each chunk in one frame, then the TOC, the
// tar-split (from which podman makes the tar again when it pushes) and a footer.
func zstdChunked(out *counter, src *source, o Options) (Converted, error) {
	w, err := newChunkedWriter(out, o)
	if err != nil {
		return Converted{}, err
	}
	for {
		m, err := src.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = w.member(m)
		}
		if err != nil {
			return Converted{}, err
		}
	}
	annotations, err := w.finish()
	if err != nil {
		return Converted{}, err
	}
	return Converted{DiffID: digest.NewDigest(digest.SHA256, w.plain), Desc: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerZstd, Annotations: annotations,
	}}, nil
}

type chunkedWriter struct {
	out   *counter
	enc   *zstd.Encoder
	open  bool      // whether enc has an unfinished frame
	plain hash.Hash // of the tar
	split *tarSplit
	toc   object
	some  bool // entries are in toc
	buf   []byte
}

func newChunkedWriter(out *counter, o Options) (*chunkedWriter, error) {
	level := zstd.SpeedDefault
	if o.Level > 0 {
		level = zstd.EncoderLevelFromZstd(o.Level)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(min(8<<20, max(zstd.MinWindowSize, nextPowerOfTwo(o.ChunkSize)))))
	if err != nil {
		return nil, err
	}
	split, err := newTarSplit()
	if err != nil {
		return nil, errors.Join(err, enc.Close())
	}
	return &chunkedWriter{out: out, enc: enc, plain: sha256.New(), split: split, toc: object(`{"version":1,"entries":[`), buf: make([]byte, o.ChunkSize)}, nil
}

func nextPowerOfTwo(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}

// tar writes bytes of the tar into the open frame.
func (w *chunkedWriter) tar(p []byte) error {
	if !w.open {
		w.enc.Reset(w.out)
		w.open = true
	}
	w.plain.Write(p)
	_, err := w.enc.Write(p)
	return err
}

// cut ends the open frame and returns where the next begins.
func (w *chunkedWriter) cut() (int64, error) {
	if !w.open {
		return w.out.n, nil
	}
	w.open = false
	err := w.enc.Close()
	return w.out.n, err
}

func (w *chunkedWriter) member(m member) error {
	if err := errors.Join(w.tar(m.raw), w.split.segment(m.raw)); err != nil {
		return err
	}
	var cks []chunk
	var sum layers.Sum
	if m.Size > 0 {
		var err error
		if cks, sum, err = w.content(m); err != nil {
			return fmt.Errorf("%q: %w", m.Name, err)
		}
	}
	if err := w.split.file(m.Name, m.Size); err != nil {
		return err
	}
	if pad := m.padding(); len(pad) > 0 {
		if err := errors.Join(w.tar(pad), w.split.segment(pad)); err != nil {
			return err
		}
	}
	w.entry(m, cks, sum)
	return nil
}

// A chunk of a file as it was written.
type chunk struct {
	sum       layers.Sum
	off, size int64 // in the file
	at, end   int64 // in the blob
	zeros     bool
}

// content writes the bytes of a file, chunk by chunk.
func (w *chunkedWriter) content(m member) (cks []chunk, sum layers.Sum, err error) {
	whole := sha256.New()
	for off := int64(0); off < m.Size; {
		buf := w.buf[:min(int64(len(w.buf)), m.Size-off)]
		if _, err := io.ReadFull(m.body, buf); err != nil {
			return nil, sum, fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
		}
		whole.Write(buf)
		w.split.sum.Write(buf)
		for len(buf) > 0 {
			n, zeros := piece(buf)
			ck, err := w.chunk(buf[:n])
			if err != nil {
				return nil, sum, err
			}
			ck.off, ck.zeros = off, zeros
			cks = append(cks, ck)
			buf, off = buf[n:], off+int64(n)
		}
	}
	whole.Sum(sum[:0])
	return cks, sum, nil
}

func (w *chunkedWriter) chunk(p []byte) (ck chunk, err error) {
	if ck.at, err = w.cut(); err != nil {
		return ck, err
	}
	if err := w.tar(p); err != nil {
		return ck, err
	}
	ck.end, err = w.cut()
	ck.sum, ck.size = layers.SumOf(p), int64(len(p))
	return ck, err
}

// minZeros is the least run of zeros that is a chunk of its own: below, its entry
// in the TOC costs more than its frame.
const minZeros = 64 << 10

var zeroPage [4 << 10]byte

// piece returns how much of p is one chunk: pages of zeros, or what comes before
// the next of those.
func piece(p []byte) (n int, zeros bool) {
	isZero := func(at int) bool {
		page := p[at:min(at+len(zeroPage), len(p))]
		return bytes.Equal(page, zeroPage[:len(page)])
	}
	run := 0 // of zeros up to n
	for n < len(p) {
		next := min(n+len(zeroPage), len(p))
		if isZero(n) {
			run += next - n
		} else {
			if run >= minZeros {
				if run == n {
					return n, true
				}
				return n - run, false
			}
			run = 0
		}
		n = next
	}
	switch {
	case run < minZeros:
		return n, false
	case run == n:
		return n, true
	}
	return n - run, false
}

// entry adds a member to the TOC. A file of several chunks has an entry for each;
// the first is the file's own.
func (w *chunkedWriter) entry(m member, cks []chunk, sum layers.Sum) {
	o := w.begin(kinds[m.Typeflag], m.Name)
	o.str("linkName", m.Linkname)
	o.num("mode", m.Mode)
	o.num("size", m.Size)
	o.num("uid", int64(m.Uid))
	o.num("gid", int64(m.Gid))
	o.time("modtime", m.ModTime)
	o.num("devMajor", m.Devmajor)
	o.num("devMinor", m.Devminor)
	xattrs := map[string]string{}
	for k, v := range m.PAXRecords {
		xattrs[strings.TrimPrefix(k, xattrPrefix)] = v
	}
	o.xattrs(xattrs)
	if len(cks) > 0 {
		o.str("digest", sum.String())
		o.num("offset", cks[0].at)
		o.num("endOffset", cks[len(cks)-1].end)
	}
	for i, ck := range cks {
		if i > 0 {
			*o = append(*o, '}')
			o = w.begin("chunk", m.Name)
			o.num("offset", ck.at)
			o.num("chunkOffset", ck.off)
		}
		if len(cks) > 1 || ck.zeros {
			o.num("chunkSize", ck.size)
			o.str("chunkDigest", ck.sum.String())
		}
		if ck.zeros {
			o.str("chunkType", "zeros")
		}
	}
	*o = append(*o, '}')
}

func (w *chunkedWriter) begin(kind, name string) *object {
	if w.some {
		w.toc = append(w.toc, ',')
	}
	w.some = true
	w.toc = append(w.toc, '{')
	w.toc.str("type", kind)
	w.toc.str("name", name)
	return &w.toc
}

var kinds = map[byte]string{'0': "reg", '1': "hardlink", '2': "symlink", '3': "char", '4': "block", '5': "dir", '6': "fifo"}

// finish ends the tar and writes the frames behind it.
func (w *chunkedWriter) finish() (map[string]string, error) {
	end := make([]byte, 2*block)
	if err := errors.Join(w.tar(end), w.split.segment(end)); err != nil {
		return nil, err
	}
	if _, err := w.cut(); err != nil {
		return nil, err
	}
	split, err := w.split.finish()
	if err != nil {
		return nil, err
	}
	w.toc = append(w.toc, ']')
	if split.stored != nil {
		w.toc.str("tarSplitDigest", digest.FromBytes(split.stored).String())
	}
	w.toc = append(w.toc, '}')
	toc := part{stored: w.enc.EncodeAll(w.toc, nil), plain: int64(len(w.toc))}
	annotations := map[string]string{zstdchunked.ChecksumAnnotation: digest.FromBytes(toc.stored).String()}
	if err := w.skippable(&toc); err != nil {
		return nil, err
	}
	annotations[zstdchunked.PositionAnnotation] = fmt.Sprintf("%d:%d:%d:1", toc.off, len(toc.stored), toc.plain)
	if split.stored != nil {
		if err := w.skippable(&split); err != nil {
			return nil, err
		}
		annotations[zstdchunked.TarSplitAnnotation] = fmt.Sprintf("%d:%d:%d", split.off, len(split.stored), split.plain)
	}
	return annotations, w.footer(toc, split)
}

// A part is what a skippable frame has.
type part struct {
	stored     []byte
	plain, off int64 // bytes when decompressed; place in the blob
}

func (w *chunkedWriter) skippable(p *part) error {
	if int64(len(p.stored)) > 1<<32-1 {
		return fmt.Errorf("%w: %d bytes in a frame", layers.ErrTooLarge, len(p.stored))
	}
	h := binary.LittleEndian.AppendUint32([]byte("\x50\x2a\x4d\x18"), uint32(len(p.stored)))
	p.off = w.out.n + int64(len(h))
	_, err := w.out.Write(append(h, p.stored...))
	return err
}

func (w *chunkedWriter) footer(toc, split part) error {
	var f []byte
	for _, n := range []int64{
		toc.off, int64(len(toc.stored)), toc.plain, 1,
		split.off, int64(len(split.stored)), split.plain,
	} {
		f = binary.LittleEndian.AppendUint64(f, uint64(n))
	}
	return w.skippable(&part{stored: append(f, "GNUlInUx"...)})
}

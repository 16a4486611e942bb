// Package tarindex unpacks layers: it reads the stored bytes of any gzip, zstd
// or plain tar layer once, from front to back, puts every file into the store
// and returns the layer's index. It is what an image that has no table of
// contents is pulled with.
//
// The stages run at once, with a few buffers between them:
//
//	stored bytes ─┬─ blob digest
//	              └─ inflate ─┬─ diff ID
//	                          └─ tar ─┬─ per file: SHA-256, store
//	                                  └─ per chunk of large files: SHA-256
//
// Invariant: an index is returned only if blob digest, size and diff ID are what
// was asked for. If not, nothing refers to what was stored before that was known.
package tarindex

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// Options of [Unpack]. The zero value works.
type Options struct {
	// MaxPlain is the most bytes that the layer may become: of its tar, and of
	// its files with their holes. 0 is [DefaultMaxPlain] of its size.
	MaxPlain int64
	// Progress, if not nil, is called with the number of stored bytes read so
	// far, from a goroutine of Unpack and never by two at once.
	Progress func(off int64)
}

// DefaultMaxPlain is how many plain bytes a layer of that many stored bytes may
// become: DEFLATE cannot expand more than 1032 times, zstd and sparse files can,
// without bound. The gigabyte is for small layers of sparse files.
func DefaultMaxPlain(size int64) int64 {
	const ratio, base, limit = 1032, 1 << 30, 1 << 40
	if size >= (limit-base)/ratio {
		return max(limit, size)
	}
	return base + max(size, 0)*ratio
}

// Unpacked is what a layer turned out to be.
type Unpacked struct {
	// Index is that of the plain tar, see [layers.Map]: each file with bytes has
	// chunks, unless Map is nil.
	Index *layers.Index
	// Map says how to read the layer like the tar. Where its Span is about all
	// of the layer, it cannot be split: a zstd stream of one frame, a gzip stream
	// of one block. It is nil of a layer with more than 2²⁰ chunks.
	Map *layers.Map
	// Windows are those of Map. They are there until Close, nowhere else.
	Windows *Windows
}

// Close gives up the windows.
func (u *Unpacked) Close() error { return u.Windows.Close() }

// Unpack reads a layer from r, which must fail when ctx ends, and puts its files
// into the store. Bytes that are not what desc and diffID say are a
// [*layers.DigestError]; other bad layers are layers.ErrBadLayer or ErrTooLarge;
// any other error is one of reading r or of writing to the store. A layer with
// a digest that is wrong is read to its end, so that it is told from one that
// was made wrong. The caller closes what Unpack returns.
func Unpack(ctx context.Context, r io.Reader, desc ocispec.Descriptor, diffID digest.Digest, s *objects.Store, o Options) (*Unpacked, error) {
	u, err := unpack(ctx, r, desc, diffID, s, o)
	if err != nil {
		return nil, fmt.Errorf("unpack layer %s: %w", desc.Digest, err)
	}
	return u, nil
}

func unpack(ctx context.Context, r io.Reader, desc ocispec.Descriptor, diffID digest.Digest, s *objects.Store, o Options) (_ *Unpacked, err error) {
	if !mediaTypes[desc.MediaType] {
		return nil, fmt.Errorf("media type %q: %w", desc.MediaType, layers.ErrBadLayer)
	}
	for _, d := range []digest.Digest{desc.Digest, diffID} {
		if err := d.Validate(); err != nil {
			return nil, fmt.Errorf("digest %q: %w: %w", d, err, layers.ErrBadLayer)
		}
	}
	if o.MaxPlain == 0 {
		o.MaxPlain = DefaultMaxPlain(desc.Size)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	j := &job{
		ctx: ctx, stop: cancel, desc: desc, diffID: diffID, o: o,
		blobHash: desc.Digest.Algorithm().Hash(), diffHash: diffID.Algorithm().Hash(),
		storedPool: newPool(&storedBuffers, 0, storedCount),
		plainPool:  newPool(&plainBuffers, window, plainCount),
		stored:     make(chan *buffer, storedCount),
		toHash:     make(chan *buffer, plainCount),
		toTar:      make(chan *buffer, plainCount),
		toSum:      make(chan piece, 4*plainCount),
		windows:    newWindows(s),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.windows.Close())
		}
	}()
	u := &unpacker{ctx: ctx, store: s, left: o.MaxPlain, pack: packName(desc)}
	u.cuts.sum = func(p []byte, last bool) error { return j.piece(u.scan.cur, p, last) }
	defer func() { err = errors.Join(err, u.abort()) }()
	if err := j.run(r, u); err != nil {
		return nil, err
	}
	ix, mapped, err := u.finish(j.sums)
	if err != nil {
		return nil, err
	}
	out := &Unpacked{Index: ix, Windows: j.windows}
	if mapped {
		out.Map = j.mapped
	}
	return out, nil
}

// A job is one layer on its way through the stages.
type job struct {
	ctx    context.Context // of this call: ends with it, and at the first error
	stop   context.CancelCauseFunc
	desc   ocispec.Descriptor
	diffID digest.Digest
	o      Options

	blobHash, diffHash     hash.Hash
	storedPool, plainPool  *pool
	stored, toHash, toTar  chan *buffer
	size                   int64 // stored bytes read
	inflateErr, contentErr error // what is wrong with the bytes
	toSum                  chan piece
	sums                   []layers.Sum // of chunks
	windows                *Windows
	mapped                 *layers.Map
}

// run runs the stages, waits for all of them and says whether the layer is good.
func (j *job) run(r io.Reader, u *unpacker) error {
	var wg sync.WaitGroup
	for _, stage := range []func() error{
		func() error { return j.read(r) },
		j.inflate,
		j.hash,
		j.sum,
		func() error { return j.tar(u) },
	} {
		wg.Go(func() {
			if err := stage(); err != nil {
				j.stop(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(j.ctx); err != nil {
		return err
	}
	j.storedPool.close()
	j.plainPool.close()
	return j.verdict()
}

// verdict is the error about bytes that were all read. That they are not the
// right ones goes before what is wrong with them.
func (j *job) verdict() error {
	bad := j.inflateErr
	if bad == nil {
		bad = j.contentErr
	}
	if bad == io.ErrUnexpectedEOF {
		bad = fmt.Errorf("%w: %w", bad, layers.ErrBadLayer)
	}
	if err := mismatch(j.desc.Digest, j.blobHash, "blob"); err != nil {
		if j.size < j.desc.Size {
			return fmt.Errorf("%d of %d bytes: %w: %w", j.size, j.desc.Size, io.ErrUnexpectedEOF, err)
		}
		if bad != nil {
			return fmt.Errorf("%w (%v)", err, bad)
		}
		return err
	}
	if j.size != j.desc.Size {
		return fmt.Errorf("%d bytes, its descriptor says %d: %w", j.size, j.desc.Size, layers.ErrBadLayer)
	}
	if bad != nil {
		return bad
	}
	return mismatch(j.diffID, j.diffHash, "diff ID")
}

func mismatch(want digest.Digest, h hash.Hash, from string) error {
	if got := digest.NewDigest(want.Algorithm(), h); got != want {
		return &layers.DigestError{Want: want, Got: got, From: from}
	}
	return nil
}

// read is the first stage: it reads and digests the stored bytes.
func (j *job) read(r io.Reader) error {
	defer close(j.stored)
	for {
		b, err := j.storedPool.get(j.ctx, 1)
		if err != nil {
			return err
		}
		b.n, err = readSome(r, b.b)
		j.blobHash.Write(b.data())
		j.size += int64(b.n)
		if j.size > j.desc.Size {
			return fmt.Errorf("more than the %d bytes that its descriptor says: %w", j.desc.Size, layers.ErrTooLarge)
		}
		if b.n > 0 {
			if j.o.Progress != nil {
				j.o.Progress(j.size)
			}
			if err := send(j.ctx, j.stored, b); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read at %d: %w", j.size, err)
		}
	}
}

// readSome reads until p is half full, so that a slow network is not waited for
// and a fast one does not cost a switch per packet.
func readSome(r io.Reader, p []byte) (n int, err error) {
	for n < len(p)/2 && err == nil {
		var m int
		m, err = r.Read(p[n:])
		n += m
	}
	return n, err
}

// inflate is the second stage: it makes plain bytes and passes each buffer on to
// both of the next. Bad data ends the plain stream; the stored one is read on.
func (j *job) inflate() error {
	defer close(j.toHash)
	defer close(j.toTar)
	r := &storedReader{ctx: j.ctx, in: j.stored, pool: j.storedPool}
	d, err := newDecoder(r, j.windows.add)
	if err == nil {
		if c, ok := d.(io.Closer); ok {
			defer c.Close()
		}
		err = j.decode(d)
	}
	if err != nil && j.ctx.Err() == nil && err != j.windows.err {
		j.inflateErr = err
		return r.drain()
	}
	return err
}

func (j *job) decode(d decoder) error {
	var last *buffer // kept until the next has its end
	defer func() {
		if last != nil {
			j.plainPool.put(last)
		}
	}()
	for left := j.o.MaxPlain; ; {
		b, err := j.plainPool.get(j.ctx, 3)
		if err != nil {
			return err
		}
		if last != nil {
			tail := last.data()[max(0, len(last.data())-window):]
			b.lo = window
			copy(b.b[window-len(tail):], tail)
			j.plainPool.put(last)
		}
		last = b
		b.n, err = d.Decode(b.b, b.lo)
		if left -= int64(len(b.data())); left < 0 {
			err = fmt.Errorf("more than %d plain bytes: %w", j.o.MaxPlain, layers.ErrTooLarge)
		}
		if err := send(j.ctx, j.toHash, b); err != nil {
			return err
		}
		if err := send(j.ctx, j.toTar, b); err != nil {
			return err
		}
		if err == io.EOF {
			j.mapped = d.Map()
			return j.windows.err // of the disk
		}
		if err != nil {
			return err
		}
	}
}

// drain takes what is left, so that all of it is digested.
func (r *storedReader) drain() error {
	for {
		r.p = nil
		if _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// hash is one of the two stages behind.
func (j *job) hash() error {
	for {
		b, err := receive(j.ctx, j.toHash)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		j.diffHash.Write(b.data())
		j.plainPool.put(b)
	}
}

// A piece is a part of a chunk.
type piece struct {
	b    *buffer
	p    []byte // of b
	last bool   // of the chunk
}

// piece passes bytes of a buffer, which the caller holds, on to be summed up.
func (j *job) piece(b *buffer, p []byte, last bool) error {
	b.refs.Add(1)
	return send(j.ctx, j.toSum, piece{b, p, last})
}

// sum is the stage behind tar: it sums up chunks that are not all of a file.
func (j *job) sum() error {
	h := sha256.New()
	for {
		pc, err := receive(j.ctx, j.toSum)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		h.Write(pc.p)
		j.plainPool.put(pc.b)
		if pc.last {
			var sum layers.Sum
			h.Sum(sum[:0])
			h.Reset()
			j.sums = append(j.sums, sum)
		}
	}
}

// tar is the other one. What comes behind the end of the archive, or behind bad
// bytes, is for the diff ID only.
func (j *job) tar(u *unpacker) error {
	defer close(j.toSum)
	u.scan = scanner{
		next: func() (*buffer, error) { return receive(j.ctx, j.toTar) },
		free: j.plainPool.put,
	}
	err := u.all()
	if isContent(err) {
		j.contentErr, err = err, nil
	}
	if err != nil {
		return err
	}
	return u.scan.drain()
}

// isContent reports whether an error is about the bytes of the layer.
func isContent(err error) bool {
	return errors.Is(err, layers.ErrBadLayer) || errors.Is(err, layers.ErrTooLarge) || err == io.ErrUnexpectedEOF
}

func (s *scanner) drain() error {
	for {
		s.p = nil
		if err := s.fill(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

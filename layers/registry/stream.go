package registry

import (
	"context"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// A stream is a whole blob in one request, taken up again where it broke off.
type stream struct {
	b    *remoteBlob
	ctx  context.Context // of the caller of Stream: the life of the stream
	plan *plan
	cur  *ranged
	off  int64 // bytes returned
	from int64 // off when cur was opened
	err  error
}

func (b *remoteBlob) stream(ctx context.Context) (io.ReadCloser, error) {
	if n := b.reg.opt.Parallel; n > 1 && b.desc.Size > streamPart {
		return newParallel(ctx, b, n), nil
	}
	plan, err := b.plan()
	if err != nil {
		return nil, err
	}
	s := &stream{b: b, ctx: ctx, plan: plan}
	if err := s.open(); err != nil {
		return nil, s.fail(err)
	}
	return s, nil
}

func (s *stream) open() error {
	return s.plan.run(s.ctx, func(h *repoHost, deadline time.Time) (int64, error) {
		body, err := s.b.get(s.ctx, h, deadline, s.off, s.b.desc.Size, s.off)
		s.cur, s.from = body, s.off
		return 0, err
	})
}

func (s *stream) fail(err error) error {
	s.err = fmt.Errorf("blob %s: %w", s.b.desc.Digest, err)
	return s.err
}

func (s *stream) Read(p []byte) (int, error) {
	for s.err == nil {
		n, err := s.cur.Read(p)
		s.off += int64(n)
		if n > 0 {
			// With the bytes any error waits: it comes again, or the stream resumes.
			return n, nil
		}
		switch {
		case err == nil:
			if len(p) == 0 {
				return 0, nil
			}
			continue
		case err == io.EOF && s.off == s.b.desc.Size:
			s.err = io.EOF
			return 0, io.EOF
		case err == io.EOF: // a range shorter than asked for
			err = &bodyError{s.cur.from, io.ErrUnexpectedEOF}
		}
		s.cur.Close()
		s.cur = nil
		if s.ctx.Err() != nil {
			return 0, s.fail(s.ctx.Err())
		}
		s.plan.fail(s.off-s.from, err)
		if err := s.open(); err != nil {
			return 0, s.fail(err)
		}
	}
	return 0, s.err
}

func (s *stream) Close() error {
	if s.err == nil {
		s.err = errors.New("stream is closed")
	}
	if s.cur == nil {
		return nil
	}
	err := s.cur.Close()
	s.cur = nil
	return err
}

// streamPart is the length of one of several ranges that a stream fetches at the same time.
const streamPart = 4 << 20

// parallel reads the parts of a blob with several requests at once, and returns
// them in order. It holds at most two parts per request.
type parallel struct {
	b      *remoteBlob
	cancel context.CancelFunc
	wg     sync.WaitGroup
	parts  chan chan part // in order; closed after the last
	free   chan []byte
	cur    []byte
	buf    []byte
	err    error
}

type part struct {
	data []byte
	err  error
}

func newParallel(ctx context.Context, b *remoteBlob, n int) *parallel {
	ctx, cancel := context.WithCancel(ctx)
	s := &parallel{b: b, cancel: cancel, parts: make(chan chan part, n), free: make(chan []byte, 2*n)}
	tokens := make(chan struct{}, n)
	s.wg.Go(func() {
		defer close(s.parts)
		for off := int64(0); off < b.desc.Size; off += streamPart {
			select {
			case tokens <- struct{}{}:
			case <-ctx.Done():
				return
			}
			one := make(chan part, 1)
			s.wg.Go(func() {
				defer func() { <-tokens }()
				buf := s.buffer()[:min(streamPart, b.desc.Size-off)]
				k, err := b.ReadAt(ctx, buf, off)
				if k == len(buf) {
					err = nil
				}
				one <- part{buf[:k], err}
			})
			select {
			case s.parts <- one:
			case <-ctx.Done():
				return
			}
		}
	})
	return s
}

func (s *parallel) buffer() []byte {
	select {
	case b := <-s.free:
		return b
	default:
		return make([]byte, streamPart)
	}
}

func (s *parallel) Read(p []byte) (int, error) {
	for len(s.cur) == 0 && s.err == nil {
		if s.buf != nil {
			select {
			case s.free <- s.buf[:cap(s.buf)]:
			default:
			}
			s.buf = nil
		}
		one, ok := <-s.parts
		if !ok {
			s.err = io.EOF
			break
		}
		got := <-one
		s.buf, s.cur, s.err = got.data, got.data, got.err
	}
	if len(s.cur) == 0 {
		return 0, s.err
	}
	n := copy(p, s.cur)
	s.cur = s.cur[n:]
	return n, nil
}

func (s *parallel) Close() error {
	s.cancel()
	for range s.parts { // the producer may wait to hand over a part
	}
	s.wg.Wait()
	if s.err == nil {
		s.err = errors.New("stream is closed")
	}
	s.cur = nil
	return nil
}

// Verify wraps r, the stored bytes of desc from the first on: it returns a
// *layers.DigestError instead of the last of them, or a *SizeError instead of
// io.EOF, if the bytes were not those of desc. Until then nothing is known of
// them. Whoever passes them on has then passed on too few, and knows it before
// the other end can say so.
func Verify(r io.ReadCloser, desc ocispec.Descriptor) io.ReadCloser {
	return &verifier{rc: r, desc: desc, h: desc.Digest.Algorithm().Hash()}
}

type verifier struct {
	rc   io.ReadCloser
	desc ocispec.Descriptor
	h    hash.Hash
	n    int64
	err  error

	checked bool
}

func (v *verifier) Read(p []byte) (int, error) {
	if v.err != nil {
		return 0, v.err
	}
	n, err := v.rc.Read(p)
	v.h.Write(p[:n])
	v.n += int64(n)
	if v.n > v.desc.Size || err == io.EOF && v.n != v.desc.Size {
		err = &SizeError{From: "blob " + string(v.desc.Digest), Want: v.desc.Size, Got: v.n}
	} else if v.n == v.desc.Size && !v.checked && (n > 0 || err == io.EOF) {
		v.checked = true
		if got := digest.NewDigest(v.desc.Digest.Algorithm(), v.h); got != v.desc.Digest {
			n, err = 0, &layers.DigestError{Want: v.desc.Digest, Got: got, From: "blob"}
		}
	}
	v.err = err
	return n, err
}

func (v *verifier) Close() error { return v.rc.Close() }

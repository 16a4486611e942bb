package blobs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"syscall"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/registry"
)

// fetch brings a promised blob into the store, or waits for somebody who does.
func (s *Store) fetch(ctx context.Context, p *promise) error {
	return s.flights.do(ctx, p.Desc.Digest, func(ctx context.Context) error {
		select {
		case s.fetching <- struct{}{}:
			defer func() { <-s.fetching }()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if _, err := s.local.Info(ctx, p.Desc.Digest); err == nil { // between our look and this flight
			return nil
		}
		s.o.Log.Info("fetching a blob that was asked for", "blob", p.Desc.Digest, "n", p.Desc.Size, "ref", p.Sources[0])
		if err := s.fetchFrom(ctx, p); err != nil {
			if ctx.Err() == nil {
				s.o.Stats.Failed.Add(1)
			}
			return fmt.Errorf("content %s, which is not local: %w", p.Desc.Digest, err)
		}
		s.o.Stats.Fetched.Add(1)
		return nil
	})
}

// fetchFrom tries one source after the other. What one has sent another continues.
func (s *Store) fetchFrom(ctx context.Context, p *promise) error {
	var errs []error
	for _, source := range p.Sources {
		again, err := s.fetchOnce(ctx, p, source)
		if again { // what was there before may be to blame
			_, err = s.fetchOnce(ctx, p, source)
		}
		if err == nil || ctx.Err() != nil || errors.Is(err, errdefs.ErrResourceExhausted) {
			return err
		}
		errs = append(errs, err)
	}
	// What may be better later counts before what will not.
	for _, kind := range []error{errdefs.ErrUnavailable, errdefs.ErrPermissionDenied, errdefs.ErrDataLoss, errdefs.ErrNotFound} {
		for i, err := range errs {
			if errors.Is(err, kind) {
				errs[0], errs[i] = errs[i], errs[0]
				return onlyKind(errors.Join(errs...), kind)
			}
		}
	}
	return errors.Join(errs...)
}

// onlyKind makes an error of several kinds one of one.
func onlyKind(err, kind error) error { return &kindError{err, kind} }

type kindError struct{ all, kind error }

func (e *kindError) Error() string { return e.all.Error() }
func (e *kindError) Unwrap() error { return e.kind }

// fetchOnce continues what is there of a blob. again says that the bytes turned
// out wrong and some of them are of an earlier attempt.
func (s *Store) fetchOnce(ctx context.Context, p *promise, source string) (again bool, err error) {
	ref, err := registry.ParseRef(source)
	if err != nil {
		return false, err
	}
	name := ours + p.Desc.Digest.String()
	w, err := s.local.Writer(ctx, content.WithRef(name), content.WithDescriptor(p.Desc))
	if errdefs.IsAlreadyExists(err) {
		return false, nil
	}
	if err != nil {
		return false, disk(err)
	}
	st, err := w.Status()
	if err == nil && st.Offset > p.Desc.Size {
		st.Offset, err = 0, w.Truncate(0)
	}
	if err == nil {
		if st.Offset > 0 {
			s.o.Stats.Resumed.Add(1)
		}
		err = s.copy(ctx, counted{w, &s.o.Stats.Bytes}, ref, p, st.Offset)
	}
	if err == nil {
		if err = w.Commit(ctx, p.Desc.Size, p.Desc.Digest); err == nil || errdefs.IsAlreadyExists(err) {
			return false, nil
		}
		if errdefs.IsFailedPrecondition(err) { // writer.Commit's word for another size or digest
			err = fmt.Errorf("%s has sent other bytes: %w: %w", source, err, errdefs.ErrDataLoss)
		}
	}
	err = errors.Join(disk(err), w.Close()) // keeps what has come
	wrong := errors.Is(err, errdefs.ErrDataLoss)
	if wrong || errors.Is(err, errdefs.ErrResourceExhausted) { // of no use, or in the way
		err = errors.Join(err, s.local.Abort(context.WithoutCancel(ctx), name))
	}
	return wrong && st.Offset > 0, err
}

// copy appends the bytes of a blob from off on.
func (s *Store) copy(ctx context.Context, w io.Writer, ref registry.Ref, p *promise, off int64) (err error) {
	if off == p.Desc.Size {
		return nil
	}
	buf := make([]byte, 1<<20)
	if off == 0 {
		r, err := s.o.Blobs.Stream(ctx, ref, p.Desc)
		if err != nil {
			return translate(err)
		}
		defer r.Close() // only read
		_, err = io.CopyBuffer(w, &translated{r}, buf)
		return err
	}
	b, err := s.o.Blobs.Blob(ref, p.Desc)
	if err != nil {
		return translate(err)
	}
	for buf = make([]byte, resumePart); off < p.Desc.Size; {
		n, err := b.ReadAt(ctx, buf[:min(resumePart, p.Desc.Size-off)], off)
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		off += int64(n)
		if err != nil && (err != io.EOF || off < p.Desc.Size) {
			return translate(err)
		}
	}
	return nil
}

// resumePart is a request's length when a blob is continued. It is 4 MiB as that
// of registry's parallel streams.
const resumePart = 4 << 20

// counted counts what is written. It hides other methods, so that io.CopyBuffer uses its buffer.
type counted struct {
	w io.Writer
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// translated is a reader from the network; errors of the writer must stay apart.
type translated struct{ r io.Reader }

func (t *translated) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if err != nil && err != io.EOF {
		err = translate(err)
	}
	return n, err
}

// translate gives a registry's error the kind that containerd knows.
func translate(err error) error {
	var kind error
	_, lied := errors.AsType[*layers.DigestError](err)
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case lied, errors.Is(err, registry.ErrProtocol):
		kind = errdefs.ErrDataLoss
	case errors.Is(err, registry.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		kind = errdefs.ErrUnavailable
	case errors.Is(err, registry.ErrDenied):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, registry.ErrNotFound):
		kind = errdefs.ErrNotFound
	default:
		kind = errdefs.ErrUnavailable // whatever it was, the blob cannot be had now
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// disk gives a full disk its kind.
func disk(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", errdefs.ErrResourceExhausted, err)
	}
	return err
}

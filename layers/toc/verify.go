package toc

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
)

// A Verifier passes a stream on and sums it, so that a document can be decoded
// while it comes in and be believed at its end.
type Verifier struct {
	r    io.Reader
	hash hash.Hash
	want layers.Sum
	from string
}

// NewVerifier returns a Verifier of r. It refuses a digest that is not sha256.
// from names the stream in errors.
func NewVerifier(r io.Reader, want digest.Digest, from string) (*Verifier, error) {
	sum, err := layers.ParseSum(want)
	if err != nil {
		return nil, fmt.Errorf("digest of the %s: %w", from, err)
	}
	return &Verifier{r: r, hash: sha256.New(), want: sum, from: from}, nil
}

func (v *Verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	return n, err
}

// Check reads what is left of the stream and returns a *layers.DigestError unless
// all of it has the digest. Given the error of a decoder that stopped in the
// middle, it returns that one if the bytes are the right ones: a wrong document
// is wrong first of all, however it decodes.
func (v *Verifier) Check(decode error) error {
	n, err := io.Copy(io.Discard, io.LimitReader(v, layers.MaxTOC+1))
	switch {
	case err != nil:
		return err
	case n > layers.MaxTOC:
		return fmt.Errorf("%w: %s of more than %d bytes", layers.ErrTooLarge, v.from, int64(layers.MaxTOC))
	}
	var got layers.Sum
	v.hash.Sum(got[:0])
	if got != v.want {
		return &layers.DigestError{Want: v.want.Digest(), Got: got.Digest(), From: v.from}
	}
	return decode
}

// Malformed makes errors of decompressors and archives, which know nothing of
// TOCs, layers.ErrBadTOC. Errors that say what they are stay so.
func Malformed(err error) error {
	if _, ok := errors.AsType[*layers.DigestError](err); ok || err == nil {
		return err
	}
	for _, known := range []error{layers.ErrBadTOC, layers.ErrTooLarge, layers.ErrNoTOC} {
		if errors.Is(err, known) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", layers.ErrBadTOC, err)
}

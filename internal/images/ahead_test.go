package images

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

func TestReadAhead(t *testing.T) {
	want := bytes.Repeat([]byte("0123456789"), 50_000)
	a := readAhead(t.Context(), 100_000, func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(want)), nil
	})
	defer a.Close()
	if err := iotest.TestReader(a, want); err != nil {
		t.Error(err)
	}
}

func TestReadAheadEnds(t *testing.T) {
	broken := errors.New("broken")
	for name, open := range map[string]func(context.Context) (io.ReadCloser, error){
		"at once": func(context.Context) (io.ReadCloser, error) { return nil, broken },
		"in its midst": func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader([]byte("x")), iotest.ErrReader(broken))), nil
		},
	} {
		a := readAhead(t.Context(), 10, open)
		if _, err := io.ReadAll(a); err != broken {
			t.Errorf("%s: %v", name, err)
		}
		a.Close()
	}
}

// A stream that nobody reads stops at its limit, and Close ends it.
func TestReadAheadGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		a := readAhead(t.Context(), 200_000, func(context.Context) (io.ReadCloser, error) {
			return io.NopCloser(readerFunc(func(p []byte) (int, error) { n += len(p); return len(p), nil })), nil
		})
		synctest.Wait()
		if n < 200_000 || n > 300_000 {
			t.Errorf("%d bytes were read ahead, the limit is 200,000", n)
		}
		a.Close()
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

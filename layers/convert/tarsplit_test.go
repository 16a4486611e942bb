package convert

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/snapfs/snapfs/layers/lazy"
	"github.com/snapfs/snapfs/layers/zstdchunked"
)

// files gives the bytes of files by their name in the tar.
type files map[string][]byte

func (f files) Get(name string) (io.ReadCloser, error) {
	p, ok := f[name]
	if !ok {
		return nil, errors.New("no such file")
	}
	return io.NopCloser(bytes.NewReader(p)), nil
}

// From the tar-split and the files podman makes the tar again.
func TestTarSplit(t *testing.T) {
	var ms []sample
	have := files{}
	for _, m := range odd() {
		if m.h.Name == "twice" {
			continue
		}
		ms = append(ms, m)
	}
	var out bytes.Buffer
	c, err := Layer(t.Context(), &out, bytes.NewReader(tarOf(t, ms)), Options{Format: lazy.ZstdChunked})
	if err != nil {
		t.Fatal(err)
	}
	for src := newSource(bytes.NewReader(tarOf(t, ms)), alive); ; {
		m, err := src.next()
		if err != nil {
			break
		}
		if have[m.Name], err = io.ReadAll(m.body); err != nil {
			t.Fatal(err)
		}
	}
	var off, n, plain int
	if _, err := fmt.Sscanf(c.Desc.Annotations[zstdchunked.TarSplitAnnotation], "%d:%d:%d", &off, &n, &plain); err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	split, err := z.DecodeAll(out.Bytes()[off:off+n], nil)
	if err != nil || len(split) != plain {
		t.Fatalf("tar-split of %d bytes, %v, want %d", len(split), err, plain)
	}
	r := asm.NewOutputTarStream(have, storage.NewJSONUnpacker(bytes.NewReader(split)))
	defer r.Close()
	if d, err := digest.FromReader(r); err != nil || d != c.DiffID {
		t.Errorf("the tar made again is %v, %v, want %v", d, err, c.DiffID)
	}
}

// A tar with a name twice has no tar-split, but is converted.
func TestTarSplitDuplicate(t *testing.T) {
	c, err := Layer(t.Context(), io.Discard, bytes.NewReader(tarOf(t, odd())), Options{Format: lazy.ZstdChunked})
	if err != nil || c.Desc.Annotations[zstdchunked.TarSplitAnnotation] != "" {
		t.Errorf("Layer = %v, %v, want no tar-split", c.Desc.Annotations, err)
	}
}

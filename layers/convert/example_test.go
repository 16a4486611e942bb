package convert_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/convert"
	"github.com/snapfs/snapfs/layers/decode"
	"github.com/snapfs/snapfs/layers/lazy"
)

// memory is a blob in memory.
type memory struct{ *bytes.Reader }

func (m memory) ReadAt(_ context.Context, p []byte, off int64) (int, error) {
	return m.Reader.ReadAt(p, off)
}

// A layer is made lazily readable, and one of its files is read.
func Example() {
	var layer, converted bytes.Buffer
	w := tar.NewWriter(&layer)
	motd := []byte("Welcome.\n")
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/motd", Mode: 0o644, Size: int64(len(motd))})
	w.Write(motd)
	w.Close()

	ctx := context.Background()
	c, err := convert.Layer(ctx, &converted, &layer, convert.Options{Format: lazy.EStargz})
	if err != nil {
		fmt.Println(err)
		return
	}
	blob := memory{bytes.NewReader(converted.Bytes())}
	ix, format, err := lazy.Open(ctx, c.Desc, blob) // the descriptor vouches for the table of contents
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range ix.Entries {
		fmt.Printf("%s: %s, %d bytes\n", format, e.Name, e.Size)
		for _, ck := range e.Chunks {
			run, plain := make([]byte, ck.BlobLen), make([]byte, ck.Size)
			if _, err := blob.ReadAt(ctx, run, ck.BlobOff); err != nil {
				fmt.Println(err)
				return
			}
			if err := decode.Chunk(plain, ix.Compression, run, ck); err != nil {
				fmt.Println(err)
				return
			}
			fmt.Printf("%s%v\n", plain, layers.SumOf(plain) == ck.Sum)
		}
	}
	// Output:
	// estargz: etc/motd, 9 bytes
	// Welcome.
	// true
}

package index_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/index"
)

// windows are what was kept while the layer was decoded.
type windows map[int][]byte

func (w windows) Window(_ context.Context, i int) ([]byte, error) { return w[i], nil }

// One node writes the index of an image that it streamed; another reads it.
func Example() {
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	hello := layers.SumOf([]byte("hello"))
	image := &index.Image{
		Manifest: digest.FromString("the manifest"),
		Layers: []index.Layer{{
			Desc:   ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: digest.FromString("the blob"), Size: 9000},
			DiffID: digest.FromString("the tar"),
			Index: &layers.Index{Entries: []layers.Entry{{Name: "hello.txt", Kind: layers.Reg, Mode: 0o644, Size: 5, Object: hello,
				Chunks: []layers.Chunk{{Sum: hello, Size: 5, BlobOff: 512, BlobLen: 5}}}}},
			Map: &layers.Map{Compression: layers.Gzip, Plain: 40_000, Stored: 9000,
				Points: []layers.Point{{}, {Plain: 20_000, Stored: 5000, Bits: 3, Window: 1000}}},
			Windows: windows{1: bytes.Repeat([]byte("hello "), 200)[:1000]},
		}},
	}
	path := filepath.Join(dir, "index")
	info, err := index.Write(context.Background(), path, image)
	if err != nil {
		panic(err)
	}
	published := info.Annotations()

	// The other node has the annotations, and fetches the prefix.
	blob, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	got, err := index.Parse(blob[:published.Prefix], published.Root)
	if err != nil {
		panic(err)
	}
	layer := &got.Layers[0]
	fmt.Println(layer.Index.Entries[0].Name, layer.Index.Entries[0].Size)

	// To read what is behind point 1, it fetches the window of it.
	at := layer.Table[1]
	window, err := layer.Window(1, blob[at.Off:at.Off+int64(at.Len)])
	fmt.Println(len(window), string(window[:5]), err)
	// Output:
	// hello.txt 5
	// 1000 hello <nil>
}

package indexfile_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/indexfile"
)

// The index of a layer is kept in a file, and asked where an object's bytes are.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	motd := layers.SumOf([]byte("Welcome.\n"))
	ix := &layers.Index{Entries: []layers.Entry{{
		Name: "etc/motd", Kind: layers.Reg, Mode: 0o644, Size: 9, Object: motd,
		Chunks: []layers.Chunk{{Sum: motd, Size: 9, BlobOff: 512, BlobLen: 9}},
	}}}
	path := filepath.Join(dir, "layer.idx")
	if err := indexfile.Write(path, ix); err != nil {
		fmt.Println(err)
		return
	}
	f, err := indexfile.Open(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer f.Close()
	ref, ok := f.Lookup(motd)
	fmt.Println(ref.Size, ok)
	for _, ck := range f.Chunks(ref) {
		fmt.Printf("%d bytes of the blob at %d\n", ck.BlobLen, ck.BlobOff)
	}
	// Output:
	// 9 true
	// 9 bytes of the blob at 512
}

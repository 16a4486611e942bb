package erofs_test

import (
	"fmt"
	"os"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/layers"
)

// An image has the names of a tree; the bytes of files are somewhere else, but
// small ones can be in it.
func Example() {
	motd := []byte("Welcome.\n")
	tree, err := fs.Merge(nil, &layers.Index{Entries: []layers.Entry{
		{Name: "etc/motd", Kind: layers.Reg, Mode: 0o644, Size: int64(len(motd)), Object: layers.SumOf(motd)},
		{Name: "usr/bin/go", Kind: layers.Reg, Mode: 0o755, Size: 14 << 20, Object: layers.SumOf([]byte("a large program"))},
	}})
	if err != nil {
		fmt.Println(err)
		return
	}
	f, err := os.CreateTemp("", "example-*.erofs")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.Remove(f.Name())
	defer f.Close()
	sum, err := erofs.Write(f, tree, erofs.Options{
		InlineMax: 16 << 10,
		Has:       func(s layers.Sum) bool { return s == layers.SumOf(motd) },
		Read:      func(_ layers.Sum, p []byte) error { copy(p, motd); return nil },
	})
	fmt.Println(sum.Names, "names, sealed:", sum.Sealed, err) // mount -t erofs
	// Output: 6 names, sealed: true <nil>
}

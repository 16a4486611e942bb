package fs_test

import (
	"fmt"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

func Example() {
	base := &layers.Index{Entries: []layers.Entry{
		{Name: "etc", Kind: layers.Dir, Mode: 0o755},
		{Name: "etc/passwd", Kind: layers.Reg, Mode: 0o644},
		{Name: "etc/motd", Kind: layers.Reg, Mode: 0o644},
	}}
	change := &layers.Index{Entries: []layers.Entry{
		{Name: "etc/.wh.motd", Kind: layers.Reg},
		{Name: "etc/hostname", Kind: layers.Reg, Mode: 0o644},
	}}
	tree, err := fs.Merge(nil, base)
	if err != nil {
		fmt.Println(err)
		return
	}
	if tree, err = fs.Merge(tree, change); err != nil {
		fmt.Println(err)
		return
	}
	for name, n := range tree.Walk() {
		fmt.Printf("/%s %o\n", name, n.Mode)
	}
	// Output:
	// / 755
	// /etc 755
	// /etc/hostname 644
	// /etc/passwd 644
}

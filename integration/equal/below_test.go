package equal

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

// The upper layers of an image may be directories that containerd has unpacked:
// what overlayfs makes of them above a tree must be the same as above directories.
func TestBelowDirectories(t *testing.T) {
	needRoot(t)
	for name, stack := range stacks {
		for n := 1; n < len(stack); n++ {
			t.Run(fmt.Sprintf("%s %d", name, n), func(t *testing.T) {
				a, b := &theirs{}, newOurs(t)
				base, start := t.TempDir(), time.Now()
				for i, members := range stack {
					l := layer(t, members...)
					if err := a.unpack(t.Context(), base, bytes.NewReader(l)); err != nil {
						t.Fatalf("containerd: %v", err)
					}
					if i >= n {
						continue
					}
					add := b.addLayer
					if strings.HasPrefix(name, asIs) {
						add = b.addTar
					}
					if err := add(t.Context(), l); err != nil {
						t.Fatal(err)
					}
				}
				b.above = a.dirs[:len(stack)-n]
				compare(t, a, b, start)
			})
		}
	}
}

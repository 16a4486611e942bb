package equal

import (
	"archive/tar"
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/integration/view"
)

var rounds = flag.Uint64("rounds", 150, "number of random stacks")

// TestRandom compares small random stacks of few names, so that everything meets
// everything: links, whiteouts, replaced and repeated entries, in any order. What
// containerd cannot unpack ends a stack; what it can, we must.
func TestRandom(t *testing.T) {
	needRoot(t)
	b := newOurs(t)
	for seed := range *rounds {
		random(t, b, seed)
	}
}

func random(t *testing.T, b *ours, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	b.empty()
	a := &theirs{}
	base, start := t.TempDir(), time.Now()
	var stack []string
	for range 1 + r.IntN(4) {
		members := randomLayer(r)
		l := layer(t, members...)
		stack = append(stack, describe(members))
		if a.unpack(t.Context(), base, bytes.NewReader(l)) != nil {
			break
		}
		if err := b.addTar(t.Context(), l); err != nil {
			t.Errorf("seed %d, %q: %v", seed, stack, err)
			return
		}
	}
	dirA, unmountA := a.mount(t, true)
	defer unmountA()
	dirB, unmountB := b.mount(t, seed%2 == 0, true)
	defer unmountB()
	for _, d := range view.Differences(look(t, dirA), look(t, dirB), start, true) {
		t.Errorf("seed %d, %q: %s", seed, stack, d)
	}
}

// randomLayer makes up to a dozen members. Directories all have the attributes of
// one that nobody lists: containerd gives such a one those of a directory that an
// opaque one between has hidden, which is its fault, not the image's.
func randomLayer(r *rand.Rand) (all []member) {
	name := func() string {
		p := string(rune('a' + r.IntN(4)))
		for range r.IntN(3) {
			p += "/" + string(rune('a'+r.IntN(4)))
		}
		return p
	}
	gone := map[string]bool{}
	for range r.IntN(12) {
		n := name()
		body := fmt.Sprint(r.Uint64())
		f := file(n, body).mode(int64(r.IntN(0o10000))).owner(r.IntN(3), r.IntN(70000)).time(clock.Add(time.Duration(r.IntN(1e9)))).xattr("user.r", body)
		switch r.IntN(12) {
		case 0, 1, 2:
			f = dir(n).mode(0o755).owner(0, 0).time(clock)
		case 3:
			targets := []string{name(), "/" + name(), "../" + name(), strings.Repeat("../", 4) + name()}
			f = symlink(n, targets[r.IntN(len(targets))])
		case 4, 5:
			to := name()
			if len(all) > 0 {
				to = path.Clean(all[r.IntN(len(all))].Name)
			}
			if !gone[path.Base(to)] { // a link to a whiteout is another one: to us, a link to nothing
				f = link(n, to).mode(0o4755).xattr("user.l", body)
			}
		case 6, 7:
			gone[path.Base(n)] = true
			f = hide(strings.TrimSuffix(path.Dir(n)+"/", "./"), path.Base(n))
		case 8:
			f = hide(n+"/", "")
		case 9:
			f = device(tar.TypeChar, n, int64(r.IntN(2)), 3)
		}
		all = append(all, f)
	}
	return all
}

func describe(members []member) string {
	var words []string
	for _, m := range members {
		w := m.Name
		switch m.Typeflag {
		case tar.TypeSymlink:
			w += ">" + m.Linkname
		case tar.TypeLink:
			w += "=" + m.Linkname
		case tar.TypeChar:
			w += "!"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}

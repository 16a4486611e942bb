package fs

import (
	"errors"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// A model is a stack of unpacked layers, each a map of names: Merge done simply,
// without symbolic links. A value is 'd' a directory, 'o' an opaque one, 'w' a
// whiteout, 'f' anything else.
type model []map[string]byte

// unpack adds a layer; false if it cannot be unpacked.
func (m *model) unpack(words string) bool {
	layer := map[string]byte{}
	*m = append(*m, layer)
	for _, w := range strings.Fields(words) {
		name, isDir := strings.CutSuffix(w, "/")
		for i := range name {
			if name[i] == '/' {
				if k := layer[name[:i]]; k == 'f' || k == 'w' {
					return false
				} else if k == 0 {
					layer[name[:i]] = 'd'
				}
			}
		}
		dir, base := path.Dir(name), path.Base(name)
		hidden, isWhiteout := strings.CutPrefix(base, ".wh.")
		kind := layer[name]
		switch {
		case base == ".wh..wh..opq":
			if dir != "." {
				layer[dir] = 'o'
			}
		case isWhiteout:
			hidden = path.Join(dir, hidden)
			if k := layer[hidden]; k == 0 {
				layer[hidden] = 'w'
			} else if k == 'd' {
				layer[hidden] = 'o'
			}
		case isDir && (kind == 'd' || kind == 'o'):
		default:
			maps.DeleteFunc(layer, func(k string, _ byte) bool { return strings.HasPrefix(k, name+"/") })
			layer[name] = 'f'
			if isDir {
				layer[name] = 'd'
			}
		}
	}
	return true
}

// show is what overlayfs shows.
func (m model) show() string {
	var names []string
	seen := map[string]bool{}
	for _, layer := range m {
		for name := range layer {
			if kind := m.lookup(name); !seen[name] && kind != 0 {
				if seen[name] = true; kind == 'd' {
					name += "/"
				}
				names = append(names, name)
			}
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		return slices.Compare(strings.Split(strings.TrimSuffix(a, "/"), "/"), strings.Split(strings.TrimSuffix(b, "/"), "/"))
	})
	return strings.Join(names, " ")
}

func (m model) lookup(name string) byte {
	layers := slices.Clone(m)
	slices.Reverse(layers)
	kind := byte('d')
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '/' {
			continue
		}
		kind = 0
		var under []map[string]byte
		for _, l := range layers {
			k := l[name[:i]]
			if k == 0 {
				continue
			}
			if k == 'f' || k == 'w' {
				if kind == 0 && k == 'f' {
					kind = 'f'
				}
				break
			}
			kind, under = 'd', append(under, l)
			if k == 'o' {
				break
			}
		}
		layers = under
	}
	return kind
}

func randomStack(r *rand.Rand) []string {
	stack := make([]string, 1+r.IntN(4))
	for i := range stack {
		var words []string
		for range r.IntN(8) {
			var p string
			for range r.IntN(3) {
				p += string(rune('a'+r.IntN(3))) + "/"
			}
			words = append(words, p+[]string{"a", "b", "c", "a/", "b/", "c/", ".wh.a", ".wh.b", ".wh..wh..opq"}[r.IntN(9)])
		}
		stack[i] = strings.Join(words, " ")
	}
	return stack
}

func FuzzMergeAgainstModel(f *testing.F) {
	for seed := range uint64(2000) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		stack := randomStack(rand.New(rand.NewPCG(seed, 1)))
		var m model
		var tree *Tree
		for i, words := range stack {
			ok := m.unpack(words)
			next, err := Merge(tree, index(words))
			if ok != (err == nil) {
				t.Fatalf("%q: layer %d: %v", stack, i, err)
			}
			if !ok {
				return
			}
			tree = next
		}
		if got, want := list(tree), m.show(); got != want {
			t.Errorf("%q = %q, want %q", stack, got, want)
		}
		if tree.Len() != len(strings.Fields(list(tree))) {
			t.Errorf("%q: Len = %d", stack, tree.Len())
		}
	})
}

// FuzzMerge merges layers of any entries, links and hostile names among them.
// What comes out keeps the invariants of a Tree.
func FuzzMerge(f *testing.F) {
	f.Add("a/ a/x b>a b/y", "c=b/x a/.wh.x .wh.b")
	f.Add("a>../.. a/b/c d=a/b/c", "a/.wh..wh..opq a! a/ .wh..wh.x/y")
	f.Add("l>l l/x", "x//y ../z . .. a/./b")
	f.Add("a/ a/b a>/c c/ c/d", "c c/ a/ a=c")
	f.Fuzz(func(t *testing.T, a, b string) {
		var tree *Tree
		for _, words := range []string{a, b, a} {
			next, err := Merge(tree, index(words))
			if err != nil {
				if !errors.Is(err, layers.ErrBadLayer) && !errors.Is(err, layers.ErrTooLarge) {
					t.Errorf("Merge: %v", err)
				}
				continue
			}
			tree = next
			check(t, tree)
		}
	})
}

// check verifies the invariants of a Tree.
func check(t *testing.T, tree *Tree) {
	names := 0
	links := map[*Node]uint32{}
	for p, n := range tree.Walk() {
		names++
		links[n]++
		if p != "" && checkElem(path.Base(p)) != nil {
			t.Errorf("name %q", p)
		}
		if n.Kind == whiteout || n.Kind == layers.Hardlink || n.flags&unsorted != 0 {
			t.Errorf("%q: kind %d, flags %d", p, n.Kind, n.flags)
		}
		if n.Kind != layers.Dir && (links[n] > n.Nlink || len(n.kids) > 0) {
			t.Errorf("%q: %d names, Nlink %d, %d kids", p, links[n], n.Nlink, len(n.kids))
		}
		if !slices.IsSortedFunc(n.kids, func(a, b Child) int { return strings.Compare(a.Name, b.Name) }) {
			t.Errorf("%q: names are not in order", p)
		}
		for i := 1; i < len(n.kids); i++ {
			if n.kids[i-1].Name == n.kids[i].Name {
				t.Errorf("%q: %q twice", p, n.kids[i].Name)
			}
		}
	}
	if names != tree.Len()+1 {
		t.Errorf("Len = %d, want %d", tree.Len(), names-1)
	}
}

package fs

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/layers"
)

// index makes a layer of words: "a/" a directory, "a/b" a file, "a>b" a symbolic
// link, "a=b" a hard link, "a!" a 0:0 device. A number after @ is the mode.
func index(words string) *layers.Index {
	ix := &layers.Index{}
	for _, w := range strings.Fields(words) {
		e := layers.Entry{Kind: layers.Reg, Mode: 0o644, Size: 1, Object: layers.SumOf([]byte(words + w))}
		w, mode, ok := strings.Cut(w, "@")
		if ok {
			fmt.Sscanf(mode, "%o", &e.Mode)
		}
		switch {
		case strings.HasSuffix(w, "/"):
			e.Kind, e.Size, w = layers.Dir, 0, w[:len(w)-1]
		case strings.HasSuffix(w, "!"):
			e.Kind, e.Size, w = layers.Char, 0, w[:len(w)-1]
		case strings.Contains(w, ">"):
			e.Kind, e.Size = layers.Symlink, 0
			w, e.Link, _ = strings.Cut(w, ">")
		case strings.Contains(w, "="):
			e.Kind, e.Size = layers.Hardlink, 0
			w, e.Link, _ = strings.Cut(w, "=")
		}
		e.Name = w
		ix.Entries = append(ix.Entries, e)
	}
	return ix
}

func list(t *Tree) string {
	var names []string
	t.Walk(func(p string, n *Node) error {
		if p != "" && n.Kind == layers.Dir {
			p += "/"
		}
		names = append(names, p)
		return nil
	})
	return strings.Join(names[1:], " ")
}

func build(t testing.TB, stack ...string) *Tree {
	t.Helper()
	var tree *Tree
	for _, words := range stack {
		var err error
		if tree, err = Merge(tree, index(words)); err != nil {
			t.Fatalf("Merge(%q): %v", stack, err)
		}
	}
	return tree
}

func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name, lower, upper, want string
	}{
		{"nothing", "", "", ""},
		{"siblings", "a/ a/x", "a/y b", "a/ a/x a/y b"},
		{"whiteout", "a/ a/x a/y", "a/.wh.x", "a/ a/y"},
		{"whiteout of a directory", "a/ a/x b", ".wh.a", "b"},
		{"whiteout of what is not there", "a", ".wh.b c/.wh.d", "a"},
		{"whiteout and its own file, before", "x/ x/old", ".wh.x x/ x/new", "x/ x/new"},
		{"whiteout and its own file, after", "x/ x/old", "x/ x/new .wh.x", "x/ x/new"},
		{"opaque first", "a/ a/x", "a/ a/.wh..wh..opq a/y", "a/ a/y"},
		{"opaque last", "a/ a/x a/b/ a/b/z", "a/ a/y a/b/ a/.wh..wh..opq", "a/ a/b/ a/y"},
		{"opaque root", "a b/ b/c", ".wh..wh..opq d", "d"},
		{"opaque directory that is new", "", "a/.wh..wh..opq", "a/"},
		{"names of AUFS", "a", ".wh..wh.plnk/ .wh..wh.aufs .wh..wh.orph/x", "a"},
		{"parents that have no entry", "", "a/b/c", "a/ a/b/ a/b/c"},
		{"file over directory", "a/ a/x", "a", "a"},
		{"directory over file", "a", "a/ a/x", "a/ a/x"},
		{"parent over file", "a", "a/x", "a/ a/x"},
		{"symbolic link over directory", "a/ a/x", "a>b", "a"},
		{"below a symbolic link", "a>b b/", "a/x", "a/ a/x b/"},
		{"twice in a layer", "", "a a/ a/b", "a/ a/b"},
		{"hard link", "", "a b=a c=b", "a b c"},
		{"hard link below", "d/ d/a", "b=d/a", "b d/ d/a"},
		{"device 0:0 hides", "a/ a/x b", "a!", "b"},
	} {
		lower := build(t, c.lower)
		before := list(lower)
		got, err := Merge(lower, index(c.upper))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if list(got) != c.want {
			t.Errorf("%s: %q over %q = %q, want %q", c.name, c.upper, c.lower, list(got), c.want)
		}
		if got.Len() != strings.Count(" "+c.want, " ")+1 && c.want != "" {
			t.Errorf("%s: Len = %d, want the names of %q and the root", c.name, got.Len(), c.want)
		}
		if list(lower) != before {
			t.Errorf("%s: the lower tree changed to %q", c.name, list(lower))
		}
	}
}

func TestAttributesAreTheUppersOwn(t *testing.T) {
	tree := build(t, "a/@700 a/x", "a/@755", "a/y")
	n, err := tree.Lookup("a")
	if err != nil || n.Mode != 0o755 {
		t.Errorf("a: %v, %v, want mode 755", n, err)
	}
	if _, err := tree.Lookup("a/x"); err != nil {
		t.Errorf("merged directory lost its file: %v", err)
	}
	if _, err := tree.Lookup("a/z/q"); !errors.Is(err, iofs.ErrNotExist) {
		t.Errorf("Lookup of what is not there: %v", err)
	}
}

func TestHardLinks(t *testing.T) {
	inode := func(tree *Tree, p string) *Inode {
		n, err := tree.Lookup(p)
		if err != nil {
			t.Fatal(err)
		}
		return n.Inode
	}
	one := build(t, "a b=a")
	if inode(one, "a") != inode(one, "b") {
		t.Error("two names of one layer do not share an inode")
	}
	two := build(t, "a b=a", "c=a")
	if inode(two, "a") != inode(two, "c") || inode(two, "a") == inode(two, "b") {
		t.Error("a link to a lower file is a copy of it under two names; the third keeps the old inode")
	}
	replaced := build(t, "a b=a", "a")
	if inode(replaced, "a") == inode(replaced, "b") {
		t.Error("a name that was replaced still shares the inode")
	}
	same := build(t, "d/ d/a", "d/b=d/a")
	if inode(same, "d/a") != inode(same, "d/b") {
		t.Error("a link beside a lower file does not share its inode")
	}
	for _, bad := range []string{"a=b", "d/ a=d", "a=a", "x/y=x/z"} {
		if _, err := Merge(nil, index(bad)); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Merge(%q): %v, want ErrBadLayer", bad, err)
		}
	}
}

func TestOverlayAttributesAreDropped(t *testing.T) {
	ix := index("f")
	ix.Entries[0].Xattrs = []layers.Xattr{{Name: "trusted.overlay.redirect", Value: "/x"}, {Name: "user.a", Value: "1"}, {Name: "user.overlay.opaque", Value: "y"}}
	tree, err := Merge(nil, ix)
	if err != nil {
		t.Fatal(err)
	}
	n, _ := tree.Lookup("f")
	if len(n.Xattrs) != 1 || n.Xattrs[0].Name != "user.a" {
		t.Errorf("attributes %v", n.Xattrs)
	}
	if len(ix.Entries[0].Xattrs) != 3 {
		t.Error("the index changed")
	}
}

// model is Merge done simply: a map of names, for random comparison.
func model(stack []string) string {
	state := map[string]bool{} // name → is a directory
	remove := func(p string) {
		maps.DeleteFunc(state, func(k string, _ bool) bool { return k == p || strings.HasPrefix(k, p+"/") })
	}
	for _, words := range stack {
		for _, w := range strings.Fields(words) {
			dir, base := path.Split(w)
			dir = strings.TrimSuffix(dir, "/")
			switch {
			case base == ".wh..wh..opq" && (dir == "" || state[dir]):
				maps.DeleteFunc(state, func(k string, _ bool) bool { return dir == "" || strings.HasPrefix(k, dir+"/") })
			case strings.HasPrefix(base, ".wh."):
				remove(path.Join(dir, base[4:]))
			}
		}
		for _, w := range strings.Fields(words) {
			p, isDir := strings.TrimSuffix(w, "/"), strings.HasSuffix(w, "/")
			base := path.Base(p)
			if base == ".wh..wh..opq" {
				p, isDir = path.Dir(p), true
				if p == "." {
					continue
				}
			} else if strings.HasPrefix(base, ".wh.") {
				continue
			}
			for i := range p {
				if p[i] == '/' && !state[p[:i]] {
					remove(p[:i])
					state[p[:i]] = true
				}
			}
			if !isDir || !state[p] {
				remove(p)
			}
			state[p] = isDir
		}
	}
	var names []string
	for p, isDir := range state {
		if isDir {
			p += "/"
		}
		names = append(names, p)
	}
	slices.SortFunc(names, func(a, b string) int {
		return slices.Compare(strings.Split(strings.TrimSuffix(a, "/"), "/"), strings.Split(strings.TrimSuffix(b, "/"), "/"))
	})
	return strings.Join(names, " ")
}

func randomStack(r *rand.Rand) []string {
	names := []string{"a", "b", "c"}
	stack := make([]string, 1+r.IntN(3))
	for i := range stack {
		var words []string
		for range r.IntN(6) {
			var p string
			for range r.IntN(3) {
				p += names[r.IntN(3)] + "/"
			}
			words = append(words, p+[]string{"a", "b", "c", "a/", "b/", "c/", ".wh.a", ".wh.b", ".wh..wh..opq"}[r.IntN(9)])
		}
		stack[i] = strings.Join(words, " ")
	}
	return stack
}

func FuzzMergeAgainstModel(f *testing.F) {
	for seed := range uint64(200) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		stack := randomStack(rand.New(rand.NewPCG(seed, 1)))
		if got, want := list(build(t, stack...)), model(stack); got != want {
			t.Errorf("%q = %q, want %q", stack, got, want)
		}
	})
}

package fs

import (
	"errors"
	"fmt"
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
		e := layers.Entry{Kind: layers.Reg, Mode: 0o644, Size: 1, Object: layers.SumOf([]byte(words + w)), Sec: 1}
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
	for p, n := range t.Walk() {
		if p != "" && n.Kind == layers.Dir {
			p += "/"
		}
		names = append(names, p)
	}
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

// The names that remain. integration/equal compares the same, and all else, to
// what containerd and the kernel make of it.
func TestMerge(t *testing.T) {
	for _, c := range []struct {
		name, lower, upper, want string
	}{
		{"nothing", "", "", ""},
		{"siblings", "a/ a/x", "a/y b", "a/ a/x a/y b"},
		{"whiteout", "a/ a/x a/y", "a/.wh.x", "a/ a/y"},
		{"whiteout of a directory", "a/ a/x b", ".wh.a", "b"},
		{"whiteout of what is not there", "a", ".wh.b c/.wh.d", "a c/"},
		{"whiteout, then a file", "x/ x/old", ".wh.x x", "x"},
		{"whiteout, then a directory: merged", "x/ x/old", ".wh.x x/ x/new", "x/ x/new x/old"},
		{"directory, then its whiteout", "x/ x/old", "x/ x/new .wh.x", "x/ x/new"},
		{"whiteout twice", "x/ x/old", ".wh.x .wh.x", ""},
		{"opaque first", "a/ a/x", "a/ a/.wh..wh..opq a/y", "a/ a/y"},
		{"opaque last", "a/ a/x a/b/ a/b/z", "a/ a/y a/b/ a/.wh..wh..opq", "a/ a/b/ a/y"},
		{"opaque root: nobody looks at it", "a b/ b/c", ".wh..wh..opq d", "a b/ b/c d"},
		{"opaque directory that is new", "", "a/.wh..wh..opq", "a/"},
		{"opaque over a file", "a", "a/.wh..wh..opq a/b", "a/ a/b"},
		{"whiteouts below an opaque directory", "a/ a/x", "a/.wh..wh..opq a/.wh.x a/b/.wh.c", "a/ a/b/"},
		{"names of AUFS", "a", ".wh..wh.plnk/ .wh..wh.plnk/1.2 .wh..wh.aufs d/.wh..wh.orph/x", "a"},
		{"parents that have no entry", "", "a/b/c", "a/ a/b/ a/b/c"},
		{"file over directory", "a/ a/x", "a", "a"},
		{"directory over file", "a", "a/ a/x", "a/ a/x"},
		{"parent over file", "a", "a/x", "a/ a/x"},
		{"parent over symbolic link of a lower layer", "a>b b/ b/x", "a/y", "a/ a/y b/ b/x"},
		{"below a symbolic link of the layer", "", "b/ a>b a/x", "a b/ b/x"},
		{"behind a link, and back", "", "r/ t>r/deep s>t/.. s/x", "r/ r/x s t"},
		{"behind a link in a directory, and back", "", "d/ r/ d/t>../r/deep d/s>t/.. d/s/x", "d/ d/s d/t d/x r/"},
		{"below a link to nothing", "", "a>c/d a/x", "a c/ c/d/ c/d/x"},
		{"below a link out of the root", "", "a>../../b a/x d/ d/up>/../.. d/up/y", "a b/ b/x d/ d/up y"},
		{"symbolic link over directory", "a/ a/x", "a>b", "a"},
		{"out of order", "", "c b a/z a/y a/x", "a/ a/x a/y a/z b c"},
		{"twice in a layer", "", "a a/ a/b a a/ a/c", "a/ a/c"},
		{"hard link", "", "a b=a c=b", "a b c"},
		{"hard link below", "d/ d/a", "b=d/a", "b d/ d/a"},
		{"hard link through a symbolic link", "", "d/ d/a s>d b=s/a", "b d/ d/a s"},
		{"device 0:0 hides", "a/ a/x b", "a!", "b"},
		{"directory, then a link to nothing", "", "a/ a/b/ a>c", "a"},
		{"before the dot", "", "- -a .x", "- -a .x"},
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
		if got.Len() != len(strings.Fields(c.want)) {
			t.Errorf("%s: Len = %d, want %d", c.name, got.Len(), len(strings.Fields(c.want)))
		}
		if list(lower) != before {
			t.Errorf("%s: the lower tree changed to %q", c.name, list(lower))
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	long := strings.Repeat("n", layers.MaxNameElem+1)
	for _, c := range []struct {
		lower, upper string
		want         error
	}{
		{"", "a=b", layers.ErrBadLayer},
		{"", "d/ a=d", layers.ErrBadLayer},
		{"", "a a=a", layers.ErrBadLayer},
		{"a", "a=a", layers.ErrBadLayer},
		{"a", ".wh.a b=a", layers.ErrBadLayer},
		{"", "x/y=x/z", layers.ErrBadLayer},
		{"", "a a/b", layers.ErrBadLayer},
		{"", ".wh.a a/b", layers.ErrBadLayer},
		{"", "a>a a/b", layers.ErrBadLayer},
		{"", "../a", layers.ErrBadLayer},
		{"", "a/../b", layers.ErrBadLayer},
		{"", ".wh.", layers.ErrBadLayer},
		{"", ".wh...", layers.ErrBadLayer},
		{"", "a/.wh..", layers.ErrBadLayer},
		{"", long, layers.ErrBadLayer},
		{"", "a>" + strings.Repeat("x", layers.MaxName+1), layers.ErrBadLayer},
		{"", strings.Repeat("d/", 2048) + "f", layers.ErrTooLarge},
	} {
		if _, err := Merge(build(t, c.lower), index(c.upper)); !errors.Is(err, c.want) {
			t.Errorf("Merge(%.40q, %.40q): %v, want %v", c.lower, c.upper, err, c.want)
		}
	}
	for _, e := range []layers.Entry{
		{Name: "a", Kind: 99},
		{Name: "a", Kind: layers.Block, Major: 1 << 12},
		{Name: "a", Kind: layers.Char, Minor: 1 << 20},
		{Name: "a", Kind: layers.Symlink},
		{Name: "a\x00", Kind: layers.Reg},
	} {
		if _, err := Merge(nil, &layers.Index{Entries: []layers.Entry{e}}); !errors.Is(err, layers.ErrBadLayer) {
			t.Errorf("Merge of %+v: %v, want ErrBadLayer", e, err)
		}
	}
}

func TestDeepLinksStayWithinLimits(t *testing.T) {
	deep := strings.Repeat("d/", 999) + "d"
	words := fmt.Sprintf("l>%[1]s l/l>%[1]s l/l/l>%[1]s l/l/l/x", deep)
	if _, err := Merge(nil, index(words)); !errors.Is(err, layers.ErrTooLarge) {
		t.Errorf("Merge = %v, want ErrTooLarge", err)
	}
}

func TestAttributes(t *testing.T) {
	for _, c := range []struct {
		stack []string
		name  string
		mode  uint16
		sec   int64
	}{
		{[]string{"a/@700 a/x", "a/@755", "a/y"}, "a", 0o755, 1},
		{[]string{"a/@700", "a/y"}, "a", 0o700, 1},     // made like the one below
		{[]string{"b/@700 a>b", "a/y"}, "a", 0o700, 1}, // which a link may lead to
		{[]string{"a@600", "a/y"}, "a", 0o755, 0},      // but is a directory
		{[]string{"", "a/y"}, "a", 0o755, 0},           // if there is none
		{[]string{"/@700"}, "", 0o755, 1},              // nobody's
		{[]string{"a@600 b=a@640"}, "a", 0o640, 1},     // of the last link
		{[]string{"a@4755 b>a"}, "b", 0o777, 1},        // of a symbolic link
		{[]string{"a/@700 a@600"}, "a", 0o600, 1},      // replaced
		{[]string{"a/y a/@1777"}, "a", 0o1777, 1},      // listed late
		{[]string{"a/@700", "a/.wh..wh..opq"}, "a", 0o700, 1},
	} {
		tree := build(t, c.stack...)
		if n := tree.Lookup(c.name); n == nil || n.Mode != c.mode || n.Sec != c.sec {
			t.Errorf("%q: Lookup(%q) = %+v, want mode %o, time %d", c.stack, c.name, n, c.mode, c.sec)
		}
	}
}

func TestSetgidIsInherited(t *testing.T) {
	ix := index("a/@2755 a/b/c/d")
	ix.Entries[0].GID = 5
	tree, err := Merge(nil, ix)
	if err != nil {
		t.Fatal(err)
	}
	if b, c := tree.Lookup("a/b"), tree.Lookup("a/b/c"); b.GID != 5 || b.Mode != 0o755 || c.GID != 0 {
		t.Errorf("directories nobody lists have groups %d and %d, modes %o and %o, want 5 and 0, 755", b.GID, c.GID, b.Mode, c.Mode)
	}
}

func TestLinks(t *testing.T) {
	for _, c := range []struct {
		stack []string
		want  string // name:links, equal letters for one inode
	}{
		{[]string{"a b=a c"}, "a:A2 b:A2 c:B1"},
		{[]string{"a b=a", ".wh.b"}, "a:A2"}, // in its layer b is there
		{[]string{"a b=a", "c=a"}, "a:A2 b:B2 c:A2"},
		{[]string{"a b=a", "a"}, "a:A1 b:B2"},
		{[]string{"a b=a a"}, "a:A1 b:B1"},
		{[]string{"d/ d/a d/b=d/a d"}, "d:A1"},
		{[]string{"d/ d/a b=d/a d"}, "b:A1 d:B1"},
		{[]string{"d/ d/e/ d/f/", "d/ d/g/", "d/ d/g/"}, "d:A1 d/e:B2 d/f:C2 d/g:D1"},
		{[]string{"d/ d/e/ d/f/", "d/.wh..wh..opq d/g/"}, "d:A3 d/g:B2"},
		{[]string{"d/ d/e/", ".wh.d", "d/ d/f/"}, "d:A3 d/f:B2"},
		{[]string{"s>t r=s"}, "r:A2 s:A2"},
	} {
		tree := build(t, c.stack...)
		letters := map[*Node]string{}
		var got []string
		for p, n := range tree.Walk() {
			if p == "" {
				continue
			}
			if letters[n] == "" {
				letters[n] = string(rune('A' + len(letters)))
			}
			got = append(got, fmt.Sprintf("%s:%s%d", p, letters[n], n.Nlink))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%q: %s, want %s", c.stack, strings.Join(got, " "), c.want)
		}
	}
}

func TestXattrs(t *testing.T) {
	x := func(names ...string) (list []layers.Xattr) {
		for _, n := range names {
			list = append(list, layers.Xattr{Name: n, Value: "1"})
		}
		return list
	}
	all := x("security.capability", "security.x", "system.posix_acl_access", "system.posix_acl_default", "system.x",
		"trusted.overlay.redirect", "trusted.x", "user.", "user.a", "user.overlay", "user.overlay.opaque", "user.overlayer", "other")
	for kind, want := range map[layers.Kind]string{
		layers.Reg:     "security.capability security.x system.posix_acl_access user.a user.overlayer",
		layers.Dir:     "security.capability security.x system.posix_acl_access system.posix_acl_default user.a user.overlayer",
		layers.Symlink: "security.capability security.x",
		layers.Fifo:    "security.capability security.x system.posix_acl_access",
	} {
		ix := &layers.Index{Entries: []layers.Entry{{Name: "f", Kind: kind, Link: "t", Xattrs: slices.Clone(all)}}}
		tree, err := Merge(nil, ix)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range tree.Lookup("f").Xattrs {
			got = append(got, x.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("kind %d: %q, want %q", kind, got, want)
		}
		if !slices.Equal(ix.Entries[0].Xattrs, all) {
			t.Error("the index changed")
		}
	}

	ix := index("f g=f d/ d/")
	ix.Entries[0].Xattrs = x("security.capability", "user.a")
	ix.Entries[1].Xattrs = x("user.b")
	ix.Entries[2].Xattrs = x("user.a")
	ix.Entries[3].Xattrs = x("user.b")
	tree, err := Merge(nil, ix)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"f", "d"} { // a link's chown took the capability
		if got := tree.Lookup(name).Xattrs; !slices.Equal(got, x("user.a", "user.b")) {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestLookup(t *testing.T) {
	tree := build(t, "a/ a/b s>a")
	for name, want := range map[string]bool{"": true, "a": true, "a/b": true, "a/c": false, "a/b/c": false, "s/b": false, "x": false} {
		if got := tree.Lookup(name) != nil; got != want {
			t.Errorf("Lookup(%q) = %v, want %v", name, got, want)
		}
	}
	if tree.Root().Child("a").Child("b") != tree.Lookup("a/b") {
		t.Error("Child and Lookup differ")
	}
}

func TestBigDirectoryOutOfOrder(t *testing.T) {
	var words []string
	for i := range 1000 {
		words = append(words, fmt.Sprintf("d/f%d", i*7919%1000))
	}
	tree := build(t, strings.Join(append(words, words...), " "))
	if tree.Len() != 1001 || len(tree.Lookup("d").Children()) != 1000 {
		t.Errorf("Len = %d, want 1001", tree.Len())
	}
	if !slices.IsSortedFunc(tree.Lookup("d").Children(), func(a, b Child) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("names are not in order")
	}
}

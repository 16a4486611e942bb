package equal

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/integration/view"
	"github.com/snapfs/snapfs/layers"
)

func needRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
}

// capability is what setcap cap_net_raw+ep writes (include/uapi/linux/capability.h, vfs_cap_data).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl is u::rwx,u:77:r--,g::r-x,m::r-x,o::--- (include/uapi/linux/posix_acl_xattr.h).
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x4d\x00\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// asIs begins the names of stacks whose entries come as archive/tar reads them.
// The others go through layers/tarindex, which settles among the entries of one
// name itself, and a little otherwise than containerd.
const asIs = "as is: "

var stacks = map[string][][]member{
	"no layers":   {},
	"empty layer": {{}},
	"kinds": {{
		dir("d"), file("d/empty", ""), file("d/small", "small"), file("d/large", strings.Repeat("0123456789abcde\n", 10_000)),
		file("d/block", strings.Repeat("x", 4096)), file("d/4097", strings.Repeat("y", 4097)), file("d/inline limit", strings.Repeat("z", 16<<10)),
		symlink("d/rel", "small"), symlink("d/abs", "/d/small"), symlink("d/loop", "loop"), symlink("d/odd", "a\xff\n//b/../"),
		symlink("d/long", strings.Repeat("t", 4095)), symlink("d/2000", strings.Repeat("t/", 1000)),
		device(tar.TypeChar, "d/null", 1, 3), device(tar.TypeBlock, "d/loop7", 7, 7), device(tar.TypeBlock, "d/large numbers", 259, 0x12345),
		device(tar.TypeBlock, "d/0:0", 0, 0), fifo("d/fifo"),
	}},
	"modes, owners, times": {{
		file("setuid", "x").mode(0o4755), file("setgid", "x").mode(0o2755), file("all", "x").mode(0o7777), file("none", "x").mode(0),
		dir("sticky").mode(0o1777), dir("sgid").mode(0o2775), file("sgid/in", "x"), dir("sgid/d"),
		file("ids", "x").owner(4_000_000_000, 4_000_000_001), file("16 bit", "x").owner(65535, 65536), symlink("link", "x").owner(1000, 1001),
		file("epoch", "x").time(time.Unix(0, 0)), file("1965", "x").time(time.Unix(-149622772, 0)), file("-1ns", "x").time(time.Unix(-1, 999999999)),
		file("2106", "x").time(time.Unix(4295030400, 1)), file("2200", "x").time(time.Unix(7258118400, 999999999)),
		dir("old").time(time.Unix(5, 6)), file("old/in", "x"), symlink("old/link", "x").time(time.Unix(7, 8)),
	}},
	"names": {{
		dir("-before dot"), file("...", "x"), file("..a", "x"), file(strings.Repeat("n", 255), "x"), file("caf\xe9", "x"), file("Grüße-日本語-🐧", "x"),
		file("new\nline", "x"), file("  two  spaces ", "x"), file("back\\slash", "x"), file("wh.not", "x"), file("\xff\xfe/\x01", "x"), file("\x7f", ""),
		file(strings.Repeat(strings.Repeat("p", 100)+"/", 30)+"deep", "x"),
	}},
	"attributes": {
		{
			file("f", "x").xattr("user.plain", "value", "user.empty", "", "user.binary", "\x00\xff\n\r\x00", "user.large", strings.Repeat("v", 1500)),
			file("capable", "x").xattr("security.capability", capability), file("other", "x").xattr("security.other", "1"),
			dir("d").xattr("user.a", "1", "user.b", "2"), file("same1", "x").xattr("user.same", "equal values"), file("same2", "x").xattr("user.same", "equal values"),
			file("acl", "x").mode(0o750).xattr("system.posix_acl_access", acl), dir("acld").mode(0o750).xattr("system.posix_acl_access", acl, "system.posix_acl_default", acl),
			symlink("link", "f").xattr("user.not", "1", "security.yes", "1"), fifo("fifo").xattr("user.not", "1"),
			file("trusted", "x").xattr("trusted.mine", "1", "trusted.overlay.opaque", "y", "system.no", "1", "none", "1"),
			file("overlay", "x").xattr("trusted.overlay.redirect", "/etc/shadow", "trusted.overlay.metacopy", ""),
		},
		{file("capable", "x"), dir("d").xattr("user.c", "3"), dir("empty").xattr("user.many0", "1", "user.many1", "", "user.many2", "22")},
		{file("d/below", "x"), dir("d"), dir("d").xattr("user.d", "4")}, // on a directory made from the one below: all remain
	},
	"hard links": {
		{
			file("a", "linked"), link("b", "a"), dir("d"), link("d/c", "b").mode(0o4711).owner(5, 6), file("x", "cross"), link("y", "x"), link("z", "x"),
			symlink("s", "a"), link("s2", "s").owner(7, 8), fifo("p"), link("p2", "p"), device(tar.TypeChar, "n", 1, 3), link("n2", "n"),
			file("gone", "x"), link("left", "gone"), file("gone", "other"), file("empty", ""), link("empty2", "empty"),
			file("cap", "x").xattr("security.capability", capability), link("cap2", "cap"), // chown takes it away
			file("kept", "x"), link("kept2", "kept").xattr("security.capability", capability, "user.more", "1"),
			symlink("via", "d"), link("through", "via/c"),
			dir("r"), file("r/in", "x"), link("out", "r/in"), file("r", "instead of the directory"),
		},
		{hide("", "b"), file("x", "broken"), file("new", "n"), link("d/new2", "new")},
	},
	"whiteouts": {
		{
			dir("a"), file("a/1", "1"), file("a/2", "2"), dir("a/d"), file("a/d/x", "x"), dir("o"), file("o/1", "1"), dir("o/d"), file("o/d/2", "2"),
			file("f2d", "f"), dir("d2f"), file("d2f/x", "x"), symlink("l2d", "a"), dir("d2l"), file("d2l/x", "x"), dir("m").mode(0o700), file("m/x", "x"),
			dir("late"), file("late/old", "x"), dir("both"), file("both/old", "x"),
		},
		{
			hide("a/", "1"), hide("a/", "d"), hide("", "absent"), hide("new/", "absent"), dir("o"), file("o/new", "n"), hide("o/", ""), dir("f2d"), file("f2d/x", "x"),
			file("d2f", "f"), dir("l2d"), file("l2d/y", "y"), symlink("d2l", "m"), dir("m").mode(0o711).owner(9, 9), hide("m/", "x"), file("m/x2", "x"),
			file("late/new", "n"), dir("late/d"), hide("late/", ""), dir("late").mode(0o705), hide("", "both"), dir("both"), file("both/new", "n"),
		},
		{dir("a/d"), file("a/d/y", "y"), file("a/1", "again"), hide("", "o"), file("f2d/x", "X"), hide("f2d/", "x2")},
		{dir("o"), file("o/d", "file"), hide("late/", "new")},
	},
	"opaque root": {{file("a", "1"), dir("d"), file("d/x", "x")}, {hide("", ""), file("b", "2")}},
	"device 0:0": {
		{file("a", "1"), dir("d"), file("d/x", "x"), file("b", "2")},
		{device(tar.TypeChar, "a", 0, 0), device(tar.TypeChar, "d", 0, 0), device(tar.TypeChar, "new", 0, 0)},
		{dir("d"), file("d/y", "y"), device(tar.TypeChar, "b", 0, 0), file("b", "after all")},
	},
	"parents nobody lists": {
		{file("a/b/c", "1"), dir("k").mode(0o701).owner(3, 4).xattr("user.k", "v"), dir("k/l").mode(0o2755), file("k/l/x", "x"), file("f", "x"), symlink("s", "k")},
		{file("a/b/d", "2"), file("k/l/m/n", "3"), file("f/g", "4"), file("s/t", "5"), hide("w/", "x"), hide("v/", "")},
		{dir("a").mode(0o700), file("late/x", "x"), dir("late").mode(0o711), file("z/y/x", "x"), file("z/w", "w")},
	},
	"symbolic links in paths": {
		{dir("real"), symlink("rel", "real"), symlink("abs", "/real"), symlink("up", "../../../real"), symlink("out/in", "../rel"), symlink("nowhere", "not/yet")},
		{dir("real2"), symlink("s", "real2"), file("s/x", "x"), symlink("t", "/s"), file("t/y", "y"), symlink("n", "new/dir"), file("n/z", "z"),
			symlink("above", "../../../../etc"), file("above/passwd", "p"), symlink("c1", "c2/.."), symlink("c2", "real2/deep"), file("c1/q", "q"), hide("s/", "gone"),
			dir("q"), symlink("q/t", "../real2/deep"), symlink("q/s", "t/.."), file("q/s/x", "x")},
		{file("rel/x", "over the link of another layer")},
	},
	"twice": {
		{file("a", "1"), file("a", "2"), dir("d").mode(0o700), file("d/x", "x"), dir("d").mode(0o711), file("b", "f"), dir("b"), file("b/x", "x"),
			dir("c"), file("c/x", "x"), file("c", "f"), symlink("l", "a"), file("l", "no link")},
	},
	asIs + "directory that becomes a link": {{file("a", "x"), dir("t").time(time.Unix(99, 1)), symlink("t", "a")}},
	asIs + "link to what is replaced": {
		{dir("d"), file("d/x", "x").xattr("user.x", "1"), link("a", "d/x").mode(0o711).xattr("user.a", "1"), file("d", "f"), link("b", "a"), file("a", "y")},
	},
	"root": {
		{dir(".").mode(0o700).owner(1, 2).xattr("user.root", "1"), file("./a", "x"), file("/b", "x"), file("c//d/./e", "x")},
		{file("f", "x")},
	},
	"many files": {many(800), {hide("many/", "f0017"), file("many/f0018", "other"), file("many/f9", "new")}},
}

func many(n int) (all []member) {
	for i := range n {
		all = append(all, file(fmt.Sprintf("many/f%04d", i), strings.Repeat("b", 21*i)))
	}
	return all
}

func look(t testing.TB, dir string) *view.View {
	t.Helper()
	v, err := view.Of(dir)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestHandMade(t *testing.T) {
	needRoot(t)
	for name, stack := range stacks {
		t.Run(name, func(t *testing.T) {
			a, b := &theirs{}, newOurs(t)
			base, start := t.TempDir(), time.Now()
			for _, members := range stack {
				l := layer(t, members...)
				if err := a.unpack(t.Context(), base, bytes.NewReader(l)); err != nil {
					t.Fatalf("containerd: %v", err)
				}
				add := b.addLayer
				if strings.HasPrefix(name, asIs) {
					add = b.addTar
				}
				if err := add(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
			compare(t, a, b, start)
		})
	}
}

// compare mounts both, ours sealed and unsealed, writable like a container and
// read-only, where the root is the image's own, and compares.
func compare(t *testing.T, a *theirs, b *ours, start time.Time) {
	t.Helper()
	for _, writable := range []bool{true, false} {
		if !writable && len(a.dirs) < 2 {
			break // overlayfs does not mount a single directory read-only
		}
		dirA, unmountA := a.mount(t, writable)
		want := look(t, dirA)
		for _, sealed := range []bool{false, true} {
			dirB, unmountB := b.mount(t, sealed, writable)
			for _, d := range view.Differences(want, look(t, dirB), start, writable) {
				t.Errorf("sealed %v, writable %v: %s", sealed, writable, d)
			}
			unmountB()
		}
		unmountA()
	}
}

// Links to lower layers cannot be unpacked into an upper directory; so here
// containerd unpacks through the overlay, and the kernel copies up.
func TestLinksToLowerLayers(t *testing.T) {
	needRoot(t)
	stack := [][]member{
		{
			file("a", "linked").mode(0o700).xattr("user.a", "1"), link("b", "a").mode(0o700), link("c", "a").mode(0o700), dir("d"), dir("d/e").mode(0o711), file("d/e/x", "x"),
			symlink("s", "a"), fifo("p"), file("cap", "x").xattr("security.capability", capability), dir("v"), symlink("via", "v"), file("v/w", "w"),
		},
		{link("a2", "a").owner(77, 78), link("d/e/x2", "d/e/x"), link("s2", "s"), link("p2", "p"), link("cap2", "cap"), link("w2", "via/w")},
		{link("a3", "a2"), link("a4", "a3"), hide("", "a"), link("b2", "b")},
	}
	a, b := &theirs{}, newOurs(t)
	base, start := t.TempDir(), time.Now()
	for _, members := range stack {
		l := layer(t, members...)
		if err := a.unpackThrough(t, base, l); err != nil {
			t.Fatalf("containerd: %v", err)
		}
		if err := b.addLayer(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	compare(t, a, b, start)
}

// What containerd refuses, we refuse.
func TestRefusedByBoth(t *testing.T) {
	needRoot(t)
	for name, list := range map[string]string{
		"hard link to nothing":             "a=b",
		"hard link to itself":              "a a=a",
		"hard link to a directory":         "d/ a=d",
		"hard link to what was replaced":   "d/ d/x d=d/x",
		"below a file":                     "a a/b",
		"below a whiteout":                 ".wh.a a/b",
		"symbolic links in a circle":       "a>b b>a a/x",
		"whiteout without a name":          ".wh.",
		"whiteout of the directory":        "d/.wh..",
		"whiteout of the parent directory": "d/.wh...",
	} {
		t.Run(name, func(t *testing.T) {
			l := layer(t, words(list)...)
			if err := new(theirs).unpack(t.Context(), t.TempDir(), bytes.NewReader(l)); err == nil {
				t.Error("containerd unpacks it")
			}
			if err := newOurs(t).addTar(t.Context(), l); !isBadLayer(err) {
				t.Errorf("%v, want ErrBadLayer", err)
			}
		})
	}
}

// What only we take, and what it then is.
func TestOurOwn(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct{ lower, upper, same string }{
		"whiteout after the layer's own":  {"x/ x/old", "x/ x/new .wh.x", "x/ x/.wh..wh..opq x/new"},
		"whiteout twice":                  {"x/ x/old", ".wh.x .wh.x", ".wh.x"},
		"directory replaced with its own": {"", "a/ a/b/ a", "a"},
		"what AUFS left":                  {"a", ".wh..wh.aufs .wh..wh.plnk/ .wh..wh.plnk/1.2 .wh..wh.orph/ b", "b"},
		"parents below a file":            {"a", "a/b/c", "a/ a/b/ a/b/c"},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := &theirs{}, newOurs(t)
			base := t.TempDir()
			for i, list := range []string{c.lower, c.upper} {
				l := layer(t, words(list)...)
				if err := b.addLayer(t.Context(), l); err != nil {
					t.Fatal(err)
				}
				if i == 1 {
					list = c.same
					l = layer(t, words(list)...)
				}
				if err := a.unpack(t.Context(), base, bytes.NewReader(l)); err != nil {
					t.Fatal(err)
				}
			}
			dirA, unmountA := a.mount(t, true)
			defer unmountA()
			dirB, unmountB := b.mount(t, false, true)
			defer unmountB()
			if got, want := strings.Join(look(t, dirB).Names, " "), strings.Join(look(t, dirA).Names, " "); got != want {
				t.Errorf("%q, want %q", got, want)
			}
		})
	}
}

// More than 4 GiB need no archive of that size: only the object is there.
func TestHugeFile(t *testing.T) {
	needRoot(t)
	const size = 5<<30 + 3
	b := newOurs(t)
	sum := layers.SumOf([]byte("huge"))
	var err error
	if b.tree, err = fs.Merge(nil, &layers.Index{Entries: []layers.Entry{{Name: "huge", Kind: layers.Reg, Mode: 0o644, Size: size, Object: sum}}}); err != nil {
		t.Fatal(err)
	}
	object := filepath.Join(b.small, sum.Path())
	if err := errors.Join(os.Mkdir(filepath.Dir(object), 0o755), os.WriteFile(object, nil, 0o600), os.Truncate(object, size-3)); err != nil {
		t.Fatal(err)
	}
	appendTo, err := os.OpenFile(object, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := appendTo.WriteString("end"); err != nil || appendTo.Close() != nil {
		t.Fatal(err)
	}
	dir, unmount := b.mount(t, false, true)
	defer unmount()
	f, err := os.Open(dir + "/huge")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 8)
	n, err := f.ReadAt(p, size-3)
	if fi, serr := f.Stat(); serr != nil || fi.Size() != size || string(p[:n]) != "end" {
		t.Errorf("size %v, last bytes %q (%v), want %d, \"end\"", fi, p[:n], err, size)
	}
}

func isBadLayer(err error) bool { return errors.Is(err, layers.ErrBadLayer) }

package plain

import (
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// objects are bytes by their sum.
type objects map[layers.Sum]string

func (o objects) read(sum layers.Sum, p []byte, off int64) (int, error) {
	s, ok := o[sum]
	if !ok {
		return 0, iofs.ErrNotExist
	}
	return strings.NewReader(s).ReadAt(p, off)
}

func (o objects) file(name, text string, e layers.Entry) layers.Entry {
	e.Name, e.Kind, e.Size = name, layers.Reg, int64(len(text))
	if text != "" {
		e.Object = layers.SumOf([]byte(text))
		o[e.Object] = text
	}
	return e
}

func merge(t *testing.T, list ...layers.Entry) *fs.Tree {
	t.Helper()
	tree, err := fs.Merge(nil, &layers.Index{Entries: list})
	if err != nil {
		t.Fatal(err)
	}
	return tree
}

func TestWrite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes files of others, and devices")
	}
	o := objects{}
	large := strings.Repeat("0123456789abcde\n", 200_000)
	caps := "\x01\x00\x00\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	tree := merge(t,
		layers.Entry{Name: "", Kind: layers.Dir, Mode: 0o755, Sec: 11},
		layers.Entry{Name: "dir", Kind: layers.Dir, Mode: 0o1777, UID: 5, GID: 6, Sec: 22, Nsec: 33},
		o.file("dir/large", large, layers.Entry{Mode: 0o640, UID: 7, GID: 8, Sec: 44, Nsec: 55}),
		o.file("dir/suid", "x", layers.Entry{Mode: 0o4755, UID: 9, Sec: 1, Xattrs: []layers.Xattr{{Name: "security.capability", Value: caps}}}),
		o.file("empty", "", layers.Entry{Mode: 0o600, Sec: -5}),
		layers.Entry{Name: "hard", Kind: layers.Hardlink, Link: "dir/large", Mode: 0o640, UID: 7, GID: 8, Sec: 44, Nsec: 55},
		layers.Entry{Name: "soft", Kind: layers.Symlink, Link: "/etc/passwd", UID: 3, Sec: 2},
		layers.Entry{Name: "null", Kind: layers.Char, Mode: 0o666, Major: 1, Minor: 3},
		layers.Entry{Name: "disk", Kind: layers.Block, Mode: 0o660, Major: 7, Minor: 9},
		layers.Entry{Name: "fifo", Kind: layers.Fifo, Mode: 0o622},
	)
	dir := filepath.Join(t.TempDir(), "out")
	if err := Write(dir, tree, o.read); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		".":         "40755 0:0 11.0 0:0",
		"dir":       "41777 5:6 22.33 0:0",
		"dir/large": "100640 7:8 44.55 0:0",
		"dir/suid":  "104755 9:0 1.0 0:0",
		"empty":     "100600 0:0 -5.0 0:0",
		"soft":      "120777 3:0 2.0 0:0",
		"null":      "20666 0:0 0.0 1:3",
		"disk":      "60660 0:0 0.0 7:9",
		"fifo":      "10622 0:0 0.0 0:0",
	} {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, name), &st)
		got := fmt.Sprintf("%o %d:%d %d.%d %d:%d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		if err != nil || got != want {
			t.Errorf("%s is %s, %v, want %s", name, got, err, want)
		}
	}
	a, aerr := os.Stat(filepath.Join(dir, "dir/large"))
	b, berr := os.Stat(filepath.Join(dir, "hard"))
	if err := errors.Join(aerr, berr); err != nil || !os.SameFile(a, b) {
		t.Errorf("two names of one file are two files: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "hard")); err != nil || string(got) != large {
		t.Errorf("%d bytes, %v, want %d", len(got), err, len(large))
	}
	if got, err := os.Readlink(filepath.Join(dir, "soft")); got != "/etc/passwd" {
		t.Errorf("the link leads to %q, %v", got, err)
	}
	buf := make([]byte, 100)
	if n, err := unix.Lgetxattr(filepath.Join(dir, "dir/suid"), "security.capability", buf); err != nil || string(buf[:n]) != caps {
		t.Errorf("capabilities are %q, %v", buf[:max(n, 0)], err)
	}
}

// TestWriteFails: what cannot be read whole is an error, and so is a directory that is there.
func TestWriteFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it sets owners")
	}
	o := objects{}
	file := o.file("f", "0123456789", layers.Entry{Mode: 0o644})
	tree := merge(t, file)
	for name, read := range map[string]Read{
		"missing":            objects{}.read,
		"short":              objects{file.Object: "01234"}.read,
		"endless zero bytes": func(layers.Sum, []byte, int64) (int, error) { return 0, nil },
		"an error":           func(layers.Sum, []byte, int64) (int, error) { return 0, io.ErrClosedPipe },
	} {
		dir := filepath.Join(t.TempDir(), "out")
		if err := Write(dir, tree, read); err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := Write(dir, tree, o.read); !errors.Is(err, iofs.ErrExist) {
			t.Errorf("%s: Write over what is there: %v", name, err)
		}
	}
}

// TestWriteStaysInside: what a link leads to is not written to.
func TestWriteStaysInside(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it sets owners")
	}
	o := objects{}
	top := t.TempDir()
	victim := filepath.Join(top, "victim")
	if err := os.Mkdir(victim, 0o755); err != nil {
		t.Fatal(err)
	}
	// Whatever package fs makes of a file below a link, it is below dir.
	tree := merge(t, layers.Entry{Name: "a", Kind: layers.Symlink, Link: victim, Mode: 0o777, UID: 7}, o.file("a/f", "text", layers.Entry{Mode: 0o644}))
	err := Write(filepath.Join(top, "out"), tree, o.read)
	list, lerr := os.ReadDir(victim)
	if lerr != nil || len(list) > 0 {
		t.Errorf("Write = %v, and wrote %v, %v", err, list, lerr)
	}
	var st unix.Stat_t
	if err := unix.Stat(victim, &st); err != nil || st.Uid != 0 || st.Mode&0o777 != 0o755 {
		t.Errorf("the link's target is %o, of %d, %v", st.Mode, st.Uid, err)
	}
	var names []string
	for name := range tree.Walk() {
		names = append(names, name)
	}
	if !slices.Contains(names, "a") {
		t.Errorf("names: %q", names)
	}
}

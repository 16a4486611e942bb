package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRecipes: every image's layers are there, and images share beginnings.
func TestRecipes(t *testing.T) {
	for _, r := range recipes {
		for _, l := range r.layers {
			if _, ok := layerRecipes[l]; !ok {
				t.Errorf("%s: no layer %s", r.name, l)
			}
		}
		if r.layers[0] != "base" || r.ready == "" {
			t.Errorf("%s: %v, ready %q", r.name, r.layers, r.ready)
		}
	}
	if list, err := choose([]string{"nginx"}); err != nil || len(list) != 1 || list[0].name != "nginx" {
		t.Errorf("choose(nginx) = %v, %v", list, err)
	}
	if _, err := choose([]string{"windows"}); err == nil {
		t.Error("choose(windows) is no error")
	}
}

func TestLayerDir(t *testing.T) {
	b := &builder{dir: "/x", suite: "bookworm"}
	one := b.layerDir([]string{"base", "net"})
	if one == b.layerDir([]string{"base", "scm", "net"}) || one == (&builder{dir: "/x", suite: "trixie"}).layerDir([]string{"base", "net"}) {
		t.Error("a layer over others has the same name")
	}
	if one != b.layerDir([]string{"base", "net"}) || !strings.HasPrefix(one, "/x/layers/net-") {
		t.Errorf("layerDir = %s", one)
	}
}

// TestWriteTar has overlayfs make an upper directory, and reads the layer of it.
func TestWriteTar(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount overlayfs")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"lower/dir", "upper", "work", "root"} {
		must(os.MkdirAll(at(d), 0o755))
	}
	must(os.WriteFile(at("lower/gone"), nil, 0o644))
	must(os.WriteFile(at("lower/dir/old"), nil, 0o644))
	// t.TempDir may itself be on an overlay, which takes no upper directory.
	if err := unix.Mount("overlay", at("root"), "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))); err != nil {
		t.Skipf("this file system takes no upper directory: %v", err)
	}
	defer unix.Unmount(at("root"), unix.MNT_DETACH)
	must(os.Remove(at("root/gone")))
	must(os.RemoveAll(at("root/dir")))
	must(os.Mkdir(at("root/dir"), 0o750))
	must(os.WriteFile(at("root/dir/new"), []byte("new"), 0o640))
	must(os.Link(at("root/dir/new"), at("root/dir/same")))
	must(os.Symlink("new", at("root/dir/link")))
	must(unix.Mkfifo(at("root/fifo"), 0o600))
	must(os.Lchown(at("root/dir/new"), 12, 34))
	must(unix.Setxattr(at("root/dir/new"), "user.colour", []byte{'r', 0, 'd'}, 0))
	must(unix.Unmount(at("root"), 0))

	var b bytes.Buffer
	must(writeTar(&b, at("upper")))
	var got []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		must(err)
		text, err := io.ReadAll(r)
		must(err)
		line := fmt.Sprintf("%c %s %o %d:%d %q %q", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, text)
		for k, v := range h.PAXRecords {
			if strings.HasPrefix(k, "SCHILY.xattr.") {
				line += fmt.Sprintf(" %s=%q", k, v)
			}
		}
		got = append(got, line)
	}
	want := []string{
		`5 dir/ 750 0:0 "" ""`,
		`0 dir/.wh..wh..opq 644 0:0 "" ""`,
		`2 dir/link 777 0:0 "new" ""`,
		`0 dir/new 640 12:34 "" "new" SCHILY.xattr.user.colour="r\x00d"`,
		`1 dir/same 640 12:34 "dir/new" ""`,
		`6 fifo 600 0:0 "" ""`,
		`0 .wh.gone 644 0:0 "" ""`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the layer has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

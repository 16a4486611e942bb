package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

func TestRowComparesWithinRounds(t *testing.T) {
	ms := func(list ...int) (s []spent) {
		for _, n := range list {
			s = append(s, spent{wall: time.Duration(n) * time.Millisecond, cpu: time.Duration(n) * time.Microsecond})
		}
		return s
	}
	r := newRow("walk", "ours", ms(1, 10, 300), ms(2, 20, 100))
	if r.Median != 10 || r.Ratio != 0.5 || r.Min != 1 || r.Max != 300 || r.CPURatio != 0.5 || r.N != 3 {
		t.Errorf("row = %+v", r)
	}
}

func TestBuildFromTOCs(t *testing.T) {
	dir := t.TempDir()
	var args []string
	for i := range 2 {
		path := filepath.Join(dir, string(rune('a'+i)))
		d, err := writeTOC(path, i, 50)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, path, d.String())
	}
	var out bytes.Buffer
	if err := build(t.Context(), filepath.Join(dir, "image"), args, &out); err != nil {
		t.Fatal(err)
	}
	var b builds
	if err := json.Unmarshal(out.Bytes(), &b); err != nil || b.Total <= 0 || b.PeakMB <= 0 {
		t.Errorf("build said %s, %v", out.Bytes(), err)
	}
	if st, err := os.Stat(filepath.Join(dir, "image")); err != nil || st.Size() < 4096 {
		t.Errorf("image: %v, %v", st, err)
	}
}

// The plain directory is the tree, and every operation gets through it.
func TestPlainTreeAndOps(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("giving files their owners needs root")
	}
	dir := t.TempDir()
	from := filepath.Join(dir, "from")
	if err := os.MkdirAll(filepath.Join(from, "d/e"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"d/small": "x", "d/e/empty": "", "top": "y"} {
		if err := os.WriteFile(filepath.Join(from, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("small", filepath.Join(from, "d/link")); err != nil {
		t.Fatal(err)
	}
	store, err := objects.Open(filepath.Join(dir, "store"), objects.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ix, err := fromDir(from, 1, store)
	if err != nil {
		t.Fatal(err)
	}
	tree, err := fs.Merge(nil, ix)
	if err != nil {
		t.Fatal(err)
	}
	info := listTree(from, tree)
	if info.Names != 8 || info.Regular != 4 || info.Small != 2 || info.Large != 1<<20 {
		t.Errorf("tree is %+v", info)
	}
	plain := filepath.Join(dir, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := writePlain(tree, plain, store); err != nil {
		t.Fatal(err)
	}
	if n := tree.Lookup("d/small"); n == nil || n.Kind != layers.Reg || n.Mode != 0o640 {
		t.Errorf("d/small is %+v", n)
	}
	fd, err := unix.Open(plain, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	s := &stand{info: info}
	for _, o := range ops {
		o.cold = false // a test does not drop the machine's caches
		if _, err := s.time(o, &system{"plain", fd}); err != nil {
			t.Errorf("%s: %v", o.name, err)
		}
	}
}

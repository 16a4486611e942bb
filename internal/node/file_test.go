package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func put1(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

func TestReplace(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "real", "config.toml"), filepath.Join(dir, "config.toml")
	put1(t, file, "old")
	if err := os.Symlink("real/config.toml", link); err != nil {
		t.Fatal(err)
	}
	tried := ""
	kept, err := Replace(link, []byte("new"), noon, func(tmp string) error {
		tried = read(t, tmp)
		if filepath.Dir(tmp) != filepath.Dir(file) || strings.HasSuffix(tmp, ".toml") {
			t.Errorf("it is tried as %s: imports would be others, or it would be one", tmp)
		}
		return nil
	})
	if err != nil || tried != "new" || read(t, file) != "new" {
		t.Fatalf("Replace: %v, tried %q, file %q", err, tried, read(t, file))
	}
	if read(t, kept) != "old" || filepath.Base(kept) != "config.toml.20261126T120000Z" {
		t.Errorf("kept %s: %q", kept, read(t, kept))
	}
	if fi, err := os.Lstat(link); err != nil || fi.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is gone: %v, %v", fi, err)
	}
	for _, f := range []string{file, kept} {
		if fi, err := os.Stat(f); err != nil || fi.Mode().Perm() != 0o640 {
			t.Errorf("%s: %v, %v; want mode 0640", f, fi.Mode(), err)
		}
	}
	second, err := Replace(file, []byte("newer"), noon, nil)
	if err != nil || second == kept || read(t, second) != "new" || read(t, kept) != "old" {
		t.Errorf("in the same second: kept %s, %v", second, err)
	}

	// What does not work out leaves nothing.
	before, _ := os.ReadDir(filepath.Dir(file))
	boom := errors.New("boom")
	if _, err := Replace(file, []byte("bad"), noon, func(string) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Replace with what containerd does not take: %v", err)
	}
	if _, err := Replace(file, []byte("bad"), noon, func(string) error {
		put1(t, file, "edited")
		return nil
	}); err == nil || !strings.Contains(err.Error(), "changed meanwhile") {
		t.Errorf("Replace of a file that changes: %v", err)
	}
	if read(t, file) != "edited" {
		t.Errorf("the file is %q", read(t, file))
	}
	after, _ := os.ReadDir(filepath.Dir(file))
	if len(after) != len(before) {
		t.Errorf("left: %v, before: %v", after, before)
	}

	fresh := filepath.Join(dir, "etc", "containerd", "config.toml")
	if kept, err := Replace(fresh, []byte("new"), noon, nil); err != nil || kept != "" || read(t, fresh) != "new" {
		t.Errorf("Replace of nothing: kept %q, %v", kept, err)
	}
}

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if text, imported, err := ReadConfig(file); err != nil || text != nil || imported != nil {
		t.Errorf("of no file: %q, %v, %v", text, imported, err)
	}
	put1(t, file, fmt.Sprintf("imports = ['conf.d/*.toml', %q, 'config.toml', '', 'none/*.toml']\n", filepath.Join(dir, "abs.toml")))
	put1(t, filepath.Join(dir, "conf.d/b.toml"), "")
	put1(t, filepath.Join(dir, "conf.d/a.toml"), "imports = ['sub/more.toml', '../config.toml']")
	put1(t, filepath.Join(dir, "conf.d/a.conf"), "no TOML")
	put1(t, filepath.Join(dir, "conf.d/sub/more.toml"), "")
	put1(t, filepath.Join(dir, "abs.toml"), "")
	_, imported, err := ReadConfig(file)
	var names []string
	for _, f := range imported {
		rel, _ := filepath.Rel(dir, f.Name)
		names = append(names, rel)
	}
	if want := []string{"conf.d/a.toml", "conf.d/b.toml", "abs.toml", "conf.d/sub/more.toml"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("imported %v, %v; want %v", names, err, want)
	}
	put1(t, filepath.Join(dir, "conf.d/sub/more.toml"), "\nx")
	if _, _, err := ReadConfig(file); err == nil || !strings.Contains(err.Error(), "more.toml: line 2") {
		t.Errorf("with a bad import: %v", err)
	}
	put1(t, file, "imports = ['gone.toml']")
	if _, _, err := ReadConfig(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with an import that does not exist: %v", err)
	}
	many := "imports = ["
	for i := range maxImports + 1 {
		name := fmt.Sprintf("m%d.toml", i)
		put1(t, filepath.Join(dir, name), "")
		many += "'" + name + "', "
	}
	put1(t, file, many+"]")
	if _, _, err := ReadConfig(file); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("with %d imports: %v", maxImports+1, err)
	}
}

// TestCheckNothing: on a machine without anything each thing is said once, and
// nothing waits.
func TestCheckNothing(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		run  func(args string) (string, error)
		want []string
	}{
		"no containerd": {
			func(string) (string, error) { return "", os.ErrNotExist },
			[]string{"FAIL snapd does not answer", "warn snapfs.service is not installed", "FAIL no containerd"},
		},
		"an old one, units disabled": {
			func(args string) (string, error) {
				if strings.HasPrefix(args, "systemctl") {
					return "disabled\n", errors.New("exit status 1")
				}
				return "containerd x 1.6.20", nil
			},
			[]string{"FAIL snapd does not answer", "warn snapfs.service is disabled", "FAIL containerd 1.6.20 is too old"},
		},
		"not running": {
			func(args string) (string, error) {
				switch args {
				case "systemctl is-enabled snapfs.service":
					return "enabled\n", nil
				case "containerd --version":
					return "containerd x 2.4.2", nil
				case "containerd --config /c config dump":
					return string(read(t, "testdata/default-2.4.2.toml")), nil
				}
				t.Errorf("runs %q", args)
				return "", nil
			},
			[]string{"FAIL snapd does not answer", "ok snapfs.service is enabled", "ok containerd 2.4.2", "FAIL containerd has no proxy plugin snapfs",
				"warn the transfer service does not", "ok CRI uses", "warn containerd has its own content store", "FAIL containerd does not answer at " + dir + "/none.sock"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := Node{Program: "containerd", Config: "/c", Address: dir + "/none.sock", Control: dir + "/snapd.sock", Units: []string{"snapfs.service"},
				Options: Options{Socket: dir + "/containerd.sock", Root: dir},
				Run: func(_ context.Context, name string, args ...string) ([]byte, error) {
					out, err := c.run(strings.Join(append([]string{name}, args...), " "))
					return []byte(out), err
				}}
			got := strings.Split(strings.TrimSpace(show(Check(t.Context(), n))), "\n")[1:] // of the kernel, which is this machine's
			for i, want := range c.want {
				if i >= len(got) || !strings.HasPrefix(got[i], want) {
					t.Errorf("got\n%s\nwant line %d to begin with %q", strings.Join(got, "\n"), i+1, want)
					break
				}
			}
			if len(got) != len(c.want) {
				t.Errorf("%d findings, want %d", len(got), len(c.want))
			}
		})
	}
}

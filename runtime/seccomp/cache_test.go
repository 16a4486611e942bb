package seccomp

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestCached: whatever is wrong with a file, what comes out is what Compile makes.
func TestCached(t *testing.T) {
	s := docker(t, amd64)
	plain, err := Compile(s)
	if err != nil {
		t.Skip("no filter for this machine:", err)
	}
	same := func(t *testing.T, dir string) {
		t.Helper()
		f, err := Cached(dir, s)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(f.Insns, plain.Insns) || f.Flags != plain.Flags {
			t.Error("Cached gave another filter than Compile")
		}
	}
	name := func(t *testing.T, dir string) string {
		t.Helper()
		list, err := filepath.Glob(filepath.Join(dir, "*.bpf"))
		if err != nil || len(list) != 1 {
			t.Fatalf("cache has %v, %v, want one file", list, err)
		}
		return list[0]
	}
	for what, spoil := range map[string]func(dir, name string) error{
		"nothing":    func(_, _ string) error { return nil },
		"a bit":      func(_, n string) error { return edit(n, func(b []byte) []byte { b[100] ^= 1; return b }) },
		"the end":    func(_, n string) error { return edit(n, func(b []byte) []byte { return b[:len(b)-8] }) },
		"everything": func(_, n string) error { return edit(n, func([]byte) []byte { return nil }) },
		"too much": func(_, n string) error {
			return edit(n, func(b []byte) []byte { return append(b, make([]byte, 1<<20)...) })
		},
		"mode":           func(_, n string) error { return os.Chmod(n, 0o644) },
		"dir's mode":     func(d, _ string) error { return os.Chmod(d, 0o777) },
		"a link":         func(d, n string) error { return errorsJoin(os.Rename(n, d+"/x"), os.Symlink("x", n)) },
		"a directory":    func(_, n string) error { return errorsJoin(os.Remove(n), os.Mkdir(n, 0o700)) },
		"cannot write":   func(d, _ string) error { return errorsJoin(os.RemoveAll(d), os.WriteFile(d, nil, 0o600)) },
		"was never ours": func(_, n string) error { return os.Remove(n) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "cache")
			same(t, dir)
			if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
				t.Errorf("directory %v, %v, want mode 0700", st.Mode(), err)
			}
			if err := spoil(dir, name(t, dir)); err != nil {
				t.Fatal(err)
			}
			same(t, dir)
			same(t, dir)
		})
	}
}

func errorsJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func edit(name string, f func([]byte) []byte) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, f(b), 0o600)
}

func TestKey(t *testing.T) {
	s := docker(t, amd64)
	before := key(s)
	s.Syscalls[0].Names = append(s.Syscalls[0].Names, "x")
	if slices.Equal(key(s), before) {
		t.Error("two profiles have one key")
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(&Filter{Insns: nil}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if flt, err := decode(b); err == nil && len(flt.Insns) == 0 {
			t.Error("decode took a filter of no instructions")
		}
	})
}

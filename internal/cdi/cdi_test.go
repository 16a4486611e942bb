package cdi

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// folder makes a directory of descriptions.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const all = `
cdiVersion: "0.7.0"
kind: vendor.com/thing
containerEdits:
  env: ["COMMON=1"]
devices:
- name: one
  containerEdits:
    env: ["ONE=1", "PATH=/vendor"]
    deviceNodes:
    - path: /dev/thing1
      hostPath: /dev/full
      permissions: rw
    mounts:
    - hostPath: /usr/lib
      containerPath: /usr/lib/thing
      options: [ro, nosuid, bind]
    hooks:
    - hookName: createContainer
      path: /usr/bin/hook
      args: [hook, link]
    - hookName: poststop
      path: /usr/bin/hook
    additionalGids: [44, 0]
- name: two
  containerEdits:
    env: ["TWO=1"]
`

func spec() *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Env: []string{"PATH=/bin"}}, Linux: &specs.Linux{}, Mounts: []specs.Mount{{Destination: "/proc", Type: "proc"}}}
}

func TestInject(t *testing.T) {
	d := Dirs{folder(t, map[string]string{"v.yaml": all, "README": "no description"})}
	s := spec()
	if w, err := d.Inject(s, []string{"vendor.com/thing=one", "vendor.com/thing=two", "vendor.com/thing=one"}); err != nil || len(w) > 0 {
		t.Fatal(w, err)
	}
	if want := []string{"PATH=/vendor", "COMMON=1", "ONE=1", "TWO=1"}; !slices.Equal(s.Process.Env, want) {
		t.Errorf("variables %q, want %q", s.Process.Env, want)
	}
	if n := s.Linux.Devices; len(n) != 1 || n[0].Path != "/dev/thing1" || n[0].Type != "c" || n[0].Major != 1 || n[0].Minor != 7 {
		t.Errorf("nodes %+v", n)
	}
	if r := s.Linux.Resources.Devices; len(r) != 1 || !r[0].Allow || r[0].Access != "rw" || *r[0].Minor != 7 {
		t.Errorf("rules %+v", r)
	}
	if m := s.Mounts; len(m) != 2 || m[1].Destination != "/usr/lib/thing" || m[1].Source != "/usr/lib" || !slices.Contains(m[1].Options, "ro") {
		t.Errorf("mounts %+v", m)
	}
	if h := s.Hooks; h == nil || len(h.CreateContainer) != 1 || len(h.Poststop) != 1 || h.CreateContainer[0].Args[1] != "link" {
		t.Errorf("hooks %+v", s.Hooks)
	}
	if g := s.Process.User.AdditionalGids; !slices.Equal(g, []uint32{44}) {
		t.Errorf("groups %v", g)
	}
}

func device(name, edits string) string {
	return fmt.Sprintf(`{"cdiVersion":"1.1.0","kind":"vendor.com/thing","devices":[{"name":%q,"containerEdits":{%s}}]}`, name, edits)
}

func TestWhichFile(t *testing.T) {
	low := folder(t, map[string]string{"a.json": device("x", `"env":["A=low"]`), "b.json": device("y", `"env":["B=low"]`), "c.json": device("y", `"env":["B=too"]`)})
	high := folder(t, map[string]string{"a.json": device("x", `"env":["A=high"]`)})
	d := Dirs{low, high, "/no/such/directory"}
	s := spec()
	if _, err := d.Inject(s, []string{"vendor.com/thing=x"}); err != nil || !slices.Contains(s.Process.Env, "A=high") || slices.Contains(s.Process.Env, "A=low") {
		t.Errorf("%q, %v; want that of the later directory", s.Process.Env, err)
	}
	if _, err := d.Inject(spec(), []string{"vendor.com/thing=y"}); err == nil || !strings.Contains(err.Error(), "b.json") || !strings.Contains(err.Error(), "c.json") {
		t.Errorf("a device of two files: %v, want both named", err)
	}
}

func TestUnknown(t *testing.T) {
	dir := folder(t, map[string]string{"good.json": device("x", `"env":["A=1"]`), "bad.yaml": "kind: [", "odd.json": `{"cdiVersion":"0.6.0","kind":"v.com/c","other":1,"devices":[]}`})
	d := Dirs{dir, "/no/such"}
	_, err := d.Inject(spec(), []string{"vendor.com/thing=z"})
	if _, ok := errors.AsType[*UnknownError](err); !ok {
		t.Fatalf("%v, want an UnknownError", err)
	}
	for _, want := range []string{dir, "/no/such", "vendor.com/thing=x", "bad.yaml", "odd.json"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v: without %q", err, want)
		}
	}
	// Bad files do not keep others from being used, but are not passed over in silence.
	w, err := d.Inject(spec(), []string{"vendor.com/thing=x"})
	if err != nil || len(w) != 2 || !strings.Contains(w[0], "bad.yaml") || !strings.Contains(w[1], "odd.json") {
		t.Errorf("%q, %v; want warnings of two files", w, err)
	}
	if _, err := (Dirs{}).Inject(spec(), []string{"vendor.com/thing=x"}); err == nil || !strings.Contains(err.Error(), "no directories") {
		t.Errorf("without directories: %v", err)
	}
}

func TestRefused(t *testing.T) {
	for edits, want := range map[string]string{
		`"intelRdt":{"closID":"x"}`:                           "intelRdt is not supported",
		`"netDevices":[{"hostInterfaceName":"a","name":"b"}]`: "netDevices are not supported",
		`"hooks":[{"hookName":"createContainer","path":"x"}]`: "absolute path",
		`"mounts":[{"hostPath":"/","containerPath":"/x/.."}]`: "other than /",
		`"mounts":[{"hostPath":"/","containerPath":"x"}]`:     "absolute path",
		`"deviceNodes":[{"path":"x","hostPath":"/dev/null"}]`: "absolute path",
		`"deviceNodes":[{"path":"/dev/nonexistent"}]`:         "/dev/nonexistent",
		`"env":["x"]`:                            "not described", // the file as a whole is not valid
		`"hooks":[{"hookName":"x","path":"/x"}]`: "not described",
		`"unknown":1`:                            "not described",
	} {
		dir := folder(t, map[string]string{"f.json": device("x", edits)})
		_, err := Dirs{dir}.Inject(spec(), []string{"vendor.com/thing=x"})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), filepath.Join(dir, "f.json")) {
			t.Errorf("%s: %v, want an error with %q that names the file", edits, err, want)
		}
	}
	for _, name := range []string{"", "x", "vendor.com/thing", "vendor.com=x", "/dev/x=y", "v/c=\n", "v/c=" + strings.Repeat("x", 1000)} {
		if err := CheckName(name); err == nil {
			t.Errorf("%.40q is taken for the name of a device", name)
		}
	}
}

// Only what root alone can have written is believed, and reading it ends.
func TestUntrustedFiles(t *testing.T) {
	dir := folder(t, map[string]string{"open.json": device("open", `"env":["A=1"]`), "big.json": device("big", `"env":["A=1"]`), "mine.json": device("mine", `"env":["A=1"]`)})
	path := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Chmod(path("open.json"), 0o666), os.Truncate(path("big.json"), maxFile+1), unix.Mkfifo(path("fifo.json"), 0o600), os.Symlink("/dev/zero", path("zero.yaml"))); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		if err := os.Lchown(path("mine.json"), 1234, 1234); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Dirs{dir}.Inject(spec(), []string{"vendor.com/thing=open"})
	for _, want := range []string{"open.json: it can be written by others", "big.json: larger", "fifo.json: it is no regular file", "zero.yaml: it is no regular file"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: without %q", err, want)
		}
	}
	if os.Geteuid() == 0 && !strings.Contains(err.Error(), "mine.json: it can be written by others") {
		t.Errorf("another user's file is believed: %v", err)
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := (Dirs{dir}).Inject(spec(), []string{"vendor.com/thing=x"}); err == nil || !strings.Contains(err.Error(), dir+": it can be written by others") {
		t.Errorf("a directory that all can write: %v", err)
	}
}

func FuzzDescription(f *testing.F) {
	f.Add([]byte(all))
	f.Add([]byte(device("x", `"env":["A=1"]`)))
	f.Add([]byte("a: &a [*a]\n"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, fmt.Sprintf("%d.yaml", os.Getpid()))
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		s := spec()
		if _, err := (Dirs{dir}).Inject(s, []string{"vendor.com/thing=one"}); err != nil {
			return
		}
		for _, m := range s.Mounts {
			if !filepath.IsAbs(m.Destination) {
				t.Errorf("mount at %q", m.Destination)
			}
		}
		for _, kv := range s.Process.Env {
			if strings.IndexByte(kv, '=') <= 0 {
				t.Errorf("variable %q", kv)
			}
		}
	})
}

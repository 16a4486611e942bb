package vm

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCPIO has busybox unpack an archive.
func TestCPIO(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "host")
	if err := os.WriteFile(host, bytes.Repeat([]byte("0123456789"), 1234), 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := HostFile("a/b/from", host, 0o750)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	if err := writeCPIO(&archive, []File{
		from,
		{Name: "a/b/text", Mode: 0o644, Data: []byte("odd")},
		{Name: "a/link", Mode: fs.ModeSymlink | 0o777, Data: []byte("b/text")},
		{Name: "a", Mode: fs.ModeDir | 0o755}, // is there already
		{Name: "own", Mode: fs.ModeDir | 0o711},
		{Name: "empty", Mode: 0o600},
	}); err != nil {
		t.Fatal(err)
	}
	if archive.Len()%4 != 0 {
		t.Errorf("%d bytes, want a multiple of 4", archive.Len())
	}
	box, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox, to unpack the archive")
	}
	to := filepath.Join(dir, "to")
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(box, "cpio", "-idm")
	cmd.Dir, cmd.Stdin = to, &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	for name, want := range map[string]string{"a/b/from": strings.Repeat("0123456789", 1234), "a/b/text": "odd", "a/link": "odd", "empty": ""} {
		if got, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(got) != want {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(want))
		}
	}
	for name, want := range map[string]fs.FileMode{"a/b/from": 0o750, "a/b": fs.ModeDir | 0o755, "own": fs.ModeDir | 0o711, "a/link": fs.ModeSymlink | 0o777} {
		if fi, err := os.Lstat(filepath.Join(to, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, want %v", name, fi, want)
		}
	}
}

func TestCPIORefuses(t *testing.T) {
	short, err := HostFile("x", "/dev/null", 0o644)
	if err != nil {
		t.Fatal(err)
	}
	short.size = 7
	for name, f := range map[string]File{
		"absolute": {Name: "/x"}, "above": {Name: "../x"}, "root": {Name: "."}, "empty": {}, "socket": {Name: "x", Mode: fs.ModeSocket}, "short": short,
	} {
		if err := writeCPIO(new(bytes.Buffer), []File{f}); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestParseInfo(t *testing.T) {
	depends, before := parseInfo("license=GPL\x00depends=a,b_c\x00softdep=pre: d e post: f\x00depends=\x00softdep=post: g\x00name=x")
	if !slices.Equal(depends, []string{"a", "b_c"}) || !slices.Equal(before, []string{"d", "e"}) {
		t.Errorf("depends %q, before %q", depends, before)
	}
	for file, want := range map[string]string{"kernel/fs/a-b.ko": "a_b", "x.ko.xz": "x", "x.ko.zst": "", "modules.dep": ""} {
		if got, ok := moduleName(file); ok != (want != "") || ok && got != want {
			t.Errorf("moduleName(%q) = %q, %v, want %q", file, got, ok, want)
		}
	}
}

const session = "boot noise\n" +
	"\n\x1e{\"begin\":\"one\",\"status\":0}\nhello\nworld" +
	"\n\x1e{\"end\":\"one\",\"status\":3,\"ms\":12}\n" +
	"\n\x1e{\"begin\":\"two\",\"status\":0}\n\x1enot a mark\n"

func TestParse(t *testing.T) {
	list, over, trouble := parse([]byte(session))
	if len(list) != 2 || over || trouble != "" {
		t.Fatalf("parse = %+v, %v, %q", list, over, trouble)
	}
	if r := list[0]; r.Job != "one" || string(r.Output) != "hello\nworld" || !r.Ended || r.Status != 3 || r.Ms != 12 {
		t.Errorf("the first is %+v", r)
	}
	if r := list[1]; r.Job != "two" || r.Ended {
		t.Errorf("the second is %+v", r)
	}
	if _, over, _ = parse([]byte(session + Mark + "{\"over\":true}\n")); !over {
		t.Error("it is not over")
	}
	if _, _, trouble = parse([]byte(Mark + `{"error":"no root"}`)); trouble != "no root" {
		t.Errorf("trouble is %q", trouble)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(session))
	f.Add([]byte(Mark + "{\"end\":\"one\"}" + Mark + "{}" + Mark + "{\"begin\":\"\"}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, _, _ := parse(b)
		n := 0
		for _, r := range list {
			n += len(r.Output)
		}
		if n > len(b) {
			t.Errorf("%d bytes of output in %d", n, len(b))
		}
	})
}

package mounts

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// dirs makes directories below a new folder with a name that option strings could not carry.
func dirs(t testing.TB, names ...string) []string {
	t.Helper()
	base := filepath.Join(t.TempDir(), `a:b,c\d "e" `+strings.Repeat("x", 230), strings.Repeat("y", 200))
	var all []string
	for _, name := range names {
		dir := filepath.Join(base, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all = append(all, dir)
	}
	return all
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// link makes path a file whose bytes are the object at redirect.
func link(t testing.TB, path, redirect string, size int64) {
	t.Helper()
	write(t, path, "")
	if err := errors.Join(os.Truncate(path, size),
		unix.Setxattr(path, "trusted.overlay.metacopy", nil, 0),
		unix.Setxattr(path, "trusted.overlay.redirect", []byte(redirect), 0)); err != nil {
		t.Fatal(err)
	}
}

func attach(t testing.TB, r Rootfs) string {
	t.Helper()
	m, err := Overlay(r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	target := dirs(t, "target")[0]
	if err := Attach(m, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Clear(target); err != nil {
			t.Error(err)
		}
	})
	return target
}

func TestOverlay(t *testing.T) {
	needRoot(t)
	d := dirs(t, "top", "bottom", "data1", "data2", "upper", "work")
	write(t, filepath.Join(d[0], "both"), "top")
	write(t, filepath.Join(d[1], "both"), "bottom")
	link(t, filepath.Join(d[1], "first"), "/ab/1", 3)
	link(t, filepath.Join(d[1], "second"), "/ab/2", 3)
	link(t, filepath.Join(d[1], "nowhere"), "/ab/3", 3)
	write(t, filepath.Join(d[2], "ab/1"), "one")
	write(t, filepath.Join(d[3], "ab/1"), "not")
	write(t, filepath.Join(d[3], "ab/2"), "two")
	target := attach(t, Rootfs{Lower: d[:2], Data: d[2:4], Upper: d[4], Work: d[5]})
	for name, want := range map[string]string{"both": "top", "first": "one", "second": "two"} {
		if got, err := os.ReadFile(filepath.Join(target, name)); string(got) != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
	if _, err := os.ReadFile(filepath.Join(target, "nowhere")); err == nil {
		t.Error("a file without bytes was read")
	}
	if _, err := os.Stat(filepath.Join(target, "ab")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("data layers show their names: %v", err)
	}
	// chmod copies the whole file up, never its metadata alone.
	if err := os.Chmod(filepath.Join(target, "first"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(d[4], "first")); string(got) != "one" || err != nil {
		t.Errorf("upper directory after chmod: %q, %v", got, err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil || st.Type != unix.OVERLAYFS_SUPER_MAGIC {
		t.Errorf("statfs: %#x, %v", st.Type, err)
	}
	all, err := List(target)
	if err != nil || len(all) != 1 || all[0].Type != "overlay" {
		t.Errorf("List = %v, %v", all, err)
	}
}

func TestOverlayReadOnly(t *testing.T) {
	needRoot(t)
	d := dirs(t, "lower", "upper", "work", "data")
	write(t, filepath.Join(d[0], "f"), "x")
	write(t, filepath.Join(d[1], "g"), "y")
	for name, r := range map[string]Rootfs{
		"without upper": {Lower: d[:1], Data: d[3:]},
		"with upper":    {Lower: d[:1], Upper: d[1], Work: d[2], ReadOnly: true},
	} {
		t.Run(name, func(t *testing.T) {
			target := attach(t, r)
			if got, err := os.ReadFile(filepath.Join(target, "f")); string(got) != "x" || err != nil {
				t.Errorf("read: %q, %v", got, err)
			}
			if err := os.WriteFile(filepath.Join(target, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write: %v, want EROFS", err)
			}
			if _, err := os.Stat(filepath.Join(target, "g")); (err == nil) != r.ReadOnly {
				t.Errorf("the upper directory's file: %v", err)
			}
		})
	}
}

func TestOverlayVolatile(t *testing.T) {
	needRoot(t)
	d := dirs(t, "lower", "upper", "work")
	r := Rootfs{Lower: d[:1], Upper: d[1], Work: d[2], Volatile: true}
	target := attach(t, r)
	if _, err := os.Stat(filepath.Join(d[2], "work/incompat/volatile")); err != nil {
		t.Errorf("not mounted volatile: %v", err)
	}
	if err := Unmount(target, false); err != nil {
		t.Fatal(err)
	}
	if m, err := Overlay(r); err == nil {
		m.Close()
		t.Error("a volatile upper directory was mounted again")
	}
}

func TestOverlayDevicesWork(t *testing.T) {
	needRoot(t)
	d := dirs(t, "lower", "upper", "work")
	if err := unix.Mknod(filepath.Join(d[0], "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Skipf("cannot make device nodes: %v", err)
	}
	target := attach(t, Rootfs{Lower: d[:1], Upper: d[1], Work: d[2]})
	if err := os.WriteFile(filepath.Join(target, "null"), []byte("x"), 0); err != nil {
		t.Errorf("write to a device: %v", err)
	}
}

func TestOverlayErrors(t *testing.T) {
	needRoot(t)
	d := dirs(t, "lower", "upper")
	for name, tt := range map[string]struct {
		r    Rootfs
		want error
		text string
	}{
		"nothing":        {Rootfs{}, unix.EINVAL, "0 lower"},
		"upper alone":    {Rootfs{Lower: d[:1], Upper: d[1]}, unix.EINVAL, "upper"},
		"a single layer": {Rootfs{Lower: d[:1]}, unix.EINVAL, "1 lower"},
		"no such layer":  {Rootfs{Lower: []string{d[0], "/no/such"}}, unix.ENOENT, "/no/such"},
		"no such data":   {Rootfs{Lower: d[:1], Data: []string{"/no/data"}}, unix.ENOENT, "/no/data"},
		"work elsewhere": {Rootfs{Lower: d[:1], Upper: d[1], Work: "/proc"}, unix.EINVAL, "overlay"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Overlay(tt.r)
			if err == nil {
				m.Close()
			}
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("Overlay: %v, want %v and %q", err, tt.want, tt.text)
			}
		})
	}
}

func TestErofs(t *testing.T) {
	needRoot(t)
	d := dirs(t, "images", "target")
	file, target := filepath.Join(d[0], "i.erofs"), d[1]
	if err := os.WriteFile(file, emptyErofs(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := MountErofs(file, target); err != nil {
		t.Fatal(err)
	}
	defer Clear(target)
	if mounted, err := IsMounted(target); !mounted || err != nil {
		t.Errorf("IsMounted = %v, %v", mounted, err)
	}
	if entries, err := os.ReadDir(target); len(entries) != 0 || err != nil {
		t.Errorf("ReadDir = %v, %v", entries, err)
	}
	f, err := os.Open(target)
	if err != nil {
		t.Fatal(err)
	}
	if err := Unmount(target, false); !errors.Is(err, unix.EBUSY) {
		t.Errorf("Unmount of what is in use: %v, want EBUSY", err)
	}
	if err := Unmount(target, true); err != nil {
		t.Errorf("Unmount with detach: %v", err)
	}
	f.Close()
	for name, bad := range map[string]string{"none": filepath.Join(d[0], "none"), "not an image": "/etc/hostname"} {
		if err := MountErofs(bad, target); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("MountErofs of %s: %v", name, err)
		}
	}
	if mounted, err := IsMounted(target); mounted || err != nil {
		t.Errorf("IsMounted = %v, %v", mounted, err)
	}
}

func TestUnmountOfNothing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none")} {
		if err := errors.Join(Unmount(path, false), Clear(path)); err != nil {
			t.Errorf("Unmount(%s): %v", path, err)
		}
	}
}

func TestAttachRefusesSymlinks(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.Symlink("/", filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	m, err := detached("tmpfs", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := Attach(m, filepath.Join(dir, "l")); err == nil {
		t.Error("attached through a symbolic link")
	}
}

const sample = `22 27 0:21 / /proc rw,relatime - proc proc rw
40 27 0:40 / /run/snapfs/lazy ro,nosuid shared:1 master:2 - fuse.snapfs snapfs ro,user_id=0
41 27 0:41 / /run/snapfs/images/a\040b\134\043 ro - erofs /var/x\040y.erofs ro
42 27 0:42 / /run/snapfsother ro - erofs x ro
43 27 0:43 / /run/snapfs/none rw -  ` + ` rw
`

func TestParse(t *testing.T) {
	got, err := parse(strings.NewReader(sample), "/run/snapfs")
	if err != nil || len(got) != 3 {
		t.Fatalf("parse = %v, %v", got, err)
	}
	if want := (Mount{40, "0:40", "/run/snapfs/lazy", "fuse.snapfs", "snapfs"}); got[0] != want {
		t.Errorf("first: %+v, want %+v", got[0], want)
	}
	if want := (Mount{41, "0:41", `/run/snapfs/images/a b\#`, "erofs", "/var/x y.erofs"}); got[1] != want {
		t.Errorf("second: %+v, want %+v", got[1], want)
	}
	if all, err := parse(strings.NewReader(sample), "/"); len(all) != 5 || err != nil {
		t.Errorf("all: %v, %v", all, err)
	}
	for _, bad := range []string{"x\n", "1 2 0:1 / /a rw\n", "x 2 0:1 / /a rw - a b c\n"} {
		if _, err := parse(strings.NewReader(bad), "/"); err == nil {
			t.Errorf("parse(%q): no error", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample)
	f.Add("1 2 0:1 / /a\\04 rw - a b c\n")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parse(strings.NewReader(s), "/")
		if err != nil && got != nil {
			t.Errorf("parse: %v with %v", got, err)
		}
	})
}

// What a container costs before its first process.
func BenchmarkOverlay(b *testing.B) {
	needRoot(b)
	d := dirs(b, "lower", "data", "upper", "work", "target")
	r := Rootfs{Lower: d[:1], Data: d[1:2], Upper: d[2], Work: d[3]}
	for b.Loop() {
		m, err := Overlay(r)
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(Attach(m, d[4]), m.Close(), Unmount(d[4], false)); err != nil {
			b.Fatal(err)
		}
	}
}

package mounts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/erofs"
	"github.com/snapfs/snapfs/layers"
)

func TestParseIDMap(t *testing.T) {
	const good = "0:100000:65536"
	m, err := ParseIDMap("0:100000:1000,1000:5000:1", good)
	if err != nil || m.String() != "0:100000:1000,1000:5000:1 0:100000:65536" {
		t.Errorf("ParseIDMap = %v, %v", m, err)
	}
	if uid, gid := m.Root(); uid != 100000 || gid != 100000 {
		t.Errorf("root is %d:%d", uid, gid)
	}
	if m, err := ParseIDMap("10:0:5,0:4294967290:5", "0:0:4294967295"); err != nil {
		t.Errorf("to the last ID: %v", err)
	} else if uid, _ := m.Root(); uid != 4294967290 {
		t.Errorf("root is %d", uid)
	}
	many := make([]string, maxExtents+1)
	for i := range many {
		many[i] = "0:0:1"
	}
	for name, bad := range map[string]string{
		"nothing":                   "",
		"a comma at the end":        good + ",",
		"two numbers":               "0:100000",
		"four numbers":              good + ":1",
		"a sign":                    "0:+100000:65536",
		"a minus":                   "0:100000:-1",
		"a space":                   "0: 100000:65536",
		"too large":                 "0:4294967296:1",
		"size 0":                    "0:100000:0",
		"beyond the last host":      "0:4294967295:1",
		"beyond the last container": good + ",4294967290:1:6",
		"no root":                   "1:100000:65536",
		"overlap inside":            "0:100000:10,9:200000:10",
		"overlap outside":           "0:100000:10,10:100009:10",
		"overlap of three":          "20:1:5,0:100000:10,22:50:1",
		"twice":                     good + "," + good,
		"too many":                  strings.Join(many, ","),
		"too long":                  strings.Repeat(" ", maxMapText+1),
	} {
		for _, pair := range [][2]string{{bad, good}, {good, bad}} {
			if m, err := ParseIDMap(pair[0], pair[1]); !errors.Is(err, ErrIDMap) || !errors.Is(err, os.ErrInvalid) {
				t.Errorf("%s: %v, %v, want ErrIDMap", name, m, err)
			}
		}
	}
}

func FuzzParseIDMap(f *testing.F) {
	f.Add("0:100000:65536", "0:100000:65536")
	f.Add("0:100000:1000,1000:5000:1", "0:0:4294967295")
	f.Add("1:2:3,,", ":")
	f.Fuzz(func(t *testing.T, uid, gid string) {
		m, err := ParseIDMap(uid, gid)
		if err != nil {
			if !errors.Is(err, ErrIDMap) {
				t.Errorf("ParseIDMap: %v", err)
			}
			return
		}
		u, g, _ := strings.Cut(m.String(), " ")
		if again, err := ParseIDMap(u, g); err != nil || again.String() != m.String() {
			t.Errorf("ParseIDMap(%v) = %v, %v", m, again, err)
		}
	})
}

// The kernel takes what Check takes, and no more.
func TestUserNSAgreesWithTheKernel(t *testing.T) {
	needRoot(t)
	many := func(n int) (all []Extent) {
		for i := range uint32(n) {
			all = append(all, Extent{2 * i, 100000 + 2*i, 1})
		}
		return all
	}
	short := func(n int) (all []Extent) {
		for i := range uint32(n) {
			all = append(all, Extent{i, i, 1})
		}
		return all
	}
	for name, e := range map[string][]Extent{
		"one":             {{0, 100000, 65536}},
		"to itself":       {{0, 0, 4294967295}},
		"two":             {{1000, 7, 1}, {0, 100000, 1000}},
		"the last ID":     {{0, 4294967290, 6}},
		"empty":           {{0, 100000, 0}},
		"overlap inside":  {{0, 100000, 10}, {9, 200000, 10}},
		"overlap outside": {{0, 100000, 10}, {10, 100009, 10}},
		"a page":          many(255),
		"beyond a page":   many(340),
		"340":             short(340),
		"341":             short(341),
	} {
		m := IDMap{e, e}
		err := m.Check()
		attr := &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: procMap(e), GidMappings: procMap(e), GidMappingsEnableSetgroups: true}}
		p, kerr := os.StartProcess("/bin/true", []string{"true"}, attr)
		if kerr == nil {
			p.Wait()
		}
		if (err == nil) != (kerr == nil) {
			t.Errorf("%s: Check says %v, the kernel says %v", name, err, kerr)
		}
	}
}

// shown is the owner of a file, as "uid:gid".
func shown(t testing.TB, path string) (uid, gid int) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	s := st.Sys().(*syscall.Stat_t)
	return int(s.Uid), int(s.Gid)
}

func wantOwner(t testing.TB, path string, uid, gid int) {
	t.Helper()
	if u, g := shown(t, path); u != uid || g != gid {
		t.Errorf("%s belongs to %d:%d, want %d:%d", path, u, g, uid, gid)
	}
}

func mapped(t testing.TB, dir string, m IDMap) string {
	t.Helper()
	f, err := Mapped(dir, m)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	target := dirs(t, "mapped")[0]
	if err := Attach(f, target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Clear(target); err != nil {
			t.Error(err)
		}
	})
	return target
}

// makeErofs writes an image of x, in which what is in sealed is inline.
func makeErofs(t testing.TB, path string, x *layers.Index, sealed map[layers.Sum]string) {
	t.Helper()
	tree, err := fs.Merge(nil, x)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := erofs.Write(f, tree, erofs.Options{
		InlineMax: 4096,
		Has:       func(s layers.Sum) bool { _, ok := sealed[s]; return ok },
		Read:      func(s layers.Sum, p []byte) error { copy(p, sealed[s]); return nil },
	}); err != nil {
		t.Fatal(err)
	}
}

// inside runs a script as root of the user namespace that m describes.
func inside(t testing.TB, m IDMap, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-ec", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER, UidMappings: procMap(m.UID), GidMappings: procMap(m.GID),
		GidMappingsEnableSetgroups: true, Credential: &syscall.Credential{},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("inside: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// An overlay as a container in a user namespace gets it: names and owners from an
// EROFS image, bytes from data-only layers, an ordinary directory between, all as
// the owners that the namespace maps to; only what was written is on disk so.
func TestMappedOverlay(t *testing.T) {
	needRoot(t)
	m, err := ParseIDMap("0:100000:65536", "0:200000:65536")
	if err != nil {
		t.Fatal(err)
	}
	d := dirs(t, "image", "plain", "data1", "data2", "upper", "work", "files")
	plain, upper := d[1], d[4]
	x := &layers.Index{}
	object := func(name, text string, mode uint16, uid, gid uint32, data string) {
		sum := layers.SumOf([]byte(text))
		x.Entries = append(x.Entries, layers.Entry{Name: name, Kind: layers.Reg, Mode: mode, UID: uid, GID: gid, Size: int64(len(text)), Object: sum})
		if data != "" {
			write(t, filepath.Join(data, sum.Path()), text)
		}
	}
	object("both", "image", 0o644, 0, 0, d[2])
	object("copied", "first", 0o644, 1000, 1001, d[2])
	object("root-file", "first", 0o644, 0, 0, d[2])
	object("sealed", "inline", 0o644, 0, 0, "")
	object("secret", "hidden", 0o600, 33, 33, d[3])
	object("user-file", "other", 0o644, 1000, 1001, d[3])
	makeErofs(t, filepath.Join(d[6], "i.erofs"), x, map[layers.Sum]string{layers.SumOf([]byte("inline")): "inline"})
	write(t, filepath.Join(plain, "both"), "plain")
	write(t, filepath.Join(plain, "dir/mine"), "mine")
	if err := errors.Join(
		os.Lchown(filepath.Join(plain, "dir/mine"), 7, 8), os.Lchown(upper, 100000, 200000), os.Chmod(upper, 0o755),
		MountErofs(filepath.Join(d[6], "i.erofs"), d[0]),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Clear(d[0]); err != nil {
			t.Error(err)
		}
	})
	image, plain := mapped(t, d[0], m), mapped(t, plain, m)
	wantOwner(t, filepath.Join(image, "user-file"), 101000, 201001)
	wantOwner(t, filepath.Join(plain, "dir/mine"), 100007, 200008)
	if err := os.WriteFile(filepath.Join(plain, "new"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write to a lower directory: %v, want EROFS", err)
	}
	target := attach(t, Rootfs{Lower: []string{plain, image}, Data: d[2:4], Upper: upper, Work: d[5]})
	for name, owner := range map[string][2]int{
		"": {0, 0}, "root-file": {0, 0}, "user-file": {1000, 1001}, "secret": {33, 33}, "both": {0, 0}, "sealed": {0, 0}, "dir": {0, 0}, "dir/mine": {7, 8},
	} {
		wantOwner(t, filepath.Join(target, name), 100000+owner[0], 200000+owner[1])
	}
	// Directories of the test itself are for root alone.
	for dir := target; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) {
		os.Chmod(dir, 0o755)
	}
	got := inside(t, m, `cd "`+strings.ReplaceAll(strings.ReplaceAll(target, `\`, `\\`), `"`, `\"`)+`"
		stat -c %u:%g root-file user-file dir/mine
		cat root-file user-file secret both sealed dir/mine; echo
		echo more >>copied; chown 5:6 user-file; chmod 700 dir; echo new >new; mkdir sub; ln -s x link; chown -h 9:9 link; rm both
		stat -c '%n %u:%g %a' copied user-file dir dir/mine new sub; cat copied user-file`)
	want := "0:0\n1000:1001\n7:8\nfirstotherhiddenplaininlinemine\n" +
		"copied 1000:1001 644\nuser-file 5:6 644\ndir 0:0 700\ndir/mine 7:8 644\nnew 0:0 644\nsub 0:0 755\nfirstmore\nother"
	if got != want {
		t.Errorf("inside: %s\nwant: %s", got, want)
	}
	for name, owner := range map[string][2]int{
		"copied": {1000, 1001}, "user-file": {5, 6}, "dir": {0, 0}, "new": {0, 0}, "sub": {0, 0}, "link": {9, 9},
	} {
		wantOwner(t, filepath.Join(upper, name), 100000+owner[0], 200000+owner[1])
	}
	if b, err := os.ReadFile(filepath.Join(upper, "user-file")); string(b) != "other" || err != nil {
		t.Errorf("what was only given away is %q in the upper directory, %v", b, err)
	}
	if _, err := os.Lstat(filepath.Join(upper, "dir/mine")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("dir/mine was copied: %v", err)
	}
	// The permissions that the shifted owners have are enforced.
	cmd := exec.CommandContext(t.Context(), "/bin/cat", filepath.Join(target, "secret"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 33, Gid: 33}}
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("user 33 of the host reads what belongs to user 33 of the container: %q", out)
	}
	cmd = exec.CommandContext(t.Context(), "/bin/cat", filepath.Join(target, "secret"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 100033, Gid: 200033}}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "hidden" {
		t.Errorf("its owner reads %q, %v", out, err)
	}
}

func TestMappedErrors(t *testing.T) {
	needRoot(t)
	m, err := ParseIDMap("0:100000:65536", "0:100000:65536")
	if err != nil {
		t.Fatal(err)
	}
	d := dirs(t, "dir")
	for name, tt := range map[string]struct {
		dir  string
		m    IDMap
		want error
	}{
		"no map":       {d[0], IDMap{}, ErrIDMap},
		"no directory": {filepath.Join(d[0], "none"), m, unix.ENOENT},
		"mapped twice": {mapped(t, d[0], m), m, unix.EPERM},
		"cannot be":    {"/proc", m, unix.EINVAL},
	} {
		if f, err := Mapped(tt.dir, tt.m); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, %v, want %v", name, f, err, tt.want)
		}
	}
}

func BenchmarkMapped(b *testing.B) {
	needRoot(b)
	m, err := ParseIDMap("0:100000:65536", "0:100000:65536")
	if err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	for b.Loop() {
		f, err := Mapped(dir, m)
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

func BenchmarkUserNS(b *testing.B) {
	needRoot(b)
	m, err := ParseIDMap("0:100000:65536", "0:100000:65536")
	if err != nil {
		b.Fatal(err)
	}
	for name, make := range map[string]func() (user, net *os.File, err error){
		"alone":        func() (*os.File, *os.File, error) { user, err := m.UserNS(); return user, nil, err },
		"with-network": m.UserAndNetNS,
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				user, net, err := make()
				if err != nil {
					b.Fatal(err)
				}
				user.Close()
				net.Close() // nil is none
			}
		})
	}
}

package users

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\n# comment\n\nbroken\nann:x:1000:1001:Ann,,,:/home/ann:/bin/sh\n" +
		"12345:x:0:0:digits:/evil:\nbad:x:-1:0::/:\nbig:x:4294967296:0::/:\nnohome:x:5:6:::\nbob:x:1002:99999999999::/:\n"
	group = "root:x:0:\naudio:x:29:ann,bob\nvideo:x:44:bob,ann\nmore:x:44:ann\nbad:x:x:ann\n777:x:0:\nlong:x:2147483648:ann\nann:x:1001:\n"
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		spec string
		want User
		err  error // nil is none, errAny any
	}{
		{"", User{0, 0, nil, "root", "/root"}, nil},
		{"root", User{0, 0, nil, "root", "/root"}, nil},
		{"0", User{0, 0, nil, "root", "/root"}, nil},
		{"00", User{0, 0, nil, "root", "/root"}, nil},
		{"ann", User{1000, 1001, []uint32{29, 44}, "ann", "/home/ann"}, nil},
		{"1000", User{1000, 1001, []uint32{29, 44}, "ann", "/home/ann"}, nil},
		{"ann:audio", User{1000, 29, nil, "ann", "/home/ann"}, nil},
		{"ann:7", User{1000, 7, nil, "ann", "/home/ann"}, nil},
		{":audio", User{0, 29, nil, "root", "/root"}, nil},
		{"4711", User{4711, 0, nil, "", "/"}, nil},
		{"4711:audio", User{4711, 29, nil, "", "/"}, nil},
		{"12345", User{12345, 0, nil, "", "/"}, nil}, // never the name (CVE-2026-46680)
		{"0:777", User{0, 777, nil, "root", "/root"}, nil},
		{"nohome", User{5, 6, nil, "nohome", "/"}, nil},
		{"2147483647", User{2147483647, 0, nil, "", "/"}, nil},
		{"2147483648", User{}, errAny}, {"4294967296", User{}, errAny}, {"99999999999999999999999999", User{}, errAny}, // CVE-2024-40635
		{"-1", User{}, ErrNoUser}, {"+1", User{}, ErrNoUser}, {"0x0", User{}, ErrNoUser}, {" 0", User{}, ErrNoUser}, {"1e3", User{}, ErrNoUser}, {"٣", User{}, ErrNoUser},
		{"eve", User{}, ErrNoUser}, {"bad", User{}, ErrNoUser}, {"big", User{}, ErrNoUser}, {"bob", User{}, ErrNoUser}, {"broken", User{}, ErrNoUser}, {"# comment", User{}, ErrNoUser},
		{"ann:nothing", User{}, ErrNoGroup}, {"ann:bad", User{}, ErrNoGroup}, {"ann:long", User{}, ErrNoGroup}, {"ann:-1", User{}, ErrNoGroup},
		{"ann:", User{}, errAny}, {"ann:audio:x", User{}, errAny}, {"a\nb", User{}, errAny}, {"ann\x00", User{}, errAny}, {"ann:4294967296", User{}, errAny},
	} {
		got, err := Parse(c.spec, strings.NewReader(passwd), strings.NewReader(group))
		if c.err != nil {
			if err == nil || c.err != errAny && !errors.Is(err, c.err) {
				t.Errorf("Parse(%q) = %+v, %v, want error %v", c.spec, got, err, c.err)
			}
			continue
		}
		if err != nil || got.UID != c.want.UID || got.GID != c.want.GID || got.Name != c.want.Name || got.Home != c.want.Home || !slices.Equal(got.Groups, c.want.Groups) {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", c.spec, got, err, c.want)
		}
	}
}

var errAny = errors.New("any")

func TestLimits(t *testing.T) { // CVE-2026-47262
	long := "x:x:1:1::" + strings.Repeat("a", maxLine) + ":\n"
	huge := strings.Repeat("x:x:1:1::/:\n", maxFile/12+1)
	for name, c := range map[string]struct{ spec, passwd, group string }{
		"long line in passwd": {"ann", long + passwd, group}, "huge passwd": {"ann", huge + passwd, group},
		"long line in group": {"ann", passwd, long + group}, "huge group": {"root:audio", passwd, huge + group},
	} {
		if u, err := Parse(c.spec, strings.NewReader(c.passwd), strings.NewReader(c.group)); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: Parse = %+v, %v, want ErrTooLarge", name, u, err)
		}
	}
}

func TestLookup(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	for dir, data := range map[string]string{root: passwd, outside: "eve:x:0:0::/:\n"} {
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "etc"), 0o755), os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if u, err := Lookup(fd, "ann"); err != nil || u.UID != 1000 { // there is no /etc/group
		t.Errorf("Lookup(ann) = %+v, %v", u, err)
	}
	at := filepath.Join(root, "etc/passwd")
	for what, c := range map[string]struct {
		make func() error
		ok   bool // a user that is a number can do without
	}{
		"missing":       {func() error { return nil }, true},
		"link inside":   {func() error { return os.Symlink("/etc/none", at) }, true},
		"link out":      {func() error { return os.Symlink(filepath.Join(outside, "etc/passwd"), at) }, true},
		"climbing link": {func() error { return os.Symlink("../../../../../../.."+filepath.Join(outside, "etc/passwd"), at) }, true},
		"magic link":    {func() error { return os.Symlink("/proc/self/root/etc/passwd", at) }, true},
		"fifo":          {func() error { return unix.Mkfifo(at, 0o644) }, false},
		"directory":     {func() error { return os.Mkdir(at, 0o755) }, false},
		"loop":          {func() error { return os.Symlink("passwd", at) }, false},
	} {
		if err := errors.Join(os.RemoveAll(at), c.make()); err != nil {
			t.Fatal(err)
		}
		if u, err := Lookup(fd, "eve"); err == nil {
			t.Errorf("%s: Lookup(eve) = %+v, want an error", what, u)
		}
		if u, err := Lookup(fd, "42"); (err == nil) != c.ok || err == nil && u.UID != 42 {
			t.Errorf("%s: Lookup(42) = %+v, %v, want success %v", what, u, err, c.ok)
		}
	}
}

// TestLookupSwapped: a container exchanges its /etc/passwd for something else
// while a user is looked up. What would be opened is a device of the host's, as
// whoever looks is not in the container's cgroup; here it is a FIFO, which has no users.
func TestLookupSwapped(t *testing.T) {
	root := t.TempDir()
	etc := filepath.Join(root, "etc")
	err := errors.Join(os.Mkdir(etc, 0o755), os.WriteFile(filepath.Join(etc, "passwd"), []byte(passwd), 0o644), unix.Mkfifo(filepath.Join(etc, "other"), 0o644))
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	defer swapping.Wait()
	defer close(stop)
	swapping.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				unix.Renameat2(unix.AT_FDCWD, filepath.Join(etc, "passwd"), unix.AT_FDCWD, filepath.Join(etc, "other"), unix.RENAME_EXCHANGE)
			}
		}
	})
	found, refused := 0, 0
	for n := 0; n < 20000 || (found == 0 || refused == 0) && n < 1e6; n++ {
		_, err := Lookup(fd, "ann")
		switch {
		case err == nil:
			found++
		case errors.Is(err, errNoFile):
			refused++
		default:
			t.Fatalf("Lookup opened what it had not looked at: %v", err)
		}
	}
	if found == 0 || refused == 0 {
		t.Errorf("found %d times, refused %d times: nothing was exchanged meanwhile", found, refused)
	}
}

// TestLookupInProc: what the kernel makes up is no list of users.
func TestLookupInProc(t *testing.T) {
	fd, err := unix.Open("/proc/self", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := open(fd, "status"); !errors.Is(err, errNoFile) {
		t.Errorf("open of a file of procfs: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("ann", passwd, group)
	f.Add("1:2", "", "")
	f.Add("ann:audio", passwd, "audio:x:29")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		u, err := Parse(spec, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			return
		}
		if u.UID > maxID || u.GID > maxID || u.Home == "" || strings.ContainsRune(u.Home, 0) {
			t.Errorf("Parse(%q) = %+v", spec, u)
		}
		name, _, _ := strings.Cut(spec, ":")
		if name != "" && strings.Trim(name, "0123456789") == "" && u.UID == 0 && strings.Trim(name, "0") != "" {
			t.Errorf("number %q became root", name)
		}
		for _, g := range u.Groups {
			if g > maxID {
				t.Errorf("group %d", g)
			}
		}
	})
}

package erofs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	goerofs "github.com/erofs/go-erofs"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/layers"
	"golang.org/x/sys/unix"
)

func tree(t testing.TB, entries ...layers.Entry) *fs.Tree {
	t.Helper()
	tr, err := fs.Merge(nil, &layers.Index{Entries: entries})
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func write(t testing.TB, tr *fs.Tree, o Options) (string, Summary) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "i.erofs"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := Write(f, tr, o)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != s.Size || s.Size%blockSize != 0 {
		t.Errorf("image of %d bytes, Summary says %d", fi.Size(), s.Size)
	}
	return f.Name(), s
}

// object is the bytes of a file that the tests put into images.
func object(size int64) []byte { return bytes.Repeat([]byte("snapfs!\n"), int(size+7)/8)[:size] }

func reg(name string, size int64) layers.Entry {
	e := layers.Entry{Name: name, Kind: layers.Reg, Mode: 0o644, Size: size}
	if size > 0 {
		e.Object = layers.SumOf([]byte(fmt.Sprint(size)))
	}
	return e
}

// all is a tree with every kind of entry.
func all() []layers.Entry {
	long := strings.Repeat("n", layers.MaxNameElem)
	entries := []layers.Entry{
		{Name: "", Kind: layers.Dir, Mode: 0o1777, UID: 3, GID: 4, Sec: 77},
		{Name: "dev", Kind: layers.Dir, Mode: 0o755},
		{Name: "dev/null", Kind: layers.Char, Mode: 0o666, Major: 1, Minor: 3},
		{Name: "dev/big", Kind: layers.Block, Mode: 0o600, Major: 259, Minor: 0x12345},
		{Name: "dev/pipe", Kind: layers.Fifo, Mode: 0o600},
		reg("empty", 0), reg("small", 5), reg("block", blockSize), reg("more", blockSize+1), reg("large", 3*blockSize-1),
		reg("huge", 5<<30), reg("vast", 1<<44),
		{Name: "setuid", Kind: layers.Reg, Mode: 0o4755, UID: 1 << 31, GID: 70000, Sec: -5, Nsec: 999999999},
		{Name: "link", Kind: layers.Symlink, Mode: 0o777, Link: "small"},
		{Name: "long", Kind: layers.Symlink, Mode: 0o777, Link: strings.Repeat("x", layers.MaxName)},
		{Name: "middle", Kind: layers.Symlink, Mode: 0o777, Link: strings.Repeat("y", 2000)},
		{Name: "hard", Kind: layers.Hardlink, Link: "small"},
		{Name: "dev/harder", Kind: layers.Hardlink, Link: "small"},
		{Name: "-before dot", Kind: layers.Dir, Mode: 0o700},
		{Name: "\xff\xfe", Kind: layers.Dir, Mode: 0o700},
		reg(long, 1),
		{Name: "attrs", Kind: layers.Reg, Mode: 0o600, Xattrs: []layers.Xattr{
			{Name: "security.capability", Value: "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"},
			{Name: "user.empty", Value: ""}, {Name: "user.long", Value: strings.Repeat("v", 5000)}, {Name: "user.y", Value: "\x00z"},
		}},
		{Name: "acl", Kind: layers.Reg, Mode: 0o750, Xattrs: []layers.Xattr{{Name: "system.posix_acl_access", Value: acl}}},
		{Name: "acl dir", Kind: layers.Dir, Mode: 0o750, Xattrs: []layers.Xattr{{Name: "system.posix_acl_access", Value: acl}, {Name: "system.posix_acl_default", Value: acl}}},
		{Name: "crowd", Kind: layers.Reg, Mode: 0o600, Xattrs: crowd()}, {Name: "crowd too", Kind: layers.Dir, Mode: 0o700, Xattrs: crowd()},
		{Name: "many", Kind: layers.Dir, Mode: 0o755},
	}
	for i := range 700 {
		entries = append(entries, reg(fmt.Sprintf("many/%s%04d", strings.Repeat("f", i%40), i), int64(i)))
	}
	return entries
}

// acl is u::rwx,u:77:r--,g::r-x,m::r-x,o::--- (include/uapi/linux/posix_acl_xattr.h).
const acl = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\x4d\x00\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" +
	"\x10\x00\x05\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// crowd is more attributes than an inode can share.
func crowd() (list []layers.Xattr) {
	for i := range 400 {
		list = append(list, layers.Xattr{Name: fmt.Sprintf("user.%03d", i), Value: "the same in both"})
	}
	return list
}

var sealing = Options{
	InlineMax: 16 << 10,
	Has:       func(layers.Sum) bool { return true },
	Read:      func(_ layers.Sum, p []byte) error { copy(p, object(int64(len(p)))); return nil },
}

func TestReaderSeesTheTree(t *testing.T) {
	for name, o := range map[string]Options{"plain": {}, "sealed": sealing} {
		t.Run(name, func(t *testing.T) {
			tr := tree(t, all()...)
			file, s := write(t, tr, o)
			if s.Sealed != (name == "sealed" || o.InlineMax == 0) || s.Names != int64(tr.Len()+1) {
				t.Errorf("Summary = %+v, want %d names", s, tr.Len())
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			img, err := goerofs.Open(f)
			if err != nil {
				t.Fatal(err)
			}
			seen := 0
			err = iofs.WalkDir(img, ".", func(p string, d iofs.DirEntry, err error) error {
				if err != nil {
					return fmt.Errorf("%q: %w", p, err)
				}
				seen++
				return nil
			})
			// The standard library refuses names that are not UTF-8, so one is not seen.
			if seen < tr.Len()-1 {
				t.Errorf("reader sees %d names of %d: %v", seen, tr.Len(), err)
			}
		})
	}
}

func TestFsck(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil {
		t.Skip("fsck.erofs is not installed (Debian package erofs-utils)")
	}
	for name, o := range map[string]Options{"plain": {}, "sealed": sealing} {
		// fsck.erofs 1.5 reads every file, the vast ones too.
		entries := all()
		entries = append(entries[:10], entries[12:]...)
		file, _ := write(t, tree(t, entries...), o)
		if out, err := exec.CommandContext(t.Context(), fsck, "-d1", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestSameTreeSameImage(t *testing.T) {
	var first []byte
	for range 3 {
		file, _ := write(t, tree(t, all()...), sealing)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		} else if !bytes.Equal(first, b) {
			t.Fatal("two images of the same tree differ")
		}
	}
}

func TestErrorsOfTheStorePassThrough(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "i"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := sealing
	o.Read = func(layers.Sum, []byte) error { return iofs.ErrPermission }
	if _, err := Write(f, tree(t, reg("a", 9)), o); !errors.Is(err, iofs.ErrPermission) || !strings.Contains(err.Error(), reg("a", 9).Object.String()) {
		t.Errorf("Write: %v", err)
	}
}

// TestKernelSeesTheTree mounts the image and compares every attribute.
func TestKernelSeesTheTree(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for name, o := range map[string]Options{"plain": {}, "sealed": sealing} {
		t.Run(name, func(t *testing.T) {
			tr := tree(t, all()...)
			file, _ := write(t, tr, o)
			dir := t.TempDir()
			if err := mounts.MountErofs(file, dir); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := mounts.Unmount(dir, false); err != nil {
					t.Error(err)
				}
			})
			inodes := map[*fs.Node]uint64{}
			names := 0
			for p, n := range tr.Walk() {
				names++
				if err := same(filepath.Join(dir, p), n, inodes, name == "sealed"); err != nil {
					t.Error(err)
				}
			}
			count := 0
			filepath.WalkDir(dir, func(string, iofs.DirEntry, error) error { count++; return nil })
			if count != names {
				t.Errorf("the kernel lists %d names, want %d", count, names)
			}
		})
	}
}

func same(path string, n *fs.Node, inodes map[*fs.Node]uint64, sealed bool) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	mode, _ := fileType(n.Kind)
	mode |= n.Mode
	if st.Mode != uint32(mode) || st.Uid != n.UID || st.Gid != n.GID || st.Mtim.Sec != n.Sec || st.Mtim.Nsec != int64(n.Nsec) {
		return fmt.Errorf("%s: mode %o owner %d:%d time %v, want %o %d:%d %v", path, st.Mode, st.Uid, st.Gid,
			time.Unix(st.Mtim.Unix()), mode, n.UID, n.GID, time.Unix(n.Sec, int64(n.Nsec)))
	}
	if ino, seen := inodes[n]; seen && ino != st.Ino {
		return fmt.Errorf("%s: inode %d, want %d", path, st.Ino, ino)
	}
	inodes[n] = st.Ino
	if st.Nlink != uint64(n.Nlink) {
		return fmt.Errorf("%s: %d links, want %d", path, st.Nlink, n.Nlink)
	}
	switch n.Kind {
	case layers.Dir:
		if err := dots(path, st.Ino); err != nil {
			return err
		}
	case layers.Reg:
		if st.Size != n.Size {
			return fmt.Errorf("%s: size %d, want %d", path, st.Size, n.Size)
		}
		inline := sealed && n.Size <= sealing.InlineMax
		value := make([]byte, 100)
		m, err := unix.Lgetxattr(path, redirect, value)
		if hasObject := n.Size > 0 && !inline; hasObject != (err == nil) || err == nil && string(value[:m]) != "/"+n.Object.Path() {
			return fmt.Errorf("%s: redirect %q, %v", path, value[:max(m, 0)], err)
		}
		if inline {
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, object(n.Size)) {
				return fmt.Errorf("%s: %d bytes, %v", path, len(b), err)
			}
		} else if n.Size > 0 {
			if b, err := head(path); !errors.Is(err, unix.EIO) {
				return fmt.Errorf("%s: read past overlayfs: %d bytes, %v, want EIO", path, len(b), err)
			}
		}
	case layers.Symlink:
		if link, err := os.Readlink(path); err != nil || link != n.Link {
			return fmt.Errorf("%s: link of %d bytes, %v, want %d", path, len(link), err, len(n.Link))
		}
	case layers.Char, layers.Block:
		if unix.Major(st.Rdev) != n.Major || unix.Minor(st.Rdev) != n.Minor {
			return fmt.Errorf("%s: device %d:%d", path, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
	}
	for _, x := range n.Xattrs {
		value := make([]byte, 1<<16)
		if m, err := unix.Lgetxattr(path, x.Name, value); err != nil || string(value[:m]) != x.Value {
			return fmt.Errorf("%s: attribute %s: %v", path, x.Name, err)
		}
	}
	return nil
}

// dots checks that a directory has itself and the one above in its list, with
// numbers that getdents(2)'s readers take for entries.
func dots(path string, ino uint64) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 64<<10)
	m, err := unix.Getdents(int(f.Fd()), b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	found := map[string]uint64{}
	for b = b[:m]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] { // struct linux_dirent64
		name, _, _ := bytes.Cut(b[19:], []byte{0})
		if ino := binary.NativeEndian.Uint64(b); ino == 0 {
			return fmt.Errorf("%s: %q has the inode number 0", path, name)
		} else {
			found[string(name)] = ino
		}
	}
	if found["."] != ino || found[".."] == 0 {
		return fmt.Errorf("%s: . is %d and .. is %d, want %d", path, found["."], found[".."], ino)
	}
	return nil
}

func head(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, 16)
	n, err := f.Read(b)
	return b[:n], err
}

func big(n int) []layers.Entry {
	entries := make([]layers.Entry, 0, n)
	for i := range n {
		e := reg(fmt.Sprintf("usr/lib/d%03d/file-number-%06d.so", i/100, i), int64(1000+i))
		e.Sec, e.Nsec = 1700000000, uint32(i)
		entries = append(entries, e)
	}
	return entries
}

// BenchmarkMergeAndWrite builds images of one layer and of ten, whose files all
// are in the same directories. heap-B/file is what the heap grows by without a
// collection, the indexes not counted.
func BenchmarkMergeAndWrite(b *testing.B) {
	for _, n := range []int{30_000, 300_000} {
		for _, count := range []int{1, 10} {
			b.Run(fmt.Sprintf("files=%d/layers=%d", n, count), func(b *testing.B) {
				stack := make([]*layers.Index, count)
				for i := range stack {
					stack[i] = &layers.Index{}
				}
				for i, e := range big(n) {
					ix := stack[i%count]
					ix.Entries = append(ix.Entries, e)
				}
				name := filepath.Join(b.TempDir(), "i")
				b.ReportAllocs()
				for b.Loop() {
					benchmarkImage(b, stack, name, n)
				}
			})
		}
	}
}

func benchmarkImage(b *testing.B, stack []*layers.Index, name string, n int) {
	var before, after runtime.MemStats
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&before)
	b.StartTimer()
	var t *fs.Tree
	for _, ix := range stack {
		var err error
		if t, err = fs.Merge(t, ix); err != nil {
			b.Fatal(err)
		}
	}
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	s, err := Write(f, t, Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	runtime.ReadMemStats(&after)
	b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/float64(n), "heap-B/file")
	b.ReportMetric(float64(s.Size)/float64(n), "image-B/file")
	b.StartTimer()
}

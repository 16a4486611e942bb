package erofs

import (
	"bytes"
	"errors"
	"fmt"
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"

	goerofs "github.com/erofs/go-erofs"

	"github.com/snapfs/snapfs/fs"
	"github.com/snapfs/snapfs/layers"
)

// memory is a File of at most max bytes, if that is not 0.
type memory struct {
	b   []byte
	max int64
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if m.max > 0 && end > m.max {
		return 0, syscall.ENOSPC
	}
	if int64(len(m.b)) < end {
		m.b = append(m.b, make([]byte, end-int64(len(m.b)))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) Truncate(size int64) error {
	if size > int64(len(m.b)) {
		m.b = append(m.b, make([]byte, size-int64(len(m.b)))...)
	}
	m.b = m.b[:size]
	return nil
}

// readable compares what go-erofs reads in an image to the tree.
func readable(b []byte, tr *fs.Tree, inlined int64) error {
	// The reader takes a whole block at each shared attribute, the last one's, too.
	img, err := goerofs.Open(bytes.NewReader(append(b, zeros[:]...)))
	if err != nil {
		return err
	}
	names := 0
	err = iofs.WalkDir(img, ".", func(name string, d iofs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		names++
		fi, err := d.Info()
		if err != nil {
			return err
		}
		if name == "." {
			name = ""
		}
		n := tr.Lookup(name)
		if n == nil {
			return fmt.Errorf("%q is not in the tree", name)
		}
		if err := equal(img, name, n, fi.Sys().(*goerofs.Stat), inlined); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
		return nil
	})
	if err == nil && names != tr.Len()+1 {
		err = fmt.Errorf("%d names, want %d", names, tr.Len()+1)
	}
	return err
}

var modes = map[layers.Kind]iofs.FileMode{
	layers.Dir: iofs.ModeDir, layers.Symlink: iofs.ModeSymlink, layers.Fifo: iofs.ModeNamedPipe,
	layers.Char: iofs.ModeDevice | iofs.ModeCharDevice, layers.Block: iofs.ModeDevice,
}

func equal(img iofs.FS, name string, n *fs.Node, st *goerofs.Stat, inlined int64) error {
	redirected := n.Kind == layers.Reg && n.Size > inlined
	want := map[string]string{}
	for _, x := range n.Xattrs {
		if strings.HasPrefix(x.Name, "system.") {
			x.Name += "." // as go-erofs spells them
		}
		want[x.Name] = x.Value
	}
	if redirected {
		want[metacopy], want[redirect] = "", "/"+n.Object.Path()
	}
	switch {
	case st.Mode.Type() != modes[n.Kind] || uint16(st.Mode.Perm()) != n.Mode&0o777:
		return fmt.Errorf("mode %v, want %o", st.Mode, n.Mode)
	case st.UID != n.UID || st.GID != n.GID || int64(st.Mtime) != n.Sec || st.MtimeNs != n.Nsec || uint32(st.Nlink) != n.Nlink:
		return fmt.Errorf("%+v, want %+v", st, n)
	case n.Kind == layers.Reg && st.Size != n.Size:
		return fmt.Errorf("size %d, want %d", st.Size, n.Size)
	case (n.Kind == layers.Char || n.Kind == layers.Block) && st.Rdev != rdev(n.Major, n.Minor):
		return fmt.Errorf("device %x, want %d:%d", st.Rdev, n.Major, n.Minor)
	case !maps.Equal(st.Xattrs, want):
		return fmt.Errorf("attributes %.200q, want %.200q", st.Xattrs, want)
	}
	if n.Kind == layers.Symlink {
		if target, err := iofs.ReadLink(img, name); err != nil || target != n.Link {
			return fmt.Errorf("target %q, %v, want %q", target, err, n.Link)
		}
	}
	if n.Kind == layers.Reg && !redirected {
		if b, err := iofs.ReadFile(img, name); err != nil || !bytes.Equal(b, object(n.Size)) {
			return fmt.Errorf("%d bytes, %v, want %d", len(b), err, n.Size)
		}
	}
	return nil
}

// randomTree makes a tree of anything.
func randomTree(r *rand.Rand) (*fs.Tree, error) {
	kinds := []layers.Kind{layers.Dir, layers.Dir, layers.Reg, layers.Reg, layers.Reg, layers.Symlink, layers.Hardlink, layers.Char, layers.Block, layers.Fifo}
	values := []string{"", "v", "equal values of many", strings.Repeat("l", 2000), strings.Repeat("m", r.IntN(9000))}
	var ix layers.Index
	dirs, files := []string{""}, []string{}
	for i := range r.IntN(400) {
		e := layers.Entry{
			Name: dirs[r.IntN(len(dirs))] + strings.Repeat(string(rune('!'+r.IntN(90))), r.IntN(245)) + fmt.Sprint("~", i),
			Kind: kinds[r.IntN(len(kinds))], Mode: uint16(r.IntN(0o10000)), Major: uint32(r.IntN(4096)), Minor: uint32(1 + r.IntN(1<<20-1)),
			Sec: int64(r.IntN(3)), Link: strings.Repeat("t", 1+r.IntN(4095)),
		}
		e.Name = strings.ReplaceAll(e.Name, "/~", "x~")
		if r.IntN(3) == 0 {
			e.UID, e.GID, e.Nsec = r.Uint32(), r.Uint32(), uint32(r.IntN(1e9))
		}
		for j := range r.IntN(4) {
			e.Xattrs = append(e.Xattrs, layers.Xattr{Name: fmt.Sprintf("user.%d%s", j, strings.Repeat("n", r.IntN(2)*r.IntN(200))), Value: values[r.IntN(len(values))]})
		}
		switch e.Kind {
		case layers.Dir:
			dirs = append(dirs, e.Name+"/")
		case layers.Reg:
			e.Size = []int64{0, 1, int64(r.IntN(20000)), int64(r.IntN(5)) * blockSize, r.Int64N(layers.MaxFile)}[r.IntN(5)]
			e.Object = layers.SumOf([]byte(e.Name))
			files = append(files, e.Name)
		case layers.Hardlink:
			if len(files) == 0 {
				continue
			}
			e.Link = files[r.IntN(len(files))]
		}
		ix.Entries = append(ix.Entries, e)
	}
	return fs.Merge(nil, &ix)
}

func FuzzImageIsTheTree(f *testing.F) {
	for seed := range uint64(100) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 3))
		tr, err := randomTree(r)
		if err != nil {
			if errors.Is(err, layers.ErrBadLayer) || errors.Is(err, layers.ErrTooLarge) {
				return
			}
			t.Fatal(err)
		}
		for _, o := range []Options{{}, sealing} {
			var m memory
			s, err := Write(&m, tr, o)
			if err != nil {
				t.Fatal(err)
			}
			if s.Size != int64(len(m.b)) || s.Names != int64(tr.Len()+1) || !s.Sealed {
				t.Errorf("Summary = %+v of %d bytes and %d names", s, len(m.b), tr.Len()+1)
			}
			if err := readable(m.b, tr, o.InlineMax); err != nil {
				t.Errorf("seed %d: %v", seed, err)
			}
		}
	})
}

func TestDiskFull(t *testing.T) {
	tr := tree(t, all()...)
	var whole memory
	s, err := Write(&whole, tr, sealing)
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{1, superOffset, blockSize, s.Size / 2, s.Size - 1} {
		if _, err := Write(&memory{max: size}, tr, sealing); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("Write to a disk of %d bytes: %v, want ENOSPC", size, err)
		}
	}
}

func TestWhatTheFormatCannotHold(t *testing.T) {
	var many []layers.Xattr
	for i := range 2000 {
		many = append(many, layers.Xattr{Name: fmt.Sprintf("user.%04d%s", i, strings.Repeat("n", 200)), Value: "v"})
	}
	for name, list := range map[string][]layers.Xattr{
		"value": {{Name: "user.a", Value: strings.Repeat("v", 1<<16)}},
		"all":   many,
	} {
		tr := tree(t, layers.Entry{Name: "a", Kind: layers.Reg, Xattrs: list})
		if _, err := Write(&memory{}, tr, Options{}); !errors.Is(err, layers.ErrTooLarge) || !strings.Contains(err.Error(), `"a"`) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
}

// Half of all images have files of one time only: their inodes are small.
func TestOneTimeMakesSmallImages(t *testing.T) {
	size := func(step int) int {
		entries := big(10000)
		for i := range entries {
			entries[i].Sec, entries[i].Nsec = 1700000000, uint32(i*step)
		}
		var m memory
		tr := tree(t, entries...)
		if _, err := Write(&m, tr, Options{}); err != nil {
			t.Fatal(err)
		}
		if err := readable(m.b, tr, 0); err != nil {
			t.Error(err)
		}
		return len(m.b)
	}
	if one, many := size(0), size(1); one >= many-200_000 {
		t.Errorf("image with one time: %d bytes, with many: %d", one, many)
	}
}

func TestEqualAttributesAreShared(t *testing.T) {
	entries := big(5000)
	for i := range entries {
		entries[i].Xattrs = []layers.Xattr{{Name: "security.selinux", Value: "system_u:object_r:container_file_t:s0"}}
	}
	var with, without memory
	tr := tree(t, entries...)
	if _, err := Write(&with, tr, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := readable(with.b, tr, 0); err != nil {
		t.Error(err)
	}
	if _, err := Write(&without, tree(t, big(5000)...), Options{}); err != nil {
		t.Fatal(err)
	}
	if more := len(with.b) - len(without.b); more > 5000*32+blockSize {
		t.Errorf("5000 equal attributes take %d bytes", more)
	}
}

package tarindex

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/snapfs/snapfs/layers"
)

// unpackTar unpacks a plain archive.
func unpackTar(t testing.TB, p []byte) ([]layers.Entry, error) {
	t.Helper()
	_, ix, err := unpackBytes(t, p, p)
	if err != nil {
		return nil, err
	}
	return ix.Entries, nil
}

func TestNames(t *testing.T) {
	long := strings.Repeat("n", layers.MaxNameElem)
	for in, want := range map[string]string{
		"a": "a", "./a": "a", "/a": "a", "a/": "a", "a//b": "a/b", "./a/./b": "a/b", "a/../b": "b",
		"//a": "a", "a/b/../../c": "c", "././a": "a", "..a": "..a", "a..": "a..", ".../x": ".../x",
		"\xff\xfe": "\xff\xfe", "a b\n": "a b\n", long: long, ".wh..wh..opq": ".wh..wh..opq",
	} {
		got, err := cleanName([]byte(in))
		if err != nil || got != want {
			t.Errorf("cleanName(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".", "./", "/", "a/.."} {
		if got, err := cleanName([]byte(in)); got != "" || err != nil {
			t.Errorf("cleanName(%q) = %q, %v; want the root", in, got, err)
		}
	}
	for in, want := range map[string]error{
		"..": layers.ErrBadLayer, "../a": layers.ErrBadLayer, "a/../../b": layers.ErrBadLayer, "/../a": layers.ErrBadLayer,
		"a/..//../b": layers.ErrBadLayer, "a\x00b": layers.ErrBadLayer, "./..": layers.ErrBadLayer,
		long + "n": layers.ErrTooLarge, strings.Repeat("d/", 2100): layers.ErrTooLarge,
	} {
		if got, err := cleanName([]byte(in)); !errors.Is(err, want) {
			t.Errorf("cleanName(%.20q) = %q, %v; want %v", in, got, err, want)
		}
	}
}

func TestTimes(t *testing.T) {
	for _, want := range []time.Time{
		time.Unix(0, 0), time.Unix(1, 1), time.Unix(-1, 0), time.Unix(-2, 999_999_999), time.Unix(-1, 1),
		time.Unix(1<<33, 123_456_789), time.Unix(-1<<40, 500_000_000),
	} {
		p := archive(t, file{Header: tar.Header{Name: "f", ModTime: want, Format: tar.FormatPAX}})
		list, err := unpackTar(t, p)
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Unix(list[0].Sec, int64(list[0].Nsec)); !got.Equal(want) || list[0].Nsec >= 1e9 {
			t.Errorf("time %d.%09d, want %v", list[0].Sec, list[0].Nsec, want)
		}
	}
	gnu := archive(t, file{Header: tar.Header{Name: "f", ModTime: time.Unix(-5, 0), Format: tar.FormatGNU}})
	if list, err := unpackTar(t, gnu); err != nil || list[0].Sec != -5 {
		t.Errorf("base-256 time: %v, %v", list, err)
	}
}

func TestXattrs(t *testing.T) {
	binary := "\x01\x00\x00\x02\x00=\n\xff"
	pax := map[string]string{
		"SCHILY.xattr.security.capability":     binary,
		"SCHILY.xattr.user.empty":              "",
		"SCHILY.xattr.user.both":               "schily",
		"SCHILY.xattr.trusted.overlay.opaque":  "y",
		"SCHILY.xattr.trusted.overlay.":        "y",
		"SCHILY.xattr.user.overlay.redirect":   "/etc",
		"SCHILY.xattr.trusted.other":           "t",
		"SCHILY.xattr.nonsense":                "n",
		"SCHILY.xattr.system.nfs4_acl":         "n",
		"SCHILY.xattr.system.posix_acl_access": "acl",
		"LIBARCHIVE.xattr.user.both":           base64.RawStdEncoding.EncodeToString([]byte("libarchive")),
		"LIBARCHIVE.xattr.user.%20only":        base64.StdEncoding.EncodeToString([]byte(binary)),
		"LIBARCHIVE.xattr.user.bad":            "!",
	}
	p := archive(t, file{Header: tar.Header{Name: "f", PAXRecords: pax, Format: tar.FormatPAX}},
		file{Header: tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "f", PAXRecords: pax, Format: tar.FormatPAX}})
	list, err := unpackTar(t, p)
	if err != nil {
		t.Fatal(err)
	}
	want := []layers.Xattr{
		{Name: "security.capability", Value: binary},
		{Name: "system.posix_acl_access", Value: "acl"},
		{Name: "trusted.other", Value: "t"},
		{Name: "user. only", Value: binary},
		{Name: "user.both", Value: "schily"},
		{Name: "user.empty", Value: ""},
	}
	if diff := cmp.Diff(want, list[0].Xattrs); diff != "" {
		t.Errorf("xattrs (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[:3], list[1].Xattrs); diff != "" {
		t.Errorf("xattrs of a symlink (-want +got):\n%s", diff)
	}
	for name, pax := range map[string]map[string]string{
		"long name":  {"SCHILY.xattr.user." + strings.Repeat("x", 300): "v"},
		"long value": {"SCHILY.xattr.user.x": strings.Repeat("v", maxXattrValue+1)},
		"many":       manyXattrs(),
	} {
		p := archive(t, file{Header: tar.Header{Name: "f", PAXRecords: pax, Format: tar.FormatPAX}})
		if _, err := unpackTar(t, p); !errors.Is(err, layers.ErrTooLarge) {
			t.Errorf("%s: %v, want %v", name, err, layers.ErrTooLarge)
		}
	}
}

func manyXattrs() map[string]string {
	m := make(map[string]string)
	for i := range 10 {
		m[fmt.Sprint("SCHILY.xattr.user.", i)] = strings.Repeat("v", 60<<10)
	}
	return m
}

func TestRefused(t *testing.T) {
	type h = tar.Header
	for name, tt := range map[string]struct {
		files []file
		want  error
		text  string
	}{
		"escape":             {[]file{{Header: h{Name: "../etc/passwd"}}}, layers.ErrBadLayer, "leads out of the layer"},
		"hard link escape":   {[]file{{Header: h{Name: "l", Typeflag: tar.TypeLink, Linkname: "../x"}}}, layers.ErrBadLayer, "hard link to"},
		"hard link to root":  {[]file{{Header: h{Name: "l", Typeflag: tar.TypeLink, Linkname: "/"}}}, layers.ErrBadLayer, "hard link to"},
		"hard link to dir":   {[]file{{Header: h{Name: "d", Typeflag: tar.TypeDir}}, {Header: h{Name: "l", Typeflag: tar.TypeLink, Linkname: "d"}}}, layers.ErrBadLayer, "directory"},
		"hard link to self":  {[]file{{Header: h{Name: "l", Typeflag: tar.TypeLink, Linkname: "l"}}}, layers.ErrBadLayer, "itself"},
		"empty symlink":      {[]file{{Header: h{Name: "l", Typeflag: tar.TypeSymlink}}}, layers.ErrBadLayer, "symbolic link"},
		"long symlink":       {[]file{{Header: h{Name: "l", Typeflag: tar.TypeSymlink, Linkname: strings.Repeat("x", 5000)}}}, layers.ErrTooLarge, "symbolic link"},
		"long element":       {[]file{{Header: h{Name: strings.Repeat("x", 256)}}}, layers.ErrTooLarge, "256 bytes"},
		"huge uid":           {[]file{{Header: h{Name: "f", Uid: 1 << 33, Format: tar.FormatPAX}}}, layers.ErrBadLayer, "uid"},
		"unknown type":       {[]file{{Header: h{Name: "f", Typeflag: 'V'}}}, layers.ErrBadLayer, "type"},
		"below a file":       {[]file{{Header: h{Name: "f"}}, {Header: h{Name: "f/g"}}}, layers.ErrBadLayer, "not a directory"},
		"far below a device": {[]file{{Header: h{Name: "f", Typeflag: tar.TypeFifo}}, {Header: h{Name: "f/g/h"}}}, layers.ErrBadLayer, "not a directory"},
	} {
		_, err := unpackTar(t, archive(t, tt.files...))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v with %q", name, err, tt.want, tt.text)
		}
	}
}

// names lists what is there: "name kind data-or-link".
func names(t *testing.T, files []file) string {
	t.Helper()
	p := archive(t, files...)
	s, ix, err := unpackBytes(t, p, p)
	if err != nil {
		return err.Error()
	}
	var list []string
	for _, e := range ix.Entries {
		switch e.Kind {
		case layers.Reg:
			list = append(list, e.Name+"="+content(t, s, e))
		case layers.Dir:
			list = append(list, e.Name+"/"+fmt.Sprintf("%o", e.Mode))
		default:
			list = append(list, e.Name+"->"+e.Link)
		}
	}
	return strings.Join(list, " ")
}

func TestRepeatedNames(t *testing.T) {
	reg := func(name, data string) file { return file{Header: tar.Header{Name: name}, data: data} }
	dir := func(name string, mode int64) file {
		return file{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: mode}}
	}
	sym := func(name, to string) file {
		return file{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}}
	}
	hard := func(name, to string) file {
		return file{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}}
	}
	for name, tt := range map[string]struct {
		files []file
		want  string
	}{
		"last stands":                  {[]file{reg("a", "1"), reg("b", "2"), reg("./a", "3")}, "b=2 a=3"},
		"directories merge":            {[]file{dir("d", 0o700), reg("d/f", "1"), dir("d/", 0o755)}, "d/f=1 d/755"},
		"entry before its parent":      {[]file{reg("d/f", "1"), dir("d", 0o700)}, "d/f=1 d/700"},
		"file for directory":           {[]file{dir("d", 0o700), reg("d/e/f", "1"), reg("d", "2")}, "d=2"},
		"link for implied directory":   {[]file{reg("d/f", "1"), sym("d", "e"), reg("d/g", "2")}, "d->e d/g=2"},
		"directory, file, directory":   {[]file{dir("d", 0o700), reg("d/old", "1"), reg("d", "2"), dir("d", 0o711), reg("d/new", "3")}, "d/711 d/new=3"},
		"hard link keeps old file":     {[]file{reg("a", "1"), hard("b", "a"), reg("a", "2")}, "b=1 a=2"},
		"two hard links keep old file": {[]file{reg("a", "1"), hard("b", "a"), hard("c", "b"), reg("a", "2")}, "b=1 c->b a=2"},
		"hard link to new file":        {[]file{reg("a", "1"), reg("a", "2"), hard("b", "a")}, "a=2 b->a"},
		"hard link of hard link":       {[]file{reg("a", "1"), hard("b", "a"), hard("c", "b"), reg("b", "2")}, "a=1 c->a b=2"},
		"hard link to a lower layer":   {[]file{hard("b", "lower"), hard("c", "b")}, "b->lower c->lower"},
		"hard link to a symlink":       {[]file{sym("s", "x"), hard("h", "s"), reg("s", "1")}, "h->x s=1"},
		"below a hard link":            {[]file{hard("h", "lower"), reg("h/f", "1")}, "h->lower h/f=1"},
		"root is kept, not as a file":  {[]file{dir("./", 0o711), sym(".", "x"), reg("f", "1")}, "/711 f=1"},
		"whiteouts are files":          {[]file{reg(".wh.x", ""), reg("d/.wh..wh..opq", "")}, ".wh.x= d/.wh..wh..opq="},
		"file gone with its directory": {[]file{reg("d/f", "1"), hard("h", "d/f"), reg("d", "2")}, "h=1 d=2"},
		"global header says nothing":   {[]file{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x"}}}, reg("f", "1")}, "f=1"},
		"nothing at all":               {nil, ""},
	} {
		if got := names(t, tt.files); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

// Blocks that archive/tar does not write.
func TestOddBlocks(t *testing.T) {
	fix := func(b []byte) []byte {
		copy(b[148:], "        ")
		sum, _ := checksums((*[blockSize]byte)(b))
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	base := func() []byte {
		return archive(t, file{Header: tar.Header{Name: "f", Format: tar.FormatUSTAR}, data: "data"})
	}
	contiguous := base()
	contiguous[156] = '7'
	old := base()
	old[156] = 0
	oldDir := archive(t, file{Header: tar.Header{Name: "d/", Typeflag: tar.TypeDir}})
	oldDir[156] = 0
	v7 := base()
	clear(v7[257:265])
	hardData := archive(t, file{Header: tar.Header{Name: "f"}}, file{Header: tar.Header{Name: "l", Typeflag: tar.TypeLink, Linkname: "f"}})
	copy(hardData[512+124:], "00000000010\x00")
	fix(hardData[512:1024])
	for name, tt := range map[string]struct {
		p    []byte
		want string
	}{
		"contiguous file":                {append(fix(contiguous[:512]), contiguous[512:]...), "f:2:4"},
		"old regular file":               {append(fix(old[:512]), old[512:]...), "f:2:4"},
		"old directory":                  {append(fix(oldDir[:512]), oldDir[512:]...), "d:1:0"},
		"V7":                             {append(fix(v7[:512]), v7[512:]...), "f:2:4"},
		"hard link with a size, no data": {hardData, "f:2:0 l:4:0"},
		"no end mark":                    {base()[:1024], "f:2:4"},
		"one zero block":                 {base()[:1536], "f:2:4"},
		"anything behind the end":        {append(base(), "garbage"...), "f:2:4"},
	} {
		list, err := unpackTar(t, tt.p)
		var got []string
		for _, e := range list {
			got = append(got, fmt.Sprintf("%s:%d:%d", e.Name, e.Kind, e.Size))
		}
		if err != nil || strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %v, %v; want %s", name, got, err, tt.want)
		}
	}
	bad := bytes.Join([][]byte{base()[:1024], make([]byte, 512), base()}, nil)
	if _, err := unpackTar(t, bad); !errors.Is(err, layers.ErrBadLayer) {
		t.Errorf("a zero block in the middle: %v", err)
	}
}

func TestManyBytes(t *testing.T) {
	// Sizes around every buffer's and block's edge.
	var files []file
	for i, n := range []int{1, 511, 512, 513, plainSize - 1024, plainSize - 512, plainSize, plainSize + 1, 3 * plainSize, 16383, 16384, 16385} {
		files = append(files, file{Header: tar.Header{Name: fmt.Sprint(i)}, data: strings.Repeat(string(rune('a'+i)), n)})
	}
	p := archive(t, files...)
	s, ix, err := unpackBytes(t, gzipped(t, p), p)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range ix.Entries {
		if got := content(t, s, e); got != files[i].data {
			t.Errorf("%s: wrong bytes", e.Name)
		}
	}
}

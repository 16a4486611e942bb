package tarindex

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// read yields the members of an archive as archive/tar reads them.
func read(p []byte) func(yield func(*Member, error) bool) {
	return func(yield func(*Member, error) bool) {
		for r := tar.NewReader(bytes.NewReader(p)); ; {
			h, err := r.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			m := &Member{Type: h.Typeflag, Name: h.Name, Link: h.Linkname, Mode: h.Mode, UID: int64(h.Uid), GID: int64(h.Gid), Size: h.Size,
				Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond()), Major: h.Devmajor, Minor: h.Devminor}
			for k, v := range h.PAXRecords {
				m.Records = append(m.Records, Record{k, v})
			}
			if h.Size > 0 {
				data, _ := io.ReadAll(r)
				m.Object = layers.SumOf(data)
			}
			if !yield(m, nil) {
				return
			}
		}
	}
}

// TestEntries: somebody else's reading of the headers comes to the same entries.
func TestEntries(t *testing.T) {
	when := time.Unix(1_700_000_000, 123_000_000)
	h := func(typ byte, name, link, data string) file {
		return file{Header: tar.Header{Typeflag: typ, Name: name, Linkname: link, Mode: 0o4711, Uid: 70000, Gid: 3, ModTime: when,
			Format: tar.FormatPAX, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b", "SCHILY.xattr.trusted.overlay.opaque": "y"}}, data: data}
	}
	p := archive(t,
		h(tar.TypeDir, "./", "", ""),
		h(tar.TypeDir, "./a//b/", "", ""),
		h(tar.TypeReg, "/a/b/first", "", "the first"),
		h(tar.TypeLink, "a/link", "./a/b/first", ""),
		h(tar.TypeReg, "a/b/first", "", "replaced"),
		h(tar.TypeSymlink, "a/sym", "../..", ""),
		h(tar.TypeChar, "a/null", "", ""),
		h(tar.TypeFifo, "a/pipe", "", ""),
		h(tar.TypeReg, "a/.wh.gone", "", ""),
	)
	desc := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(p), Size: int64(len(p))}
	u, err := Unpack(t.Context(), bytes.NewReader(p), desc, desc.Digest, testStore, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	want := u.Index
	got, err := Entries(read(p))
	if err != nil {
		t.Fatal(err)
	}
	for i := range want.Entries {
		want.Entries[i].Chunks = nil
	}
	if diff := cmp.Diff(want.Entries, got); diff != "" {
		t.Errorf("Entries (-Unpack +Entries):\n%s", diff)
	}
}

func TestBadEntries(t *testing.T) {
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		m    *Member
		err  error
		want error
	}{
		"error":    {nil, broken, broken},
		"no type":  {&Member{Name: "a"}, nil, layers.ErrBadLayer},
		"sparse":   {&Member{Name: "a", Type: typeGNUSpars}, nil, layers.ErrBadLayer},
		"negative": {&Member{Name: "a", Type: typeReg, Size: -1}, nil, layers.ErrBadLayer},
		"escapes":  {&Member{Name: "../a", Type: typeReg}, nil, layers.ErrBadLayer},
		"owner":    {&Member{Name: "a", Type: typeReg, UID: -1}, nil, layers.ErrBadLayer},
		"huge":     {&Member{Name: "a", Type: typeReg, Size: layers.MaxFile + 1}, nil, layers.ErrTooLarge},
		"itself":   {&Member{Name: "a", Type: typeLink, Link: "a"}, nil, layers.ErrBadLayer},
	} {
		_, err := Entries(func(yield func(*Member, error) bool) { yield(c.m, c.err) })
		if !errors.Is(err, c.want) {
			t.Errorf("%s: Entries: %v, want %v", name, err, c.want)
		}
	}
}

package convert

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers/lazy"
)

// TestStargzReads reads our eStargz with the reader of stargz-snapshotter: the
// TOC by its digest, every entry, and every chunk of every file by its own.
func TestStargzReads(t *testing.T) {
	ms := odd()
	for name, o := range map[string]Options{
		"defaults":     {Format: lazy.EStargz},
		"small chunks": {Format: lazy.EStargz, ChunkSize: 8 << 10},
		"best":         {Format: lazy.EStargz, Level: 9},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			c, err := Layer(t.Context(), &b, bytes.NewReader(tarOf(t, ms)), o)
			if err != nil {
				t.Fatal(err)
			}
			r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(b.Bytes()), 0, int64(b.Len())))
			if err != nil {
				t.Fatal(err)
			}
			v, err := r.VerifyTOC(digest.Digest(c.Desc.Annotations[estargz.TOCJSONDigestAnnotation]))
			if err != nil {
				t.Fatal(err)
			}
			last := map[string]sample{} // of each name
			for _, m := range ms {
				last[strings.Trim(path.Clean("/"+m.h.Name), "/")] = m
			}
			for name, m := range last {
				stargzEntry(t, r, v, name, m)
			}
		})
	}
}

func stargzEntry(t *testing.T, r *estargz.Reader, v estargz.TOCEntryVerifier, name string, m sample) {
	t.Helper()
	e, ok := r.Lookup(name)
	if name == estargz.TOCTarName || name == estargz.NoPrefetchLandmark { // an older conversion's are left out
		if ok {
			t.Errorf("%q: found", name)
		}
		return
	}
	if !utf8.ValidString(name + m.h.Linkname) { // encoding/json has made it U+FFFD for them
		return
	}
	if !ok {
		t.Errorf("%q: not found", name)
		return
	}
	kind := map[byte]string{tar.TypeReg: "reg", tar.TypeDir: "dir", tar.TypeSymlink: "symlink", tar.TypeLink: "reg", tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo"}[m.h.Typeflag]
	if e.Type != kind || kind == "symlink" && e.LinkName != m.h.Linkname || e.DevMajor != int(m.h.Devmajor) || e.DevMinor != int(m.h.Devminor) {
		t.Errorf("%q: %+v, want %+v", name, e, m.h)
	}
	if m.h.Typeflag != tar.TypeReg {
		return
	}
	if e.Size != m.h.Size || e.UID != m.h.Uid || e.GID != m.h.Gid || e.Mode&0o7777 != m.h.Mode || e.ModTime().Unix() != m.h.ModTime.Unix() {
		t.Errorf("%q: %+v, want %+v", name, e, m.h)
	}
	f, err := r.OpenFile(name)
	if err != nil {
		t.Errorf("%q: %v", name, err)
		return
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, m.data) {
		t.Errorf("%q: %d bytes, %v, want %d", name, len(got), err, len(m.data))
	}
	for off := int64(0); off < e.Size; {
		ce, ok := r.ChunkEntryForOffset(name, off)
		if !ok || ce.ChunkOffset != off || ce.ChunkSize < 1 && e.Size != off+ce.ChunkSize {
			t.Errorf("%q: chunk at %d: %+v", name, off, ce)
			return
		}
		if err := verify(v, ce, m.data[off:off+ce.ChunkSize]); err != nil {
			t.Errorf("%q: chunk at %d: %v", name, off, err)
		}
		off += ce.ChunkSize
	}
}

func verify(v estargz.TOCEntryVerifier, e *estargz.TOCEntry, data []byte) error {
	d, err := v.Verifier(e)
	if err != nil {
		return err
	}
	if d.Write(data); !d.Verified() {
		return errors.New("wrong digest")
	}
	return nil
}

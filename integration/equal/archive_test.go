package equal

import (
	"archive/tar"
	"bytes"
	"maps"
	"strings"
	"testing"
	"time"
)

// A member is one entry of a layer. What is not said of mode, owner and time is
// a value of which a copy is no accident.
type member struct {
	tar.Header
	body string
}

var clock = time.Date(2021, 2, 3, 4, 5, 6, 123456789, time.UTC)

func newMember(typ byte, name string, mode int64) member {
	return member{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, Uid: 11, Gid: 22, ModTime: clock, Format: tar.FormatPAX}}
}

func dir(name string) member { return newMember(tar.TypeDir, name+"/", 0o750) }

func file(name, body string) member {
	m := newMember(tar.TypeReg, name, 0o640)
	m.body = body
	return m
}

func symlink(name, target string) member {
	m := newMember(tar.TypeSymlink, name, 0o777)
	m.Linkname = target
	return m
}

func link(name, target string) member {
	m := newMember(tar.TypeLink, name, 0o604)
	m.Linkname = target
	return m
}

func device(typ byte, name string, major, minor int64) member {
	m := newMember(typ, name, 0o606)
	m.Devmajor, m.Devminor = major, minor
	return m
}

func fifo(name string) member { return newMember(tar.TypeFifo, name, 0o622) }

// hide is a whiteout, or with "" an opaque marker.
func hide(dir, name string) member {
	if name == "" {
		name = ".wh..opq"
	}
	return file(dir+".wh."+name, "")
}

func (m member) mode(mode int64) member  { m.Mode = mode; return m }
func (m member) owner(u, g int) member   { m.Uid, m.Gid = u, g; return m }
func (m member) time(t time.Time) member { m.ModTime = t; return m }
func (m member) xattr(kv ...string) member {
	m.PAXRecords = maps.Clone(m.PAXRecords)
	if m.PAXRecords == nil {
		m.PAXRecords = map[string]string{}
	}
	for i := 0; i < len(kv); i += 2 {
		m.PAXRecords["SCHILY.xattr."+kv[i]] = kv[i+1]
	}
	return m
}

// layer makes an archive.
func layer(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := m.Header
		h.Size = int64(len(m.body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("%s: %v", h.Name, err)
		}
		if _, err := w.Write([]byte(m.body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// words makes members of words: "a/" a directory, "a" a file, "a>b" a symbolic
// link, "a=b" a hard link, "a!" the device 0:0.
func words(list string) (all []member) {
	for _, w := range strings.Fields(list) {
		name, target, _ := strings.Cut(w, ">")
		hard, to, isLink := strings.Cut(w, "=")
		switch {
		case name != w:
			all = append(all, symlink(name, target))
		case isLink:
			all = append(all, link(hard, to))
		case strings.HasSuffix(w, "/"):
			all = append(all, dir(w[:len(w)-1]))
		case strings.HasSuffix(w, "!"):
			all = append(all, device(tar.TypeChar, w[:len(w)-1], 0, 0))
		case strings.Contains(w, ".wh."):
			all = append(all, file(w, ""))
		default:
			all = append(all, file(w, "bytes of "+list+w))
		}
	}
	return all
}

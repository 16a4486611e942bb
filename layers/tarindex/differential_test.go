package tarindex

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/objects"
)

// scanAll reads an archive with our scanner, in buffers of size bytes, as
// reference does with archive/tar.
func scanAll(p []byte, size int) (list []member, err error) {
	s := scanner{free: func(*buffer) {}, next: func() (*buffer, error) {
		n := min(size, len(p))
		b := &buffer{b: p[:n], n: n}
		p = p[n:]
		if n == 0 {
			return nil, errEnd
		}
		return b, nil
	}}
	var h header
	for {
		if err := s.header(&h); err == errEnd {
			return list, nil
		} else if err != nil {
			return list, err
		}
		m := member{Header: &tar.Header{
			Typeflag: h.typ, Name: string(h.name), Linkname: string(h.link), Mode: h.mode, Uid: int(h.uid), Gid: int(h.gid),
			ModTime: time.Unix(h.sec, int64(h.nsec)), Devmajor: h.major, Devminor: h.minor, Size: h.real,
		}}
		m.PAXRecords = make(map[string]string)
		for _, r := range h.pax {
			m.PAXRecords[string(r.key)] = string(r.value)
		}
		if h.real > 1<<20 {
			return list, tar.ErrFieldTooLong
		}
		if m.data, err = s.plainData(&h); err != nil {
			return list, err
		}
		list = append(list, m)
		if err := s.padding(h.dataSize()); err != nil {
			return list, err
		}
	}
}

// plainData reads a member's data with its holes.
func (s *scanner) plainData(h *header) ([]byte, error) {
	if h.sparse == nil {
		p := make([]byte, h.dataSize())
		return p, s.full(p)
	}
	p := make([]byte, h.real)
	for _, sp := range h.sparse {
		if err := s.full(p[sp.off : sp.off+sp.n]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// compare reports how our reading of an archive differs from archive/tar's, "" if it does not.
func compare(p []byte, size int) string {
	got, err := scanAll(p, size)
	want, werr := reference(p)
	if (err == nil) != (werr == nil) {
		return fmt.Sprintf("%v; archive/tar: %v", err, werr)
	}
	if err != nil {
		return ""
	}
	if len(got) != len(want) {
		return fmt.Sprintf("%d members, archive/tar has %d", len(got), len(want))
	}
	for i, w := range want {
		g := got[i]
		type line struct {
			Type               byte
			Name, Link         string
			Mode               int64
			UID, GID           int
			Sec                int64
			Nsec               int
			Major, Minor, Size int64
			Data               string
			Xattrs             string
		}
		of := func(m member) line {
			size := m.Size
			if headerOnly(m.Typeflag) {
				size = 0 // it means nothing
			}
			return line{m.Typeflag, m.Name, m.Linkname, m.Mode, m.Uid, m.Gid, m.ModTime.Unix(), m.ModTime.Nanosecond(),
				m.Devmajor, m.Devminor, size, string(m.data), xattrText(m.PAXRecords)}
		}
		if a, b := of(g), of(w); a != b {
			return fmt.Sprintf("member %d: %.400q; archive/tar: %.400q", i, fmt.Sprint(a), fmt.Sprint(b))
		}
	}
	return ""
}

func xattrText(recs map[string]string) string {
	var n int
	var b strings.Builder
	for _, k := range sortedKeys(recs) {
		if strings.HasPrefix(k, schilyXattr) {
			n++
			fmt.Fprintf(&b, "%q=%q ", k, recs[k])
		}
	}
	return b.String()
}

// randomFile makes a member of any kind that archive/tar can write.
func randomFile(rnd *rand.Rand) file {
	name := func(n int) string {
		p := make([]byte, 1+rnd.IntN(n))
		for i := range p {
			p[i] = "abcdefgh/._-\xff\xc3\xa9"[rnd.IntN(15)]
		}
		return string(p)
	}
	f := file{Header: tar.Header{
		Name: name(300), Mode: rnd.Int64N(0o10000), Uid: rnd.IntN(1 << 22), Gid: rnd.IntN(1 << 10),
		ModTime:  time.Unix(rnd.Int64N(1<<34)-1<<33, 0),
		Typeflag: "0123456"[rnd.IntN(7)], Format: []tar.Format{tar.FormatPAX, tar.FormatGNU, tar.FormatUSTAR}[rnd.IntN(3)],
	}}
	switch f.Typeflag {
	case '0':
		f.data = name(2000)
	case '1', '2':
		f.Linkname = name(300)
	case '3', '4':
		f.Devmajor, f.Devminor = rnd.Int64N(1<<20), rnd.Int64N(1<<20)
	}
	if f.Format == tar.FormatPAX {
		f.ModTime = f.ModTime.Add(time.Duration(rnd.IntN(1e9)))
		f.Uid <<= rnd.IntN(10)
		f.PAXRecords = map[string]string{"SCHILY.xattr.user." + name(10): name(100), "VENDOR.x": name(10)}
		for k := range f.PAXRecords {
			if strings.Contains(k, "=") {
				delete(f.PAXRecords, k)
			}
		}
	}
	return f
}

// randomArchive leaves out what archive/tar refuses to write.
func randomArchive(rnd *rand.Rand, n int) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for range n {
		f := randomFile(rnd)
		f.Size = int64(len(f.data))
		if w.WriteHeader(&f.Header) == nil {
			w.Write([]byte(f.data))
		}
	}
	w.Close()
	return buf.Bytes()
}

func TestDifferential(t *testing.T) {
	for seed := range uint64(100) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		p := randomArchive(rnd, 20)
		for _, size := range []int{512, 700, 1 << 20} {
			if diff := compare(p, size); diff != "" {
				t.Fatalf("seed %d: %s", seed, diff)
			}
		}
		for range 20 { // and damaged
			q := bytes.Clone(p)
			i := rnd.IntN(len(q))
			q[i] = byte(rnd.Uint32())
			if h := i &^ 511; i&511 < 148 || rnd.IntN(2) == 0 { // so that the checksum holds
				b := q[h : h+512]
				copy(b[148:], "        ")
				sum, _ := checksums((*[blockSize]byte)(b))
				copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
			}
			if diff := compare(q, 1<<20); diff != "" {
				t.Fatalf("seed %d damaged at %d: %s", seed, i, diff)
			}
		}
	}
}

// testArchives are those of the standard library: sparse files of all formats,
// long names, GNU, star and broken ones.
func testArchives(t testing.TB) map[string][]byte {
	dir := filepath.Join(goroot(t), "src", "archive", "tar", "testdata")
	names, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err != nil || len(names) == 0 {
		t.Skipf("no archives in %s: %v", dir, err)
	}
	list := make(map[string][]byte)
	for _, name := range names {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		list[filepath.Base(name)] = p
	}
	return list
}

func TestDifferentialTestdata(t *testing.T) {
	for name, p := range testArchives(t) {
		for _, size := range []int{512, 1000, 1 << 20} {
			if diff := compare(p, size); diff != "" {
				t.Errorf("%s: %s", name, diff)
			}
		}
	}
}

// FuzzTar compares our reading of archives with archive/tar's.
func FuzzTar(f *testing.F) {
	for _, p := range testArchives(f) {
		if len(p) < 1<<16 {
			f.Add(p, uint16(512))
		}
	}
	f.Add(randomArchive(rand.New(rand.NewPCG(1, 1)), 5), uint16(100))
	f.Fuzz(func(t *testing.T, p []byte, size uint16) {
		if diff := compare(p, 1+int(size)); diff != "" {
			t.Fatal(diff)
		}
		if diff := compare(sealed(p), 1+int(size)); diff != "" {
			t.Fatal("checksums set:", diff)
		}
	})
}

// sealed sets the checksum of every block that looks like a header, without
// which a fuzzer does not get far.
func sealed(p []byte) []byte {
	p = bytes.Clone(p)
	for i := 0; i+blockSize <= len(p); i += blockSize {
		b := (*[blockSize]byte)(p[i:])
		if *b == zeroBlock || !strings.Contains("\x0001234567xgLKS", string(b[156])) {
			continue
		}
		sum, _ := checksums(b)
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	}
	return p
}

// FuzzUnpack unpacks anything: it ends, with an index that keeps the rules or
// with an error.
func FuzzUnpack(f *testing.F) {
	plain := archive(f, sample...)
	f.Add(gzipped(f, plain), []byte(nil))
	f.Add(zstded(f, plain), []byte(nil))
	f.Add(plain, []byte(nil))
	f.Fuzz(func(t *testing.T, p, tarBytes []byte) {
		diff := digest.FromBytes(p)
		if len(tarBytes) > 0 { // compressed well, so that the rest is reached
			var buf bytes.Buffer
			w := gzip.NewWriter(&buf)
			w.Write(tarBytes)
			w.Close()
			p, diff = buf.Bytes(), digest.FromBytes(tarBytes)
		}
		u, err := Unpack(t.Context(), bytes.NewReader(p), describe(p), diff, testStore, Options{MaxPlain: 4 << 20})
		if err != nil {
			_, isDigest := errors.AsType[*layers.DigestError](err)
			if !isDigest && !isContent(err) && !strings.Contains(err.Error(), "unexpected EOF") {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		defer u.Close()
		checkEntries(t, testStore, u.Index.Entries)
		if len(tarBytes) == 0 && u.Map.Compression == layers.None {
			tarBytes = p
		}
		if len(tarBytes) > 0 {
			checkUnpacked(t, u, p, tarBytes)
		}
	})
}

// checkEntries checks what layers.Entry promises.
func checkEntries(t *testing.T, s *objects.Store, list []layers.Entry) {
	seen := make(map[string]bool)
	for _, e := range list {
		if name, err := cleanName([]byte(e.Name)); err != nil || name != e.Name || seen[e.Name] {
			t.Fatalf("name %q: %v, twice: %v", e.Name, err, seen[e.Name])
		}
		seen[e.Name] = true
		if (e.Kind == layers.Reg && e.Size > 0) != (e.Object != layers.Sum{}) {
			t.Fatalf("%q: kind %d size %d object %s", e.Name, e.Kind, e.Size, e.Object)
		}
		if e.Kind == layers.Reg && e.Size > 0 && !s.Has(e.Object) {
			t.Fatalf("%q: its object is not in the store", e.Name)
		}
		if (e.Link != "") != (e.Kind == layers.Symlink || e.Kind == layers.Hardlink) || e.Mode > 0o7777 || e.Nsec >= 1e9 {
			t.Fatalf("%q: %+v", e.Name, e)
		}
	}
}

package soci

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/tarindex"
)

// A spec is what a ztoc says, to be changed and written anew. Its encoder is made
// from the schema, and knows nothing of the decoder.
type spec struct {
	version       string
	stored, plain int64
	files         []specFile
	algorithm     byte
	maxSpan       int32
	digests       []string
	checkpoints   []byte
}

type specFile struct {
	name, typ, link, time string
	off, size, mode       int64
	uid, gid              uint32
	major, minor          int64
	records               [][2]string
}

// specOf reads a ztoc into a spec.
func specOf(t testing.TB, s *sample) *spec {
	t.Helper()
	z, err := parse(s.ztoc)
	if err != nil {
		t.Fatal(err)
	}
	c := &spec{version: version, stored: z.stored, plain: z.plain, maxSpan: int32(z.maxSpan), digests: z.digests, checkpoints: z.checkpoints, algorithm: 1}
	if z.compression == layers.None {
		c.algorithm = 2
	}
	names := map[byte]string{}
	for name, typ := range types {
		names[typ] = name
	}
	z.members(func(m *tarindex.Member, off int64) bool {
		f := specFile{name: m.Name, typ: names[m.Type], link: m.Link, off: off, size: m.Size, mode: m.Mode,
			uid: uint32(m.UID), gid: uint32(m.GID), major: m.Major, minor: m.Minor, time: time.Unix(m.Sec, int64(m.Nsec)).UTC().Format(time.RFC3339Nano)}
		for _, r := range m.Records {
			f.records = append(f.records, [2]string{r.Key, r.Value})
		}
		c.files = append(c.files, f)
		return true
	})
	if z.f.err != nil {
		t.Fatal(z.f.err)
	}
	return c
}

// small is a ztoc of an uncompressed layer with one file.
func small() (*spec, []byte) {
	stored := make([]byte, 3*block)
	copy(stored[block:], "hello")
	return &spec{version: version, stored: 3 * block, plain: 3 * block, algorithm: 2, digests: []string{string(digest.FromBytes(stored))},
		checkpoints: tarZinfo(4<<20, 3*block),
		files:       []specFile{{name: "a", typ: "reg", time: "2023-11-14T22:13:20.5Z", off: block, size: 5, mode: 0o644}}}, stored
}

func tarZinfo(step, size int64) []byte {
	var e encoder
	e.root([]any{uint32(2), step, size})
	return e.p
}

// ckpt is a checkpoint in zran's way.
type ckpt struct {
	in, out int64
	bits    byte
	window  []byte
}

func gzipZinfo(n int32, step int64, cks []ckpt) []byte {
	p := le.AppendUint64(le.AppendUint32(nil, uint32(n)), uint64(step))
	for _, c := range cks {
		p = append(le.AppendUint64(le.AppendUint64(p, uint64(c.in)), uint64(c.out)), c.bits)
		w := make([]byte, infoWindow)
		copy(w[infoWindow-len(c.window):], c.window)
		p = append(p, w...)
	}
	return p
}

func (c *spec) gzip(t testing.TB) []ckpt {
	t.Helper()
	cks, skipped, err := zinfo(c.checkpoints)
	if err != nil || skipped > 0 {
		t.Fatalf("zinfo: %d skipped, %v", skipped, err)
	}
	var list []ckpt
	for i, k := range cks {
		end := infoHead + (i+1)*infoPoint
		list = append(list, ckpt{k.in, k.out, k.bits, c.checkpoints[end-infoWindow : end]})
	}
	return list
}

// resum gives the spans of other checkpoints their digests.
func (c *spec) resum(t testing.TB, stored []byte, cks []ckpt) {
	t.Helper()
	c.checkpoints = gzipZinfo(int32(len(cks)), 0, cks)
	c.maxSpan, c.digests = int32(len(cks)-1), nil
	for i, k := range cks {
		from, to := k.in, int64(len(stored))
		if k.bits > 0 {
			from--
		}
		if i+1 < len(cks) {
			to = cks[i+1].in
		}
		from = max(0, min(from, int64(len(stored))))
		c.digests = append(c.digests, string(digest.FromBytes(stored[from:max(from, min(to, int64(len(stored))))])))
	}
}

func (c *spec) encode() []byte {
	var files []any
	for _, f := range c.files {
		var records []any
		for _, r := range f.records {
			records = append(records, []any{r[0], r[1]})
		}
		files = append(files, []any{f.name, f.typ, f.off, f.size, f.link, f.mode, f.uid, f.gid, "root", "root", f.time, f.major, f.minor, vector(records)})
	}
	var digests []any
	for _, d := range c.digests {
		digests = append(digests, d)
	}
	var e encoder
	e.root([]any{c.version, "test", c.stored, c.plain, []any{vector(files)}, []any{c.algorithm, uint32(c.maxSpan), vector(digests), c.checkpoints}})
	return e.p
}

// An encoder writes a FlatBuffer from front to back: of a table first the vtable,
// then the table, then what it refers to. A table is a []any of its fields; a
// field is an int64, uint32, byte, string, []byte, table, vector or nil.
type encoder struct{ p []byte }

type vector []any

func (e *encoder) root(t []any) {
	e.p = append(e.p, 0, 0, 0, 0)
	e.ref(0, t)
}

// ref writes v at the end and lets the offset at a place lead there.
func (e *encoder) ref(at int, v any) {
	switch v := v.(type) {
	case string:
		le.PutUint32(e.p[at:], uint32(len(e.p)-at))
		e.p = append(append(le.AppendUint32(e.p, uint32(len(v))), v...), 0)
	case []byte:
		le.PutUint32(e.p[at:], uint32(len(e.p)-at))
		e.p = append(le.AppendUint32(e.p, uint32(len(v))), v...)
	case vector:
		le.PutUint32(e.p[at:], uint32(len(e.p)-at))
		e.p = le.AppendUint32(e.p, uint32(len(v)))
		first := len(e.p)
		e.p = append(e.p, make([]byte, 4*len(v))...)
		for i := range v {
			e.ref(first+4*i, v[i])
		}
	case []any:
		e.table(at, v)
	}
}

func (e *encoder) table(at int, t []any) {
	vt, size := len(e.p), 4
	e.p = le.AppendUint16(e.p, uint16(4+2*len(t)))
	e.p = append(e.p, 0, 0)
	for _, v := range t {
		n := 4
		switch v.(type) {
		case int64:
			n = 8
		case byte:
			n = 1
		case nil:
			e.p = append(e.p, 0, 0)
			continue
		}
		e.p = le.AppendUint16(e.p, uint16(size))
		size += n
	}
	le.PutUint16(e.p[vt+2:], uint16(size))
	pos := len(e.p)
	le.PutUint32(e.p[at:], uint32(pos-at))
	e.p = append(e.p, make([]byte, size)...)
	le.PutUint32(e.p[pos:], uint32(pos-vt))
	for i, v := range t {
		f := pos + int(le.Uint16(e.p[vt+4+2*i:]))
		switch v := v.(type) {
		case int64:
			le.PutUint64(e.p[f:], uint64(v))
		case uint32:
			le.PutUint32(e.p[f:], v)
		case byte:
			e.p[f] = v
		case nil:
		default:
			e.ref(f, v)
		}
	}
}

package index

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/inflate"
	"github.com/snapfs/snapfs/layers/layerstest"
)

// corpusLayout is an OCI layout with gzip layers, for measuring with real images.
func corpusLayout(tb testing.TB) string {
	dir := os.Getenv("SNAPFS_CORPUS")
	if dir == "" {
		tb.Skip("SNAPFS_CORPUS is not the directory of an OCI layout")
	}
	return dir
}

func readJSON(tb testing.TB, dir string, d digest.Digest, to any) {
	tb.Helper()
	name := filepath.Join(dir, "index.json")
	if d != "" {
		name = filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
	}
	p, err := os.ReadFile(name)
	if err == nil {
		err = json.Unmarshal(p, to)
	}
	if err != nil {
		tb.Fatal(err)
	}
}

// corpusImages reads all images of a layout. Their maps have one point.
func corpusImages(tb testing.TB, dir string) map[string]*Image {
	tb.Helper()
	var root ocispec.Index
	readJSON(tb, dir, "", &root)
	images := make(map[string]*Image)
	known := make(map[digest.Digest]Layer)
	for _, d := range root.Manifests {
		var m ocispec.Manifest
		var c ocispec.Image
		readJSON(tb, dir, d.Digest, &m)
		readJSON(tb, dir, m.Config.Digest, &c)
		im := &Image{Manifest: d.Digest}
		for i, l := range m.Layers {
			if _, ok := known[l.Digest]; !ok {
				known[l.Digest] = corpusLayer(tb, filepath.Join(dir, "blobs/sha256", l.Digest.Encoded()), l, c.RootFS.DiffIDs[i])
			}
			im.Layers = append(im.Layers, known[l.Digest])
		}
		images[d.Annotations[ocispec.AnnotationRefName]] = im
	}
	return images
}

func corpusLayer(tb testing.TB, name string, d ocispec.Descriptor, diff digest.Digest) Layer {
	tb.Helper()
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	windows := make(memWindows)
	r := &gzipReader{g: inflate.NewGzip(&blocks{r: f, p: make([]byte, 256<<10)}), b: make([]byte, 512<<10)}
	r.g.Record(inflate.RecordOptions{Keep: func(i int, w []byte) { windows[i] = bytes.Clone(w) }})
	ix, plain, err := fromTar(r)
	if err != nil {
		tb.Fatal(err)
	}
	l := Layer{Desc: d, DiffID: diff, Index: ix, Map: r.g.Map(), Windows: windows}
	if l.Map.Plain != plain {
		tb.Fatalf("map of %d bytes, tar of %d", l.Map.Plain, plain)
	}
	return l
}

// blocks is an inflate.Source.
type blocks struct {
	r io.Reader
	p []byte
}

func (b *blocks) Next() ([]byte, error) {
	n, err := b.r.Read(b.p)
	return b.p[:n], err
}

type gzipReader struct {
	g    *inflate.Gzip
	b    []byte
	r, n int
}

func (r *gzipReader) Read(p []byte) (int, error) {
	if r.r == r.n {
		if r.n == len(r.b) {
			r.n = copy(r.b, r.b[r.n-inflate.Window:])
		}
		r.r = r.n
		var err error
		if r.n, err = r.g.Decode(r.b, r.n); r.r == r.n {
			return 0, err
		}
	}
	n := copy(p, r.b[r.r:r.n])
	r.r += n
	return n, nil
}

// fromTar reads a tar as package tarindex does, without its rules for names that
// are there twice.
func fromTar(r io.Reader) (*layers.Index, int64, error) {
	at := &countReader{r: r}
	t := tar.NewReader(at)
	ix := &layers.Index{}
	for {
		h, err := t.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, at)
			return ix, at.n, err
		}
		if err != nil {
			return nil, 0, err
		}
		e := layers.Entry{Name: strings.TrimPrefix(path.Clean("/"+h.Name), "/"), Mode: uint16(h.Mode & 0o7777), UID: uint32(h.Uid), GID: uint32(h.Gid),
			Sec: h.ModTime.Unix(), Nsec: uint32(h.ModTime.Nanosecond())}
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				e.Xattrs = append(e.Xattrs, layers.Xattr{Name: name, Value: v})
			}
		}
		switch h.Typeflag {
		case tar.TypeDir:
			e.Kind = layers.Dir
		case tar.TypeReg, tar.TypeGNUSparse:
			e.Kind, e.Size = layers.Reg, h.Size
			if err := readFile(t, &e, at.n); err != nil {
				return nil, 0, err
			}
		case tar.TypeSymlink:
			e.Kind, e.Link = layers.Symlink, h.Linkname
		case tar.TypeLink:
			e.Kind, e.Link = layers.Hardlink, strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		case tar.TypeChar:
			e.Kind, e.Major, e.Minor = layers.Char, uint32(h.Devmajor), uint32(h.Devminor)
		case tar.TypeBlock:
			e.Kind, e.Major, e.Minor = layers.Block, uint32(h.Devmajor), uint32(h.Devminor)
		case tar.TypeFifo:
			e.Kind = layers.Fifo
		default:
			return nil, 0, fmt.Errorf("%s: type %c: %w", h.Name, h.Typeflag, fs.ErrInvalid)
		}
		ix.Entries = append(ix.Entries, e)
	}
}

func readFile(r io.Reader, e *layers.Entry, place int64) error {
	all := sha256.New()
	for off := int64(0); off < e.Size; off += layers.ChunkSize {
		p := make([]byte, min(layers.ChunkSize, e.Size-off))
		if _, err := io.ReadFull(r, p); err != nil {
			return err
		}
		all.Write(p)
		e.Chunks = append(e.Chunks, layers.Chunk{Sum: layers.SumOf(p), Off: off, Size: int64(len(p)), BlobOff: place + off, BlobLen: int64(len(p))})
	}
	if e.Size > 0 {
		all.Sum(e.Object[:0])
	}
	return nil
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// TestCorpusSize holds what the design allows: 60 bytes a file in the tree
// section, 1.5 % of the compressed layers in all.
func TestCorpusSize(t *testing.T) {
	for name, im := range corpusImages(t, corpusLayout(t)) {
		_, info := write(t, im)
		var files, stored int64
		for _, l := range im.Layers {
			stored += l.Desc.Size
			for _, e := range l.Index.Entries {
				if e.Size > 0 {
					files++
				}
			}
		}
		perFile, part := float64(info.Trees)/float64(files), 100*float64(info.Size)/float64(stored)
		t.Logf("%-9s %6d files: tree %7d = %.1f a file, map %7d, windows %7d; prefix %7d; all %.2f %% of %d",
			name, files, info.Trees, perFile, info.Maps, info.Windows, info.Prefix, part, stored)
		if perFile > 60 || part > 1.5 {
			t.Errorf("%s: %.1f bytes a file, %.2f %% of the layers, want at most 60 and 1.5", name, perFile, part)
		}
	}
}

// TestCorpusEqual: what is written of real layers is read again.
func TestCorpusEqual(t *testing.T) {
	for name, im := range corpusImages(t, corpusLayout(t)) {
		p, info := write(t, im)
		got, err := Parse(p[:info.Prefix], info.Root)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got.Layers {
			l, want := &got.Layers[i], &im.Layers[i]
			layerstest.Index(t, l.Index, l.Map.Plain)
			checkWindows(t, l, p, want.Windows)
			if !reflect.DeepEqual(l.Index, want.Index) || !reflect.DeepEqual(l.Map, want.Map) {
				t.Errorf("%s: layer %d is another one when it was read again", name, i)
			}
		}
	}
}

// BenchmarkParse decodes the prefix of an index of 30,000 entries, and those of
// the corpus.
func BenchmarkParse(b *testing.B) {
	images := map[string]*Image{"30000": {Manifest: digest.FromString("m"), Layers: []Layer{manyFiles(30_000)}}}
	if dir := os.Getenv("SNAPFS_CORPUS"); dir != "" {
		maps.Copy(images, corpusImages(b, dir))
	}
	for name, im := range images {
		p, info := write(b, im)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(info.Prefix)
			b.ReportAllocs()
			before := cpu(b)
			for b.Loop() {
				if _, err := Parse(p[:info.Prefix], info.Root); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric((cpu(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// cpu is the processor time of this process, which says more than the clock on a
// machine that others use, too.
func cpu(tb testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkWrite says what an index costs to make.
func BenchmarkWrite(b *testing.B) {
	im := &Image{Manifest: digest.FromString("m"), Layers: []Layer{manyFiles(30_000)}}
	path := filepath.Join(b.TempDir(), "index")
	b.ReportAllocs()
	for b.Loop() {
		info, err := Write(b.Context(), path, im)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(info.Trees)/30_000, "tree-B/entry")
	}
}

// manyFiles is a layer of n entries, one in eight a directory, some files large.
func manyFiles(n int) Layer {
	r := rand.New(rand.NewPCG(1, 2))
	ix := &layers.Index{}
	place, dir := int64(0), ""
	for i := range n {
		place += 512
		if i%8 == 0 {
			dir = fmt.Sprintf("usr/lib/node_modules/package%d/dist", i)
			ix.Entries = append(ix.Entries, layers.Entry{Name: dir, Kind: layers.Dir, Mode: 0o755, Sec: 1.7e9 + int64(i/100)})
			continue
		}
		e := regularFile(fmt.Sprintf("%s/file%d.js", dir, r.IntN(1000)*1000+i%1000), 1+r.Int64N(20_000), place)
		if i%100 == 1 {
			e = regularFile(e.Name, 1+r.Int64N(5<<20), place)
		}
		e.Mode, e.Sec = 0o644, 1.7e9+int64(r.IntN(1000))
		place += padded(e.Size)
		ix.Entries = append(ix.Entries, e)
	}
	m := &layers.Map{Compression: layers.Gzip, Plain: place + 1024, Stored: place / 3}
	for at := int64(0); at < m.Plain; at += 1 << 20 {
		m.Points = append(m.Points, layers.Point{Plain: at, Stored: at / 3})
	}
	return Layer{Desc: desc("many", m.Stored), DiffID: digest.FromString("many"), Index: ix, Map: m}
}

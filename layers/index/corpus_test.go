package index

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/layerstest"
	"github.com/snapfs/snapfs/layers/objects"
	"github.com/snapfs/snapfs/layers/tarindex"
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

// corpusImages unpacks all images of a layout.
func corpusImages(tb testing.TB, dir string) map[string]*Image {
	tb.Helper()
	var root ocispec.Index
	readJSON(tb, dir, "", &root)
	store, err := objects.Open(tb.TempDir(), objects.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { store.Close() })
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
				known[l.Digest] = corpusLayer(tb, store, filepath.Join(dir, "blobs/sha256", l.Digest.Encoded()), l, c.RootFS.DiffIDs[i])
			}
			im.Layers = append(im.Layers, known[l.Digest])
		}
		images[d.Annotations[ocispec.AnnotationRefName]] = im
	}
	return images
}

func corpusLayer(tb testing.TB, store *objects.Store, name string, d ocispec.Descriptor, diff digest.Digest) Layer {
	tb.Helper()
	f, err := os.Open(name)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	u, err := tarindex.Unpack(tb.Context(), f, d, diff, store, tarindex.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { u.Close() })
	return Layer{Desc: d, DiffID: diff, Index: u.Index, Map: u.Map, Windows: u.Windows}
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
			same := len(want.Index.Entries) == 0 && len(l.Index.Entries) == 0 || reflect.DeepEqual(l.Index, want.Index)
			if !same || !reflect.DeepEqual(l.Map, want.Map) {
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

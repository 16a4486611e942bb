package index

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
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
	z, err := gzip.NewReader(f)
	if err != nil {
		tb.Fatal(err)
	}
	ix, plain, err := fromTar(z)
	if err != nil {
		tb.Fatal(err)
	}
	return Layer{Desc: d, DiffID: diff, Index: ix, Map: &layers.Map{Compression: layers.Gzip, Plain: plain, Stored: d.Size, Points: []layers.Point{{}}}}
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

// TestCorpusSize says what the indexes of real images need.
func TestCorpusSize(t *testing.T) {
	for name, im := range corpusImages(t, corpusLayout(t)) {
		p, info := write(t, im)
		var entries, files, stored int64
		for _, l := range im.Layers {
			stored += l.Desc.Size
			entries += int64(len(l.Index.Entries))
			for _, e := range l.Index.Entries {
				if e.Size > 0 {
					files++
				}
			}
		}
		t.Logf("%-9s %6d entries, %6d files: tree %7d = %.1f an entry, %.1f a file; map %7d; all %.2f %% of %d",
			name, entries, files, info.Trees, float64(info.Trees)/float64(entries), float64(info.Trees)/float64(files), info.Maps,
			float64(info.Size)*100/float64(stored), stored)
		h, err := ParseHeader(p, info.Root)
		if err != nil {
			t.Fatal(err)
		}
		var total [treeColumns]int
		for i := range h.Layers {
			s := h.sections[h.Layers[i].tree]
			c := cursor{p: p[s.off : s.off+s.n]}
			for j := range total {
				c.uvarint()
				total[j] += int(c.uvarint())
			}
		}
		names := []string{"head", "sets", "set", "shared", "names", "times", "time", "nsec", "sizes", "links", "devices", "same", "places", "objects"}
		var b bytes.Buffer
		for j, n := range total {
			fmt.Fprintf(&b, " %s %.2f", names[j], float64(n)/float64(entries))
		}
		t.Logf("bytes an entry:%s", b.String())
	}
}

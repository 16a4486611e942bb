package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/layers/estargz"
)

// tocFooter is the length of an eStargz footer.
const tocFooter = 51

// A toc is a table of contents of which only the entries are of interest.
type toc struct {
	Version int              `json:"version"`
	Entries []map[string]any `json:"entries"`
}

// find returns the entry of a file.
func (c *toc) find(name string) map[string]any {
	for _, e := range c.Entries {
		if e["name"] == name {
			return e
		}
	}
	panic("no entry " + name)
}

// lie makes an eStargz image of one layer whose TOC was changed by f. The
// manifest vouches for the lie.
func lie(t testing.TB, files []file, f func(*toc)) *image {
	t.Helper()
	im := newImage(t, eStargz, files)
	desc := &im.manifest.Layers[0]
	old := im.blobs[desc.Digest]
	delete(im.blobs, desc.Digest)
	off, doc := readTOC(t, old)
	var c toc
	if err := json.Unmarshal(doc, &c); err != nil {
		t.Fatal(err)
	}
	f(&c)
	doc = marshal(t, c)
	var b bytes.Buffer
	b.Write(old[:off])
	w := gzip.NewWriter(&b)
	w.Write(newTar(t, []file{reg("stargz.index.json", doc)}))
	w.Close()
	b.Write(footer(t, off))
	desc.Digest, desc.Size = digest.FromBytes(b.Bytes()), int64(b.Len())
	desc.Annotations[estargz.TOCDigestAnnotation] = digest.FromBytes(doc).String()
	im.blobs[desc.Digest] = b.Bytes()
	im.seal(t)
	return im
}

// readTOC returns where the TOC of an eStargz blob begins, and its document.
func readTOC(t testing.TB, blob []byte) (int64, []byte) {
	t.Helper()
	off, err := strconv.ParseInt(string(blob[len(blob)-tocFooter+16:len(blob)-tocFooter+32]), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(blob[off:]))
	if err != nil {
		t.Fatal(err)
	}
	r := tar.NewReader(z)
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	doc, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return off, doc
}

// tocOf is the document in the first layer, which is a member of its tar, too.
func tocOf(t testing.TB, im *image) []byte {
	_, doc := readTOC(t, im.blobs[im.layer(0)])
	return doc
}

// footer is an empty gzip member whose extra field has the TOC's offset.
func footer(t testing.TB, off int64) []byte {
	sub := fmt.Sprintf("%016xSTARGZ", off)
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.NoCompression)
	if err != nil {
		t.Fatal(err)
	}
	w.Extra = append(binary.LittleEndian.AppendUint16([]byte("SG"), uint16(len(sub))), sub...)
	w.Close()
	if b.Len() != tocFooter {
		t.Fatalf("footer of %d bytes, want %d", b.Len(), tocFooter)
	}
	return b.Bytes()
}

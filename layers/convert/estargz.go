package convert

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"maps"
	"strconv"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/layers"
)

// eStargz writes an eStargz blob with the snapshotter's own writer. It is given
// a tar without the blocks that end one: those follow the TOC, which is the last
// member.
func eStargz(out *counter, src *source, o Options) (Converted, error) {
	src.seconds = true
	c := &gzipCompressor{level: o.Level}
	if c.level == 0 {
		c.level = gzip.DefaultCompression
	}
	w := estargz.NewWriterWithCompressor(out, c)
	w.ChunkSize = o.ChunkSize
	pr, pw := io.Pipe()
	var plain int64
	var feeder errgroup.Group
	feeder.Go(func() (err error) {
		plain, err = feed(pw, src)
		pw.CloseWithError(err)
		return err
	})
	err := w.AppendTarLossLess(pr)
	pr.CloseWithError(err) // ends the feeder, if it was the writer that failed
	if first := feeder.Wait(); first != nil {
		err = first // the writer's has it as text only
	}
	if err != nil {
		return Converted{}, err
	}
	tocDigest, err := w.Close()
	if err != nil {
		return Converted{}, err
	}
	return Converted{DiffID: digest.Digest(w.DiffID()), Desc: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageLayerGzip,
		Annotations: map[string]string{
			estargz.TOCJSONDigestAnnotation:         tocDigest.String(),
			estargz.StoreUncompressedSizeAnnotation: strconv.FormatInt(plain+c.plain, 10),
		},
	}}, nil
}

// feed writes the members of src as a tar and returns its size.
func feed(w io.Writer, src *source) (n int64, err error) {
	for {
		m, err := src.next()
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		if _, err := w.Write(m.raw); err != nil {
			return n, err
		}
		if m.Size > 0 {
			if _, err := io.CopyN(w, m.body, m.Size); err != nil {
				return n, fmt.Errorf("%w: %q: %w", layers.ErrBadLayer, m.Name, err)
			}
			if _, err := w.Write(m.padding()); err != nil {
				return n, err
			}
		}
		n += int64(len(m.raw)+len(m.padding())) + m.Size
	}
}

// gzipCompressor is estargz.Compressor with a faster gzip, whose state is kept
// between chunks, and a TOC that keeps names which are not UTF-8.
type gzipCompressor struct {
	level int
	idle  *gzip.Writer
	plain int64 // bytes of the TOC's tar
}

var _ estargz.Compressor = (*gzipCompressor)(nil)

type gzipMember struct {
	*gzip.Writer
	c *gzipCompressor
}

func (m gzipMember) Close() error {
	err := m.Writer.Close()
	m.c.idle = m.Writer
	return err
}

// Writer begins a member. One is open at a time.
func (c *gzipCompressor) Writer(w io.Writer) (estargz.WriteFlushCloser, error) {
	if z := c.idle; z != nil {
		c.idle = nil
		z.Reset(w)
		return gzipMember{z, c}, nil
	}
	z, err := gzip.NewWriterLevel(w, c.level)
	return gzipMember{z, c}, err
}

// WriteTOCAndFooter ends the blob: off is where the TOC begins.
func (c *gzipCompressor) WriteTOCAndFooter(w io.Writer, off int64, toc *estargz.JTOC, diffHash hash.Hash) (digest.Digest, error) {
	doc := stargzDocument(toc)
	z, err := c.Writer(w)
	if err != nil {
		return "", err
	}
	plain := &counter{w: z, hash: diffHash}
	tw := tar.NewWriter(plain)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCTarName, Size: int64(len(doc))}); err != nil {
		return "", err
	}
	if _, err := tw.Write(doc); err != nil {
		return "", err
	}
	if err := tw.Close(); err != nil {
		return "", err
	}
	if err := z.Close(); err != nil {
		return "", err
	}
	c.plain = plain.n
	sub := fmt.Sprintf("%016xSTARGZ", off)
	extra := binary.LittleEndian.AppendUint16([]byte("SG"), uint16(len(sub)))
	if _, err := w.Write(estargz.CreateGzipFooter(append(extra, sub...))); err != nil {
		return "", err
	}
	return digest.FromBytes(doc), nil
}

// stargzDocument is the TOC as JSON.
func stargzDocument(toc *estargz.JTOC) []byte {
	o := object(fmt.Appendf(nil, `{"version":%d,"entries":[`, toc.Version))
	for i, e := range toc.Entries {
		if i > 0 {
			o = append(o, ',')
		}
		o = append(o, '{')
		o.str("name", e.Name)
		o.str("type", e.Type)
		o.num("size", e.Size)
		o.str("modtime", e.ModTime3339)
		o.str("linkName", e.LinkName)
		o.num("mode", e.Mode)
		o.num("uid", int64(e.UID))
		o.num("gid", int64(e.GID))
		o.str("userName", e.Uname)
		o.str("groupName", e.Gname)
		o.num("offset", e.Offset)
		o.num("innerOffset", e.InnerOffset)
		o.num("devMajor", int64(e.DevMajor))
		o.num("devMinor", int64(e.DevMinor))
		o.xattrs(maps.Collect(func(yield func(string, string) bool) {
			for k, v := range e.Xattrs {
				if !yield(k, string(v)) {
					return
				}
			}
		}))
		o.str("digest", e.Digest)
		o.num("chunkOffset", e.ChunkOffset)
		o.num("chunkSize", e.ChunkSize)
		o.str("chunkDigest", e.ChunkDigest)
		o = append(o, '}')
	}
	return append(o, "]}\n"...)
}

package index

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// Info says what Write wrote.
type Info struct {
	Root   layers.Sum    // of the header
	Prefix int64         // bytes that are needed before a container can run
	Digest digest.Digest // of the whole file, as of a blob
	Size   int64
	// Bytes of the sections, for whoever wonders what they are spent on.
	Profile, Trees, Maps, Windows int64
}

// Write writes the index of im to path: whole and durable, or not at all. A
// layer that cannot be written, because its Index and Map are not as package
// layers says, wraps layers.ErrBadLayer or layers.ErrTooLarge; one that is not
// mapped must have a Reason. Memory is needed for the prefix, not for the windows.
func Write(ctx context.Context, path string, im *Image) (_ Info, err error) {
	w := &writer{z: newEncoder(), dir: filepath.Dir(path)}
	if w.spool, err = os.CreateTemp(w.dir, ".index-*"); err != nil {
		return Info{}, err
	}
	defer func() { err = errors.Join(err, w.spool.Close(), os.Remove(w.spool.Name())) }()
	if err := w.image(ctx, im); err != nil {
		return Info{}, fmt.Errorf("index of %s: %w", im.Manifest, err)
	}
	var info Info
	err = create(path, func(f *os.File) (err error) {
		info, err = w.writeTo(f)
		return err
	})
	return info, err
}

// A writer gathers the sections of an index.
type writer struct {
	z      *zstd.Encoder
	dir    string
	spool  *os.File // the windows
	header Header

	profile, trees, maps, windows []section
	bytes                         [kindWindows][][]byte // of the sections, by kind
}

func (w *writer) image(ctx context.Context, im *Image) error {
	w.header.Manifest = im.Manifest
	if im.Profile != nil {
		p, s, err := encodeProfile(w.z, im.Profile)
		if err != nil {
			return fmt.Errorf("boot profile: %w", err)
		}
		w.add(&w.profile, s, p)
	}
	if len(im.Layers) > MaxLayers {
		return fmt.Errorf("%w: %d layers", layers.ErrTooLarge, len(im.Layers))
	}
	spool := bufio.NewWriterSize(w.spool, 256<<10)
	for i := range im.Layers {
		l := &im.Layers[i]
		w.header.Layers = append(w.header.Layers, LayerInfo{
			Desc:   ocispec.Descriptor{MediaType: l.Desc.MediaType, Digest: l.Desc.Digest, Size: l.Desc.Size},
			DiffID: l.DiffID, Reason: l.Reason,
		})
		if err := w.layer(ctx, spool, l, uint16(i)); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return spool.Flush()
}

func (w *writer) layer(ctx context.Context, spool io.Writer, l *Layer, i uint16) error {
	if !l.Mapped() {
		if l.Reason == "" || l.Index != nil {
			return fmt.Errorf("%w: no map, and no reason for it", layers.ErrBadLayer)
		}
		return nil
	}
	if err := checkLayer(l); err != nil {
		return err
	}
	entries := l.Index.Entries
	files, err := findFiles(entries)
	if err == nil {
		err = checkPlaces(entries, l.Map.Plain)
	}
	if err != nil {
		return badLayer(err)
	}
	tree, s := encodeTree(w.z, entries, files)
	s.layer = i
	w.add(&w.trees, s, tree)
	return w.mapSection(ctx, spool, l, i, files)
}

func (w *writer) mapSection(ctx context.Context, spool io.Writer, l *Layer, i uint16, files []file) error {
	var cols [mapColumns][]byte
	n, err := encodeChunks(cols[:], l.Index.Entries, files)
	if err != nil {
		return badLayer(err)
	}
	if n > maxChunks {
		return fmt.Errorf("%w: %d chunks", layers.ErrTooLarge, n)
	}
	table, err := sealed(ctx, w.z, l.Map, l.Windows, func(p []byte) error {
		_, err := spool.Write(p)
		return err
	})
	if err != nil {
		return err
	}
	encodeMap(cols[:], l.Map, table)
	s := section{kind: kindMap, layer: i, records: uint32(n)}
	p, plain := pack(w.z, 1<<mapChunkSums|1<<mapWindowSum, cols[:]...)
	s.plain = plain
	w.add(&w.maps, s, p)
	win := section{kind: kindWindows, layer: i, records: uint32(len(table)), n: stored(table), plain: windowBytes(l.Map)}
	w.windows = append(w.windows, win)
	return nil
}

func (w *writer) add(to *[]section, s section, p []byte) {
	s.n, s.sum = int64(len(p)), layers.SumOf(p)
	*to = append(*to, s)
	w.bytes[s.kind] = append(w.bytes[s.kind], p)
}

func checkLayer(l *Layer) error {
	if l.Reason != "" || l.Index == nil || l.Index.Compression != layers.None {
		return fmt.Errorf("%w: has a map, and no index that goes with it", layers.ErrBadLayer)
	}
	if err := l.Map.Check(); err != nil {
		return err
	}
	if l.Map.Stored != l.Desc.Size {
		return fmt.Errorf("%w: map of %d stored bytes, blob of %d", layers.ErrBadLayer, l.Map.Stored, l.Desc.Size)
	}
	return nil
}

// badLayer wraps ErrBadLayer unless err wraps one of layers' sentinels.
func badLayer(err error) error {
	if errors.Is(err, layers.ErrTooLarge) {
		return err
	}
	return fmt.Errorf("%w: %w", layers.ErrBadLayer, err)
}

// writeTo writes what was gathered.
func (w *writer) writeTo(f io.Writer) (info Info, err error) {
	h := &w.header
	for _, list := range [][]section{w.profile, w.trees, w.maps, w.windows} {
		for _, s := range list {
			*[...]*int64{kindProfile: &info.Profile, kindTree: &info.Trees, kindMap: &info.Maps, kindWindows: &info.Windows}[s.kind] += s.n
		}
		h.sections = append(h.sections, list...)
	}
	head, err := h.encode()
	if err != nil {
		return info, err
	}
	info.Root, info.Prefix, info.Size = layers.SumOf(head), h.Prefix, h.Size
	sum := sha256.New()
	out := bufio.NewWriterSize(io.MultiWriter(f, sum), 256<<10)
	out.Write(head) // its errors are Flush's
	for _, list := range w.bytes {
		for _, p := range list {
			out.Write(p)
		}
	}
	if _, err := w.spool.Seek(0, io.SeekStart); err != nil {
		return info, err
	}
	if _, err := io.Copy(out, w.spool); err != nil {
		return info, err
	}
	err = out.Flush()
	info.Digest = digest.NewDigest(digest.SHA256, sum)
	return info, err
}

// create makes a file at path with what write writes: whole and durable, or not
// at all.
func create(path string, write func(*os.File) error) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".index-*")
	if err != nil {
		return err
	}
	err = errors.Join(write(f), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

package index

import (
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/snapfs/snapfs/layers"
)

// Parse reads an index of which p is the prefix, or more of it. The header's sum
// must be root. It keeps nothing of p. The layers are decoded at once.
func Parse(p []byte, root layers.Sum) (*Image, error) {
	h, err := ParseHeader(p, root)
	if err != nil {
		return nil, err
	}
	im := &Image{Manifest: h.Manifest, Layers: make([]Layer, len(h.Layers))}
	if im.Profile, err = h.Profile(p); err != nil {
		return nil, err
	}
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range h.Layers {
		g.Go(func() error {
			l, err := h.Layer(p, i)
			if err == nil {
				im.Layers[i] = *l
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return im, nil
}

// Profile returns the boot profile, nil if there is none, out of p, the first
// bytes of the index. It lies directly behind the header.
func (h *Header) Profile(p []byte) (*Profile, error) {
	if len(h.sections) == 0 || h.sections[0].kind != kindProfile {
		return nil, nil
	}
	p, err := h.section(p, 0)
	if err != nil {
		return nil, err
	}
	pr, err := decodeProfile(p, &h.sections[0])
	if err != nil {
		return nil, fmt.Errorf("boot profile: %w", err)
	}
	return pr, nil
}

// Layer decodes layer i, lowest first, out of p, the prefix of the index. Of a
// layer that is not mapped it returns what the header says.
func (h *Header) Layer(p []byte, i int) (*Layer, error) {
	info := &h.Layers[i]
	l := &Layer{Desc: info.Desc, DiffID: info.DiffID, Reason: info.Reason}
	if !info.Mapped() {
		return l, nil
	}
	entries, files, err := h.tree(p, info.tree)
	if err == nil {
		err = h.maps(p, info, l, entries, files)
	}
	if err != nil {
		return nil, fmt.Errorf("layer %d: %w", i, err)
	}
	l.Index = &layers.Index{Entries: entries}
	return l, nil
}

// Tree decodes the entries of layer i without their chunks: what names and
// attributes can be shown with before the map section is there. p is the first
// bytes of the index, up to TreeEnd at least. The layer must be mapped.
func (h *Header) Tree(p []byte, i int) ([]layers.Entry, error) {
	if !h.Layers[i].Mapped() {
		return nil, fmt.Errorf("layer %d is not mapped: %s", i, h.Layers[i].Reason)
	}
	entries, _, err := h.tree(p, h.Layers[i].tree)
	if err != nil {
		return nil, fmt.Errorf("layer %d: %w", i, err)
	}
	return entries, nil
}

// TreeEnd is where the tree section of layer i ends, bytes; 0 if it has none.
func (h *Header) TreeEnd(i int) int64 {
	if !h.Layers[i].Mapped() {
		return 0
	}
	s := &h.sections[h.Layers[i].tree]
	return s.off + s.n
}

func (h *Header) tree(p []byte, i int) ([]layers.Entry, []file, error) {
	p, err := h.section(p, i)
	if err != nil {
		return nil, nil, err
	}
	entries, files, err := decodeTree(p, &h.sections[i])
	if err != nil {
		return nil, nil, fmt.Errorf("tree: %w", err)
	}
	return entries, files, nil
}

// maps decodes the map section of a layer, and gives entries their chunks.
func (h *Header) maps(p []byte, info *LayerInfo, l *Layer, entries []layers.Entry, files []file) error {
	s, w := &h.sections[info.maps], &h.sections[info.windows]
	p, err := h.section(p, info.maps)
	if err != nil {
		return err
	}
	var cols [mapColumns]cursor
	total, err := unpack(p, s.plain, cols[:])
	if err == nil && total != s.plain {
		err = fmt.Errorf("%w: %d plain bytes, want %d", ErrCorrupt, total, s.plain)
	}
	if err == nil {
		l.Map, l.Table, err = decodeMap(cols[:], w.off)
	}
	if err == nil && (stored(l.Table) != w.n || len(l.Table) != int(w.records)) {
		err = fmt.Errorf("%w: windows of %d points in %d bytes, the header says %d in %d", ErrCorrupt, len(l.Table), stored(l.Table), w.records, w.n)
	}
	if err == nil && windowBytes(l.Map) != w.plain {
		err = fmt.Errorf("%w: windows of %d plain bytes, the header says %d", ErrCorrupt, windowBytes(l.Map), w.plain)
	}
	if err == nil && l.Map.Stored != info.Desc.Size {
		err = fmt.Errorf("%w: of a blob of %d bytes, the layer has %d", ErrCorrupt, l.Map.Stored, info.Desc.Size)
	}
	if err == nil {
		err = decodeChunks(cols[:], entries, files, int64(s.records))
	}
	if err == nil {
		err = ended(cols[:])
	}
	if err == nil {
		if err = checkPlaces(entries, l.Map.Plain); err != nil {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
	}
	if err != nil {
		return fmt.Errorf("map: %w", err)
	}
	return nil
}

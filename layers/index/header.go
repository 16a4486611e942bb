package index

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

const (
	magic       = "snapfsim"
	headerSize  = 48
	sectionSize = 64
	noLayer     = math.MaxUint16
)

var le = binary.LittleEndian

// The kinds of sections, in the order of the file.
type kind uint8

const (
	kindProfile kind = iota + 1
	kindTree
	kindMap
	kindWindows
)

func (k kind) String() string {
	if k > kindWindows {
		k = 0
	}
	return [...]string{"unknown", "profile", "tree", "map", "windows"}[k]
}

// A section is a run of the file.
type section struct {
	kind    kind
	layer   uint16 // noLayer for those of the image
	records uint32 // entries of a tree, chunks of a map, points of windows, items of a profile
	off, n  int64
	plain   int64      // bytes of the columns; of a tree also those of its names, written out
	sum     layers.Sum // of the n bytes; zeros for windows
}

// A Header is the beginning of an index. It is immutable.
type Header struct {
	Manifest digest.Digest
	Layers   []LayerInfo
	Len      int64 // bytes of the header
	Prefix   int64 // bytes up to the end of the last map section: all that is needed before a container can run
	Size     int64 // bytes of the whole index

	sections []section
}

// A LayerInfo is what the header says of a layer.
type LayerInfo struct {
	Desc   ocispec.Descriptor // digest, size and media type
	DiffID digest.Digest
	Reason string // why it is not mapped; "" if it is

	tree, maps, windows int // places in sections, -1 without
}

// Mapped reports whether the layer can be read through the index.
func (l *LayerInfo) Mapped() bool { return l.Reason == "" }

// encode gives the sections their places and returns the header.
func (h *Header) encode() ([]byte, error) {
	if len(h.Layers) > MaxLayers {
		return nil, fmt.Errorf("%w: %d layers", layers.ErrTooLarge, len(h.Layers))
	}
	tail := appendText(nil, h.Manifest)
	for i := range h.Layers {
		l := &h.Layers[i]
		if err := l.check(); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
		tail = appendText(tail, l.Desc.Digest)
		tail = binary.AppendUvarint(tail, uint64(l.Desc.Size))
		tail = appendText(tail, l.Desc.MediaType)
		tail = appendText(tail, l.DiffID)
		tail = appendText(tail, l.Reason)
	}
	h.Len = int64(headerSize + sectionSize*len(h.sections) + len(tail))
	if h.Len > MaxHeader {
		return nil, fmt.Errorf("%w: header of %d bytes", layers.ErrTooLarge, h.Len)
	}
	h.Size, h.Prefix = h.Len, h.Len
	for i := range h.sections {
		s := &h.sections[i]
		s.off = h.Size
		if h.Size += s.n; s.kind != kindWindows {
			h.Prefix = h.Size
		}
	}
	p := append(make([]byte, 0, h.Len), magic...)
	p = le.AppendUint32(p, Version)
	p = le.AppendUint32(p, uint32(h.Len))
	p = le.AppendUint64(p, uint64(h.Prefix))
	p = le.AppendUint64(p, uint64(h.Size))
	p = le.AppendUint32(p, uint32(len(h.Layers)))
	p = le.AppendUint32(p, uint32(len(h.sections)))
	p = append(p, make([]byte, headerSize-len(p))...)
	for _, s := range h.sections {
		p = append(p, byte(s.kind), 0)
		p = le.AppendUint16(p, s.layer)
		p = le.AppendUint32(p, s.records)
		p = le.AppendUint64(p, uint64(s.off))
		p = le.AppendUint64(p, uint64(s.n))
		p = le.AppendUint64(p, uint64(s.plain))
		p = append(p, s.sum[:]...)
	}
	return append(p, tail...), h.check()
}

// ParseHeader reads the header of the index whose first bytes p are: the header
// at least, the prefix usually. A header with another sum than root is a
// *layers.DigestError in ErrCorrupt.
func ParseHeader(p []byte, root layers.Sum) (*Header, error) {
	n, err := headerLen(p)
	if err != nil {
		return nil, err
	}
	if int64(len(p)) < n {
		return nil, fmt.Errorf("%w: %d bytes, its header has %d", ErrCorrupt, len(p), n)
	}
	if got := layers.SumOf(p[:n]); got != root {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, &layers.DigestError{Want: root.Digest(), Got: got.Digest(), From: "header"})
	}
	h := &Header{Len: n}
	if err := h.decode(p[:n]); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	return h, nil
}

// headerLen returns how many bytes the header has of which p is the beginning,
// 16 bytes at least. Nothing vouches for it.
func headerLen(p []byte) (int64, error) {
	if len(p) < 16 || string(p[:8]) != magic {
		return 0, fmt.Errorf("%w: it does not begin like one", ErrCorrupt)
	}
	if v := le.Uint32(p[8:]); v != Version {
		if v < Version {
			return 0, fmt.Errorf("%w: version %d", ErrCorrupt, v)
		}
		return 0, fmt.Errorf("%w: %d, this program reads %d", ErrVersion, v, Version)
	}
	n := int64(le.Uint32(p[12:]))
	if n > MaxHeader {
		return 0, fmt.Errorf("%w: header of %d bytes", layers.ErrTooLarge, n)
	}
	if n < headerSize {
		return 0, fmt.Errorf("%w: header of %d bytes", ErrCorrupt, n)
	}
	return n, nil
}

// decode reads a header of which sum and length are right.
func (h *Header) decode(p []byte) error {
	h.Prefix, h.Size = int64(le.Uint64(p[16:])), int64(le.Uint64(p[24:]))
	nl, ns := le.Uint32(p[32:]), le.Uint32(p[36:])
	if nl > MaxLayers || ns > 3*MaxLayers+1 {
		return fmt.Errorf("%w: %d layers, %d sections", layers.ErrTooLarge, nl, ns)
	}
	if le.Uint64(p[40:]) != 0 || len(p) < headerSize+int(ns)*sectionSize {
		return fmt.Errorf("%w: table of %d sections", ErrCorrupt, ns)
	}
	p = p[headerSize:]
	h.sections = make([]section, ns)
	for i := range h.sections {
		h.sections[i] = section{
			kind: kind(p[0]), layer: le.Uint16(p[2:]), records: le.Uint32(p[4:]),
			off: int64(le.Uint64(p[8:])), n: int64(le.Uint64(p[16:])), plain: int64(le.Uint64(p[24:])), sum: layers.Sum(p[32:64]),
		}
		if p[1] != 0 {
			return fmt.Errorf("%w: section %d has unknown flags", ErrCorrupt, i)
		}
		p = p[sectionSize:]
	}
	c := cursor{p: p}
	h.Manifest = digest.Digest(c.text(MaxReason))
	h.Layers = make([]LayerInfo, min(int(nl), len(p)))
	for i := range h.Layers {
		l := &h.Layers[i]
		l.Desc.Digest = digest.Digest(c.text(MaxReason))
		l.Desc.Size = c.number(layers.MaxFile)
		l.Desc.MediaType = string(c.text(MaxReason))
		l.DiffID = digest.Digest(c.text(MaxReason))
		l.Reason = string(c.text(MaxReason))
	}
	if c.bad || len(c.p) > 0 || len(h.Layers) != int(nl) {
		return fmt.Errorf("%w: list of %d layers", ErrCorrupt, nl)
	}
	return nil
}

// check checks what must be true of a header, and notes which sections are of
// which layer.
func (h *Header) check() error {
	if err := h.Manifest.Validate(); err != nil {
		return fmt.Errorf("%w: manifest digest %q: %w", ErrCorrupt, h.Manifest, err)
	}
	for i := range h.Layers {
		l := &h.Layers[i]
		if err := l.check(); err != nil {
			return fmt.Errorf("layer %d: %w", i, err)
		}
		l.tree, l.maps, l.windows = -1, -1, -1
	}
	end, prefix := h.Len, h.Len
	var plain, records [kindWindows + 1]int64
	for i := range h.sections {
		s := &h.sections[i]
		if err := h.place(i); err != nil {
			return fmt.Errorf("section %d: %w", i, err)
		}
		if s.off != end || s.n < 0 || s.n > layers.MaxFile || s.plain < 0 || s.plain > layers.MaxFile {
			return fmt.Errorf("%w: section %d: %d bytes (plain %d) at %d, want them at %d", ErrCorrupt, i, s.n, s.plain, s.off, end)
		}
		if end += s.n; end > layers.MaxFile {
			return fmt.Errorf("%w: index of more than %d bytes", layers.ErrTooLarge, int64(layers.MaxFile))
		}
		if s.kind != kindWindows {
			prefix = end
		}
		plain[s.kind] += s.plain
		records[s.kind] += int64(s.records)
	}
	switch {
	case end != h.Size || prefix != h.Prefix:
		return fmt.Errorf("%w: sections of %d bytes, %d of them prefix: the header says %d and %d", ErrCorrupt, end, prefix, h.Size, h.Prefix)
	case prefix > MaxPrefix || plain[kindProfile] > maxPlainMaps || plain[kindTree] > maxPlainTrees || plain[kindMap] > maxPlainMaps:
		return fmt.Errorf("%w: prefix of %d bytes, %d of trees, %d of maps, %d of the profile when decoded", layers.ErrTooLarge,
			prefix, plain[kindTree], plain[kindMap], plain[kindProfile])
	case records[kindTree] > layers.MaxImageFiles || records[kindMap] > maxChunks || records[kindWindows] > maxPoints:
		return fmt.Errorf("%w: %d entries, %d chunks, %d points", layers.ErrTooLarge, records[kindTree], records[kindMap], records[kindWindows])
	}
	for i := range h.Layers {
		if l := &h.Layers[i]; l.Mapped() && (l.tree < 0 || l.maps < 0 || l.windows < 0) {
			return fmt.Errorf("%w: layer %d is mapped and has not all sections", ErrCorrupt, i)
		}
	}
	return nil
}

// place notes section i at its layer. Sections are in order of kind, then layer,
// each once.
func (h *Header) place(i int) error {
	s := &h.sections[i]
	if s.kind < kindProfile || s.kind > kindWindows {
		return fmt.Errorf("%w: unknown kind %d", ErrCorrupt, s.kind)
	}
	if i > 0 {
		if l := &h.sections[i-1]; s.kind < l.kind || s.kind == l.kind && s.layer <= l.layer {
			return fmt.Errorf("%w: %v section is out of order", ErrCorrupt, s.kind)
		}
	}
	if s.kind == kindProfile {
		if s.layer != noLayer {
			return fmt.Errorf("%w: profile of layer %d", ErrCorrupt, s.layer)
		}
		return nil
	}
	if int(s.layer) >= len(h.Layers) || !h.Layers[s.layer].Mapped() {
		return fmt.Errorf("%w: %v of layer %d, which is not mapped", ErrCorrupt, s.kind, s.layer)
	}
	l := &h.Layers[s.layer]
	*[]*int{&l.tree, &l.maps, &l.windows}[s.kind-kindTree] = i
	return nil
}

func (l *LayerInfo) check() error {
	for _, d := range []digest.Digest{l.Desc.Digest, l.DiffID} {
		if err := d.Validate(); err != nil {
			return fmt.Errorf("%w: digest %q: %w", ErrCorrupt, d, err)
		}
	}
	if l.Desc.Size < 0 || l.Desc.Size > layers.MaxFile || len(l.Desc.MediaType) > MaxReason || len(l.Reason) > MaxReason {
		return fmt.Errorf("%w: %d bytes of %.40q: %.40q", layers.ErrTooLarge, l.Desc.Size, l.Desc.MediaType, l.Reason)
	}
	return nil
}

// section returns the bytes of a section out of p, the first of the index, if
// their sum is right.
func (h *Header) section(p []byte, i int) ([]byte, error) {
	s := &h.sections[i]
	if int64(len(p)) < s.off+s.n {
		return nil, fmt.Errorf("%w: %d bytes, the %v section ends at %d", ErrCorrupt, len(p), s.kind, s.off+s.n)
	}
	p = p[s.off : s.off+s.n]
	if got := layers.SumOf(p); got != s.sum {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, &layers.DigestError{Want: s.sum.Digest(), Got: got.Digest(), From: s.kind.String() + " section"})
	}
	return p, nil
}

// Package index is the published index of one image: a file that says of each
// layer which files it holds, what their bytes sum to, and where in the stored
// blob decoding can begin, so that a node which has never seen the image can
// start it from its ordinary gzip, zstd and tar layers. It can carry the boot
// profile, what starts of the image read first; the boot bundle is those bytes.
//
//	header | profile | tree … | map …      | windows …
//	└────────────── the prefix ─────────┘    by range, when a miss needs one
//
// The SHA-256 of the header, the root, vouches for all: the header has the sums
// of the sections, a map section those of its windows. Nothing is decoded before
// its sum was found right, and nothing makes more memory than the limits below,
// whatever it says. docs/index-format.md describes every byte.
//
// Beside it are what a node keeps of a layer's map and windows ([MapFile]), and
// the annotations by which an index is found ([Annotations]).
//
// Invariants: what Parse returns passes layers.Map.Check, every chunk that is
// stored lies in the layer's plain bytes, and no two overlap. What Write takes,
// Parse returns, to the bit.
package index

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// Version is of the format that Write makes and the newest that Parse reads.
const Version = 1

// Media types of the artifact that an index is published as.
const (
	ArtifactType    = "application/vnd.snapfs.index.v1"
	MediaTypeIndex  = "application/vnd.snapfs.index.v1+bin"
	MediaTypeBundle = "application/vnd.snapfs.bundle.v1+zstd"
)

// Limits of an index. What is beyond one is refused with layers.ErrTooLarge.
const (
	MaxLayers = 4096    // as of a manifest
	MaxHeader = 4 << 20 // bytes
	MaxPrefix = 1 << 30 // bytes of header, profile, trees and maps
	MaxReason = 255     // bytes

	// Of all layers together, because each byte that comes in can cost many.
	maxPlainTrees = layers.MaxTOC // bytes that the tree sections become
	maxPlainMaps  = 128 << 20     // bytes that the map sections become: two of marks are 16 in memory
	maxChunks     = 24 << 20      // one of each file, and a tebibyte of full ones
	maxPoints     = 4 << 20
)

// Sentinels. Each error says what is wrong.
var (
	// ErrCorrupt says that bytes are not what their sum promised, or mean nothing.
	ErrCorrupt = fmt.Errorf("corrupt index: %w", fs.ErrInvalid)
	// ErrVersion says that a newer program wrote it.
	ErrVersion = errors.New("index of a newer version")
	// ErrOtherImage says that an index is whole, and of another image.
	ErrOtherImage = errors.New("index of another image")
	// ErrNoWindow says that a window is neither kept here nor can be fetched.
	ErrNoWindow = errors.New("no window")
)

// An Image is what an index says.
type Image struct {
	Manifest digest.Digest // of the platform's image manifest
	Layers   []Layer       // lowest first, as in the manifest
	Profile  *Profile      // nil if there is none
}

// A Layer is what an index says of one layer.
type Layer struct {
	Desc   ocispec.Descriptor // digest, size and media type, the rest is dropped
	DiffID digest.Digest
	// Reason is why the layer is not mapped: it has a table of contents of its
	// own, or cannot be split. Then there are no Index, Map and windows. A
	// mapped layer has none.
	Reason string
	// Index is as package layers says of one that goes with a Map. All of its
	// files have chunks.
	Index *layers.Index
	Map   *layers.Map
	// Windows is for Write: the windows of Map's points. If it has a method
	//
	//	Stored(ctx context.Context, i int) ([]byte, error)
	//
	// as a MapFile has, windows are taken in their stored form from there.
	Windows layers.Windows
	// Table is from Parse: of each of Map's points, where its window is in the
	// index.
	Table []Window
}

// Mapped reports whether the layer can be read through the index.
func (l *Layer) Mapped() bool { return l.Map != nil }

// A Window is where the window of a point is stored.
type Window struct {
	Off int64      // in the index blob
	Len int32      // stored bytes; 0 if there is no window or it is all zeros: nothing has to be fetched
	Sum layers.Sum // of the stored bytes; zeros if Len is 0
}

// Window returns the window of point i, given the Table[i].Len bytes that are
// stored at Table[i].Off. Bytes with another sum are a *layers.DigestError.
func (l *Layer) Window(i int, stored []byte) ([]byte, error) {
	return l.Table[i].open(i, l.Map.Points[i].Window, stored)
}

// Check returns an error that wraps ErrOtherImage unless the index is of this
// manifest with these layers.
func (h *Header) Check(manifest digest.Digest, descs []ocispec.Descriptor, diffIDs []digest.Digest) error {
	if h.Manifest != manifest {
		return fmt.Errorf("%w: manifest %s, want %s", ErrOtherImage, h.Manifest, manifest)
	}
	if len(h.Layers) != len(descs) || len(descs) != len(diffIDs) {
		return fmt.Errorf("%w: %d layers, want %d", ErrOtherImage, len(h.Layers), len(descs))
	}
	for i, l := range h.Layers {
		if l.Desc.Digest != descs[i].Digest || l.Desc.Size != descs[i].Size {
			return fmt.Errorf("%w: layer %d is %s of %d bytes, want %s of %d", ErrOtherImage, i,
				l.Desc.Digest, l.Desc.Size, descs[i].Digest, descs[i].Size)
		}
		if l.DiffID != diffIDs[i] {
			return fmt.Errorf("%w: layer %d has diff ID %s, want %s", ErrOtherImage, i, l.DiffID, diffIDs[i])
		}
	}
	return nil
}

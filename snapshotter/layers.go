package snapshotter

import (
	"context"
	"errors"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/opencontainers/go-digest"
)

// An Image says as a part of which image a layer is asked for.
type Image struct {
	Ref      string        // as containerd names it: "docker.io/library/redis:7"
	Manifest digest.Digest // of the platform's manifest; "" if it is not known, then Ref is resolved
}

// A Layer is one layer of an image that the book of images holds.
type Layer struct {
	Key    string        // what the book calls it
	Image  Image         // where it can be had again
	Blob   digest.Digest // of the layer as it is stored in the registry
	DiffID digest.Digest // of its tar
}

// An IDMap shifts owners, as the mappings of a user namespace do. The zero value
// shifts nothing.
type IDMap struct {
	UID, GID string // CONTAINER:HOST:SIZE, several with commas, as in containerd's labels
}

// A Stack is a run of layers that are shown as one directory.
type Stack struct {
	Layers []Layer // the lowest of an image and those above it, in this order; see chain
	Map    IDMap
}

// Mounted is a stack that is mounted.
type Mounted struct {
	Dir  string   // names and attributes: a lower directory of an overlay
	Data []string // data-only layers that belong to it, in the order in which they are searched
}

// ErrNotOurs says that the book of images leaves a layer to containerd, which
// can fetch and unpack it as it does on any snapshotter.
var ErrNotOurs = errors.New("left to containerd")

// Layers is the book of images, as a snapshotter needs it.
type Layers interface {
	// Layer makes a layer of an image readable. The first call for an image
	// brings in all of its layers, together; each call returns when its layer is
	// there. Until release, and as long as Held names it, the layer stays. The
	// error is ErrNotOurs-wrapped if the layer cannot be had: whatever the reason,
	// the image is then containerd's affair, and explained to users. diffID is
	// empty if it is not known (containerd before 2.3); that of l is what counts.
	// A layer is asked for only if everything below it is held.
	Layer(ctx context.Context, im Image, blob, diffID digest.Digest) (l Layer, release func(), err error)
	// Mount mounts a stack, once. What a crash has cost is fetched again.
	Mount(ctx context.Context, s Stack) (Mounted, error)
	// Usage is what a layer really holds on disk now. An object that several
	// layers share is counted for the first that has it.
	Usage(ctx context.Context, l Layer) (snapshots.Usage, error)
	// Leave notes, for users, why a layer of an image is left to containerd for a
	// reason of the snapshotter's own.
	Leave(im Image, why error)
	// Collect soon releases what nothing holds any more. It returns at once.
	Collect()
}

// Held is what a snapshotter keeps from being collected.
type Held struct {
	Layers []Layer // of all committed snapshots
	Stacks []Stack // that an active snapshot or a view may be mounted from
}

package snapshotter

import (
	_ "crypto/sha256" // digests
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
)

// labelParent is the chain ID of the layer below (containerd 2.3, core/unpack/unpacker.go).
const labelParent = "containerd.io/snapshot/parent-chain-id"

// A claim is what containerd says of a layer that it is about to unpack.
//
//	label                                    since   whose word it is
//	containerd.io/snapshot.ref               1.3     the unpacker's: target
//	containerd.io/snapshot/diff-id           2.3     the unpacker's
//	containerd.io/snapshot/parent-chain-id   2.3     the unpacker's; none in the lowest layer
//	containerd.io/snapshot/cri.image-ref     1.4     the client's, if it gives these at all;
//	…/cri.manifest-digest, cri.layer-digest          else an annotation in the manifest passes for it
//
// So nothing but target is believed, and target proves the others: it is made
// of the layer's diff ID and its parent's chain ID (image-spec, config.md, Layer ChainID).
type claim struct {
	image  Image
	blob   digest.Digest
	target digest.Digest // chain ID
	diffID digest.Digest // "": not said
	parent digest.Digest // chain ID; "": not said
}

// readClaim reads a claim. It is not complete if something is not a digest, or
// no image is named: then there is nobody to ask for the layer.
func readClaim(labels map[string]string) (c claim, complete bool) {
	d := func(label string, into *digest.Digest) bool {
		v, ok := labels[label]
		if !ok {
			return false
		}
		parsed, err := digest.Parse(v)
		if err == nil {
			*into = parsed
		}
		return err == nil
	}
	c.image.Ref = labels[snapshotters.TargetRefLabel]
	d(snapshotters.TargetManifestDigestLabel, &c.image.Manifest)
	ok := d(snapshotters.TargetLayerDigestLabel, &c.blob)
	ok = d(snapshots.LabelSnapshotRef, &c.target) && ok
	_, said := labels[snapshots.LabelSnapshotDiffID]
	ok = (d(snapshots.LabelSnapshotDiffID, &c.diffID) || !said) && ok
	_, said = labels[labelParent]
	ok = (d(labelParent, &c.parent) || !said) && ok
	return c, ok && c.image.Ref != ""
}

// lowest says whether the layer has none below it, as far as its labels tell.
func (c claim) lowest() (yes, known bool) {
	switch {
	case c.parent != "":
		return false, true
	case c.diffID != "" && c.target != "":
		return c.diffID == c.target, true
	}
	return false, false
}

// proves says whether target is the layer with this diff ID on parent.
func (c claim) proves(diffID, parent digest.Digest) bool {
	if parent == "" {
		return diffID == c.target
	}
	return diffID != "" && identity.ChainID([]digest.Digest{parent, diffID}) == c.target
}

// unpacks says whether a snapshot is made to have a layer written into it.
// containerd's client, which has no labels for that, has a form of key with a
// space, which no ID of a container has. The metadata store puts
// "NAMESPACE/NUMBER/" before it.
func unpacks(key string, labels map[string]string) bool {
	if labels[snapshots.LabelSnapshotRef] != "" {
		return true
	}
	key = key[strings.LastIndexByte(key, '/')+1:]
	head, tail, ok := strings.Cut(key, " ")
	return ok && strings.HasPrefix(head, snapshots.UnpackKeyPrefix+"-") && digest.Digest(tail).Validate() == nil
}

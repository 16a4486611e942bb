// Package blobs is a content store for containerd in which the blobs of every
// image that snapd knows are there, though most of them are only in a registry:
// containerd's own store on disk (plugins/content/local) for what it is given,
// and for the rest a *promise*, kept when somebody reads.
//
// A lazily pulled image leaves no layers in containerd's content store, so
// pushing or exporting it, mounting it with another snapshotter, or building on
// it there ends in "content not found". With this store behind containerd
// ([proxy_plugins.X] type = "content", and io.containerd.content.v1.content in
// disabled_plugins, since containerd takes exactly one), its metadata store finds
// such a blob by Info and makes an entry without moving a byte
// (core/metadata/content.go, Writer, under the policy "shared").
//
// The first reader of a promised blob waits until all of it is in the store on
// disk: only a whole blob can be compared with its digest, and no byte is handed
// out before. Readers of one blob share one fetch, which ends when the last of
// them has left and goes on from there when the next comes.
//
// What is asked for is written down (ROOT/promised) before it is promised, with
// where it can be had, so an entry in containerd outlives the image in snapd's
// book. Walk lists what was written down, and containerd's garbage collector,
// which deletes what it walks over and no namespace has, withdraws it.
// It never sees the rest of the book. So each containerd needs a store of its
// own: what one of them does not know it deletes.
//
// Errors are errdefs': ErrUnavailable if the registry does not answer,
// ErrPermissionDenied and ErrNotFound if that is its answer, ErrDataLoss if it
// sends other bytes, ErrResourceExhausted if the disk is full.
//
//	ROOT/blobs, ROOT/ingest      containerd's layout, plugins/content/local
//	ROOT/promised/ALG-HEX        descriptor and sources of a promise, JSON
//	ROOT/labels/ALG-HEX          labels of a blob, JSON; containerd keeps its own, elsewhere
package blobs

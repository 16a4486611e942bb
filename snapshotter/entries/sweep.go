package entries

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	namespacesapi "github.com/containerd/containerd/api/services/namespaces/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
)

// maxDocuments bounds the manifests and indexes that are read of one image.
const maxDocuments = 256

// sweep makes the entries that all images of containerd should have: those that
// a worker owed when it died, and those of images that were pulled before the
// content store was snapd's.
func (c *client) sweep(ctx context.Context) error {
	r, err := namespacesapi.NewNamespacesClient(c.conn).List(ctx, &namespacesapi.ListNamespacesRequest{})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	for _, ns := range r.GetNamespaces() {
		if err := c.sweepNamespace(namespaces.WithNamespace(ctx, ns.GetName()), ns.GetName()); err != nil {
			return fmt.Errorf("namespace %s: %w", ns.GetName(), err)
		}
	}
	return nil
}

func (c *client) sweepNamespace(ctx context.Context, ns string) error {
	r, err := imagesapi.NewImagesClient(c.conn).List(ctx, &imagesapi.ListImagesRequest{})
	if err != nil {
		return errgrpc.ToNative(err)
	}
	made, seen := 0, map[digest.Digest]bool{}
	for _, im := range r.GetImages() {
		t := im.GetTarget()
		n, err := c.sweepImage(ctx, ocispec.Descriptor{MediaType: t.GetMediaType(), Digest: digest.Digest(t.GetDigest()), Size: t.GetSize()}, seen)
		made += n
		switch {
		case err == nil:
		case temporary(err) || ctx.Err() != nil:
			return err
		default: // one bad image must not keep the others from theirs
			c.Log.Warn("layers of an image may have no entry in containerd's content store", "ref", im.GetName(), "namespace", ns, "err", err)
		}
	}
	if made > 0 {
		c.Log.Info("layers of images have got their entries in containerd's content store", "namespace", ns, "n", made)
	}
	return nil
}

// sweepImage goes through the manifests of an image that are there. seen are
// documents that were looked at for another image.
func (c *client) sweepImage(ctx context.Context, target ocispec.Descriptor, seen map[digest.Digest]bool) (made int, err error) {
	todo := []ocispec.Descriptor{target}
	for n := 0; len(todo) > 0 && n < maxDocuments; n++ {
		d := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		var doc struct {
			Manifests []ocispec.Descriptor `json:"manifests"`
			Layers    []ocispec.Descriptor `json:"layers"`
		}
		switch err := c.document(ctx, d, &doc); {
		case errdefs.IsNotFound(err): // of a platform that was not pulled
			continue
		case err != nil:
			return made, err
		}
		if images.IsIndexType(d.MediaType) {
			todo = append(todo, doc.Manifests...)
			continue
		}
		for _, l := range doc.Layers {
			ok, err := c.missing(ctx, l.Digest)
			if err != nil {
				return made, err
			}
			if ok {
				made++
			}
		}
	}
	return made, nil
}

// missing makes the entry of a layer that has none, if it can be made.
func (c *client) missing(ctx context.Context, blob digest.Digest) (made bool, err error) {
	if _, err := c.store.Info(ctx, blob); !errdefs.IsNotFound(err) {
		return false, err
	}
	info, err := c.Info(ctx, blob)
	if errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, c.enter(ctx, info)
}

// document reads a manifest or an index.
func (c *client) document(ctx context.Context, d ocispec.Descriptor, v any) error {
	r, err := c.store.ReaderAt(ctx, d)
	if err != nil {
		return err
	}
	raw, err := io.ReadAll(io.LimitReader(content.NewReader(r), layers.MaxManifest+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	if len(raw) > layers.MaxManifest {
		return fmt.Errorf("%s: %w", d.Digest, layers.ErrTooLarge)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", d.Digest, err)
	}
	return nil
}

package soci_test

import (
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/indexfile"
	"github.com/snapfs/snapfs/layers/soci"
)

// The first layer of an image is served by the ztoc that its index names: get
// gives a blob of the image's repository.
func serve(manifest ocispec.Manifest, get func(digest.Digest) []byte, blob layers.Blob, fetcher *fetch.Fetcher) (*soci.Files, error) {
	bound, _ := soci.Bound(manifest.Annotations)
	index, err := soci.ParseIndex(get(bound), bound)
	if err != nil {
		return nil, err
	}
	desc := manifest.Layers[0]
	z, _ := index.ZTOC(desc.Digest)
	l, err := soci.Open(get(z.Digest), z.Digest, desc)
	if err != nil {
		return nil, err
	}
	if err := indexfile.Write("layer.spans", l.Spans); err != nil {
		return nil, err
	}
	spans, err := indexfile.Open("layer.spans")
	if err != nil {
		return nil, err
	}
	fetcher.Add("layer", fetch.Layer{Blob: blob, Index: spans})
	files := soci.NewFiles(fetcher, 0)
	files.Add("layer", l) // what l.Index names its objects can be read from files now
	return files, nil
}

func Example() {
	_ = serve
}

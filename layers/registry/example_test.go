package registry_test

import (
	"context"
	"fmt"
	"io"

	"github.com/snapfs/snapfs/layers/registry"
)

func Example() {
	creds := new(registry.DockerCredentials)
	r := registry.New(registry.Options{Credentials: creds.Lookup})
	defer r.Close()
	ref, err := registry.ParseRef("debian:13-slim")
	if err != nil {
		fmt.Println(err)
		return
	}
	read := func(ctx context.Context) error {
		img, err := r.Resolve(ctx, ref, "")
		if err != nil {
			return err
		}
		for _, l := range img.Manifest.Layers {
			rc, err := img.Stream(ctx, l)
			if err != nil {
				return err
			}
			n, err := io.Copy(io.Discard, registry.Verify(rc, l))
			rc.Close()
			fmt.Println(l.Digest, n, err)
		}
		return nil
	}
	_ = read // needs the network
	fmt.Println(ref)
	// Output: docker.io/library/debian:13-slim
}

package snapshotter_test

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/snapfs/snapfs/snapshotter"
)

// Without a book of images every layer is a directory, as on overlayfs.
func Example() {
	root, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(root)
	s, err := snapshotter.New(snapshotter.Options{Root: root + "/root", Run: root + "/run"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer s.Close()
	ctx := context.Background()
	mounts, err := s.Prepare(ctx, "unpacking", "")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(len(mounts), mounts[0].Type)
	if err := s.Commit(ctx, "layer", "unpacking", snapshots.WithLabels(map[string]string{"a": "label"})); err != nil {
		fmt.Println(err)
		return
	}
	mounts, err = s.Prepare(ctx, "container", "layer")
	fmt.Println(len(mounts), mounts[0].Type, err)
	// Output:
	// 1 bind
	// 1 overlay <nil>
}

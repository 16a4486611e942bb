package integration

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"

	"github.com/snapfs/snapfs/internal/peers"
)

// TestContainerdSuite is what containerd's client integration tests do with a
// snapshotter (integration/client/snapshot_test.go): the suite, through a
// containerd with its metadata and its collector.
func TestContainerdSuite(t *testing.T) {
	t.Parallel()
	for _, k := range []kind{{peer: peers.Containerd24}, {peer: peers.Containerd22, serial: true}} {
		t.Run(k.String(), func(t *testing.T) {
			m := startServed(t, "")
			c := m.containerd("c", k)
			s := m.snapshotsAt(c.socket())
			// The name says what is expected of the file system: not to rename directories of a lower layer.
			testsuite.SnapshotterSuite(t, "overlayfs", func(context.Context, string) (snapshots.Snapshotter, func() error, error) {
				return s, func() error { return nil }, nil
			})
		})
	}
}

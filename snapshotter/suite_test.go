package snapshotter

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// TestSuite is containerd's own, on the snapshotter itself.
func TestSuite(t *testing.T) {
	needsRoot(t)
	// The name says what is expected of the file system: not to rename directories of a lower layer.
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(Options{Root: filepath.Join(root, "root"), Run: filepath.Join(root, "run")})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

// TestSuiteGRPC is the same through gRPC, as containerd has it.
func TestSuiteGRPC(t *testing.T) {
	needsRoot(t)
	testsuite.SnapshotterSuite(t, "overlayfs", func(_ context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(Options{Root: filepath.Join(root, "root"), Run: filepath.Join(root, "run")})
		if err != nil {
			return nil, nil, err
		}
		client, stop, err := dial(s, filepath.Join(root, "sock"))
		if err != nil {
			return nil, nil, errors.Join(err, s.Close())
		}
		return client, func() error { return errors.Join(stop(), s.Close()) }, nil
	})
}

// dial serves s at a socket and connects to it.
func dial(s *Snapshotter, sock string) (_ snapshots.Snapshotter, stop func() error, err error) {
	l, err := net.Listen("unix", sock)
	if err != nil {
		return nil, nil, err
	}
	server := grpc.NewServer()
	Register(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+sock, grpc.WithTransportCredentials(insecure.NewCredentials()))
	stop = func() error {
		if conn != nil {
			conn.Close()
		}
		server.Stop()
		return <-served
	}
	if err != nil {
		return nil, nil, errors.Join(err, stop())
	}
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "snapfs"), stop, nil
}

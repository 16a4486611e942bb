package snapshotter

import (
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// Register makes a gRPC server answer containerd's snapshots API by s.
func Register(server grpc.ServiceRegistrar, s *Snapshotter) {
	snapshotsapi.RegisterSnapshotsServer(server, service{snapshotservice.FromSnapshotter(s)})
}

// A service is containerd's, with the one error translated that it leaves out (2.4).
type service struct{ snapshotsapi.SnapshotsServer }

func (s service) List(r *snapshotsapi.ListSnapshotsRequest, out snapshotsapi.Snapshots_ListServer) error {
	return errgrpc.ToGRPC(s.SnapshotsServer.List(r, out))
}

package entries

import (
	"context"
	"strings"

	api "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// Backing is what a containerd has for a content store.
type Backing int

// What there can be.
const (
	Unknown  Backing = iota
	Other            // not ours
	Isolated         // ours, with namespaces isolated: entries need bytes
	Shared           // ours
)

func (b Backing) String() string {
	switch b {
	case Other:
		return "another than snapd's: layers of lazily pulled images are not in it"
	case Isolated:
		return `snapd's, but content_sharing_policy is "isolated": layers of lazily pulled images get no entry`
	case Shared:
		return "snapd's"
	}
	return "not known"
}

const (
	contentPlugin  = "io.containerd.content.v1"
	metadataPlugin = "io.containerd.metadata.v1"
)

// Ask finds out whether the containerd behind conn has the content store at the
// unix socket as its own: a proxy plugin exports its address
// (cmd/containerd/server/server.go, LoadPlugins), and the metadata plugin its policy.
func Ask(ctx context.Context, conn grpc.ClientConnInterface, socket string) (Backing, error) {
	r, err := api.NewIntrospectionClient(conn).Plugins(ctx, &api.PluginsRequest{
		Filters: []string{"type==" + contentPlugin, "type==" + metadataPlugin},
	})
	if err != nil {
		return Unknown, errgrpc.ToNative(err)
	}
	is := Other
	for _, p := range r.GetPlugins() {
		if p.GetType() == contentPlugin && p.GetInitErr() == nil && strings.TrimPrefix(p.GetExports()["address"], "unix://") == socket {
			is = Shared
		}
	}
	for _, p := range r.GetPlugins() {
		if p.GetType() == metadataPlugin && p.GetExports()["policy"] == "isolated" && is == Shared {
			is = Isolated
		}
	}
	return is, nil
}

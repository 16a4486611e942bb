package integration

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/image-spec/identity"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/snapfs/snapfs/internal/peers"
)

// client is the snapshotter as containerd's clients have it.
func (c *ctrd) client() snapshots.Snapshotter {
	c.Helper()
	conn, err := grpc.NewClient("unix://"+c.socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.Fatal(err)
	}
	c.TB.Cleanup(func() { conn.Close() })
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), c.snapshotter)
}

// chainID is the snapshot that containers of an image begin with.
func (im *image) chainID(t testing.TB) string {
	return identity.ChainID(im.diffIDs(t)).String()
}

// TestContainerdMany: 50 pulls at once, of images that share layers and of one
// image, and then 200 snapshots at once.
func TestContainerdMany(t *testing.T) {
	t.Parallel()
	hub := newHub(t)
	m := startServed(t, "")
	c := m.containerd("c", kind{peer: peers.Containerd24})
	const images, pulls, prepares = 10, 50, 200
	shared, common := base(t), someFiles(1600, "common", 30)
	list := make([]*image, images)
	for i := range list {
		list[i] = newImage(t, []string{eStargz, gzipTar, zstdTar}[i%3], shared, common, someFiles(uint64(1601+i), "data", 10))
		hub.put(t, fmt.Sprint("many", i), list[i])
	}
	var wg sync.WaitGroup
	for i := range pulls {
		ref := hub.ref(fmt.Sprint("many", i%images))
		wg.Go(func() {
			if _, err := c.command(t.Context(), "ctr", c.pullArgs(ref)...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	for i, im := range list {
		ref := hub.ref(fmt.Sprint("many", i))
		im.checkSums(t, "data/", c.run(ref, "/inside", "sums", "/data"))
		im.checkSums(t, "common/", c.run(ref, "/inside", "sums", "/common"))
	}

	s := c.client()
	ctx := namespaces.WithNamespace(t.Context(), "default")
	took := make([]time.Duration, prepares)
	for i := range prepares {
		wg.Go(func() {
			begin := time.Now()
			if err := prepareOne(ctx, s, fmt.Sprint("snapshot", i), list[i%images].chainID(t)); err != nil {
				t.Error(err)
			}
			took[i] = time.Since(begin)
		})
	}
	wg.Wait()
	slices.Sort(took)
	t.Logf("%d Prepares at once: median %v, p99 %v", prepares, took[prepares/2], took[prepares*99/100])
	for i := range prepares {
		wg.Go(func() {
			if err := s.Remove(ctx, fmt.Sprint("snapshot", i)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	c.empty()
	m.nothingLeftSoon()
}

// prepareOne makes a snapshot for a container. Nothing refers to it, so it is
// kept from containerd's collector.
func prepareOne(ctx context.Context, s snapshots.Snapshotter, key, parent string) error {
	_, err := s.Prepare(ctx, key, parent, snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "1"}))
	if err != nil {
		return err
	}
	_, err = s.Mounts(ctx, key)
	return err
}

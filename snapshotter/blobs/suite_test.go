package blobs

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/content/testsuite"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	bolt "go.etcd.io/bbolt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// proxied returns s as containerd sees it: over a socket.
func proxied(t *testing.T, s *Store) content.Store {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(ServerOptions()...)
	api.RegisterContentServer(server, NewServer(s, nil))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		server.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return proxy.NewContentStore(conn)
}

// meta puts containerd's metadata store in front of cs.
func meta(t *testing.T, cs content.Store, opts ...metadata.DBOpt) (*metadata.DB, *bolt.DB) {
	t.Helper()
	b, err := bolt.Open(filepath.Join(t.TempDir(), "meta.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return metadata.NewDB(b, cs, nil, opts...), b
}

// newNamespaces lets the suite switch namespaces.
func newNamespaces(ctx context.Context, b *bolt.DB) context.Context {
	var count atomic.Int64
	name := testsuite.Name(ctx)
	return testsuite.SetContextWrapper(ctx, func(ctx context.Context, sharedNS bool) (context.Context, func(context.Context) error, error) {
		ns := fmt.Sprintf("%s-n%d", name, count.Add(1))
		ctx = namespaces.WithNamespace(ctx, ns)
		done := func(context.Context) error { return nil }
		if !sharedNS {
			return ctx, done, nil
		}
		return ctx, done, b.Update(func(tx *bolt.Tx) error {
			return metadata.NewNamespaceStore(tx).SetLabel(ctx, ns, labels.LabelSharedNamespace, "true")
		})
	})
}

// TestSuite runs containerd's suite on the store alone, as a proxy plugin, and
// as what containerd makes of that.
func TestSuite(t *testing.T) {
	open := func(t *testing.T, root string) *Store {
		s, err := Open(t.Context(), Options{Root: root, Book: noBook{}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("alone", func(t *testing.T) {
		testsuite.ContentSuite(t, "alone", func(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
			s := open(t, root)
			return ctx, s, s.Close, nil
		})
	})
	t.Run("proxied", func(t *testing.T) {
		testsuite.ContentSuite(t, "proxied", func(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
			s := open(t, root)
			return ctx, proxied(t, s), s.Close, nil
		})
	})
	behind := func(t *testing.T, opts ...metadata.DBOpt) testsuite.StoreInitFn {
		return func(ctx context.Context, root string) (context.Context, content.Store, func() error, error) {
			s := open(t, root)
			db, b := meta(t, proxied(t, s), opts...)
			return newNamespaces(ctx, b), db.ContentStore(), s.Close, nil
		}
	}
	t.Run("behind", func(t *testing.T) {
		testsuite.ContentSuite(t, "behind", behind(t))
		testsuite.ContentCrossNSSharedSuite(t, "behind", behind(t))
		testsuite.ContentCrossNSIsolatedSuite(t, "behind", behind(t, metadata.WithPolicyIsolated))
		testsuite.ContentSharedNSIsolatedSuite(t, "behind", behind(t, metadata.WithPolicyIsolated))
	})
}

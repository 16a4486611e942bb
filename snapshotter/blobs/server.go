package blobs

import (
	"context"

	api "github.com/containerd/containerd/api/services/content/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/plugins/services/content/contentserver"
	"google.golang.org/grpc"
)

// ServerOptions are what the gRPC server needs that the content service is
// registered at: containerd's client of it (core/content/proxy) sends 8 MiB at
// once, and gRPC's own limit is 4.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize), grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize)}
}

// NewServer returns the content service over s, for a gRPC server with
// ServerOptions. used, if it is not nil, is told of each call: whoever calls has
// its content here.
func NewServer(s *Store, used func()) api.ContentServer {
	if used == nil {
		used = func() {}
	}
	return server{contentserver.New(s), used}
}

// server is containerd's, with one difference. That drops what was written if
// Info knows its digest when it is committed. Bytes that are here are better than
// a promise, so there Info knows only what is here.
type server struct {
	api.ContentServer
	used func()
}

func (s server) Write(session api.Content_WriteServer) error {
	s.used()
	return s.ContentServer.Write(writeSession{session})
}

func (s server) Info(ctx context.Context, r *api.InfoRequest) (*api.InfoResponse, error) {
	s.used()
	return s.ContentServer.Info(ctx, r)
}

func (s server) List(r *api.ListContentRequest, session api.Content_ListServer) error {
	s.used()
	return s.ContentServer.List(r, session)
}

func (s server) Read(r *api.ReadContentRequest, session api.Content_ReadServer) error {
	s.used()
	return s.ContentServer.Read(r, session)
}

type writeSession struct{ api.Content_WriteServer }

func (w writeSession) Context() context.Context {
	return context.WithValue(w.Content_WriteServer.Context(), writing{}, true)
}

type writing struct{}

// inWrite tells whether ctx is of a write over gRPC.
func inWrite(ctx context.Context) bool { return ctx.Value(writing{}) != nil }

// Package rpc is a gRPC server on a socket that somebody else holds: with bounds
// on what a client may ask for at once, panics that end a call and not the
// process, calls counted, and an end that lets calls finish if they do so soon.
//
// containerd keeps one connection open for as long as both live, and has no
// second try: a call that is cut fails a pull. So a server that stops takes no
// new calls (they wait in the queue of the socket, for the next server), lets
// those under way go on for a while, ends their contexts then, and only then cuts them.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path"
	"runtime/debug"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// Bounds of a server. Clients are root, and in all of containerd's clients one of
// them is many: it forwards what they ask for over one connection.
const (
	MaxMessage = 16 << 20 // bytes each way; containerd's own (defaults.DefaultMaxRecvMsgSize, 2.4.2)
	maxStreams = 1000     // calls under way on one connection; more wait
	maxHeader  = 64 << 10 // bytes of one call's metadata; labels are not among them
)

// Options of a Server. The zero value works.
type Options struct {
	// Grace is how long calls may go on after the end of Serve's context before
	// theirs end, and then how long they may take to return; 0: 3 s.
	Grace time.Duration
	// After is told of every call of one message that has ended, with what was
	// asked and answered; nil: nobody is.
	After func(ctx context.Context, method string, req, resp any, err error)
	// Unknown answers, by the name of a service, its methods that are not registered.
	Unknown map[string]grpc.StreamHandler
	Log     *slog.Logger // nil: discard
}

// A Server is a gRPC server that serves once.
type Server struct {
	o       Options
	grpc    *grpc.Server
	calls   calls
	missing error           // why services are not there
	over    context.Context // ends calls that have not ended by themselves
	end     context.CancelFunc
}

// ErrStopping is why a call was ended.
var ErrStopping = status.Error(codes.Unavailable, "snapd stops, or its worker is replaced; try again")

// New makes a server without services.
func New(o Options) *Server {
	if o.Grace == 0 {
		o.Grace = 3 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o}
	s.over, s.end = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(
		grpc.MaxRecvMsgSize(MaxMessage), grpc.MaxSendMsgSize(MaxMessage),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(10*time.Second),
		// A client may ask whether we live. We need not ask: a unix socket says when it ends.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(s.unary), grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(s.unknown),
	)
	return s
}

// Without makes calls of services that are not there fail as unavailable, and
// say why. To be called before Serve.
func (s *Server) Without(why error) { s.missing = why }

// unknown answers what no service answers.
func (s *Server) unknown(srv any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	if h := s.o.Unknown[path.Dir(strings.TrimPrefix(method, "/"))]; h != nil {
		return h(srv, stream)
	}
	if s.missing != nil {
		return status.Error(codes.Unavailable, s.missing.Error())
	}
	return status.Error(codes.Unimplemented, "this socket has no such service")
}

// RegisterService adds a service; see [grpc.ServiceRegistrar].
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) { s.grpc.RegisterService(d, impl) }

// Serve answers at l until ctx ends, and returns when no call is under way. It
// closes l. Calls that came too late, and those that had to be ended, are ErrStopping.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		s.stop()
	})
	err := s.grpc.Serve(l)
	if stop() { // it ended by itself
		s.end()
		s.grpc.Stop()
		return err
	}
	<-stopped
	return nil
}

func (s *Server) stop() {
	late := time.AfterFunc(s.o.Grace, s.end)
	defer late.Stop()
	overdue := time.AfterFunc(2*s.o.Grace, s.grpc.Stop)
	defer overdue.Stop()
	s.grpc.GracefulStop()
	s.end()
}

// call runs one call.
func (s *Server) call(ctx context.Context, method string, counted bool, run func(context.Context) error) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(s.over, func() { cancel(ErrStopping) })
	defer stop()
	begun := time.Now()
	s.calls.open.Add(1)
	defer func() {
		if p := recover(); p != nil {
			s.o.Log.Error("panic in a call", "method", method, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = status.Error(codes.Internal, "a fault of snapd's: see its log")
		}
		if c := code(err); (c == codes.Canceled || c == codes.Unknown) && errors.Is(context.Cause(ctx), ErrStopping) {
			err = ErrStopping
		}
		s.calls.open.Add(-1)
		if counted {
			s.calls.count(method, code(err), time.Since(begun))
		}
	}()
	return run(ctx)
}

// code is what a client will see of err: an error without a code is Unknown,
// unless it is that of a context (see grpc.Server.processUnaryRPC).
func code(err error) codes.Code {
	if _, ok := status.FromError(err); ok {
		return status.Code(err)
	}
	return status.FromContextError(err).Code()
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (resp any, err error) {
	err = s.call(ctx, info.FullMethod, true, func(ctx context.Context) error {
		resp, err = handle(ctx, req)
		if s.o.After != nil {
			s.o.After(ctx, info.FullMethod, req, resp, err)
		}
		return err
	})
	return resp, err
}

// stream is for a call of several messages, or of no service: those are not counted.
func (s *Server) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return s.call(stream.Context(), info.FullMethod, srv != nil, func(ctx context.Context) error {
		return handle(srv, &bounded{stream, ctx})
	})
}

// bounded is a stream whose context ends with the server.
type bounded struct {
	grpc.ServerStream
	ctx context.Context
}

func (b *bounded) Context() context.Context { return b.ctx }

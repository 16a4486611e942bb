// Package cri stands between the kubelet and containerd's image service
// (runtime.v1.ImageService of the CRI): what the kubelet asks is forwarded as it is,
// and so are the answers. On the way it takes note of the pull secrets that
// PullImage carries, which reach the node in no other way, and of the end of images.
//
// Only PullImage and RemoveImage are looked into, field by field; messages are not
// decoded otherwise, so fields and methods that are newer than this package pass
// through it. RuntimeService is not served: the kubelet is told of two endpoints.
package cri

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/snapfs/snapfs/internal/credentials"
)

const (
	maxMessage = 16 << 20        // bytes; kubelet's and containerd's own (cri-client, pkg/remote, maxMsgSize)
	maxWait    = 3 * time.Second // between attempts to reach containerd (cri-client, pkg/remote, maxBackoffDelay)
)

// Options of a Proxy.
type Options struct {
	// Address is the path of containerd's socket. It need not be there yet: calls
	// are then answered with Unavailable.
	Address string
	Pulls   *credentials.Pulls
	Log     *slog.Logger // nil discards
}

// A Proxy answers for containerd's image service.
type Proxy struct {
	o    Options
	conn *grpc.ClientConn
	reqs sync.WaitGroup // one for each call, that forwards what is asked
}

// New makes a proxy; it connects when it is first asked.
func New(o Options) (*Proxy, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	wait := backoff.DefaultConfig
	wait.MaxDelay = maxWait
	conn, err := grpc.NewClient("unix://"+o.Address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: wait, MinConnectTimeout: maxWait}),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, err
	}
	return &Proxy{o: o, conn: conn}, nil
}

// Service is the name of what is forwarded.
const Service = "runtime.v1.ImageService"

// methods are those that a server counts by their name.
var methods = []string{"ListImages", "StreamImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"}

// Register makes a server forward the methods that are known to be; [Proxy.Forward]
// is for the others.
func (p *Proxy) Register(s grpc.ServiceRegistrar) {
	d := grpc.ServiceDesc{ServiceName: Service, HandlerType: (*any)(nil), Metadata: "api.proto"}
	for _, m := range methods {
		// For us each is a stream of any number of messages each way.
		d.Streams = append(d.Streams, grpc.StreamDesc{StreamName: m, Handler: p.Forward, ServerStreams: true, ClientStreams: true})
	}
	s.RegisterService(&d, p)
}

// Close ends what is under way and hangs up.
func (p *Proxy) Close() error {
	err := p.conn.Close()
	p.reqs.Wait()
	return err
}

// Forward is a [grpc.StreamHandler]: it carries one call of any method. An emptypb.Empty knows no field, so it keeps a message
// as the bytes that it came in (google.golang.org/protobuf, unknown fields).
func (p *Proxy) Forward(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	ctx, cancel := context.WithCancel(in.Context())
	defer cancel()
	md, _ := metadata.FromIncomingContext(ctx)
	ctx = metadata.NewOutgoingContext(ctx, onward(md))
	out, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	w := p.watch(strings.TrimPrefix(method, "/"+Service+"/"))
	asked := make(chan error, 1)
	p.reqs.Go(func() {
		err := p.requests(in, out, w)
		if err != nil {
			cancel() // the caller has gone, or has sent what is no message
		}
		asked <- err
	})
	err = p.answers(in, out, w)
	select {
	case aerr := <-asked:
		if aerr != nil && status.Code(err) == codes.Canceled && in.Context().Err() == nil {
			err = aerr
		}
	default: // containerd has ended the call before it was asked all
	}
	w.end(err)
	return err
}

// onward is the metadata of a call without that of its connection.
func onward(md metadata.MD) metadata.MD {
	md = md.Copy()
	for k := range md {
		if strings.HasPrefix(k, ":") || strings.HasPrefix(k, "grpc-") {
			delete(md, k)
		}
	}
	for _, k := range []string{"content-type", "user-agent", "connection", "te"} {
		delete(md, k)
	}
	return md
}

func (p *Proxy) requests(in grpc.ServerStream, out grpc.ClientStream, w *watch) error {
	for {
		m := new(emptypb.Empty)
		err := in.RecvMsg(m)
		if errors.Is(err, io.EOF) {
			return out.CloseSend()
		}
		if err != nil {
			return err
		}
		w.request(m.ProtoReflect().GetUnknown())
		if err := out.SendMsg(m); errors.Is(err, io.EOF) {
			return nil // the answer says why
		} else if err != nil {
			return err
		}
	}
}

func (p *Proxy) answers(in grpc.ServerStream, out grpc.ClientStream, w *watch) error {
	header, err := out.Header()
	if err == nil && len(header) > 0 {
		err = in.SendHeader(onward(header))
	}
	if err != nil {
		return err
	}
	for {
		m := new(emptypb.Empty)
		err := out.RecvMsg(m)
		if err != nil {
			in.SetTrailer(onward(out.Trailer()))
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		w.answer(m.ProtoReflect().GetUnknown())
		if err := in.SendMsg(m); err != nil {
			return err
		}
	}
}

// A watch looks at the messages of one call.
type watch struct {
	p      *Proxy
	method string

	mu    sync.Mutex // requests and answers may pass at the same time
	ended bool
	pull  *credentials.Pull
	image string
	id    string
}

func (p *Proxy) watch(method string) *watch { return &watch{p: p, method: method} }

// request takes note of what is asked before containerd sees it: layers may be asked
// for before the pull ends.
func (w *watch) request(raw []byte) {
	switch w.method {
	case "PullImage":
		image, auth, err := parsePull(raw)
		if err != nil {
			return // containerd will say so
		}
		pull, err := w.p.o.Pulls.Begin(image, auth)
		if err != nil {
			w.p.o.Log.Warn("credentials of a pull are not used", "ref", image[:min(len(image), 200)], "err", err)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.ended || w.pull != nil { // it was given up meanwhile, or asks twice
			pull.Done("", context.Canceled)
			return
		}
		w.pull = pull
	case "RemoveImage":
		image, err := parseRemove(raw)
		if err != nil {
			return
		}
		w.mu.Lock()
		w.image = image
		w.mu.Unlock()
	}
}

func (w *watch) answer(raw []byte) {
	if w.method != "PullImage" {
		return
	}
	if id, err := parsePulled(raw); err == nil {
		w.mu.Lock()
		w.id = id
		w.mu.Unlock()
	}
}

func (w *watch) end(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	w.pull.Done(w.id, err)
	if w.image != "" && err == nil {
		w.p.o.Pulls.Remove(w.image)
	}
}

package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	health "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// service is one that does as the name in a request says.
type service struct {
	health.UnimplementedHealthServer
	entered chan string
	proceed chan struct{}
}

func (s *service) Check(ctx context.Context, r *health.HealthCheckRequest) (*health.HealthCheckResponse, error) {
	name, _, _ := strings.Cut(r.Service, " ")
	s.entered <- name
	switch name {
	case "panics":
		panic("on purpose")
	case "fails":
		return nil, status.Error(codes.AlreadyExists, "it does")
	case "waits":
		<-s.proceed
	case "hangs":
		<-ctx.Done()
		return nil, ctx.Err()
	case "late":
		<-ctx.Done()
		return nil, status.Error(codes.AlreadyExists, "it does")
	}
	return &health.HealthCheckResponse{}, nil
}

func (s *service) Watch(_ *health.HealthCheckRequest, w health.Health_WatchServer) error {
	s.entered <- "watch"
	<-w.Context().Done()
	return w.Context().Err()
}

// A stand is a socket with a server, and a client of it.
type stand struct {
	*testing.T
	path     string
	listener *net.UnixListener // as a supervisor would hold it
	service  *service
	client   health.HealthClient
	closed   chan struct{} // gets a value from every server that accepts no more
}

func newStand(t *testing.T) *stand {
	t.Helper()
	dir, err := os.MkdirTemp("", "rpc")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &stand{T: t, path: filepath.Join(dir, "s"), service: &service{entered: make(chan string, 10), proceed: make(chan struct{})}, closed: make(chan struct{}, 10)}
	if s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.listener.Close() })
	conn, err := grpc.NewClient("unix://"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.client = health.NewHealthClient(conn)
	return s
}

// telling is a listener that tells when it is closed.
type telling struct {
	net.Listener
	once   sync.Once
	closed chan<- struct{}
}

func (l *telling) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { l.closed <- struct{}{} })
	return err
}

// serve starts a server, as a worker would.
func (s *stand) serve(o Options) (*Server, func()) {
	s.Helper()
	f, err := s.listener.File()
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		s.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	server := New(o)
	health.RegisterHealthServer(server, s.service)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := server.Serve(ctx, &telling{Listener: l, closed: s.closed}); err != nil {
			s.Errorf("Serve: %v", err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	s.Cleanup(stop)
	return server, stop
}

func (s *stand) check(name string) codes.Code {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := s.client.Check(ctx, &health.HealthCheckRequest{Service: name})
	return status.Code(err)
}

func (s *stand) start(name string) <-chan codes.Code {
	done := make(chan codes.Code, 1)
	go func() { done <- s.check(name) }()
	if got := <-s.service.entered; got != name {
		s.Errorf("call of %q, want %q", got, name)
	}
	return done
}

func TestCalls(t *testing.T) {
	s := newStand(t)
	server, _ := s.serve(Options{Unknown: map[string]grpc.StreamHandler{"panicking": func(any, grpc.ServerStream) error { panic("on purpose") }}})
	for name, want := range map[string]codes.Code{
		"good": codes.OK, "fails": codes.AlreadyExists, "panics": codes.Internal,
		"long " + strings.Repeat("x", MaxMessage-100): codes.OK, "too long " + strings.Repeat("x", MaxMessage): codes.ResourceExhausted,
	} {
		if got := s.check(name); got != want {
			t.Errorf("%.20s: %v, want %v", name, got, want)
		}
	}
	if _, err := s.client.List(t.Context(), &health.HealthListRequest{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("List: %v", err)
	}
	conn, err := grpc.NewClient("unix://"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Invoke(t.Context(), "/stranger/Method", &health.HealthCheckRequest{}, &health.HealthCheckResponse{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a method of no service: %v", err)
	}
	if err := conn.Invoke(t.Context(), "/panicking/Method", &health.HealthCheckRequest{}, &health.HealthCheckResponse{}); status.Code(err) != codes.Internal {
		t.Errorf("a method that is not registered, and panics: %v", err)
	}
	all := server.Methods()
	if len(all) != 2 || all[0].Name != health.Health_Check_FullMethodName || all[1].Name != health.Health_List_FullMethodName {
		t.Fatalf("Methods: %+v", all)
	}
	want := []CodeCount{{"AlreadyExists", 1}, {"Internal", 1}, {"OK", 2}}
	if got := all[0]; !slices.Equal(got.Codes, want) || got.Took.Total() != 4 {
		t.Errorf("Check: %v of %d, want %v of 4", got.Codes, got.Took.Total(), want)
	}
	if server.Open() != 0 {
		t.Errorf("%d calls are open", server.Open())
	}
}

// A server that stops lets calls finish; those that come meanwhile are the next server's.
func TestStopLetsCallsFinish(t *testing.T) {
	s := newStand(t)
	server, stop := s.serve(Options{Grace: time.Hour})
	waits := s.start("waits")
	if server.Open() != 1 {
		t.Errorf("%d calls are open, want 1", server.Open())
	}
	stopped := make(chan struct{})
	go func() { stop(); close(stopped) }()
	<-s.closed
	// The client above may use its connection until it hears that it should not.
	conn, err := grpc.NewClient("unix://"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s.client = health.NewHealthClient(conn)
	next := make(chan codes.Code, 1)
	go func() { next <- s.check("good") }()
	select {
	case <-stopped:
		t.Error("Serve returned while a call was under way")
	case got := <-next:
		t.Errorf("a call that came too late: %v", got)
	case name := <-s.service.entered:
		t.Errorf("%s was called at a server that stops", name)
	case <-time.After(50 * time.Millisecond):
	}
	close(s.service.proceed)
	if got := <-waits; got != codes.OK {
		t.Errorf("the call under way: %v, want OK", got)
	}
	<-stopped
	s.serve(Options{})
	if got := <-next; got != codes.OK {
		t.Errorf("the call that waited: %v, want OK", got)
	}
}

// Calls that do not finish are ended, and say that the next server may be asked.
func TestStopEndsCalls(t *testing.T) {
	s := newStand(t)
	server, stop := s.serve(Options{Grace: 10 * time.Millisecond})
	hangs, late := s.start("hangs"), s.start("late")
	w, err := s.client.Watch(t.Context(), &health.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	<-s.service.entered
	stop()
	if got := <-hangs; got != codes.Unavailable {
		t.Errorf("a call that waits: %v, want Unavailable", got)
	}
	if got := <-late; got != codes.AlreadyExists && got != codes.Unavailable { // the latter, if it was cut
		t.Errorf("a call with an answer: %v, want that", got)
	}
	if _, err := w.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("a stream: %v, want Unavailable", err)
	}
	if server.Open() != 0 {
		t.Errorf("Serve returned with %d calls open", server.Open())
	}
}

// Services that could not be opened are unavailable, and those that could are not.
func TestWithout(t *testing.T) {
	s := newStand(t)
	f, err := s.listener.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	var after []string
	server := New(Options{After: func(_ context.Context, method string, req, resp any, err error) {
		after = append(after, req.(*health.HealthCheckRequest).Service, status.Code(err).String())
		if r, _ := resp.(*health.HealthCheckResponse); (r != nil) != (err == nil) {
			t.Errorf("after %s: %v, %v", method, resp, err)
		}
	}})
	health.RegisterHealthServer(server, s.service)
	server.Without(errors.New("the disk is gone"))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { server.Serve(ctx, l) })
	if got := s.check("good"); got != codes.OK {
		t.Errorf("a service that is there: %v", got)
	}
	if got := s.check("fails"); got != codes.AlreadyExists {
		t.Errorf("a call that fails: %v", got)
	}
	conn, err := grpc.NewClient("unix://"+s.path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Invoke(t.Context(), "/gone/Method", &health.HealthCheckRequest{}, &health.HealthCheckResponse{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "the disk is gone") {
		t.Errorf("a service that is not: %v, want Unavailable and why", err)
	}
	cancel()
	wg.Wait()
	if want := []string{"good", "OK", "fails", "AlreadyExists"}; !slices.Equal(after, want) {
		t.Errorf("After was told %q, want %q", after, want)
	}
	if all := server.Methods(); len(all) != 1 {
		t.Errorf("counted: %+v", all)
	}
}

// A server whose listener fails says so.
func TestServeFails(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := New(Options{}).Serve(t.Context(), l); err == nil {
		t.Error("no error")
	}
}

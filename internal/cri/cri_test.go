package cri

import (
	"context"
	"errors"
	"fmt"
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
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/snapfs/snapfs/internal/credentials"
	"github.com/snapfs/snapfs/internal/rpc"
	"github.com/snapfs/snapfs/layers/registry"
)

// images is containerd, as far as the kubelet sees it.
type images struct {
	runtime.UnimplementedImageServiceServer
	entered chan string // gets the method's name, if not nil

	mu      sync.Mutex
	got     proto.Message
	md      metadata.MD
	until   time.Time
	answers map[string]error // by image
}

func (s *images) note(ctx context.Context, m proto.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.got = m
	s.md, _ = metadata.FromIncomingContext(ctx)
	s.until, _ = ctx.Deadline()
}

func (s *images) last() (proto.Message, metadata.MD, time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got, s.md, s.until
}

var listed = &runtime.ListImagesResponse{Images: []*runtime.Image{
	{Id: "sha256:1", RepoTags: []string{"r.example/a:1"}, Size: 1 << 40, Spec: &runtime.ImageSpec{Image: "x", Annotations: map[string]string{"a": "b"}}},
	{Id: "sha256:2", Uid: &runtime.Int64Value{Value: -1}, Pinned: true},
}}

func (s *images) ListImages(ctx context.Context, r *runtime.ListImagesRequest) (*runtime.ListImagesResponse, error) {
	s.note(ctx, r)
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-header", "h1", "x-header", "h2", "x-bin", "\x00\xff")); err != nil {
		return nil, err
	}
	return listed, grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "t"))
}

func (s *images) StreamImages(r *runtime.StreamImagesRequest, w grpc.ServerStreamingServer[runtime.StreamImagesResponse]) error {
	s.note(w.Context(), r)
	for range 1000 {
		if err := w.Send(&runtime.StreamImagesResponse{Images: listed.Images}); err != nil {
			return err
		}
	}
	w.SetTrailer(metadata.Pairs("x-trailer", "t"))
	return status.Error(codes.DataLoss, "and no more")
}

func (s *images) ImageStatus(ctx context.Context, r *runtime.ImageStatusRequest) (*runtime.ImageStatusResponse, error) {
	s.note(ctx, r)
	if s.entered != nil {
		s.entered <- "ImageStatus"
		<-ctx.Done()
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	st, err := status.New(codes.NotFound, "no such image: ünïcode %d").WithDetails(listed.Images[0])
	if err != nil {
		return nil, err
	}
	return nil, st.Err()
}

func (s *images) PullImage(ctx context.Context, r *runtime.PullImageRequest) (*runtime.PullImageResponse, error) {
	s.note(ctx, r)
	if s.entered != nil {
		s.entered <- "PullImage"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.answers[r.Image.Image]; err != nil {
		return nil, err
	}
	return &runtime.PullImageResponse{ImageRef: "sha256:" + r.Image.Image}, nil
}

func (s *images) RemoveImage(ctx context.Context, r *runtime.RemoveImageRequest) (*runtime.RemoveImageResponse, error) {
	s.note(ctx, r)
	s.mu.Lock()
	defer s.mu.Unlock()
	return &runtime.RemoveImageResponse{}, s.answers[r.Image.Image]
}

func (s *images) ImageFsInfo(ctx context.Context, r *runtime.ImageFsInfoRequest) (*runtime.ImageFsInfoResponse, error) {
	s.note(ctx, r)
	return &runtime.ImageFsInfoResponse{ImageFilesystems: []*runtime.FilesystemUsage{{Timestamp: 5}}}, nil
}

// A stand is containerd and the proxy before it, both with a client.
type stand struct {
	*testing.T
	images           *images
	pulls            *credentials.Pulls
	direct, proxied  *grpc.ClientConn
	front            string
	stopBehind, stop func()
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t *testing.T, path string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func newStand(t *testing.T) *stand {
	t.Helper()
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &stand{T: t, images: &images{answers: map[string]error{}}, pulls: new(credentials.Pulls)}
	behind := filepath.Join(dir, "containerd")
	s.front = filepath.Join(dir, "snapd")
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage))
	runtime.RegisterImageServiceServer(server, s.images)
	var all sync.WaitGroup
	back := listen(t, behind)
	all.Go(func() { server.Serve(back) })
	s.stopBehind = sync.OnceFunc(server.Stop)
	p, err := New(Options{Address: behind, Pulls: s.pulls})
	if err != nil {
		t.Fatal(err)
	}
	before := rpc.New(rpc.Options{Grace: time.Second, Unknown: map[string]grpc.StreamHandler{Service: p.Forward}})
	p.Register(before)
	ctx, cancel := context.WithCancel(context.Background())
	front := listen(t, s.front)
	all.Go(func() {
		if err := before.Serve(ctx, front); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	s.stop = sync.OnceFunc(func() {
		cancel()
		s.stopBehind()
		all.Wait()
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	t.Cleanup(s.stop)
	s.direct, s.proxied = dial(t, behind), dial(t, s.front)
	return s
}

// outcome is all that a client sees of a call.
func outcome(t *testing.T, c *grpc.ClientConn, images *images, method string, req, resp proto.Message) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "traceparent", "00-1", "x-multi", "a", "x-multi", "b", "x-bin", "\x01\xfe")
	var header, trailer metadata.MD
	err := c.Invoke(ctx, method, req, resp, grpc.Header(&header), grpc.Trailer(&trailer))
	got, md, until := images.last()
	for _, own := range []string{"user-agent", ":authority", "content-type", "grpc-accept-encoding"} {
		delete(md, own)
		delete(header, own)
	}
	want, _ := ctx.Deadline()
	if d := want.Sub(until).Abs(); d > time.Second && status.Code(err) != codes.Unimplemented {
		t.Errorf("%s: the deadline differs by %v", method, d)
	}
	raw, merr := proto.MarshalOptions{Deterministic: true}.Marshal(resp)
	asked, _ := proto.MarshalOptions{Deterministic: true}.Marshal(got)
	return fmt.Sprintf("asked %x with %v; answer %x, header %v, trailer %v, error %v, details %v, %v", asked, md, raw, header, trailer, err, status.Convert(err).Details(), merr)
}

// TestEqual: with and without the proxy a client sees the same.
func TestEqual(t *testing.T) {
	s := newStand(t)
	strange := &runtime.ListImagesRequest{Filter: &runtime.ImageFilter{Image: &runtime.ImageSpec{Image: "x"}}}
	strange.ProtoReflect().SetUnknown([]byte{0xfa, 0x3f, 3, 'n', 'e', 'w'}) // field 1023
	for _, c := range []struct {
		method    string
		req, resp proto.Message
	}{
		{"ListImages", strange, new(runtime.ListImagesResponse)},
		{"ImageStatus", &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: "a"}, Verbose: true}, new(runtime.ImageStatusResponse)},
		{"PullImage", &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "r.example/a"}, Auth: &runtime.AuthConfig{Username: "u", Password: "p"}, SandboxConfig: &runtime.PodSandboxConfig{Hostname: "h"}}, new(runtime.PullImageResponse)},
		{"PullImage", &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: strings.Repeat("x", 10<<20)}}, new(runtime.PullImageResponse)},
		{"RemoveImage", &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: "r.example/a"}}, new(runtime.RemoveImageResponse)},
		{"ImageFsInfo", new(runtime.ImageFsInfoRequest), new(runtime.ImageFsInfoResponse)},
		{"NewMethod", new(emptypb.Empty), new(emptypb.Empty)},
	} {
		method := "/" + Service + "/" + c.method
		want := outcome(t, s.direct, s.images, method, c.req, proto.Clone(c.resp))
		if got := outcome(t, s.proxied, s.images, method, c.req, proto.Clone(c.resp)); got != want {
			t.Errorf("%s: %.2000s\nwant %.2000s", c.method, got, want)
		}
	}
	for _, method := range []string{"/runtime.v1.RuntimeService/Version", "/runtime.v1alpha2.ImageService/ListImages", "/x/y"} {
		if err := s.proxied.Invoke(t.Context(), method, new(emptypb.Empty), new(emptypb.Empty)); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want Unimplemented", method, err)
		}
	}
}

func TestStream(t *testing.T) {
	s := newStand(t)
	w, err := runtime.NewImageServiceClient(s.proxied).StreamImages(t.Context(), new(runtime.StreamImagesRequest))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for {
		m, err := w.Recv()
		if err != nil {
			if status.Code(err) != codes.DataLoss || status.Convert(err).Message() != "and no more" || len(w.Trailer()["x-trailer"]) != 1 {
				t.Errorf("the stream ended with %v, trailer %v", err, w.Trailer())
			}
			break
		}
		if !proto.Equal(&runtime.ListImagesResponse{Images: m.Images}, listed) {
			t.Fatalf("message %d: %v", n, m)
		}
		n++
	}
	if n != 1000 {
		t.Errorf("%d messages, want 1000", n)
	}
}

// TestGivenUp: a call that is cancelled, or whose time is over, ends at containerd too.
func TestGivenUp(t *testing.T) {
	s := newStand(t)
	s.images.entered = make(chan string)
	client := runtime.NewImageServiceClient(s.proxied)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := client.ImageStatus(ctx, new(runtime.ImageStatusRequest))
		done <- err
	}()
	<-s.images.entered
	cancel()
	if err := <-done; status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	go func() {
		_, err := client.ImageStatus(ctx, new(runtime.ImageStatusRequest))
		done <- err
	}()
	<-s.images.entered
	if err := <-done; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("late: %v", err)
	}
	// The server is stopped with a call under way.
	go func() {
		_, err := client.ImageStatus(t.Context(), new(runtime.ImageStatusRequest))
		done <- err
	}()
	<-s.images.entered
	s.stop()
	if err := <-done; status.Code(err) != codes.Unavailable {
		t.Errorf("stopped: %v, want Unavailable", err)
	}
}

// TestNobodyBehind: without containerd the kubelet hears so, and it is served when
// it is there.
func TestNobodyBehind(t *testing.T) {
	s := newStand(t)
	client := runtime.NewImageServiceClient(s.proxied)
	if _, err := client.ImageFsInfo(t.Context(), new(runtime.ImageFsInfoRequest)); err != nil {
		t.Fatal(err)
	}
	s.stopBehind()
	if _, err := client.ImageFsInfo(t.Context(), new(runtime.ImageFsInfoRequest)); status.Code(err) != codes.Unavailable {
		t.Errorf("nobody there: %v, want Unavailable", err)
	}
	server := grpc.NewServer()
	runtime.RegisterImageServiceServer(server, s.images)
	l := listen(t, filepath.Join(filepath.Dir(s.front), "containerd"))
	go server.Serve(l)
	defer server.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		_, err := client.ImageFsInfo(ctx, new(runtime.ImageFsInfoRequest))
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable {
			t.Fatalf("containerd is back: %v", err)
		}
	}
}

// TestSecrets: what passes is remembered while its image is there.
func TestSecrets(t *testing.T) {
	s := newStand(t)
	s.images.entered = make(chan string)
	client := runtime.NewImageServiceClient(s.proxied)
	has := func(image string) string {
		list, err := s.pulls.Credentials(t.Context(), registry.Ask{Image: image, Host: "r.example"})
		if err != nil {
			t.Error(err)
		}
		var all []string
		for _, c := range list {
			all = append(all, c.User+":"+c.Secret+c.Bearer)
		}
		return strings.Join(all, " ")
	}
	pull := func(image, during string, auth *runtime.AuthConfig) error {
		t.Helper()
		var all sync.WaitGroup
		defer all.Wait()
		all.Go(func() {
			<-s.images.entered
			if got := has("r.example/a"); got != during {
				t.Errorf("during the pull of %s: %q, want %q", image, got, during)
			}
		})
		_, err := client.PullImage(t.Context(), &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: image}, Auth: auth})
		return err
	}
	s.images.answers["r.example/a:bad"] = errors.New("denied")
	err := pull("r.example/a:1", "u:p", &runtime.AuthConfig{Username: "u", Password: "p"})
	err = errors.Join(err, pull("r.example/a:2", ":i u:p", &runtime.AuthConfig{IdentityToken: "i", ServerAddress: "https://r.example"}))
	err = errors.Join(err, pull("r.example/a:3", ":i u:p", nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := pull("r.example/a:bad", ":r :i u:p", &runtime.AuthConfig{RegistryToken: "r"}); err == nil {
		t.Error("a pull succeeded that should not")
	}
	if err := pull("r.example/a:bad", ":i u:p", &runtime.AuthConfig{Auth: "!"}); err == nil {
		t.Error("a pull succeeded that should not")
	}
	if got := has("r.example/a"); got != ":i u:p" {
		t.Errorf("after the pulls: %q", got)
	}
	remove := func(image string) error {
		_, err := client.RemoveImage(t.Context(), &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: image}})
		return err
	}
	s.images.answers["sha256:r.example/a:1"] = errors.New("in use")
	if err := remove("sha256:r.example/a:1"); err == nil || has("r.example/a") == "" {
		t.Errorf("a removal that fails: %v, %q", err, has("r.example/a"))
	}
	delete(s.images.answers, "sha256:r.example/a:1")
	if err := errors.Join(remove("sha256:r.example/a:1"), remove("r.example/a:2")); err != nil || has("r.example/a") != "" {
		t.Errorf("both images are gone: %v, %q", err, has("r.example/a"))
	}
}

func marshal(m proto.Message) []byte {
	raw, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return raw
}

func FuzzPull(f *testing.F) {
	f.Add(marshal(&runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: "a", UserSpecifiedImage: "b"}, Auth: &runtime.AuthConfig{Username: "u", Password: "p", Auth: "x", ServerAddress: "s", IdentityToken: "i", RegistryToken: "r"}}))
	f.Add(slices.Concat(marshal(&runtime.PullImageRequest{Auth: &runtime.AuthConfig{Username: "u"}}), marshal(&runtime.PullImageRequest{Auth: &runtime.AuthConfig{Password: "p"}})))
	f.Add([]byte{0x0a, 0x05, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		image, auth, err := parsePull(raw)
		var want runtime.PullImageRequest
		if uerr := proto.Unmarshal(raw, &want); uerr != nil {
			return // containerd refuses it
		}
		if err != nil {
			t.Fatalf("parsePull(%x) = %v, of a message", raw, err)
		}
		w := want.GetAuth()
		if image != want.GetImage().GetImage() || (auth != nil) != (w != nil) ||
			auth != nil && *auth != (credentials.Auth{Username: w.Username, Password: w.Password, Auth: w.Auth, ServerAddress: w.ServerAddress, IdentityToken: w.IdentityToken, RegistryToken: w.RegistryToken}) {
			t.Errorf("parsePull(%x) = %q, %+v, want %v", raw, image, auth, &want)
		}
		var pulled runtime.PullImageResponse
		if id, err := parsePulled(raw); proto.Unmarshal(raw, &pulled) == nil && (err != nil || id != pulled.ImageRef) {
			t.Errorf("parsePulled(%x) = %q, %v", raw, id, err)
		}
		var removed runtime.RemoveImageRequest
		if image, err := parseRemove(raw); proto.Unmarshal(raw, &removed) == nil && (err != nil || image != removed.GetImage().GetImage()) {
			t.Errorf("parseRemove(%x) = %q, %v", raw, image, err)
		}
	})
}

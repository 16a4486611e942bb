package telemetry

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/starts"
	"github.com/snapfs/snapfs/layers"
	"github.com/snapfs/snapfs/layers/fetch"
)

// A collector takes spans as an OpenTelemetry collector does.
type collector struct {
	*httptest.Server
	answers []int // statuses of the first requests; then 200

	mu       sync.Mutex
	requests []*http.Request
	got      []*tracepb.ResourceSpans
}

func newCollector(t *testing.T, answers ...int) *collector {
	c := &collector{answers: answers}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		n := len(c.requests)
		c.requests = append(c.requests, r)
		if n < len(c.answers) {
			w.WriteHeader(c.answers[n])
			return
		}
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = z
		}
		raw, err := io.ReadAll(body)
		if err != nil {
			t.Error(err)
		}
		var data tracepb.TracesData
		if err := proto.Unmarshal(raw, &data); err != nil {
			t.Error(err)
		}
		c.got = append(c.got, data.ResourceSpans...)
	}))
	t.Cleanup(c.Close)
	return c
}

// spans returns all spans, those of one parent in the order of their beginnings.
func (c *collector) spans() (all []*tracepb.Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.got {
		for _, s := range r.ScopeSpans {
			all = append(all, s.Spans...)
		}
	}
	slices.SortStableFunc(all, func(a, b *tracepb.Span) int { return cmp.Compare(a.StartTimeUnixNano, b.StartTimeUnixNano) })
	return all
}

// tree writes spans as lines: name, begin and duration in ms since base, indented.
func tree(all []*tracepb.Span, parent []byte, base time.Time, indent string) string {
	var b strings.Builder
	for _, s := range all {
		if bytes.Equal(s.ParentSpanId, parent) {
			begin := time.Unix(0, int64(s.StartTimeUnixNano)).Sub(base)
			fmt.Fprintf(&b, "%s%s %d+%d\n", indent, s.Name, begin.Milliseconds(), (s.EndTimeUnixNano-s.StartTimeUnixNano)/1e6)
			b.WriteString(tree(all, s.SpanId, base, indent+" "))
		}
	}
	return b.String()
}

func attr(s *tracepb.Span, key string) string {
	for _, a := range s.Attributes {
		if a.Key == key {
			return a.Value.GetStringValue()
		}
	}
	return ""
}

func newTracer(t *testing.T, o TraceOptions, env map[string]string) *Tracer {
	t.Helper()
	o.Getenv = func(name string) string { return env[name] }
	tr, err := NewTracer(t.Context(), o)
	if err != nil || tr == nil {
		t.Fatalf("NewTracer = %v, %v", tr, err)
	}
	return tr
}

const ms = time.Millisecond

func TestStartBecomesATree(t *testing.T) {
	c := newCollector(t)
	tr := newTracer(t, TraceOptions{Endpoint: c.URL, Version: "v9"}, nil)
	began := time.Now().Truncate(time.Millisecond)
	tr.Start(control.Start{
		Kind: starts.Run, Ref: "debian:stable", Container: "cafe", Began: began,
		Phases: []control.Phase{
			{Name: starts.Image, Begin: 0, End: 60 * ms}, {Name: "resolve", Begin: 0, End: 40 * ms},
			{Name: "index", ID: "aaaa", Begin: 40 * ms, End: 50 * ms}, {Name: "pull", ID: "bbbb", Begin: 41 * ms, End: 60 * ms, Bytes: 5},
			{Name: "mount", Begin: 60 * ms, End: 62 * ms}, {Name: "monitor", Begin: 62 * ms, End: 80 * ms},
		},
		Running: 90 * ms, Ready: 200 * ms, ReadyBy: "port",
		Waits: []control.FileWait{{Object: "0011", N: 2, First: 100 * ms, Took: 30 * ms, Longest: 20 * ms, Bytes: 7}},
	})
	tr.Start(control.Start{Kind: starts.Pull, Ref: "gone", Began: began.Add(time.Second), Phases: []control.Phase{{Name: "resolve", End: 5 * ms}}, Error: "no such image"})
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	all := c.spans()
	want := `run 0+200
 pull 0+60
  resolve 0+40
  index 40+10
  layer 41+19
 mount 60+2
 monitor 62+18
 start 80+10
 ready 90+110
pull 1000+5
 resolve 1000+5
`
	if got := tree(all, nil, began, ""); got != want {
		t.Errorf("spans are\n%s\nwant\n%s", got, want)
	}
	for _, s := range all {
		switch {
		case s.Name == "run" && (attr(s, "snapfs.image.ref") != "debian:stable" || attr(s, "container.id") != "cafe" || attr(s, "snapfs.ready.by") != "port"),
			s.Name == "layer" && attr(s, "snapfs.layer") != "bbbb",
			s.Name == "ready" && (len(s.Events) != 1 || time.Unix(0, int64(s.Events[0].TimeUnixNano)).Sub(began) != 100*ms),
			s.Name == "pull" && s.ParentSpanId == nil && s.Status.GetMessage() != "no such image":
			t.Errorf("%v", s)
		}
	}
	resource := fmt.Sprint(c.got[0].Resource)
	for _, part := range []string{`"service.name"`, `"snapd"`, `"v9"`} {
		if !strings.Contains(resource, part) {
			t.Errorf("resource %s lacks %s", resource, part)
		}
	}
	r := c.requests[0]
	if r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		t.Errorf("%s %v", r.URL, r.Header)
	}
}

func TestMissesAreSampled(t *testing.T) {
	c := newCollector(t)
	tr := newTracer(t, TraceOptions{Endpoint: c.URL}, nil)
	began := time.Now()
	for i := range 1000 { // a second of them
		w := fetch.Wait{Object: layers.SumOf([]byte("x")), Layers: []string{"l"}, N: 5, Began: began.Add(time.Duration(i) * ms), Took: 3 * ms}
		if i%100 == 99 {
			w.Err = errors.New("gone")
		}
		tr.Waited(w)
	}
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	ok, failed := 0, 0
	for _, s := range c.spans() {
		if s.Name != "miss" || s.EndTimeUnixNano-s.StartTimeUnixNano != 3e6 {
			t.Errorf("%v", s)
		}
		if s.Status.GetMessage() == "gone" {
			failed++
		} else {
			ok++
		}
	}
	if ok < 9 || ok > 11 || failed < 9 || failed > 11 {
		t.Errorf("%d spans, and %d of misses that failed, want about 10 each", ok, failed)
	}
}

func TestEnvironment(t *testing.T) {
	c := newCollector(t)
	tr := newTracer(t, TraceOptions{}, map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": c.URL + "/own/path", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
		"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20abc, x-scope=1", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
	})
	tr.Start(control.Start{Kind: starts.Run, Began: time.Now(), Ready: ms})
	if err := tr.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.spans()) != 1 {
		t.Fatalf("%d spans", len(c.spans()))
	}
	r := c.requests[0]
	if r.URL.Path != "/own/path" || r.Header.Get("Authorization") != "Bearer abc" || r.Header.Get("X-Scope") != "1" || r.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("%s %v", r.URL, r.Header)
	}

	for name, test := range map[string]struct {
		endpoint string
		env      map[string]string
		ok, off  bool
	}{
		"nothing":     {"", nil, true, true},
		"off":         {"http://127.0.0.1:1", map[string]string{"OTEL_SDK_DISABLED": "true"}, true, true},
		"none":        {"http://127.0.0.1:1", map[string]string{"OTEL_TRACES_EXPORTER": "none"}, true, true},
		"grpc":        {"http://127.0.0.1:1", map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false, false},
		"headers":     {"http://127.0.0.1:1", map[string]string{"OTEL_EXPORTER_OTLP_HEADERS": "secret"}, false, false},
		"timeout":     {"http://127.0.0.1:1", map[string]string{"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, false, false},
		"zip":         {"http://127.0.0.1:1", map[string]string{"OTEL_EXPORTER_OTLP_COMPRESSION": "zip"}, false, false},
		"certificate": {"http://127.0.0.1:1", map[string]string{"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nonexistent"}, false, false},
		"endpoint":    {"", map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4317"}, false, false},
	} {
		tr, err := NewTracer(t.Context(), TraceOptions{Endpoint: test.endpoint, Getenv: func(name string) string { return test.env[name] }})
		if (err == nil) != test.ok || test.off && tr != nil {
			t.Errorf("%s: %v, %v", name, tr, err)
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v tells a secret", name, err)
		}
	}
}

func TestCheckEndpoint(t *testing.T) {
	for s, ok := range map[string]bool{
		"http://127.0.0.1:4318": true, "https://otel.example/base": true,
		"": false, "127.0.0.1:4318": false, "grpc://x": false, "http://": false, "http://u:p@x": false, "http://x?a=b": false, "unix:/x": false, "http://[": false,
	} {
		if err := CheckEndpoint(s); (err == nil) != ok {
			t.Errorf("CheckEndpoint(%q) = %v", s, err)
		}
	}
}

func TestNilTracer(t *testing.T) {
	var tr *Tracer
	tr.Start(control.Start{})
	tr.Waited(fetch.Wait{})
	if err := tr.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// upload sends something by a client that is impatient.
func upload(t *testing.T, endpoint string, n int, timeout time.Duration) (log string) {
	t.Helper()
	var b bytes.Buffer
	c, err := newClient(endpoint, func(string) string { return "" }, slog.New(slog.NewTextHandler(&b, nil)))
	if err != nil {
		t.Fatal(err)
	}
	c.backoff, c.timeout = time.Millisecond, timeout
	for range n {
		if err := c.UploadTraces(context.Background(), []*tracepb.ResourceSpans{{ScopeSpans: []*tracepb.ScopeSpans{{Spans: []*tracepb.Span{{Name: "x"}}}}}}); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func TestCollectorThatFails(t *testing.T) {
	for name, test := range map[string]struct {
		answers        []int
		requests, sent int
	}{
		"busy":      {[]int{503, 429, 502}, 4, 1},
		"refuses":   {[]int{400}, 1, 0},
		"elsewhere": {[]int{302}, 1, 0},
		"internal":  {[]int{500}, 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCollector(t, test.answers...)
			log := upload(t, c.URL, 1, time.Minute)
			if len(c.requests) != test.requests || len(c.spans()) != test.sent {
				t.Errorf("%d requests, %d spans, want %d and %d", len(c.requests), len(c.spans()), test.requests, test.sent)
			}
			if (test.sent == 0) != strings.Contains(log, "spans are lost") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

func TestLossIsSaidOnce(t *testing.T) {
	if log := upload(t, "http://127.0.0.1:1/v1/traces", 3, 100*time.Millisecond); strings.Count(log, "spans are lost") != 1 {
		t.Errorf("log: %s", log)
	}
	c := newCollector(t, 400, 400)
	log := upload(t, c.URL, 4, 100*time.Millisecond)
	if strings.Count(log, "spans are lost") != 1 || strings.Count(log, "sent again") != 1 {
		t.Errorf("log: %s", log)
	}
}

// A collector that takes the request and never answers does not hold the daemon up.
func TestCollectorThatIsSilent(t *testing.T) {
	goOn := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-goOn }))
	defer s.Close()
	defer close(goOn)
	tr := newTracer(t, TraceOptions{Endpoint: s.URL}, nil)
	for range 10_000 { // more than the queue holds
		tr.Start(control.Start{Kind: starts.Run, Began: time.Now(), Ready: ms})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := tr.Close(ctx); err == nil {
		t.Error("Close says that all was sent")
	}
}

func BenchmarkWaitedWithoutATracer(b *testing.B) {
	var tr *Tracer
	w := fetch.Wait{Began: time.Now()}
	for b.Loop() {
		tr.Waited(w)
	}
}

func BenchmarkWaitedSampled(b *testing.B) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer s.Close()
	tr, err := NewTracer(b.Context(), TraceOptions{Endpoint: s.URL, Getenv: func(string) string { return "" }})
	if err != nil {
		b.Fatal(err)
	}
	defer tr.Close(context.Background())
	w := fetch.Wait{Object: layers.SumOf(nil), Layers: []string{"l"}, Took: ms}
	for b.Loop() {
		w.Began = time.Now()
		tr.Waited(w)
	}
}

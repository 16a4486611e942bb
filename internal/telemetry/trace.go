package telemetry

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/starts"
	"github.com/snapfs/snapfs/layers/fetch"
)

// TraceOptions say where spans go.
type TraceOptions struct {
	// Endpoint is the base URL of a collector; "" is what the variables
	// OTEL_EXPORTER_OTLP_TRACES_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT say.
	Endpoint string
	Version  string              // of snapfs
	Getenv   func(string) string // nil: os.Getenv
	Log      *slog.Logger        // nil: discard
}

// A Tracer makes spans of what has happened: of whole records, when they are
// finished. So nothing that it tells of knows of it, and while nobody listens
// (a nil Tracer) it costs nothing. It is safe for concurrent use.
type Tracer struct {
	provider *sdktrace.TracerProvider
	t        trace.Tracer
	next     [2]atomic.Int64 // Unix nanoseconds before which no miss is told: those that succeeded, those that failed
}

// NewTracer returns a Tracer; nil if no collector is configured, or the
// environment turns it off. Close ends it.
func NewTracer(ctx context.Context, o TraceOptions) (*Tracer, error) {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	endpoint := o.endpoint()
	if endpoint == "" || strings.EqualFold(o.Getenv("OTEL_SDK_DISABLED"), "true") || o.Getenv("OTEL_TRACES_EXPORTER") == "none" {
		return nil, nil
	}
	if err := CheckEndpoint(endpoint); err != nil {
		return nil, fmt.Errorf("tracing endpoint %q: %w", endpoint, err)
	}
	c, err := newClient(endpoint, o.Getenv, o.Log)
	if err != nil {
		return nil, err
	}
	exporter, err := otlptrace.New(ctx, c)
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname()
	r, err := resource.New(ctx, resource.WithAttributes(
		attribute.String("service.name", "snapd"), attribute.String("service.version", o.Version),
		attribute.String("host.name", host), attribute.Int("process.pid", os.Getpid()),
	), resource.WithFromEnv())
	if err != nil {
		return nil, err
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exporter), sdktrace.WithResource(r))
	o.Log.Info("tracing", "endpoint", endpoint)
	return &Tracer{provider: p, t: p.Tracer("github.com/snapfs/snapfs", trace.WithInstrumentationVersion(o.Version))}, nil
}

// endpoint is the URL that spans are posted to: of the variable for traces as
// it is, of the others with the path that the specification gives it.
func (o *TraceOptions) endpoint() string {
	base := o.Endpoint
	if base == "" {
		if own := o.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"); own != "" {
			return own
		}
		base = o.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT")
	}
	if base == "" {
		return ""
	}
	return strings.TrimSuffix(base, "/") + "/v1/traces"
}

// Close sends what there is, as long as ctx lasts.
func (t *Tracer) Close(ctx context.Context) error {
	if t == nil {
		return nil
	}
	return t.provider.Shutdown(ctx)
}

// Start makes spans of a finished record:
//
//	run | start | pull
//	  ├─ pull                  of "run"
//	  │   ├─ resolve, build, …
//	  │   └─ index, layer      one for each layer
//	  ├─ mount, create, monitor
//	  ├─ start                 until the first process runs
//	  └─ ready                 until it is ready, with the files waited for as events
func (t *Tracer) Start(r control.Start) {
	if t == nil {
		return
	}
	at := func(d time.Duration) trace.SpanEventOption { return trace.WithTimestamp(r.Began.Add(d)) }
	end := r.Ready
	for _, p := range r.Phases {
		end = max(end, p.End)
	}
	end = max(end, r.Running)
	ctx, root := t.t.Start(context.Background(), r.Kind, at(0), trace.WithAttributes(
		attribute.String("snapfs.image.ref", r.Ref), attribute.String("snapfs.image.digest", r.Digest),
		attribute.String("container.id", r.Container), attribute.String("container.name", r.Name), attribute.String("snapfs.ready.by", r.ReadyBy),
		attribute.Int64("snapfs.fetched_bytes", r.Counters.Fetched), attribute.Int64("snapfs.requests", r.Counters.Requests),
		attribute.Int64("snapfs.http_requests", r.Counters.HTTPRequests), attribute.Int("snapfs.misses", r.Missed),
		attribute.Float64("snapfs.waiting_seconds", r.Waiting.Seconds()), attribute.Bool("snapfs.partial", r.Partial),
	))
	t.phases(ctx, r, at)
	if r.Running > 0 {
		t.running(ctx, r, at)
	}
	if r.Error != "" {
		root.SetStatus(codes.Error, r.Error)
	}
	root.End(at(end))
}

// spanNames of phases that are called differently in a trace.
var spanNames = map[string]string{starts.Image: "pull", "pull": "layer"}

// phases makes a span of each phase; those in starts.Image are its children.
func (t *Tracer) phases(ctx context.Context, r control.Start, at func(time.Duration) trace.SpanEventOption) {
	inner, within := ctx, control.Phase{End: -1}
	for _, p := range r.Phases {
		name, parent := p.Name, ctx
		if n := spanNames[name]; n != "" {
			name = n
		}
		if p.Begin >= within.Begin && p.End <= within.End {
			parent = inner
		}
		c, s := t.t.Start(parent, name, at(p.Begin))
		if p.ID != "" {
			s.SetAttributes(attribute.String("snapfs.layer", p.ID))
		}
		if p.Bytes > 0 {
			s.SetAttributes(attribute.Int64("snapfs.bytes", p.Bytes))
		}
		s.End(at(p.End))
		if p.Name == starts.Image {
			inner, within = c, p
		}
	}
}

// maxWaits is how many files are told in a span.
const maxWaits = 32

func (t *Tracer) running(ctx context.Context, r control.Start, at func(time.Duration) trace.SpanEventOption) {
	var prepared time.Duration
	for _, p := range r.Phases {
		if p.End <= r.Running {
			prepared = max(prepared, p.End)
		}
	}
	_, s := t.t.Start(ctx, "start", at(prepared))
	s.End(at(r.Running))
	if r.Ready < r.Running {
		return
	}
	_, s = t.t.Start(ctx, "ready", at(r.Running))
	for _, w := range r.Waits[:min(len(r.Waits), maxWaits)] {
		s.AddEvent("wait", at(w.First), trace.WithAttributes(
			attribute.String("snapfs.object", w.Object), attribute.Int("snapfs.reads", w.N), attribute.Int64("snapfs.bytes", w.Bytes),
			attribute.Float64("snapfs.seconds", w.Took.Seconds()), attribute.Float64("snapfs.longest_seconds", w.Longest.Seconds()),
		))
	}
	s.End(at(r.Ready))
}

// missEvery is the time between two misses that become spans. Of thousands in a
// second ten tell as much as all; those that failed are told as often as others.
const missEvery = 100 * time.Millisecond

// Waited makes a span of a read that waited for the network, now and then.
func (t *Tracer) Waited(w fetch.Wait) {
	if t == nil {
		return
	}
	next := &t.next[0]
	if w.Err != nil {
		next = &t.next[1]
	}
	end := w.Began.Add(w.Took)
	due := next.Load()
	if end.UnixNano() < due || !next.CompareAndSwap(due, end.Add(missEvery).UnixNano()) {
		return
	}
	_, s := t.t.Start(context.Background(), "miss", trace.WithTimestamp(w.Began), trace.WithAttributes(
		attribute.String("snapfs.object", w.Object.String()), attribute.StringSlice("snapfs.layers", w.Layers),
		attribute.Int64("snapfs.off", w.Off), attribute.Int("snapfs.bytes", w.N),
	))
	if w.Err != nil {
		s.SetStatus(codes.Error, w.Err.Error())
	}
	s.End(trace.WithTimestamp(end))
}

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/starts"
	"github.com/snapfs/snapfs/internal/telemetry"
	"github.com/snapfs/snapfs/layers/fetch"
	"github.com/snapfs/snapfs/layers/registry"
)

// MetricsConfig says where metrics are served in Prometheus' text format.
// snapctl stat --prometheus has them without it.
type MetricsConfig struct {
	// Address is HOST:PORT, or unix: and the absolute path of a socket (mode
	// 0600), where GET /metrics is answered. Default none.
	Address string `toml:"address"`
	// Remote lets Address be one that other machines reach. Default false:
	// there is no password.
	Remote bool `toml:"remote"`
}

// TracingConfig says where OpenTelemetry spans are sent.
type TracingConfig struct {
	// Endpoint is the base URL of a collector that speaks OTLP over HTTP:
	// "http://127.0.0.1:4318". Default what the variables OTEL_EXPORTER_OTLP_…
	// say; without them, none, and nothing is recorded for it.
	Endpoint string `toml:"endpoint"`
}

func (m MetricsConfig) validate() error {
	if m.Address == "" {
		if m.Remote {
			return errors.New("metrics.remote is set, but metrics.address is not")
		}
		return nil
	}
	if err := telemetry.CheckAddress(m.Address, m.Remote); err != nil {
		return fmt.Errorf("metrics.address = %q: %w", m.Address, err)
	}
	return nil
}

func (t TracingConfig) validate() error {
	if t.Endpoint == "" {
		return nil
	}
	if err := telemetry.CheckEndpoint(t.Endpoint); err != nil {
		return fmt.Errorf("tracing.endpoint = %q: %w", t.Endpoint, err)
	}
	return nil
}

// observe opens what looks on. A collector that is configured wrongly, by an
// environment that nobody checks, costs the spans and not the daemon.
func (d *daemon) observe(ctx context.Context) (err error) {
	d.tracer, err = telemetry.NewTracer(ctx, telemetry.TraceOptions{Endpoint: d.c.Tracing.Endpoint, Version: version, Log: d.log})
	if err != nil {
		d.log.Error("no tracing", "err", err)
	}
	d.starts, err = starts.Open(starts.Options{
		Dir:          filepath.Join(d.c.Root, "starts"),
		ContainerDir: func(id string) string { return filepath.Join(d.c.Root, "containers", id) },
		Counters:     d.counters, Done: d.tracer.Start, Log: d.log,
	})
	return err
}

// traceGrace is how long a worker that ends may take to send its last spans:
// the next one cannot begin before, and readers may wait for it.
const traceGrace = 300 * time.Millisecond

// stopTracing waits for the end of ctx and then sends what there is.
func (d *daemon) stopTracing(ctx context.Context) {
	<-ctx.Done()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), traceGrace)
	defer cancel()
	if err := d.tracer.Close(grace); err != nil {
		d.log.Warn("the last spans are lost", "err", err)
	}
}

// waited hears of every read that has waited for the network.
func (d *daemon) waited(w fetch.Wait) {
	d.meter.Waited(w)
	d.starts.Waited(w)
	d.tracer.Waited(w)
}

func (d *daemon) counters() control.Counters {
	c := control.Counters{HTTPRequests: d.counts.Requests.Load(), HTTPBytes: d.counts.Bytes.Load()}
	if d.fetcher != nil {
		f := d.fetcher.Stats()
		c.Misses, c.Requests, c.Fetched = f.Misses.Load(), f.Requests.Load(), f.Fetched.Load()
		c.Kept, c.Delivered = f.Kept.Load(), f.Inserted.Load()
	}
	return c
}

// familiar is the form of a reference that people write.
func familiar(ref string) string {
	if r, err := registry.ParseRef(ref); err == nil {
		return r.Familiar()
	}
	return ref
}

// asked records where the time goes when an image comes in for containerd.
func (d *daemon) asked(ref string) (progress func(control.Progress), done func(*images.Known, error)) {
	s := d.starts.Begin(starts.Pull, ref)
	return s.Watch(func(control.Progress) {}), func(k *images.Known, err error) {
		if err != nil {
			s.Failed(err)
			return
		}
		s.Image(familiar(k.Ref), string(k.Desc.Digest), nil)
		s.Pulled()
	}
}

// pull is images.Pull with a record of where the time went.
func (d *daemon) pull(ctx context.Context, a control.PullArgs, p func(control.Progress)) (control.Image, error) {
	s := d.starts.Begin(starts.Pull, a.Ref)
	k, err := d.images.Pull(ctx, a, s.Watch(p))
	if err != nil {
		s.Failed(err)
		return control.Image{}, err
	}
	s.Image(familiar(k.Ref), string(k.Desc.Digest), nil)
	s.Pulled()
	if !a.Wait {
		d.images.Complete(k)
	}
	return d.images.Describe(k)
}

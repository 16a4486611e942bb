package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/containers"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/meter"
)

// Bounds of a Top.
const (
	minEvery = 100 * time.Millisecond
	maxEvery = time.Minute
	maxTops  = 16 // clients at once
)

// serveTop tells what the daemon is doing until the client has enough. Rates
// are made here, so that a client needs to know nothing of how they are counted.
func (d *daemon) serveTop(ctx context.Context, r *control.Request) error {
	a := control.TopArgs{}
	if len(r.Args) > 0 {
		if err := r.Decode(&a); err != nil {
			return err
		}
	}
	if a.Every == 0 {
		a.Every = time.Second
	}
	if a.Every < minEvery || a.Every > maxEvery || a.Count < 0 {
		return &control.Error{Code: control.CodeInvalid, Message: fmt.Sprintf("interval %v: want %v to %v", a.Every, minEvery, maxEvery)}
	}
	defer d.tops.Add(-1)
	if d.tops.Add(1) > maxTops {
		return &control.Error{Code: control.CodeUnavailable, Message: fmt.Sprintf("%d clients look on already", maxTops)}
	}
	tick := time.NewTicker(a.Every)
	defer tick.Stop()
	before, err := d.look()
	for n := 0; err == nil && (a.Count == 0 || n < a.Count); n++ {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return &control.Error{Code: control.CodeUnavailable, Message: "the daemon stops, or its worker is replaced"}
		}
		var now *glance
		if now, err = d.look(); err != nil {
			break
		}
		if err = r.Event(now.since(before)); err != nil {
			break
		}
		before = now
	}
	return err
}

// A glance is what the daemon had counted at some time.
type glance struct {
	at       time.Time
	top      control.Top // what is no rate
	counters control.Counters
	reads    int64
	all      meter.Sum
	images   []imageGlance
}

type imageGlance struct {
	images.Brief
	sum     meter.Sum
	fetched int64
	running []string
	mounts  int
	sizes   func() (size, local int64)
}

// look counts. What is expensive to know of an image is left for when it is wanted.
func (d *daemon) look() (*glance, error) {
	g := &glance{at: time.Now(), counters: d.counters(), reads: d.fs.Stats.Reads.Load(), all: d.meter.All.Sum()}
	g.top = control.Top{Worker: os.Getpid(), Restarts: d.w.Restarts, Memory: residentBytes(os.Getpid())}
	for _, q := range d.fetcher.Queues() {
		g.top.Queues = append(g.top.Queues, control.Queue{Class: q.Class, Waiting: q.Waiting, Open: q.Open})
	}
	briefs, err := d.images.Briefs()
	if err != nil {
		return nil, err
	}
	mounts, err := d.images.Mounts()
	if err != nil {
		return nil, err
	}
	running, traffic := d.containers.List(false), d.fetcher.Traffic()
	d.forget()
	for _, b := range briefs {
		i := imageGlance{Brief: b, sum: d.meter.Of(b.Layers), sizes: func() (int64, int64) { return d.images.Local(b) }}
		for _, key := range b.Layers {
			i.fetched += traffic[key]
		}
		for _, c := range running {
			if containers.Manifest(c) == b.Digest {
				i.running = append(i.running, c.Name)
			}
		}
		for _, m := range mounts {
			if strings.TrimSuffix(m.Rootfs.Image, "-sealed") == b.Tree {
				i.mounts++
			}
		}
		g.images = append(g.images, i)
	}
	return g, nil
}

// forget lets go of what was counted for layers that are gone.
func (d *daemon) forget() {
	here := d.fetcher.Traffic()
	d.meter.Keep(func(key string) bool { _, ok := here[key]; return ok })
}

// since says what happened between two glances.
func (g *glance) since(before *glance) control.Top {
	t := g.top
	t.Time, t.Over = g.at.UTC(), g.at.Sub(before.at)
	second := t.Over.Seconds()
	c := g.counters.Sub(before.counters)
	t.Activity = activity(g.all.Since(before.all), c.Fetched, t.Over)
	t.Requests, t.Received = float64(c.HTTPRequests)/second, float64(c.HTTPBytes)/second
	t.Reads = float64(g.reads-before.reads) / second
	for _, i := range g.images {
		old := imageGlance{}
		if n := slices.IndexFunc(before.images, func(o imageGlance) bool { return o.Digest == i.Digest }); n >= 0 {
			old = before.images[n]
		}
		a := activity(i.sum.Since(old.sum), max(0, i.fetched-old.fetched), t.Over)
		if a == (control.Activity{}) && len(i.running) == 0 && i.mounts == 0 {
			continue
		}
		row := control.TopImage{Digest: string(i.Digest), Activity: a, Running: i.running, Mounts: i.mounts, Complete: i.Complete, Quarantined: i.Quarantined}
		row.Ref = row.Digest // of a stopped container whose image was removed
		if len(i.Refs) > 0 {
			row.Ref = i.Refs[0]
		}
		row.Size, row.Local = i.sizes()
		t.Images = append(t.Images, row)
	}
	slices.SortStableFunc(t.Images, func(a, b control.TopImage) int {
		return cmp.Or(cmp.Compare(b.Waiting, a.Waiting), cmp.Compare(b.Fetched, a.Fetched), cmp.Compare(a.Ref, b.Ref))
	})
	return t
}

func activity(s meter.Sum, fetched int64, over time.Duration) control.Activity {
	second := over.Seconds()
	return control.Activity{
		Misses: float64(s.Took.Total()) / second, P50: s.Took.Quantile(0.5), P99: s.Took.Quantile(0.99),
		Waiting: s.Took.Sum.Seconds() / second, Read: float64(s.Bytes) / second, Fetched: float64(fetched) / second, Failed: s.Failed,
	}
}

package main

import (
	"errors"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/images"
	"github.com/snapfs/snapfs/internal/meter"
	"github.com/snapfs/snapfs/layers/fetch"
)

// Rates are of what happened between two glances. Images that did nothing, and
// that nobody uses, are not told.
func TestTopRates(t *testing.T) {
	var m meter.Meter
	wait := func(n int, layer string, took time.Duration, err error) {
		for range n {
			m.Waited(fetch.Wait{Layers: []string{layer}, N: 1000, Took: took, Err: err})
		}
	}
	image := func(name string, fetched int64, running ...string) imageGlance {
		return imageGlance{
			Brief: images.Brief{Refs: []string{name}, Digest: digest.FromString(name)},
			sum:   m.Of([]string{name}), fetched: fetched, running: running,
			sizes: func() (int64, int64) { return 100, 40 },
		}
	}
	at := time.Now()
	look := func(after time.Duration, c control.Counters, reads int64, list ...imageGlance) *glance {
		return &glance{at: at.Add(after), counters: c, reads: reads, all: m.All.Sum(), images: list}
	}
	wait(50, "busy", time.Hour, nil) // long ago
	before := look(0, control.Counters{HTTPRequests: 7, HTTPBytes: 1000, Fetched: 500}, 100, image("busy", 500), image("idle", 70), image("used", 0, "db"))
	wait(40, "busy", 10*time.Millisecond, nil)
	wait(10, "new", 100*time.Millisecond, errors.New("gone"))
	now := look(2*time.Second, control.Counters{HTTPRequests: 27, HTTPBytes: 9000, Fetched: 6500}, 300,
		image("idle", 70), image("used", 0, "db"), image("new", 2000), image("busy", 4500, "web"))
	got := now.since(before)

	if got.Over != 2*time.Second || got.Requests != 10 || got.Received != 4000 || got.Reads != 100 {
		t.Errorf("%+v", got)
	}
	if a := got.Activity; a.Misses != 25 || a.Read != 25000 || a.Fetched != 3000 || a.Failed != 10 || a.Waiting != 0.7 || a.P50 > 12*time.Millisecond || a.P99 < 80*time.Millisecond {
		t.Errorf("all: %+v", a)
	}
	var names []string
	for _, i := range got.Images {
		names = append(names, i.Ref)
	}
	if len(names) != 3 || names[0] != "new" || names[1] != "busy" || names[2] != "used" {
		t.Fatalf("images %q", names)
	}
	if i := got.Images[1]; i.Misses != 20 || i.Fetched != 2000 || i.Failed != 0 || i.Size != 100 || i.Local != 40 || i.Running[0] != "web" {
		t.Errorf("busy: %+v", i)
	}
	if i := got.Images[2]; i.Activity != (control.Activity{}) || i.Running[0] != "db" {
		t.Errorf("used: %+v", i)
	}
}

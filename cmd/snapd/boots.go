package main

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/containers"
)

// boots tells the boot profiles of images when containers are ready. Package
// containers itself tells events and the record of starts.
type boots struct{ d *daemon }

func (b boots) Started(containers.Boot) {}

func (b boots) Ready(c containers.Boot, by string, _ time.Time) { b.d.images.Ready(c.ID, by != "") }

// longMiss is how long a read may have waited that nobody has heard of yet.
const longMiss = 15 * time.Second

// LastMiss takes a read that waits just now for one of the image's, if that has
// missed something lately: whose it is, is known when it is answered.
func (b boots) LastMiss(image digest.Digest) time.Time {
	last := b.d.meter.Last(b.d.images.LayersOf(image))
	if q := b.d.fetcher.Queues()[0]; q.Open+q.Waiting > 0 && time.Since(last) < longMiss {
		return time.Now()
	}
	return last
}

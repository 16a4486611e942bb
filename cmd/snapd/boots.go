package main

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/containers"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/events"
)

// boots tells whoever wants to know when containers start and are ready: the
// record of starts, and the boot profiles of images.
type boots struct{ d *daemon }

func (b boots) Started(c containers.Boot) {
	b.d.starts.Started(c.ID, string(c.Image), c.Began)
	b.d.events.Emit(control.Event{Type: events.Container, Action: events.Start, ID: c.ID,
		Attributes: events.Attrs("manifest", c.Image)})
}

func (b boots) Ready(c containers.Boot, by string, at time.Time) {
	b.d.starts.Ready(c.ID, by, at)
	b.d.images.Ready(c.ID, by != "")
	if by != "" {
		b.d.events.Emit(control.Event{Type: events.Container, Action: events.Ready, ID: c.ID,
			Attributes: events.Attrs("manifest", c.Image, "by", by, "took", at.Sub(c.Began))})
	}
}

func (b boots) LastMiss(image digest.Digest) time.Time { return b.d.images.LastMiss(image) }

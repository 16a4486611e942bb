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

func (b boots) LastMiss(image digest.Digest) time.Time { return b.d.images.LastMiss(image) }

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/snapfs/snapfs/internal/containers"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/telemetry"
)

// PoolConfig says what is kept ready for containers to come.
type PoolConfig struct {
	// Size is how many monitors wait for a container, each used once, and how many
	// connections to the bridge (at least one, see network.ahead). 0 is none; at most 256.
	// Set, they are there from the beginning; the default is defaultSlots, made once the first
	// container has been asked for, as most daemons that serve containerd have none.
	Size *int `toml:"size"`
}

// defaultSlots serves who starts a container now and then, for the price of one
// sleeping process (see docs/pool.md).
const defaultSlots = 1

func (c PoolConfig) slots() int {
	if c.Size == nil {
		return defaultSlots
	}
	return *c.Size
}

func (c PoolConfig) validate() error {
	if n := c.slots(); n < 0 || n > containers.MaxPool {
		return fmt.Errorf("pool.size = %d: want 0 to %d", n, containers.MaxPool)
	}
	return nil
}

// pool shows what is kept ready, after a change if a asks for one.
func (d *daemon) pool(_ context.Context, a control.PoolArgs) (control.Pool, error) {
	p, err := d.containers.Pool(a)
	if err != nil {
		return p, err
	}
	if a.Size != nil {
		d.network.Keep(*a.Size)
	}
	if a.Drain {
		d.network.Drain()
	}
	p.Bridge = d.network.Spares()
	return p, nil
}

func (d *daemon) poolMetrics(t *telemetry.Text) {
	p, err := d.containers.Pool(control.PoolArgs{})
	if err != nil {
		return
	}
	p.Bridge = d.network.Spares()
	t.Family(prefix+"pool_size", telemetry.Gauge, "How many are to be kept ready for starts to come: monitors (slot) and connections to the bridge.")
	t.Sample(float64(p.Size), "kind", "slot")
	t.Sample(float64(p.Bridge.Size), "kind", "bridge")
	t.Family(prefix+"pool_ready", telemetry.Gauge, "How many are.")
	t.Sample(float64(len(p.Slots)), "kind", "slot")
	t.Sample(float64(p.Bridge.Ready), "kind", "bridge")
	t.Family(prefix+"pool_made_total", telemetry.Counter, "How many were made.")
	t.Sample(float64(p.Counts.Made), "kind", "slot")
	t.Sample(float64(p.Bridge.Made), "kind", "bridge")
	t.One(prefix+"pool_died_total", telemetry.Counter, "Monitors that did not live to serve a container.", float64(p.Counts.Died))
	t.Family(prefix+"pool_starts_total", telemetry.Counter, "Starts by whether they found one ready (hit), or why not.")
	for _, k := range []struct {
		kind   string
		hits   int64
		misses map[string]int64
	}{{"slot", p.Counts.Hits, p.Counts.Misses}, {"bridge", p.Bridge.Hits, p.Bridge.Misses}} {
		t.Sample(float64(k.hits), "kind", k.kind, "result", "hit")
		for _, why := range slices.Sorted(maps.Keys(k.misses)) {
			t.Sample(float64(k.misses[why]), "kind", k.kind, "result", why)
		}
	}
}

package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/runtime"
	"github.com/snapfs/snapfs/runtime/cgroups"
)

// update changes limits: those of a file, or of options.
func update(ctx context.Context, c *CLI, args []string) error {
	f := c.flags("update", "[options] ID")
	from := text2(f, "resources", "r", "", "`FILE` with linux.resources; - is standard input")
	r := new(specs.LinuxResources)
	registerLimits(f, r)
	rest, err := arguments(f, args, 1, 1)
	if err != nil {
		return err
	}
	if *from != "" {
		if r, err = c.readResources(*from); err != nil {
			return fmt.Errorf("--resources: %w", err)
		}
	}
	return c.withGroup(rest[0], func(k *container, g *cgroups.Group) error {
		if k.Scope != "" { // first: what systemd writes, it writes again
			if err := cgroups.CheckResources(r); err != nil {
				return err
			}
			if err := runtime.UpdateScope(ctx, k.Scope, r); err != nil {
				return fmt.Errorf("update: %w", err)
			}
		}
		return g.Update(r)
	})
}

func (c *CLI) readResources(name string) (*specs.LinuxResources, error) {
	var b []byte
	var err error
	if name == "-" {
		var buf bytes.Buffer
		if _, err = io.Copy(&buf, io.LimitReader(c.Stdin, maxConfig)); err != nil {
			return nil, err
		}
		b = buf.Bytes()
	} else if b, err = readFile(name, maxConfig); err != nil {
		return nil, err
	}
	r := new(specs.LinuxResources)
	return r, json.Unmarshal(b, r)
}

// registerLimits has the options of runc's update.
func registerLimits(f *flag.FlagSet, r *specs.LinuxResources) {
	cpu := func() *specs.LinuxCPU {
		if r.CPU == nil {
			r.CPU = new(specs.LinuxCPU)
		}
		return r.CPU
	}
	mem := func() *specs.LinuxMemory {
		if r.Memory == nil {
			r.Memory = new(specs.LinuxMemory)
		}
		return r.Memory
	}
	signed := func(name, usage string, set func(*int64)) {
		f.Func(name, usage, func(s string) error {
			n, err := size(s)
			if err == nil {
				set(&n)
			}
			return err
		})
	}
	unsigned := func(name, usage string, set func(*uint64)) {
		f.Func(name, usage, func(s string) error {
			n, err := strconv.ParseUint(s, 10, 64)
			if err == nil {
				set(&n)
			}
			return err
		})
	}
	signed("memory", "`BYTES` of memory; k, m and g multiply", func(n *int64) { mem().Limit = n })
	signed("memory-reservation", "`BYTES` that are kept under pressure", func(n *int64) { mem().Reservation = n })
	signed("memory-swap", "`BYTES` of memory and swap; -1 no limit", func(n *int64) { mem().Swap = n })
	signed("pids-limit", "`N` processes; -1 no limit", func(n *int64) { r.Pids = &specs.LinuxPids{Limit: n} })
	signed("cpu-quota", "`US` of processor time in a period; -1 no limit", func(n *int64) { cpu().Quota = n })
	signed("cpu-idle", "1: run when nobody else wants to", func(n *int64) { cpu().Idle = n })
	signed("cpu-rt-runtime", "`US` of real-time in a period", func(n *int64) { cpu().RealtimeRuntime = n })
	unsigned("cpu-period", "`US`", func(n *uint64) { cpu().Period = n })
	unsigned("cpu-burst", "`US` that may be saved up", func(n *uint64) { cpu().Burst = n })
	unsigned("cpu-share", "relative `WEIGHT`, 2 to 262144", func(n *uint64) { cpu().Shares = n })
	unsigned("cpu-rt-period", "`US`", func(n *uint64) { cpu().RealtimePeriod = n })
	unsigned("blkio-weight", "relative `WEIGHT`, 10 to 1000", func(n *uint64) {
		w := uint16(min(*n, 1<<16-1))
		r.BlockIO = &specs.LinuxBlockIO{Weight: &w}
	})
	f.Func("cpuset-cpus", "`LIST` of processors", func(s string) error { cpu().Cpus = s; return nil })
	f.Func("cpuset-mems", "`LIST` of memory nodes", func(s string) error { cpu().Mems = s; return nil })
}

// size reads a number of bytes, with a unit of 1024s.
func size(s string) (int64, error) {
	t := strings.TrimSuffix(strings.ToLower(s), "b")
	shift := 0
	if n := len(t); n > 0 {
		shift = map[byte]int{'k': 10, 'm': 20, 'g': 30, 't': 40}[t[n-1]]
	}
	if shift > 0 {
		t = t[:len(t)-1]
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil || n > 1<<62>>shift || n < -1 {
		return 0, fmt.Errorf("%q is no number of bytes, or -1", s)
	}
	return n << shift, nil
}

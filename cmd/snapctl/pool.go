package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// pool shows what the daemon keeps ready for starts to come.
func pool(ctx context.Context, env *Env, args []string) error {
	var a control.PoolArgs
	f := &flagSet{
		usage: "pool [OPTIONS]",
		about: "Show what the daemon keeps ready for containers to come: monitors (slots), and\n" +
			"connections to the bridge. Each is used once, and replaced in the background.\n" +
			"MISSES are starts that found none, and why: docs/pool.md.",
		example: "snapctl pool --size 8",
	}
	f.add("size", "N", "keep N of each from now on, 0 for none; when the daemon's worker is replaced it is pool.size of the configuration again", func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil {
			return fmt.Errorf("%q: want a number", s)
		}
		a.Size = &n
		return nil
	})
	f.flag(&a.Drain, "drain", "end those that wait; others are made after the next start")
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	var p control.Pool
	if err := env.call(ctx, control.OpPool, a, &p); err != nil {
		return err
	}
	if env.JSON {
		return env.printJSON(p)
	}
	t := newTable("KIND", "WANTED", "READY", "MADE", "HITS", "MISSES")
	t.row("slot", fmt.Sprint(p.Size), fmt.Sprint(len(p.Slots)), fmt.Sprint(p.Counts.Made), fmt.Sprint(p.Counts.Hits), reasons(p.Counts.Misses))
	t.row("bridge", fmt.Sprint(p.Bridge.Size), fmt.Sprint(p.Bridge.Ready), fmt.Sprint(p.Bridge.Made), fmt.Sprint(p.Bridge.Hits), reasons(p.Bridge.Misses))
	text := t.String() + fmt.Sprintf("\nOf the hits, %d took the slot's sandbox, others did not: %s.\n", p.Counts.Sandboxes, reasons(p.Counts.Bare))
	if len(p.Slots) > 0 {
		t = newTable("PID", "MADE", "SANDBOX")
		for _, s := range p.Slots {
			t.row(fmt.Sprint(s.Pid), ago(s.Made, time.Now()), cmp.Or(s.Cgroup, "none: "+s.Why))
		}
		text += "\n" + t.String()
	}
	_, err := env.Stdout.WriteString(text)
	return err
}

// reasons is the sum, and of what it is.
func reasons(m map[string]int64) string {
	var sum int64
	var parts []string
	for _, why := range slices.Sorted(maps.Keys(m)) {
		sum += m[why]
		parts = append(parts, fmt.Sprintf("%s %d", why, m[why]))
	}
	if sum == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", sum, strings.Join(parts, ", "))
}

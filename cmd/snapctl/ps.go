package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/ports"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func ps(ctx context.Context, env *Env, args []string) error {
	var all, quiet, long bool
	f := &flagSet{
		usage:   "ps [OPTIONS]",
		about:   "List running containers.",
		example: "snapctl ps -a",
	}
	f.flag(&all, "a,all", "list those that do not run, too")
	f.flag(&long, "no-trunc", "do not shorten IDs and commands")
	f.flag(&quiet, "q,quiet", "print IDs only")
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	var list []control.Container
	if err := env.call(ctx, control.OpPs, control.PsArgs{All: all}, &list); err != nil {
		return err
	}
	if quiet && !env.JSON {
		for _, c := range list {
			id := c.ID
			if !long {
				id = shortID(id)
			}
			fmt.Fprintln(env.Stdout, id)
		}
		return nil
	}
	return env.table(containerTable(list, long, time.Now()), list)
}

func containerTable(list []control.Container, long bool, now time.Time) *table {
	t := newTable("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES")
	for _, c := range list {
		id, command := shortID(c.ID), shorten(strings.Join(c.Command, " "), 20)
		if long {
			id, command = c.ID, strings.Join(c.Command, " ")
		}
		t.row(id, c.Image, `"`+command+`"`, ago(c.Created, now), status(c, now), portsOf(c), c.Name)
	}
	return t
}

// portsOf is docker's wording of what is published, and what is only exposed.
func portsOf(c control.Container) string {
	if c.Status != monitor.StatusRunning && c.Status != monitor.StatusPaused {
		return ""
	}
	var list []string
	published := map[string]bool{}
	if c.Endpoint != nil {
		for _, b := range c.Endpoint.Ports {
			list = append(list, b.String())
			published[portName(b.Container, b.Proto)] = true
		}
	}
	var exposed []control.Port
	for _, p := range c.Exposed {
		if !published[portName(p.Container, p.Proto)] {
			exposed = append(exposed, p)
		}
	}
	return strings.Join(append(list, portRanges(exposed)...), ", ")
}

// portRanges names ports, those in a row together: an image may expose thousands.
func portRanges(ports []control.Port) (names []string) {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b control.Port) int {
		return cmp.Or(strings.Compare(a.Proto, b.Proto), cmp.Compare(a.Container, b.Container))
	})
	for len(ports) > 0 {
		first, n := ports[0], 1
		for n < len(ports) && ports[n].Proto == first.Proto && int(ports[n].Container) == int(first.Container)+n {
			n++
		}
		name := portName(first.Container, first.Proto)
		if n > 1 {
			name = fmt.Sprintf("%d-%s", first.Container, portName(ports[n-1].Container, first.Proto))
		}
		names = append(names, name)
		ports = ports[n:]
	}
	return names
}

func portName(n uint16, proto string) string { return fmt.Sprintf("%d/%s", n, proto) }

func port(ctx context.Context, env *Env, args []string) error {
	f := &flagSet{
		usage:   "port CONTAINER [PORT[/PROTOCOL]]",
		about:   "Show where the ports of a container are published, or one of them.",
		example: "snapctl port web 80",
	}
	rest, err := f.parse(env, args, 1, 2)
	if err != nil {
		return err
	}
	var want []control.Port
	if len(rest) == 2 {
		if want, err = ports.Expose(rest[1]); err != nil || len(want) != 1 {
			return usageErrorf("port: %q: want PORT[/PROTOCOL]", rest[1])
		}
	}
	var c control.Container
	if err := env.call(ctx, control.OpResolve, control.ContainerArgs{ID: rest[0]}, &c); err != nil {
		return err
	}
	list := []control.Binding{}
	if c.Endpoint != nil {
		list = c.Endpoint.Ports
	}
	if want != nil {
		list = slices.DeleteFunc(list, func(b control.Binding) bool { return b.Container != want[0].Container || b.Proto != want[0].Proto })
		if len(list) == 0 {
			return fmt.Errorf("container %s: port %s is not published", c.Name, portName(want[0].Container, want[0].Proto))
		}
	}
	if env.JSON {
		return env.table(nil, list)
	}
	for _, b := range list {
		host := netip.AddrPortFrom(b.HostIP, b.Host)
		if len(rest) == 2 {
			fmt.Fprintln(env.Stdout, host)
		} else {
			fmt.Fprintf(env.Stdout, "%s -> %s\n", portName(b.Container, b.Proto), host)
		}
	}
	return nil
}

func health(h *control.Health) string {
	switch {
	case h == nil:
		return ""
	case h.Status == monitor.HealthStarting:
		return " (health: starting)"
	}
	return " (" + h.Status + ")"
}

// status is docker's wording of what a container is doing.
func status(c control.Container, now time.Time) string {
	switch c.Status {
	case monitor.StatusRunning:
		return "Up " + duration(max(now.Sub(c.Started), 0)) + health(c.Health)
	case monitor.StatusPaused:
		return "Up " + duration(max(now.Sub(c.Started), 0)) + " (Paused)"
	case monitor.StatusExited:
		text := fmt.Sprintf("Exited (%d) %s", c.ExitCode, ago(c.Finished, now))
		if c.OOMKilled {
			text += ", out of memory"
		}
		return text
	case monitor.StatusDead:
		return "Dead"
	}
	return "Created"
}

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/control"
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
	t := newTable("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")
	for _, c := range list {
		id, command := shortID(c.ID), shorten(strings.Join(c.Command, " "), 20)
		if long {
			id, command = c.ID, strings.Join(c.Command, " ")
		}
		t.row(id, c.Image, `"`+command+`"`, ago(c.Created, now), status(c, now), c.Name)
	}
	return t
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

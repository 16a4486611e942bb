package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// showEvents is the verb events.
func showEvents(ctx context.Context, env *Env, args []string) error {
	var a control.EventsArgs
	f := &flagSet{
		usage: "events [OPTIONS]",
		about: "Show what has happened to images, containers and the daemon, and with --follow what does.\n" +
			"The daemon keeps the newest 1024 events in memory. docs/observe.md lists them all.",
		example: "snapctl events -f\nsnapctl events --since 10m --filter type=container --filter event=die --json",
	}
	f.flag(&a.Follow, "f,follow", "go on until interrupted, or until --until")
	f.add("since", "TIME", "leave out what is older than a time (RFC 3339) or a while (10m)", func(s string) (err error) { a.Since, err = parseTime(s, time.Now()); return err })
	f.add("until", "TIME", "leave out what is newer", func(s string) (err error) { a.Until, err = parseTime(s, time.Now()); return err })
	f.add("filter", "KEY=VALUE", "only these: type, event, image or container; may be given again", func(s string) error {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q: want KEY=VALUE", s)
		}
		if a.Filter == nil {
			a.Filter = map[string][]string{}
		}
		a.Filter[key] = append(a.Filter[key], value)
		return nil
	})
	if _, err := f.parse(env, args, 0, 0); err != nil {
		return err
	}
	r := &eventReader{env: env, args: a}
	err := (&follower{env: env, op: control.OpEvents, args: func() any { return r.args }, event: r.event, next: r.next, once: !a.Follow}).run(ctx)
	if errors.Is(err, context.Canceled) {
		return &exitError{status: 128 + int(unix.SIGINT)}
	}
	return err
}

// An eventReader prints events.
type eventReader struct {
	env  *Env
	args control.EventsArgs
}

// next prepares for another daemon, after one that was asked at began.
func (r *eventReader) next(began time.Time) {
	if r.args.Since.Before(began) {
		r.args.Since = began
	}
	fmt.Fprintln(r.env.Stderr, "snapctl: the daemon's worker was replaced: events may be missing here")
}

// event prints one event.
func (r *eventReader) event(raw json.RawMessage) error {
	var e control.Event
	if err := json.Unmarshal(raw, &e); err != nil {
		return fmt.Errorf("malformed event: %w", err)
	}
	if t := e.Time.Add(1); e.Seq > 0 && t.After(r.args.Since) {
		r.args.Since = t // for who comes after this daemon
	}
	if r.env.JSON {
		_, err := r.env.Stdout.Write(append(plainJSON(raw), '\n'))
		return err
	}
	if e.Type == "events" {
		_, err := fmt.Fprintf(r.env.Stderr, "snapctl: %s events lost: the daemon does not keep more\n", printable(e.Attributes["count"]))
		return err
	}
	_, err := r.env.Stdout.WriteString(eventLine(e) + "\n")
	return err
}

// eventLine is an event as docker prints it.
func eventLine(e control.Event) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s %s", e.Time.Local().Format("2006-01-02T15:04:05.000000Z07:00"), e.Type, e.Action, e.ID)
	for i, k := range slices.Sorted(maps.Keys(e.Attributes)) {
		sep := ", "
		if i == 0 {
			sep = " ("
		}
		b.WriteString(sep + k + "=" + e.Attributes[k])
	}
	if len(e.Attributes) > 0 {
		b.WriteByte(')')
	}
	return printable(b.String())
}

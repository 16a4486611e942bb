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
	return (&eventReader{env: env, args: a}).run(ctx)
}

// An eventReader prints events, over the deaths of daemons.
type eventReader struct {
	env  *Env
	args control.EventsArgs
	err  error // of writing
}

// patience is how long a follower waits for the next daemon, or the next worker.
const patience = 10 * time.Second

func (r *eventReader) run(ctx context.Context) error {
	env := *r.env
	for {
		began := time.Now()
		call, cancel := context.WithCancel(ctx)
		_, err := env.request(call, control.OpEvents, r.args, nil, func(raw json.RawMessage) {
			if r.err = errors.Join(r.err, r.event(raw)); r.err != nil {
				cancel()
			}
		})
		cancel()
		switch {
		case errors.Is(r.err, unix.EPIPE): // whoever read it does not want any more
			return &exitError{status: 128 + int(unix.SIGPIPE)}
		case r.err != nil:
			return r.err
		case errors.Is(err, context.Canceled):
			return &exitError{status: 128 + int(unix.SIGINT)}
		case !r.args.Follow || !replaced(err):
			return err
		}
		env.NoAutostart = true // a daemon that was stopped is not to be started by who looks on
		if err := r.next(ctx, &env, began); err != nil {
			return err
		}
	}
}

// replaced tells whether another daemon, or worker, may soon go on in the place of one that ended.
func replaced(err error) bool {
	e, ok := errors.AsType[*control.Error](err)
	return errors.Is(err, errWentAway) || ok && e.Code == control.CodeUnavailable
}

// next waits for the next daemon after one that was asked at began.
func (r *eventReader) next(ctx context.Context, env *Env, began time.Time) error {
	if r.args.Since.Before(began) {
		r.args.Since = began
	}
	r.args.After = 0 // it counts anew
	deadline := time.Now().Add(patience)
	for {
		err := env.call(ctx, control.OpVersion, nil, nil)
		if err == nil {
			fmt.Fprintln(env.Stderr, "snapctl: the daemon's worker was replaced: events may be missing here")
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the daemon has stopped: %w", err)
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return &exitError{status: 128 + int(unix.SIGINT)}
		}
	}
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
		_, err := r.env.Stdout.Write(append(raw, '\n'))
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

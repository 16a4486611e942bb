package main

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func TestEvents(t *testing.T) {
	at := time.Date(2026, 11, 26, 10, 0, 0, 123456000, time.UTC)
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpEvents: func(r *control.Request) error {
			r.Event(control.Event{Time: at, Type: "events", Action: "lost", Attributes: map[string]string{"count": "7"}})
			r.Event(control.Event{Seq: 8, Time: at, Type: "container", Action: "die", ID: "cafe",
				Attributes: map[string]string{"name": "a\x1b[31m", "exitCode": "3", "image": "debian:stable"}})
			return nil
		},
	})
	env, out, errs := newEnv(t, d.socket)
	if status := env.main(strings.Fields("events --since 2026-11-26T09:00:00Z --filter type=container --filter event=die --filter event=start")); status != 0 {
		t.Errorf("exit status %d", status)
	}
	want := at.Local().Format("2006-01-02T15:04:05.000000Z07:00") + " container die cafe (exitCode=3, image=debian:stable, name=a?[31m)\n"
	if out() != want || errs() != "snapctl: 7 events lost: the daemon does not keep more\n" {
		t.Errorf("stdout %q\n  want %q\nstderr %q", out(), want, errs())
	}
	if asked := d.requests()[0]; asked != `events {"Since":"2026-11-26T09:00:00Z","Filter":{"event":["die","start"],"type":["container"]}}` {
		t.Errorf("asked for %s", asked)
	}
	env, out, _ = newEnv(t, d.socket)
	if env.main([]string{"events", "--json"}); strings.Count(out(), "\n") != 2 || !strings.Contains(out(), `"Action":"lost"`) {
		t.Errorf("--json: %q", out())
	}
	env, _, errs = newEnv(t, d.socket)
	if status := env.main([]string{"events", "--filter", "die"}); status != 2 || !strings.Contains(errs(), "want KEY=VALUE") {
		t.Errorf("exit status %d, %q", status, errs())
	}
}

// A follower goes on with the next worker, and asks for nothing twice.
func TestEventsOutliveTheWorker(t *testing.T) {
	at := time.Now().Add(time.Minute)
	var mu sync.Mutex
	var asked []control.EventsArgs
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpVersion: answer(control.Version{}),
		control.OpEvents: func(r *control.Request) error {
			var a control.EventsArgs
			if err := r.Decode(&a); err != nil {
				return err
			}
			mu.Lock()
			asked = append(asked, a)
			n := len(asked)
			mu.Unlock()
			r.Event(control.Event{Seq: 1, Time: at, Type: "image", Action: "pull", ID: "x"})
			switch n {
			case 1:
				return &control.Error{Code: control.CodeUnavailable, Message: "the daemon stops"}
			case 2:
				r.Conn.Close() // it is killed
			}
			return nil
		},
	})
	env, out, errs := newEnv(t, d.socket)
	if status := env.main([]string{"events", "-f"}); status != 0 {
		t.Errorf("exit status %d: %s", status, errs())
	}
	mu.Lock()
	defer mu.Unlock()
	if n := strings.Count(out(), "image pull x\n"); n != 3 || len(asked) != 3 {
		t.Fatalf("%d events of %d workers: %s", n, len(asked), out())
	}
	if !asked[0].Since.IsZero() || !asked[1].Since.After(at) || !asked[2].Follow {
		t.Errorf("asked for %+v", asked)
	}
	if n := strings.Count(errs(), "events may be missing"); n != 2 {
		t.Errorf("stderr %q", errs())
	}
}

func TestEventsEndWithTheirReader(t *testing.T) {
	ended := make(chan struct{})
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpEvents: func(r *control.Request) error {
			defer close(ended)
			for {
				if err := r.Event(control.Event{Type: "image", Action: "pull", ID: "x"}); err != nil {
					return err
				}
			}
		},
	})
	env, _, errs := newEnv(t, d.socket)
	r, w := pipe(t)
	env.Stdout = w
	r.Close()
	if status := env.main([]string{"events", "-f"}); status != 128+13 || errs() != "" {
		t.Errorf("exit status %d, %q, want that of SIGPIPE", status, errs())
	}
	<-ended
}

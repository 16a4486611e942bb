package main

import (
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func aTop() control.Top {
	return control.Top{
		Time: noon, Over: time.Second, Worker: 77, Restarts: 1, Memory: 40e6, Requests: 12, Received: 9.5e6, Reads: 1234.4,
		Activity: control.Activity{Misses: 54, P50: 21 * ms, P99: 180 * ms, Waiting: 2.25, Read: 4e6, Fetched: 9e6, Failed: 1},
		Queues:   []control.Queue{{Class: "demand", Open: 2}, {Class: "background", Waiting: 3, Open: 1}},
		Images: []control.TopImage{
			{Ref: "registry.example/library/a-very-long-name-of-an-image:stable", Size: 100, Local: 31, Activity: control.Activity{Misses: 54, P50: 21 * ms, P99: 180 * ms, Waiting: 2.25, Read: 4e6, Fetched: 9e6}, Running: []string{"web", "db"}, Mounts: 1},
			{Ref: "evil\x1b[2J", Size: 100, Local: 100, Complete: true, Quarantined: true, Mounts: 2},
			{Ref: "nearly:1", Size: 1000, Local: 999},
		},
	}
}

func TestTopText(t *testing.T) {
	one := aTop()
	want := `snapfs  ` + noon.Local().Format(time.TimeOnly) + `  worker 77, replaced 1 times, 40.0MB resident
Reads:    1234/s, of which 54/s waited for the network: half at most 21ms, 99 of 100 at most 180ms
Waiting:  2.2 on average, 4.00MB/s read by them, 1 failed
Network:  12 requests/s, 9.50MB/s, of layers being read or completed 9.00MB/s
Queue:    demand 2 under way, 0 waiting; background 1 under way, 3 waiting

IMAGE                                              LOCAL   MISSES/S   P50    P99     WAITING   READ/S   FETCHED/S   USED BY
registry.example/library/a-very-long-name-of-an…   31%     54         21ms   180ms   2.2       4.00MB   9.00MB      web, db, 1 mount
evil?[2J (quarantined)                             all     0          -      -       0.0       0B       0B          2 mounts
nearly:1                                           99%     0          -      -       0.0       0B       0B
`
	if got := topText(&one); got != want {
		t.Errorf("shown\n%s\nwant\n%s", got, want)
	}
	if got := topText(&control.Top{}); !strings.HasSuffix(got, "USED BY\nno image is in use\n") || !strings.Contains(got, "0/s, none of which waited") {
		t.Errorf("shown\n%s", got)
	}
}

func TestTopVerb(t *testing.T) {
	d := newDaemon(t, map[string]func(*control.Request) error{
		control.OpTop: func(r *control.Request) error {
			var a control.TopArgs
			if err := r.Decode(&a); err != nil {
				return err
			}
			return r.Event(aTop()) // and no more
		},
	})
	env, out, errs := newEnv(t, d.socket)
	if status := env.main(strings.Fields("top --once -d 200ms")); status != 0 || strings.Count(out(), "snapfs  ") != 1 || strings.Contains(out(), "\x1b") {
		t.Errorf("exit status %d: %s%s", status, out(), errs())
	}
	if asked := d.requests()[0]; asked != `top {"Every":200000000,"Count":1}` {
		t.Errorf("asked for %s", asked)
	}
	env, out, _ = newEnv(t, d.socket)
	if env.main(strings.Fields("top --json")); strings.Count(out(), "\n") != 1 || !strings.HasPrefix(out(), `{"Time":"`) || !strings.Contains(out(), `"Misses":54`) {
		t.Errorf("--json: %s", out())
	}
	env, _, errs = newEnv(t, d.socket)
	if status := env.main(strings.Fields("top -d soon")); status != 2 || !strings.Contains(errs(), "500ms") {
		t.Errorf("exit status %d: %s", status, errs())
	}
}

// On a terminal texts replace one another; what does not fit is cut and never wraps or scrolls.
func TestScreen(t *testing.T) {
	r, w := pipe(t)
	s := &screen{out: w, size: func() (int, int) { return 10, 5 }}
	if err := s.show("short\n" + strings.Repeat("long", 5) + "\n3\n4\n5\n6\n"); err != nil {
		t.Fatal(err)
	}
	if err := s.show("again\n"); err != nil {
		t.Fatal(err)
	}
	s.close()
	w.Close()
	got, err := io.ReadAll(r)
	want := "\x1b[?25l\x1b[2J\x1b[Hshort\x1b[K\nlonglongl…\x1b[K\n3\x1b[K\n… and 3 m…\x1b[K\n\x1b[J" + "\x1b[Hagain\x1b[K\n\x1b[J" + "\x1b[?25h"
	if err != nil || string(got) != want {
		t.Errorf("wrote %q, %v\n want %q", got, err, want)
	}
}

func TestScreenThatIsNone(t *testing.T) {
	r, w := pipe(t)
	s := (&Env{Stdout: w, Getenv: os.Getenv}).screen()
	s.show("one\n")
	s.show("two\n")
	s.close()
	w.Close()
	if got, _ := io.ReadAll(r); string(got) != "one\n\ntwo\n" {
		t.Errorf("wrote %q", got)
	}
}

package containers

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

func TestQuiet(t *testing.T) {
	const ms = time.Millisecond
	q := quiet{window: 2000 * ms, limit: 60_000 * ms}
	for name, test := range map[string]struct {
		misses      []time.Duration // after the start
		ready, told time.Duration
	}{
		"nothing was missed":      {nil, 0, 2000 * ms},
		"one burst":               {[]time.Duration{10 * ms, 30 * ms, 900 * ms}, 900 * ms, 2900 * ms},
		"a pause within":          {[]time.Duration{10 * ms, 1990 * ms}, 1990 * ms, 3990 * ms},
		"a second burst too late": {[]time.Duration{10 * ms, 2500 * ms}, 10 * ms, 2010 * ms},
		"no end":                  {every(1500*ms, 100_000*ms), 60_000 * ms, 60_000 * ms},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				last := func() (last time.Time) {
					for _, m := range test.misses {
						if at := start.Add(m); !at.After(time.Now()) {
							last = at
						}
					}
					return last
				}
				at, err := q.wait(t.Context(), start, last)
				if err != nil || at.Sub(start) != test.ready || time.Since(start) != test.told {
					t.Errorf("ready at %v, told at %v, %v; want %v, told at %v", at.Sub(start), time.Since(start), err, test.ready, test.told)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) { // the machine's clock was an hour ahead when something was missed, and has been set
		start := time.Now()
		ahead := start.Add(time.Hour).Round(0)
		if at, err := q.wait(t.Context(), start, func() time.Time { return ahead }); err != nil || at.Sub(start) != 0 || time.Since(start) != q.window {
			t.Errorf("ready at %v, told at %v, %v", at.Sub(start), time.Since(start), err)
		}
	})
	synctest.Test(t, func(t *testing.T) { // a read that waits is a miss as long as it does
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if at, err := q.wait(ctx, time.Now(), time.Now); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ready at %v, %v", at, err)
		}
	})
}

func every(step, end time.Duration) (all []time.Duration) {
	for d := step; d < end; d += step {
		all = append(all, d)
	}
	return all
}

// A bootLog remembers what it hears.
type bootLog struct {
	mu    sync.Mutex
	heard []string
	ready chan struct{} // closed by Ready
	miss  time.Time
}

func (l *bootLog) Started(b Boot) { l.hear("started " + b.ID[:4] + " " + string(b.Image)) }
func (l *bootLog) Ready(b Boot, by string, at time.Time) {
	l.hear("ready by " + by + " after " + at.Sub(b.Began).String())
	close(l.ready)
}
func (l *bootLog) LastMiss(digest.Digest) time.Time { return l.miss }
func (l *bootLog) hear(s string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.heard = append(l.heard, s)
}

// A book whose one container has a monitor that answers with states, until it is told that it is quiet.
func followed(t *testing.T, c *monitor.Config, states ...monitor.State) (*bootLog, *Service) {
	t.Helper()
	dir := t.TempDir()
	c.ID, c.Socket, c.Labels = strings.Repeat("ab", 32), filepath.Join(dir, "s"), map[string]string{labelManifest: "sha256:1"}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: c.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	quiet := make(chan monitor.QuietArgs, 1)
	server := control.Server{Handle: func(ctx context.Context, r *control.Request) error {
		if r.Op == monitor.OpQuiet {
			var a monitor.QuietArgs
			if err := r.Decode(&a); err != nil {
				return err
			}
			quiet <- a
			return nil
		}
		for _, st := range states[:len(states)-1] {
			r.Event(st)
		}
		last := states[len(states)-1]
		if last.ReadyBy == monitor.ReadyByQuiet {
			select {
			case a := <-quiet:
				last.Ready = a.At
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return r.Reply(last)
	}}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(ctx, l) })
	t.Cleanup(func() { cancel(); serving.Wait(); l.Close() })
	log := &bootLog{ready: make(chan struct{})}
	s, err := Open(t.Context(), Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Boots: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	s.quiet.window = 1
	s.follow(c)
	return log, s
}

func TestFollow(t *testing.T) {
	start := time.Now().Add(-time.Hour).UTC().Round(0)
	running := monitor.State{Status: monitor.StatusRunning, Started: start}
	by := func(how string, after time.Duration) monitor.State {
		st := running
		st.ReadyBy, st.Ready = how, start.Add(after)
		return st
	}
	ended := monitor.State{Status: monitor.StatusExited, Started: start, Finished: start.Add(time.Second), ExitCode: 1}
	for name, test := range map[string]struct {
		config monitor.Config
		states []monitor.State
		want   []string
	}{
		"port":          {monitor.Config{Ready: "port=80"}, []monitor.State{running, by("port", time.Minute)}, []string{"started abab sha256:1", "ready by port after 1m0s"}},
		"health":        {monitor.Config{Health: &control.Healthcheck{}}, []monitor.State{running, by("health", time.Minute)}, []string{"started abab sha256:1", "ready by health after 1m0s"}},
		"died":          {monitor.Config{Ready: "port=80"}, []monitor.State{running, ended}, []string{"started abab sha256:1", "ready by  after 1s"}},
		"never started": {monitor.Config{}, []monitor.State{ended}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			log, s := followed(t, &test.config, test.states...)
			if test.want != nil {
				<-log.ready
			} else {
				s.followers.Wait()
			}
			if !reflect.DeepEqual(log.heard, test.want) {
				t.Errorf("heard %q, want %q", log.heard, test.want)
			}
		})
	}
}

// A daemon that comes when a container has been running decides from then on.
func TestFollowQuiet(t *testing.T) {
	start := time.Now().Add(-time.Hour).UTC().Round(0)
	log, s := followed(t, &monitor.Config{}, monitor.State{Status: monitor.StatusRunning, Started: start}, monitor.State{Status: monitor.StatusRunning, Started: start, ReadyBy: monitor.ReadyByQuiet})
	<-log.ready
	want := "ready by quiet after " + s.opened.Sub(start).String()
	if len(log.heard) != 2 || log.heard[1] != want {
		t.Errorf("heard %q, want %q", log.heard, want)
	}
}

// A container that was started before the clock was set back is ready all the same.
func TestFollowQuietClockSet(t *testing.T) {
	start := time.Now().Add(time.Hour).UTC().Round(0)
	log, _ := followed(t, &monitor.Config{}, monitor.State{Status: monitor.StatusRunning, Started: start}, monitor.State{Status: monitor.StatusRunning, Started: start, ReadyBy: monitor.ReadyByQuiet})
	<-log.ready // or never, in an hour
	if len(log.heard) != 2 || !strings.HasPrefix(log.heard[1], "ready by quiet") {
		t.Errorf("heard %q", log.heard)
	}
}

// A daemon that ends lets go of the containers, and says nothing of them.
func TestFollowUntilTheEnd(t *testing.T) {
	log, s := followed(t, &monitor.Config{Ready: "port=80"}, monitor.State{Status: monitor.StatusRunning, Started: time.Now()}, monitor.State{ReadyBy: monitor.ReadyByQuiet})
	s.Close()
	for _, h := range log.heard {
		if strings.HasPrefix(h, "ready") {
			t.Errorf("heard %q", h)
		}
	}
	if _, err := os.Stat(s.dir("")); err != nil {
		t.Error(err)
	}
}

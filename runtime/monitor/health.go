package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

// What a health check says of a container.
const (
	HealthStarting  = "starting" // it has not succeeded yet
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

// Docker's defaults (moby daemon/health.go, v28).
const (
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
	maxHealthLog         = 5       // results
	maxHealthOutput      = 4 << 10 // bytes of each
)

// minInterval is the shortest time between two runs of a health check, and the
// shortest that one may take. Docker's is 1 ms; but starting a program in a
// container costs this machine, whatever the container's limits are, and an
// image may ask for anything.
const minInterval = 100 * time.Millisecond

// CheckHealth says what is wrong with a health check.
func CheckHealth(h control.Healthcheck) error {
	for name, d := range map[string]time.Duration{"interval": h.Interval, "timeout": h.Timeout, "start-interval": h.StartInterval} {
		if d != 0 && d < minInterval {
			return fmt.Errorf("health-%s %v: want at least %v", name, d, minInterval)
		}
	}
	switch {
	case h.StartPeriod < 0:
		return fmt.Errorf("health-start-period %v: want no less than 0", h.StartPeriod)
	case h.Retries < 0:
		return fmt.Errorf("health-retries %d: want no less than 0", h.Retries)
	}
	_, err := healthArgs(h.Test)
	return err
}

// healthArgs is the command line of a check; nil for none.
func healthArgs(test []string) ([]string, error) {
	switch {
	case len(test) == 0, test[0] == "NONE":
		return nil, nil
	case test[0] == "CMD" && len(test) > 1 && test[1] != "":
		return test[1:], nil
	case test[0] == "CMD-SHELL" && len(test) > 1 && test[1] != "":
		return append([]string{"/bin/sh", "-c"}, test[1:]...), nil
	}
	return nil, fmt.Errorf("health check %q: want CMD and a program, CMD-SHELL and a script, or NONE", test)
}

// health is the course of a health check. It follows Docker's schedule and
// counting. Besides, until the first run that Docker would make (30 s after the
// start, by default) it is run early, after 1, 2, 4, … s, to learn soon that the
// container is ready; that it then fails counts for nothing.
//
// Invariant: all of its times have a reading of the monotonic clock, so that a
// step of the machine's clock neither stops the checks nor hurries them.
type health struct {
	control.Healthcheck
	args    []string
	started time.Time

	control.Health
	last  time.Time     // end of the last run on schedule, or started
	ran   time.Time     // end of the last run
	early time.Duration // until the next early run; 0: no more of those
}

// newHealth begins the course. early asks for early runs.
func newHealth(h control.Healthcheck, started time.Time, early bool) (*health, error) {
	args, err := healthArgs(h.Test)
	if err != nil {
		return nil, err
	}
	orElse := func(d *time.Duration, def time.Duration) {
		if *d <= 0 {
			*d = def
		}
		*d = max(*d, minInterval)
	}
	orElse(&h.Interval, defaultInterval)
	orElse(&h.Timeout, defaultTimeout)
	orElse(&h.StartInterval, defaultStartInterval)
	if h.Retries <= 0 {
		h.Retries = defaultRetries
	}
	c := &health{Healthcheck: h, args: args, started: started, last: started, ran: started}
	c.Status = HealthStarting
	if early {
		c.early = time.Second
	}
	return c, nil
}

// next says when the check is run next, and whether that is on schedule.
func (h *health) next(now time.Time) (at time.Time, scheduled bool) {
	interval := h.Interval
	if h.Status == HealthStarting && now.Sub(h.started) < h.StartPeriod {
		interval = h.StartInterval
	}
	at = h.last.Add(interval)
	if h.Status == HealthStarting && h.early > 0 {
		if e := h.ran.Add(h.early); e.Before(at) {
			return e, false
		}
	}
	return at, true
}

// skip is a run that did not take place, as the container was paused.
func (h *health) skip(now time.Time) { h.last, h.ran = now, now }

// add counts a run.
func (h *health) add(r control.HealthResult, scheduled bool) {
	logged := r
	logged.Start, logged.End = r.Start.UTC(), r.End.UTC()
	h.Log = append(slices.Clone(h.Log), logged) // the old one is in the state
	if n := len(h.Log) - maxHealthLog; n > 0 {
		h.Log = h.Log[n:]
	}
	h.ran, h.early = r.End, 2*h.early
	if scheduled {
		h.last, h.early = r.End, 0
	}
	switch {
	case r.ExitCode == 0:
		h.Status, h.FailingStreak = HealthHealthy, 0
	case !scheduled, h.Status == HealthStarting && r.Start.Sub(h.started) < h.StartPeriod:
	default:
		if h.FailingStreak++; h.FailingStreak >= h.Retries {
			h.Status = HealthUnhealthy
		}
	}
}

// checkHealth runs the health check as long as the container lives, which is as long as ctx.
func (m *Monitor) checkHealth(ctx context.Context, c Container, h *health) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		at, scheduled := h.next(time.Now())
		timer.Reset(time.Until(at))
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if m.snapshot().Paused {
			h.skip(time.Now())
			continue
		}
		r := m.probe(ctx, c, h)
		if ctx.Err() != nil {
			return
		}
		h.add(r, scheduled)
		course := h.Health
		m.update(func(s *State) bool { s.Health = &course; return true })
		if h.Status == HealthHealthy && m.ready.health {
			m.becameReady(ReadyByHealth, r.End.UTC())
		}
	}
}

// probe runs the check once. It waits for the program's end, which after the
// timeout is by SIGKILL, so that no two are there at a time.
func (m *Monitor) probe(ctx context.Context, c Container, h *health) (r control.HealthResult) {
	r.Start = time.Now() // with the monotonic clock's reading: next counts from it
	defer func() { r.End = time.Now() }()
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, errTooSlow)
	defer cancel()
	code, out, err := m.runProbe(ctx, c, h.args)
	r.ExitCode, r.Output = code, string(out)
	if err != nil {
		r.ExitCode = -1
		if errors.Is(context.Cause(ctx), errTooSlow) {
			err = fmt.Errorf("the health check took longer than %v", h.Timeout)
		}
		r.Output = err.Error()
		if len(out) > 0 {
			r.Output += ": " + string(out)
		}
	}
	return r
}

var errTooSlow = errors.New("too slow")

func (m *Monitor) runProbe(ctx context.Context, c Container, args []string) (code int, out []byte, err error) {
	io, err := newStdio(false, true, false)
	if err != nil {
		return 0, nil, err
	}
	files := io.files
	files.Stderr = files.Stdout
	p, err := c.Exec(ctx, m.process(&ExecArgs{Args: args}), files)
	if err != nil {
		io.close()
		return 0, nil, err
	}
	io.files.close()
	ended := make(chan struct{})
	var pumped sync.WaitGroup
	pumped.Go(func() {
		pump(io.out, ended, execGrace, func(b []byte) bool {
			out = append(out, b[:min(len(b), maxHealthOutput-len(out))]...)
			return true
		})
	})
	status, err := p.Wait(ctx)
	if err != nil {
		err = errors.Join(err, p.KillGroup())
		if _, werr := p.Wait(context.Background()); werr != nil {
			err = errors.Join(err, werr)
		}
	}
	close(ended)
	pumped.Wait()
	return status.exit().Code, out, err
}

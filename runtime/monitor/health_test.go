package monitor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func TestCheckHealth(t *testing.T) {
	for text, h := range map[string]control.Healthcheck{ // part of the error; "" for none
		"":                                 {},
		"health-interval 1ms: want":        {Interval: time.Millisecond},
		"health-interval -1s: want":        {Interval: -time.Second},
		"health-timeout 1ns: want":         {Timeout: 1},
		"health-start-interval 1ms: want":  {StartInterval: time.Millisecond},
		"health-start-period -1ns: want":   {StartPeriod: -1},
		"health-retries -3: want":          {Retries: -3},
		`health check ["CMD"]: want`:       {Test: []string{"CMD"}},
		`health check ["CMD" ""]: want`:    {Test: []string{"CMD", ""}},
		`health check ["CMD-SHELL"]: want`: {Test: []string{"CMD-SHELL"}},
		`health check ["curl" "x"]: want`:  {Test: []string{"curl", "x"}},
		`health check [""]: want CMD`:      {Test: []string{""}},
	} {
		if err := CheckHealth(h); (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("CheckHealth(%+v): %v, want %q", h, err, text)
		}
	}
	for _, test := range []struct{ in, want []string }{
		{nil, nil}, {[]string{"NONE"}, nil}, {[]string{"CMD", "a", "b"}, []string{"a", "b"}}, {[]string{"CMD-SHELL", "a b"}, []string{"/bin/sh", "-c", "a b"}},
	} {
		if got, err := healthArgs(test.in); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("healthArgs(%q) = %q, %v", test.in, got, err)
		}
	}
}

// course runs a check whose results are given, one after the other, each
// taking no time, and returns when it ran and what was said after it.
func course(t *testing.T, c control.Healthcheck, early bool, codes ...int) (at []time.Duration, status []string) {
	t.Helper()
	start := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	c.Test = []string{"CMD", "x"}
	h, err := newHealth(c, start, early)
	if err != nil {
		t.Fatal(err)
	}
	now := start
	for _, code := range codes {
		next, scheduled := h.next(now)
		now = next
		h.add(control.HealthResult{Start: now, End: now, ExitCode: code}, scheduled)
		at, status = append(at, now.Sub(start)), append(status, h.Status)
	}
	if len(h.Log) > maxHealthLog {
		t.Errorf("%d results are kept", len(h.Log))
	}
	return at, status
}

func TestHealthSchedule(t *testing.T) {
	s := time.Second
	const S, H, U = HealthStarting, HealthHealthy, HealthUnhealthy
	for name, test := range map[string]struct {
		c      control.Healthcheck
		early  bool
		codes  []int
		at     []time.Duration
		status []string
	}{
		"Docker's defaults":         {control.Healthcheck{}, false, []int{1, 1, 1, 0, 1}, []time.Duration{30 * s, 60 * s, 90 * s, 120 * s, 150 * s}, []string{S, S, U, H, H}},
		"three failures":            {control.Healthcheck{Interval: s}, false, []int{0, 1, 2, -1, 1, 0}, []time.Duration{s, 2 * s, 3 * s, 4 * s, 5 * s, 6 * s}, []string{H, H, H, U, U, H}},
		"one retry":                 {control.Healthcheck{Interval: s, Retries: 1}, false, []int{1, 0}, []time.Duration{s, 2 * s}, []string{U, H}},
		"start period":              {control.Healthcheck{Interval: 10 * s, StartPeriod: 12 * s, StartInterval: 5 * s, Retries: 1}, false, []int{1, 1, 1, 1}, []time.Duration{5 * s, 10 * s, 15 * s, 25 * s}, []string{S, S, U, U}},
		"success ends start period": {control.Healthcheck{Interval: 10 * s, StartPeriod: 60 * s, Retries: 1}, false, []int{1, 0, 1}, []time.Duration{5 * s, 10 * s, 20 * s}, []string{S, H, U}},
		"early":                     {control.Healthcheck{Retries: 1}, true, []int{1, 1, 1, 1, 1, 0}, []time.Duration{s, 3 * s, 7 * s, 15 * s, 30 * s, 60 * s}, []string{S, S, S, S, U, H}},
		"early success":             {control.Healthcheck{}, true, []int{1, 0, 1}, []time.Duration{s, 3 * s, 30 * s}, []string{S, H, H}},
		"early and start period":    {control.Healthcheck{StartPeriod: 20 * s, Retries: 1}, true, []int{1, 1, 1, 1}, []time.Duration{s, 3 * s, 5 * s, 10 * s}, []string{S, S, S, S}},
		"hostile":                   {control.Healthcheck{Interval: 1, Timeout: -5, StartPeriod: -1, StartInterval: 1, Retries: -1}, true, []int{1, 1, 1}, []time.Duration{minInterval, 2 * minInterval, 3 * minInterval}, []string{S, S, U}},
	} {
		t.Run(name, func(t *testing.T) {
			at, status := course(t, test.c, test.early, test.codes...)
			if !slices.Equal(at, test.at) || !slices.Equal(status, test.status) {
				t.Errorf("runs at %v: %q\n  want %v: %q", at, status, test.at, test.status)
			}
		})
	}
}

// TestHealthClock: what the next run is counted from does not move with the machine's clock.
func TestHealthClock(t *testing.T) {
	h := hold(t, sh("sleep 1000"), nil)
	h.call(OpStart, nil, nil)
	m := &Monitor{cfg: h.cfg}
	check, err := newHealth(*fast("exit 1"), time.Now(), false)
	if err != nil {
		t.Fatal(err)
	}
	r := m.probe(t.Context(), h.runner.started(), check)
	check.add(r, true)
	if at, _ := check.next(time.Now()); at == at.Round(0) {
		t.Errorf("the next run is at %v: without a reading of the monotonic clock", at)
	}
}

// fast is a health check that is soon over.
func fast(script string) *control.Healthcheck {
	return &control.Healthcheck{Test: []string{"CMD-SHELL", script}, Interval: minInterval, Timeout: time.Minute, Retries: 2}
}

// whenHealth waits until the recorded health is as wanted.
func (h *held) whenHealth(ok func(*control.Health) bool) *control.Health {
	h.t.Helper()
	for {
		var s State
		h.call(OpState, nil, &s)
		if s.Status != StatusRunning || s.Health == nil {
			h.t.Fatalf("state = %+v", s)
		}
		if ok(s.Health) {
			if got := h.state().Health; got == nil {
				h.t.Error("the health is not recorded")
			}
			return s.Health
		}
	}
}

func TestHealth(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	h := hold(t, sh("sleep 1000"), func(c *Config) {
		c.Health = fast("echo said on stdout; echo said on stderr >&2; echo $WORD; test -e " + good)
		c.Spec.Process.Env = append(c.Spec.Process.Env, "WORD=from the container")
	})
	h.call(OpStart, nil, nil)
	bad := h.whenHealth(func(x *control.Health) bool { return x.Status == HealthUnhealthy })
	if r := bad.Log[0]; bad.FailingStreak < 2 || r.ExitCode != 1 || r.Output != "said on stdout\nsaid on stderr\nfrom the container\n" || r.End.Before(r.Start) {
		t.Errorf("health = %+v", bad)
	}
	if s := h.state(); !s.Ready.IsZero() {
		t.Errorf("state = %+v, want it not ready", s)
	}
	if err := os.WriteFile(good, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.isReady(h.waitReady(), ReadyByHealth)
	if ok := h.whenHealth(func(x *control.Health) bool { return len(x.Log) == maxHealthLog && x.Log[0].ExitCode == 0 }); ok.Status != HealthHealthy || ok.FailingStreak != 0 {
		t.Errorf("health = %+v", ok)
	}
	if text := logged(t, h.dir); len(text) != 0 {
		t.Errorf("the check's output is in the container's log: %q", text)
	}
	h.call(OpKill, KillArgs{}, nil)
	h.end()
}

// A program that does not end is killed, with what it has started.
func TestHealthTooSlow(t *testing.T) {
	h := hold(t, sh("sleep 1000"), func(c *Config) {
		c.Health = fast("echo before; sleep 1000 | sleep 1000")
		c.Health.Timeout = minInterval
	})
	h.call(OpStart, nil, nil)
	bad := h.whenHealth(func(x *control.Health) bool { return x.Status == HealthUnhealthy })
	if r := bad.Log[0]; r.ExitCode != -1 || r.Output != "the health check took longer than 100ms: before\n" {
		t.Errorf("result = %+v", r)
	}
	for _, p := range h.runner.started().programs()[:2] {
		<-p.done
	}
	h.call(OpKill, KillArgs{}, nil)
	h.end()
}

func TestHealthOutputIsBounded(t *testing.T) {
	h := hold(t, sh("sleep 1000"), func(c *Config) { c.Health = fast("head -c 1000000 /dev/zero | tr '\\0' 'x'; echo >&2") })
	h.call(OpStart, nil, nil)
	got := h.whenHealth(func(x *control.Health) bool { return len(x.Log) > 0 })
	if r := got.Log[0]; r.ExitCode != 0 || r.Output != strings.Repeat("x", maxHealthOutput) {
		t.Errorf("exit code %d, %d bytes", r.ExitCode, len(r.Output))
	}
	h.call(OpKill, KillArgs{}, nil)
	h.end()
}

func TestHealthProgramMissing(t *testing.T) {
	h := hold(t, sh("sleep 1000"), func(c *Config) {
		c.Health = &control.Healthcheck{Test: []string{"CMD", "/nonexistent"}, Interval: minInterval}
	})
	h.call(OpStart, nil, nil)
	got := h.whenHealth(func(x *control.Health) bool { return len(x.Log) > 0 })
	if r := got.Log[0]; r.ExitCode != -1 || !strings.Contains(r.Output, "/nonexistent: no such file") {
		t.Errorf("result = %+v", r)
	}
	h.call(OpKill, KillArgs{}, nil)
	h.end()
}

// --ready goes before the health check, which is run nevertheless.
func TestHealthBesideReady(t *testing.T) {
	h := hold(t, sh("sleep 1000"), func(c *Config) { c.Health, c.Ready = fast("true"), "line=never" })
	h.call(OpStart, nil, nil)
	h.whenHealth(func(x *control.Health) bool { return x.Status == HealthHealthy })
	if s := h.state(); !s.Ready.IsZero() {
		t.Errorf("state = %+v, want it not ready", s)
	}
	h.call(OpKill, KillArgs{}, nil)
	h.end()
	if s := h.state(); !s.Ready.IsZero() || s.Health == nil {
		t.Errorf("state = %+v", s)
	}
}

// A pause ends nothing.
func TestHealthAfterPause(t *testing.T) {
	h := hold(t, sh("sleep 1000"), func(c *Config) { c.Health = fast("true") })
	h.call(OpStart, nil, nil)
	h.call(OpPause, nil, nil)
	h.call(OpUnpause, nil, nil)
	h.whenHealth(func(x *control.Health) bool { return x.Status == HealthHealthy })
	h.call(OpKill, KillArgs{}, nil)
	h.end()
}

// In a real container the check is one more program of it, and killed like one.
func TestRealHealth(t *testing.T) {
	h := holdReal(t, func(c *Config) {
		c.Health = &control.Healthcheck{Test: []string{"CMD", "/inside", "wait"}, Interval: minInterval, Timeout: minInterval, Retries: 1}
	}, "wait")
	h.call(OpStart, nil, nil)
	bad := h.whenHealth(func(x *control.Health) bool { return x.Status == HealthUnhealthy })
	if r := bad.Log[0]; r.ExitCode != -1 || !strings.Contains(r.Output, "took longer") {
		t.Errorf("result = %+v", r)
	}
	h.call(OpKill, KillArgs{}, nil)
	if err := h.end(); err != nil {
		t.Error(err)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// top is two verbs: what the daemon is doing and, with a container, docker's
// list of its processes.
func top(ctx context.Context, env *Env, args []string) error {
	var once bool
	a := control.TopArgs{Every: time.Second}
	f := &flagSet{
		usage: "top [OPTIONS] [CONTAINER]",
		about: "Show, once a second, what is being waited for and what comes in: misses (reads that had to\n" +
			"wait for the network) and their latency, rates, queues, for the whole daemon and by image.\n" +
			"With a container, list its processes, with their process IDs on this machine.",
		example: "snapctl top\nsnapctl top --once --json\nsnapctl top web",
	}
	f.flag(&once, "once", "show one interval and exit")
	f.add("d,delay", "TIME", "the interval (default 1s)", func(s string) (err error) {
		if a.Every, err = time.ParseDuration(s); err != nil {
			err = fmt.Errorf("%q: want a time such as 500ms", s)
		}
		return err
	})
	rest, err := f.parse(env, args, 0, 1)
	if err != nil {
		return err
	}
	if len(rest) == 1 {
		return env.processes(ctx, rest[0])
	}
	if once {
		a.Count = 1
	}
	s := env.screen()
	defer s.close()
	err = (&follower{
		env: env, op: control.OpTop, args: func() any { return a }, next: func(time.Time) {}, once: once,
		event: func(raw json.RawMessage) error {
			if env.JSON {
				_, err := env.Stdout.Write(append(plainJSON(raw), '\n'))
				return err
			}
			var t control.Top
			if err := json.Unmarshal(raw, &t); err != nil {
				return fmt.Errorf("malformed event: %w", err)
			}
			return s.show(topText(&t))
		},
	}).run(ctx)
	if errors.Is(err, context.Canceled) {
		return nil // that is how one leaves
	}
	return err
}

// processes is top with a container.
func (env *Env) processes(ctx context.Context, name string) error {
	c, err := env.running(ctx, name)
	if err != nil {
		return err
	}
	var list []monitor.Proc
	if err := monitor.Call(ctx, c.Socket, monitor.OpTop, nil, &list); err != nil {
		return err
	}
	t := newTable("UID", "PID", "PPID", "STATE", "CPU", "COMMAND")
	for _, p := range list {
		// The kernel reports times in units of 1/100 s on every architecture (USER_HZ).
		t.row(fmt.Sprint(p.UID), fmt.Sprint(p.Pid), fmt.Sprint(p.PPid), p.State, fmt.Sprintf("%.2fs", float64(p.Ticks)/100), strings.Join(p.Args, " "))
	}
	return env.table(t, list)
}

// topText is what the daemon is doing, as lines.
func topText(t *control.Top) string {
	var b strings.Builder
	fmt.Fprintf(&b, "snapfs  %s  worker %d, replaced %d times, %s resident\n", t.Time.Local().Format(time.TimeOnly), t.Worker, t.Restarts, size(t.Memory))
	waited := "none of which waited for the network"
	if t.Misses > 0 {
		waited = fmt.Sprintf("of which %s/s waited for the network: half at most %s, 99 of 100 at most %s", rate(t.Misses), took(t.P50), took(t.P99))
	}
	fmt.Fprintf(&b, "Reads:    %s/s, %s\n", rate(t.Reads), waited)
	fmt.Fprintf(&b, "Waiting:  %.1f on average, %s/s read by them, %d failed\n", t.Waiting, size(int64(t.Read)), t.Failed)
	fmt.Fprintf(&b, "Network:  %s requests/s, %s/s, of layers being read or completed %s/s\n", rate(t.Requests), size(int64(t.Received)), size(int64(t.Fetched)))
	var queues []string
	for _, q := range t.Queues {
		queues = append(queues, fmt.Sprintf("%s %d under way, %d waiting", printable(q.Class), q.Open, q.Waiting))
	}
	fmt.Fprintf(&b, "Queue:    %s\n\n", strings.Join(queues, "; "))
	rows := newTable("IMAGE", "LOCAL", "MISSES/S", "P50", "P99", "WAITING", "READ/S", "FETCHED/S", "USED BY")
	for _, i := range t.Images {
		local := "all"
		if !i.Complete && i.Size > 0 {
			local = fmt.Sprintf("%d%%", min(99, 100*i.Local/i.Size))
		}
		name := i.Ref
		if i.Quarantined {
			name += " (quarantined)"
		}
		p50, p99 := "-", "-"
		if i.Misses > 0 {
			p50, p99 = took(i.P50), took(i.P99)
		}
		rows.row(shorten(name, 48), local, rate(i.Misses), p50, p99, fmt.Sprintf("%.1f", i.Waiting), size(int64(i.Read)), size(int64(i.Fetched)), usedBy(i))
	}
	b.WriteString(rows.String())
	if len(t.Images) == 0 {
		b.WriteString("no image is in use\n")
	}
	return b.String()
}

func usedBy(i control.TopImage) string {
	users := append([]string(nil), i.Running...)
	if i.Mounts > 0 {
		users = append(users, plural(int64(i.Mounts), "mount"))
	}
	return strings.Join(users, ", ")
}

// rate is a number of things per second, short.
func rate(f float64) string {
	if f > 0 && f < 10 {
		return fmt.Sprintf("%.1f", f)
	}
	return fmt.Sprintf("%.0f", f)
}

// A screen shows one text after another: in place on a terminal, and otherwise
// one below the other.
type screen struct {
	out   *os.File
	size  func() (width, height int) // nil: not a terminal
	shown int                        // texts so far
}

func (env *Env) screen() *screen {
	s := &screen{out: env.Stdout}
	if !env.JSON && terminal(env.Stdout) && env.Getenv("TERM") != "dumb" {
		s.size = func() (int, int) {
			w, h, err := term.GetSize(int(env.Stdout.Fd()))
			if err != nil || w < 20 || h < 3 {
				return 80, 24
			}
			return w, h
		}
	}
	return s
}

// show replaces what is shown. It is one write, so that nothing flickers; lines
// are cut, because a terminal that wraps them would scroll.
func (s *screen) show(text string) error {
	var b strings.Builder
	switch {
	case s.size == nil && s.shown > 0:
		b.WriteString("\n" + text)
	case s.size == nil:
		b.WriteString(text)
	default:
		if s.shown == 0 {
			b.WriteString("\x1b[?25l\x1b[2J") // without the cursor, on an empty screen
		}
		b.WriteString("\x1b[H")
		width, height := s.size()
		lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
		if len(lines) > height-1 {
			lines = append(lines[:height-2], fmt.Sprintf("… and %d more lines", len(lines)-height+2))
		}
		for _, line := range lines {
			if utf8.RuneCountInString(line) > width {
				line = shorten(line, width)
			}
			b.WriteString(line + "\x1b[K\n")
		}
		b.WriteString("\x1b[J")
	}
	s.shown++
	_, err := s.out.WriteString(b.String())
	return err
}

// close leaves the last text standing, and gives the cursor back.
func (s *screen) close() {
	if s.size != nil && s.shown > 0 {
		s.out.WriteString("\x1b[?25h")
	}
}

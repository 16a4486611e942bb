package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/snapfs/snapfs/internal/control"
)

// A progress shows the events of long work on standard error: bars that change
// in place on a terminal, and otherwise a line now and then.
type progress struct {
	quiet bool
	json  bool
	out   io.Writer
	size  func() (width, height int) // of the terminal; nil: not a terminal
	now   func() time.Time
	done  chan struct{} // ends the redrawing
	tasks sync.WaitGroup

	mu    sync.Mutex
	lines []*line
	byID  map[string]*line
	drawn []int // widths of the lines on the screen, in characters
}

// A line is one layer, or the whole ("").
type line struct {
	control.Progress
	began, said time.Time // of this action; when a plain line was last printed
	startOff    int64     // where this action began to count
}

// Intervals of drawing: often enough to look alive, and in a CI log seldom enough to be read.
const (
	drawEvery = 100 * time.Millisecond
	sayEvery  = 5 * time.Second
)

// progress shows progress on env's standard error until close.
func (env *Env) progress(quiet bool) *progress {
	p := &progress{quiet: quiet, json: env.JSON, out: env.Stderr, now: time.Now, byID: map[string]*line{}, done: make(chan struct{})}
	if quiet || env.JSON || !terminal(env.Stderr) || env.Getenv("TERM") == "dumb" {
		return p
	}
	p.size = func() (int, int) {
		w, h, err := term.GetSize(int(env.Stderr.Fd()))
		if err != nil || w < 20 || h < 3 {
			return 80, 24
		}
		return w, h
	}
	p.tasks.Go(p.redraw)
	return p
}

// event takes one event of a request.
func (p *progress) event(raw json.RawMessage) {
	if p.quiet {
		return
	}
	if p.json {
		p.out.Write(append(raw, '\n'))
		return
	}
	var e control.Progress
	if json.Unmarshal(raw, &e) != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.byID[e.ID]
	changed := l == nil || l.Action != e.Action || l.Done != e.Done
	if l == nil {
		l = &line{}
		p.byID[e.ID] = l
		p.lines = append(p.lines, l)
	}
	if l.Action != e.Action || e.Off < l.startOff {
		l.began, l.startOff = p.now(), e.Off
	}
	l.Progress = e
	if p.size == nil {
		p.say(l, changed)
	}
}

// say prints l as a line of a log, if there is something new to say.
func (p *progress) say(l *line, changed bool) {
	at := p.now()
	if !changed && at.Sub(l.said) < sayEvery {
		return
	}
	l.said = at
	text := printable(l.Action)
	if l.ID != "" {
		text = printable(l.ID) + ": " + text
	}
	switch {
	case l.Done && l.Size > 0:
		text += ", done: " + size(l.Size)
	case l.Done:
		text += ", done"
	case l.Size > 0:
		text += fmt.Sprintf(" %s of %s", size(l.Off), size(l.Size))
	case l.Off > 0:
		text += " " + size(l.Off)
	}
	fmt.Fprintln(p.out, text)
}

// close draws the last state and leaves it standing.
func (p *progress) close() {
	if p.size == nil {
		return
	}
	close(p.done)
	p.tasks.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.draw(true)
}

// redraw draws at intervals, so that many events cost one drawing. Fast work is never drawn.
func (p *progress) redraw() {
	tick := time.NewTicker(drawEvery)
	defer tick.Stop()
	for {
		select {
		case <-p.done:
			return
		case <-tick.C:
			p.mu.Lock()
			p.draw(false)
			p.mu.Unlock()
		}
	}
}

// draw replaces what is on the screen, in one write so that nothing flickers.
// Lines that the terminal has wrapped since, because it has become narrower,
// are counted as what they have become.
func (p *progress) draw(last bool) {
	if len(p.lines) == 0 || last && len(p.drawn) == 0 {
		return
	}
	width, height := p.size()
	var b strings.Builder
	up := 0
	for _, n := range p.drawn {
		up += max(1, (n+width-1)/width)
	}
	if up > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\r", up)
	}
	b.WriteString("\x1b[J")
	p.drawn = p.drawn[:0]
	if last {
		height = len(p.lines) + 1 // nothing is drawn over any more: it may scroll
	}
	for _, text := range p.text(width-1, height-1) {
		b.WriteString(text + "\n")
		p.drawn = append(p.drawn, utf8.RuneCountInString(text))
	}
	io.WriteString(p.out, b.String())
}

// text is all lines, at most height of them: those that are finished are
// counted together where there are too many.
func (p *progress) text(width, height int) []string {
	shown := p.lines
	finished := 0
	if len(shown) > height {
		shown = nil
		for _, l := range p.lines {
			if l.Done {
				finished++
			} else if len(shown) < height-1 {
				shown = append(shown, l)
			}
		}
	}
	var out []string
	for _, l := range shown {
		out = append(out, shorten(l.text(width, p.now()), width))
	}
	if len(shown) < len(p.lines) {
		out = append(out, fmt.Sprintf("%d of %d done", finished, len(p.lines)))
	}
	return out
}

// text is one line:
//
//	9f2c0f7b3a1c  pulling     [=====>              ]  12.3MB / 45.6MB  8.1MB/s
func (l *line) text(width int, now time.Time) string {
	head := fmt.Sprintf("%-12s  %-10s", printable(l.ID), printable(l.Action))
	if l.ID == "" {
		head = fmt.Sprintf("%-24s", printable(l.Action))
	}
	switch {
	case l.Done && l.Size > 0:
		return head + "  done  " + size(l.Size)
	case l.Done:
		return head + "  done"
	case l.Off == 0 && l.Size == 0:
		return head
	}
	tail := "  " + size(l.Off)
	if l.Size > 0 {
		tail += " / " + size(l.Size)
	}
	if passed := now.Sub(l.began).Seconds(); passed > 0.5 && l.Off > l.startOff {
		tail += "  " + size(int64(float64(l.Off-l.startOff)/passed)) + "/s"
	}
	return head + bar(l.Off, l.Size, min(width-len(head)-34, 40)) + tail
}

// bar is n characters between brackets; none where there is no room or no end in sight.
func bar(off, total int64, n int) string {
	if n < 5 || total <= 0 {
		return ""
	}
	done := int(float64(max(0, min(off, total))) / float64(total) * float64(n))
	text := strings.Repeat("=", done)
	if done < n {
		text += ">" + strings.Repeat(" ", n-done-1)
	}
	return "  [" + text + "]"
}

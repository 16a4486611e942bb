package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

func show(p *progress, e control.Progress) {
	raw, _ := json.Marshal(e)
	p.event(raw)
}

func TestPlainProgress(t *testing.T) {
	var out bytes.Buffer
	at := noon
	p := &progress{out: &out, now: func() time.Time { return at }, byID: map[string]*line{}}
	for i := range 100 { // one every 100 ms
		show(p, control.Progress{ID: "aabb", Action: "pulling", Off: int64(i) * 1e6, Size: 100e6})
		at = at.Add(100 * time.Millisecond)
	}
	show(p, control.Progress{ID: "aabb", Action: "pulling", Off: 100e6, Size: 100e6, Done: true})
	show(p, control.Progress{Action: "building"})
	show(p, control.Progress{Action: "building", Done: true})
	p.close()
	want := "aabb: pulling 0B of 100MB\naabb: pulling 50.0MB of 100MB\naabb: pulling, done: 100MB\nbuilding\nbuilding, done\n"
	if out.String() != want {
		t.Errorf("printed\n%s\nwant\n%s", out.String(), want)
	}
}

func TestBars(t *testing.T) {
	var out bytes.Buffer
	at, width, height := noon, 90, 24
	p := &progress{out: &out, now: func() time.Time { return at }, size: func() (int, int) { return width, height }, byID: map[string]*line{}, done: make(chan struct{})}
	show(p, control.Progress{ID: "0123456789ab", Action: "pulling", Size: 40e6})
	at = at.Add(2 * time.Second)
	show(p, control.Progress{ID: "0123456789ab", Action: "pulling", Off: 10e6, Size: 40e6})
	show(p, control.Progress{ID: "ba9876543210", Action: "toc"})
	p.draw(false)
	first := "\x1b[J0123456789ab  pulling     [=======>                       ]  10.0MB / 40.0MB  5.00MB/s\nba9876543210  toc       \n"
	if out.String() != first {
		t.Errorf("drew %q, want %q", out.String(), first)
	}
	out.Reset()
	width = 50 // the first line has been wrapped: three lines up
	show(p, control.Progress{ID: "0123456789ab", Action: "pulling", Off: 40e6, Size: 40e6, Done: true})
	p.draw(false)
	if want := "\x1b[3A\r\x1b[J0123456789ab  pulling     done  40.0MB\nba9876543210  toc       \n"; out.String() != want {
		t.Errorf("drew %q, want %q", out.String(), want)
	}
	for line := range strings.Lines(out.String()) {
		if len(line) > width+10 {
			t.Errorf("line of %d characters", len(line))
		}
	}
}

func TestBarsOfManyLayers(t *testing.T) {
	var out bytes.Buffer
	p := &progress{out: &out, now: func() time.Time { return noon }, size: func() (int, int) { return 80, 6 }, byID: map[string]*line{}}
	for i := range 12 {
		show(p, control.Progress{ID: string(rune('a' + i)), Action: "pulling", Size: 1, Done: i < 5})
	}
	p.draw(false)
	if n := strings.Count(out.String(), "\n"); n != 5 || !strings.Contains(out.String(), "5 of 12 done") {
		t.Errorf("drew %d lines on a terminal of 6: %q", n, out.String())
	}
}

func FuzzProgress(f *testing.F) {
	f.Add([]byte(`{"ID":"a","Action":"x","Off":5,"Size":3}`), 40, 10)
	f.Fuzz(func(t *testing.T, raw []byte, width, height int) {
		var out bytes.Buffer
		p := &progress{out: &out, now: func() time.Time { return noon }, size: func() (int, int) { return max(width, 20), max(height, 3) }, byID: map[string]*line{}}
		p.event(raw)
		p.draw(false)
		p.draw(true)
	})
}

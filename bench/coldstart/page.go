package main

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"html/template"
	"math"
	"slices"
	"strings"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// page is the summary for people who look at plots: one file of HTML.
func (s *summary) page() ([]byte, error) {
	v := pageView{Where: s.where(), Session: &s.Session}
	for _, l := range s.Links {
		v.Links = append(v.Links, l.view())
	}
	var b bytes.Buffer
	err := pageTemplate.Execute(&b, v)
	return b.Bytes(), err
}

// pictureSystems are those in the picture.
var pictureSystems = []string{"snapfs-nothing", "snapfs-index", "snapfs-profile", "overlayfs-par", "stargz", "stargz-opt", "soci"}

type pictureView struct {
	Width, Height float64
	Link          string
	Charts        []placed
}

type placed struct {
	X, Y  float64
	Chart chart
}

// picture is the times over the first link alone: an SVG for a README.
func (s *summary) picture() ([]byte, error) {
	if len(s.Links) == 0 {
		return nil, errors.New("nothing to draw: no run was measured")
	}
	const margin, gap, top = 24.0, 44.0, 100.0
	l := *s.Links[0]
	l.Systems = slices.DeleteFunc(slices.Clone(l.Systems), func(name string) bool { return !slices.Contains(pictureSystems, name) })
	v := pictureView{Width: 2*chartWidth + gap + 2*margin, Height: top, Link: l.title()}
	for i, image := range l.Images {
		c := l.timeChart(image)
		v.Charts = append(v.Charts, placed{margin + float64(i%2)*(chartWidth+gap), v.Height, c})
		if i%2 == 1 || i == len(l.Images)-1 {
			v.Height += c.Height + 30
		}
	}
	var b bytes.Buffer
	err := pageTemplate.ExecuteTemplate(&b, "picture", v)
	return b.Bytes(), err
}

type pageView struct {
	Where   string
	Session *session
	Links   []linkView
}

type linkView struct {
	Title   string
	Runs    string
	Ratios  []ratioView
	Times   []chart
	Bytes   []chart
	Warm    []chart
	Lines   []lineView
	Figures []figure
	Failed  []string
}

// A ratioView is a row of the table of ratios; its bar ends at the target's mark.
type ratioView struct {
	What, Mean, Target string
	State              string // "good", "bad", "none" or ""
	Each               []imageRatio
	Bar, Mark          float64 // of 100
}

// Sizes of the drawings, in their own units.
const (
	labelWidth = 118.0
	chartWidth = 560.0
	valueWidth = 74.0
	rowHeight  = 21.0
	barHeight  = 13.0
	axisHeight = 30.0
)

// A chart has a bar for each system, of one image.
type chart struct {
	Title, Note   string
	Width, Height float64
	Left, Bottom  float64
	Rows          []row
	Ticks         []tick
	Mark          *mark
	Axis          string
}

type row struct {
	Label    string
	Ours     bool
	Y, BarY  float64
	Parts    []part
	ValueX   float64
	Value    string
	Whisker  bool
	From, To float64
	Mid      float64
}

// part is a piece of a bar.
type part struct {
	X, W        float64
	Class, Hint string
}

type tick struct {
	X    float64
	Text string
}

// mark is a line across all bars.
type mark struct {
	X     float64
	Label string
}

// bar is what a row shows.
type bar struct {
	label       string
	parts       []float64
	classes     []string
	hints       []string
	value       string
	least, most float64 // 0: not shown
}

// newChart lays bars out on a scale from zero.
func newChart(title, note, axis string, bars []bar, floor float64, floorText string) chart {
	top := 0.0
	for _, b := range bars {
		sum := 0.0
		for _, p := range b.parts {
			sum += p
		}
		top = max(top, sum, b.most)
	}
	if !math.IsNaN(floor) {
		top = max(top, floor)
	}
	steps, end := scale(top)
	c := chart{Title: title, Note: note, Axis: axis, Width: chartWidth, Left: labelWidth}
	x := func(v float64) float64 { return labelWidth + v/end*(chartWidth-labelWidth-valueWidth) }
	for i, b := range bars {
		y := float64(i)*rowHeight + 4
		r := row{Label: b.label, Ours: strings.HasPrefix(b.label, "snapfs"), Y: y + rowHeight/2 + 4, BarY: y + (rowHeight-barHeight)/2, Mid: y + rowHeight/2, Value: b.value}
		at := 0.0
		for k, p := range b.parts {
			r.Parts = append(r.Parts, part{X: x(at), W: x(at+p) - x(at), Class: b.classes[k], Hint: b.hints[k]})
			at += p
		}
		r.ValueX = x(max(at, b.most)) + 5
		if b.most > b.least {
			r.Whisker, r.From, r.To = true, x(b.least), x(b.most)
		}
		c.Rows = append(c.Rows, r)
	}
	c.Bottom = float64(len(bars))*rowHeight + 6
	c.Height = c.Bottom + axisHeight
	for _, s := range steps {
		c.Ticks = append(c.Ticks, tick{x(s), fmt.Sprintf("%g", s)})
	}
	if !math.IsNaN(floor) {
		c.Mark = &mark{x(floor), floorText}
	}
	return c
}

// scale returns round numbers from zero to beyond top, and where the axis ends.
func scale(top float64) (steps []float64, end float64) {
	if !(top > 0) || math.IsInf(top, 0) {
		return []float64{0, 1}, 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(top)))
	step := unit
	switch n := top / unit; {
	case n <= 1.5:
		step = unit / 4
	case n <= 3:
		step = unit / 2
	case n > 6:
		step = unit * 2
	}
	for v := 0.0; v <= top*1.0001; v += step {
		steps = append(steps, math.Round(v/step*1e6)/1e6*step)
	}
	return steps, max(top, steps[len(steps)-1])
}

func (l *linkSummary) view() linkView {
	least, most := math.MaxInt, 0
	for _, c := range l.cells {
		if n := len(c.runs); n > 0 {
			least, most = min(least, n), max(most, n)
		}
	}
	v := linkView{Title: l.title(), Runs: span(least, most), Ratios: l.ratioViews(), Figures: l.figures()}
	for _, image := range l.Images {
		v.Times = append(v.Times, l.timeChart(image))
		v.Bytes = append(v.Bytes, l.byteChart(image))
		v.Warm = append(v.Warm, l.warmChart(image))
		if line := l.lineView(image); len(line.Rows) > 0 {
			v.Lines = append(v.Lines, line)
		}
	}
	var b strings.Builder
	l.failures(&b)
	for line := range strings.Lines(b.String()) {
		if text, ok := strings.CutPrefix(strings.TrimSpace(line), "- "); ok {
			v.Failed = append(v.Failed, text)
		}
	}
	return v
}

// bars makes one for each system that was tried with an image.
func (l *linkSummary) bars(image string, warm bool, f func(*cell) bar) (list []bar) {
	for _, system := range l.Systems {
		c := l.cells[[2]string{image, system}]
		if c == nil || isWarm(system) && !warm {
			continue
		}
		b := bar{value: "failed"}
		if len(c.runs) > 0 {
			b = f(c)
		}
		b.label = system
		list = append(list, b)
	}
	return list
}

func (l *linkSummary) timeChart(image string) chart {
	bars := l.bars(image, false, func(c *cell) bar {
		return bar{
			value: seconds(c.Total), least: c.Least, most: c.Most,
			parts:   []float64{c.Pull, c.Create, c.ReadyTime},
			classes: []string{"pull", "create", "ready"},
			hints: []string{"until the image could be used: " + seconds(c.Pull), "until the process was made: " + seconds(c.Create),
				"until it was ready: " + seconds(c.ReadyTime)},
		}
	})
	floor := l.floor(image)
	return newChart(image, "", "seconds from nothing to ready", bars, floor, "floor "+seconds(floor))
}

func (l *linkSummary) byteChart(image string) chart {
	bars := l.bars(image, false, func(c *cell) bar {
		return bar{value: megabytes(c.Down), parts: []float64{c.Down / 1e6}, classes: []string{"bytes"},
			hints: []string{fmt.Sprintf("%.0f requests, %.0f connections", c.Requests, c.Connections)}}
	})
	floor := l.floorBytes(image)
	return newChart(image, "", "MB from the registry until ready", bars, floor/1e6, "floor "+megabytes(floor))
}

func (l *linkSummary) warmChart(image string) chart {
	bars := l.bars(image, true, func(c *cell) bar {
		return bar{value: fmt.Sprintf("%.0f ms", c.Again*1e3), parts: []float64{c.Again * 1e3}, classes: []string{"warm"},
			hints: []string{fmt.Sprintf("median of %d starts", len(c.runs)*len(c.typical.Again))}}
	})
	return newChart(image, "", "milliseconds of the second start", bars, math.NaN(), "")
}

func seconds(v float64) string {
	switch {
	case math.IsNaN(v):
		return "?"
	case v < 0.0995:
		return fmt.Sprintf("%.0f ms", v*1e3)
	}
	return fmt.Sprintf("%.2f s", v)
}

func megabytes(n float64) string {
	if n < 0.95e6 {
		return fmt.Sprintf("%.0f kB", n/1e3)
	}
	return fmt.Sprintf("%.1f MB", n/1e6)
}

func (l *linkSummary) ratioViews() (list []ratioView) {
	for _, r := range l.ratios() {
		if r.Target == 0 && r.Missing != "" {
			continue
		}
		v := ratioView{What: r.What, Each: r.Each, Mean: number("%.2f", r.Over), State: "none"}
		if r.Worst {
			v.Mean += " at worst"
		}
		if r.Missing != "" {
			v.Mean = r.Missing
		}
		end := 1.6 * max(r.Target, 1)
		if r.Target > 0 {
			v.Target = fmt.Sprintf("≤ %g", r.Target)
			end = 1.6 * r.Target
			v.Mark = r.Target / end * 100
		}
		if !math.IsNaN(r.Over) {
			v.Bar = min(r.Over/end, 1) * 100
			v.State = ""
			if r.Target > 0 {
				v.State = "bad"
				if r.Over <= r.Target {
					v.State = "good"
				}
			}
		}
		list = append(list, v)
	}
	return list
}

// A figure is a table that has no plot.
type figure struct {
	Title string
	Head  []string
	Rows  [][]string
}

func (l *linkSummary) figures() []figure {
	table := func(title string, show func(*cell) string) figure {
		f := figure{Title: title, Head: append([]string{""}, l.Images...)}
		for _, system := range l.Systems {
			if isWarm(system) {
				continue
			}
			r := []string{system}
			for _, image := range l.Images {
				text := ""
				if c := l.cells[[2]string{image, system}]; c != nil && len(c.runs) > 0 {
					text = show(c)
				}
				r = append(r, text)
			}
			f.Rows = append(f.Rows, r)
		}
		return f
	}
	list := []figure{
		table("Processor time of the system's processes until ready", func(c *cell) string { return seconds(c.CPU) }),
		table("Peak resident memory of the system's processes", func(c *cell) string { return megabytes(c.Peak) }),
		table("Requests / connections until ready", func(c *cell) string { return fmt.Sprintf("%.0f / %.0f", c.Requests, c.Connections) }),
	}
	read := figure{Title: "What a start reads of its image", Head: []string{"", "files", "pages", "chunks of 64 KiB", "their bytes", "gzip", "one zstd stream"}}
	for _, image := range l.Images {
		if t := l.touched[image]; t != nil {
			read.Rows = append(read.Rows, []string{image, fmt.Sprint(t.Files), megabytes(float64(t.Pages)), fmt.Sprint(t.Chunks),
				megabytes(float64(t.Plain)), megabytes(float64(t.Gzip)), megabytes(float64(t.Zstd))})
		}
	}
	if len(read.Rows) > 0 {
		list = append(list, read)
	}
	return list
}

// A lineView is the time lines of one start of an image by some systems, on one scale.
type lineView struct {
	Image string
	Axis  string
	Rows  []lineRow
	Open  bool
}

type lineRow struct {
	System        string
	Note          string
	Width, Height float64
	Left, Right   float64
	Phases        []part // as high as the drawing
	Requests      []requestBar
	Curve         string // points of the area of bytes
	CurveTop      float64
	Bottom        float64
	Ticks         []tick
	Bytes         string
}

type requestBar struct {
	X, Y, W, H  float64
	Class, Hint string
}

// lineSystems are those whose time lines are drawn: ours, and the nearest others.
var lineSystems = []string{"snapfs-profile", "snapfs-index", "snapfs-esgz", "stargz-opt", "stargz", "snapfs-nothing", "overlayfs-par"}

// Sizes of a time line.
const (
	lineWidth   = 1120.0
	lineLeft    = 64.0
	lineRight   = 16.0
	laneHeight  = 13.0
	lanesHeight = 130.0 // at most
	curveHeight = 60.0
)

func (l *linkSummary) lineView(image string) lineView {
	v := lineView{Image: image, Axis: "seconds from the first command", Open: image == l.Images[len(l.Images)/2]}
	var chosen []*run
	end := 0.0
	for _, name := range lineSystems {
		c := l.cells[[2]string{image, name}]
		if c == nil || len(c.runs) == 0 || len(chosen) == 4 {
			continue
		}
		// One that takes many times as long would make the others too small to see.
		if len(chosen) > 1 && c.typical.Total > 2.5*end {
			continue
		}
		chosen = append(chosen, c.typical)
		end = max(end, c.typical.Total)
	}
	for _, r := range chosen {
		v.Rows = append(v.Rows, drawLine(r, end))
	}
	return v
}

// drawLine draws the requests of a run as bars, each in the first lane that is
// free, and below them the bytes that have come.
func drawLine(r *run, longest float64) lineRow {
	steps, end := scale(longest)
	x := func(at float64) float64 { return lineLeft + min(at, end)/end*(lineWidth-lineLeft-lineRight) }
	v := lineRow{System: r.System, Width: lineWidth, Left: lineLeft, Right: lineWidth - lineRight}
	v.Requests, v.CurveTop = lanes(r, x)
	v.Bottom = v.CurveTop + curveHeight
	v.Height = v.Bottom + 24
	v.Note = fmt.Sprintf("%s, %s, %d requests, %d connections", seconds(r.Total), megabytes(float64(r.Down)), r.Requests, r.Connections)
	v.Bytes = megabytes(float64(r.Down))
	for _, s := range steps {
		v.Ticks = append(v.Ticks, tick{x(s), fmt.Sprintf("%g", s)})
	}
	at := 0.0
	for i, p := range []float64{r.Pull, r.Create, r.Ready} {
		v.Phases = append(v.Phases, part{X: x(at), W: x(at+p) - x(at), Class: []string{"pull", "create", "ready"}[i],
			Hint: []string{"until the image could be used", "until the process was made", "until it was ready"}[i] + ": " + seconds(p)})
		at += p
	}
	v.Curve = curve(r, x, v.Bottom, curveHeight-4)
	return v
}

// lanes returns the bars, and where the lowest lane ends.
func lanes(r *run, x func(float64) float64) (list []requestBar, bottom float64) {
	var free []float64 // by lane: when it is
	lane := make([]int, len(r.Line.Requests))
	ends := make([]float64, len(r.Line.Requests))
	for i, q := range r.Line.Requests {
		ends[i] = q.End
		if q.End < q.Begin || q.End > r.Total {
			ends[i] = r.Total
		}
		lane[i] = slices.IndexFunc(free, func(at float64) bool { return at <= q.Begin })
		if lane[i] < 0 {
			lane[i] = len(free)
			free = append(free, 0)
		}
		free[lane[i]] = ends[i] + r.Total/400
	}
	h := min(lanesHeight/float64(max(len(free), 1)), laneHeight)
	for i, q := range r.Line.Requests {
		list = append(list, requestBar{X: x(q.Begin), Y: 4 + float64(lane[i])*h, W: max(x(ends[i])-x(q.Begin), 1.5), H: max(h-1.5, 1),
			Class: requestClass(q.What), Hint: requestHint(q)})
	}
	return list, 12 + h*float64(max(len(free), 2))
}

func requestHint(q request) string {
	if q.End == 0 {
		return fmt.Sprintf("%s, from %s on", q.What, seconds(q.Begin))
	}
	return fmt.Sprintf("%s: %s, %s to %s", q.What, megabytes(float64(q.Bytes)), seconds(q.Begin), seconds(q.End))
}

// requestClass is by what was asked for, as observe.go's what says it.
func requestClass(what string) string {
	switch {
	case strings.Contains(what, "blob"):
		return "blob"
	case strings.Contains(what, "manifest"), strings.Contains(what, "referrers"):
		return "manifest"
	}
	return "other"
}

// curve is the points of a polygon: bytes over time.
func curve(r *run, x func(float64) float64, bottom, height float64) string {
	if r.Down == 0 {
		return ""
	}
	var b strings.Builder
	y := bottom
	fmt.Fprintf(&b, "%.1f,%.1f", x(0), bottom)
	for _, p := range r.Line.Bytes {
		fmt.Fprintf(&b, " %.1f,%.1f", x(p.At), y)
		y = bottom - float64(p.Bytes)/float64(r.Down)*height
		fmt.Fprintf(&b, " %.1f,%.1f", x(p.At), y)
	}
	fmt.Fprintf(&b, " %.1f,%.1f %.1f,%.1f", x(r.Total), y, x(r.Total), bottom)
	return b.String()
}

// Package telemetry tells other programs how the daemon is doing: metrics in
// Prometheus' text format, by a listener of its own if one is configured, and
// spans of OpenTelemetry to a collector if one is configured. It counts nothing
// itself, and without configuration starts nothing.
//
// The text format is written here and not by a library: the counters exist (as
// atomics in the Stats of their packages), so a library would only print them.
// github.com/prometheus/client_golang adds 740 KB to snapd and 1 MB of memory to
// each of its processes; the tests read what is written with its parser.
package telemetry

import (
	"bufio"
	"bytes"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/meter"
)

// A Text is metrics in Prometheus' text format, version 0.0.4: families one
// after another, each with its samples. Names and labels are the caller's to
// choose well; values of labels may be anything.
type Text struct {
	b      bytes.Buffer
	family string
}

// ContentType is what an HTTP answer with a Text is.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Kinds of families.
const (
	Counter   = "counter"
	Gauge     = "gauge"
	Histogram = "histogram"
)

// Family begins the metrics called name. Help is one line.
func (t *Text) Family(name, kind, help string) {
	t.family = name
	if help != "" {
		t.b.WriteString("# HELP " + name + " " + escapeHelp.Replace(help) + "\n")
	}
	t.b.WriteString("# TYPE " + name + " " + kind + "\n")
}

// Sample adds a value to the family; labels are pairs of a name and a value.
func (t *Text) Sample(v float64, labels ...string) { t.sample("", v, labels) }

// One is a family with one sample.
func (t *Text) One(name, kind, help string, v float64) {
	t.Family(name, kind, help)
	t.Sample(v)
}

func (t *Text) sample(suffix string, v float64, labels []string) {
	t.b.WriteString(t.family + suffix)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := ","
		if i == 0 {
			sep = "{"
		}
		t.b.WriteString(sep + labels[i] + `="` + escapeLabel.Replace(strings.ToValidUTF8(labels[i+1], "\uFFFD")) + `"`)
	}
	if len(labels) > 1 {
		t.b.WriteByte('}')
	}
	t.b.WriteString(" " + number(v) + "\n")
}

// Histogram is a family with the times that c has counted, in seconds.
func (t *Text) Histogram(name, help string, c *meter.Counts) {
	t.Family(name, Histogram, help)
	t.Times(c)
}

// Times adds the times that c has counted to a family of kind Histogram. Only
// every second of our buckets is told: each doubles the one before.
func (t *Text) Times(c *meter.Counts, labels ...string) {
	with := func(le string) []string { return append(labels[:len(labels):len(labels)], "le", le) }
	total := int64(0)
	for i, n := range c.N {
		total += n
		if i%2 == 0 && i < meter.Buckets-1 {
			t.sample("_bucket", float64(total), with(number(meter.Bound(i).Seconds())))
		}
	}
	t.sample("_bucket", float64(total), with("+Inf"))
	t.sample("_sum", c.Sum.Seconds(), labels)
	t.sample("_count", float64(total), labels)
}

// Time adds a point in time, in Unix seconds.
func (t *Text) Time(name, help string, at time.Time) {
	t.One(name, Gauge, help, float64(at.UnixMilli())/1000)
}

// WriteTo writes what there is to w.
func (t *Text) WriteTo(w io.Writer) (int64, error) { return t.b.WriteTo(w) }

// String is all there is.
func (t *Text) String() string { return t.b.String() }

// The text format escapes these, and no others (exposition_formats.md of prometheus/docs).
var (
	escapeHelp  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	escapeLabel = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
)

func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1<<53 {
		return strconv.FormatInt(int64(v), 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// Names returns the names of the families in a Text, in order: for tests and documents.
func Names(text string) (names []string) {
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "# TYPE "); ok {
			name, _, _ := strings.Cut(rest, " ")
			names = append(names, name)
		}
	}
	return names
}

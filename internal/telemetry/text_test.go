package telemetry

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/snapfs/snapfs/internal/meter"
)

func parse(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("Prometheus' parser: %v\n%s", err, text)
	}
	return families
}

func TestTextIsWhatPrometheusReads(t *testing.T) {
	var x Text
	hostile := "a\"b\\c\nd\xff{}=,é"
	x.Family("snapfs_things", Gauge, "Things, of \\ two\nlines.")
	x.Sample(1, "kind", hostile, "other", "")
	x.Sample(-2.5, "kind", "plain")
	x.One("snapfs_bytes_total", Counter, "", 1<<50)
	x.One("snapfs_ratio", Gauge, "", 0.1)
	x.Time("snapfs_at_seconds", "", time.UnixMilli(1764155000123))
	families := parse(t, x.String())

	things := families["snapfs_things"]
	if things.GetType() != dto.MetricType_GAUGE || things.GetHelp() != "Things, of \\ two\nlines." || len(things.Metric) != 2 {
		t.Errorf("%v", things)
	}
	labels := things.Metric[0].Label
	if len(labels) != 2 || labels[0].GetValue() != strings.ToValidUTF8(hostile, "\uFFFD") || labels[1].GetValue() != "" || things.Metric[1].GetGauge().GetValue() != -2.5 {
		t.Errorf("%v", things.Metric)
	}
	for name, want := range map[string]float64{"snapfs_ratio": 0.1, "snapfs_at_seconds": 1764155000.123} {
		if got := families[name].Metric[0].GetGauge().GetValue(); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	if got := families["snapfs_bytes_total"].Metric[0].GetCounter().GetValue(); got != 1<<50 {
		t.Errorf("snapfs_bytes_total = %v", got)
	}
	if got := Names(x.String()); !slices.Equal(got, []string{"snapfs_things", "snapfs_bytes_total", "snapfs_ratio", "snapfs_at_seconds"}) {
		t.Errorf("Names = %q", got)
	}
}

func TestTimesWithLabels(t *testing.T) {
	var h meter.Histogram
	h.Observe(time.Millisecond)
	c := h.Counts()
	labels := append(make([]string, 0, 8), "method", `a"b`, "who", "c") // with room: nobody may write there
	var x Text
	x.Family("snapfs_call_seconds", Histogram, "How long.")
	x.Times(&c, labels...)
	x.Times(&c, "method", "other", "who", "c")
	m := parse(t, x.String())["snapfs_call_seconds"].Metric
	if len(m) != 2 {
		t.Fatalf("%d histograms, want 2: %v", len(m), m)
	}
	for _, m := range m {
		h := m.GetHistogram()
		if h.GetSampleCount() != 1 || len(m.GetLabel()) != 2 || len(h.GetBucket()) < 2 {
			t.Errorf("%v", m)
		}
	}
}

func TestHistogramIsWhatPrometheusReads(t *testing.T) {
	var h meter.Histogram
	for d := range 1000 {
		h.Observe(time.Duration(d) * time.Millisecond)
	}
	h.Observe(time.Hour)
	c := h.Counts()
	var x Text
	x.Histogram("snapfs_miss_seconds", "How long.", &c)
	got := parse(t, x.String())["snapfs_miss_seconds"].Metric[0].GetHistogram()
	if got.GetSampleCount() != 1001 || math.Abs(got.GetSampleSum()-c.Sum.Seconds()) > 1e-9 {
		t.Errorf("count %d, sum %v", got.GetSampleCount(), got.GetSampleSum())
	}
	last, bound := uint64(0), 0.0
	for _, b := range got.Bucket {
		if b.GetCumulativeCount() < last || b.GetUpperBound() <= bound {
			t.Errorf("bucket %v after %d at %v", b, last, bound)
		}
		last, bound = b.GetCumulativeCount(), b.GetUpperBound()
		if ms := bound * 1000; ms <= 512 && math.Abs(float64(last)-(math.Floor(ms)+1)) > 1e-9 {
			t.Errorf("%v of 0…999 ms are at most %v ms", last, ms)
		}
	}
	if last != 1001 || !math.IsInf(bound, 1) || len(got.Bucket) < 15 {
		t.Errorf("%d buckets, the last %v", len(got.Bucket), got.Bucket[len(got.Bucket)-1])
	}
}

package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/bench/serve"
)

var update = flag.Bool("update", false, "write testdata anew")

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		list []float64
		want float64
	}{
		{[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5},
	} {
		if got := median(c.list); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.list, got, c.want)
		}
	}
	if got := median(nil); !math.IsNaN(got) {
		t.Errorf("median of none = %v", got)
	}
}

func TestGeomean(t *testing.T) {
	if got := geomean([]float64{0.5, 2, 1}); math.Abs(got-1) > 1e-12 {
		t.Errorf("geomean(0.5, 2, 1) = %v", got)
	}
	if got := geomean([]float64{4, 9}); math.Abs(got-6) > 1e-12 {
		t.Errorf("geomean(4, 9) = %v", got)
	}
	if got := geomean(nil); !math.IsNaN(got) {
		t.Errorf("geomean of none = %v", got)
	}
}

// facts are two rounds of two images: overlayfs takes 10 s and 20 s, then twice
// that; a profile a tenth of it each time.
func facts() []fact {
	list := []fact{{Session: &session{
		Begun: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Commit: "v1", Kernel: "6.18", CPU: "a CPU", Cores: 2, MemoryMB: 24064, Rounds: 2,
		Systems: []about{{Name: "overlayfs-par", About: "four at once"}, {Name: "snapfs-profile", About: "ours"}, {Name: "snapfs-warm", About: "warm"},
			{Name: "snapfs-nothing", About: "ours"}, {Name: "soci", About: "SOCI", Missing: "no soci in PATH"}},
		Images: []picture{{Name: "redis", Digest: "sha256:1", Size: 50e6, Ready: "line:ready"}, {Name: "nginx", Digest: "sha256:2", Size: 60e6, Ready: "tcp:80", Task: []string{"nginx", "<u>"}}},
	}}}
	for _, image := range []string{"redis", "nginx"} {
		list = append(list, fact{Touched: &touched{Image: image, Files: 20, Pages: 4e6, Chunks: 80, Plain: 10e6, Gzip: 5e6, Zstd: 4e6}})
	}
	for round := 1; round <= 2; round++ {
		for i, image := range []string{"redis", "nginx"} {
			unit := float64(round) * float64(i+1) * 10
			run := func(system string, total float64, down int64) *run {
				r := &run{Link: "100M/20ms", Image: image, System: system, Round: round, Total: total, Pull: total / 2, Create: total / 4, Ready: total / 4,
					Again: []float64{0.1, 0.2, 0.3}, Down: down, Up: 1000, Requests: 3, Connections: 2, CPU: 0.5, Peak: 50e6}
				r.Line.Bytes = []arrived{{0.1, down / 2}, {total * 0.75, down}}
				r.Line.Requests = []request{{0.02, 0.03, "GET manifest latest", 500}, {0.05, total * 0.75, "GET blob 12345678 bytes=0-9", down}, {total / 2, 0, "GET blob 87654321", 0}}
				return r
			}
			list = append(list, fact{Run: run("overlayfs-par", unit, 50e6)}, fact{Run: run("snapfs-profile", unit/10, 6e6)})
			warm := run("snapfs-warm", 0.04, 0)
			warm.Again = []float64{0.04}
			list = append(list, fact{Run: warm})
		}
	}
	return append(list, fact{Run: &run{Link: "100M/20ms", Image: "redis", System: "snapfs-nothing", Round: 1, Error: "it <failed>"}})
}

func TestSummary(t *testing.T) {
	s := summarize(facts())
	if len(s.Links) != 1 {
		t.Fatalf("%d links, want 1", len(s.Links))
	}
	l := s.Links[0]
	if want := []string{"redis", "nginx"}; !reflect.DeepEqual(l.Images, want) {
		t.Errorf("images %v, want %v", l.Images, want)
	}
	if want := []string{"snapfs-nothing", "snapfs-profile", "snapfs-warm", "overlayfs-par"}; !reflect.DeepEqual(l.Systems, want) {
		t.Errorf("systems %v, want %v", l.Systems, want)
	}
	c := l.cell("redis", "overlayfs-par")
	if c.Total != 15 || c.Least != 10 || c.Most != 20 || c.typical.Round != 1 || c.Again != 0.2 {
		t.Errorf("redis on overlayfs-par: %+v", c)
	}
	// 5 MB at 100 Mbit/s, three times 20 ms, and 40 ms.
	if got := l.floor("redis"); math.Abs(got-0.5) > 1e-9 {
		t.Errorf("floor = %v, want 0.5", got)
	}
	ratios := make(map[string]float64)
	for _, r := range l.ratios() {
		if r.Missing == "" {
			ratios[r.What] = r.Over
		}
	}
	want := map[string]float64{
		"profile and bundle / overlayfs, parallel unpack": 0.1,
		"profile and bundle / floor":                      math.Sqrt(3 * 6), // 1.5 s and 3 s over 0.5 s
		"profile and bundle / floor, bytes":               1.2,
	}
	for k, v := range want {
		if math.Abs(ratios[k]-v) > 1e-9 {
			t.Errorf("%s = %v, want %v", k, ratios[k], v)
		}
	}
	if len(ratios) != len(want) {
		t.Errorf("ratios %v, want %v", ratios, want)
	}
}

// TestSessions: rounds of different sessions are not compared.
func TestSessions(t *testing.T) {
	run := func(system string, total float64) fact {
		return fact{Run: &run{Link: "0/0", Image: "redis", System: system, Round: 1, Total: total}}
	}
	s := summarize([]fact{{Session: new(session)}, run("overlayfs", 10), run("snapfs-index", 5), {Session: new(session)}, run("overlayfs", 100), run("snapfs-index", 50)})
	if got := s.Links[0].ratio("redis", "snapfs-index", "overlayfs", total); got != 0.5 {
		t.Errorf("ratio %v, want 0.5", got)
	}
}

// TestSum: a base may be a time and a warm start of two systems.
func TestSum(t *testing.T) {
	s := summarize([]fact{{Session: new(session)},
		{Run: &run{Link: "0/0", Image: "redis", System: "ctr-index", Round: 1, Total: 3}},
		{Run: &run{Link: "0/0", Image: "redis", System: "snapfs-index", Round: 1, Total: 4}},
		{Run: &run{Link: "0/0", Image: "redis", System: "overlayfs", Round: 1, Total: 100, Again: []float64{1, 2, 9}}},
	})
	if got := s.Links[0].ratio("redis", "ctr-index", "snapfs-index+overlayfs", total); got != 0.5 {
		t.Errorf("ratio %v, want 0.5", got)
	}
	if got := s.Links[0].ratio("redis", "ctr-index", "snapfs-index+erofs", total); !math.IsNaN(got) {
		t.Errorf("ratio to what was not measured: %v, want NaN", got)
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not as it was; look at it, and run the test with -update\n%s", file, firstDifference(got, want))
	}
}

func firstDifference(got, want []byte) string {
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "got  " + g[i] + "\nwant " + w[i]
		}
	}
	return "one is longer"
}

func TestRender(t *testing.T) {
	var lines bytes.Buffer
	for _, f := range facts() {
		if err := writeFact(&lines, f); err != nil {
			t.Fatal(err)
		}
	}
	list, err := readFacts(&lines)
	if err != nil {
		t.Fatal(err)
	}
	s := summarize(list)
	golden(t, "summary.md", []byte(s.markdown()))
	page, err := s.page()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "page.html", page)
	picture, err := s.picture()
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "picture.svg", picture)
	checkDrawing(t, string(picture))
	if _, err := new(summary).picture(); err == nil {
		t.Error("a picture of nothing")
	}
	for _, bad := range []string{"<failed>", "<u>", "NaN", "http://", "https://", "ZgotmplZ", "<script"} {
		if bytes.Contains(page, []byte(bad)) {
			t.Errorf("the page contains %s", bad)
		}
	}
}

// TestDrawings: the drawings are XML, and nothing in them has a negative size
// or is outside.
func TestDrawings(t *testing.T) {
	page, err := summarize(facts()).page()
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for rest := string(page); ; count++ {
		_, after, ok := strings.Cut(rest, "<svg")
		if !ok {
			break
		}
		drawing, after, ok := strings.Cut(after, "</svg>")
		if !ok {
			t.Fatal("an <svg> does not end")
		}
		checkDrawing(t, "<svg"+drawing+"</svg>")
		rest = after
	}
	if count < 6 {
		t.Errorf("%d drawings", count)
	}
}

func checkDrawing(t *testing.T, text string) {
	t.Helper()
	var box [4]float64
	d := xml.NewDecoder(strings.NewReader(text))
	for {
		token, err := d.Token()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("%v in %s", err, text)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		a := make(map[string]float64)
		for _, attr := range e.Attr {
			if attr.Name.Local == "viewBox" {
				json.Unmarshal([]byte("["+strings.ReplaceAll(attr.Value, " ", ",")+"]"), &box)
			}
			var v float64
			if json.Unmarshal([]byte(attr.Value), &v) == nil {
				a[attr.Name.Local] = v
			}
		}
		if a["width"] < 0 || a["height"] < 0 || a["x"] < 0 || a["x"]+a["width"] > box[2]+0.1 || a["y"]+a["height"] > box[3]+0.1 {
			t.Errorf("%s %v is outside of %v", e.Name.Local, a, box)
		}
	}
}

func TestReadFacts(t *testing.T) {
	if _, err := readFacts(strings.NewReader("{\"run\":{}}\nx\n")); err == nil {
		t.Error("readFacts takes what is no JSON")
	}
	list, err := readFacts(strings.NewReader("{\"run\":{\"link\":\"nonsense\"}}\n{}\n"))
	if s := summarize(list); err != nil || len(list) != 2 || len(s.Links) != 0 {
		t.Errorf("facts of nothing: %v, %v", list, err)
	}
}

func TestScale(t *testing.T) {
	for _, top := range []float64{1e-6, 0.37, 1, 1.5, 9.99, 30, 12345} {
		steps, end := scale(top)
		if len(steps) < 3 || len(steps) > 9 || end < top || end > top*1.7 {
			t.Errorf("scale(%v) = %v, %v", top, steps, end)
		}
	}
	for _, top := range []float64{0, -1, math.NaN(), math.Inf(1)} {
		if steps, end := scale(top); len(steps) != 2 || end != 1 {
			t.Errorf("scale(%v) = %v, %v", top, steps, end)
		}
	}
}

func TestObserver(t *testing.T) {
	var o observer
	o.arrived(1) // not while it is told to
	o.start()
	now := time.Now()
	o.seen(serve.Request{ID: 1, Begin: now, Method: "GET", Kind: "blob", Target: "sha256:0123456789", Range: "bytes=0-9"})
	o.seen(serve.Request{ID: 2, Begin: now, Method: "GET", Kind: "manifest", Target: "latest"})
	o.seen(serve.Request{ID: 2, Begin: now, End: now.Add(time.Second), Method: "GET", Kind: "manifest", Target: "latest", Status: 404, Bytes: 7})
	for range 1000 {
		o.arrived(10)
	}
	n, line := o.stop()
	if n != 10000 || line.Bytes[len(line.Bytes)-1].Bytes != 10000 || len(line.Requests) != 2 {
		t.Fatalf("%d bytes, %+v", n, line)
	}
	for _, q := range line.Requests {
		if q.End == 0 && q.What != "GET blob 01234567 bytes=0-9" || q.End > 0 && (q.What != "GET manifest latest → 404" || q.Bytes != 7) {
			t.Errorf("%+v", q)
		}
	}
	o.seen(serve.Request{ID: 3, Begin: now})
	if o.begin != (time.Time{}) || len(o.requests) != 2 {
		t.Error("it goes on after its end")
	}
}

func TestThin(t *testing.T) {
	var curve []arrived
	for i := range 1001 {
		curve = append(curve, arrived{float64(i), int64(i)})
	}
	got := thin(curve, 300)
	if len(got) > 300 || got[len(got)-1] != curve[1000] {
		t.Errorf("%d points, the last %v", len(got), got[len(got)-1])
	}
	if got := thin(curve[:10], 300); len(got) != 10 {
		t.Errorf("%d points of 10", len(got))
	}
}

func TestPhases(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(1000+s), 0) }
	for _, c := range []struct {
		name            string
		usable, running time.Time
		want            [3]float64
	}{
		{"all known", at(3), at(4), [3]float64{3, 1, 6}},
		{"what pull says", time.Time{}, at(4), [3]float64{2, 2, 6}},
		{"no process known", at(3), time.Time{}, [3]float64{3, 0, 7}},
		{"a clock that went back", at(-5), at(4), [3]float64{0, 0, 10}},
		{"a process after its answer", at(3), at(11), [3]float64{3, 0, 7}},
	} {
		var r run
		r.phases(at(0), at(2), c.usable, c.running, at(10), nil)
		if got := [3]float64{r.Pull, r.Create, r.Ready}; got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

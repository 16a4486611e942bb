package main

import (
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

const ms = time.Millisecond

func someLayers() []control.LayerDetail {
	return []control.LayerDetail{
		{Digest: "sha256:aaaaaaaaaaaaaaaa", Size: 30e6, Format: "tar+gzip", Lazy: true, Complete: true, Local: 30e6, Origin: "own", Why: "no table of contents"},
		{Digest: "sha256:bbbbbbbbbbbbbbbb", Size: 10e6, Format: "tar+gzip", Lazy: true, Local: 25e5, Origin: "published", Signer: "k1", Index: "cccccccccccccccc"},
		{Digest: "sha256:dddddddddddddddd", Size: 1000, Format: "tar+zstd", Origin: "own", Complete: true, Why: "it cannot be split: \x1b[31mone frame"},
	}
}

// The story of a container that started over a slow link.
func TestExplainContainer(t *testing.T) {
	e := control.Explanation{
		Container: &control.Container{ID: "cafe0123456789ab", Name: "web", Image: "debian:stable", Status: "running", Started: noon.Add(-time.Minute)},
		Image: &control.ImageDetail{
			Image:        control.Image{Ref: "debian:stable", ID: "sha256:1111111111111111", Digest: "sha256:2222", Platform: "linux/amd64", Size: 40001000, Local: 32501000},
			LayerDetails: someLayers(), Profile: control.ProfileInfo{Starts: 3, Chunks: 812, Bytes: 9.1e6},
		},
		Running: []string{"web", "other"},
		Start: &control.Start{
			Kind: "run", Began: noon.Add(-70 * time.Second), Container: "cafe", Running: 300 * ms, Ready: 1940 * ms, ReadyBy: "port",
			Phases: []control.Phase{
				{Name: "image", Begin: 0, End: 200 * ms}, {Name: "resolve", Begin: 0, End: 45 * ms}, {Name: "referrers", Begin: 20 * ms, End: 40 * ms},
				{Name: "index", ID: "aaaaaaaaaaaa", Begin: 45 * ms, End: 150 * ms}, {Name: "index", ID: "bbbbbbbbbbbb", Begin: 46 * ms, End: 200 * ms, Bytes: 5000},
				{Name: "mount", Begin: 200 * ms, End: 202500 * time.Microsecond}, {Name: "monitor", Begin: 203 * ms, End: 290 * ms},
			},
			Counters: control.Counters{HTTPRequests: 212, HTTPBytes: 8e6, Fetched: 7.8e6, Delivered: 12.5e6}, Waiting: 1200 * ms, Missed: 54, More: 20,
			Waits: []control.FileWait{
				{Object: "sha256:0011", Path: "/usr/bin/web", N: 12, Took: 412 * ms, Longest: 60 * ms, Bytes: 1200000, First: 301 * ms},
				{Object: "sha256:0022", N: 1, Took: 5 * ms, Longest: 5 * ms, Failed: 1, First: 500 * ms},
			},
		},
		Since:  noon.Add(-2 * time.Hour),
		Misses: control.Misses{N: 60, P50: 21 * ms, P99: 180 * ms, Failed: 1},
	}
	want := `Container web (cafe01234567) on debian:stable: up About a minute
Image debian:stable (111111111111, linux/amd64), sha256:2222
  2 of 3 layers start lazily; the others are fetched whole, first. 32.5MB of 40.0MB are local.
  Running on it: web, other

Layers, the lowest first:
  LAYER          SIZE     FORMAT     LAZY   LOCAL   INDEX
  aaaaaaaaaaaa   30.0MB   tar+gzip   yes    all     made here, from all of the layer
  bbbbbbbbbbbb   10.0MB   tar+gzip   yes    25%     published (cccccccccccc), signed by k1
  dddddddddddd   1.00kB   tar+zstd   no     all     made here, from all of the layer
  aaaaaaaaaaaa had to be fetched whole once: no table of contents
  dddddddddddd does not start lazily: it cannot be split: ?[31mone frame

Last start, about a minute ago: ready after 1.94s (it listened at its port)
  PHASE         BEGAN    TOOK
  resolve       0.00ms   45ms     the registry said what the name stands for
  referrers     20ms     20ms     meanwhile, a published index was looked for, and read
  index         45ms     155ms    tables of contents were read: 2 layers, the slowest bbbbbbbbbbbb with 154ms, 5.00kB
  mount         200ms    2.50ms   the image was mounted
  monitor       203ms    87ms     its monitor came up
  start         290ms    10ms     its first process came up
  until ready   300ms    1.64s
  Meanwhile the daemon made 212 requests and received 8.00MB; 7.80MB of it were layers' bytes that were not local.
  A boot bundle brought 12.5MB (uncompressed) of what earlier starts have read.
  54 reads of 22 files waited for the network, for 1.20s of that time together:
  WAITED   READS   LONGEST   BYTES    FIRST AT   FILE
  412ms    12      60ms      1.20MB   301ms      /usr/bin/web
  5.00ms   1       5.00ms    0B       500ms      sha256:0022 (1 read failed)
  … and 12 more files

Boot profile: of 3 starts, 9.10MB in 812 chunks. A cold start fetches them first.
60 reads of it waited for the network since the daemon's worker started (2 hours ago): half of them at most 21ms, 99 of 100 at most 180ms; 1 failed.
`
	s := &story{now: noon}
	s.tell(&e)
	if got := s.String(); got != want {
		t.Errorf("told\n%s\nwant\n%s", got, want)
	}
}

func TestExplainOtherStories(t *testing.T) {
	image := func() *control.ImageDetail {
		return &control.ImageDetail{Image: control.Image{Ref: "x", Size: 10, Local: 10, Complete: true}, LayerDetails: someLayers()[:1]}
	}
	quarantined := image()
	quarantined.Quarantine, quarantined.QuarantineFile = "layer sha256:aa: chunk 3 of sha256:bb: digest", "/usr/bin/x"
	unsigned := image()
	unsigned.LayerDetails[0].Origin, unsigned.LayerDetails[0].Signer = "published", ""
	soci := image()
	soci.LayerDetails[0].Origin, soci.LayerDetails[0].Index = "soci", "sha256:eeeeeeeeeeeeeeee"
	for name, test := range map[string]struct {
		e    control.Explanation
		want []string
		not  string
	}{
		"nothing known":       {control.Explanation{Image: image()}, []string{"It can start lazily, and all of it (10B) is local", "Last start: none is recorded.", "Boot profile: none.", "No read of it has waited"}, "Container"},
		"removed":             {control.Explanation{Container: &control.Container{Name: "c"}}, []string{"Its image has been removed."}, "Layers"},
		"quarantined":         {control.Explanation{Image: quarantined}, []string{"QUARANTINED", "those of /usr/bin/x\n", "chunk 3 of sha256:bb"}, ""},
		"soci":                {control.Explanation{Image: soci}, []string{"SOCI's (eeeeeeeeeeee)"}, "made here"},
		"unsigned":            {control.Explanation{Image: unsigned}, []string{"unsigned: this daemon trusts any"}, "signed by"},
		"failed":              {control.Explanation{Image: image(), Start: &control.Start{Kind: "run", Error: "no room", Phases: []control.Phase{{Name: "mount", End: ms}}}}, []string{": failed\n  no room\n", "it failed here"}, "ready after"},
		"ended":               {control.Explanation{Image: image(), Start: &control.Start{Kind: "run", Running: ms, Ready: 5 * ms}}, []string{"it ended after 5.00ms, before it was ready", "No read waited for the network."}, ""},
		"not yet":             {control.Explanation{Image: image(), Start: &control.Start{Kind: "run", Running: ms}}, []string{"it runs, and is not ready yet"}, "until ready"},
		"made":                {control.Explanation{Image: image(), Start: &control.Start{Kind: "run"}}, []string{"it does not run yet"}, ""},
		"another worker":      {control.Explanation{Image: image(), Start: &control.Start{Kind: "start", Partial: true, Running: 1, Ready: time.Second, ReadyBy: "quiet"}}, []string{"worker was replaced meanwhile", "it read nothing any more"}, "No read waited"},
		"pulled, then run":    {control.Explanation{Image: image(), Pull: &control.Start{Kind: "pull", Ready: time.Second, Phases: []control.Phase{{Name: "resolve", End: ms}}}, Start: &control.Start{Kind: "run", Running: ms, Ready: ms}}, []string{"Last pull, N/A: done after 1.00s"}, ""},
		"run, which pulled":   {control.Explanation{Image: image(), Pull: &control.Start{Kind: "pull", Ready: time.Second}, Start: &control.Start{Kind: "run", Ready: ms, Phases: []control.Phase{{Name: "resolve", End: ms}}}}, nil, "Last pull"},
		"left to containerd":  {control.Explanation{Left: &control.Left{Ref: "x", Why: "layer a: \x1b[1mno", At: noon.Add(-time.Hour)}}, []string{"Image x\n  It was left to containerd, about an hour ago, which", "  layer a: ?[1mno\n"}, "Last start"},
		"left, but here":      {control.Explanation{Image: image(), Left: &control.Left{Ref: "x", Why: "no answer", At: noon}}, []string{"Image x (", "It was left to containerd", "  no answer\n", "Layers, the lowest first:"}, "removed"},
		"containerd's":        {control.Explanation{Image: func() *control.ImageDetail { i := image(); i.Asked = []string{"y:1"}; return i }()}, []string{"containerd has asked for it, as y:1."}, "left to"},
		"a reason of its own": {control.Explanation{Image: image(), Start: &control.Start{Kind: "run", Ready: ms, ReadyBy: "moon"}}, []string{"(moon)"}, ""},
	} {
		s := &story{now: noon}
		s.tell(&test.e)
		for _, w := range test.want {
			if !strings.Contains(s.String(), w) {
				t.Errorf("%s: %q is not told:\n%s", name, w, s.String())
			}
		}
		if test.not != "" && strings.Contains(s.String(), test.not) {
			t.Errorf("%s: %q is told:\n%s", name, test.not, s.String())
		}
	}
}

func TestExplainVerb(t *testing.T) {
	d := newDaemon(t, map[string]func(*control.Request) error{control.OpExplain: answer(control.Explanation{Image: &control.ImageDetail{}})})
	env, out, errs := newEnv(t, d.socket)
	if status := env.main([]string{"explain", "--type", "image", "--json", "x"}); status != 0 || !strings.HasPrefix(out(), `{"Image":{`) || strings.Count(out(), "\n") != 1 {
		t.Errorf("exit status %d: %s%s", status, out(), errs())
	}
	if asked := d.requests()[0]; asked != `explain {"Name":"x","Type":"image"}` {
		t.Errorf("asked for %s", asked)
	}
	env, _, errs = newEnv(t, d.socket)
	if status := env.main([]string{"explain", "--type", "moon", "x"}); status != 2 || !strings.Contains(errs(), "want container or image") {
		t.Errorf("exit status %d: %s", status, errs())
	}
}

func TestTook(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00ms", 123 * time.Microsecond: "0.12ms", 1500 * time.Microsecond: "1.50ms", 45 * ms: "45ms", 1234 * ms: "1.23s",
		99 * time.Second: "99.00s", 100 * time.Second: "1m40s", -ms: "0.00ms",
	} {
		if got := took(d); got != want {
			t.Errorf("took(%v) = %q, want %q", d, got, want)
		}
	}
}

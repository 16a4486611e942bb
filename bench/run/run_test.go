package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/layers/registry"
)

func TestRowComparesWithinRounds(t *testing.T) {
	times := []time.Duration{1e6, 10e6, 300e6}
	r := newRow("ours", times, map[string][]time.Duration{"crun": {2e6, 20e6, 100e6}, "floor": {1e6, 1e6, 300e6}})
	if r.Median != 10 || r.Ratios["crun"] != 0.5 || r.Ratios["floor"] != 1 || r.N != 3 {
		t.Errorf("row = %+v", r)
	}
}

// TestCompare: everybody runs in every round, and the first round does not count.
func TestCompare(t *testing.T) {
	var order []string
	turn := func(name string, d time.Duration) runner {
		return runner{name, func(_ context.Context, n int) (time.Duration, error) {
			order = append(order, name)
			if n == 0 {
				d *= 1000 // the caches are cold
				defer func() { d /= 1000 }()
			}
			return d, nil
		}}
	}
	rows, err := compare(t.Context(), []runner{turn("crun", 10), turn("snaprun", 2), turn("floor", 1)}, 2, 0)
	if err != nil || len(rows) != 3 {
		t.Fatalf("compare = %v, %v", rows, err)
	}
	if r := rows[1]; r.N != 2 || r.Ratios["crun"] != 0.2 || r.Ratios["floor"] != 2 || r.Median > 0.001 {
		t.Errorf("snaprun is %+v", r)
	}
	if got := strings.Join(order, " "); got != "crun snaprun floor snaprun floor crun floor crun snaprun" {
		t.Errorf("turns are %s", got)
	}
	bad := runner{"bad", func(context.Context, int) (time.Duration, error) { return 0, errors.New("oops") }}
	if _, err := compare(t.Context(), []runner{bad}, 1, 0); err == nil || err.Error() != "bad: oops" {
		t.Errorf("compare = %v, want the error and whose it is", err)
	}
}

// TestOrder: lanes go on at once, and the lines of one after another.
func TestOrder(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	o := order{[][][]string{{{"true"}, {"sh", "-c", "echo x >" + fifo}}, {{"sh", "-c", "read x <" + fifo}, {"true"}}}}
	if d, err := o.run(); err != nil || d <= 0 {
		t.Errorf("run = %v, %v", d, err)
	}
	_, err := one("sh", "-c", "echo said; echo so >&2; exit 3").run()
	e, ok := errors.AsType[*commandError](err)
	if !ok || string(e.output) != "said\nso\n" || !strings.Contains(err.Error(), "exit status 3: said; so") {
		t.Errorf("run = %v, want the status and what was said", err)
	}
}

func TestBatch(t *testing.T) {
	var got order
	s := &system{line: func(lane, n int) []string { return []string{fmt.Sprint(lane), fmt.Sprint(n)} }, do: func(o order) (time.Duration, error) {
		got = o
		return 1, nil
	}}
	if _, err := s.batch(6)(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	if want := "[[[0 12] [0 16]] [[1 13] [1 17]] [[2 14]] [[3 15]]]"; fmt.Sprint(got.Lanes) != want {
		t.Errorf("lanes are %v, want %s", got.Lanes, want)
	}
}

func TestBundle(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bundle")
	spec := &specs.Spec{Root: &specs.Root{}, Linux: &specs.Linux{}, Process: &specs.Process{Args: []string{"true"}}}
	if err := writeBundle(dir, spec, "/rootfs", "x-1", []string{"sleep"}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	var s specs.Spec
	if err := errors.Join(err, json.Unmarshal(b, &s)); err != nil {
		t.Fatal(err)
	}
	if s.Root.Path != "/rootfs" || s.Linux.CgroupsPath != cgroupParent+"/x-1" || s.Process.Args[0] != "sleep" || spec.Process.Args[0] != "true" {
		t.Errorf("config is %s", b)
	}
}

func TestFlags(t *testing.T) {
	c, err := flags([]string{"-images", "0", "--", "echo", "x"})
	if err != nil || c.mounted != 0 || strings.Join(c.command, " ") != "echo x" {
		t.Errorf("flags = %+v, %v", c, err)
	}
	for _, bad := range [][]string{{"-rounds", "-1"}, {"-batch", "3"}, {"-sleep", " "}} {
		if _, err := flags(bad); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

func TestMakeImage(t *testing.T) {
	name, err := makeImage(t.Context(), t.TempDir()+"/layout", "one", append(base([]byte("x")), many(1, 45)...))
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.ParseRef(name)
	if err != nil {
		t.Fatal(err)
	}
	reg := registry.New(registry.Options{})
	defer reg.Close()
	img, err := reg.Resolve(t.Context(), ref, "")
	if err != nil || len(img.Manifest.Layers) != 1 || img.Config.Config.Cmd[0] != "true" {
		t.Errorf("image is %+v, %v", img, err)
	}
}

func TestPrint(t *testing.T) {
	r := &result{Starts: []row{{Runner: "crun", Median: 1, Ratios: map[string]float64{"crun": 1, "docker": 0.1}, N: 1}}, Memory: []sample{{When: "now", Processes: []process{{Name: "worker", RSS: 1}}, Total: 1}}}
	var b strings.Builder
	if err := r.print(&b, false); err != nil || !strings.Contains(b.String(), "worker") || !strings.Contains(b.String(), "to docker") || strings.Contains(b.String(), "to floor") {
		t.Errorf("print = %q, %v", b.String(), err)
	}
	b.Reset()
	if err := r.print(&b, true); err != nil || !json.Valid([]byte(b.String())) {
		t.Errorf("JSON = %q, %v", b.String(), err)
	}
}

func TestResident(t *testing.T) {
	rss, anon, err := resident(os.Getpid())
	if err != nil || rss <= 0 || anon <= 0 || anon > rss {
		t.Errorf("resident = %v, %v, %v", rss, anon, err)
	}
}

package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/layers/registry"
)

func TestRowComparesWithinRounds(t *testing.T) {
	r := newRow("ours", []time.Duration{1e6, 10e6, 300e6}, []time.Duration{2e6, 20e6, 100e6})
	if r.Median != 10 || r.Ratio != 0.5 || r.N != 3 {
		t.Errorf("row = %+v", r)
	}
}

func TestFlags(t *testing.T) {
	c, err := flags([]string{"-images", "0", "--", "echo", "x"})
	if err != nil || c.mounted != 0 || strings.Join(c.command, " ") != "echo x" {
		t.Errorf("flags = %+v, %v", c, err)
	}
	if _, err := flags([]string{"-rounds", "-1"}); err == nil {
		t.Error("a negative number of rounds is accepted")
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
	r := &result{Starts: []row{{Runner: "crun", Median: 1, N: 1}}, Memory: []sample{{When: "now", Processes: []process{{Name: "worker", RSS: 1}}, Total: 1}}}
	var b strings.Builder
	if err := r.print(&b, false); err != nil || !strings.Contains(b.String(), "worker") {
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

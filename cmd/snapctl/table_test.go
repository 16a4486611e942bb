package main

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/snapfs/snapfs/internal/control"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestContainerTable(t *testing.T) {
	list := []control.Container{
		{ID: "0123456789abcdef", Name: "web", Image: "docker.io/library/nginx:1", Command: []string{"nginx", "-g", "daemon off; and more"}, Created: noon.Add(-3 * time.Hour), Status: "running", Started: noon.Add(-90 * time.Second),
			Exposed:  []control.Port{{Container: 80, Proto: "tcp"}, {Container: 443, Proto: "tcp"}},
			Endpoint: &control.Endpoint{Ports: []control.Binding{{HostIP: netip.IPv4Unspecified(), Host: 8080, Container: 80, Proto: "tcp"}, {HostIP: netip.IPv6Unspecified(), Host: 8080, Container: 80, Proto: "tcp"}}}},
		{ID: "aaaa", Name: "job", Image: "x", Command: []string{"sh"}, Created: noon.Add(-50 * 24 * time.Hour), Status: "exited", ExitCode: 137, OOMKilled: true, Finished: noon.Add(-time.Second)},
		{ID: "bbbb", Name: "p", Image: "x\x1b[31m", Command: []string{"a\nb"}, Created: noon, Status: "paused", Started: noon.Add(-5 * time.Minute)},
		{ID: "cccc", Name: "new", Created: noon, Status: "created"},
		{ID: "dddd", Name: "d", Created: noon, Status: "dead"},
		{ID: "eeee", Name: "e", Created: noon, Status: "running", Started: noon.Add(-5 * time.Minute), Health: &control.Health{Status: "healthy"}},
		{ID: "ffff", Name: "f", Created: noon, Status: "running", Started: noon.Add(-5 * time.Minute), Health: &control.Health{Status: "starting"}},
	}
	want := `CONTAINER ID IMAGE COMMAND CREATED STATUS PORTS NAMES
0123456789ab docker.io/library/nginx:1 "nginx -g daemon off…" 3 hours ago Up About a minute 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp, 443/tcp web
aaaa x "sh" 7 weeks ago Exited (137) 1 second ago, out of memory job
bbbb x?[31m "a?b" Less than a second ago Up 5 minutes (Paused) p
cccc "" Less than a second ago Created new
dddd "" Less than a second ago Dead d
eeee "" Less than a second ago Up 5 minutes (healthy) e
ffff "" Less than a second ago Up 5 minutes (health: starting) f
`
	if got := containerTable(list, false, noon).String(); squeeze(got) != squeeze(want) {
		t.Errorf("table is\n%s\nwant\n%s", got, want)
	}
}

func TestImageTable(t *testing.T) {
	list := []control.Image{
		{Ref: "docker.io/library/python:3.13-slim", ID: "sha256:8c5ec2da477b00", Created: noon.Add(-49 * time.Hour), Size: 48_512_345, Local: 12_000_000, Lazy: true},
		{Ref: "localhost:5000/x@sha256:8c5ec2da477b00", ID: "sha256:1", Size: 999, Complete: true},
		{Ref: "docker.io/me/app:1", ID: "sha256:2", Created: noon, Size: 0},
	}
	want := `REPOSITORY         TAG             IMAGE ID       CREATED                  SIZE     LOCAL
python             3.13-slim       8c5ec2da477b   2 days ago               48.5MB   24%
localhost:5000/x   @8c5ec2da477b   1              N/A                      999B     all
me/app             1               2              Less than a second ago   0B       all
`
	if got := imageTable(list, shortID, noon).String(); got != want {
		t.Errorf("table is\n%s\nwant\n%s", got, want)
	}
}

// squeeze makes runs of blanks one: how wide columns are is tested once.
func squeeze(s string) string {
	var b []rune
	for _, r := range s {
		if r != ' ' || len(b) == 0 || b[len(b)-1] != ' ' {
			b = append(b, r)
		}
	}
	return string(b)
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0B", 999: "999B", 1000: "1.00kB", 9994: "9.99kB", 9995: "10.0kB", 99949: "99.9kB", 99950: "100kB", 999499: "999kB", 999500: "1.00MB", 48512345: "48.5MB", 1 << 40: "1.10TB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %s, want %s", n, got, want)
		}
	}
}

// TestNothingSpeaksToTheTerminal: an image calls its programs what it likes, and an error repeats it.
func TestNothingSpeaksToTheTerminal(t *testing.T) {
	env, _, errs := newEnv(t, "")
	if status := env.report(&control.Error{Message: "\x1b]0;owned\a: no such file\n\tremedy\u009b2J"}, 125); status != 125 {
		t.Errorf("exit status %d", status)
	}
	if got, want := errs(), "snapctl: ?]0;owned?: no such file\n remedy?2J\n"; got != want {
		t.Errorf("stderr %q, want %q", got, want)
	}
	env, out, _ := newEnv(t, "")
	value := map[string]string{"name": "a\u009b2J\x7f\u00a0é"}
	if err := env.printJSON(value); err != nil {
		t.Fatal(err)
	}
	text := out()
	if strings.ContainsAny(text, "\u009b\x7f") {
		t.Errorf("JSON %q", text)
	}
	var again map[string]string
	if err := json.Unmarshal([]byte(text), &again); err != nil || again["name"] != value["name"] {
		t.Errorf("JSON %q is %q, %v", text, again, err)
	}
}

func TestPortRanges(t *testing.T) {
	port := func(n uint16, proto string) control.Port { return control.Port{Container: n, Proto: proto} }
	for _, test := range []struct {
		ports []control.Port
		want  string
	}{
		{nil, ""},
		{[]control.Port{port(80, "tcp")}, "80/tcp"},
		{[]control.Port{port(443, "tcp"), port(80, "tcp")}, "80/tcp 443/tcp"},
		{[]control.Port{port(65534, "tcp"), port(65535, "tcp"), port(53, "udp"), port(54, "tcp")}, "54/tcp 65534-65535/tcp 53/udp"},
	} {
		if got := strings.Join(portRanges(test.ports), " "); got != test.want {
			t.Errorf("portRanges(%v) = %q, want %q", test.ports, got, test.want)
		}
	}
}

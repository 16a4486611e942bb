package ports

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/snapfs/snapfs/internal/control"
)

func TestParse(t *testing.T) {
	for _, row := range []struct {
		in   string
		want []control.Port
	}{
		{"80", []control.Port{{Container: 80, Proto: "tcp"}}},
		{"80/udp", []control.Port{{Container: 80, Proto: "udp"}}},
		{"8080:80", []control.Port{{Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"}}},
		{"8080:80/TCP", []control.Port{{Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"}}},
		{"127.0.0.1:8080:80", []control.Port{{HostIP: "127.0.0.1", Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"}}},
		{"127.0.0.1::80", []control.Port{{HostIP: "127.0.0.1", Container: 80, Proto: "tcp"}}},
		{"0.0.0.0:80:80", []control.Port{{HostIP: "0.0.0.0", Host: 80, HostEnd: 80, Container: 80, Proto: "tcp"}}},
		{"[::1]:8080:80", []control.Port{{HostIP: "::1", Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"}}},
		{"[::1]::80", []control.Port{{HostIP: "::1", Container: 80, Proto: "tcp"}}},
		{"[::1]:80", []control.Port{{HostIP: "::1", Container: 80, Proto: "tcp"}}},
		{"[0:0:0::1]:80:80", []control.Port{{HostIP: "::1", Host: 80, HostEnd: 80, Container: 80, Proto: "tcp"}}},
		{"8000-9000:80", []control.Port{{Host: 8000, HostEnd: 9000, Container: 80, Proto: "tcp"}}},
		{"8000-8001:80-81/udp", []control.Port{{Host: 8000, HostEnd: 8000, Container: 80, Proto: "udp"}, {Host: 8001, HostEnd: 8001, Container: 81, Proto: "udp"}}},
		{"65534-65535:65534-65535", []control.Port{{Host: 65534, HostEnd: 65534, Container: 65534, Proto: "tcp"}, {Host: 65535, HostEnd: 65535, Container: 65535, Proto: "tcp"}}},
		{"80-81", []control.Port{{Container: 80, Proto: "tcp"}, {Container: 81, Proto: "tcp"}}},
	} {
		got, err := Parse(row.in)
		if err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("Parse(%q) = %+v, %v, want %+v", row.in, got, err, row.want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for in, says := range map[string]string{
		"":                       "container port",
		"0":                      "1 to 65535",
		"65536":                  "1 to 65535",
		"-80":                    "1 to 65535",
		"+80":                    "1 to 65535",
		"80/sctp":                "sctp is not supported",
		"80/icmp":                "want tcp or udp",
		"80/":                    "want tcp or udp",
		":80":                    "leave the colon out",
		"80:":                    "container port",
		"a:80":                   "host port",
		"1.2.3:80:80":            "no IPv4 address",
		"host:80:80":             "no IPv4 address",
		"::1:80:80":              "no IPv4 address",
		"1.2.3.4:1:2:3":          "",
		"[::1:80:80":             "not closed",
		"[127.0.0.1]:80:80":      "no IPv6 address",
		"[::ffff:1.2.3.4]:80:80": "no IPv6 address",
		"[fe80::1%eth0]:80:80":   "no IPv6 address",
		"90-80":                  "wrong way round",
		"1-65535":                "more than",
		"8000-8002:80-81":        "as many",
		"80:80-81":               "as many",
		"80:80/tcp/udp":          "want tcp or udp",
	} {
		if got, err := Parse(in); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("Parse(%q) = %v, %v, want an error with %q", in, got, err, says)
		}
	}
}

func TestExpose(t *testing.T) {
	got, err := Expose("80-81/udp")
	if want := []control.Port{{Container: 80, Proto: "udp"}, {Container: 81, Proto: "udp"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Expose = %v, %v, want %v", got, err, want)
	}
	for _, s := range []string{"", "80:80", "x", "80/sctp", "127.0.0.1:80"} {
		if got, err := Expose(s); err == nil {
			t.Errorf("Expose(%q) = %v, want an error", s, got)
		}
	}
}

// FuzzParse: whatever is written, what comes out passes Check, and is bounded.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"80", "8080:80/udp", "127.0.0.1::80", "[::1]:8000-8001:80-81", "1-65535:1", "::", "[]:", "-:-", "/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, parse := range []func(string) ([]control.Port, error){Parse, Expose} {
			list, err := parse(s)
			if err != nil {
				continue
			}
			if err := Check(list); err != nil || len(list) == 0 {
				t.Errorf("%q = %v: %v", s, list, err)
			}
		}
	})
}

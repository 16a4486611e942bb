package containers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

var someEndpoint = &control.Endpoint{
	IPv4: netip.MustParsePrefix("10.1.0.5/16"), Gateway4: netip.MustParseAddr("10.1.0.1"),
	IPv6: netip.MustParsePrefix("fd00::5/64"), Gateway6: netip.MustParseAddr("fd00::1"),
}

func TestHosts(t *testing.T) {
	c := &monitor.Config{Spec: &specs.Spec{}, Network: control.NetworkConfig{Mode: "bridge", Hostname: "box", Hosts: []string{"a:192.0.2.1", "b=2001:db8::1", "c:[2001:db8::2]", "gw:host-gateway"}}}
	got := string(hostsOf(c, someEndpoint))
	for _, want := range []string{"127.0.0.1\tlocalhost\n", "192.0.2.1\ta\n", "2001:db8::1\tb\n", "2001:db8::2\tc\n", "10.1.0.1\tgw\n", "fd00::1\tgw\n", "10.1.0.5\tbox\n", "fd00::5\tbox\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("without %q:\n%s", want, got)
		}
	}
}

func TestResolv(t *testing.T) {
	host := []byte("# made by somebody\nnameserver 127.0.0.53\nnameserver 192.0.2.9\nnameserver 2001:db8::9\nnameserver fe80::1%eth0\nnameserver ::1\nsearch a.example b.example\noptions edns0 trust-ad\n")
	for name, row := range map[string]struct {
		n    control.NetworkConfig
		host []byte
		v6   bool
		want string
	}{
		"bridge":      {control.NetworkConfig{Mode: "bridge"}, host, false, "nameserver 192.0.2.9\nsearch a.example b.example\noptions edns0 trust-ad\n"},
		"with IPv6":   {control.NetworkConfig{Mode: "bridge"}, host, true, "nameserver 192.0.2.9\nnameserver 2001:db8::9\nsearch a.example b.example\noptions edns0 trust-ad\n"},
		"nobody":      {control.NetworkConfig{Mode: "bridge"}, []byte("nameserver 127.0.0.1\n"), false, "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"},
		"a cloud's":   {control.NetworkConfig{Mode: "bridge"}, []byte("nameserver 169.254.169.254\n"), false, "nameserver 169.254.169.254\n"},
		"a cluster's": {control.NetworkConfig{Mode: "cni"}, []byte("nameserver 169.254.20.10\n"), true, "nameserver 169.254.20.10\n"},
		"host":        {control.NetworkConfig{Mode: "host"}, host, false, string(host)},
		"none":        {control.NetworkConfig{Mode: "none"}, host, false, ""},
		"asked for":   {control.NetworkConfig{Mode: "bridge", DNS: []string{"127.0.0.1"}, DNSSearch: []string{"x"}, DNSOptions: []string{"ndots:5"}}, host, false, "nameserver 127.0.0.1\nsearch x\noptions ndots:5\n"},
		"no search":   {control.NetworkConfig{Mode: "bridge", DNSSearch: []string{"."}}, host, false, "nameserver 192.0.2.9\noptions edns0 trust-ad\n"},
		"on the host": {control.NetworkConfig{Mode: "host", DNS: []string{"1.1.1.1"}}, []byte("nameserver 9.9.9.9\n"), false, "nameserver 1.1.1.1\n"},
	} {
		if got := string(resolvOf(&row.n, row.host, row.v6)); got != row.want {
			t.Errorf("%s: %q, want %q", name, got, row.want)
		}
	}
}

func TestCheckNetwork(t *testing.T) {
	for want, c := range map[string]control.NetworkConfig{
		"only a container on the bridge": {Mode: "host", IPv4: netip.MustParseAddr("10.0.0.1")},
		"--ip fd00::1":                   {Mode: "bridge", IPv4: netip.MustParseAddr("fd00::1")},
		"--ip6 10.0.0.1":                 {Mode: "bridge", IPv6: netip.MustParseAddr("10.0.0.1")},
		"--mac-address":                  {Mode: "bridge", MAC: "01:00:00:00:00:01"},
		"six bytes":                      {Mode: "bridge", MAC: "02:00"},
		"--dns \"x\"":                    {Mode: "bridge", DNS: []string{"x"}},
		"--dns-search":                   {Mode: "bridge", DNSSearch: []string{"a\nnameserver 1.2.3.4"}},
		"--dns-option":                   {Mode: "bridge", DNSOptions: []string{""}},
		"--add-host":                     {Mode: "bridge", Hosts: []string{"x"}},
		"is no address":                  {Mode: "bridge", Hosts: []string{"x:y"}},
		"NAME:ADDRESS":                   {Mode: "bridge", Hosts: []string{"a b:1.2.3.4"}},
	} {
		err := checkNetwork(&c)
		if e, ok := errors.AsType[*control.Error](err); !ok || !strings.Contains(e.Message, want) {
			t.Errorf("%+v: %v, want an error with %q", c, err, want)
		}
	}
}

func TestHostname(t *testing.T) {
	for name, ok := range map[string]bool{
		"": true, "a": true, "db-1.example": true, "under_score": true, strings.Repeat("a", 64): true,
		strings.Repeat("a", 65): false, "a b": false, "a\n1.2.3.4 bank": false, "a#": false, "-a": false, "a/b": false, "é": false, "a\x1b": false,
	} {
		if err := checkHostname(name); (err == nil) != ok {
			t.Errorf("host name %q: %v", name, err)
		}
	}
}

func TestNetworkOfImage(t *testing.T) {
	s := &Service{}
	id := strings.Repeat("a", 64)
	a := &control.CreateArgs{ID: id, PublishAll: true, Publish: []control.Port{{Host: 80, HostEnd: 80, Container: 80, Proto: "tcp"}}, Expose: []control.Port{{Container: 53, Proto: "udp"}}}
	c, _, err := s.network(a, map[string]struct{}{"80/tcp": {}, "443": {}})
	if err != nil {
		t.Fatal(err)
	}
	if a.Network != "bridge" || a.Hostname != id[:12] || len(c.Exposed) != 3 || len(c.Ports) != 3 || c.Ports[0].Host != 80 || c.Ports[1].Container != 53 || c.Ports[2].Container != 443 {
		t.Errorf("network %s, host name %s, %+v", a.Network, a.Hostname, c)
	}
	a = &control.CreateArgs{ID: id, Network: "host", Publish: a.Publish}
	if c, w, err := s.network(a, nil); err != nil || len(w) != 1 || len(c.Ports) != 0 {
		t.Errorf("on the host's network: %+v, %q, %v", c, w, err)
	}
	for want, a := range map[string]*control.CreateArgs{
		"no such container": {ID: id, Network: "container:x"},
		"want bridge":       {ID: id, Network: "mine"},
		"--publish":         {ID: id, Publish: []control.Port{{Container: 0, Proto: "tcp"}}},
		"--uts host":        {ID: id, HostOptions: control.HostOptions{UTS: "host"}, Hostname: "x"},
	} {
		if _, _, err := s.network(a, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want an error with %q", a, err, want)
		}
	}
}

// An image's few bytes must not become gigabytes.
func TestExposedWithoutEnd(t *testing.T) {
	image := map[string]struct{}{}
	for i := range 20 {
		image[fmt.Sprintf("%d-%d/tcp", i+1, i+4096)] = struct{}{}
	}
	if _, _, err := exposedPorts(&control.CreateArgs{}, image); err == nil || !strings.Contains(err.Error(), "more than 65536") {
		t.Errorf("81,920 exposed ports: %v, want an error", err)
	}
	image = map[string]struct{}{"80": {}}
	for i := range 1000 {
		image[strings.Repeat("x", 1000+i)] = struct{}{}
	}
	list, warnings, err := exposedPorts(&control.CreateArgs{}, image)
	if err != nil || len(list) != 1 || len(warnings) != maxWarnings || len(warnings[0]) > 300 {
		t.Errorf("with names that are none: %v, %d warnings, the first of %d bytes, %v", list, len(warnings), len(warnings[0]), err)
	}
}

func TestOneStartAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Service{starting: map[string]chan struct{}{}}
		first, err := s.only(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		other, err := s.only(t.Context(), "b")
		if err != nil {
			t.Fatal(err)
		}
		other()
		impatient, cancel := context.WithCancel(t.Context())
		in := 0
		for range 3 {
			go func() {
				done, err := s.only(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				in++
				done()
			}()
		}
		go func() {
			if _, err := s.only(impatient, "a"); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		}()
		synctest.Wait()
		if in != 0 {
			t.Errorf("%d start beside the first", in)
		}
		cancel()
		synctest.Wait()
		first()
		synctest.Wait()
		if in != 3 || len(s.starting) != 0 {
			t.Errorf("%d have started, %d are at it", in, len(s.starting))
		}
	})
}

func FuzzHosts(f *testing.F) {
	for _, s := range []string{"a:1.2.3.4", "a=::1", "a:[::1]", "a:host-gateway", "a\n:1.1.1.1", ":", "="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkNetwork(&control.NetworkConfig{Mode: "bridge", Hosts: []string{s}}) != nil {
			return
		}
		c := &monitor.Config{Spec: &specs.Spec{}, Network: control.NetworkConfig{Mode: "bridge", Hostname: "h", Hosts: []string{s}}}
		added := strings.Count(string(hostsOf(c, nil)), "\n") - strings.Count(localHosts, "\n")
		if added > 1 {
			t.Errorf("%q adds %d lines", s, added)
		}
	})
}

func FuzzResolv(f *testing.F) {
	f.Add([]byte("nameserver 1.1.1.1\nsearch a b\noptions x\ndomain c\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		got := resolvOf(&control.NetworkConfig{Mode: "bridge"}, b, v6)
		again := resolvOf(&control.NetworkConfig{Mode: "bridge"}, got, v6)
		if string(got) != string(again) {
			t.Errorf("%q becomes %q and then %q", b, got, again)
		}
	})
}

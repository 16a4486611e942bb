package cni

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/snapfs/snapfs/internal/control"
)

// FuzzResult: what a plugin prints becomes an endpoint with words that can be
// written into a file, or an error, and libcni's own code does not fall over what we let through.
func FuzzResult(f *testing.F) {
	f.Add([]byte(someResult))
	for _, s := range []string{
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.1/8","routes":[{"dst":"0.0.0.0/0"}]},"dns":{}}`, `{"cniVersion":"0.2.0","ip6":{"ip":"fd00::1/64","routes":[null]}}`,
		`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.1/8"}],"interfaces":[null]}`, `{"cniVersion":"1.1.0","ips":[{"interface":-1,"address":"::ffff:1.2.3.4/120"}]}`,
		`{"cniVersion":"1.0.0","dns":{"domain":"a b"}}`, `null`, `[]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkResult(b) != nil {
			return
		}
		res, err := create.CreateFromBytes(b)
		if err != nil {
			return
		}
		e := &control.Endpoint{}
		if read(e, res) != nil {
			return
		}
		if e.MAC != "" {
			if _, err := net.ParseMAC(e.MAC); err != nil {
				t.Errorf("hardware address %q", e.MAC)
			}
		}
		for _, p := range append([]netip.Prefix{}, e.More...) {
			if !p.IsValid() {
				t.Errorf("address %v", p)
			}
		}
		if e.DNS == nil {
			return
		}
		for _, list := range [][]string{e.DNS.Servers, e.DNS.Search, e.DNS.Options} {
			for _, s := range list {
				if s == "" || len(strings.Fields(s)) != 1 || strings.ContainsAny(s, "\n#;") {
					t.Errorf("a word %q", s)
				}
			}
		}
	})
}

// FuzzList: a configuration is refused, or means the same when it is read back from a record.
func FuzzList(f *testing.F) {
	f.Add([]byte(blue), true)
	f.Add([]byte(`{"cniVersion":"0.4.0","name":"old","type":"link"}`), false)
	f.Add([]byte(`{"name":"a","cniVersions":["1.0.0","9.0.0"],"plugins":[null]}`), true)
	f.Fuzz(func(t *testing.T, b []byte, list bool) {
		name := "/no/such/directory/x.conf"
		if list {
			name += "list"
		}
		raw, err := wholeList(name, b)
		if err != nil {
			return
		}
		l, err := parseList(raw)
		if err != nil {
			return
		}
		again, err := parseList(l.Bytes)
		if err != nil || again.Name != l.Name || len(again.Plugins) != len(l.Plugins) || again.DisableGC != l.DisableGC {
			t.Errorf("%q becomes %+v, %v", l.Bytes, again, err)
		}
		for _, p := range l.Plugins {
			if strings.Contains(p.Network.Type, "/") {
				t.Errorf("plugin %q", p.Network.Type)
			}
		}
	})
}

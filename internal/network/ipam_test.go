package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addr(s string) netip.Addr     { return netip.MustParseAddr(s) }

func TestPool(t *testing.T) {
	p := newPool(prefix("10.0.0.0/29")) // 2 to 6
	var got []netip.Addr
	for range 5 {
		a, err := p.take(netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a)
	}
	if got[0] != addr("10.0.0.2") || got[4] != addr("10.0.0.6") || p.gateway() != addr("10.0.0.1") {
		t.Errorf("addresses %v, gateway %v", got, p.gateway())
	}
	if a, err := p.take(netip.Addr{}); !errors.Is(err, errNoAddress) {
		t.Errorf("of a full pool: %v, %v", a, err)
	}
	p.give(got[3])
	p.give(got[1])
	if a, err := p.take(netip.Addr{}); err != nil || a != got[1] {
		t.Errorf("take = %v, %v, want %v, the first free one after the newest", a, err, got[1])
	}
	if a, err := p.take(netip.Addr{}); err != nil || a != got[3] {
		t.Errorf("take = %v, %v, want %v", a, err, got[3])
	}
}

// TestPoolReuse: an address that was just given back is the last to be given out.
func TestPoolReuse(t *testing.T) {
	p := newPool(prefix("10.0.0.0/24"))
	first, _ := p.take(netip.Addr{})
	p.give(first)
	for range 252 {
		a, err := p.take(netip.Addr{})
		if err != nil || a == first {
			t.Fatalf("take = %v, %v: too soon", a, err)
		}
		p.give(a)
	}
	if a, _ := p.take(netip.Addr{}); a != first {
		t.Errorf("after all others: %v, want %v", a, first)
	}
}

func TestPoolWanted(t *testing.T) {
	p := newPool(prefix("10.0.0.0/24"))
	if a, err := p.take(addr("10.0.0.2")); err != nil || a != addr("10.0.0.2") {
		t.Fatalf("take = %v, %v", a, err)
	}
	for _, a := range []string{"10.0.0.2", "10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.5", "fd00::5"} {
		if _, err := p.take(addr(a)); err == nil {
			t.Errorf("%s was given out", a)
		}
	}
	if a, err := p.take(netip.Addr{}); err != nil || a != addr("10.0.0.3") {
		t.Errorf("the next is %v, %v", a, err)
	}
	p.give(addr("192.0.2.1")) // not ours: nothing happens
}

func TestPoolIPv6(t *testing.T) {
	p := newPool(prefix("fd00:1::/64"))
	a, err := p.take(netip.Addr{})
	if err != nil || a != addr("fd00:1::2") || p.gateway() != addr("fd00:1::1") {
		t.Errorf("take = %v, %v, gateway %v", a, err, p.gateway())
	}
	if _, err := p.take(addr("fd00:1::1:0:0:5")); err == nil {
		t.Error("an address that cannot be counted was given out")
	}
	p.use(addr("fd00:1::3"))
	if a, err := p.take(netip.Addr{}); err != nil || a != addr("fd00:1::4") {
		t.Errorf("take = %v, %v", a, err)
	}
}

func TestChoose(t *testing.T) {
	for _, row := range []struct {
		taken []string
		want  string
	}{
		{nil, "10.201.0.0/16"},
		{[]string{"0.0.0.0/0"}, "10.201.0.0/16"},
		{[]string{"10.201.5.0/24"}, "10.202.0.0/16"},
		{[]string{"10.0.0.0/8"}, "172.31.0.0/16"},
		{[]string{"10.0.0.0/8", "172.16.0.0/12"}, "192.168.201.0/24"},
		{[]string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"}, ""},
		{[]string{"10.201.0.1/32", "fd00::/8"}, "10.202.0.0/16"},
	} {
		var taken []netip.Prefix
		for _, s := range row.taken {
			taken = append(taken, prefix(s))
		}
		got, err := choose(candidates(), taken)
		if row.want == "" {
			if err == nil {
				t.Errorf("with %v: %v, want an error", row.taken, got)
			}
			continue
		}
		if err != nil || got != prefix(row.want) {
			t.Errorf("with %v: %v, %v, want %s", row.taken, got, err, row.want)
		}
	}
	for _, p := range candidates() {
		if err := CheckSubnet(p); err != nil {
			t.Error(err)
		}
	}
}

func TestCheckSubnet(t *testing.T) {
	for s, ok := range map[string]bool{
		"10.1.0.0/16": true, "10.1.0.0/30": true, "fd00:1::/64": true, "fd00::/112": true,
		"10.1.0.1/16": false, "10.1.0.0/31": false, "10.1.0.0/32": false, "127.0.0.0/8": false, "224.0.0.0/8": false,
		"0.0.0.0/0": false, "169.254.0.0/16": false, "::/0": false, "fe80::/64": false, "fd00::/128": false,
	} {
		if err := CheckSubnet(prefix(s)); (err == nil) != ok {
			t.Errorf("CheckSubnet(%s) = %v, want it to be fine: %v", s, err, ok)
		}
	}
}

func TestUniqueLocal(t *testing.T) {
	a, b := uniqueLocal(), uniqueLocal()
	if a == b || CheckSubnet(a) != nil || a.Addr().As16()[0] != 0xfd || a.Bits() != 64 {
		t.Errorf("%v, %v", a, b)
	}
}

// FuzzRecord: a record of a connection that a daemon reads has what it needs to release it.
func FuzzRecord(f *testing.F) {
	f.Add([]byte(`{"ID":"a","Link":"svx","MAC":"02:00:00:00:00:01","IPv4":"10.0.0.2/16","Ports":[{"Host":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "a.json")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if e, err := readRecord(path, "a"); err == nil && (e.ID != "a" || !e.IPv4.IsValid() || e.Link == "") {
			t.Errorf("%q is %+v", b, e)
		}
	})
}

func TestNames(t *testing.T) {
	if got := linkName(0x7fffffff, 0xffffff); len(got) > MaxBridge {
		t.Errorf("%q has %d bytes", got, len(got))
	}
	if a, b := linkName(1, 0x11111), linkName(0x11, 0x1111); a == b {
		t.Errorf("%q twice", a)
	}
	mac := hardware(addr("10.201.0.2"))
	if mac != [6]byte{0x02, 0x5f, 10, 201, 0, 2} {
		t.Errorf("hardware address %x", mac)
	}
	if got := linkLocal(mac[:]); got != addr("fe80::5f:aff:fec9:2") {
		t.Errorf("link-local address %v", got)
	}
}

package network

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/fs/mounts"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/network/networktest"
)

func TestMain(m *testing.M) { os.Exit(networktest.Main(m.Run)) }

// A stand is a daemon's bridge, and what to make another daemon of that takes over.
type stand struct {
	*Service
	t testing.TB
	o Options
}

func newStand(t testing.TB, change ...func(*Options)) *stand {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes links")
	}
	o := Options{Run: t.TempDir(), Root: t.TempDir(), Bridge: "snapfs0"}
	for _, c := range change {
		c(&o)
	}
	s := &stand{t: t, o: o}
	s.open()
	t.Cleanup(func() {
		s.Close()
		s.remove()
	})
	return s
}

func (s *stand) context() context.Context { return s.t.Context() }

func (s *stand) open() {
	s.t.Helper()
	n, err := Open(s.context(), s.o)
	must(s.t, err)
	s.Service = n
}

// restart is the death of a daemon and the start of another.
func (s *stand) restart(alive func(string) bool) {
	s.t.Helper()
	s.Close()
	s.open()
	must(s.t, s.Reconcile(alive))
}

// remove takes bridge and tables away, for the next test.
func (s *stand) remove() {
	t := &tables{bridge: s.o.Bridge}
	if err := t.delete(); err != nil {
		s.t.Error(err)
	}
	if l, err := netlink.LinkByName(s.o.Bridge); err == nil {
		must(s.t, netlink.LinkDel(l))
	}
	must(s.t, setSysctl("ipv4/ip_forward", "0")) // the next one is to find a host, not a router
	must(s.t, setSysctl("ipv6/conf/all/forwarding", "0"))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func id(n int) string { return fmt.Sprintf("%064x", n) }

// A box is a connected namespace that stands for a container.
type box struct {
	*control.Endpoint
	ns *os.File
}

func (s *stand) attach(n int, ports ...control.Port) *box {
	s.t.Helper()
	e, ns, err := s.Attach(s.context(), Request{ID: id(n), Ports: ports})
	must(s.t, err)
	s.t.Cleanup(func() { ns.Close() })
	b := &box{e, ns}
	b.settle(s.t)
	return b
}

// settle waits until the box hears those who look for its IPv6 address: the kernel
// joins the group for that in the background, which a container does not notice, as it takes longer to start.
func (b *box) settle(t testing.TB) {
	t.Helper()
	if !b.IPv6.IsValid() {
		return
	}
	a := b.IPv6.Addr().As16()
	group := fmt.Sprintf("ff0200000000000000000001ff%x", a[13:])
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		var groups []byte
		var err error
		networktest.In(int(b.ns.Fd()), func() { groups, err = os.ReadFile("/proc/thread-self/net/igmp6") })
		must(t, err)
		if bytes.Contains(groups, []byte(group)) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the group of %s is not joined:\n%s", b.IPv6, groups)
		}
	}
}

func (b *box) serve(t *testing.T, name, kind string, port int) {
	t.Helper()
	networktest.Serve(t, int(b.ns.Fd()), name, kind, fmt.Sprintf(":%d", port))
}

func (b *box) ask(kind, addr string) (text string, err error) {
	networktest.In(int(b.ns.Fd()), func() { text, err = networktest.Ask(kind, addr) })
	return text, err
}

// answers says whether somebody with this name did.
func answers(text string, err error, name string) bool {
	return err == nil && strings.HasPrefix(text, name+" ")
}

func tcp(host, inside uint16) control.Port {
	return control.Port{Host: host, HostEnd: host, Container: inside, Proto: "tcp"}
}

func join(a netip.Addr, port int) string { return netip.AddrPortFrom(a, uint16(port)).String() }

// TestOutbound: containers reach the outside as the host, each other as
// themselves, and nobody who was not asked for reaches them.
func TestOutbound(t *testing.T) {
	s := newStand(t)
	out, other := networktest.NewMachine(t), networktest.NewMachine(t)
	networktest.Serve(t, int(out.NS), "outside", "tcp", ":80")
	networktest.Serve(t, int(out.NS), "outside", "udp", ":80")
	a, b := s.attach(1), s.attach(2)
	b.serve(t, "b", "tcp", 80)
	for _, addr := range []string{out.Self + ":80", "[" + out.Self6 + "]:80"} {
		for _, kind := range []string{"tcp", "udp"} {
			text, err := a.ask(kind, addr)
			host := out.Host + ":"
			if addr[0] == '[' {
				host = "[" + out.Host6 + "]:"
			}
			if !answers(text, err, "outside") || !strings.Contains(text, " "+host) {
				t.Errorf("%s %s: %q, %v, want an answer to %s", kind, addr, text, err, host)
			}
		}
	}
	for _, addr := range []netip.Addr{b.IPv4.Addr(), b.IPv6.Addr()} {
		text, err := a.ask("tcp", join(addr, 80))
		if !answers(text, err, "b") || !strings.Contains(text, a.IPv4.Addr().String()) && !strings.Contains(text, a.IPv6.Addr().String()) {
			t.Errorf("a asks b at %s: %q, %v", addr, text, err)
		}
		if text, err := networktest.Ask("tcp", join(addr, 80)); !answers(text, err, "b") {
			t.Errorf("the host asks b at %s: %q, %v", addr, text, err)
		}
	}
	// The outside knows a way to the containers' subnets, and still does not get there.
	out.Route(t, a.IPv4.Masked().String())
	out.Route(t, a.IPv6.Masked().String())
	for _, addr := range []netip.Addr{b.IPv4.Addr(), b.IPv6.Addr()} {
		if text, err := out.Ask("tcp", join(addr, 80)); err == nil {
			t.Errorf("the outside reaches a port at %s that is not published: %q", addr, text)
		}
	}
	// The host was no router between links, and is none now.
	out.Route(t, other.Self+"/32")
	other.Route(t, out.Self+"/32")
	networktest.Serve(t, int(other.NS), "other", "tcp", ":80")
	if text, err := out.Ask("tcp", other.Self+":80"); err == nil {
		t.Errorf("the host has become a router: %q", text)
	}
}

// TestRouter: a machine that passed packets on already still does.
func TestRouter(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes links")
	}
	must(t, setSysctl("ipv4/ip_forward", "1"))
	out, other := networktest.NewMachine(t), networktest.NewMachine(t)
	out.Route(t, other.Self+"/32")
	other.Route(t, out.Self+"/32")
	networktest.Serve(t, int(other.NS), "other", "tcp", ":80")
	s := newStand(t)
	s.attach(1)
	if text, err := out.Ask("tcp", other.Self+":80"); !answers(text, err, "other") {
		t.Errorf("the host is no router any more: %q, %v", text, err)
	}
}

// TestLoopbackGuard: 127.0.0.1 is neither reached from the outside nor from containers.
func TestLoopbackGuard(t *testing.T) {
	s := newStand(t)
	out := networktest.NewMachine(t)
	a := s.attach(1, control.Port{HostIP: "127.0.0.1", Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"}, control.Port{HostIP: "127.0.0.1", Host: 8081, HostEnd: 8081, Container: 80, Proto: "udp"})
	a.serve(t, "a", "tcp", 80)
	a.serve(t, "a", "udp", 80)
	if text, err := networktest.Ask("tcp", "127.0.0.1:8080"); !answers(text, err, "a") {
		t.Fatalf("the host asks: %q, %v", text, err)
	}
	here, err := net.ListenPacket("udp", "127.0.0.1:0")
	must(t, err)
	defer here.Close()
	port := here.LocalAddr().(*net.UDPAddr).Port
	for who, from := range map[string]int{"the outside": int(out.NS), "a container": int(a.ns.Fd())} {
		networktest.In(from, func() {
			lo, err := netlink.LinkByName("lo")
			must(t, err)
			must(t, netlink.LinkSetDown(lo))
			addr, err := netlink.ParseAddr("127.0.0.1/8")
			must(t, err)
			must(t, netlink.AddrDel(lo, addr))
			must(t, setSysctl("ipv4/conf/eth0/route_localnet", "1"))
			eth0, err := netlink.LinkByName("eth0")
			must(t, err)
			gw := net.ParseIP(out.Host)
			if who == "a container" {
				gw = a.Gateway4.AsSlice()
			}
			table := 254
			must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: &net.IPNet{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}, Gw: gw, Table: table}))
			for _, p := range []int{port, 8081} {
				c, err := net.Dial("udp", fmt.Sprintf("127.0.0.1:%d", p))
				must(t, err)
				_, err = c.Write([]byte("?"))
				must(t, err)
				c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if n, err := c.Read(make([]byte, 100)); err == nil {
					t.Errorf("%s gets %d bytes from port %d", who, n, p)
				}
				c.Close()
			}
		})
	}
	here.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, from, err := here.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("%d bytes came to 127.0.0.1 from %v", n, from)
	}
	localnet := func() string {
		v, err := sysctl("ipv4/conf/snapfs0/route_localnet")
		must(t, err)
		return v
	}
	if localnet() != "1" {
		t.Error("route_localnet is off: the test tests nothing")
	}
	s.Release(id(1), 0)
	if localnet() != "0" {
		t.Error("route_localnet stays on")
	}
}

// frame sends one from a namespace, as a container with CAP_NET_RAW can.
func (b *box) frame(t *testing.T, frame []byte) {
	t.Helper()
	networktest.In(int(b.ns.Fd()), func() {
		eth0, err := net.InterfaceByName("eth0")
		must(t, err)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		defer unix.Close(fd)
		must(t, unix.Sendto(fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: eth0.Index, Halen: 6}))
	})
}

// TestSpoofing: what a container says is its own, or is not heard.
func TestSpoofing(t *testing.T) {
	s := newStand(t)
	a, b, c := s.attach(1), s.attach(2), s.attach(3)
	b.serve(t, "b", "tcp", 80)
	if text, err := c.ask("tcp", join(b.IPv4.Addr(), 80)); !answers(text, err, "b") {
		t.Fatalf("%q, %v", text, err)
	}
	macOf := func(x *box) []byte {
		mac, err := net.ParseMAC(x.MAC)
		must(t, err)
		return mac
	}
	broadcast := bytes.Repeat([]byte{0xff}, 6)
	arp := func(ether, sender []byte, ip netip.Addr) []byte {
		f := append(append(append([]byte{}, broadcast...), ether...), 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 2)
		f = append(append(f, sender...), ip.AsSlice()...)
		return append(append(f, broadcast...), ip.AsSlice()...)
	}
	udp := func(ether []byte, from netip.Addr, to *box, port uint16) []byte {
		f := append(append(append([]byte{}, macOf(to)...), ether...), 0x08, 0)
		ip := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0}
		ip = append(append(ip, from.AsSlice()...), to.IPv4.Addr().AsSlice()...)
		var sum uint32
		for i := 0; i < 20; i += 2 {
			sum += uint32(ip[i])<<8 | uint32(ip[i+1])
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		ip[10], ip[11] = ^byte(sum>>8), ^byte(sum)
		return append(append(f, ip...), 0, 9, byte(port>>8), byte(port), 0, 9, 0, 0, 'x')
	}
	var heard net.PacketConn
	networktest.In(int(b.ns.Fd()), func() {
		var err error
		heard, err = net.ListenPacket("udp4", ":99")
		must(t, err)
	})
	defer heard.Close()
	hears := func() bool {
		heard.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, _, err := heard.ReadFrom(make([]byte, 100))
		return err == nil
	}
	a.frame(t, udp(macOf(a), a.IPv4.Addr(), b, 99))
	if !hears() {
		t.Error("a is not heard at all: the test tests nothing")
	}
	a.frame(t, udp(macOf(a), c.IPv4.Addr(), b, 99))
	a.frame(t, udp(macOf(c), a.IPv4.Addr(), b, 99))
	a.frame(t, udp(macOf(c), c.IPv4.Addr(), b, 99))
	a.frame(t, udp(macOf(a), a.Gateway4, b, 99))
	vlan := udp(macOf(a), a.IPv4.Addr(), b, 99)
	a.frame(t, append(append(append([]byte{}, vlan[:12]...), 0x88, 0xcc), vlan[12:]...))
	if hears() {
		t.Error("b hears somebody who is not")
	}
	for _, f := range [][]byte{arp(macOf(a), macOf(a), a.Gateway4), arp(macOf(a), macOf(a), b.IPv4.Addr()), arp(macOf(c), macOf(a), c.IPv4.Addr()), arp(macOf(a), macOf(c), a.IPv4.Addr())} {
		a.frame(t, f)
	}
	networktest.In(int(c.ns.Fd()), func() {
		eth0, err := netlink.LinkByName("eth0")
		must(t, err)
		list, err := netlink.NeighList(eth0.Attrs().Index, unix.AF_INET)
		must(t, err)
		for _, n := range list {
			if bytes.Equal(n.HardwareAddr, macOf(a)) && !n.IP.Equal(a.IPv4.Addr().AsSlice()) {
				t.Errorf("c believes that %s is a", n.IP)
			}
		}
	})
	if text, err := c.ask("tcp", join(b.IPv4.Addr(), 80)); !answers(text, err, "b") {
		t.Errorf("after that: %q, %v", text, err)
	}
	// A router advertisement would give everybody another way out.
	ra := append(append([]byte{0x33, 0x33, 0, 0, 0, 1}, macOf(a)...), 0x86, 0xdd)
	ra = append(ra, 0x60, 0, 0, 0, 0, 16, 58, 255)
	ll := linkLocal(macOf(a))
	ra = append(append(append(ra, ll.AsSlice()...), netip.MustParseAddr("ff02::1").AsSlice()...), 134, 0, 0, 0, 64, 0, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0)
	before := routes6(t, int(c.ns.Fd()))
	a.frame(t, ra)
	if after := routes6(t, int(c.ns.Fd())); after != before {
		t.Errorf("routes were\n%s\nand are\n%s", before, after)
	}
}

func routes6(t *testing.T, ns int) (text string) {
	networktest.In(ns, func() {
		list, err := netlink.RouteList(nil, unix.AF_INET6)
		must(t, err)
		for _, r := range list {
			text += r.String() + "\n"
		}
	})
	return text
}

// ruleset is what nftables has in all tables but ours.
func ruleset(t *testing.T, ours string) string {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	all, err := c.ListTables()
	must(t, err)
	var b strings.Builder
	show := func(v any) {
		text, err := json.Marshal(v)
		must(t, err)
		fmt.Fprintf(&b, "%T %s\n", v, text)
	}
	for _, table := range all {
		if table.Name == ours {
			continue
		}
		show(table)
		chains, err := c.ListChainsOfTableFamily(table.Family)
		must(t, err)
		for _, chain := range chains {
			if chain.Table.Name != table.Name {
				continue
			}
			show(chain)
			rules, err := c.GetRules(table, chain)
			must(t, err)
			for _, r := range rules {
				show(r)
			}
		}
		sets, err := c.GetSets(table)
		must(t, err)
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			must(t, err)
			show(s)
			show(elements)
		}
	}
	return b.String()
}

// content counts the elements of our sets.
func content(t *testing.T, bridge string) map[string]int {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	n := map[string]int{}
	for _, f := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		sets, err := c.GetSets(&nftables.Table{Name: bridge, Family: f})
		must(t, err)
		for _, s := range sets {
			elements, err := c.GetSetElements(s)
			must(t, err)
			n[s.Name] = len(elements)
		}
	}
	return n
}

func foreignTable(t *testing.T) {
	t.Helper()
	c, err := nftables.New()
	must(t, err)
	table := c.AddTable(&nftables.Table{Name: "somebody", Family: nftables.TableFamilyINet})
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: when(from("nobody0"), accept)})
	set := &nftables.Set{Table: table, Name: "ports", KeyType: nftables.TypeInetService}
	must(t, c.AddSet(set, []nftables.SetElement{{Key: []byte{0, 22}}}))
	must(t, c.Flush())
	t.Cleanup(func() {
		c.DelTable(table)
		must(t, c.Flush())
	})
}

// TestRestart: a daemon that takes over finds everything, and what has ended is gone.
func TestRestart(t *testing.T) {
	s := newStand(t)
	foreignTable(t)
	before := ruleset(t, s.o.Bridge)
	a, b := s.attach(1, tcp(8080, 80)), s.attach(2, tcp(8081, 80))
	a.serve(t, "a", "tcp", 80)
	want := content(t, s.o.Bridge)
	s.restart(func(string) bool { return true })
	if got := content(t, s.o.Bridge); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("tables have %v, want %v", got, want)
	}
	if text, err := networktest.Ask("tcp", "127.0.0.1:8080"); !answers(text, err, "a") {
		t.Errorf("after a restart: %q, %v", text, err)
	}
	if _, err := net.Listen("tcp", ":8080"); err == nil {
		t.Error("a published port is not reserved after a restart")
	}
	if e := s.Endpoint(id(2)); e == nil || e.IPv4 != b.IPv4 || e.Serial != b.Serial {
		t.Errorf("endpoint %+v, want %+v", e, b.Endpoint)
	}
	if c := s.attach(3); c.IPv4 == a.IPv4 || c.IPv4 == b.IPv4 {
		t.Errorf("%s twice", c.IPv4)
	}
	// Somebody flushes all tables; somebody removes the bridge; a daemon dies with both gone.
	for name, damage := range map[string]func(){
		"tables": func() { s.tables().delete() },
		"bridge": func() {
			l, err := netlink.LinkByName(s.o.Bridge)
			must(t, err)
			must(t, netlink.LinkDel(l))
		},
	} {
		damage()
		n := 10 + len(name)
		x := s.attach(n)
		if text, err := x.ask("tcp", join(a.IPv4.Addr(), 80)); !answers(text, err, "a") {
			t.Errorf("without %s: %q, %v", name, text, err)
		}
		s.Release(id(n), 0)
		if text, err := networktest.Ask("tcp", "127.0.0.1:8080"); !answers(text, err, "a") {
			t.Errorf("without %s: %q, %v", name, text, err)
		}
		damage()
		s.Release(id(n), 0)
		damage2 := s.attach(n + 100)
		s.Release(damage2.ID, 0)
	}
	s.restart(func(x string) bool { return x == id(1) })
	if s.Endpoint(id(2)) != nil || s.Endpoint(id(1)) == nil {
		t.Error("the wrong one is gone")
	}
	if l, err := net.Listen("tcp", ":8081"); err != nil {
		t.Errorf("the port of a container that has ended: %v", err)
	} else {
		l.Close()
	}
	s.Release(id(1), 0)
	if after := ruleset(t, s.o.Bridge); after != before {
		t.Errorf("the tables of others were\n%s\nand are\n%s", before, after)
	}
}

// What a daemon before has left can be released before this one has looked after
// its bridge, and when it cannot.
func TestReleaseWithoutBridge(t *testing.T) {
	s := newStand(t)
	s.attach(1, control.Port{Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"})
	s.attach(2)
	s.Close()
	s.open()
	s.Release(id(1), 0)
	if s.Endpoint(id(1)) != nil || s.Endpoint(id(2)) == nil || !s.haveTables() {
		t.Error("the first release did not take over from the daemon before")
	}
	s.Close()
	bridge, err := netlink.LinkByName(s.o.Bridge)
	must(t, err)
	must(t, netlink.LinkSetAlias(bridge, "somebody else's"))
	s.open()
	if err := s.Reconcile(func(string) bool { return false }); err == nil {
		t.Error("a bridge of somebody else's was taken over")
	}
	s.Release(id(2), 0)
	if n := s.reapNow(0); n != 1 || s.Endpoint(id(2)) != nil {
		t.Errorf("%d endpoints to be reaped, want the one that was released", n)
	}
	must(t, netlink.LinkSetAlias(bridge, s.alias()))
	s.attach(3)
	if n := s.reapNow(0); n != 0 {
		t.Errorf("%d endpoints were not reaped", n)
	}
}

// Who flushes all tables in the middle of it must not stop a daemon that takes over.
func TestReconcileWithoutTables(t *testing.T) {
	s := newStand(t)
	s.attach(1)
	s.restart(func(string) bool {
		must(t, (&tables{bridge: s.o.Bridge}).delete())
		return false
	})
	if s.Endpoint(id(1)) != nil || !s.haveTables() {
		t.Error("the tables were not made anew")
	}
}

// TestKilledAnywhere: whatever a daemon had done when it was killed, the next one undoes it.
func TestKilledAnywhere(t *testing.T) {
	s := newStand(t)
	s.attach(1)
	for step := range 3 {
		e, err := s.allocate(Request{ID: id(2), Ports: []control.Port{tcp(8082, 80)}})
		must(t, err)
		if step > 0 {
			ns, err := openNamespace(nil, true)
			must(t, err)
			mac, _ := net.ParseMAC(e.MAC)
			must(t, s.addLink(e, mac, ns.file))
			if step > 1 {
				link, err := s.h.LinkByName(e.Link)
				must(t, err)
				must(t, s.tables().add(entry{&e.Endpoint, link.Attrs().Index}))
			}
			defer ns.close()
		}
		s.restart(func(x string) bool { return x == id(1) })
		s.reapNow(0)
		if got := content(t, s.o.Bridge); s.Endpoint(id(2)) != nil || got["own4"] != 1 || got["any4"] != 0 || got["ports"] != 1 {
			t.Errorf("step %d: tables have %v", step, got)
		}
		if _, err := s.h.LinkByName(e.Link); err == nil {
			t.Errorf("step %d: link %s is left", step, e.Link)
		}
	}
	// A link of which no record is left.
	ns, err := openNamespace(nil, true)
	must(t, err)
	defer ns.close()
	must(t, addVeth("sv0.stray", s.index, 1500, net.HardwareAddr{2, 0, 0, 0, 0, 1}, ns.file))
	s.restart(func(string) bool { return true })
	if _, err := s.h.LinkByName("sv0.stray"); err == nil {
		t.Error("a stray link is left")
	}
	must(t, os.WriteFile(filepath.Join(s.o.Run, id(9)+".json"), []byte("{"), 0o600)) // a torn record
	s.restart(func(string) bool { return true })
	if _, err := os.Stat(filepath.Join(s.o.Run, id(9)+".json")); err == nil {
		t.Error("a torn record is left")
	}
}

// TestOfUsers: the network of a user namespace is connected like any other, and stays that namespace's.
func TestOfUsers(t *testing.T) {
	s := newStand(t, func(o *Options) { o.Ahead = 1 })
	m, err := mounts.ParseIDMap("0:300000:65536", "0:300000:65536")
	must(t, err)
	var boxes []*box
	for n := range 2 {
		user, inner, err := m.UserAndNetNS()
		must(t, err)
		defer user.Close()
		e, ns, err := s.Attach(s.context(), Request{ID: id(n + 1), Namespace: inner})
		must(t, err)
		must(t, inner.Close())
		defer ns.Close()
		fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
		must(t, err)
		owner := os.NewFile(uintptr(fd), "owner")
		defer owner.Close()
		a, err := owner.Stat()
		must(t, err)
		b, err := user.Stat()
		must(t, err)
		if !os.SameFile(a, b) {
			t.Error("the network belongs to another user namespace")
		}
		boxes = append(boxes, &box{e, ns})
	}
	boxes[1].settle(t)
	networktest.Serve(t, int(boxes[1].ns.Fd()), "two", "tcp", ":80")
	for _, a := range []netip.Prefix{boxes[1].IPv4, boxes[1].IPv6} {
		if !a.IsValid() {
			continue
		}
		var text string
		var err error
		networktest.In(int(boxes[0].ns.Fd()), func() { text, err = networktest.Ask("tcp", netip.AddrPortFrom(a.Addr(), 80).String()) })
		if err != nil || !strings.HasPrefix(text, "two") {
			t.Errorf("one asks the other at %s: %q, %v", a.Addr(), text, err)
		}
	}
}

// TestMany: a thousand containers, one after another, leave nothing.
func TestMany(t *testing.T) {
	s := newStand(t)
	n := 1000
	if testing.Short() {
		n = 100
	}
	files := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(list)
	}
	s.attach(0)
	before := files()
	for i := 1; i <= n; i++ {
		e, ns, err := s.Attach(t.Context(), Request{ID: id(i), Ports: []control.Port{{Container: 80, Proto: "tcp"}}})
		must(t, err)
		ns.Close()
		s.Release(id(i), e.Serial)
	}
	s.reapNow(0)
	if after := files(); after > before+1 {
		t.Errorf("%d descriptors, before %d", after, before)
	}
	links, err := s.h.LinkList()
	must(t, err)
	for _, l := range links {
		if l.Attrs().MasterIndex == s.index && l.Attrs().Name != s.endpoints[id(0)].Link {
			t.Errorf("link %s is left", l.Attrs().Name)
		}
	}
	if got := content(t, s.o.Bridge); got["ports"] != 1 || got["own4"] != 1 || got["own6"] != 2 || got["any4"]+got["any6"] != 0 {
		t.Errorf("tables have %v", got)
	}
	if len(s.pool4.used) != 1 || len(s.pool6.used) != 1 || len(s.endpoints) != 1 || len(s.gone) != 0 {
		t.Errorf("%d and %d addresses, %d endpoints, %d gone", len(s.pool4.used), len(s.pool6.used), len(s.endpoints), len(s.gone))
	}
	records, err := filepath.Glob(filepath.Join(s.o.Run, strings.Repeat("?", idLen)+".json"))
	must(t, err)
	if len(records) != 1 {
		t.Errorf("%d records are left", len(records))
	}
}

// stocked sees to it that there is one connection made ahead, and returns it.
func (s *stand) stocked() *endpoint {
	s.t.Helper()
	_, err := s.makeSpare()
	must(s.t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spares) != 1 {
		s.t.Fatalf("%d connections are made ahead, want 1", len(s.spares))
	}
	return s.spares[0].e
}

// TestAhead: a connection that was made ahead is as good as another, and nothing is left of it.
func TestAhead(t *testing.T) {
	s := newStand(t, func(o *Options) { o.Ahead = 1 })
	a := s.attach(1, tcp(8080, 80))
	a.serve(t, "a", "tcp", 80)
	ready := s.stocked()
	if s.stocked() != ready {
		t.Error("there was one, and another was made")
	}
	b := s.attach(2, tcp(8081, 80))
	if b.IPv4 != ready.IPv4 || b.Link != ready.Link {
		t.Errorf("%+v is not the one that was made ahead", b.Endpoint)
	}
	b.serve(t, "b", "tcp", 80)
	for _, ask := range []func(string, string) (string, error){networktest.Ask, a.ask} {
		if text, err := ask("tcp", join(b.IPv4.Addr(), 80)); !answers(text, err, "b") {
			t.Errorf("%q, %v", text, err)
		}
	}
	if text, err := networktest.Ask("tcp", "127.0.0.1:8081"); !answers(text, err, "b") {
		t.Errorf("%q, %v", text, err)
	}
	ready = s.stocked()
	if _, _, err := s.Attach(t.Context(), Request{ID: id(3), Ports: []control.Port{tcp(8080, 80)}}); err == nil {
		t.Error("a port twice")
	}
	if s.stocked() != ready {
		t.Error("after a failure it is not kept for the next")
	}
	l, err := netlink.LinkByName(s.o.Bridge) // somebody removes the bridge under it
	must(t, err)
	must(t, netlink.LinkDel(l))
	c := s.attach(3)
	if text, err := c.ask("tcp", join(a.IPv4.Addr(), 80)); !answers(text, err, "a") {
		t.Errorf("%q, %v", text, err)
	}
	s.stocked()
	s.restart(func(string) bool { return true })
	s.reapNow(0)
	if got := content(t, s.o.Bridge); got["ports"] != 3 || got["own4"] != 3 {
		t.Errorf("tables have %v", got)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.pool4.used) != 3 {
		t.Errorf("%d addresses are in use", len(s.pool4.used))
	}
}

// TestRelay: a port is published at ::1, too, whatever the container listens at, and after a restart.
func TestRelay(t *testing.T) {
	s := newStand(t)
	a := s.attach(1, tcp(8080, 80), tcp(8081, 81), control.Port{HostIP: "::1", Host: 8082, HostEnd: 8082, Container: 80, Proto: "tcp"}, tcp(8083, 9))
	a.serve(t, "a", "tcp", 80)
	networktest.Serve(t, int(a.ns.Fd()), "four", "tcp", "0.0.0.0:81")
	check := func(when string) {
		t.Helper()
		for port, name := range map[int]string{8080: "a", 8081: "four", 8082: "a"} {
			for range 3 {
				if text, err := networktest.Ask("tcp", fmt.Sprintf("[::1]:%d", port)); !answers(text, err, name) {
					t.Errorf("%s: port %d: %q, %v", when, port, text, err)
				}
			}
		}
		if text, err := networktest.Ask("tcp", "[::1]:8083"); err == nil {
			t.Errorf("%s: where nobody listens: %q", when, text)
		}
	}
	check("at first")
	held, err := net.Dial("tcp", "[::1]:8080")
	must(t, err)
	defer held.Close()
	s.restart(func(string) bool { return true })
	check("after a restart")
	held, err = net.Dial("tcp", "[::1]:8080")
	must(t, err)
	defer held.Close()
	s.Release(id(1), 0) // ends connections
	if _, err := net.Dial("tcp", "[::1]:8080"); err == nil {
		t.Error("it is still listened at")
	}
}

// TestTrusting: a kernel without filters on bridges has all the rest.
func TestTrusting(t *testing.T) {
	s := newStand(t)
	s.setup.Lock()
	must(t, s.ensure())
	s.setup.Unlock()
	s.tables().trusting = true
	must(t, s.repair())
	c, err := nftables.New()
	must(t, err)
	c.DelTable(&nftables.Table{Name: s.o.Bridge, Family: nftables.TableFamilyBridge})
	must(t, c.Flush())
	a := s.attach(1, tcp(8080, 80))
	a.serve(t, "a", "tcp", 80)
	if text, err := networktest.Ask("tcp", "127.0.0.1:8080"); !answers(text, err, "a") {
		t.Errorf("%q, %v", text, err)
	}
	s.Release(id(1), 0)
	list, err := c.ListTablesOfFamily(nftables.TableFamilyBridge)
	must(t, err)
	for _, table := range list {
		if table.Name == s.o.Bridge {
			t.Error("there is a table of family bridge")
		}
	}
}

// TestTrustingLoopback: where senders are not filtered, a container is all the same not taken for this machine.
func TestTrustingLoopback(t *testing.T) {
	s := newStand(t)
	a := s.attach(1, control.Port{HostIP: "127.0.0.1", Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"})
	s.tables().trusting = true
	must(t, s.repair())
	c, err := nftables.New()
	must(t, err)
	c.DelTable(&nftables.Table{Name: s.o.Bridge, Family: nftables.TableFamilyBridge})
	must(t, c.Flush())
	for _, l := range []string{"all", s.o.Bridge} { // else the kernel drops what no route leads back to
		name := "ipv4/conf/" + l + "/rp_filter"
		old, err := sysctl(name)
		must(t, err)
		must(t, setSysctl(name, "0"))
		defer setSysctl(name, old)
	}
	here, err := net.ListenPacket("udp4", join(a.Gateway4, 0))
	must(t, err)
	defer here.Close()
	networktest.In(int(a.ns.Fd()), func() {
		must(t, setSysctl("ipv4/conf/eth0/route_localnet", "1"))
		for _, from := range []string{"127.0.0.2", a.IPv4.Addr().String()} {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("udp4", here.LocalAddr().String())
			must(t, err)
			_, err = c.Write([]byte(from))
			must(t, err)
			must(t, c.Close())
		}
	})
	b := make([]byte, 100)
	must(t, here.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, _, err := here.ReadFrom(b)
	if string(b[:n]) != a.IPv4.Addr().String() {
		t.Errorf("the first datagram that is heard is of %q, %v", b[:n], err)
	}
}

// TestDatagrams: who sends from one port, before there is a container and after it was replaced, is heard.
func TestDatagrams(t *testing.T) {
	s := newStand(t)
	out := networktest.NewMachine(t)
	udp := control.Port{Host: 8053, HostEnd: 8053, Container: 53, Proto: "udp"}
	var clients []net.Conn
	for ns, addr := range map[int]string{-1: "127.0.0.1:8053", int(out.NS): out.Host + ":8053"} {
		var c net.Conn
		var err error
		if ns < 0 {
			c, err = net.Dial("udp", addr)
		} else {
			networktest.In(ns, func() { c, err = net.Dial("udp", addr) })
		}
		must(t, err)
		defer c.Close()
		clients = append(clients, c)
	}
	send := func(c net.Conn) string {
		for range 2 { // an error of what was sent before comes first
			c.Write([]byte("?"))
			c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
			b := make([]byte, 100)
			if n, err := c.Read(b); err == nil {
				return string(b[:n])
			}
		}
		return ""
	}
	for i, name := range []string{"", "first", "second", "third", "fourth"} {
		if i > 2 {
			udp.HostIP = "127.0.0.1"
		}
		if name != "" {
			s.attach(i, udp).serve(t, name, "udp", 53)
		}
		for _, c := range clients {
			want := name
			if i > 2 && c.RemoteAddr().String() != "127.0.0.1:8053" {
				want = ""
			}
			if got, _, _ := strings.Cut(send(c), " "); got != want {
				t.Errorf("%s is answered by %q, want %q", c.RemoteAddr(), got, want)
			}
		}
		s.Release(id(i), 0)
	}
}

// TestFlushed: tables that somebody removes come back by themselves.
func TestFlushed(t *testing.T) {
	s := newStand(t)
	s.attach(1, tcp(8080, 80)).serve(t, "a", "tcp", 80)
	want := fmt.Sprint(content(t, s.o.Bridge))
	for range 3 {
		other := &tables{bridge: s.o.Bridge} // as "nft flush ruleset" does
		must(t, other.delete())
		for deadline := time.Now().Add(10 * time.Second); !s.haveTables(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the tables do not come back")
			}
		}
		if got := fmt.Sprint(content(t, s.o.Bridge)); got != want {
			t.Errorf("tables have %s, want %s", got, want)
		}
	}
	if text, err := networktest.Ask("tcp", "127.0.0.1:8080"); !answers(text, err, "a") {
		t.Errorf("%q, %v", text, err)
	}
}

// TestBridgeRemoved: containers that run have their network again when somebody removes
// the bridge, and not only when the next one starts. One that nobody needs stays away.
func TestBridgeRemoved(t *testing.T) {
	s := newStand(t)
	a, b := s.attach(1, tcp(8080, 80)), s.attach(2)
	a.serve(t, "a", "tcp", 80)
	remove := func() {
		l, err := netlink.LinkByName(s.o.Bridge)
		must(t, err)
		must(t, netlink.LinkDel(l))
	}
	remove()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		text, err := networktest.Ask("tcp", "127.0.0.1:8080")
		if answers(text, err, "a") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the bridge does not come back: %q, %v", text, err)
		}
	}
	if text, err := b.ask("tcp", join(a.IPv4.Addr(), 80)); !answers(text, err, "a") {
		t.Errorf("another container: %q, %v", text, err)
	}
	s.Release(id(1), 0)
	s.Release(id(2), 0)
	remove()
	if !s.bridgeGone() && s.bridgeInUse() != 0 {
		t.Error("a bridge without containers is in use")
	}
	s.attach(3)
}

// TestFlushedMeanwhile: a link that is made anew, as the tables were gone, is in them once.
func TestFlushedMeanwhile(t *testing.T) {
	s := newStand(t)
	a := s.attach(1)
	a.serve(t, "a", "tcp", 80)
	for i := 2; i < 8; i++ {
		other := &tables{bridge: s.o.Bridge}
		must(t, other.delete())
		c := s.attach(i)
		if text, err := c.ask("tcp", join(a.IPv4.Addr(), 80)); !answers(text, err, "a") {
			t.Errorf("%q, %v", text, err)
		}
		for deadline := time.Now().Add(10 * time.Second); !s.haveTables(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the tables do not come back")
			}
		}
		if got := content(t, s.o.Bridge); got["ports"] != i || got["own4"] != i {
			t.Fatalf("with %d containers the tables have %v", i, got)
		}
	}
}

func FuzzTableDeleted(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, unix.NFT_MSG_DELTABLE, unix.NFNL_SUBSYS_NFTABLES, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add(make([]byte, 40))
	f.Add([]byte{32, 0, 0, 0, unix.RTM_DELLINK, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		tableDeleted(b)
		if linkDeleted(b, 7) && len(b) < unix.NLMSG_HDRLEN+unix.SizeofIfInfomsg {
			t.Errorf("%v is about a link", b)
		}
		if linkDeleted(b, 0) {
			t.Errorf("%v is about no link", b)
		}
	})
}

// TestSmallSubnet: when all addresses are given out, one that is only waiting for its link is free.
func TestSmallSubnet(t *testing.T) {
	s := newStand(t, func(o *Options) { o.IPv4, o.NoIPv6 = prefix("10.99.0.0/30"), true })
	a := s.attach(1)
	if a.IPv6.IsValid() || a.IPv4 != netip.MustParsePrefix("10.99.0.2/30") {
		t.Errorf("%+v", a.Endpoint)
	}
	if _, _, err := s.Attach(t.Context(), Request{ID: id(2)}); !errors.Is(err, errNoAddress) {
		t.Errorf("a second container: %v", err)
	}
	if _, _, err := s.Attach(t.Context(), Request{ID: id(2), IPv6: addr("fd00::5")}); err == nil {
		t.Error("an IPv6 address without IPv6")
	}
	s.Release(id(1), 0)
	if b := s.attach(2); b.IPv4 != a.IPv4 {
		t.Errorf("%s, want %s", b.IPv4, a.IPv4)
	}
	// Its namespace is still ours, and the old link with it: it is silent.
	if text, err := a.ask("udp", "10.99.0.1:9"); err == nil {
		t.Errorf("a released container hears %q", text)
	}
}

// TestOthersBridge: a bridge that is somebody else's stays so.
func TestOthersBridge(t *testing.T) {
	s := newStand(t, func(o *Options) { o.Bridge = "theirs0" })
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "theirs0"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	if _, _, err := s.Attach(t.Context(), Request{ID: id(1)}); err == nil || !strings.Contains(err.Error(), "set bridge in [network]") {
		t.Errorf("Attach on another one's bridge: %v", err)
	}
}

// TestTakenSubnet: the choice is kept, unless a route has come in its way.
func TestTakenSubnet(t *testing.T) {
	s := newStand(t)
	first := s.attach(1).IPv4.Masked()
	s.Release(id(1), 0)
	s.restart(func(string) bool { return false })
	if again := s.attach(1).IPv4.Masked(); again != first {
		t.Errorf("%s, and before %s", again, first)
	}
	s.Release(id(1), 0)
	s.Close()
	s.remove()
	out := networktest.NewMachine(t)
	l, err := netlink.LinkByName(out.Link)
	must(t, err)
	dst, err := netlink.ParseIPNet(first.String())
	must(t, err)
	must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst}))
	s.open()
	if now := s.attach(1).IPv4.Masked(); now == first {
		t.Errorf("%s overlaps a route", now)
	}
}

func TestTaken(t *testing.T) {
	s := newStand(t)
	a := s.attach(1, tcp(8080, 80), control.Port{HostIP: "127.0.0.1", Host: 9000, HostEnd: 9000, Container: 81, Proto: "tcp"})
	_ = a
	for name, row := range map[string]struct {
		p  control.Port
		by string
	}{
		"same":              {tcp(8080, 90), id(1)},
		"of one address":    {control.Port{HostIP: "127.0.0.1", Host: 8080, HostEnd: 8080, Container: 80, Proto: "tcp"}, id(1)},
		"of every address":  {tcp(9000, 80), id(1)},
		"range that is not": {control.Port{Host: 8080, HostEnd: 8081, Container: 80, Proto: "tcp"}, ""},
	} {
		_, ns, err := s.Attach(t.Context(), Request{ID: id(2), Ports: []control.Port{row.p}})
		taken, ok := errors.AsType[*TakenError](err)
		if row.by == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			ns.Close()
			s.Release(id(2), 0)
			continue
		}
		if !ok || taken.By != row.by {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(s.pool4.used) != 1+len(s.gone) {
		t.Errorf("%d addresses, %d gone", len(s.pool4.used), len(s.gone))
	}
}

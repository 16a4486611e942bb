package network

import (
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/snapfs/snapfs/internal/network/networktest"
)

// TestOtherBridge: frames between the ports of a bridge that is not ours, and that
// was there before the host forwarded, go on as before, although br_netfilter shows them to our rules.
func TestOtherBridge(t *testing.T) {
	s := newStand(t)
	if b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables"); err != nil || string(b) != "1\n" {
		t.Skip("needs the kernel module br_netfilter")
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other0"
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	must(t, netlink.LinkAdd(bridge))
	t.Cleanup(func() { netlink.LinkDel(bridge) })
	must(t, netlink.LinkSetUp(bridge))
	machines := map[string]*networktest.Machine{"192.0.2.1/24": networktest.NewMachine(t), "192.0.2.2/24": networktest.NewMachine(t)}
	for addr, m := range machines {
		port, err := netlink.LinkByName(m.Link)
		must(t, err)
		must(t, netlink.LinkSetMaster(port, bridge))
		there, err := netlink.NewHandleAt(m.NS)
		must(t, err)
		defer there.Close()
		eth, err := there.LinkByName("eth0")
		must(t, err)
		a, err := netlink.ParseAddr(addr)
		must(t, err)
		must(t, there.AddrAdd(eth, a))
	}
	networktest.Serve(t, int(machines["192.0.2.1/24"].NS), "neighbour", "tcp", ":80")
	ask := func() (string, error) { return machines["192.0.2.2/24"].Ask("tcp", "192.0.2.1:80") }
	text, err := ask()
	for range 5 { // the first packet may be lost, before the kernel knows that a port can be used
		if err == nil {
			break
		}
		text, err = ask()
	}
	if !answers(text, err, "neighbour") {
		t.Fatalf("before: %q, %v", text, err)
	}
	s.attach(1)
	if text, err := ask(); !answers(text, err, "neighbour") {
		t.Errorf("with a container: %q, %v", text, err)
	}
}

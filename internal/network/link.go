package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	goruntime "runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// containerLink is the container's end.
const containerLink = "eth0"

// netlinkTimeout bounds the wait for an answer of the kernel.
const netlinkTimeout = 10 * time.Second

func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	return h, h.SetSocketTimeout(netlinkTimeout)
}

// A namespace is a network namespace that nobody is in, and a socket into it.
type namespace struct {
	file *os.File
	h    *netlink.Handle
}

func (n *namespace) close() {
	n.h.Close()
	n.file.Close()
}

// openNamespace opens a network namespace in which there are no links yet, or makes
// one if inner is nil, by taking a thread there and back. Its
// links will not listen to router advertisements: what could send them is another container.
func openNamespace(inner *os.File, v6 bool) (*namespace, error) {
	type result struct {
		n   *namespace
		err error
	}
	done := make(chan result, 1)
	go func() { // ends with the result
		goruntime.LockOSThread()
		n, back, err := enter(inner, v6)
		if back == nil {
			goruntime.UnlockOSThread() // else the thread, which is lost somewhere, ends with us
		}
		done <- result{n, errors.Join(err, back)}
	}()
	r := <-done
	if r.err != nil && r.n != nil {
		r.n.close()
		r.n = nil
	}
	return r.n, r.err
}

// enter is openNamespace on its thread. back is why that did not come home.
func enter(inner *os.File, v6 bool) (n *namespace, back, err error) {
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, nil, err
	}
	defer home.Close()
	if inner != nil {
		err = unix.Setns(int(inner.Fd()), unix.CLONE_NEWNET)
	} else {
		err = unix.Unshare(unix.CLONE_NEWNET)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("new network namespace: %w", err)
	}
	n, err = openHere(v6)
	if berr := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); berr != nil {
		back = fmt.Errorf("return from a network namespace: %w", berr)
	}
	return n, back, err
}

func openHere(v6 bool) (*namespace, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	if v6 {
		for name, value := range map[string]string{"accept_ra": "0", "accept_dad": "0", "addr_gen_mode": "0", "disable_ipv6": "0"} {
			err = errors.Join(err, setSysctl("ipv6/conf/default/"+name, value))
		}
	} else {
		err = trySysctl("ipv6/conf/all/disable_ipv6", "1")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	h, err := newHandle()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &namespace{f, h}, nil
}

// addVeth makes a pair of links: name on bridge, up, and containerLink in ns. It
// is one message, where package netlink would need three.
func addVeth(name string, bridge, mtu int, mac net.HardwareAddr, ns *os.File) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	head := nl.NewIfInfomsg(unix.AF_UNSPEC)
	head.Flags, head.Change = unix.IFF_UP, unix.IFF_UP
	req.AddData(head)
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu))))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(bridge))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC) // it cannot be up before it has a peer
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(containerLink))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, mac)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns.Fd())))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// configure gives the container's end its addresses and routes.
func (n *namespace) configure(e *control.Endpoint) error {
	lo, err := n.h.LinkByIndex(1)
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if err := n.h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	link, err := n.h.LinkByName(containerLink)
	if err != nil {
		return fmt.Errorf("%s: %w", containerLink, err)
	}
	if err := n.h.LinkSetUp(link); err != nil {
		return fmt.Errorf("%s: %w", containerLink, err)
	}
	for _, a := range []struct {
		addr    netip.Prefix
		gateway netip.Addr
	}{{e.IPv4, e.Gateway4}, {e.IPv6, e.Gateway6}} {
		if !a.addr.IsValid() {
			continue
		}
		if err := addAddress(n.h, link, a.addr); err != nil {
			return fmt.Errorf("%s: address %s: %w", containerLink, a.addr, err)
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: a.gateway.AsSlice()}
		if err := n.h.RouteAdd(route); err != nil {
			return fmt.Errorf("%s: route by %s: %w", containerLink, a.gateway, err)
		}
	}
	_, err = n.h.LinkByIndex(link.Attrs().Index) // see connect
	return err
}

// addAddress adds an address that can be used at once: nobody else has it.
func addAddress(h *netlink.Handle, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	} else {
		a.Broadcast = net.IPv4zero // none is needed
	}
	return h.AddrReplace(link, a)
}

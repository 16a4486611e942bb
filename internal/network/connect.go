package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// connect makes namespace and link, if there is no namespace yet, and lets the container in.
func (s *Service) connect(e *endpoint, ns *os.File) (_ *os.File, err error) {
	if ns == nil {
		if ns, err = s.make(e); err != nil {
			return nil, err
		}
	}
	if err := s.admit(e); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// make makes namespace and link. Nobody listens to the link yet.
func (s *Service) make(e *endpoint) (_ *os.File, err error) {
	ns, err := openNamespace(e.inner, e.IPv6.IsValid())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ns.file.Close()
		}
	}()
	defer ns.h.Close()
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return nil, err
	}
	if err := s.addLink(e, mac, ns.file); err != nil {
		return nil, fmt.Errorf("link %s: %w", e.Link, err)
	}
	if err := ns.configure(&e.Endpoint); err != nil {
		return nil, err
	}
	// Links are asked for only now that both ends are up: that one can be used is
	// known by work in the background, unless somebody asks (rtnl_getlink in
	// net/core/rtnetlink.c, since Linux 6.9). Else the first packet may be lost, which
	// costs a second. The bridge itself can be used since it has a port.
	host, err := s.h.LinkByName(e.Link)
	if err != nil {
		return nil, fmt.Errorf("link %s: %w", e.Link, err)
	}
	s.mu.Lock()
	e.index = host.Attrs().Index
	bridge, alone := s.index, len(s.endpoints) <= 1
	s.mu.Unlock()
	if alone {
		if _, err := s.h.LinkByIndex(bridge); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", s.Bridge, err)
		}
	}
	return ns.file, nil
}

// admit lets the container in.
func (s *Service) admit(e *endpoint) error {
	in := s.entryOf(e)
	if len(e.Ports) > 0 {
		// Where br_netfilter is at work, what a container sends to its own published
		// port is redirected on the bridge, and goes out where it came in.
		link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: in.index}}
		if err := s.h.LinkSetHairpin(link, true); err != nil {
			return fmt.Errorf("link %s: hairpin: %w", e.Link, err)
		}
	}
	if err := s.tables().add(in); err != nil {
		return err
	}
	if err := s.openLoopback(e); err != nil {
		return err
	}
	s.relays(e)
	if err := s.forgetFlows(e); err != nil { // they end by themselves, when their clients are silent for long enough
		s.Log.Warn("flows of published ports", "container", e.ID, "err", err)
	}
	return nil
}

// forgetFlows has the kernel forget where datagrams for e's ports went until now:
// a client that goes on sending from one port would never be redirected, or still to a container that has ended.
func (s *Service) forgetFlows(e *endpoint) error {
	filters := map[netlink.InetFamily][]netlink.CustomConntrackFilter{}
	for _, b := range e.Ports {
		if b.Proto != "udp" {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if b.HostIP.Is6() {
			family = unix.AF_INET6
		}
		f := &netlink.ConntrackFilter{}
		if err := errors.Join(f.AddProtocol(unix.IPPROTO_UDP), f.AddPort(netlink.ConntrackOrigDstPort, b.Host)); err != nil {
			return err
		}
		if !b.HostIP.IsUnspecified() { // what others ask of this port elsewhere goes on
			if err := f.AddIP(netlink.ConntrackOrigDstIP, b.HostIP.AsSlice()); err != nil {
				return err
			}
		}
		filters[family] = append(filters[family], f)
	}
	for family, list := range filters {
		if _, err := s.h.ConntrackDeleteFilters(netlink.ConntrackTable, family, list...); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) entryOf(e *endpoint) entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return entry{&e.Endpoint, e.index}
}

// relays begins to relay for an endpoint, once.
func (s *Service) relays(e *endpoint) {
	r := newRelay(e, s.Log)
	s.mu.Lock()
	old := e.relay
	e.relay = r
	s.mu.Unlock()
	old.close()
}

// addLink makes the link. What is in its way is left of a namespace that the
// kernel has not come to remove.
func (s *Service) addLink(e *endpoint, mac net.HardwareAddr, ns *os.File) error {
	s.mu.Lock()
	bridge, mtu := s.index, s.mtu
	s.mu.Unlock()
	err := addVeth(e.Link, bridge, mtu, mac, ns)
	switch {
	case errors.Is(err, unix.EEXIST):
		if err := s.deleteLink(e.Link); err != nil {
			return err
		}
	case errors.Is(err, unix.EXFULL): // 1023 ports (BR_MAX_PORTS, net/bridge/br_private.h)
		s.reapNow(0)
	case errors.Is(err, unix.EINVAL):
		if _, berr := s.h.LinkByIndex(bridge); berr != nil { // it was removed
			return unix.ENODEV
		}
		return err
	default:
		return err
	}
	err = addVeth(e.Link, bridge, mtu, mac, ns)
	if errors.Is(err, unix.EXFULL) {
		return fmt.Errorf("the bridge %s is full: no more than 1023 containers can be on it (%w)", s.Bridge, err)
	}
	return err
}

func (s *Service) deleteLink(name string) error {
	l, err := s.h.LinkByName(name)
	if err == nil {
		err = s.h.LinkDel(l)
	}
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// onLoopback says whether an endpoint is published at 127.0.0.0/8.
func onLoopback(e *control.Endpoint) bool {
	return slices.ContainsFunc(e.Ports, func(b control.Binding) bool {
		return b.HostIP.Is4() && (b.HostIP.IsUnspecified() || b.HostIP.IsLoopback())
	})
}

// openLoopback lets packets from 127.0.0.1 leave by our bridge, as long as a
// port is published there. With the switch, which is that of one link, the bridge's, what
// comes from a container for 127.0.0.0/8 would be delivered: our table drops it (CVE-2020-8558).
func (s *Service) openLoopback(e *endpoint) error {
	if !onLoopback(&e.Endpoint) {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return setSysctl("ipv4/conf/"+s.Bridge+"/route_localnet", "1")
}

package network

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ensure sees to it that there is a bridge with its tables. setup is held.
func (s *Service) ensure() error {
	if s.ready.Load() {
		return nil
	}
	if s.h == nil {
		h, err := newHandle()
		if err != nil {
			return err
		}
		s.h = h
	}
	if err := s.open(); err != nil {
		return fmt.Errorf("bridge %s: %w", s.Bridge, err)
	}
	return nil
}

// prepare is ensure for who does not hold setup, which is held while a spare is made, too.
func (s *Service) prepare() error {
	if s.ready.Load() {
		return nil
	}
	s.setup.Lock()
	defer s.setup.Unlock()
	return s.ensure()
}

// repair is ensure after somebody has removed what is ours.
func (s *Service) repair() error {
	s.setup.Lock()
	defer s.setup.Unlock()
	s.ready.Store(false)
	s.dropSpares(0)
	return s.ensure()
}

func (s *Service) open() error {
	bridge, err := s.findBridge()
	if err != nil {
		return err
	}
	subnet4, subnet6, err := s.subnets(bridge)
	if err != nil {
		return err
	}
	mtu := s.mtuOf()
	if bridge == nil {
		if bridge, err = s.makeBridge(mtu, subnet4); err != nil {
			return err
		}
	}
	s.adopt(bridge.Attrs().Index, mtu, subnet4, subnet6)
	if err := s.address(bridge); err != nil {
		return err
	}
	if err := s.links(bridge.Attrs().Index); err != nil {
		return err
	}
	_, err = s.fwd.enable(subnet6.IsValid(), s.Bridge)
	if err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	if err := s.reserveAgain(); err != nil {
		return err
	}
	t := &tables{bridge: s.Bridge, subnet4: subnet4, subnet6: subnet6, quiet4: s.fwd.Quiet4, quiet6: s.fwd.Quiet6}
	if old := s.tables(); old != nil {
		t.trusting = old.trusting // the kernel is the same
	}
	list, silent := s.entries()
	if err := t.replace(list, silent); err != nil {
		return err
	}
	if t.trusting {
		s.Log.Warn("this kernel cannot filter on bridges (CONFIG_NF_TABLES_BRIDGE): containers can use each other's addresses")
	}
	if err := s.fwd.apply(subnet6.IsValid()); err != nil {
		return fmt.Errorf("forwarding: %w", err)
	}
	for _, e := range list {
		if onLoopback(e.Endpoint) {
			if err := setSysctl("ipv4/conf/"+s.Bridge+"/route_localnet", "1"); err != nil {
				return err
			}
			break
		}
	}
	s.mu.Lock()
	old := s.t
	s.t = t
	s.mu.Unlock()
	s.ready.Store(true)
	if old != nil {
		return old.close()
	}
	s.attend(func() { s.watch(s.base, s.watchedTables()) })
	s.attend(func() { s.watch(s.base, s.watchedBridge()) })
	return nil
}

// attend runs f in the background, unless Close waits for those that are there already.
func (s *Service) attend(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.base.Err() == nil {
		s.reaping.Go(f)
	}
}

// alias marks a bridge as this daemon's.
func (s *Service) alias() string {
	a := "snapfs " + s.Root
	return a[:min(len(a), 255)] // IFALIASZ
}

// findBridge returns the bridge, nil if there is none.
func (s *Service) findBridge() (netlink.Link, error) {
	l, err := s.h.LinkByName(s.Bridge)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if a := l.Attrs(); l.Type() != "bridge" || a.Alias != s.alias() {
		return nil, fmt.Errorf("there is a link of that name that this daemon has not made (%s %q): set bridge in [network] to another name", l.Type(), a.Alias)
	}
	return l, nil
}

// makeBridge makes the bridge. Its hardware address is made of its IPv4 address, as those of
// containers are: one that is made anew is still known to those that run.
func (s *Service) makeBridge(mtu int, subnet netip.Prefix) (netlink.Link, error) {
	mac := hardware(newPool(subnet).gateway())
	snooping := false // there is nobody to ask who listens
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Alias = s.Bridge, mtu, mac[:], s.alias()
	if err := s.h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return nil, err
	}
	l, err := s.h.LinkByName(s.Bridge)
	if err != nil {
		return nil, err
	}
	return l, s.h.LinkSetAlias(l, s.alias()) // Linux takes none at creation
}

// mtuOf is what fits through the link of the default route.
func (s *Service) mtuOf() int {
	if s.MTU != 0 {
		return s.MTU
	}
	mtu := 1500
	routes, err := s.h.RouteList(nil, unix.AF_INET)
	if err != nil {
		return mtu
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			continue
		}
		if l, err := s.h.LinkByIndex(r.LinkIndex); err == nil && l.Attrs().MTU >= 576 {
			mtu = min(mtu, l.Attrs().MTU)
		}
	}
	return mtu
}

// choice is the content of network.json.
type choice struct {
	IPv4, IPv6 netip.Prefix
}

// subnets are those configured, those chosen before, or new ones.
func (s *Service) subnets(bridge netlink.Link) (v4, v6 netip.Prefix, err error) {
	file := filepath.Join(s.Root, "network.json")
	var old choice
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &old)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.Log.Warn("the choice of subnets is lost; choosing again", "err", err)
		old = choice{}
	}
	taken, err := s.routes(bridge)
	if err != nil {
		return v4, v6, err
	}
	now := choice{s.IPv4, s.IPv6}
	if !now.IPv4.IsValid() {
		list := candidates()
		if CheckSubnet(old.IPv4) == nil && old.IPv4.Addr().Is4() {
			list = append([]netip.Prefix{old.IPv4}, list...)
		}
		if now.IPv4, err = choose(list, taken); err != nil {
			return v4, v6, err
		}
	} else if overlaps(now.IPv4, taken) {
		s.Log.Warn("the containers' subnet overlaps a route of this machine", "subnet", now.IPv4)
	}
	switch {
	case s.NoIPv6 || !haveIPv6():
		return now.IPv4, netip.Prefix{}, nil
	case !now.IPv6.IsValid() && CheckSubnet(old.IPv6) == nil && old.IPv6.Addr().Is6() && !overlaps(old.IPv6, taken):
		now.IPv6 = old.IPv6
	case !now.IPv6.IsValid():
		now.IPv6 = uniqueLocal()
	}
	if now != old {
		b, err := json.Marshal(now)
		if err == nil {
			err = writeFile(file, append(b, '\n'))
		}
		if err != nil {
			return v4, v6, err
		}
	}
	return now.IPv4, now.IPv6, nil
}

// uniqueLocal is a network as RFC 4193 wants it: 40 bits of it are random.
func uniqueLocal() netip.Prefix {
	var b [16]byte
	b[0] = 0xfd
	rand.Read(b[1:6]) //nolint:errcheck // it never fails
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// routes are the destinations that this machine has on other links than the bridge.
func (s *Service) routes(bridge netlink.Link) ([]netip.Prefix, error) {
	list, err := s.h.RouteListFiltered(unix.AF_UNSPEC, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, err
	}
	var taken []netip.Prefix
	for _, r := range list {
		if r.Dst == nil || bridge != nil && r.LinkIndex == bridge.Attrs().Index {
			continue
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			ones, _ := r.Dst.Mask.Size()
			taken = append(taken, netip.PrefixFrom(a.Unmap(), ones))
		}
	}
	return taken, nil
}

// adopt begins with a bridge: the addresses of the endpoints there are, are in use.
func (s *Service) adopt(index, mtu int, subnet4, subnet6 netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old4, old6 := s.pool4, s.pool6
	s.index, s.mtu, s.pool4, s.pool6 = index, mtu, newPool(subnet4), nil
	if subnet6.IsValid() {
		s.pool6 = newPool(subnet6)
	}
	if old4 != nil {
		s.pool4.next = old4.next
	}
	if old6 != nil && s.pool6 != nil {
		s.pool6.next = old6.next
	}
	use := func(e entry) {
		s.pool4.use(e.IPv4.Addr())
		if s.pool6 != nil {
			s.pool6.use(e.IPv6.Addr())
		}
	}
	for _, e := range s.endpoints {
		use(entry{&e.Endpoint, 0})
	}
	for _, g := range s.gone {
		use(g.entry)
	}
}

// address gives the bridge its addresses, and no others.
func (s *Service) address(bridge netlink.Link) error {
	var errs []error
	for name, value := range map[string]string{"ipv4/conf/%s/send_redirects": "0", "ipv6/conf/%s/accept_ra": "0", "ipv6/conf/%s/accept_dad": "0", "ipv6/conf/%s/disable_ipv6": "0"} {
		errs = append(errs, trySysctl(fmt.Sprintf(name, s.Bridge), value))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	want := []netip.Prefix{netip.PrefixFrom(s.pool4.gateway(), s.pool4.subnet.Bits())}
	if s.pool6 != nil {
		want = append(want, netip.PrefixFrom(s.pool6.gateway(), s.pool6.subnet.Bits()))
	}
	have, err := s.h.AddrList(bridge, unix.AF_UNSPEC)
	if err != nil {
		return err
	}
	for _, a := range have {
		addr, _ := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if p := netip.PrefixFrom(addr.Unmap(), ones); !slices.Contains(want, p) && !p.Addr().IsLinkLocalUnicast() {
			if err := s.h.AddrDel(bridge, &a); err != nil {
				return fmt.Errorf("address %s: %w", p, err)
			}
		}
	}
	for _, p := range want {
		if err := addAddress(s.h, bridge, p); err != nil {
			return fmt.Errorf("address %s: %w", p, err)
		}
	}
	return s.h.LinkSetUp(bridge)
}

// links finds the endpoints' links, and removes those on the bridge that are nobody's.
func (s *Service) links(bridge int) error {
	list, err := s.h.LinkList()
	for try := 0; errors.Is(err, netlink.ErrDumpInterrupted) && try < 10; try++ {
		list, err = s.h.LinkList()
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	known := map[string]*endpoint{}
	for _, e := range s.endpoints {
		known[e.Link] = e
	}
	found := map[*endpoint]int{}
	for _, g := range s.gone {
		known[g.Link] = nil
	}
	var stray, astray []netlink.Link
	for _, l := range list {
		a := l.Attrs()
		e, ours := known[a.Name]
		switch {
		case e != nil:
			found[e] = a.Index
			if a.MasterIndex != bridge {
				astray = append(astray, l)
			}
		case !ours && a.MasterIndex == bridge && l.Type() == "veth":
			stray = append(stray, l)
		}
	}
	for e, index := range found { // a link that was made since, whoever makes it knows
		e.index = index
	}
	s.mu.Unlock()
	for _, l := range astray { // the bridge was removed under it
		if err := s.h.LinkSetMasterByIndex(l, bridge); err != nil {
			return fmt.Errorf("link %s: %w", l.Attrs().Name, err)
		}
	}
	for _, l := range stray {
		if err := s.deleteLink(l.Attrs().Name); err != nil {
			return fmt.Errorf("link %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// reserveAgain reserves the ports that a daemon before us had reserved. If
// somebody else has taken one meanwhile, the container has it all the same:
// what comes for it is redirected first.
func (s *Service) reserveAgain() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.endpoints {
		if len(e.socks) > 0 {
			continue
		}
		for _, b := range e.Ports {
			fd, err := bindSocket(netip.AddrPortFrom(b.HostIP, b.Host), b.Proto)
			if err != nil {
				s.Log.Warn("a published port cannot be reserved", "container", id, "port", b.String(), "err", err)
				e.socks = append(e.socks, nil)
				continue
			}
			e.socks = append(e.socks, os.NewFile(uintptr(fd), "reserved port"))
		}
		e.relay = newRelay(e, s.Log)
	}
	return nil
}

// entries are the tables' content. What has no link is not connected.
func (s *Service) entries() (list, silent []entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.endpoints {
		if e.released != nil {
			silent = append(silent, entry{&e.Endpoint, e.index})
		} else {
			list = append(list, entry{&e.Endpoint, e.index})
		}
	}
	for _, g := range s.gone {
		silent = append(silent, g.entry)
	}
	return list, silent
}

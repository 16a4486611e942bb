package cni

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/snapfs/snapfs/internal/control"
)

// read reads what the plugins say that they have made. Their words go into files
// that the container's programs parse, so each has to be what it is said to be.
func read(e *control.Endpoint, res types.Result) error {
	if res == nil {
		return errors.New("there is none")
	}
	r, err := types100.GetResult(res)
	if err != nil {
		return err
	}
	if len(r.IPs) > maxAddresses || len(r.Routes) > maxRoutes || len(r.Interfaces) > maxLinks {
		return fmt.Errorf("%d addresses, %d routes and %d links: too many", len(r.IPs), len(r.Routes), len(r.Interfaces))
	}
	inside := -1
	for i, l := range r.Interfaces {
		switch {
		case l == nil:
			return errors.New("null in interfaces")
		case l.Sandbox == "" && e.Link == "" && strings.HasPrefix(l.Name, "veth"): // the plugins' name for the other end
			e.Link = l.Name
		case l.Sandbox != "" && l.Name == ifName && inside < 0:
			inside = i
			if l.Mac != "" {
				mac, err := net.ParseMAC(l.Mac)
				if err != nil {
					return fmt.Errorf("hardware address %.40q", l.Mac)
				}
				e.MAC = mac.String()
			}
		}
	}
	if e.Link != "" && (len(e.Link) > 15 || strings.ContainsFunc(e.Link, unfit)) {
		return fmt.Errorf("link %.40q", e.Link)
	}
	for _, ip := range r.IPs {
		if err := takeAddress(e, ip, inside); err != nil {
			return err
		}
	}
	for _, route := range r.Routes {
		if route == nil {
			return errors.New("null in routes")
		}
		dst, ok := prefix(route.Dst)
		gw, gwOK := address(route.GW)
		if !ok || len(route.GW) > 0 && !gwOK {
			return fmt.Errorf("route to %v by %v", route.Dst.String(), route.GW)
		}
		e.Routes = append(e.Routes, control.Route{Dst: dst, Gateway: gw})
		if dst.Bits() == 0 && gw.Is4() && !e.Gateway4.IsValid() {
			e.Gateway4 = gw
		} else if dst.Bits() == 0 && gw.Is6() && !e.Gateway6.IsValid() {
			e.Gateway6 = gw
		}
	}
	return takeDNS(e, &r.DNS)
}

// takeAddress reads an address, of the container's link if it has an interface at
// all: the first of each family is the container's own.
func takeAddress(e *control.Endpoint, ip *types100.IPConfig, inside int) error {
	if ip == nil {
		return errors.New("null in ips")
	}
	if ip.Interface != nil && inside >= 0 && *ip.Interface != inside {
		return nil // of another link
	}
	p, ok := prefix(ip.Address)
	gw, gwOK := address(ip.Gateway)
	if !ok || !p.Addr().IsValid() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() || len(ip.Gateway) > 0 && !gwOK {
		return fmt.Errorf("address %s with gateway %v", ip.Address.String(), ip.Gateway)
	}
	switch {
	case p.Addr().Is4() && !e.IPv4.IsValid():
		e.IPv4, e.Gateway4 = p, gw
	case p.Addr().Is6() && !e.IPv6.IsValid():
		e.IPv6, e.Gateway6 = p, gw
	default:
		e.More = append(e.More, p)
	}
	return nil
}

func takeDNS(e *control.Endpoint, d *types.DNS) error {
	if d.IsEmpty() {
		return nil
	}
	if len(d.Nameservers) > maxServers || len(d.Search) > maxServers || len(d.Options) > maxServers {
		return errors.New("too much of DNS")
	}
	out := &control.DNS{}
	for _, s := range d.Nameservers {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsUnspecified() || a.IsMulticast() || strings.ContainsFunc(s, unfit) {
			return fmt.Errorf("DNS server %.60q is no address", s)
		}
		out.Servers = append(out.Servers, a.String())
	}
	for _, s := range append(append([]string{}, d.Search...), d.Options...) {
		if s == "" || len(s) > 255 || strings.ContainsFunc(s, unfit) {
			return fmt.Errorf("DNS: %.60q is no word", s)
		}
	}
	out.Search, out.Options = d.Search, d.Options
	if len(out.Search) == 0 && d.Domain != "" {
		if len(d.Domain) > 255 || strings.ContainsFunc(d.Domain, unfit) {
			return fmt.Errorf("DNS domain %.60q", d.Domain)
		}
		out.Search = []string{d.Domain}
	}
	e.DNS = out
	return nil
}

// unfit says of which characters no word of a host file is made.
func unfit(r rune) bool { return r <= ' ' || r == 0x7f || r == '#' || r == ';' }

func prefix(n net.IPNet) (netip.Prefix, bool) {
	a, ok := address(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a.Is4() && bits == 128 { // an IPv4 address written as one of IPv6
		ones -= 96
	}
	p := netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}

func address(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok
}

// granted says whether the plugins have given what was asked for.
func granted(e *control.Endpoint, q Request) error {
	has := func(a netip.Addr) bool {
		if !a.IsValid() || e.IPv4.Addr() == a || e.IPv6.Addr() == a {
			return true
		}
		for _, p := range e.More {
			if p.Addr() == a {
				return true
			}
		}
		return false
	}
	switch {
	case !has(q.IPv4), !has(q.IPv6):
		return fmt.Errorf("--ip, --ip6: the plugins have given it %s and not what was asked for", cmp.Or(join(e), "no address"))
	case q.MAC != "" && !sameMAC(q.MAC, e.MAC):
		return fmt.Errorf("--mac-address: the plugins have given it %s and not what was asked for", cmp.Or(e.MAC, "none that they tell"))
	}
	return nil
}

// sameMAC compares two addresses that may be written differently.
func sameMAC(a, b string) bool {
	x, err := net.ParseMAC(a)
	y, err2 := net.ParseMAC(b)
	return err == nil && err2 == nil && slices.Equal(x, y)
}

func join(e *control.Endpoint) string {
	var list []string
	for _, p := range append([]netip.Prefix{e.IPv4, e.IPv6}, e.More...) {
		if p.IsValid() {
			list = append(list, p.Addr().String())
		}
	}
	return strings.Join(list, ", ")
}

package main

import (
	"fmt"
	"net/netip"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/ports"
)

// networkFlags registers what connects a container.
func networkFlags(f *flagSet, a *control.CreateArgs) {
	f.list(&a.Hosts, "add-host", "NAME:ADDRESS", "a line for /etc/hosts; of ADDRESS host-gateway, that of this machine")
	f.list(&a.DNS, "dns", "ADDRESS", "ask this name server (default those of this machine)")
	f.list(&a.DNSOptions, "dns-option,dns-opt", "OPTION", "an option for resolv.conf")
	f.list(&a.DNSSearch, "dns-search", "DOMAIN", "look names up in this domain (. for none)")
	address(f, &a.IPv4, "ip", "the container's IPv4 address on the bridge (default any)")
	address(f, &a.IPv6, "ip6", "the container's IPv6 address on the bridge (default any)")
	f.text(&a.MAC, "mac-address", "ADDRESS", "the container's hardware address, such as 02:00:00:00:00:01")
	f.add("expose", "PORT[/PROTOCOL]", "say that the container listens at a port; see --publish-all", func(s string) error {
		p, err := ports.Expose(s)
		a.Expose = append(a.Expose, p...)
		return err
	})
	f.add("network,net", "NETWORK", "bridge (default), host, none, container:NAME for another container's, or cni:NAME", func(s string) error { a.Network = s; return network(s) })
	f.add("p,publish", "PORT", "publish a port: [[ADDRESS:][HOST-PORT]:]PORT[/udp], or ranges of ports", func(s string) error {
		p, err := ports.Parse(s)
		a.Publish = append(a.Publish, p...)
		return err
	})
	f.flag(&a.PublishAll, "P,publish-all", "publish all exposed ports at free ones of this machine")
}

func address(f *flagSet, p *netip.Addr, name, help string) {
	f.add(name, "ADDRESS", help, func(s string) (err error) {
		if *p, err = netip.ParseAddr(s); err != nil {
			err = fmt.Errorf("%q: want an address", s)
		}
		return err
	})
}

func network(s string) error {
	switch s {
	case control.NetworkBridge, control.NetworkDefault, control.NetworkHost, control.NetworkNone:
		return nil
	}
	if _, ok := control.OtherContainer(s); ok {
		return nil
	}
	if _, ok := control.OfPlugins(s); ok {
		return nil
	}
	return fmt.Errorf("%q: unknown network; use bridge, host, none, container:NAME or cni:NAME", s)
}

package main

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/network"
)

// NetworkConfig says how containers are connected.
type NetworkConfig struct {
	// Default is the network of containers that name none: bridge, host or none. Default bridge, as Docker's.
	Default string `toml:"default"`
	// Bridge is the name of the bridge and of the nftables tables. Default snapfs0; two
	// daemons on one machine need two names.
	Bridge string `toml:"bridge"`
	// IPv4 is the bridge's subnet, such as "10.1.0.0/16". Default auto: one that
	// overlaps no route of the machine, and is kept.
	IPv4 string `toml:"ipv4"`
	// IPv6 is the same; also "off". Default auto: a network of its own (RFC 4193), if the machine has IPv6.
	IPv6 string `toml:"ipv6"`
	// MTU is the largest packet, bytes. Default 0: what fits the default route, at most 1500.
	MTU int `toml:"mtu"`
	// Ahead keeps one connection ready for the next container. Default true: it
	// takes 1.5 ms off a start, and about 300 KiB of the kernel's memory.
	Ahead bool `toml:"ahead"`
}

// Words in the place of a subnet.
const (
	auto = "auto"
	off  = "off"
)

func (c NetworkConfig) validate() error {
	switch c.Default {
	case control.NetworkBridge, control.NetworkHost, control.NetworkNone:
	default:
		return fmt.Errorf("network.default = %q: want bridge, host or none", c.Default)
	}
	if c.Bridge == "" || len(c.Bridge) > network.MaxBridge || strings.ContainsAny(c.Bridge, "/:% \t\n") || c.Bridge == "." || c.Bridge == ".." {
		return fmt.Errorf("network.bridge = %q: want a link's name of at most %d bytes", c.Bridge, network.MaxBridge)
	}
	if c.MTU != 0 && (c.MTU < 1280 || c.MTU > 65535) {
		return fmt.Errorf("network.mtu = %d: want 1280 to 65535, or 0", c.MTU)
	}
	v4, _, err := subnet(c.IPv4)
	if err == nil && v4.IsValid() && !v4.Addr().Is4() || c.IPv4 == off {
		err = fmt.Errorf("want an IPv4 subnet, or auto")
	}
	if err != nil {
		return fmt.Errorf("network.ipv4 = %q: %w", c.IPv4, err)
	}
	v6, _, err := subnet(c.IPv6)
	if err == nil && v6.IsValid() && !v6.Addr().Is6() {
		err = fmt.Errorf("want an IPv6 subnet, auto or off")
	}
	if err != nil {
		return fmt.Errorf("network.ipv6 = %q: %w", c.IPv6, err)
	}
	return nil
}

// subnet reads one; that of auto and off is not valid.
func subnet(s string) (_ netip.Prefix, isOff bool, err error) {
	if s == auto || s == off {
		return netip.Prefix{}, s == off, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, false, fmt.Errorf("want a subnet such as 10.1.0.0/16 or fd00:1::/64, or auto")
	}
	return p, false, network.CheckSubnet(p)
}

func (c NetworkConfig) options(root, run string, log *slog.Logger) network.Options {
	o := network.Options{Run: filepath.Join(run, "network"), Root: root, Bridge: c.Bridge, MTU: c.MTU, Ahead: c.Ahead, Log: log}
	o.IPv4, _, _ = subnet(c.IPv4) // validate has seen them
	o.IPv6, o.NoIPv6, _ = subnet(c.IPv6)
	return o
}

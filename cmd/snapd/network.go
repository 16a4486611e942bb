package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/snapfs/snapfs/internal/cni"
	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/internal/network"
	"github.com/snapfs/snapfs/internal/supervisor"
)

// NetworkConfig says how containers are connected.
type NetworkConfig struct {
	// Default is the network of containers that name none: bridge, host, none or cni:NAME. Default bridge, as Docker's.
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
	// Ahead keeps connections ready for containers to come: as many as pool.size, and one at
	// least. Default true: it takes 1.5 ms off a start, and each about 300 KiB of the kernel's memory.
	Ahead bool `toml:"ahead"`
	// CNIConfig is the directory with the networks of --network cni:NAME. Default /etc/cni/net.d.
	CNIConfig string `toml:"cni_config"`
	// CNIPlugins are directories with their plugins, which run as root. Default
	// /opt/cni/bin, and /usr/lib/cni, where Debian has them.
	CNIPlugins []string `toml:"cni_plugins"`
	// CNITimeout is how long the plugins of a container may take, all together.
	// Default 30s, which DHCP needs when the first of its requests are lost.
	CNITimeout Duration `toml:"cni_timeout"`
	// CNICollect has plugins collect garbage (GC, CNI 1.1) after a crash. They release
	// what is not snapd's, so on a network that something else uses, too, it must be off. Default false.
	CNICollect bool `toml:"cni_collect"`
}

// Words in the place of a subnet.
const (
	auto = "auto"
	off  = "off"
)

func (c NetworkConfig) validate() error {
	switch name, byPlugins := control.OfPlugins(c.Default); {
	case c.Default == control.NetworkBridge, c.Default == control.NetworkHost, c.Default == control.NetworkNone:
	case !byPlugins:
		return fmt.Errorf("network.default = %q: want bridge, host, none or cni:NAME", c.Default)
	default:
		if err := cni.CheckName(name); err != nil {
			return fmt.Errorf("network.default: %w", err)
		}
	}
	for _, dir := range append([]string{c.CNIConfig}, c.CNIPlugins...) {
		if !filepath.IsAbs(dir) || strings.ContainsRune(dir, filepath.ListSeparator) {
			return fmt.Errorf("network.cni_config, network.cni_plugins: %q: want an absolute path without a colon", dir)
		}
	}
	if d := time.Duration(c.CNITimeout); d < time.Second || d > 10*time.Minute {
		return fmt.Errorf("network.cni_timeout = %q: want 1s to 10m", d)
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

func (c NetworkConfig) options(root, run string, pool PoolConfig, log *slog.Logger) network.Options {
	o := network.Options{Run: filepath.Join(run, "network"), Root: root, Bridge: c.Bridge, MTU: c.MTU, Log: log}
	if c.Ahead {
		o.Ahead = max(1, pool.slots())
		o.Eager = pool.Size != nil && pool.slots() > 0 && c.Default == control.NetworkBridge
	}
	o.IPv4, _, _ = subnet(c.IPv4) // validate has seen them
	o.IPv6, o.NoIPv6, _ = subnet(c.IPv6)
	return o
}

// networks are the bridge and CNI's, as one.
type networks struct {
	*network.Service
	cni *cni.Service
}

func (n networks) Release(id string, serial uint64) {
	n.Service.Release(id, serial)
	n.cni.Release(id, serial)
}

func (n networks) Endpoint(id string) *control.Endpoint {
	if e := n.Service.Endpoint(id); e != nil {
		return e
	}
	return n.cni.Endpoint(id)
}

func (n networks) Reconcile(alive func(id string) bool) error {
	return errors.Join(n.Service.Reconcile(alive), n.cni.Reconcile(alive))
}

// cniHost is what CNI's plugins need: the supervisor.
type cniHost struct {
	*supervisor.Worker
	bridge *network.Service
	limit  time.Duration
}

// pluginGrace is how much later than the worker the supervisor gives a plugin up: the worker's words name the setting.
const pluginGrace = 5 * time.Second

// maxPluginOutput bounds the result of a plugin, bytes.
const maxPluginOutput = 1 << 20

func (h cniHost) RunPlugin(ctx context.Context, path string, stdin []byte, env []string, alone string) (stdout, stderr []byte, err error) {
	stdout, err = h.RunProgram(ctx, supervisor.Program{Name: path, Env: env, Stdin: stdin, Most: maxPluginOutput, Time: h.limit + pluginGrace, Alone: alone, Stderr: &stderr})
	if err != nil { // who asks knows the path
		err = errors.New(strings.TrimPrefix(err.Error(), path+": "))
	}
	return stdout, stderr, err
}

func (h cniHost) Reserve(ports []control.Port) ([]control.Binding, []*os.File, error) {
	return h.bridge.Reserve(ports)
}

func (c NetworkConfig) cniOptions(root string, w *supervisor.Worker, bridge *network.Service, log *slog.Logger) cni.Options {
	limit := time.Duration(c.CNITimeout)
	return cni.Options{
		Root: filepath.Join(root, "cni"), Configs: c.CNIConfig, Plugins: c.CNIPlugins, Timeout: limit, Collect: c.CNICollect, Log: log,
		Host: cniHost{w, bridge, limit},
	}
}

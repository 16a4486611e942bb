package containers

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
	"github.com/snapfs/snapfs/runtime/monitor"
)

// hostResolv is the host's resolver configuration. Where that only points at
// systemd-resolved's stub, the servers behind the stub are what a container
// wants when it leaves the host's network later (resolved.conf(5), /run/systemd/resolve/resolv.conf).
func hostResolv() []byte {
	b := readSmall("/etc/resolv.conf")
	if bytes.Contains(b, []byte("nameserver 127.0.0.53")) {
		if real := readSmall("/run/systemd/resolve/resolv.conf"); real != nil {
			return real
		}
	}
	return b
}

// readSmall returns the first 64 KiB of a file, nil if it cannot be read.
func readSmall(name string) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil
	}
	return b
}

// namesOf is the resolver configuration of a network, which is the host's where plugins say nothing of servers.
func namesOf(e *control.Endpoint) []byte {
	if e == nil || e.DNS == nil {
		return hostResolv()
	}
	r := resolv{servers: e.DNS.Servers, search: e.DNS.Search, options: e.DNS.Options}
	if len(r.servers) == 0 {
		r.servers = parseResolv(hostResolv()).servers
	}
	return r.text()
}

// hostFiles writes a container's hosts, hostname and resolv.conf, which are
// bound into it. e is its connection to the bridge; nil while it has none.
func (s *Service) hostFiles(c *monitor.Config, e *control.Endpoint) error {
	var f files
	switch n := &c.Network; n.Mode {
	case control.NetworkShared: // its files as they are now
		dir := s.dir(n.Container)
		f = files{hosts: readSmall(filepath.Join(dir, hostsFile)), hostname: readSmall(filepath.Join(dir, hostnameFile)), resolv: readSmall(filepath.Join(dir, resolvFile))}
	default:
		f = files{hosts: hostsOf(c, e), hostname: []byte(c.Network.Hostname + "\n"), resolv: resolvOf(n, namesOf(e), e != nil && e.IPv6.IsValid())}
	}
	dir, m := s.dir(c.ID), mapOf(c)
	for name, text := range map[string][]byte{hostsFile: f.hosts, hostnameFile: f.hostname, resolvFile: f.resolv} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
		if m == nil {
			continue
		}
		uid, gid := m.Root() // inside they are root's, as they are without users of its own
		if err := os.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	return nil
}

type files struct{ hosts, hostname, resolv []byte }

const localHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// hostsOf is what a container finds in /etc/hosts: on the host's network, the
// host's; else the names that every host has; then those that the user added, and its own.
func hostsOf(c *monitor.Config, e *control.Endpoint) []byte {
	b := []byte(localHosts)
	if c.Network.Mode == control.NetworkHost {
		if host := readSmall("/etc/hosts"); host != nil {
			b = host
		}
	}
	for _, s := range c.Network.Hosts {
		name, addr, err := parseHost(s)
		if err != nil {
			continue // it was checked when the container was made
		}
		for _, a := range gateways(&c.Network, e, addr) {
			b = fmt.Appendf(b, "%s\t%s\n", a, name)
		}
	}
	if e != nil {
		for _, a := range append([]netip.Prefix{e.IPv4, e.IPv6}, e.More...) {
			if a.IsValid() {
				b = fmt.Appendf(b, "%s\t%s\n", a.Addr(), c.Network.Hostname)
			}
		}
	}
	return b
}

// gateways are the addresses of an added name: those of the host, if addr is not valid.
func gateways(n *control.NetworkConfig, e *control.Endpoint, addr netip.Addr) []netip.Addr {
	switch {
	case addr.IsValid():
		return []netip.Addr{addr}
	case e != nil:
		return slices.DeleteFunc([]netip.Addr{e.Gateway4, e.Gateway6}, func(a netip.Addr) bool { return !a.IsValid() })
	case n.Mode == control.NetworkHost:
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	return nil
}

// resolvOf is what a container finds in /etc/resolv.conf. v6 says whether it can reach servers by IPv6.
func resolvOf(n *control.NetworkConfig, host []byte, v6 bool) []byte {
	r := parseResolv(host)
	switch n.Mode {
	case control.NetworkBridge, control.NetworkPlugins:
		r.reachable(v6)
		if len(r.servers) == 0 {
			r.servers = defaultServers(v6)
		}
	case control.NetworkHost:
	default:
		r = resolv{}
	}
	if len(n.DNS) > 0 {
		r.servers = n.DNS
	}
	if len(n.DNSSearch) > 0 {
		r.search = n.DNSSearch
		if slices.Equal(n.DNSSearch, []string{"."}) {
			r.search = nil
		}
	}
	if len(n.DNSOptions) > 0 {
		r.options = n.DNSOptions
	}
	if n.Mode == control.NetworkHost && len(n.DNS)+len(n.DNSSearch)+len(n.DNSOptions) == 0 {
		return host
	}
	return r.text()
}

// defaultServers are asked when the host knows none but its own: Docker's choice, too.
func defaultServers(v6 bool) []string {
	list := []string{"8.8.8.8", "8.8.4.4"}
	if v6 {
		list = append(list, "2001:4860:4860::8888", "2001:4860:4860::8844")
	}
	return list
}

// resolv is a resolv.conf(5).
type resolv struct{ servers, search, options []string }

func parseResolv(b []byte) (r resolv) {
	for line := range bytes.Lines(b) {
		fields := strings.Fields(string(line))
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			r.servers = append(r.servers, fields[1])
		case "search", "domain": // the last one counts
			r.search = fields[1:]
		case "options":
			r.options = append(r.options, fields[1:]...)
		}
	}
	return r
}

// reachable leaves out servers that a container with a network of its own cannot
// reach: the host's loopback addresses, IPv6 ones of a link, and IPv6 where it has none.
// 169.254.0.0/16 is forwarded like any other, and clouds (169.254.169.254) and clusters have servers there.
func (r *resolv) reachable(v6 bool) {
	r.servers = slices.DeleteFunc(r.servers, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err != nil || a.IsLoopback() || a.IsUnspecified() || a.Is6() && (!v6 || a.IsLinkLocalUnicast())
	})
}

func (r *resolv) text() []byte {
	var b []byte
	for _, s := range r.servers {
		b = fmt.Appendf(b, "nameserver %s\n", s)
	}
	if len(r.search) > 0 {
		b = fmt.Appendf(b, "search %s\n", strings.Join(r.search, " "))
	}
	if len(r.options) > 0 {
		b = fmt.Appendf(b, "options %s\n", strings.Join(r.options, " "))
	}
	return b
}

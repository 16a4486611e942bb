package containers

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

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

// hostFiles writes a container's hosts, hostname and resolv.conf, which are
// bound into it. e is its connection to the bridge; nil while it has none.
func (s *Service) hostFiles(c *monitor.Config, e *control.Endpoint) error {
	var f files
	switch n := &c.Network; n.Mode {
	case control.NetworkShared: // its files as they are now
		dir := s.dir(n.Container)
		f = files{hosts: readSmall(filepath.Join(dir, hostsFile)), hostname: readSmall(filepath.Join(dir, hostnameFile)), resolv: readSmall(filepath.Join(dir, resolvFile))}
	default:
		f = files{hosts: hostsOf(c, e), hostname: []byte(c.Spec.Hostname + "\n"), resolv: resolvOf(n)}
	}
	dir := s.dir(c.ID)
	for name, text := range map[string][]byte{hostsFile: f.hosts, hostnameFile: f.hostname, resolvFile: f.resolv} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

type files struct{ hosts, hostname, resolv []byte }

const localHosts = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// hostsOf is what a container finds in /etc/hosts: on the host's network, the
// host's; else the names that every host has, those that the user added, and its own.
func hostsOf(c *monitor.Config, e *control.Endpoint) []byte {
	b := []byte(localHosts)
	if c.Network.Mode == control.NetworkHost {
		if host := readSmall("/etc/hosts"); host != nil {
			b = host
		}
	}
	if e != nil {
		for _, a := range []netip.Prefix{e.IPv4, e.IPv6} {
			if a.IsValid() {
				b = fmt.Appendf(b, "%s\t%s\n", a.Addr(), c.Spec.Hostname)
			}
		}
	}
	return b
}

// resolvOf is what a container finds in /etc/resolv.conf.
func resolvOf(n *control.NetworkConfig) []byte {
	switch n.Mode {
	case control.NetworkHost, control.NetworkBridge:
		return hostResolv()
	}
	return nil
}

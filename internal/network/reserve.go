package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// A TakenError says that a port of the host cannot be published because somebody has it.
type TakenError struct {
	Port control.Port
	By   string // ID of a container of ours; "": another program
}

func (e *TakenError) Error() string {
	text := describePort(e.Port)
	if e.Port.HostEnd > e.Port.Host {
		return text + ": all of these ports are in use"
	}
	if e.By != "" {
		return text + ": the port is in use by container " + e.By[:min(12, len(e.By))]
	}
	return text + ": the port is in use by another program on this machine; publish at another, or leave it out for a free one"
}

// describePort is how the user wrote it, more or less.
func describePort(p control.Port) string {
	host := ""
	switch {
	case p.HostEnd > p.Host:
		host = fmt.Sprintf("%d-%d:", p.Host, p.HostEnd)
	case p.Host != 0:
		host = fmt.Sprintf("%d:", p.Host)
	}
	if p.HostIP != "" {
		if host == "" {
			host = ":"
		}
		if a, err := netip.ParseAddr(p.HostIP); err == nil && a.Is6() {
			host = "[" + p.HostIP + "]:" + host
		} else {
			host = p.HostIP + ":" + host
		}
	}
	return fmt.Sprintf("--publish %s%d/%s", host, p.Container, p.Proto)
}

// reserve binds sockets to the ports that are to be published, so that no other
// program gets them, and says which they are; each has its socket. The sockets receive nothing: what
// comes for them is redirected before, but for ::1 (type relay). v6 says whether the container has an IPv6 address.
func reserve(ports []control.Port, v6 bool) (list []control.Binding, socks []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(socks)
			list, socks = nil, nil
		}
	}()
	for _, p := range ports {
		hosts, err := hostsOf(p, v6)
		if err != nil {
			return list, socks, err
		}
		port, s, err := bindFirst(p, hosts)
		if err != nil {
			return list, socks, err
		}
		socks = append(socks, s...)
		for _, h := range hosts {
			list = append(list, control.Binding{HostIP: h, Host: port, Container: p.Container, Proto: p.Proto})
		}
	}
	return list, socks, nil
}

// Reserve takes ports for a network that is not ours, until the sockets are closed.
// What comes for them has to be redirected by somebody else. A port that somebody has is a *TakenError.
func (s *Service) Reserve(ports []control.Port) ([]control.Binding, []*os.File, error) {
	for _, p := range ports {
		if a, err := netip.ParseAddr(p.HostIP); err == nil && relayed(a) {
			return nil, nil, fmt.Errorf("%s: on this network nothing can be published at %s", describePort(p), a)
		}
	}
	list, socks, err := reserve(ports, haveIPv6())
	if t, ok := errors.AsType[*TakenError](err); ok {
		t.By = s.owner(t.Port)
	}
	return list, socks, err
}

// anyPortTries bounds how often a free port of IPv4 may turn out to be taken in IPv6.
const anyPortTries = 16

// bindFirst binds to the first port of p's range that is free on all hosts.
func bindFirst(p control.Port, hosts []netip.Addr) (uint16, []*os.File, error) {
	if p.Host == 0 {
		for range anyPortTries {
			port, s, err := bindAll(hosts, 0, p.Proto)
			if !errors.Is(err, unix.EADDRINUSE) {
				return port, s, explainBind(p, err)
			}
		}
		return 0, nil, fmt.Errorf("%s: no port of this machine is free", describePort(p))
	}
	var err error
	for port := int(p.Host); port <= int(max(p.Host, p.HostEnd)); port++ {
		var s []*os.File
		if _, s, err = bindAll(hosts, uint16(port), p.Proto); err == nil {
			return uint16(port), s, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return 0, nil, explainBind(p, err)
}

func explainBind(p control.Port, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EADDRINUSE):
		return &TakenError{Port: p}
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("%s: this machine has no address %s", describePort(p), p.HostIP)
	}
	return fmt.Errorf("%s: %w", describePort(p), err)
}

// bindAll binds to one port on all hosts; port 0 is one that is free on the first.
func bindAll(hosts []netip.Addr, port uint16, proto string) (_ uint16, socks []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(socks)
			socks = nil
		}
	}()
	for _, h := range hosts {
		fd, err := bindSocket(netip.AddrPortFrom(h, port), proto)
		if err != nil {
			return 0, socks, err
		}
		socks = append(socks, os.NewFile(uintptr(fd), "reserved port"))
		if port == 0 {
			if port, err = boundPort(fd); err != nil {
				return 0, socks, err
			}
		}
	}
	return port, socks, nil
}

func bindSocket(at netip.AddrPort, proto string) (_ int, err error) {
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if at.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if domain == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return -1, os.NewSyscallError("IPV6_V6ONLY", err)
		}
	}
	if kind == unix.SOCK_DGRAM {
		// What slips through while there is no redirection is not collected.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0)
		return fd, os.NewSyscallError("bind", unix.Bind(fd, sockaddr(at)))
	}
	// With SO_REUSEADDR, connections of before that linger do not matter.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, os.NewSyscallError("SO_REUSEADDR", err)
	}
	if err := unix.Bind(fd, sockaddr(at)); err != nil {
		return -1, os.NewSyscallError("bind", err)
	}
	if relayed(at.Addr()) { // it listens, so nobody else can; its connections have to leave no trace
		return fd, os.NewSyscallError("listen", unix.Listen(fd, relayBacklog))
	}
	// Without it afterwards, nobody else can listen (inet_csk_bind_conflict, Linux 6.18).
	return fd, os.NewSyscallError("SO_REUSEADDR", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func boundPort(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), err
	case *unix.SockaddrInet6:
		return uint16(sa.Port), err
	}
	return 0, os.NewSyscallError("getsockname", err)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// hostsOf are the addresses at which p is published.
func hostsOf(p control.Port, v6 bool) ([]netip.Addr, error) {
	if p.HostIP == "" {
		if v6 {
			return []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}, nil
		}
		return []netip.Addr{netip.IPv4Unspecified()}, nil
	}
	a, err := netip.ParseAddr(p.HostIP)
	switch {
	case err != nil || a.Zone() != "" || a.Is4In6() || a.IsMulticast():
		return nil, fmt.Errorf("%s: %q is no address of a machine", describePort(p), p.HostIP)
	case a.Is6() && !v6:
		return nil, fmt.Errorf("%s: containers have no IPv6 addresses on this machine", describePort(p))
	}
	return []netip.Addr{a}, nil
}

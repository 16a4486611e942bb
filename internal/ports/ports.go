// Package ports reads the ports that a user publishes, as docker has them
// written: [[HOST-ADDRESS:][HOST-PORT[-PORT]:]]PORT[-PORT][/PROTOCOL].
//
//	8080:80              host port 8080 of every address → container port 80, tcp
//	80                   a free host port → 80
//	127.0.0.1:8080:80    of that address only; ::1 is written [::1]
//	53:53/udp
//	8000-8009:80-89      one to one
//	8000-9000:80         the first of these that is free
package ports

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/snapfs/snapfs/internal/control"
)

// Max is how many ports a container can publish: each is an element of a map in
// the kernel, and a socket.
const Max = 4096

// Parse reads one --publish. A range that is one to one is as many ports.
func Parse(s string) ([]control.Port, error) {
	list, err := parse(s)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return list, nil
}

func parse(s string) ([]control.Port, error) {
	rest, proto, err := cutProto(s)
	if err != nil {
		return nil, err
	}
	host, rest, err := cutHost(rest)
	if err != nil {
		return nil, err
	}
	published, inside, both := "", rest, false
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		published, inside, both = rest[:i], rest[i+1:], true
	}
	if host == "" && strings.ContainsRune(published, ':') {
		return nil, errors.New("want [ADDRESS:][HOST-PORT:]PORT, with an IPv6 address in brackets")
	}
	first, last, err := parseRange(inside)
	if err != nil {
		return nil, fmt.Errorf("container port %w", err)
	}
	p := control.Port{HostIP: host, Proto: proto}
	if !both || published == "" { // ADDRESS::PORT
		if both && host == "" {
			return nil, errors.New("the host port is empty; leave the colon out for a free one")
		}
		return spread(p, first, last), nil
	}
	if p.Host, p.HostEnd, err = parseRange(published); err != nil {
		return nil, fmt.Errorf("host port %w", err)
	}
	switch {
	case p.HostEnd-p.Host == last-first:
		return spread(p, first, last), nil
	case first == last:
		p.Container = first
		return []control.Port{p}, nil
	}
	return nil, fmt.Errorf("%d host ports for %d container ports: want as many, or one container port", p.HostEnd-p.Host+1, last-first+1)
}

// spread makes one port of each of first to last.
func spread(p control.Port, first, last uint16) []control.Port {
	var list []control.Port
	host := p.Host
	for n := uint(first); n <= uint(last); n++ {
		p.Container, p.Host, p.HostEnd = uint16(n), host, host
		list = append(list, p)
		if host != 0 {
			host++
		}
	}
	return list
}

func cutProto(s string) (rest, proto string, err error) {
	rest, proto, ok := strings.Cut(s, "/")
	if !ok {
		return rest, "tcp", nil
	}
	proto = strings.ToLower(proto)
	switch proto {
	case "tcp", "udp":
		return rest, proto, nil
	case "sctp":
		return "", "", errors.New("sctp is not supported; want tcp or udp")
	}
	return "", "", fmt.Errorf("protocol %q: want tcp or udp", proto)
}

// cutHost takes the address from the front, where there is one.
func cutHost(s string) (host, rest string, err error) {
	if inside, ok := strings.CutPrefix(s, "["); ok {
		var closed bool
		if host, rest, closed = strings.Cut(inside, "]:"); !closed {
			return "", "", errors.New("the bracket is not closed by \"]:\" and a port")
		}
		a, err := netip.ParseAddr(host)
		if err != nil || !a.Is6() || a.Is4In6() || a.Zone() != "" {
			return "", "", fmt.Errorf("%q is no IPv6 address", host)
		}
		return normal(a), ensureColon(rest), nil
	}
	host, rest, ok := strings.Cut(s, ":")
	if !ok || !strings.Contains(rest, ":") { // PORT, or PORT:PORT
		return "", s, nil
	}
	a, err := netip.ParseAddr(host)
	if err != nil || !a.Is4() {
		return "", "", fmt.Errorf("%q is no IPv4 address", host)
	}
	return normal(a), rest, nil
}

// ensureColon: after an address the host port's place is there, if only empty.
func ensureColon(rest string) string {
	if strings.ContainsRune(rest, ':') {
		return rest
	}
	return ":" + rest
}

// normal writes an address; one that means all of a family is kept, as it leaves out the other.
func normal(a netip.Addr) string { return a.String() }

func parseRange(s string) (first, last uint16, err error) {
	from, to, two := strings.Cut(s, "-")
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	if !two {
		return first, first, nil
	}
	if last, err = parsePort(to); err != nil {
		return 0, 0, err
	}
	if last < first {
		return 0, 0, fmt.Errorf("%q: the range is the wrong way round", s)
	}
	if last-first >= Max {
		return 0, 0, fmt.Errorf("%q: more than %d ports", s, Max)
	}
	return first, last, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || strings.HasPrefix(s, "+") {
		return 0, fmt.Errorf("%q: want 1 to 65535", s)
	}
	return uint16(n), nil
}

// Expose reads one --expose, or the name of an exposed port in an image's config: PORT[-PORT][/PROTOCOL].
func Expose(s string) ([]control.Port, error) {
	rest, proto, err := cutProto(s)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	first, last, err := parseRange(rest)
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	return spread(control.Port{Proto: proto}, first, last), nil
}

// Check says what is wrong with ports that were not read by this package.
func Check(list []control.Port) error {
	if len(list) > Max {
		return fmt.Errorf("%d ports: more than %d", len(list), Max)
	}
	for _, p := range list {
		switch {
		case p.Container == 0:
			return errors.New("a port of 0")
		case p.Proto != "tcp" && p.Proto != "udp":
			return fmt.Errorf("protocol %q: want tcp or udp", p.Proto)
		case p.Host == 0 && p.HostEnd != 0 || p.HostEnd != 0 && p.HostEnd < p.Host:
			return fmt.Errorf("ports %d-%d", p.Host, p.HostEnd)
		}
		if p.HostIP == "" {
			continue
		}
		if a, err := netip.ParseAddr(p.HostIP); err != nil || a.Zone() != "" || a.Is4In6() {
			return fmt.Errorf("%q is no address", p.HostIP)
		}
	}
	return nil
}

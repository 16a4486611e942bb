package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
)

// A pool gives out the addresses of one subnet. The first is the gateway's; the
// first and last of IPv4 belong to nobody. An address that was given back is
// given out again only when all others have been: whoever still knows it by its
// old holder has forgotten by then. The zero pool has none to give.
type pool struct {
	subnet netip.Prefix
	next   uint32
	used   map[uint32]bool
}

func newPool(subnet netip.Prefix) *pool {
	return &pool{subnet: subnet.Masked(), next: 2, used: map[uint32]bool{}}
}

var errNoAddress = errors.New("all addresses are in use: configure a larger subnet in [network]")

// size is how many addresses are counted; of IPv6, 2^24 are plenty.
func (p *pool) size() uint32 {
	host := p.subnet.Addr().BitLen() - p.subnet.Bits()
	return uint32(1) << min(host, 24)
}

// last is the greatest that can be given out.
func (p *pool) last() uint32 {
	if p.subnet.Addr().Is4() {
		return p.size() - 2 // not the broadcast address
	}
	return p.size() - 1
}

func (p *pool) gateway() netip.Addr { return p.at(1) }

func (p *pool) at(n uint32) netip.Addr {
	b := p.subnet.Addr().AsSlice()
	end := b[len(b)-4:]
	binary.BigEndian.PutUint32(end, binary.BigEndian.Uint32(end)|n)
	a, _ := netip.AddrFromSlice(b)
	return a
}

// index is the inverse of at; false if a is none to be given out.
func (p *pool) index(a netip.Addr) (uint32, bool) {
	if !p.subnet.Contains(a) {
		return 0, false
	}
	b := a.AsSlice()
	n := binary.BigEndian.Uint32(b[len(b)-4:])
	if host := a.BitLen() - p.subnet.Bits(); host < 32 {
		n &= 1<<host - 1
	}
	return n, n >= 2 && n <= p.last() && p.at(n) == a
}

// take gives out want, or, if that is zero, one that was not in use for long.
func (p *pool) take(want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		n, ok := p.index(want)
		switch {
		case !ok:
			return want, fmt.Errorf("address %s is not one for containers: want one of %s, after the bridge's own %s", want, p.subnet, p.gateway())
		case p.used[n]:
			return want, fmt.Errorf("address %s is in use", want)
		}
		p.used[n] = true
		return want, nil
	}
	if p.last() < 2 || len(p.used) > int(p.last()-2) {
		return want, errNoAddress
	}
	for ; ; p.next++ {
		if p.next < 2 || p.next > p.last() {
			p.next = 2
		}
		if !p.used[p.next] {
			p.used[p.next] = true
			p.next++
			return p.at(p.next - 1), nil
		}
	}
}

func (p *pool) give(a netip.Addr) {
	if n, ok := p.index(a); ok {
		delete(p.used, n)
	}
}

// CheckSubnet says whether a subnet can be a bridge's.
func CheckSubnet(p netip.Prefix) error {
	host := p.Addr().BitLen() - p.Bits()
	switch {
	case !p.IsValid() || p.Masked() != p:
		return fmt.Errorf("subnet %s: want the address of a network, such as %s", p, p.Masked())
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsUnspecified() || p.Addr().Is4In6():
		return fmt.Errorf("subnet %s: no addresses for hosts", p)
	case host < 2:
		return fmt.Errorf("subnet %s: no room for a bridge and a container", p)
	case p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 32:
		return fmt.Errorf("subnet %s: too large", p)
	}
	return nil
}

// candidates are the subnets that a bridge may get if none is configured, the
// preferred ones first. Docker takes 172.16.0.0/12 and 192.168.0.0/16, podman
// 10.88.0.0/16 and on, Kubernetes' distributions 10.42.0.0 to 10.43.0.0,
// 10.96.0.0/12 and 10.244.0.0/16: out of their way first.
func candidates() []netip.Prefix {
	var list []netip.Prefix
	for n := range 40 { // 10.201.0.0/16 to 10.240.0.0/16
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(201 + n)}), 16))
	}
	for n := range 16 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(31 - n)}), 16))
	}
	for n := range 55 {
		list = append(list, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(201 + n)}), 24))
	}
	return list
}

// choose returns the first candidate that overlaps nothing that is taken.
func choose(list, taken []netip.Prefix) (netip.Prefix, error) {
	for _, p := range list {
		if !overlaps(p, taken) {
			return p, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("each of %d subnets overlaps a route of this machine: configure one in [network]", len(list))
}

func overlaps(p netip.Prefix, taken []netip.Prefix) bool {
	for _, t := range taken {
		if t.Bits() > 0 && t.Overlaps(p) { // a default route is no claim
			return true
		}
	}
	return false
}

// hardware is the address of a container's link: locally administered, and made
// of its IPv4 address, so that a neighbour who remembers the one is right about the other.
func hardware(a netip.Addr) [6]byte {
	b := a.As4()
	return [6]byte{0x02, 0x5f, b[0], b[1], b[2], b[3]}
}

// linkLocal is the address that the kernel makes of a hardware address (RFC 4291, appendix A).
func linkLocal(mac []byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// linkName is the name of a container's end on the host: at most 14 bytes.
func linkName(bridge int, n uint32) string {
	return "sv" + strconv.FormatInt(int64(bridge), 36) + "." + strconv.FormatUint(uint64(n), 36)
}

// use says that an address is in use, whoever has given it out.
func (p *pool) use(a netip.Addr) {
	if n, ok := p.index(a); ok {
		p.used[n] = true
	}
}

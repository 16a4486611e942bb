package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/snapfs/snapfs/internal/control"
)

// tables are our two nftables tables, both with the bridge's name: of family
// inet for addresses and ports, of family bridge for what containers may say
// that they are. In the words of nft(8):
//
//	table inet snapfs0 {
//	    map publish4 { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service }   # -p ADDRESS:PORT:…
//	    map any4     { type inet_proto . inet_service : ipv4_addr . inet_service }               # -p PORT:…
//	    map publish6, any6 …
//	    chain guard { type filter hook prerouting priority raw
//	        iifname "snapfs0" ip daddr 127.0.0.0/8 drop
//	        iifname "snapfs0" ip saddr 127.0.0.0/8 drop }
//	    chain in    { type nat hook prerouting priority dstnat
//	        ip daddr 127.0.0.0/8 return
//	        fib daddr type != local return
//	        ip6 daddr ::1 return
//	        dnat ip to meta l4proto . ip daddr . th dport map @publish4
//	        dnat ip to meta l4proto . th dport map @any4                      # and IPv6 … }
//	    chain own   { type nat hook output priority dstnat; … the same, for 127.0.0.1, too }
//	    chain out   { type nat hook postrouting priority srcnat
//	        oifname "snapfs0" ip saddr 127.0.0.0/8 masquerade
//	        ip saddr SUBNET oifname != "snapfs0" masquerade
//	        oifname "snapfs0" ip saddr SUBNET ct status dnat masquerade       # and IPv6 … }
//	    chain forward { type filter hook forward priority filter
//	        oifname "snapfs0" ct state established,related accept
//	        oifname "snapfs0" iifname "snapfs0" accept
//	        oifname "snapfs0" ct status dnat accept
//	        oifname "snapfs0" drop
//	        iifname . oifname @bridged return                                 # frames of another bridge, with br_netfilter
//	        meta nfproto ipv4 iifname @quiet4 oifname @quiet4 drop            # see type forwarding }
//	}
//	table bridge snapfs0 {
//	    set ports { type iface_index }
//	    set own4  { type iface_index . ether_addr . ipv4_addr }
//	    set own6  { type iface_index . ether_addr . ipv6_addr }
//	    chain from { type filter hook prerouting priority -300
//	        iif != @ports return
//	        … ARP, IPv4 and IPv6 with a sender of @own4 and @own6 accept; drop }
//	}
//
// A container that is connected is elements of the sets and maps; rules never
// change. All of it is replaced in one transaction when a daemon starts, or
// finds its tables missing. Other tables are neither read nor touched.
type tables struct {
	bridge         string
	subnet4        netip.Prefix
	subnet6        netip.Prefix // invalid without IPv6
	quiet4, quiet6 []string
	trusting       bool // there is no table of family bridge: the kernel has none

	mu sync.Mutex     // one transaction at a time: a socket's answers are told apart by order
	c  *nftables.Conn // nil before the first, and after an error
}

// A layout is the tables as objects to be sent.
type layout struct {
	trusting                       bool // without filter
	inet, filter                   *nftables.Table
	publish4, publish6, any4, any6 *nftables.Set
	ports, own4, own6              *nftables.Set
}

func (t *tables) layout() *layout {
	l := &layout{
		trusting: t.trusting,
		inet:     &nftables.Table{Name: t.bridge, Family: nftables.TableFamilyINet},
		filter:   &nftables.Table{Name: t.bridge, Family: nftables.TableFamilyBridge},
	}
	concat := nftables.MustConcatSetType
	proto, port, ip, ip6 := nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeIPAddr, nftables.TypeIP6Addr
	iface, ether := nftables.TypeIFIndex, nftables.TypeEtherAddr
	asMap := func(name string, key, data nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: l.inet, Name: name, IsMap: true, KeyType: key, DataType: data}
	}
	l.publish4 = asMap("publish4", concat(proto, ip, port), concat(ip, port))
	l.publish6 = asMap("publish6", concat(proto, ip6, port), concat(ip6, port))
	l.any4 = asMap("any4", concat(proto, port), concat(ip, port))
	l.any6 = asMap("any6", concat(proto, port), concat(ip6, port))
	l.ports = &nftables.Set{Table: l.filter, Name: "ports", KeyType: iface, KeyByteOrder: binaryutil.NativeEndian}
	l.own4 = &nftables.Set{Table: l.filter, Name: "own4", KeyType: concat(iface, ether, ip)}
	l.own6 = &nftables.Set{Table: l.filter, Name: "own6", KeyType: concat(iface, ether, ip6)}
	return l
}

func (l *layout) tables() []*nftables.Table {
	if l.trusting {
		return []*nftables.Table{l.inet}
	}
	return []*nftables.Table{l.inet, l.filter}
}

// An entry is a connected container as the tables know it.
type entry struct {
	*control.Endpoint
	index int // of its link on the host
}

// What an entry is in: the set of ports, and those of what comes from it and goes to it.
const (
	isPort = 1 << iota
	says
	everything = isPort | says
)

// elements adds those of an entry to each set that it is in, or removes them.
func (l *layout) elements(e entry, which int, do func(*nftables.Set, []nftables.SetElement) error) error {
	byMap := map[*nftables.Set][]nftables.SetElement{}
	if which&isPort != 0 && e.index != 0 {
		byMap[l.ports] = []nftables.SetElement{{Key: native32(uint32(e.index))}}
	}
	if which&says != 0 && e.index != 0 {
		if err := l.identity(e, byMap); err != nil {
			return err
		}
	}
	for _, m := range []*nftables.Set{l.publish4, l.publish6, l.any4, l.any6, l.ports, l.own4, l.own6} {
		if list := byMap[m]; len(list) > 0 && (m.Table == l.inet || !l.trusting) {
			if err := do(m, list); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *layout) identity(e entry, byMap map[*nftables.Set][]nftables.SetElement) error {
	for _, b := range e.Ports {
		n := byte(unix.IPPROTO_TCP)
		if b.Proto == "udp" {
			n = unix.IPPROTO_UDP
		}
		m, addr := l.publish4, e.IPv4.Addr()
		if b.HostIP.Is6() {
			m, addr = l.publish6, e.IPv6.Addr()
		}
		key := pad([]byte{n})
		if b.HostIP.IsUnspecified() {
			m = l.any4
			if b.HostIP.Is6() {
				m = l.any6
			}
		} else {
			key = append(key, b.HostIP.AsSlice()...)
		}
		byMap[m] = append(byMap[m], nftables.SetElement{
			Key: append(key, pad(bigEndian16(b.Host))...), Val: append(addr.AsSlice(), pad(bigEndian16(b.Container))...),
		})
	}
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	own := func(a netip.Addr) nftables.SetElement {
		return nftables.SetElement{Key: slices.Concat(native32(uint32(e.index)), pad(slices.Clone(mac)), a.AsSlice())}
	}
	byMap[l.own4] = []nftables.SetElement{own(e.IPv4.Addr())}
	if e.IPv6.IsValid() {
		byMap[l.own6] = []nftables.SetElement{own(e.IPv6.Addr()), own(linkLocal(mac))}
	}
	return nil
}

// transaction sends what fill says in one piece. The socket is kept: when one is
// closed, the kernel waits until what was deleted before is gone, for 10 ms
// (nft_rcv_nl_event in net/netfilter/nf_tables_api.c, Linux 6.18).
func (t *tables) transaction(fill func(*nftables.Conn, *layout) error) (err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.c == nil {
		if t.c, err = nftables.New(nftables.AsLasting()); err != nil {
			return err
		}
	}
	if err = fill(t.c, t.layout()); err == nil {
		if err = t.c.Flush(); err == nil {
			return nil
		}
		err = fmt.Errorf("nftables table %s: %w", t.bridge, err)
	}
	return errors.Join(err, t.closeLocked())
}

func (t *tables) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closeLocked()
}

func (t *tables) closeLocked() (err error) {
	if t.c != nil {
		err = t.c.CloseLasting()
	}
	t.c = nil
	return err
}

// add lets a container in.
func (t *tables) add(e entry) error {
	return t.transaction(func(c *nftables.Conn, l *layout) error { return l.elements(e, everything, c.SetAddElements) })
}

// remove takes back what add did, or a part of it. If that is gone already, the
// tables are not what we think, and the error is ENOENT: replace them.
func (t *tables) remove(e entry, which int) error {
	return t.transaction(func(c *nftables.Conn, l *layout) error { return l.elements(e, which, c.SetDeleteElements) })
}

// replace makes the tables anew, in one transaction: with these containers, and
// with links that may still be there, but may not say anything any more.
func (t *tables) replace(list, silent []entry) error {
	err := t.tryReplace(list, silent)
	if !t.trusting && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT)) {
		t.trusting = true
		err = t.tryReplace(list, silent)
	}
	return err
}

func (t *tables) tryReplace(list, silent []entry) error {
	return t.transaction(func(c *nftables.Conn, l *layout) error {
		for _, table := range l.tables() {
			c.AddTable(table) // so that it can be deleted
			c.DelTable(table)
			c.AddTable(table)
		}
		if err := t.rules(c, l); err != nil {
			return err
		}
		for _, e := range list {
			if err := l.elements(e, everything, c.SetAddElements); err != nil {
				return err
			}
		}
		for _, e := range silent {
			if err := l.elements(e, isPort, c.SetAddElements); err != nil {
				return err
			}
		}
		return nil
	})
}

// delete removes both tables.
func (t *tables) delete() error {
	return t.transaction(func(c *nftables.Conn, l *layout) error {
		for _, table := range l.tables() {
			c.AddTable(table) // so that it can be deleted
			c.DelTable(table)
		}
		return nil
	})
}

func (t *tables) rules(c *nftables.Conn, l *layout) error {
	for _, s := range []*nftables.Set{l.publish4, l.publish6, l.any4, l.any6, l.ports, l.own4, l.own6} {
		if s.Table == l.filter && l.trusting {
			continue
		}
		if err := c.AddSet(s, nil); err != nil {
			return err
		}
	}
	key := func(n string) []byte { return append([]byte(n), make([]byte, unix.IFNAMSIZ-len(n))...) }
	quiet := func(name string, links []string) (*nftables.Set, error) {
		s := &nftables.Set{Table: l.inet, Name: name, KeyType: nftables.TypeIFName}
		var list []nftables.SetElement
		for _, n := range links {
			list = append(list, nftables.SetElement{Key: key(n)})
		}
		return s, c.AddSet(s, list)
	}
	quiet4, err4 := quiet("quiet4", t.quiet4)
	quiet6, err6 := quiet("quiet6", t.quiet6)
	// With br_netfilter, frames that go from one port of a bridge to another come by
	// here as if they were forwarded, from the bridge to the bridge. They are nobody's but its own.
	bridged := &nftables.Set{Table: l.inet, Name: "bridged", Concatenation: true, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeIFName)}
	var pairs []nftables.SetElement
	for _, n := range union(t.quiet4, t.quiet6) {
		pairs = append(pairs, nftables.SetElement{Key: slices.Concat(key(n), key(n))})
	}
	if err := errors.Join(err4, err6, c.AddSet(bridged, pairs)); err != nil {
		return err
	}
	loopback4, loopback6 := netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")

	guard := t.chain(c, l.inet, "guard", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
	guard(when(from(t.bridge), destWithin(loopback4), drop), when(from(t.bridge), sourceWithin(loopback4), drop))

	// What is sent to ::1 stays: the kernel takes no answers for it that come by another link.
	published := []rule{
		when(notLocal(), leave),
		when(destWithin(loopback6), leave),
		when(isIPv4(), l4proto(reg(0)), ipDest(reg(1)), portDest(reg(2)), redirect(l.publish4, unix.NFPROTO_IPV4)),
		when(isIPv4(), l4proto(reg(0)), portDest(reg(1)), redirect(l.any4, unix.NFPROTO_IPV4)),
		when(isIPv6(), l4proto(reg(0)), ip6Dest(reg(1)), portDest(reg(5)), redirect(l.publish6, unix.NFPROTO_IPV6)),
		when(isIPv6(), l4proto(reg(0)), portDest(reg(1)), redirect(l.any6, unix.NFPROTO_IPV6)),
	}
	t.chain(c, l.inet, "in", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)(
		append([]rule{when(destWithin(loopback4), leave)}, published...)...)
	t.chain(c, l.inet, "own", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)(published...)

	out := t.chain(c, l.inet, "out", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	out(when(to(t.bridge), sourceWithin(loopback4), masquerade))
	for _, subnet := range []netip.Prefix{t.subnet4, t.subnet6} {
		if subnet.IsValid() {
			out(when(sourceWithin(subnet), awayFrom(t.bridge), masquerade),
				when(to(t.bridge), sourceWithin(subnet), redirected(), masquerade))
		}
	}

	forward := t.chain(c, l.inet, "forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0)
	forward(
		when(to(t.bridge), established(), accept),
		when(to(t.bridge), from(t.bridge), accept),
		when(to(t.bridge), redirected(), accept),
		when(to(t.bridge), drop))
	name := func(key expr.MetaKey) rule { return rule{&expr.Meta{Key: key, Register: reg(0)}} }
	forward(when(name(expr.MetaKeyIIFNAME), rule{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg(4)}}, in(bridged), leave))
	for _, q := range []struct {
		family rule
		set    *nftables.Set
	}{{isIPv4(), quiet4}, {isIPv6(), quiet6}} {
		forward(when(q.family, name(expr.MetaKeyIIFNAME), in(q.set), name(expr.MetaKeyOIFNAME), in(q.set), drop))
	}
	if !l.trusting {
		t.senders(c, l)
	}
	return nil
}

// senders lets a container say only what it is. It may send frames as it likes
// (CAP_NET_RAW is one of Docker's defaults), and its neighbours are on the same bridge.
func (t *tables) senders(c *nftables.Conn, l *layout) {
	ether := load(expr.PayloadBaseLLHeader, 6, 6, reg(1))
	icmp := func(n byte) rule {
		return when(isICMPv6(), load(expr.PayloadBaseTransportHeader, 0, 1, reg(0)), rule{&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{n}}})
	}
	const (
		arp, ip, ip6                              = unix.ETH_P_ARP, unix.ETH_P_IP, unix.ETH_P_IPV6
		routerAdvertisement, neighbour, redirect_ = 134, 136, 137 // RFC 4861
	)
	t.chain(c, l.filter, "from", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)(
		when(inLink(reg(0)), notIn(l.ports), leave),
		when(protocol(ip), inLink(reg(0)), ether, ipSource(reg(3)), in(l.own4), accept),
		// ARP: the sender's addresses in the message, too (RFC 826).
		when(protocol(arp), inLink(reg(0)), ether, load(expr.PayloadBaseNetworkHeader, 14, 4, reg(3)), notIn(l.own4), drop),
		when(protocol(arp), inLink(reg(0)), load(expr.PayloadBaseNetworkHeader, 8, 6, reg(1)), load(expr.PayloadBaseNetworkHeader, 14, 4, reg(3)), in(l.own4), accept),
		when(protocol(ip6), icmp(routerAdvertisement), drop),
		when(protocol(ip6), icmp(redirect_), drop),
		when(protocol(ip6), icmp(neighbour), inLink(reg(0)), ether, load(expr.PayloadBaseTransportHeader, 8, 16, reg(3)), notIn(l.own6), drop),
		when(protocol(ip6), inLink(reg(0)), ether, ip6Source(reg(3)), in(l.own6), accept),
		// A host that has no address yet says so, and joins groups.
		when(protocol(ip6), isICMPv6(), ip6Source(reg(0)), within(netip.PrefixFrom(netip.IPv6Unspecified(), 128)), accept),
		drop)
}

// chain makes a base chain and returns what adds rules to it.
func (t *tables) chain(c *nftables.Conn, table *nftables.Table, name string, kind nftables.ChainType, hook *nftables.ChainHook, priority nftables.ChainPriority) func(...rule) {
	policy := nftables.ChainPolicyAccept
	chain := c.AddChain(&nftables.Chain{Name: name, Table: table, Type: kind, Hooknum: hook, Priority: &priority, Policy: &policy})
	return func(rules ...rule) {
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r})
		}
	}
}

// union are the words of two lists, each once.
func union(a, b []string) []string {
	all := slices.Concat(a, b)
	slices.Sort(all)
	return slices.Compact(all)
}

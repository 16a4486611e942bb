package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file has the words of which the rules in table.go are made. Registers
// are the 32-bit ones: reg(0) and on; an IPv6 address takes four, a hardware address two.

type rule []expr.Any

func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// when joins conditions and what follows them.
func when(parts ...rule) rule {
	var r rule
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

func verdict(k expr.VerdictKind) rule { return rule{&expr.Verdict{Kind: k}} }

var (
	accept = verdict(expr.VerdictAccept)
	drop   = verdict(expr.VerdictDrop)
	leave  = verdict(expr.VerdictReturn)
)

// pad fills b up to whole registers.
func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// link compares a link's name: of MetaKeyIIFNAME or MetaKeyOIFNAME.
func link(key expr.MetaKey, name string, op expr.CmpOp) rule {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return rule{&expr.Meta{Key: key, Register: reg(0)}, &expr.Cmp{Op: op, Register: reg(0), Data: b}}
}

func from(bridge string) rule   { return link(expr.MetaKeyIIFNAME, bridge, expr.CmpOpEq) }
func to(bridge string) rule     { return link(expr.MetaKeyOIFNAME, bridge, expr.CmpOpEq) }
func awayFrom(name string) rule { return link(expr.MetaKeyOIFNAME, name, expr.CmpOpNeq) }
func isIPv4() rule              { return metaByte(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV4) }
func isIPv6() rule              { return metaByte(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6) }
func isICMPv6() rule            { return metaByte(expr.MetaKeyL4PROTO, unix.IPPROTO_ICMPV6) }
func protocol(ether uint16) rule {
	return metaBytes(expr.MetaKeyPROTOCOL, binaryutil.BigEndian.PutUint16(ether))
}

func metaByte(key expr.MetaKey, v byte) rule { return metaBytes(key, []byte{v}) }

func metaBytes(key expr.MetaKey, v []byte) rule {
	return rule{&expr.Meta{Key: key, Register: reg(0)}, &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: v}}
}

// load reads bytes of a packet into registers.
func load(base expr.PayloadBase, off, n, register uint32) rule {
	return rule{&expr.Payload{DestRegister: register, Base: base, Offset: off, Len: n}}
}

func ipSource(register uint32) rule  { return load(expr.PayloadBaseNetworkHeader, 12, 4, register) }
func ipDest(register uint32) rule    { return load(expr.PayloadBaseNetworkHeader, 16, 4, register) }
func ip6Source(register uint32) rule { return load(expr.PayloadBaseNetworkHeader, 8, 16, register) }
func ip6Dest(register uint32) rule   { return load(expr.PayloadBaseNetworkHeader, 24, 16, register) }
func portDest(register uint32) rule  { return load(expr.PayloadBaseTransportHeader, 2, 2, register) }

// within compares the address in reg(0) with a subnet.
func within(p netip.Prefix) rule {
	n := p.Addr().BitLen() / 8
	mask := make([]byte, n)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return rule{
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: uint32(n), Mask: mask, Xor: make([]byte, n)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: p.Addr().AsSlice()},
	}
}

// sourceWithin is the family's and the address's condition.
func sourceWithin(p netip.Prefix) rule {
	if p.Addr().Is4() {
		return when(isIPv4(), ipSource(reg(0)), within(p))
	}
	return when(isIPv6(), ip6Source(reg(0)), within(p))
}

func destWithin(p netip.Prefix) rule {
	if p.Addr().Is4() {
		return when(isIPv4(), ipDest(reg(0)), within(p))
	}
	return when(isIPv6(), ip6Dest(reg(0)), within(p))
}

// ctBits says whether any of some bits of a conntrack entry is set.
func ctBits(key expr.CtKey, bits uint32) rule {
	return rule{
		&expr.Ct{Key: key, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: make([]byte, 4)},
	}
}

// ipsDestNAT is IPS_DST_NAT (include/uapi/linux/netfilter/nf_conntrack_common.h).
const ipsDestNAT = 1 << 5

func redirected() rule { return ctBits(expr.CtKeySTATUS, ipsDestNAT) }
func established() rule {
	return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// notLocal says that the destination is no address of this machine.
func notLocal() rule {
	return rule{
		&expr.Fib{Register: reg(0), FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg(0), Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

// in says whether what begins in reg(0) is in a set; notIn the opposite.
func in(s *nftables.Set) rule {
	return rule{&expr.Lookup{SourceRegister: reg(0), SetName: s.Name, SetID: s.ID}}
}

func notIn(s *nftables.Set) rule {
	return rule{&expr.Lookup{SourceRegister: reg(0), SetName: s.Name, SetID: s.ID, Invert: true}}
}

// redirect looks what begins in reg(0) up in a map and sends the packet there.
func redirect(m *nftables.Set, family byte) rule {
	port := reg(1)
	if family == unix.NFPROTO_IPV6 {
		port = reg(4)
	}
	return rule{
		&expr.Lookup{SourceRegister: reg(0), DestRegister: reg(0), IsDestRegSet: true, SetName: m.Name, SetID: m.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(family), RegAddrMin: reg(0), RegProtoMin: port},
	}
}

func l4proto(register uint32) rule {
	return rule{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register}}
}
func inLink(register uint32) rule { return rule{&expr.Meta{Key: expr.MetaKeyIIF, Register: register}} }

var masquerade = rule{&expr.Masq{}}

func bigEndian16(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
func native32(n uint32) []byte    { return binary.NativeEndian.AppendUint32(nil, n) }

package filter

import (
	"encoding/binary"
	"net/netip"
)

// This file gives a syntax tree the meaning that libpcap gives it (gencode.c of libpcap
// 1.10): a condition over bytes at offsets from the beginning of the frame, tested in
// libpcap's order. The order matters: a test that looks beyond the end of the packet
// ends it all, and the packet is not wanted, whatever else the filter says.
//
// That is libpcap's meaning before its optimizer (tcpdump -O), which leaves out tests whose
// outcome makes no difference, and with them their look beyond the end. Packets that are
// cut inside a header that the filter looks at can therefore be judged otherwise by an
// optimized program; all others are not.

// cond is a condition.
type cond interface{ cond() }

type (
	condConst bool
	condAnd   []cond
	condOr    []cond
	condNot   struct{ x cond }

	// condTest compares two numbers.
	condTest struct {
		op          condOp
		left, right value
		safe        bool // every packet that comes to this test is long enough for it
	}
	// condHint is a condition that the kernel has one match for.
	condHint struct {
		x     cond
		match Match
		safe  bool // as condTest's
	}
	// condKernel is decided by the kernel alone: filter_v1 and flows.
	condKernel []Match
	// condIfName and condDirection look at what comes beside the packet.
	condIfName    string
	condDirection struct{ outbound bool }
)

func (condConst) cond()     {}
func (condAnd) cond()       {}
func (condOr) cond()        {}
func (condNot) cond()       {}
func (*condTest) cond()     {}
func (condHint) cond()      {}
func (condKernel) cond()    {}
func (condIfName) cond()    {}
func (condDirection) cond() {}

type condOp uint8

const (
	opEqual condOp = iota
	opGreater
	opGreaterEqual
)

// value is a number calculated from a packet.
type value interface{ value() }

type (
	constant uint32
	// length is the packet's length.
	length struct{}
	// load is bytes in network order at offset + index from base.
	load struct {
		base   base
		offset uint32
		index  value // nil = 0
		size   uint8
		header uint32 // where the network header begins
		of     Proto  // whose header it is in, where the packet is known to be of it, or Any
	}
	// binary32 calculates modulo 2^32.
	binary32 struct {
		op   string
		x, y value
	}
)

func (constant) value()  {}
func (length) value()    {}
func (load) value()      {}
func (*binary32) value() {}

// base is where offsets are counted from.
type base uint8

const (
	frame     base = iota // the beginning of the frame
	transport             // the beginning of the frame, and the length of the IPv4 header more
)

// Ethertypes and their like.
const (
	etherIP   = 0x0800
	etherARP  = 0x0806
	etherRARP = 0x8035
	etherIP6  = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
	etherOld  = 0x9100
)

// Fixed lengths of headers.
const (
	ethernetHeader = 14
	ip4Header      = 20
	ip6Header      = 40
	arpHeader      = 28 // for IPv4 over Ethernet, RFC 826
)

// meaning walks a tree in the order of the text: what stands after vlan counts from
// behind the tag.
type meaning struct {
	link    Link
	typeAt  uint32 // offset of the ethertype
	network uint32 // offset of the network header
	labels  uint32 // MPLS labels between the type and the network header
	ppp     bool   // the type is PPP's, in a PPPoE session
}

func newMeaning(link Link) *meaning {
	m := &meaning{link: link}
	if link == LinkEthernet {
		m.typeAt, m.network = ethernetHeader-2, ethernetHeader
	}
	return m
}

// node gives the meaning of a tree. Its errors are *Error.
func (m *meaning) node(n Node) (cond, error) {
	switch n := n.(type) {
	case AllOf:
		parts, err := m.nodes(n)
		return condAnd(parts), err
	case AnyOf:
		parts, err := m.nodes(n)
		return condOr(parts), err
	case Not:
		x, err := m.node(n.X)
		return condNot{x}, err
	case Is:
		return m.is(n)
	case Carries:
		switch n.Proto {
		case LinkLayer:
			return m.etherProto(n)
		case ISO:
			return m.iso(n.Column, n, n.Number)
		case ISIS:
			return m.iso(n.Column, n, isoProtos[ISIS], n.Number)
		}
		return m.carries(n.Proto, n.Number), nil
	case Host:
		return m.host(n)
	case EtherHost:
		if err := m.framed(n.Column, n); err != nil {
			return nil, err
		}
		return m.etherHost(n), nil
	case Port:
		return m.port(n), nil
	case Cast:
		return m.cast(n)
	case VLAN:
		return m.vlan(n)
	case MPLS:
		return m.mpls(n)
	case PPPoE:
		return m.pppoe(n)
	case LLC:
		return m.llc(n)
	case ISISType:
		return m.isisType(n)
	case Relation:
		return m.relation(n)
	case IfName:
		return condIfName(n.Name), nil
	case Direction:
		return condDirection{n.Outbound}, nil
	}
	matches, err := leaf(n, m.link)
	return condKernel(matches), err
}

func (m *meaning) nodes(nodes []Node) ([]cond, error) {
	out := make([]cond, len(nodes))
	for i, n := range nodes {
		var err error
		if out[i], err = m.node(n); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// needsEthernet refuses what has no meaning without a link-layer header.
func (m *meaning) needsEthernet(column int, what interface{ String() string }) error {
	if m.link == LinkEthernet {
		return nil
	}
	return &Error{Field: "filter", Value: what.String(), Column: column,
		Message: what.String() + " needs the link-layer header, which the chosen hooks do not see",
		Hint:    "capture at the hooks ingress and egress: name the interface (-i IF) and no other hook", cause: ErrNoLinkLayer}
}

// at loads from the frame.
func at(offset uint32, size uint8) load { return load{base: frame, offset: offset, size: size} }

// equal compares bytes with a number.
func equal(l load, n uint32) *condTest { return &condTest{op: opEqual, left: l, right: constant(n)} }

// masked compares some bits of bytes with a number.
func masked(l load, n, mask uint32) *condTest {
	if mask == ^uint32(0)>>(32-8*uint32(l.size)) {
		return equal(l, n)
	}
	return &condTest{op: opEqual, left: &binary32{"&", l, constant(mask)}, right: constant(n)}
}

// safe marks a test that reads nothing but a header that has been seen to be there. Behind
// a VLAN tag nothing has been seen.
func (m *meaning) safe(c cond) cond {
	if t, ok := c.(*condTest); ok {
		t.safe = !m.tagged()
	}
	return c
}

// net is bytes of a network header that the packet is known to have.
func (m *meaning) net(of Proto, offset uint32, size uint8) load {
	return load{base: frame, offset: m.network + offset, size: size, header: m.network, of: of}
}

// tagged tells whether offsets count from behind a VLAN tag.
func (m *meaning) tagged() bool { return m.link == LinkEthernet && m.network != ethernetHeader }

// etherType compares the type of what the link layer carries.
func (m *meaning) etherType(n uint32) cond {
	if m.link == LinkEthernet {
		return m.carriesType(n)
	}
	switch n {
	case etherIP:
		return m.safe(masked(at(0, 1), 0x40, 0xf0))
	case etherIP6:
		return m.safe(masked(at(0, 1), 0x60, 0xf0))
	}
	return condConst(false)
}

// etherProto compares the type of what a frame carries.
func (m *meaning) etherProto(n Carries) (cond, error) {
	if n.Number == etherIP || n.Number == etherIP6 { // also behind MPLS labels
		return m.carriesType(n.Number), m.needsEthernet(n.Column, n)
	}
	return m.carriesType(n.Number), m.typed(n.Column, n)
}

func (m *meaning) is(n Is) (cond, error) {
	switch n.Proto {
	case IP:
		return m.etherType(etherIP), nil
	case IP6:
		return m.etherType(etherIP6), nil
	}
	if number, ok := linkProtos[n.Proto]; ok {
		return m.carriesType(number), m.typed(n.Column, n)
	}
	if number, ok := isoProtos[n.Proto]; ok {
		return m.iso(n.Column, n, number)
	}
	return m.abbreviation(n.Proto), nil
}

// abbreviation is a protocol above IP.
func (m *meaning) abbreviation(p Proto) cond {
	switch p {
	case IP:
		return m.etherType(etherIP)
	case IP6:
		return m.etherType(etherIP6)
	case ICMP:
		return m.carries(IP, protoICMP)
	case IGMP:
		return m.carries(IP, protoIGMP)
	case IGRP:
		return m.carries(IP, protoIGRP)
	case VRRP, CARP:
		return m.carries(IP, protoVRRP)
	case ICMP6:
		return m.carries(IP6, protoICMP6)
	}
	return m.carries(Any, map[Proto]uint32{TCP: protoTCP, UDP: protoUDP, SCTP: protoSCTP, PIM: protoPIM,
		AH: protoAH, ESP: protoESP, GRE: protoGRE}[p])
}

// carries compares IPv4's protocol, or IPv6's next header, also behind one fragment
// header.
func (m *meaning) carries(p Proto, n uint32) cond {
	const fragment = 44
	switch p {
	case IP:
		return condAnd{m.etherType(etherIP), m.safe(equal(m.net(IP, 9, 1), n))}
	case IP6:
		return condAnd{m.etherType(etherIP6), condOr{
			m.safe(equal(m.net(IP6, 6, 1), n)),
			condAnd{m.safe(equal(m.net(IP6, 6, 1), fragment)), equal(m.net(IP6, ip6Header, 1), n)},
		}}
	}
	return condOr{m.carries(IP, n), m.carries(IP6, n)}
}

// sides joins what is wanted of source and destination.
func sides(d Dir, one func(destination bool) cond) cond {
	switch d {
	case Src:
		return one(false)
	case Dst:
		return one(true)
	case SrcAndDst:
		return condAnd{one(false), one(true)}
	}
	return condOr{one(false), one(true)}
}

func (m *meaning) host(n Host) (cond, error) {
	if n.Addr.Is6() {
		return m.host6(n), nil
	}
	addr, mask := n.Addr.As4(), n.Mask.As4()
	in := func(of Proto, src, dst uint32) cond {
		etherType := map[Proto]uint32{IP: etherIP, ARP: etherARP, RARP: etherRARP}[of]
		return sides(n.Dir, func(destination bool) cond {
			offset := src
			if destination {
				offset = dst
			}
			test := masked(m.net(of, offset, 4), binary.BigEndian.Uint32(addr[:]), binary.BigEndian.Uint32(mask[:]))
			return condAnd{m.etherType(etherType), m.safe(test)}
		})
	}
	switch n.Proto {
	case IP:
		return in(IP, 12, 16), nil
	case ARP, RARP:
		if err := m.typed(n.Column, n); err != nil {
			return nil, err
		}
		return in(n.Proto, 14, 24), nil
	}
	if m.link == LinkRaw || m.labels > 0 {
		return in(IP, 12, 16), nil
	}
	return condOr{in(IP, 12, 16), in(ARP, 14, 24), in(RARP, 14, 24)}, nil
}

func (m *meaning) host6(n Host) cond {
	addr, mask := n.Addr.As16(), n.Mask.As16()
	return sides(n.Dir, func(destination bool) cond {
		offset := uint32(8)
		if destination {
			offset = 24
		}
		all := condAnd{}
		for i := uint32(0); i < 16; i += 4 {
			all = append(all, m.safe(masked(m.net(IP6, offset+i, 4), binary.BigEndian.Uint32(addr[i:]), binary.BigEndian.Uint32(mask[i:]))))
		}
		bits, _ := maskBits(n.Mask)
		if m.tagged() {
			return condAnd{m.etherType(etherIP6), all}
		}
		side := Source
		if destination {
			side = Destination
		}
		match := addressMatch(side, netip.PrefixFrom(n.Addr, bits), m.link)
		return condAnd{m.etherType(etherIP6), condHint{all, match, true}}
	})
}

func (m *meaning) etherHost(n EtherHost) cond {
	return sides(n.Dir, func(destination bool) cond {
		offset := uint32(6)
		if destination {
			offset = 0
		}
		all := condAnd{
			equal(at(offset+2, 4), binary.BigEndian.Uint32(n.MAC[2:])),
			equal(at(offset, 2), uint32(binary.BigEndian.Uint16(n.MAC[:]))),
		}
		return condHint{all, Match{Key: Raw("ll", offset, 6), Values: []Span{{Lo: n.MAC[:]}}}, true}
	})
}

// notFragment wants IPv4 packets that are no later fragment.
func (m *meaning) notFragment() cond { return m.safe(masked(m.net(IP, 6, 2), 0, 0x1fff)) }

func (m *meaning) port(n Port) cond {
	protos := map[Proto][]uint32{TCP: {protoTCP}, UDP: {protoUDP}, SCTP: {protoSCTP},
		Any: {protoTCP, protoUDP, protoSCTP}}[n.Proto]
	either := func(of Proto, offset uint32) cond { // the protocol's number at offset
		any := condOr{}
		for _, p := range protos {
			any = append(any, m.safe(equal(m.net(of, offset, 1), p)))
		}
		return any
	}
	ports := func(port func(offset uint32) load) cond {
		return sides(n.Dir, func(destination bool) cond {
			key, offset := ThSport, uint32(0)
			if destination {
				key, offset = ThDport, 2
			}
			match := Match{Key: key, Values: []Span{{Lo: binary.BigEndian.AppendUint16(nil, n.Low)}}}
			var test cond = equal(port(offset), uint32(n.Low))
			if n.Low != n.High {
				match.Values[0].Hi = binary.BigEndian.AppendUint16(nil, n.High)
				test = condAnd{
					&condTest{op: opGreaterEqual, left: port(offset), right: constant(n.Low)},
					condNot{&condTest{op: opGreater, left: port(offset), right: constant(n.High)}},
				}
			}
			if m.tagged() {
				return test
			}
			return condHint{test, match, false}
		})
	}
	return condOr{
		condAnd{m.etherType(etherIP6), either(IP6, 6),
			ports(func(offset uint32) load { return m.net(IP6, ip6Header+offset, 2) })},
		condAnd{m.etherType(etherIP), either(IP, 9), m.notFragment(),
			ports(func(offset uint32) load {
				return load{base: transport, offset: m.network + offset, size: 2, header: m.network, of: IP}
			})},
	}
}

func (m *meaning) cast(n Cast) (cond, error) {
	switch n.Proto {
	case IP:
		return condAnd{m.etherType(etherIP), m.safe(&condTest{op: opGreaterEqual, left: m.net(IP, 16, 1), right: constant(224)})}, nil
	case IP6:
		return condAnd{m.etherType(etherIP6), m.safe(equal(m.net(IP6, 24, 1), 255))}, nil
	}
	if err := m.framed(n.Column, n); err != nil {
		return nil, err
	}
	if n.Broadcast {
		return m.etherHost(EtherHost{Dir: Dst, MAC: [6]byte{255, 255, 255, 255, 255, 255}}), nil
	}
	multicast := masked(at(0, 1), 1, 1)
	multicast.safe = true
	return multicast, nil
}

func (m *meaning) vlan(n VLAN) (cond, error) {
	if err := m.framed(n.Column, n); err != nil {
		return nil, err
	}
	if err := m.typed(n.Column, n); err != nil {
		return nil, err
	}
	all := condAnd{condOr{m.etherType(etherVLAN), m.etherType(etherQinQ), m.etherType(etherOld)}}
	if n.ID >= 0 {
		all = append(all, masked(m.net(Any, 0, 2), uint32(n.ID), 0x0fff))
	}
	m.typeAt, m.network = m.typeAt+4, m.network+4
	return all, nil
}

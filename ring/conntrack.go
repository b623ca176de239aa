package ring

import "net/netip"

// Conntrack is what connection tracking knows of a packet's connection.
type Conntrack struct {
	ID       uint32 // as conntrack -L -o id tells it
	State    ConntrackState
	Reply    bool   // the packet goes against the direction of the connection's first one
	Protocol uint8  // of the original tuple, as are the following
	Zone     uint16 // 0 = the default zone
	// Source and Destination are those of the connection's first packet, before NAT. The
	// ports of ICMP are 0: it has HasICMP and ICMPID instead.
	Source, Destination netip.AddrPort
	ICMPID              uint16
	HasICMP             bool
}

// ConntrackState is the connection's state as this packet finds it (enum
// ip_conntrack_info, include/uapi/linux/netfilter/nf_conntrack_common.h).
type ConntrackState uint8

// Conntrack states.
const (
	StateEstablished ConntrackState = iota
	StateRelated
	StateNew
)

// String is the state as nft's "ct state" names it.
func (s ConntrackState) String() string {
	return [...]string{"established", "related", "new"}[min(s, StateNew)]
}

// CTA_*, include/uapi/linux/netfilter/nfnetlink_conntrack.h.
const (
	ctaTupleOrig  = 1
	ctaID         = 12
	ctaZone       = 18
	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaIPv4Source = 1
	ctaIPv4Dest   = 2
	ctaIPv6Source = 3
	ctaIPv6Dest   = 4
	ctaProtoNum   = 1
	ctaProtoSPort = 2
	ctaProtoDPort = 3
	ctaICMPID     = 4
	ctaICMPv6ID   = 7
)

// ctReply is IP_CT_IS_REPLY: what NFULA_CT_INFO is more by for packets of the reply
// direction.
const ctReply = 3

// Connection reads what NFULA_CT says (net/netfilter/nf_conntrack_netlink.c,
// __ctnetlink_glue_build). It is not ok where there is nothing, or nothing that can be
// read. It allocates nothing and trusts no length.
func (p *Packet) Connection() (c Conntrack, ok bool) {
	if p.Conntrack == nil || p.ConntrackInfo > ctReply+uint32(StateNew) {
		return c, false
	}
	c.State = ConntrackState(p.ConntrackInfo % ctReply)
	c.Reply = p.ConntrackInfo >= ctReply
	tuple := false
	sound := attributes(p.Conntrack, func(kind uint16, v []byte) bool {
		switch kind {
		case ctaTupleOrig:
			tuple = true
			return c.tuple(v)
		case ctaID:
			if len(v) < 4 {
				return false
			}
			c.ID = be.Uint32(v)
		case ctaZone:
			if len(v) < 2 {
				return false
			}
			c.Zone = be.Uint16(v)
		}
		return true
	})
	return c, sound && tuple && c.Source.IsValid() && c.Destination.IsValid()
}

// tuple reads CTA_TUPLE_ORIG.
func (c *Conntrack) tuple(b []byte) bool {
	var source, destination netip.Addr
	var sourcePort, destinationPort uint16
	address := func(kind uint16, v []byte) bool {
		a, ok := netip.AddrFromSlice(v)
		switch kind {
		case ctaIPv4Source, ctaIPv6Source:
			source = a
		case ctaIPv4Dest, ctaIPv6Dest:
			destination = a
		default:
			return true
		}
		return ok
	}
	protocol := func(kind uint16, v []byte) bool {
		if kind == ctaProtoNum && len(v) >= 1 {
			c.Protocol = v[0]
			return true
		}
		if len(v) < 2 {
			return kind > ctaICMPID && kind != ctaICMPv6ID // ICMP's type and code are a byte
		}
		switch kind {
		case ctaProtoSPort:
			sourcePort = be.Uint16(v)
		case ctaProtoDPort:
			destinationPort = be.Uint16(v)
		case ctaICMPID, ctaICMPv6ID:
			c.ICMPID, c.HasICMP = be.Uint16(v), true
		}
		return true
	}
	sound := attributes(b, func(kind uint16, v []byte) bool {
		switch kind {
		case ctaTupleIP:
			return attributes(v, address)
		case ctaTupleProto:
			return attributes(v, protocol)
		}
		return true
	})
	c.Source, c.Destination = netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(destination, destinationPort)
	return sound
}

// attributes gives each netlink attribute in b to one. It gives false where b is not
// well-formed, or one said so.
func attributes(b []byte, one func(kind uint16, value []byte) bool) bool {
	for len(b) >= attrHeader {
		size := int(host.Uint16(b))
		if size < attrHeader || size > len(b) {
			return false
		}
		if !one(host.Uint16(b[2:])&attrTypeMask, b[attrHeader:size]) {
			return false
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return len(b) == 0
}

package ring

// Headers says where the headers of a packet stand in bytes that begin with its network
// header (or with VLAN tags before it).
type Headers struct {
	Ethertype uint16 // of what stands at Network, behind VLAN tags
	Network   int    // where the network header begins
	Next      int    // where what follows it begins: behind IPv4 options, IPv6 extension headers and AH
	// Protocol is the IP protocol of what stands at Next; 0 where that is no transport
	// header: no IP, a later fragment, a header cut short or malformed.
	Protocol uint8
	Fragment bool // of a datagram, the first or a later one
	// End is where the packet ends by its IP header, at most the number of bytes: behind it
	// stands padding.
	End int
}

// IP protocols (https://www.iana.org/assignments/protocol-numbers).
const (
	protoHopByHop    = 0
	protoICMP        = 1
	protoIGMP        = 2
	protoTCP         = 6
	protoUDP         = 17
	protoDCCP        = 33
	protoRouting     = 43
	protoFragment    = 44
	protoGRE         = 47
	protoESP         = 50
	protoAH          = 51
	protoICMPv6      = 58
	protoDestination = 60
	protoOSPF        = 89
	protoPIM         = 103
	protoVRRP        = 112
	protoSCTP        = 132
	protoUDPLite     = 136
)

// Further ethertypes.
const (
	etherARP    = 0x0806
	etherRARP   = 0x8035
	etherOldTag = 0x9100
)

// maxExtensions bounds how many VLAN tags, and how many extension headers, are followed.
const maxExtensions = 16

// FindHeaders finds the headers in b, which begins with what the ethertype says. It
// trusts no length in b.
func FindHeaders(ethertype uint16, b []byte) Headers {
	h := Headers{Ethertype: ethertype, End: len(b)}
	for range maxExtensions {
		if !isTag(h.Ethertype) || len(b) < h.Network+4 {
			break
		}
		h.Ethertype = be.Uint16(b[h.Network+2:])
		h.Network += 4
	}
	h.Next = h.Network
	switch l3 := b[h.Network:]; {
	case h.Ethertype == etherIPv4 && len(l3) >= 20 && l3[0]>>4 == 4:
		h.ipv4(l3)
	case h.Ethertype == etherIPv6 && len(l3) >= 40 && l3[0]>>4 == 6:
		h.ipv6(l3)
	}
	return h
}

func (h *Headers) ipv4(l3 []byte) {
	size := max(20, int(l3[0]&0x0f)*4)
	if total := int(be.Uint16(l3[2:])); total >= size { // 0: BIG TCP
		h.End = min(h.End, h.Network+total)
	}
	h.Next = h.Network + min(size, len(l3))
	h.Fragment = be.Uint16(l3[6:])&0x3fff != 0 // more to come, or an offset
	if be.Uint16(l3[6:])&0x1fff == 0 && size <= len(l3) {
		h.extensions(l3[9], l3[size:])
	}
}

func (h *Headers) ipv6(l3 []byte) {
	if payload := int(be.Uint16(l3[4:])); payload > 0 { // 0: a jumbogram
		h.End = min(h.End, h.Network+40+payload)
	}
	h.Next = h.Network + 40
	h.extensions(l3[6], l3[40:])
}

// extensions goes over extension headers (RFC 8200 section 4) and AH (RFC 4302), which
// b begins with where protocol says so.
func (h *Headers) extensions(protocol uint8, b []byte) {
	v6 := h.Ethertype == etherIPv6
	for range maxExtensions {
		size, later := 0, false
		switch {
		case protocol == protoAH && len(b) >= 2:
			size = (int(b[1]) + 2) * 4
		case v6 && protocol == protoFragment && len(b) >= 8:
			size, later = 8, be.Uint16(b[2:])&0xfff8 != 0
			h.Fragment = be.Uint16(b[2:])&0xfff9 != 0
		case v6 && (protocol == protoHopByHop || protocol == protoRouting || protocol == protoDestination) && len(b) >= 2:
			size = (int(b[1]) + 1) * 8
		case protocol == protoAH, v6 && (protocol == protoFragment || protocol == protoHopByHop || protocol == protoRouting || protocol == protoDestination):
			h.Next += len(b) // cut inside the header
			return
		default:
			h.Protocol = protocol
			return
		}
		if size > len(b) {
			h.Next += len(b)
			return
		}
		h.Next += size
		if later {
			return
		}
		protocol, b = b[0], b[size:]
	}
}

// Ports gives the ports of the protocols that have them where TCP has.
func (h Headers) Ports(b []byte) (source, destination uint16, ok bool) {
	switch h.Protocol {
	case protoTCP, protoUDP, protoUDPLite, protoSCTP, protoDCCP:
		if t := b[h.Next:]; len(t) >= 4 {
			return be.Uint16(t), be.Uint16(t[2:]), true
		}
	}
	return 0, 0, false
}

// Payload is where the payload begins in the bytes in which h was found: what stands
// before are headers. Of IP that is the IP header with its options and extension headers,
// AH, and the header of TCP with its options, UDP, UDP-Lite, DCCP, SCTP (the common header),
// ICMP, GRE, ESP, PIM, VRRP and OSPF; another protocol is payload. ARP, IGMP, and what
// ICMPv6 does for neighbours, routers and multicast have no payload. Of any other
// ethertype everything is payload. Padding never counts as header.
func (h Headers) Payload(b []byte) int {
	t := b[h.Next:]
	size := 0
	switch {
	case h.Ethertype == etherARP || h.Ethertype == etherRARP:
		if size = len(t); size >= 8 {
			size = 8 + 2*int(t[4]) + 2*int(t[5])
		}
	case h.Ethertype == etherIPv4 && len(b)-h.Network < 20, h.Ethertype == etherIPv6 && len(b)-h.Network < 40:
		size = len(t) // the header itself is cut
	case h.Ethertype == etherIPv4 || h.Ethertype == etherIPv6:
		size = transport(h.Protocol, t)
	}
	return min(h.Next+size, max(h.End, h.Next), len(b))
}

// transport is the length of the header that t begins with; it may be more than t has.
func transport(protocol uint8, t []byte) int {
	at := func(i int) int { // a byte that is cut off counts as 0
		if i < len(t) {
			return int(t[i])
		}
		return 0
	}
	switch protocol {
	case protoTCP:
		return max(20, at(12)>>4*4)
	case protoUDP, protoUDPLite, protoICMP, protoESP, protoVRRP:
		return 8
	case protoDCCP:
		return max(12, at(4)*4)
	case protoSCTP:
		return 12
	case protoIGMP:
		return len(t)
	case protoICMPv6:
		if kind := at(0); kind >= 130 && kind <= 137 || kind == 143 { // MLD, neighbour discovery
			return len(t)
		}
		return 8
	case protoGRE: // RFC 2784, 2890; version 1 RFC 2637
		n := 4
		if at(0)&0xc0 != 0 { // checksum, or routing
			n += 4
		}
		if at(0)&0x20 != 0 { // key
			n += 4
		}
		if at(0)&0x10 != 0 { // sequence number
			n += 4
		}
		if at(1)&0x87 == 0x81 { // version 1 with an acknowledgement
			n += 4
		}
		return n
	case protoPIM:
		return 4
	case protoOSPF:
		return 24
	}
	return 0
}

// NetworkLength is the length on the wire, in bytes, of what Network gives.
func (p *Packet) NetworkLength() uint32 {
	b := p.Network()
	if !p.Cut {
		return uint32(len(b))
	}
	return uint32(wireLength(p.Protocol, b))
}

// Network gives the packet from its network header on, or from the VLAN tags before it
// that the kernel has not stripped. At netdev egress the kernel repeats the link-layer
// header before it.
func (p *Packet) Network() []byte {
	if len(p.L2Header) == 0 || p.Family != FamilyNetdev || p.Hook != HookNetdevEgress {
		return p.Payload
	}
	return p.Payload[min(len(p.linkHeader()), len(p.Payload)):]
}

// linkHeader is L2Header without VLAN tags. At netdev egress it has them where a socket sent
// a frame with tags: there the kernel counts them as part of the link-layer header
// (net/packet/af_packet.c, packet_parse_headers), everywhere else as what it carries.
func (p *Packet) linkHeader() []byte {
	h := p.L2Header
	if len(h) > etherHeader && p.Hook == HookNetdevEgress && isTag(p.Protocol) && be.Uint16(h[12:]) == p.Protocol {
		return h[:etherHeader]
	}
	return h
}

// isTag tells the ethertypes of VLAN tags.
func isTag(ethertype uint16) bool {
	return ethertype == etherVLAN || ethertype == etherQinQ || ethertype == etherOldTag
}

// HeadersOnly cuts body, which Frame gave for the link type, where the payload begins.
func (p *Packet) HeadersOnly(link LinkType, body []byte) []byte {
	ethertype := p.Protocol
	if link == LinkRaw && len(body) > 0 { // without its VLAN tags
		ethertype = etherIPv4
		if body[0]>>4 == 6 {
			ethertype = etherIPv6
		}
	}
	return body[:FindHeaders(ethertype, body).Payload(body)]
}

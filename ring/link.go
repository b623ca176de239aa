package ring

// LinkType is a link-layer header type of a capture file
// (https://www.tcpdump.org/linktypes.html).
type LinkType uint16

// Link types that Frame can write.
const (
	LinkEthernet LinkType = 1
	LinkRaw      LinkType = 101
	LinkSLL2     LinkType = 276
)

// MaxHead is the longest link-layer header that Frame writes, in bytes.
const MaxHead = 24

// Hardware types, include/uapi/linux/if_arp.h.
const (
	hwEther    = 1
	hwLoopback = 772 // lo: its frames have Ethernet headers of zeros
	hwNone     = 0xfffe
)

// Ethertypes, include/uapi/linux/if_ether.h.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVLAN = 0x8100
	etherQinQ = 0x88a8
)

const (
	etherHeader = 14
	sll2Header  = 20
)

// Packet types of SLL2, include/uapi/linux/if_packet.h.
const (
	toHost      = 0
	toBroadcast = 1
	toMulticast = 2
	outgoing    = 4
)

// Frame gives the packet as a file of the given link type holds it: head, then body, and
// the length it had on the wire, link-layer header included. Head is in scratch or in the
// ring, body in the ring. It is not ok where the packet cannot be told in this link type:
// Ethernet without a true Ethernet header, raw IP of something else.
//
// SLL2 is as `tcpdump -i any` writes it, with two differences. A packet that came in for
// another host (promiscuous mode) is told as one for this host, because NFLOG does not
// carry the kernel's packet type: it is derived from the destination's link-layer
// address, or, where there is none, from the destination IP address. A VLAN tag that the
// kernel had stripped is put back after the header, where libpcap drops it.
func (p *Packet) Frame(link LinkType, scratch *[MaxHead]byte) (head, body []byte, original uint32, ok bool) {
	body = p.Network()
	switch link {
	case LinkSLL2:
		head = p.sll2(body, scratch)
	case LinkEthernet:
		head, ok = p.ethernet(scratch)
		if !ok {
			return nil, nil, 0, false
		}
	case LinkRaw:
		protocol := p.Protocol
		for isTag(protocol) && len(body) >= 4 {
			protocol, body = be.Uint16(body[2:]), body[4:]
		}
		if len(body) == 0 || protocol != etherIPv4 && protocol != etherIPv6 {
			return nil, nil, 0, false
		}
		if p.Cut {
			return nil, body, uint32(wireLength(protocol, body)), true
		}
		return nil, body, uint32(len(body)), true
	default:
		return nil, nil, 0, false
	}
	n := len(body)
	if p.Cut {
		n = wireLength(p.Protocol, body)
	}
	return head, body, uint32(len(head) + n), true
}

// sll2 writes the header that libpcap's LINKTYPE_LINUX_SLL2 page describes: protocol and
// two reserved bytes, interface index, hardware type, packet type, address length, address.
func (p *Packet) sll2(body []byte, s *[MaxHead]byte) []byte {
	direction := p.Direction()
	l2 := p.l2()
	kind := uint64(outgoing)
	if direction != Outbound {
		kind = uint64(p.packetType(l2, body))
	}
	hwType := p.HWType
	if !p.HasHWType {
		hwType = hwNone
	}
	n, protocol := sll2Header, p.Protocol
	if p.VLAN.Present {
		n, protocol = sll2Header+4, p.VLAN.Protocol
		be.PutUint16(s[20:], p.VLAN.TCI)
		be.PutUint16(s[22:], p.Protocol)
	}
	be.PutUint64(s[0:], uint64(protocol)<<48|uint64(p.device(direction)))
	if l2 != nil {
		source := (*[6]byte)(l2[6:])
		be.PutUint64(s[8:], uint64(hwType)<<48|kind<<40|6<<32|uint64(be.Uint32(source[0:])))
		be.PutUint32(s[16:], uint32(be.Uint16(source[4:]))<<16)
		return s[:n]
	}
	source := p.HWAddr[:min(len(p.HWAddr), 8)]
	be.PutUint64(s[8:], uint64(hwType)<<48|kind<<40|uint64(len(source))<<32)
	be.PutUint32(s[16:], 0)
	copy(s[12:20], source)
	return s[:n]
}

// l2 is the link-layer header that the packet really has, or nil.
func (p *Packet) l2() []byte {
	if h := p.linkHeader(); len(h) == etherHeader {
		return h
	}
	if len(p.HWHeader) == etherHeader && p.HasHWType && p.HWType == hwEther {
		return p.HWHeader
	}
	return nil
}

// packetType tells for whom a packet that does not go out is, by its link-layer header if
// there is one.
func (p *Packet) packetType(l2, body []byte) uint8 {
	if len(l2) >= 6 {
		switch {
		case l2[0]&1 == 0:
			return toHost
		case l2[0]&l2[1]&l2[2]&l2[3]&l2[4]&l2[5] == 0xff:
			return toBroadcast
		}
		return toMulticast
	}
	switch {
	case p.Protocol == etherIPv4 && len(body) >= 20:
		switch d := be.Uint32(body[16:]); {
		case d == 0xffffffff:
			return toBroadcast
		case d>>28 == 0xe:
			return toMulticast
		}
	case p.Protocol == etherIPv6 && len(body) >= 40 && body[24] == 0xff:
		return toMulticast
	}
	return toHost
}

// ethernet gives the Ethernet header with its VLAN tag, where it is true.
func (p *Packet) ethernet(s *[MaxHead]byte) ([]byte, bool) {
	h := p.linkHeader()
	if len(h) != etherHeader {
		h = p.HWHeader
		if len(h) != etherHeader || !p.HasHWType || be.Uint16(h[12:]) != p.Protocol {
			return nil, false
		}
	}
	if p.HasHWType && !EthernetDevice(p.HWType) {
		return nil, false
	}
	if !p.VLAN.Present {
		return h, true
	}
	copy(s[:12], h)
	be.PutUint16(s[12:], p.VLAN.Protocol)
	be.PutUint16(s[14:], p.VLAN.TCI)
	copy(s[16:18], h[12:14])
	return s[:18], true
}

// EthernetDevice tells whether the frames of a device with this hardware type (ARPHRD_*)
// have Ethernet headers, as libpcap has it (pcap-linux.c, map_arphrd_to_dlt).
func EthernetDevice(hwType uint16) bool { return hwType == hwEther || hwType == hwLoopback }

// wireLength is the length that a packet of which only the first bytes are here had, by
// its own headers: the IPv4 total length, 40 + the IPv6 payload length or the jumbo
// payload option (RFC 2675), after any VLAN tags. Where they do not tell (another
// protocol, BIG TCP over IPv4, a cut before the length) it is what is here; so is
// Ethernet padding behind an IP packet that was cut.
func wireLength(protocol uint16, b []byte) int {
	at := 0
	for isTag(protocol) && len(b) >= at+4 {
		protocol = be.Uint16(b[at+2:])
		at += 4
	}
	l3, n := b[at:], 0
	switch {
	case protocol == etherIPv4 && len(l3) >= 4 && l3[0]>>4 == 4:
		n = int(be.Uint16(l3[2:]))
	case protocol == etherIPv6 && len(l3) >= 6 && l3[0]>>4 == 6:
		if n = int(be.Uint16(l3[4:])); n > 0 {
			n += 40
		} else if jumbo := jumboPayload(l3); jumbo > 0 {
			n = 40 + jumbo
		}
	}
	return max(len(b), at+n)
}

// jumboPayload is the length in a Jumbo Payload option, which stands in a hop-by-hop
// header right after the IPv6 header (RFC 2675 section 2), or 0.
func jumboPayload(b []byte) int {
	if len(b) < 42 || b[6] != 0 {
		return 0
	}
	options := b[42:min(len(b), 40+8+8*int(b[41]))]
	for len(options) >= 2 {
		switch kind, n := options[0], int(options[1]); {
		case kind == 0: // Pad1 is one byte
			options = options[1:]
		case kind == 0xc2 && n == 4 && len(options) >= 6:
			return int(min(be.Uint32(options[2:]), 1<<31-64))
		case 2+n > len(options):
			return 0
		default:
			options = options[2+n:]
		}
	}
	return 0
}

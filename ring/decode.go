package ring

import (
	"bytes"
	"encoding/binary"
)

// Netlink message types and layout (include/uapi/linux/netlink.h,
// include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_log.h). Netlink headers are in host
// byte order, NFULA_* values big-endian.
const (
	nlmsgHeader  = 16
	nlmsgError   = 2
	ulogPacket   = 4 << 8   // NFNL_SUBSYS_ULOG, NFULNL_MSG_PACKET
	ulogConfig   = 4<<8 | 1 // NFULNL_MSG_CONFIG
	nfgenHeader  = 4
	attrHeader   = 4
	attrTypeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

// NFULA_*, include/uapi/linux/netfilter/nfnetlink_log.h.
const (
	attrPacketHeader = 1
	attrMark         = 2
	attrTimestamp    = 3
	attrIn           = 4
	attrOut          = 5
	attrPhysIn       = 6
	attrPhysOut      = 7
	attrHWAddr       = 8
	attrPayload      = 9
	attrPrefix       = 10
	attrUID          = 11
	attrSeq          = 12
	attrGID          = 14
	attrHWType       = 15
	attrHWHeader     = 16
	attrHWLen        = 17
	attrCT           = 18
	attrCTInfo       = 19
	attrVLAN         = 20
	attrL2Header     = 21

	attrVLANProtocol = 1
	attrVLANTCI      = 2
)

var (
	host = binary.NativeEndian
	be   = binary.BigEndian
)

// cutMessage takes the first netlink message off a datagram: its type, sequence field and
// what follows its header. It is not ok where no whole message begins: rest is nil then.
func cutMessage(b []byte) (kind uint16, seq uint32, body, rest []byte, ok bool) {
	if len(b) < nlmsgHeader {
		return 0, 0, nil, nil, false
	}
	n := int(host.Uint32(b))
	if n < nlmsgHeader || n > len(b) {
		return 0, 0, nil, nil, false
	}
	if end := (n + 3) &^ 3; end < len(b) {
		rest = b[end:]
	}
	return host.Uint16(b[4:]), host.Uint32(b[8:]), b[nlmsgHeader:n:n], rest, true
}

// verdict is what became of a message.
type verdict uint8

const (
	good      verdict = iota
	malformed         // no packet can be read from it
	foreign           // another rule's
)

// numbered is a message's sequence number, if it could be read.
type numbered struct {
	seq uint32
	ok  bool
}

// decoder reads the messages of one group.
type decoder struct {
	prefix []byte // with its NUL; nil = every prefix
	limit  int    // bytes of payload from which on a packet may have been cut
	cache  layoutCache
	walked Packet // the message read last, where no layout had it
}

// decode reads one packet message (what follows the netlink header). The packet holds
// until the next call; Dropped and Group are undefined; Time is clock where the kernel gave
// no stamp. The sequence number is given whenever it can be read, also from a message that
// is malformed or foreign. No length in the message is trusted.
func (d *decoder) decode(b []byte, clock int64) (*Packet, verdict, numbered) {
	if l := d.cache.find(b); l != nil {
		if seq, ok := l.decode(b, clock, d.limit); ok {
			return &l.packet, good, numbered{seq, true}
		}
	}
	p := &d.walked
	p.Time = clock
	v, n := d.walk(b, p)
	if v == good {
		d.cache.learn(b, p)
	}
	return p, v, n
}

// walk reads a message into p by going from attribute to attribute. It leaves Time as it
// was where the message has none.
func (d *decoder) walk(b []byte, p *Packet) (verdict, numbered) {
	var n numbered
	if len(b) < nfgenHeader {
		return malformed, n
	}
	p.reset()
	p.Family = b[0]
	b = b[nfgenHeader:]
	hasHeader, ours, hwLen := false, d.prefix == nil, -1
	bad := false
	for len(b) >= attrHeader {
		size := int(host.Uint16(b))
		if size < attrHeader || size > len(b) {
			return malformed, n
		}
		v := b[attrHeader:size:size]
		switch host.Uint16(b[2:]) & attrTypeMask {
		case attrPacketHeader: // __be16 hw_protocol; __u8 hook; __u8 pad
			if bad = bad || len(v) < 4; !bad {
				p.Protocol, p.Hook, hasHeader = be.Uint16(v), v[2], true
			}
		case attrPrefix:
			ours = ours || bytes.Equal(v, d.prefix)
		case attrIn:
			p.In, bad = word(v, bad)
		case attrOut:
			p.Out, bad = word(v, bad)
		case attrHWType:
			if bad = bad || len(v) < 2; !bad {
				p.HWType, p.HasHWType = be.Uint16(v), true
			}
		case attrHWLen:
			if bad = bad || len(v) < 2; !bad {
				hwLen = int(be.Uint16(v))
			}
		case attrHWHeader:
			p.HWHeader = v
		case attrHWAddr: // __be16 hw_addrlen; __u16 pad; __u8 hw_addr[8]
			if bad = bad || len(v) < 12; !bad {
				if size := int(be.Uint16(v)); size <= 8 {
					p.HWAddr = v[4 : 4+size : 4+size]
				}
			}
		case attrTimestamp: // __aligned_be64 sec, usec
			if bad = bad || len(v) < 16; !bad {
				sec, usec := be.Uint64(v), be.Uint64(v[8:])
				if sec < 1<<33 && usec < 1e6 {
					p.Time, p.KernelTime = int64(sec)*1e9+int64(usec)*1e3, true
				}
			}
		case attrSeq:
			if n.seq, bad = word(v, bad); !bad {
				n.ok = true
			}
		case attrPayload:
			p.Payload = v
		case attrMark:
			p.Mark, bad = word(v, bad)
		case attrUID:
			p.UID, bad = word(v, bad)
			p.HasUID = true
		case attrGID:
			p.GID, bad = word(v, bad)
		case attrPhysIn:
			p.PhysIn, bad = word(v, bad)
		case attrPhysOut:
			p.PhysOut, bad = word(v, bad)
		case attrCT:
			p.Conntrack = v
		case attrCTInfo:
			p.ConntrackInfo, bad = word(v, bad)
		case attrVLAN:
			bad = !p.VLAN.decode(v) || bad
		case attrL2Header:
			p.L2Header = v
		}
		end := (size + 3) &^ 3
		if end >= len(b) {
			b = nil
			break
		}
		b = b[end:]
	}
	if bad || len(b) != 0 || !hasHeader || !n.ok {
		return malformed, n
	}
	if !ours {
		return foreign, n
	}
	if p.HWHeader != nil && hwLen >= 0 && hwLen < len(p.HWHeader) {
		p.HWHeader = p.HWHeader[:hwLen:hwLen]
	}
	if p.Hook >= HookOutput && (p.Family == FamilyIPv4 || p.Family == FamilyIPv6) && p.Hook != HookInetIngress {
		// What these hooks say of the link layer is that of the packet's arrival.
		p.HWHeader, p.HWAddr, p.HasHWType, p.HWType = nil, nil, false, 0
	}
	p.Cut = len(p.Payload) >= d.limit
	return good, n
}

// word reads a 32-bit attribute; bad becomes and stays true where one is too short.
func word(v []byte, bad bool) (uint32, bool) {
	if len(v) < 4 {
		return 0, true
	}
	return be.Uint32(v), bad
}

// decode reads the nested NFULA_VLAN attribute.
func (t *VLAN) decode(b []byte) bool {
	var tci, protocol bool
	for len(b) >= attrHeader {
		size := int(host.Uint16(b))
		if size < attrHeader || size > len(b) {
			return false
		}
		v := b[attrHeader:size]
		switch host.Uint16(b[2:]) & attrTypeMask {
		case attrVLANProtocol:
			if len(v) < 2 {
				return false
			}
			t.Protocol, protocol = be.Uint16(v), true
		case attrVLANTCI:
			if len(v) < 2 {
				return false
			}
			t.TCI, tci = be.Uint16(v), true
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	t.Present = tci && protocol
	return len(b) == 0
}

// reset forgets the packet before, except its Time.
func (p *Packet) reset() { *p = Packet{Time: p.Time} }

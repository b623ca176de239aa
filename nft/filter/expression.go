package filter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// The nodes in this file are those of pcap-filter(7). They mean exactly what libpcap
// makes of them.

// Proto is the protocol that qualifies a primitive.
type Proto uint8

// Protocols. Link is the link-layer header; GRE is not in pcap-filter(7), and means what
// "proto 47" means.
const (
	Any Proto = iota
	LinkLayer
	IP
	IP6
	ARP
	RARP
	TCP
	UDP
	SCTP
	ICMP
	ICMP6
	IGMP
	PIM
	VRRP
	CARP
	AH
	ESP
	GRE
	IGRP
	DECnet
	LAT
	SCA
	MOPRC
	MOPDL
	ATalk
	AARP
	ISO
	STP
	IPX
	NetBEUI
	PPPoED
	CLNP
	ESIS
	ISIS
)

// protoWords are the protocols as they are written.
var protoWords = map[string]Proto{
	"link": LinkLayer, "ip": IP, "ip6": IP6, "arp": ARP, "rarp": RARP, "tcp": TCP, "udp": UDP, "sctp": SCTP,
	"icmp": ICMP, "icmp6": ICMP6, "igmp": IGMP, "pim": PIM, "vrrp": VRRP, "carp": CARP, "ah": AH, "esp": ESP, "gre": GRE, "igrp": IGRP,
	"decnet": DECnet, "lat": LAT, "sca": SCA, "moprc": MOPRC, "mopdl": MOPDL, "atalk": ATalk, "aarp": AARP,
	"iso": ISO, "stp": STP, "ipx": IPX, "netbeui": NetBEUI, "pppoed": PPPoED, "clnp": CLNP, "esis": ESIS, "isis": ISIS,
}

// String gives the protocol as it is written; the link layer is written ether.
func (p Proto) String() string {
	if p == LinkLayer {
		return "ether"
	}
	for word, proto := range protoWords {
		if proto == p {
			return word
		}
	}
	return ""
}

// Dir says which of source and destination is meant.
type Dir uint8

// Directions.
const (
	SrcOrDst Dir = iota
	Src
	Dst
	SrcAndDst
)

func (d Dir) String() string { return [...]string{"", "src", "dst", "src and dst"}[d] }

// Is wants packets of a protocol.
type Is struct {
	Proto  Proto
	Column int // here and below: where it stands in the text, from 1
}

// Carries wants packets whose IP, Ethernet, ISO or IS-IS header gives a protocol's number:
// "ip proto 6", "ether proto 0x88cc".
type Carries struct {
	Proto  Proto // Any, LinkLayer, IP, IP6, ISO or ISIS
	Number uint32
	Column int
}

// Host wants an address, or all addresses that agree with it in the bits of a mask.
type Host struct {
	Proto  Proto // Any, IP, IP6, ARP or RARP
	Dir    Dir
	Addr   netip.Addr
	Mask   netip.Addr
	Column int
}

// EtherHost wants an Ethernet address.
type EtherHost struct {
	Dir    Dir
	MAC    [6]byte
	Column int
}

// Port wants a port from Low to High.
type Port struct {
	Proto     Proto // Any, TCP, UDP or SCTP
	Dir       Dir
	Low, High uint16
}

// Cast wants packets to many: by the Ethernet header's destination (LinkLayer), or the
// IP header's (IP and IP6, multicast only).
type Cast struct {
	Proto     Proto
	Broadcast bool // else multicast
	Column    int
}

// VLAN wants packets with an 802.1Q, 802.1ad or 0x9100 tag, and makes what stands after
// it in the filter look behind the tag.
type VLAN struct {
	ID     int // 0 to 4095; -1 = any
	Column int
}

// IfName wants packets that came in or go out by an interface. Not in libpcap but for
// pf's log.
type IfName struct{ Name string }

// Direction wants packets by the hook that sees them: prerouting, input and ingress are
// inbound, output, postrouting and egress outbound, forward is neither.
type Direction struct{ Outbound bool }

// Relation compares two numbers without sign.
type Relation struct {
	Op          string // = != < > <= >=
	Left, Right Expr
}

func (Is) node()        {}
func (Carries) node()   {}
func (Host) node()      {}
func (EtherHost) node() {}
func (Port) node()      {}
func (Cast) node()      {}
func (VLAN) node()      {}
func (IfName) node()    {}
func (Direction) node() {}
func (Relation) node()  {}

// Expr is a number of 32 bits that is calculated from a packet.
type Expr interface {
	String() string
	expr()
}

// Leaves of an expression, and the sign.
type (
	// Number is a number.
	Number uint32
	// PacketLength is the packet's length in bytes.
	PacketLength struct{}
	// Negative is 0 - X.
	Negative struct{ X Expr }
)

// Load is 1, 2 or 4 bytes of a packet in network order, counted from the beginning of a
// protocol's header. A packet of another protocol, or too short, is not wanted.
type Load struct {
	Proto  Proto
	Index  Expr
	Size   int
	Column int
}

// Binary calculates modulo 2^32.
type Binary struct {
	Op   string // + - * / % & | ^ << >>
	X, Y Expr
}

func (Number) expr()       {}
func (PacketLength) expr() {}
func (Negative) expr()     {}
func (Load) expr()         {}
func (Binary) expr()       {}

func (n Is) String() string { return n.Proto.String() }

func (n Carries) String() string {
	return words(n.Proto.String(), "proto", strconv.FormatUint(uint64(n.Number), 10))
}

func (n Host) String() string {
	bits, isPrefix := maskBits(n.Mask)
	switch {
	case isPrefix && bits == n.Addr.BitLen():
		return words(n.Proto.String(), n.Dir.String(), "host", n.Addr.String())
	case isPrefix:
		return words(n.Proto.String(), n.Dir.String(), "net", netip.PrefixFrom(n.Addr, bits).String())
	}
	return words(n.Proto.String(), n.Dir.String(), "net", n.Addr.String(), "mask", n.Mask.String())
}

func (n EtherHost) String() string {
	m := n.MAC
	return words("ether", n.Dir.String(), "host",
		fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5]))
}

func (n Port) String() string {
	if n.Low == n.High {
		return words(n.Proto.String(), n.Dir.String(), "port", strconv.Itoa(int(n.Low)))
	}
	return words(n.Proto.String(), n.Dir.String(), "portrange", fmt.Sprintf("%d-%d", n.Low, n.High))
}

func (n Cast) String() string {
	if n.Broadcast {
		return words(n.Proto.String(), "broadcast")
	}
	return words(n.Proto.String(), "multicast")
}

func (n VLAN) String() string {
	if n.ID < 0 {
		return "vlan"
	}
	return words("vlan", strconv.Itoa(n.ID))
}

func (n IfName) String() string {
	if strings.ContainsFunc(n.Name, func(r rune) bool { return r > 127 || !isLetterOrDigit(byte(r)) && !strings.ContainsRune("._-", r) }) ||
		!isLetterOrDigit(n.Name[0]) || strings.HasSuffix(n.Name, "-") || strings.HasSuffix(n.Name, "_") {
		return "ifname \\" + n.Name
	}
	return words("ifname", n.Name)
}

func (n Direction) String() string {
	if n.Outbound {
		return "outbound"
	}
	return "inbound"
}

func (n Relation) String() string {
	return words(n.Left.String(), n.Op, n.Right.String())
}

func (n Number) String() string     { return strconv.FormatUint(uint64(n), 10) }
func (PacketLength) String() string { return "len" }

func (n Negative) String() string {
	if x, ok := n.X.(Number); ok {
		return "-" + x.String()
	}
	return "-(" + n.X.String() + ")"
}

func (n Load) String() string {
	if n.Size == 1 {
		return fmt.Sprintf("%s[%s]", n.Proto, n.Index)
	}
	return fmt.Sprintf("%s[%s:%d]", n.Proto, n.Index, n.Size)
}

func (n Binary) String() string { return "(" + words(n.X.String(), n.Op, n.Y.String()) + ")" }

// words joins what is not empty.
func words(parts ...string) string {
	var out []string
	for _, p := range parts {
		if p != "" {
			out = append(out, p)
		}
	}
	return strings.Join(out, " ")
}

// maskBits tells whether a mask is that of a prefix, and the prefix's length.
func maskBits(mask netip.Addr) (int, bool) {
	bits, over := 0, false
	for _, b := range mask.AsSlice() {
		for bit := byte(0x80); bit != 0; bit >>= 1 {
			switch {
			case b&bit == 0:
				over = true
			case over:
				return 0, false
			default:
				bits++
			}
		}
	}
	return bits, true
}

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

// aliveComment says on the set what it is for.
const aliveComment = "renewed by capd; without it nothing is logged"

// key is what this package knows about a filter.Key: how it is loaded, what values look
// like, and what must be known of a packet before it may be loaded.
type key struct {
	load   expr.Any // into register 1
	typ    nftables.SetDatatype
	text   func([]byte) string
	native bool     // the register is in the processor's byte order
	needs  protocol // what the key implies of the packet, or 0
	needsL uint8    // the transport protocol that the key implies, or 0
}

// protocol is one that a frame has, or has above the link layer.
type protocol uint8

const (
	ip4 protocol = iota + 1
	ip6
	arp      // tables of family netdev only
	ethernet // a frame that came in by such a device, not what is in it
)

func nativeUint16(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }

func nativeUint32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

// Attribute values that golang.org/x/sys/unix does not have (linux/netfilter/nf_tables.h).
const (
	metaSecPath expr.MetaKey = 25
	metaIIfKind expr.MetaKey = 26
	metaOIfKind expr.MetaKey = 27
	rtXfrm      expr.RtKey   = 4
)

func meta(k expr.MetaKey) expr.Any { return &expr.Meta{Key: k, Register: 1} }

func network(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length}
}

func transport(offset, length uint32) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: length}
}

// keys holds every key but those with a number in them (keyOf).
var keys = map[filter.Key]key{
	filter.NFProto: {load: meta(expr.MetaKeyNFPROTO), typ: nftables.TypeNFProto, text: nfProtoText},
	filter.L4Proto: {load: meta(expr.MetaKeyL4PROTO), typ: nftables.TypeInetProto, text: protocolText},
	filter.EthType: {load: meta(expr.MetaKeyPROTOCOL), typ: nftables.TypeEtherType, text: etherTypeText},
	filter.PktType: {load: meta(expr.MetaKeyPKTTYPE), typ: nftables.TypePktType, text: pktTypeText},
	filter.IIfName: {load: meta(expr.MetaKeyIIFNAME), typ: nftables.TypeIFName, text: quotedText},
	filter.OIfName: {load: meta(expr.MetaKeyOIFNAME), typ: nftables.TypeIFName, text: quotedText},

	filter.Length: {load: meta(expr.MetaKeyLEN), typ: nftables.TypeInteger, text: numberText, native: true},

	filter.IPLength:    {load: network(2, 2), typ: integer(2), text: numberText, needs: ip4},
	filter.IPID:        {load: network(4, 2), typ: integer(2), text: numberText, needs: ip4},
	filter.IPFragOff:   {load: network(6, 2), typ: integer(2), text: numberText, needs: ip4},
	filter.IPTTL:       {load: network(8, 1), typ: integer(1), text: numberText, needs: ip4},
	filter.IPProtocol:  {load: network(9, 1), typ: nftables.TypeInetProto, text: protocolText, needs: ip4},
	filter.IP6Length:   {load: network(4, 2), typ: integer(2), text: numberText, needs: ip6},
	filter.IP6NextHdr:  {load: network(6, 1), typ: nftables.TypeInetProto, text: protocolText, needs: ip6},
	filter.IP6HopLimit: {load: network(7, 1), typ: integer(1), text: numberText, needs: ip6},

	filter.IPSaddr:  {load: network(12, 4), typ: nftables.TypeIPAddr, text: addressText, needs: ip4},
	filter.IPDaddr:  {load: network(16, 4), typ: nftables.TypeIPAddr, text: addressText, needs: ip4},
	filter.IP6Saddr: {load: network(8, 16), typ: nftables.TypeIP6Addr, text: addressText, needs: ip6},
	filter.IP6Daddr: {load: network(24, 16), typ: nftables.TypeIP6Addr, text: addressText, needs: ip6},

	filter.ARPSaddr: {load: network(14, 4), typ: nftables.TypeIPAddr, text: addressText, needs: arp},
	filter.ARPDaddr: {load: network(24, 4), typ: nftables.TypeIPAddr, text: addressText, needs: arp},

	filter.ThSport:      port(0, 0),
	filter.ThDport:      port(2, 0),
	filter.TCPSport:     port(0, 6),
	filter.TCPDport:     port(2, 6),
	filter.UDPSport:     port(0, 17),
	filter.UDPDport:     port(2, 17),
	filter.DCCPSport:    port(0, 33),
	filter.DCCPDport:    port(2, 33),
	filter.SCTPSport:    port(0, 132),
	filter.SCTPDport:    port(2, 132),
	filter.UDPLiteSport: port(0, 136),
	filter.UDPLiteDport: port(2, 136),

	keyIIf:       {load: meta(expr.MetaKeyIIF), typ: nftables.TypeIFIndex, text: func([]byte) string { return `"lo"` }, native: true},
	keyAlive:     {load: meta(expr.MetaKeyMARK), typ: nftables.TypeMark, text: markText, native: true},
	keyRtIPsec:   {load: &expr.Rt{Key: rtXfrm, Register: 1}, typ: nftables.TypeBoolean, text: existsText},
	keyIPsec:     {load: meta(metaSecPath), typ: nftables.TypeBoolean, text: existsText},
	keyIIfType:   {load: meta(expr.MetaKeyIIFTYPE), typ: integer(2), text: arphrdText, native: true},
	keyIIfKind:   {load: meta(metaIIfKind), typ: nftables.TypeIFName, text: quotedText},
	keyOIfKind:   {load: meta(metaOIfKind), typ: nftables.TypeIFName, text: quotedText},
	keyEthertype: {load: raw("ll", 12, 2), typ: nftables.TypeEtherType, text: etherTypeText, needs: ethernet},
	keyFibType: {load: &expr.Fib{Register: 1, FlagDADDR: true, FlagOIF: true, ResultADDRTYPE: true},
		typ: nftables.TypeFIBAddr, text: func([]byte) string { return "local" }, native: true},
}

// integer is the type of numbers of so many bytes.
func integer(size uint32) nftables.SetDatatype {
	t := nftables.TypeInteger
	t.Bytes = size
	return t
}

// raw loads bytes that nft has no word for: base is ll, nh or th.
func raw(base string, offset, length uint32) expr.Any {
	bases := map[string]expr.PayloadBase{"ll": expr.PayloadBaseLLHeader,
		"nh": expr.PayloadBaseNetworkHeader, "th": expr.PayloadBaseTransportHeader}
	return &expr.Payload{DestRegister: 1, Base: bases[base], Offset: offset, Len: length}
}

func port(offset uint32, protocol uint8) key {
	return key{load: transport(offset, 2), typ: nftables.TypeInetService, text: numberText, needsL: protocol}
}

// keyOf finds a key; one that does not exist is a mistake in this package or in filter
// and loads nothing.
func keyOf(k filter.Key) key {
	if known, ok := keys[k]; ok {
		return known
	}
	var base string
	var offset, length uint32
	if n, err := fmt.Sscanf(strings.ReplaceAll(string(k), ",", " "), "@%s %d %d", &base, &offset, &length); n == 3 && err == nil {
		return key{load: raw(base, offset/8, length/8), typ: integer(length / 8), text: hexText}
	}
	// The rest is a name and a number.
	i := strings.LastIndexByte(string(k), ' ')
	n, err := strconv.ParseUint(string(k[i+1:]), 10, 32)
	if i < 0 || err != nil {
		return key{text: numberText}
	}
	numbered := key{typ: nftables.TypeInteger, text: nativeText, native: true}
	switch k[:i] {
	case keyNumGen:
		numbered.load = &expr.Numgen{Register: 1, Modulus: uint32(n), Type: numgenRandom}
	case keySymHash:
		numbered.load = &expr.Hash{DestRegister: 1, Modulus: uint32(n), Type: expr.HashTypeSym}
	}
	return numbered
}

// texts gives values as nft lists them in a set.
func (k key) texts(values []filter.Span) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = k.spanText(v)
	}
	return out
}

// spanText gives a value, a prefix or a range.
func (k key) spanText(s filter.Span) string {
	if s.Hi == nil {
		return k.text(s.Lo)
	}
	if bits, ok := prefixLength(s); ok && k.isAddress() {
		return fmt.Sprintf("%s/%d", k.text(s.Lo), bits)
	}
	return k.text(s.Lo) + "-" + k.text(s.Hi)
}

// isAddress tells keys whose ranges are written as prefixes where they are some.
func (k key) isAddress() bool {
	return k.typ.Name == nftables.TypeIPAddr.Name || k.typ.Name == nftables.TypeIP6Addr.Name
}

// prefixLength tells whether a value is a range and a prefix, and its length in bits.
func prefixLength(s filter.Span) (int, bool) {
	if s.Hi == nil {
		return 0, false
	}
	bits, free := 0, false
	for i := range s.Lo {
		for bit := byte(0x80); bit != 0; bit >>= 1 {
			same := s.Lo[i]&bit == s.Hi[i]&bit
			switch {
			case same && free, !same && s.Lo[i]&bit != 0:
				return 0, false
			case same:
				bits++
			default:
				free = true
			}
		}
	}
	return bits, true
}

func hasRange(values []filter.Span) bool {
	for _, v := range values {
		if v.Hi != nil {
			return true
		}
	}
	return false
}

func numberText(b []byte) string {
	var n uint64
	for _, x := range b {
		n = n<<8 | uint64(x)
	}
	return strconv.FormatUint(n, 10)
}

func hexText(b []byte) string {
	n := binary.BigEndian.Uint64(append(make([]byte, 8-len(b)), b...))
	return fmt.Sprintf("0x%x", n)
}

func nativeText(b []byte) string {
	return strconv.FormatUint(uint64(binary.NativeEndian.Uint32(b)), 10)
}

func markText(b []byte) string { return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b)) }

func quotedText(b []byte) string { return `"` + string(b) + `"` }

func protocolText(b []byte) string { return filter.ProtocolName(b[0]) }

func existsText(b []byte) string {
	if b[0] == 0 {
		return "missing"
	}
	return "exists"
}

func addressText(b []byte) string {
	a, _ := netip.AddrFromSlice(b)
	return a.String()
}

func nfProtoText(b []byte) string {
	if b[0] == 2 {
		return "ipv4"
	}
	return "ipv6"
}

func pktTypeText(b []byte) string {
	names := []string{"host", "broadcast", "multicast", "other"}
	if int(b[0]) < len(names) {
		return names[b[0]]
	}
	return numberText(b)
}

// arphrdText has the only name that rules ask for.
func arphrdText(b []byte) string {
	if n := binary.NativeEndian.Uint16(b); n != unix.ARPHRD_ETHER {
		return strconv.Itoa(int(n))
	}
	return "ether"
}

// etherTypeText has the names that nft knows (nftables src/proto.c, ethertype symbols).
func etherTypeText(b []byte) string {
	switch n := binary.BigEndian.Uint16(b); n {
	case 0x0800:
		return "ip"
	case 0x0806:
		return "arp"
	case 0x86dd:
		return "ip6"
	case 0x8100:
		return "8021q"
	case 0x88a8:
		return "8021ad"
	default:
		return fmt.Sprintf("0x%04x", n)
	}
}

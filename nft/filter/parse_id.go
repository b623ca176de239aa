package filter

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// id reads what a qualifier is applied to: an address, a network, a port, a protocol, a
// list of them in parentheses, or not one of them.
func (p *parser) id(q qualifier) (Node, error) {
	if err := p.deeper(); err != nil {
		return nil, err
	}
	defer p.shallower()
	switch {
	case p.is("not"):
		if err := p.advance(); err != nil {
			return nil, err
		}
		n, err := p.id(q)
		return Not{ungroup(n)}, err
	case p.is("("):
		return p.ids(q)
	}
	t := p.tok
	if q == noQualifier && t.kind != tokSymbol && t.kind != tokEnd {
		return nil, p.alone(t)
	}
	switch t.kind {
	case tokNumber:
		if err := p.advance(); err != nil {
			return nil, err
		}
		if p.is("/") && (q.what == "port" || q.what == "portrange") {
			return nil, p.wrong(p.tok, "write the protocol before port, and several ports so: port 80 or 443", "a port has nothing behind a /")
		}
		if p.is("/") {
			return nil, p.wrong(p.tok, fmt.Sprintf("write %s.0/LENGTH", t.text), "a network with a prefix length needs at least two numbers before the /")
		}
		return p.number(t, t.value, q)
	case tokIPv4:
		return p.ipv4(q)
	case tokIPv6:
		return p.ipv6(q)
	case tokMAC:
		if q.proto != LinkLayer || q.what != "" && q.what != "host" {
			return nil, p.wrong(t, words("write ether", q.dir.String(), "host", t.text), "an Ethernet address stands where none is compared")
		}
		return EtherHost{q.dir, t.mac, t.at + 1}, p.advance()
	case tokName, tokEscaped:
		n, err := p.name(t, q)
		if err != nil {
			return nil, err
		}
		return n, p.advance()
	case tokWord:
		// libpcap wants a backslash before names that are keywords; after proto nothing
		// else can be meant.
		if _, ok := protoWords[t.text]; ok && q.what == "proto" {
			n, err := p.name(t, q)
			if err != nil {
				return nil, err
			}
			return n, p.advance()
		}
	}
	return nil, p.unexpected(expectedID(q))
}

// alone is an error at an id that has no qualifier.
func (p *parser) alone(t token) error {
	hint := "write host, net or port before it"
	switch t.kind {
	case tokMAC:
		hint = "write ether host before it"
	case tokName, tokEscaped:
		hint = "write what it is before it, such as port; host names are not looked up: write addresses"
		if better := wordHint(t.text); better != "" {
			hint = better
		}
	case tokNumber:
		if strings.HasPrefix(t.text, "tcp-") {
			hint = fmt.Sprintf("write tcp[tcpflags] & %s != 0", t.text)
		}
	}
	return p.wrong(t, hint, "%q stands alone: nothing before it says what it is", t.text)
}

func expectedID(q qualifier) string {
	switch q.what {
	case "port":
		return "a port's number or name"
	case "portrange":
		return "two ports with a hyphen, such as 80-90"
	case "proto":
		return "a protocol's number or name"
	case "net":
		return "a network, such as 192.0.2.0/24"
	}
	if q.proto == LinkLayer {
		return "an Ethernet address, such as 00:00:5e:00:53:01"
	}
	return "an address, such as 192.0.2.7"
}

// hostProto refuses qualifiers that have no addresses.
func (p *parser) hostProto(t token, q qualifier, is4 bool) error {
	switch q.what {
	case "", "host", "net":
	default:
		return p.wrong(t, "", "an address stands where %s is expected", expectedID(q))
	}
	switch {
	case q.proto == LinkLayer:
		return p.wrong(t, "write ether host 00:00:5e:00:53:01, or leave ether out", "an IP address stands where an Ethernet address is expected")
	case q.proto == Any, q.proto == IP && is4, q.proto == IP6 && !is4, (q.proto == ARP || q.proto == RARP) && is4:
		return nil
	case q.proto == DECnet:
		return p.wrong(t, "compare bytes, as in decnet[3:2]", "DECnet addresses are not supported")
	case q.proto == IP, q.proto == IP6, q.proto == ARP, q.proto == RARP:
		return p.wrong(t, "leave "+q.proto.String()+" out", "%s has no such address", q.proto)
	}
	return p.wrong(t, fmt.Sprintf("write %s and host %s", q.proto, t.text), "%s has no addresses of its own", q.proto)
}

// number makes a node of a number.
func (p *parser) number(t token, n uint32, q qualifier) (Node, error) {
	if q == noQualifier {
		return nil, p.alone(t)
	}
	switch q.what {
	case "port", "portrange":
		return p.ports(t, q, n, n, Any)
	case "proto":
		return p.carries(t, q, n)
	}
	if err := p.hostProto(t, q, true); err != nil {
		return nil, err
	}
	// As libpcap: a number alone is a whole address, and of a network its beginning.
	mask := ^uint32(0)
	if q.what == "net" {
		for n != 0 && n>>24 == 0 {
			n, mask = n<<8, mask<<8
		}
	}
	return Host{q.proto, q.dir, addr4(n), addr4(mask), t.at + 1}, nil
}

func addr4(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// dotted reads two to four numbers with dots, as the beginning of an address; bits is
// how much of it they fill.
func (p *parser) dotted(t token) (n uint32, bits int, err error) {
	for _, part := range strings.Split(t.text, ".") {
		b, err := strconv.ParseUint(part, 10, 32)
		if err != nil || b > 255 {
			return 0, 0, p.wrong(t, "write an address such as 192.0.2.7", "%s is no IPv4 address: %s is larger than 255", t.text, part)
		}
		n, bits = n<<8|uint32(b), bits+8
	}
	return n << (32 - bits), bits, nil
}

// ipv4 reads an IPv4 address, with a prefix length or a mask.
func (p *parser) ipv4(q qualifier) (Node, error) {
	t := p.tok
	if err := p.hostProto(t, q, true); err != nil {
		return nil, err
	}
	n, bits, err := p.dotted(t)
	if err != nil {
		return nil, err
	}
	mask := ^uint32(0) << (32 - bits)
	if err := p.advance(); err != nil {
		return nil, err
	}
	at := p.tok
	switch {
	case p.is("/"):
		length, err := p.prefixLength(32, q)
		if err != nil {
			return nil, err
		}
		mask = ^uint32(0) << (32 - length)
	case p.is("mask"):
		if q.what != "net" {
			return nil, p.wrong(at, "write net instead of host", "only a network has a mask")
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
		if p.tok.kind != tokIPv4 {
			return nil, p.unexpected("a mask such as 255.255.255.0")
		}
		if mask, _, err = p.dotted(p.tok); err != nil {
			return nil, err
		}
		if err := p.advance(); err != nil {
			return nil, err
		}
	}
	if n&^mask != 0 {
		hint := fmt.Sprintf("write %s for the network", addr4(n&mask))
		if length, ok := maskBits(addr4(mask)); ok {
			hint = fmt.Sprintf("write net %s/%d for the network, host %s for the host", addr4(n&mask), length, addr4(n))
		}
		return nil, p.wrong(t, hint,
			"%s has bits set that are not the network's", t.text)
	}
	return Host{q.proto, q.dir, addr4(n), addr4(mask), t.at + 1}, nil
}

// prefixLength reads / and a number of bits.
func (p *parser) prefixLength(longest int, q qualifier) (int, error) {
	slash := p.tok
	if q.what != "net" && (longest == 32 || q.what != "" && q.what != "host") {
		return 0, p.wrong(slash, "write net instead of host", "only a network has a prefix length")
	}
	if err := p.advance(); err != nil {
		return 0, err
	}
	t := p.tok
	if t.kind != tokNumber {
		return 0, p.unexpected("a prefix length in bits")
	}
	if t.value > uint32(longest) {
		return 0, p.wrong(t, "", "a prefix of %d bits: there are 0 to %d", t.value, longest)
	}
	if q.what != "net" && int(t.value) != longest {
		return 0, p.wrong(slash, "write net instead of host", "only a network has a prefix length")
	}
	return int(t.value), p.advance()
}

// ipv6 reads an IPv6 address, with a prefix length.
func (p *parser) ipv6(q qualifier) (Node, error) {
	t := p.tok
	if err := p.hostProto(t, q, false); err != nil {
		return nil, err
	}
	if err := p.advance(); err != nil {
		return nil, err
	}
	length := 128
	if p.is("/") {
		var err error
		if length, err = p.prefixLength(128, q); err != nil {
			return nil, err
		}
	}
	prefix := netip.PrefixFrom(t.addr, length)
	if prefix.Masked() != prefix {
		return nil, p.wrong(t, fmt.Sprintf("write net %s for the network, host %s for the host", prefix.Masked(), t.addr),
			"%s has bits set that are not the network's", t.text)
	}
	var mask [16]byte
	for i := range length {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return Host{q.proto, q.dir, t.addr, netip.AddrFrom16(mask), t.at + 1}, nil
}

// ports makes a node of two ports; name is the protocol that their names belong to.
func (p *parser) ports(t token, q qualifier, low, high uint32, named Proto) (Node, error) {
	proto := q.proto
	switch {
	case proto != Any && proto != TCP && proto != UDP && proto != SCTP:
		return nil, p.wrong(t, "write tcp, udp or sctp before port, or none", "%s has no ports", proto)
	case low > 65535 || high > 65535:
		return nil, p.wrong(t, "", "port %d: their numbers go from 0 to 65535", max(low, high))
	case proto == Any:
		proto = named
	case named != Any && named != proto:
		return nil, p.wrong(t, "write the number, or "+named.String(), "the name belongs to a port of %s", named)
	}
	return Port{proto, q.dir, uint16(min(low, high)), uint16(max(low, high))}, nil
}

// carries makes a node of a protocol's number.
func (p *parser) carries(t token, q qualifier, n uint32) (Node, error) {
	switch q.proto {
	case Any, IP, IP6, LinkLayer, ISO, ISIS:
	default:
		return nil, p.wrong(t, "write ip proto, ip6 proto or proto", "%s carries no protocol by number", q.proto)
	}
	return Carries{q.proto, n, t.at + 1}, nil
}

// etherTypes are the ethertypes and LLC service access points that libpcap has names for.
var etherTypes = map[string]uint32{
	"ip": 0x0800, "arp": 0x0806, "rarp": 0x8035, "ip6": 0x86dd, "lat": 0x6004, "decnet": 0x6003, "sca": 0x6007, "moprc": 0x6002, "mopdl": 0x6001, "loopback": 0x9000,
	"aarp": etherAARP, "atalk": etherATalk, "iso": sapISO, "stp": sapSTP, "ipx": sapIPX, "netbeui": sapNetBEUI,
}

// name makes a node of a name.
func (p *parser) name(t token, q qualifier) (Node, error) {
	switch q.what {
	case "port":
		proto, port, ok := etcServices().lookup(t.text)
		if low, high, isRange := strings.Cut(t.text, "-"); !ok && isRange && isNumber(low) && isNumber(high) {
			return nil, p.wrong(t, "write portrange "+t.text, "%q is a range, which port does not take", t.text)
		}
		if small := strings.ToLower(t.text); !ok && small != t.text {
			return nil, p.wrong(t, "write its number, or "+small, "no port is called %q in /etc/services", t.text)
		}
		if !ok {
			return nil, p.wrong(t, "write its number", "no port is called %q in /etc/services", t.text)
		}
		return p.ports(t, q, uint32(port), uint32(port), proto)
	case "portrange":
		return p.portRange(t, q)
	case "proto":
		switch q.proto {
		case ISO:
			if n, ok := isoProtos[protoWords[t.text]]; ok {
				return p.carries(t, q, n)
			}
			return nil, p.wrong(t, "write clnp, esis, isis or a number", "no ISO protocol is called %q", t.text)
		case LinkLayer:
			if n, ok := etherTypes[t.text]; ok {
				return p.carries(t, q, n)
			}
			return nil, p.wrong(t, "write its number, such as 0x88cc", "no ethertype is called %q", t.text)
		}
		n, ok := protocolNumber(t.text)
		if !ok {
			return nil, p.wrong(t, "write its number", "no protocol is called %q, neither by IANA nor in /etc/protocols", t.text)
		}
		return p.carries(t, q, uint32(n))
	case "net":
		if strings.Trim(t.text, "0123456789.-") == "" {
			return nil, p.wrong(t, "write the network, such as 192.0.2.0/24", "%q is no network", t.text)
		}
		return nil, p.wrong(t, "write the network, such as 192.0.2.0/24", "names of networks are not looked up: %q", t.text)
	}
	if strings.Trim(t.text, "0123456789.-") == "" {
		return nil, p.wrong(t, "write an address such as 192.0.2.7, or net and its beginning, such as net 192.0.2", "%q is no address", t.text)
	}
	if near := nearest(t.text); near != "" && p.isMore() {
		return nil, p.wrong(t, "write "+near+", if that is meant", "%q stands where %s is expected", t.text, expectedID(q))
	}
	if q.proto == LinkLayer {
		return nil, p.wrong(t, "write the address, such as 00:00:5e:00:53:01", "names of Ethernet addresses are not looked up: %q", t.text)
	}
	if p.hosts != nil {
		return p.resolve(t, q)
	}
	return nil, p.wrong(t, "write the address; capctl start --resolve looks names up",
		"host names are not looked up, because what they stand for changes: %q", t.text)
}

// isMore tells whether an id seems to stand behind the next token, as in "src hots 10.0.0.1".
func (p *parser) isMore() bool {
	next, err := (&lexer{text: p.lexer.text, at: p.lexer.at}).next()
	return err == nil && (next.kind == tokNumber || next.kind == tokIPv4 || next.kind == tokIPv6 || next.kind == tokMAC)
}

// portRange reads LOW-HIGH; either can be a name.
func (p *parser) portRange(t token, q qualifier) (Node, error) {
	one := func(text string) (Proto, uint32, error) {
		if isNumber(text) {
			if n, err := strconv.ParseUint(text, 10, 32); err == nil {
				return Any, uint32(n), nil
			}
		}
		proto, port, ok := etcServices().lookup(text)
		if !ok {
			return Any, 0, p.wrong(t, "write two ports with a hyphen, such as 80-90", "no port is called %q in /etc/services", text)
		}
		return proto, uint32(port), nil
	}
	lowText, highText, isRange := strings.Cut(t.text, "-")
	if !isRange {
		return nil, p.wrong(t, fmt.Sprintf("write two ports with a hyphen, such as 80-90, or port %s", t.text), "%q is no range of ports", t.text)
	}
	lowProto, low, err := one(lowText)
	if err != nil {
		return nil, err
	}
	highProto, high, err := one(highText)
	if err != nil {
		return nil, err
	}
	if lowProto != highProto {
		lowProto = Any
	}
	return p.ports(t, q, low, high, lowProto)
}

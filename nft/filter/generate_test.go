package filter

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
)

// generator makes expressions and packets from the same small pools of addresses, ports
// and protocols, so that they often fit each other.
type generator struct {
	*rand.Rand
	link  Link
	wrong bool // packets may have bytes changed at random, such as a header's length
}

func pick[T any](g *generator, from []T) T { return from[g.IntN(len(from))] }

var (
	poolIPv4 = []string{"192.0.2.7", "192.0.2.8", "10.0.0.1", "10.9.0.2", "224.0.0.5", "255.255.255.255", "0.0.0.80"}
	// poolHost4 are addresses as people and libpcap write them too: cut, decimal, hexadecimal, octal.
	poolHost4 = []string{"10.9", "192.0.2", "0xc0000207", "167772161", "0120", "80"}
	poolNet4  = []string{"192.0.2.0/24", "10.0.0.0/8", "192.0.2.6/31", "0.0.0.0/0", "10.9", "10.9.0", "10", "012", "0x0a", "0xc00002", "10.9/16", "224.0.0.0/4", "192.0.2.0 mask 255.255.255.0", "10.0.0.0 mask 255.0.255.0", "0.0.2.0 mask 0.0.255.0"}
	poolIPv6  = []string{"2001:db8::7", "2001:db8::8", "ff02::1", "::1", "fe80::1:2:3:4"}
	poolNet6  = []string{"2001:db8::/32", "ff00::/8", "::/0", "2001:db8::/127", "fe80::/10", "::/96"}
	poolPort  = []uint16{22, 53, 80, 443, 5060, 65535, 0}
	poolProto = []byte{1, 2, 4, 6, 17, 41, 44, 47, 50, 51, 58, 59, 103, 112, 132, 255}
	poolName  = []string{"ssh", "domain", "http", "https", "sip", "tftp", "0x50", "0120", "0x35"}
	poolRange = []string{"ssh-http", "domain-https", "80-ssh", "022-080", "65535-0", "80", "tftp-syslog"}
	poolMAC   = []string{"00:00:5e:00:53:01", "00:00:5e:00:53:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:05"}
	poolMACs  = append(poolMAC, "0:0:5e:0:53:1", "00-00-5E-00-53-01", "0000.5e00.5302", "00005e005301")
	poolEther = []uint16{0x0800, 0x0806, 0x8035, 0x86dd, 0x8100, 0x88a8, 0x9100, 0x88cc, 0x8847, 0x8864, 0x8863, 0x6003, 0x809b, 0x80f3, 0x8137, 0x0030, 0x05dc, 0x05dd}
	poolSAP   = []byte{0x42, 0xfe, 0xf0, 0xe0, 0x06, 0xaa, 0xff}
	poolLabel = []uint32{0, 16, 1024, 100000, 1048575}
	poolPPP   = []uint16{0x21, 0x57, 0x23, 0x2b, 0x281, 0xc021}
	poolVLAN  = []uint16{0, 5, 100, 4095}
)

// expression is a filter of bounded depth.
func (g *generator) expression(depth int) string {
	switch n := g.IntN(12); {
	case n == 10: // an id that repeats what stood before, or that stands alone
		return g.expression(max(depth-1, 0)) + pick(g, []string{" or ", " and ", " or not ", " and not ", " and (", " or not ("}) + g.id()
	case n == 11: // layers inside each other
		return g.layers() + g.expression(max(depth-1, 0))
	case depth == 3 && n == 0: // more alternatives than a packet can come through chains
		parts := make([]string, 5+g.IntN(20))
		for i := range parts {
			parts[i] = "(" + g.expression(1) + " and " + g.primitive() + ")"
		}
		return strings.Join(parts, " or ")
	case depth == 0 || n < 3:
		return g.primitive()
	case n < 5:
		return g.expression(depth-1) + pick(g, []string{" and ", " && "}) + g.expression(depth-1)
	case n < 7:
		return g.expression(depth-1) + pick(g, []string{" or ", " || "}) + g.expression(depth-1)
	case n < 8:
		return pick(g, []string{"not ", "! ", "!"}) + g.expression(depth-1)
	}
	return "(" + g.expression(depth-1) + ")"
}

// id is one without a qualifier. Sometimes it lacks a parenthesis: then both of us refuse.
func (g *generator) id() string {
	id := pick(g, []string{pick(g, poolIPv4), pick(g, poolIPv6), pick(g, poolHost4), fmt.Sprint(pick(g, poolPort)), pick(g, poolName), fmt.Sprint(pick(g, poolProto))})
	switch g.IntN(4) {
	case 0:
		return id + ")"
	case 1:
		return id + " or " + fmt.Sprint(pick(g, poolPort)) + ")"
	}
	return id
}

// layers is what makes later primitives look further in.
func (g *generator) layers() string {
	if g.link == LinkRaw {
		return pick(g, []string{"ip and ", "ip6 and ", "not ", "", "len > 0 && "})
	}
	text := ""
	for range 1 + g.IntN(3) {
		text += pick(g, []string{"vlan", "vlan", fmt.Sprintf("vlan %d", pick(g, poolVLAN)), "mpls", "mpls", fmt.Sprintf("mpls %d", pick(g, poolLabel)), "pppoes", "(vlan)", "not vlan"}) +
			pick(g, []string{" and ", " && ", " and ", " or ", "\n and\t"})
	}
	return text
}

func (g *generator) dir() string {
	return pick(g, []string{"", "", "src ", "dst ", "src or dst ", "src and dst ", "dst or src "})
}

// list repeats an id with the shorthand for it.
func (g *generator) list(head string, id func() string) string {
	switch g.IntN(10) {
	case 0:
		return head + id() + " or " + id()
	case 1:
		return head + "(" + id() + " or " + id() + ")"
	case 2:
		return head + id() + " or not " + id()
	case 3:
		return head + "not " + id() + " and not " + id()
	case 4:
		return head + "not (" + id() + " or " + id() + ")"
	case 5:
		return head + "(" + id() + " and (not " + id() + ")) or " + id()
	}
	return head + id()
}

func (g *generator) primitive() string {
	if g.link == LinkEthernet && g.IntN(4) == 0 {
		return g.etherPrimitive()
	}
	switch g.IntN(16) {
	case 0, 1:
		id := func() string { return pick(g, append(append(poolHost4[:2:2], poolIPv4...), poolIPv6...)) }
		return g.list(g.dir()+pick(g, []string{"host ", "host ", "src ", "dst "}), id)
	case 13:
		id := func() string { return pick(g, append(poolName, fmt.Sprint(pick(g, poolPort)))) }
		return g.list(pick(g, []string{"", "", "tcp ", "udp ", "sctp "})+g.dir()+"port ", id)
	case 14:
		return pick(g, []string{
			pick(g, []string{"", "", "tcp ", "udp "}) + g.dir() + "portrange " + pick(g, poolRange),
			g.dir() + "host " + pick(g, poolHost4),
			pick(g, []string{"ip", "ip6", ""}) + " proto \\" + pick(g, []string{"tcp", "udp", "icmp", "sctp", "ah", "esp", "pim", "igmp", "vrrp", "ip"}),
			pick(g, []string{"ip ", "ip6 ", "tcp ", "icmp "}) + g.dir() + pick(g, []string{"host ", "net ", "port ", ""}) + pick(g, []string{"192.0.2.7", "2001:db8::7", "10.9", "80"}),
			pick(g, []string{"less", "greater"}) + pick(g, []string{" 0", " 0x3c", " 074", " 4294967295", " 60", " (60)", "60"}),
			pick(g, []string{"carp", "igrp", "igrp[0] > 5", "carp[0] & 0xf0 = 0x20", "pim[0] & 0xf > 3", "vrrp[1] != 5", "sctp[12] > 5"}),
			pick(g, []string{"proto 300", "ip proto 0", "ip6 proto 0 or 43 or 44 or 60", "ip6 proto 44 and ip6[40] = 6", "proto (6 or 17)"}),
		})
	case 2:
		return g.dir() + "net " + pick(g, append(poolNet4, poolNet6...))
	case 3, 4:
		id := func() string { return fmt.Sprint(pick(g, poolPort)) }
		return g.list(pick(g, []string{"", "tcp ", "udp ", "sctp "})+g.dir()+"port ", id)
	case 5:
		return pick(g, []string{"", "tcp ", "udp "}) + g.dir() + fmt.Sprintf("portrange %d-%d", pick(g, poolPort), pick(g, poolPort))
	case 6, 7:
		return pick(g, []string{"ip", "ip6", "tcp", "udp", "icmp", "icmp6", "sctp", "igmp", "pim", "vrrp", "ah", "esp"})
	case 8:
		id := func() string { return fmt.Sprint(pick(g, poolProto)) }
		return g.list(pick(g, []string{"proto ", "ip proto ", "ip6 proto "}), id)
	case 9:
		return pick(g, []string{"ip multicast", "ip6 multicast"})
	case 10:
		return fmt.Sprintf("%s %d", pick(g, []string{"less", "greater"}), g.IntN(120))
	case 11:
		return pick(g, []string{
			"tcp[tcpflags] & (tcp-syn|tcp-fin) != 0", "tcp[tcpflags] = tcp-syn|tcp-ack", "icmp[icmptype] = icmp-echo",
			"icmp6[icmp6type] = 128", "ip[0] & 0xf > 5", "ip[6:2] & 0x1fff = 0", "ip[6] & 0x20 != 0", "ip[8] < 5", "ip[9] = 17",
			"ip[12:4] = ip[16:4]", "ip[2:2] - ((ip[0] & 0xf) << 2) > 20", "tcp[((tcp[12] & 0xf0) >> 2):2] = 0x6162",
			"udp[4:2] > 20", "udp[0:2] = udp[2:2]", "ip6[4:2] > 20", "ip6[6] = 0", "sctp[0] = 0", "igmp[0] = 0x11", "len - 20 > 40",
			"icmp[icmpcode] < 2", "icmp6[icmp6code] != 0", "icmp6[icmp6type] >= icmp6-neighborsolicit", "tcp[tcpflags] & tcp-syn == tcp-syn", "tcp[13] & 0x12 = 0x12",
			"ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2) != 0", "ip[len - 1] != 0", "ip[len - 4:4] > 1", "ip6[len - 41] = 0", "ip[2:2] = len", "ip[2:2] + 14 = len",
			"ip6[4:2] + 40 = len", "ip[(ip[0] & 0xf) << 2:2] = 80", "ip[ip[8]:4] > 5", "ip[0] & 15 << 2 > 20", "tcp[tcp[12] >> 4 << 2] != 0", "udp[len - 29] != 0",
			"ip[60:4] >= 0", "tcp[1500] = 0", "ip[65535] = 0", "ip6[1000:2] != 5", "-1 = len", "1 + 1 = 2", "5 > 6",
		})
	case 12:
		return "ip host " + pick(g, poolIPv4)
	}
	return g.number(2) + pick(g, []string{" = ", " != ", " < ", " > ", " <= ", " >= ", "=", "==", "<"}) + g.number(2)
}

func (g *generator) etherPrimitive() string {
	switch g.IntN(12) {
	case 8:
		return pick(g, []string{"mpls", "mpls", fmt.Sprintf("mpls %d", pick(g, poolLabel))})
	case 9:
		return pick(g, []string{"pppoes", "pppoed", fmt.Sprintf("pppoes %d", pick(g, poolVLAN))})
	case 10:
		return pick(g, []string{"llc", "llc i", "llc s", "llc u", "llc rr", "llc rnr", "llc rej", "llc ui", "llc ua", "llc disc", "llc sabme", "llc test", "llc xid", "llc frmr"})
	case 11:
		return pick(g, []string{"stp", "ipx", "iso", "netbeui", "atalk", "aarp", "decnet", "lat", "clnp", "esis", "isis", "l1", "l2", "iih", "lsp", "snp", "csnp", "psnp",
			"iso proto 131", "isis proto 15", "ether proto 0x42", "ether proto \\ipx", "ether proto 0xfe", "ether proto 6", "ether proto 5", "decnet[0] = 1", "atalk[1:2] > 5"})
	case 0:
		return pick(g, []string{"arp", "rarp", "broadcast", "multicast", "ether broadcast", "ether multicast"})
	case 1, 2:
		return g.list(pick(g, []string{"ether ", "link "})+g.dir()+pick(g, []string{"host ", "host ", "src "}), func() string { return pick(g, poolMACs) })
	case 3:
		return fmt.Sprintf("ether proto 0x%x", pick(g, poolEther))
	case 4:
		return "vlan"
	case 5:
		return fmt.Sprintf("vlan %d", pick(g, poolVLAN))
	case 6:
		return pick(g, []string{"arp ", "rarp "}) + g.dir() + "host " + pick(g, poolIPv4)
	}
	return pick(g, []string{"arp net 192.0.2.0/24", "arp src 10.9", "rarp net 10", "ether proto \\arp or \\ip6", "ether proto (0x800 or 0x806)", "ether proto 65536", "ether proto 1501 or 1500",
		"ether[len - 1] = 0", "ether[len - 4:4] != 0", "ether[len - 2:4] = 0", "arp[len - 15] = 0", "ether[12:2] + 14 = len", "ether[0:2] + ip[0] > 5", "arp[24:4] = arp[14:4]", "lat[0] > 5", "mopdl[1:2] > 9",
		"ether[0] & 1 = 0", "ether[12:2] <= 1500", "ether[14:2] = 0xaaaa", "arp[6:2] = 1", "ether[20:4] > 5", "ether[6:4] = ether[0:4]"})
}

// number is an arithmetic expression.
func (g *generator) number(depth int) string {
	switch n := g.IntN(8); {
	case depth == 0 || n < 2:
		return pick(g, []string{"0", "1", "2", "5", "17", "0x45", "0x60", "64", "255", "1000", "0xffffffff", "021", "tcp-syn", "icmp-echo", "icmp6type", "4294967295"})
	case n < 3:
		return "len"
	case n < 5:
		return fmt.Sprintf("%s[%d%s]", pick(g, g.countable()), g.IntN(44), pick(g, []string{"", ":1", ":2", ":4"}))
	case n < 6:
		return fmt.Sprintf(pick(g, []string{"ip[%s]", "ip[%s]", "-%s", pick(g, g.countable()) + "[%s:2]"}), g.number(depth-1))
	}
	op := pick(g, []string{"+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>"})
	right := g.number(depth - 1)
	switch op {
	case "/", "%":
		right = pick(g, []string{"2", "3", "ip[1]", "ip[8]"})
	case "<<", ">>":
		right = pick(g, []string{"0", "1", "4", "31", "ip[8]"})
	}
	text := g.number(depth-1) + " " + op + " " + right
	if g.IntN(2) == 0 {
		text = "(" + text + ")"
	}
	return text
}

// countable are the protocols whose bytes are often there.
func (g *generator) countable() []string {
	all := []string{"ip", "ip", "ip6", "ip6", "tcp", "udp", "icmp", "icmp6", "sctp", "igmp", "pim", "vrrp"}
	if g.link == LinkEthernet {
		all = append(all, "ether", "ether", "link", "arp", "rarp", "decnet")
	}
	return all
}

// packet is one packet of the link, sometimes cut short.
func (g *generator) packet() []byte {
	var p []byte
	if g.link == LinkEthernet {
		p = g.ethernet()
	} else {
		p = g.ip()
	}
	if g.wrong && g.IntN(6) == 0 && len(p) > 0 {
		p[g.IntN(min(len(p), 64))] = byte(g.IntN(256))
	}
	if g.IntN(6) == 0 && len(p) > 0 {
		p = p[:g.IntN(len(p))]
	}
	return p
}

func (g *generator) ethernet() []byte {
	p := append(g.mac(), g.mac()...)
	for g.IntN(4) == 0 {
		p = binary.BigEndian.AppendUint16(p, pick(g, []uint16{0x8100, 0x88a8, 0x9100}))
		p = binary.BigEndian.AppendUint16(p, uint16(g.IntN(8))<<13|pick(g, poolVLAN))
	}
	switch g.IntN(12) {
	case 8:
		p = binary.BigEndian.AppendUint16(p, 0x8847)
		for more := true; more; {
			more = g.IntN(3) == 0
			label := pick(g, poolLabel)<<12 | uint32(g.IntN(8))<<9 | uint32(g.IntN(256))
			if !more && g.IntN(8) > 0 {
				label |= 0x100 // the bottom of the stack
			}
			p = binary.BigEndian.AppendUint32(p, label)
		}
		p = append(p, g.ip()...)
	case 9:
		ip := g.ip()
		kind := pick(g, poolPPP)
		if g.IntN(3) > 0 {
			kind = map[byte]uint16{4: 0x21, 6: 0x57}[ip[0]>>4]
		}
		p = append(binary.BigEndian.AppendUint16(p, 0x8864), 0x11, 0)
		p = binary.BigEndian.AppendUint16(p, pick(g, poolVLAN))
		p = binary.BigEndian.AppendUint16(p, uint16(len(ip)+2))
		p = append(binary.BigEndian.AppendUint16(p, kind), ip...)
	case 10, 11:
		sap := pick(g, poolSAP)
		body := []byte{sap, sap, byte(g.IntN(256))}
		switch sap {
		case 0xaa:
			body = append([]byte{0xaa, 0xaa, 3}, pick(g, [][]byte{{0, 0, 0}, {8, 0, 7}, {0, 0, 12}})...)
			body = binary.BigEndian.AppendUint16(body, pick(g, poolEther))
		case 0xfe:
			body = append(body, byte(0x81+g.IntN(3)), byte(g.IntN(256)), 1, 0, byte(14+g.IntN(14)))
		}
		body = append(body, g.bytes(g.IntN(40))...)
		p = append(binary.BigEndian.AppendUint16(p, uint16(len(body))), body...)
	case 0:
		p = binary.BigEndian.AppendUint16(p, pick(g, []uint16{0x0806, 0x8035}))
		p = append(p, 0, 1, 8, 0, 6, 4, 0, byte(1+g.IntN(4)))
		p = append(append(p, g.mac()...), g.addr4()...)
		p = append(append(p, g.mac()...), g.addr4()...)
	case 1:
		p = binary.BigEndian.AppendUint16(p, pick(g, poolEther))
		p = append(p, g.bytes(g.IntN(60))...)
	default:
		ip := g.ip()
		etherType := uint16(0x0800)
		if ip[0]>>4 == 6 {
			etherType = 0x86dd
		}
		p = append(binary.BigEndian.AppendUint16(p, etherType), ip...)
	}
	for len(p) < 60 && g.IntN(3) == 0 { // padding
		p = append(p, 0)
	}
	return p
}

func (g *generator) mac() []byte {
	mac, _ := parseMAC(pick(g, poolMAC))
	return mac[:]
}

func (g *generator) addr4() []byte {
	return netip.MustParseAddr(pick(g, poolIPv4)).AsSlice()
}

func (g *generator) addr6() []byte {
	return netip.MustParseAddr(pick(g, poolIPv6)).AsSlice()
}

func (g *generator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32() >> uint(8*g.IntN(4)))
		if g.IntN(3) == 0 {
			b[i] = 0
		}
	}
	return b
}

func (g *generator) ip() []byte {
	proto := pick(g, poolProto)
	if g.IntN(2) == 0 {
		proto = pick(g, []byte{1, 6, 17, 58, 132})
	}
	if g.IntN(2) == 0 {
		return g.ip6(proto)
	}
	options := 0
	if g.IntN(4) == 0 {
		options = 4 * g.IntN(11)
	}
	payload := g.payload(proto)
	fragment := uint16(0)
	switch g.IntN(8) {
	case 0:
		fragment = uint16(1 + g.IntN(0x1fff))
	case 1:
		fragment = 0x2000
	case 2:
		fragment = 0x4000
	}
	p := []byte{0x45 + byte(options/4), byte(g.IntN(256))}
	p = binary.BigEndian.AppendUint16(p, uint16(20+options+len(payload)))
	p = binary.BigEndian.AppendUint16(p, uint16(g.IntN(65536)))
	p = binary.BigEndian.AppendUint16(p, fragment)
	p = append(p, byte(1+g.IntN(255)), proto, 0, 0)
	p = append(append(p, g.addr4()...), g.addr4()...)
	for range options {
		p = append(p, 1) // no operation
	}
	return append(p, payload...)
}

func (g *generator) ip6(proto byte) []byte {
	payload := g.payload(proto)
	next := proto
	for g.IntN(3) == 0 {
		kind := pick(g, []byte{0, 43, 60, 44})
		header := append([]byte{next, 0}, g.bytes(6)...)
		switch kind {
		case 44:
			binary.BigEndian.PutUint16(header[2:], pick(g, []uint16{0, 1, 8, 8<<3 | 1}))
		case 0, 60:
			copy(header[2:], []byte{1, 4, 0, 0, 0, 0}) // PadN
		default:
			copy(header[2:], []byte{253, 0, 0, 0, 0, 0})
		}
		payload, next = append(header, payload...), kind
	}
	p := []byte{0x60, 0, 0, 0}
	p = binary.BigEndian.AppendUint16(p, uint16(len(payload)))
	p = append(p, next, byte(1+g.IntN(255)))
	p = append(append(p, g.addr6()...), g.addr6()...)
	return append(p, payload...)
}

func (g *generator) payload(proto byte) []byte {
	var p []byte
	ports := func() {
		p = binary.BigEndian.AppendUint16(p, pick(g, poolPort))
		p = binary.BigEndian.AppendUint16(p, pick(g, poolPort))
	}
	switch proto {
	case protoTCP:
		ports()
		p = append(p, g.bytes(8)...)
		p = append(p, 0x50, pick(g, []byte{2, 16, 18, 17, 4, 24}), 1, 0, 0, 0, 0, 0)
	case protoUDP:
		ports()
		p = append(p, 0, byte(8+g.IntN(60)), 0, 0)
	case protoSCTP:
		ports()
		p = append(p, g.bytes(8)...)
	case protoICMP, protoICMP6:
		p = append(p, pick(g, []byte{0, 3, 8, 11, 128, 129, 135}), byte(g.IntN(4)), 0, 0)
	}
	if g.IntN(4) == 0 {
		p = append(p, 'a', 'b')
	}
	return append(p, g.bytes(g.IntN(40))...)
}

// describe prints a packet for a failure's message.
func describe(p []byte) string {
	var b strings.Builder
	for i, x := range p {
		if i > 0 && i%4 == 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%02x", x)
	}
	return b.String()
}

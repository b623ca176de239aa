package filter

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// This file knows what people write where pcap-filter(7) has another word: fields of
// Wireshark's display filters, words of nft and iptables, what the shell left over, and
// mistakes of typing. It gives hints only; nothing here decides what a filter means.

// joint is what can stand behind a primitive.
const joint = "and, or, or the end"

// displayFields are fields of Wireshark's display filters, by what they are here.
var displayFields = map[string]string{
	"ip.addr": "host ADDRESS", "ip.src": "src host ADDRESS", "ip.dst": "dst host ADDRESS", "ip.host": "host ADDRESS",
	"ipv6.addr": "host ADDRESS", "ipv6.src": "src host ADDRESS", "ipv6.dst": "dst host ADDRESS",
	"tcp.port": "tcp port NUMBER", "tcp.srcport": "tcp src port NUMBER", "tcp.dstport": "tcp dst port NUMBER",
	"udp.port": "udp port NUMBER", "udp.srcport": "udp src port NUMBER", "udp.dstport": "udp dst port NUMBER",
	"sctp.port": "sctp port NUMBER", "eth.addr": "ether host ADDRESS", "eth.src": "ether src ADDRESS", "eth.dst": "ether dst ADDRESS",
	"eth.type": "ether proto NUMBER", "vlan.id": "vlan NUMBER", "ip.proto": "ip proto NUMBER", "ip.ttl": "ip[8] = NUMBER",
	"ip.len": "ip[2:2] = NUMBER", "frame.len": "len = NUMBER", "tcp.flags": "tcp[tcpflags] = NUMBER",
	"tcp.flags.syn": "tcp[tcpflags] & tcp-syn != 0", "tcp.flags.ack": "tcp[tcpflags] & tcp-ack != 0",
	"tcp.flags.reset": "tcp[tcpflags] & tcp-rst != 0", "tcp.flags.fin": "tcp[tcpflags] & tcp-fin != 0",
	"icmp.type": "icmp[icmptype] = NUMBER", "icmp.code": "icmp[icmpcode] = NUMBER", "icmpv6.type": "icmp6[icmp6type] = NUMBER",
}

// otherWords are words of nft, iptables and everyday speech, by what they are here.
var otherWords = map[string]string{
	"dport": "dst port", "sport": "src port", "dst-port": "dst port", "src-port": "src port", "dst_port": "dst port", "src_port": "src port",
	"dports": "dst port", "sports": "src port", "dstport": "dst port", "srcport": "src port",
	"saddr": "src host", "daddr": "dst host", "address": "host", "addr": "host", "source": "src", "destination": "dst",
	"network": "net", "subnet": "net", "netmask": "mask", "mac": "ether host", "protocol": "proto", "l4proto": "proto",
	"ipv4": "ip", "ip4": "ip", "ipv6": "ip6", "icmpv6": "icmp6", "ipv6-icmp": "icmp6", "icmp4": "icmp", "ping": "icmp or icmp6",
	"tcp4": "ip and tcp", "udp4": "ip and udp", "tcp6": "ip6 and tcp", "udp6": "ip6 and udp",
	"size": "len", "ethernet": "ether", "eth": "ether", "interface": "ifname", "iface": "ifname", "dev": "ifname", "iif": "ifname",
	"iifname": "ifname", "oif": "ifname", "oifname": "ifname", "in": "inbound", "out": "outbound", "eq": "=", "ne": "!=",
	"dns": "port 53", "dhcp": "udp port 67 or udp port 68", "tls": "tcp port 443", "ssl": "tcp port 443", "quic": "udp port 443",
	"lldp": "ether proto 0x88cc", "cdp": "ether[20:2] = 0x2000", "flags": "tcp[tcpflags] & tcp-syn != 0", "fragment": "ip[6:2] & 0x3fff != 0", "fragments": "ip[6:2] & 0x3fff != 0",
	"syn": "tcp[tcpflags] & tcp-syn != 0", "ack": "tcp[tcpflags] & tcp-ack != 0", "rst": "tcp[tcpflags] & tcp-rst != 0",
	"fin": "tcp[tcpflags] & tcp-fin != 0", "established": "tcp[tcpflags] & tcp-ack != 0",
	"contains": "a comparison of bytes, such as tcp[20:4] = 0x47455420", "matches": "a comparison of bytes, such as tcp[20:4] = 0x47455420",
}

// wordHint says what to write instead of a word that the language does not have; "" where
// nobody can tell.
func wordHint(word string) string {
	if meant, ok := displayFields[strings.ToLower(word)]; ok {
		return fmt.Sprintf("write %s; %s is of Wireshark's display filters", meant, word)
	}
	small := strings.ToLower(word)
	if spelling, ok := spellings[small]; isKeyword(small) || ok && isKeyword(spelling) {
		return "write it in small letters: " + small
	}
	switch small {
	case "any", "all", "everything":
		return "leave the filter out: then every packet is wanted"
	case "than":
		return "write less NUMBER or greater NUMBER"
	}
	if meant, ok := otherWords[small]; ok {
		return "write " + meant
	}
	if _, _, ok := etcServices().lookup(small); ok {
		return "write port " + small
	}
	if _, ok := protocolNumber(small); ok {
		return "write proto " + small
	}
	if near := nearest(small); near != "" {
		return "write " + near + ", if that is meant"
	}
	first, _, dotted := strings.Cut(small, ".")
	_, _, isService := etcServices().lookup(first)
	switch {
	case dotted && first != "www" && (isKeyword(first) || isService || otherWords[first] != "" || first == "frame"):
		return "fields of Wireshark's display filters are not known here: write a primitive, such as tcp port 80, or compare bytes"
	case dotted && !strings.HasSuffix(word, ".") && strings.Trim(word, "0123456789.") != "":
		return "write host before a name"
	case interfaceLike.MatchString(word):
		return fmt.Sprintf("write ifname %s, or -i %s outside the filter", word, word)
	}
	return ""
}

var interfaceLike = regexp.MustCompile(`^(eth|en[opsx]|wlan|bond|br|tun|tap|wg|veth|lo)[0-9a-z.-]*$`)

// nearest gives the keyword that a word is a slip away from, or the two; "" where there is
// none, or more.
func nearest(word string) string {
	words := slices.Concat(operatorWords, slices.Sorted(maps.Keys(protoWords)), []string{"ether", "length"})
	most := 1
	if len(word) > 5 {
		most = 2
	}
	if len(word) > 16 { // longer than every keyword
		return ""
	}
	best := most + 1
	var found []string
	for _, w := range words {
		if len(w) < 3 || len(word) < 3 {
			continue
		}
		switch d := slips(word, w); {
		case d < best:
			best, found = d, []string{w}
		case d == best && d <= most:
			found = append(found, w)
		}
	}
	if len(found) > 2 {
		return ""
	}
	return strings.Join(found, " or ")
}

// slips counts the letters that are wrong, missing, too many or exchanged with their
// neighbour (optimal string alignment).
func slips(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range b {
		d[0][j+1] = j + 1
	}
	for i := range len(a) {
		for j := range len(b) {
			wrong := 1
			if a[i] == b[j] {
				wrong = 0
			}
			d[i+1][j+1] = min(d[i][j]+wrong, d[i][j+1]+1, d[i+1][j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				d[i+1][j+1] = min(d[i+1][j+1], d[i-1][j-1]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// charHints are for characters that have no meaning in a filter.
var charHints = map[string]string{
	`"`: quoteHint, `'`: quoteHint, "“": quoteHint, "”": quoteHint, "‘": quoteHint, "’": quoteHint, "`": quoteHint,
	",": "join with or, as in port 80 or 443", ";": "join with and or or",
	"{": "write a list so: port (80 or 443)", "}": "write a list so: port (80 or 443)",
	"$": "the shell replaces variables between double quotes, not between single ones",
	"#": "a filter has no comments: leave it out", "~": "write not, or !",
	"–": "write a hyphen, -", "—": "write a hyphen, -", "−": "write a hyphen, -", "≠": "write !=", "≥": "write >=", "≤": "write <=",
}

const quoteHint = "leave it out: one pair of quotes around the whole filter is for the shell, and it takes them away"

// An address with a port behind it, as URLs have it, and a range of ports as iptables has it.
var (
	withPort  = regexp.MustCompile(`^(\d+\.\d+\.\d+\.\d+):(\d+)`)
	withColon = regexp.MustCompile(`^\d+:\d+$`)
)

// misplaced is the hint for the next token where something else is expected.
func (p *parser) misplaced(expected string) string {
	t, before := p.tok, p.last.text
	if t.kind == tokSymbol {
		return p.symbolHint(expected)
	}
	_, isConstant := constants[before+"-"+t.text]
	switch {
	case strings.HasPrefix(expected, "a number, len"):
		return p.operandHint()
	case isConstant && before == "tcp":
		return fmt.Sprintf("write tcp[tcpflags] & tcp-%s != 0", t.text)
	case isConstant, before == "icmp" && t.text == "type", before == "icmp6" && t.text == "type":
		value := "NUMBER"
		if isConstant {
			value = before + "-" + t.text
		}
		return fmt.Sprintf("write %s[%stype] = %s", before, before, value)
	case t.kind == tokName:
		if _, _, ok := etcServices().lookup(t.text); ok && p.hasPorts() {
			return fmt.Sprintf("write %s port %s", before, t.text)
		}
		if low, high, ok := strings.Cut(t.text, "-"); ok && isNumber(low) && isNumber(high) {
			return "only portrange takes a range"
		}
		return wordHint(t.text)
	case t.kind == tokMAC && expected != joint:
		return "write ether host " + t.text
	case strings.HasPrefix(expected, "a prefix length") && t.kind == tokIPv4, p.last.kind == tokIPv4 && strings.HasPrefix(t.text, "255."):
		return "write net and mask, as in net 10.0.0.0 mask " + t.text
	case expected == "dst" || expected == "src":
		return "write src or dst host and the address, or only one of src and dst"
	case t.text == before || t.kind == tokWord && (t.text == "and" || t.text == "or") && (before == "and" || before == "or"):
		return "write one of them"
	case expected != joint || t.text == "mask" || t.text == "len":
		return ""
	case t.kind == tokNumber && p.hasPorts():
		return fmt.Sprintf("write %s port %s", before, t.text)
	case t.kind == tokNumber && otherWords[before] != "":
		return ""
	}
	return `join with "and" or "or", as in host 192.0.2.7 and port 80`
}

// hasPorts tells whether the last token was a protocol that has ports.
func (p *parser) hasPorts() bool {
	return p.last.kind == tokWord && slices.Contains([]string{"tcp", "udp", "sctp"}, p.last.text)
}

// symbolHint is misplaced for an operator or a bracket.
func (p *parser) symbolHint(expected string) string {
	t, text := p.tok, p.lexer.text
	behind := strings.TrimSpace(text[p.lexer.at:])
	number := strings.HasPrefix(expected, "a number, len") || expected == "]"
	switch {
	case number && t.text == "<" && p.last.text == "=":
		return "write <="
	case number && t.text == ">" && p.last.text == "=":
		return "write >="
	case t.text == "-" && behind != "" && !isNumber(behind[:1]):
		return "flags stand outside the filter's quotes; what iptables calls --dport is dst port here"
	case t.text == "-" && p.last.kind == tokNumber:
		return "write a range without spaces, as in portrange 80-90"
	case number:
		return ""
	}
	switch t.text {
	case ":":
		run := func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF:.", r) }
		from := strings.LastIndexFunc(text[:t.at], run) + 1
		to := len(text)
		if n := strings.IndexFunc(text[t.at:], run); n >= 0 {
			to = t.at + n
		}
		word := text[from:to]
		if m := withPort.FindStringSubmatch(word); m != nil {
			return fmt.Sprintf("write host %s and port %s", m[1], m[2])
		}
		if withColon.MatchString(word) {
			return "write a range with a hyphen, as in portrange " + strings.Replace(word, ":", "-", 1)
		}
		if strings.Count(word, ":") > 1 || p.last.kind == tokNumber {
			return "write an address such as 2001:db8::7, which " + word + " is not"
		}
		return "write a space instead of the colon"
	case "=", "!=", "<", ">", "<=", ">=":
		return "only numbers are compared, such as ip[8] or len: write port 80, host 192.0.2.7, not port 80"
	case "&", "|":
		return "write && or ||"
	case "[":
		if inside, _, _ := strings.Cut(behind, "]"); strings.Count(inside, ":") < 2 {
			return charHints["{"]
		}
		return "write IPv6 addresses without brackets, and a port so: host 2001:db8::7 and port 80"
	case "/":
		return "write a space, as in tcp port 443"
	case "*":
		return "write the beginning of addresses so: net 192.0.2; names of interfaces with * stand after -i"
	case ")":
		if expected == joint {
			return "there is no ( that it closes"
		}
	}
	return ""
}

// operandHint is for a word where a number is expected, in comparisons.
func (p *parser) operandHint() string {
	t := p.tok
	if t.kind == tokIPv4 && strings.Count(t.text, ".") == 3 {
		return "write src host " + t.text + " or dst host " + t.text
	}
	if t.kind != tokName && t.kind != tokWord {
		return ""
	}
	if p.last.text == "-" {
		return "flags stand outside the filter's quotes; what iptables calls --dport is dst port here"
	}
	for _, prefix := range []string{"tcp-", "icmp-", "icmp6-"} {
		if _, ok := constants[prefix+t.text]; ok {
			return "write " + prefix + t.text
		}
	}
	if low, high, ok := strings.Cut(t.text, "-"); ok && isNumber(low) && isNumber(high) {
		return fmt.Sprintf("write %s - %s, with spaces, for a subtraction, and [OFFSET:SIZE] for several bytes", low, high)
	}
	return map[string]string{"type": "write icmptype or icmp6type", "code": "write icmpcode or icmp6code",
		"flags": "write tcpflags", "tcp-flags": "write tcpflags"}[t.text]
}

// comparisonHint is for a number that is compared with nothing.
func comparisonHint(number Expr) string {
	switch n := number.(type) {
	case PacketLength:
		return "write len > 100, or greater 100"
	case Binary:
		if n.Op == "&" {
			return "write != 0 after it"
		}
	}
	return ""
}

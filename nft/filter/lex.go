package filter

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// kind tells tokens apart.
type kind uint8

const (
	tokEnd     kind = iota
	tokWord         // a keyword of the language
	tokName         // a name: of a port, a protocol, a host, an interface
	tokNumber       // value
	tokIPv4         // two to four numbers with dots: text
	tokIPv6         // addr
	tokMAC          // mac
	tokSymbol       // an operator or a bracket: text
	tokEscaped      // a name after a backslash: never a keyword
)

// token is the smallest part of a filter's text.
type token struct {
	kind  kind
	text  string // as it stands there; for tokEscaped without the backslash
	at    int    // the first byte's index in the text
	value uint32
	addr  netip.Addr
	mac   [6]byte
}

// constants are the language's names for numbers (pcap-filter(7), "named offsets and
// flags").
var constants = map[string]uint32{
	"icmptype": 0, "icmpcode": 1, "icmp6type": 0, "icmp6code": 1,
	"icmp-echoreply": 0, "icmp-unreach": 3, "icmp-sourcequench": 4, "icmp-redirect": 5, "icmp-echo": 8,
	"icmp-routeradvert": 9, "icmp-routersolicit": 10, "icmp-timxceed": 11, "icmp-paramprob": 12,
	"icmp-tstamp": 13, "icmp-tstampreply": 14, "icmp-ireq": 15, "icmp-ireqreply": 16,
	"icmp-maskreq": 17, "icmp-maskreply": 18,
	"icmp6-destinationunreach": 1, "icmp6-packettoobig": 2, "icmp6-timeexceeded": 3, "icmp6-parameterproblem": 4,
	"icmp6-echo": 128, "icmp6-echoreply": 129, "icmp6-multicastlistenerquery": 130,
	"icmp6-multicastlistenerreportv1": 131, "icmp6-multicastlistenerdone": 132, "icmp6-routersolicit": 133,
	"icmp6-routeradvert": 134, "icmp6-neighborsolicit": 135, "icmp6-neighboradvert": 136, "icmp6-redirect": 137,
	"icmp6-routerrenum": 138, "icmp6-nodeinformationquery": 139, "icmp6-nodeinformationresponse": 140,
	"icmp6-ineighbordiscoverysolicit": 141, "icmp6-ineighbordiscoveryadvert": 142,
	"icmp6-multicastlistenerreportv2": 143, "icmp6-homeagentdiscoveryrequest": 144,
	"icmp6-homeagentdiscoveryreply": 145, "icmp6-mobileprefixsolicit": 146, "icmp6-mobileprefixadvert": 147,
	"icmp6-certpathsolicit": 148, "icmp6-certpathadvert": 149, "icmp6-multicastrouteradvert": 151,
	"icmp6-multicastroutersolicit": 152, "icmp6-multicastrouterterm": 153,
	"tcpflags": 13, "tcp-fin": 0x01, "tcp-syn": 0x02, "tcp-rst": 0x04, "tcp-push": 0x08, "tcp-ack": 0x10,
	"tcp-urg": 0x20, "tcp-ece": 0x40, "tcp-cwr": 0x80,
}

// spellings are other ways to write a keyword.
var spellings = map[string]string{
	"&&": "and", "||": "or", "!": "not", "==": "=", "ether": "link", "ppp": "link", "slip": "link",
	"length": "len", "es-is": "esis", "is-is": "isis",
}

// operatorWords are the keywords that are no protocols (protoWords has those).
var operatorWords = []string{
	"and", "or", "not", "src", "dst", "host", "net", "mask", "port", "portrange", "proto", "protochain",
	"broadcast", "multicast", "less", "greater", "len", "vlan", "mpls", "pppoes", "llc", "inbound", "outbound", "ifname", "on",
	"l1", "l2", "iih", "lsp", "snp", "csnp", "psnp",
}

// refusedWords are primitives of pcap-filter(7) that capd does not have, with what to
// write instead.
var refusedWords = map[string]string{
	"gateway":     "write ether host and the router's Ethernet address, with not host and its IP address",
	"geneve":      "write udp port 6081",
	"vxlan":       "write udp port 4789",
	"byte":        "write ether[OFFSET] = VALUE",
	"ifindex":     "write ifname and the interface's name",
	"wlan":        "",
	"type":        "",
	"subtype":     "",
	"dir":         "",
	"addr1":       "",
	"addr2":       "",
	"addr3":       "",
	"addr4":       "",
	"ra":          "",
	"ta":          "",
	"fddi":        "",
	"tr":          "",
	"radio":       "",
	"lane":        "",
	"oam":         "",
	"oamf4":       "",
	"oamf4s":      "",
	"oamf4e":      "",
	"metac":       "",
	"bcc":         "",
	"sc":          "",
	"ilmic":       "",
	"vpi":         "",
	"vci":         "",
	"connectmsg":  "",
	"metaconnect": "",
	"rnr":         "",
	"rulenum":     "",
	"rset":        "",
	"ruleset":     "",
	"srnr":        "",
	"subrulenum":  "",
	"reason":      "",
	"action":      "",
	"sio":         "",
	"opc":         "",
	"dpc":         "",
	"sls":         "",
}

func isKeyword(text string) bool {
	_, protocol := protoWords[text]
	_, refused := refusedWords[text]
	return protocol || refused || slices.Contains(operatorWords, text)
}

// lexer cuts a filter's text into tokens as libpcap's does (scanner.l): always the
// longest one, so that 80-90 is a name and not a subtraction.
type lexer struct {
	text string
	at   int
}

func isLetterOrDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// next gives the next token. Its errors are *Error.
func (l *lexer) next() (token, error) {
	for l.at < len(l.text) && strings.IndexByte(" \t\r\n", l.text[l.at]) >= 0 {
		l.at++
	}
	rest := l.text[l.at:]
	t := token{at: l.at}
	switch {
	case rest == "":
		return t, nil
	case isLetterOrDigit(rest[0]) || rest[0] == ':':
		if n := l.address(rest, &t); n > 0 {
			return l.take(t, n), nil
		}
		if rest[0] != ':' {
			return l.word(t, rest)
		}
	case rest[0] == '\\':
		n := 1
		for n < len(rest) && strings.IndexByte(" !()\n\t", rest[n]) < 0 {
			n++
		}
		if n == 1 {
			return t, l.wrong(t.at, "\\", "a backslash stands before a name", `write ip proto \tcp or ip proto tcp`)
		}
		t.kind = tokEscaped
		t = l.take(t, n)
		t.text = t.text[1:]
		return t, nil
	}
	t.kind = tokSymbol
	for _, s := range []string{"&&", "||", "!=", "==", "<=", ">=", "<<", ">>"} {
		if strings.HasPrefix(rest, s) {
			t = l.take(t, 2)
			if word, ok := spellings[s]; ok && s != "==" {
				t.kind, t.text = tokWord, word
			} else if ok {
				t.text = word
			}
			return t, nil
		}
	}
	if strings.IndexByte("()[]:+-*/%&|^<>=!", rest[0]) >= 0 {
		t = l.take(t, 1)
		if t.text == "!" {
			t.kind, t.text = tokWord, "not"
		}
		return t, nil
	}
	char := string([]rune(rest)[:1])
	hint, ok := charHints[char]
	if !ok {
		hint = "leave it out"
	}
	return t, l.wrong(t.at, char, fmt.Sprintf("the character %q has no meaning in a filter", char), hint)
}

func (l *lexer) take(t token, n int) token {
	t.text = l.text[t.at : t.at+n]
	l.at = t.at + n
	return t
}

func (l *lexer) wrong(at int, value, message, hint string) error {
	return &Error{Field: "filter", Value: value, Column: at + 1, Message: message, Hint: hint}
}

// address finds an IPv6 or Ethernet address at the beginning of a text; it gives its
// length, or 0.
func (l *lexer) address(rest string, t *token) int {
	run := 0
	for run < len(rest) && strings.IndexByte("0123456789abcdefABCDEF:.-", rest[run]) >= 0 {
		run++
	}
	if run < len(rest) && isLetterOrDigit(rest[run]) {
		// A longer word; an address with colons may still end before its last colon, but
		// no filter that libpcap accepts has one there.
		return 0
	}
	text := rest[:run]
	if mac, ok := parseMAC(text); ok {
		t.kind, t.mac = tokMAC, mac
		return run
	}
	if strings.Count(text, ":") >= 2 {
		if a, err := netip.ParseAddr(text); err == nil && a.Is6() {
			t.kind, t.addr = tokIPv6, a
			return run
		}
	}
	return 0
}

// parseMAC reads six groups of one or two hexadecimal digits with colons, hyphens or
// dots between them, three groups of four with dots, or twelve digits.
func parseMAC(text string) (mac [6]byte, ok bool) {
	if len(text) == 12 {
		n, err := strconv.ParseUint(text, 16, 48)
		if err == nil {
			copy(mac[:], binary.BigEndian.AppendUint64(nil, n)[2:])
			return mac, true
		}
	}
	for _, separator := range []string{":", "-", "."} {
		groups := strings.Split(text, separator)
		width := 2
		if len(groups) == 3 && separator == "." {
			width = 4
		} else if len(groups) != 6 {
			continue
		}
		for i, g := range groups {
			n, err := strconv.ParseUint(g, 16, 16)
			if err != nil || len(g) > width || width == 4 && len(g) != 4 {
				return mac, false
			}
			if width == 4 {
				mac[2*i], mac[2*i+1] = byte(n>>8), byte(n)
			} else {
				mac[i] = byte(n)
			}
		}
		return mac, true
	}
	return mac, false
}

// word takes a name, a keyword or a number.
func (l *lexer) word(t token, rest string) (token, error) {
	n := 0
	for n < len(rest) && (isLetterOrDigit(rest[n]) || strings.IndexByte("-_.", rest[n]) >= 0) {
		n++
	}
	for rest[n-1] == '-' || rest[n-1] == '_' { // a word ends in a letter, digit or dot
		n--
	}
	t = l.take(t, n)
	if word, ok := spellings[t.text]; ok {
		t.kind, t.text = tokWord, word
		return t, nil
	}
	if isKeyword(t.text) {
		t.kind = tokWord
		return t, nil
	}
	if v, ok := constants[t.text]; ok {
		t.kind, t.value = tokNumber, v
		return t, nil
	}
	parts := strings.Split(t.text, ".")
	switch {
	case len(parts) == 1 && isNumber(t.text):
		v, err := parseNumber(t.text)
		if err != nil {
			return t, l.wrong(t.at, t.text, fmt.Sprintf("%s is no number that fits into 32 bits", t.text),
				"numbers go from 0 to 4294967295; 0x begins a hexadecimal and 0 an octal one")
		}
		t.kind, t.value = tokNumber, v
	case len(parts) >= 2 && len(parts) <= 4 && allNumbers(parts):
		t.kind = tokIPv4
	default:
		t.kind = tokName
	}
	return t, nil
}

func isNumber(s string) bool {
	if hex, ok := strings.CutPrefix(strings.ToLower(s), "0x"); ok {
		return hex != "" && strings.Trim(hex, "0123456789abcdef") == ""
	}
	return s != "" && strings.Trim(s, "0123456789") == ""
}

func allNumbers(parts []string) bool {
	for _, p := range parts {
		if strings.Trim(p, "0123456789") != "" || p == "" {
			return false
		}
	}
	return true
}

// parseNumber reads decimal, 0x hexadecimal and 0 octal numbers, as libpcap does.
func parseNumber(s string) (uint32, error) {
	base := 10
	switch {
	case strings.HasPrefix(strings.ToLower(s), "0x"):
		s, base = s[2:], 16
	case len(s) > 1 && s[0] == '0':
		base = 8
	}
	v, err := strconv.ParseUint(s, base, 32)
	return uint32(v), err
}

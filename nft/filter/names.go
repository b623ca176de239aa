package filter

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
)

// ianaProtocols are the assigned Internet protocol numbers by their keyword in lower
// case, with the spellings that people use beside it. Source: IANA, "Assigned Internet
// Protocol Numbers".
var ianaProtocols = map[string]uint8{
	"hopopt": 0, "icmp": 1, "igmp": 2, "ggp": 3, "ipv4": 4, "ipencap": 4, "st": 5, "st2": 5,
	"tcp": 6, "cbt": 7, "egp": 8, "igp": 9, "bbn-rcc-mon": 10, "nvp-ii": 11, "pup": 12,
	"argus": 13, "emcon": 14, "xnet": 15, "chaos": 16, "udp": 17, "mux": 18, "dcn-meas": 19,
	"hmp": 20, "prm": 21, "xns-idp": 22, "trunk-1": 23, "trunk-2": 24, "leaf-1": 25,
	"leaf-2": 26, "rdp": 27, "irtp": 28, "iso-tp4": 29, "netblt": 30, "mfe-nsp": 31,
	"merit-inp": 32, "dccp": 33, "3pc": 34, "idpr": 35, "xtp": 36, "ddp": 37,
	"idpr-cmtp": 38, "tp++": 39, "il": 40, "ipv6": 41, "sdrp": 42, "ipv6-route": 43,
	"ipv6-frag": 44, "idrp": 45, "rsvp": 46, "gre": 47, "dsr": 48, "bna": 49, "esp": 50,
	"ipsec-esp": 50, "ah": 51, "ipsec-ah": 51, "i-nlsp": 52, "swipe": 53, "narp": 54,
	"min-ipv4": 54, "mobile": 55, "tlsp": 56, "skip": 57, "ipv6-icmp": 58, "icmpv6": 58,
	"icmp6": 58, "ipv6-nonxt": 59, "ipv6-opts": 60, "cftp": 62, "sat-expak": 64,
	"kryptolan": 65, "rvd": 66, "ippc": 67, "sat-mon": 69, "visa": 70, "ipcv": 71,
	"cpnx": 72, "cphb": 73, "wsn": 74, "pvp": 75, "br-sat-mon": 76, "sun-nd": 77,
	"wb-mon": 78, "wb-expak": 79, "iso-ip": 80, "vmtp": 81, "secure-vmtp": 82, "vines": 83,
	"iptm": 84, "ttp": 84, "nsfnet-igp": 85, "dgp": 86, "tcf": 87, "eigrp": 88, "ospf": 89,
	"ospfigp": 89, "sprite-rpc": 90, "larp": 91, "mtp": 92, "ax.25": 93, "ipip": 94,
	"micp": 95, "scc-sp": 96, "etherip": 97, "encap": 98, "gmtp": 100, "ifmp": 101,
	"pnni": 102, "pim": 103, "aris": 104, "scps": 105, "qnx": 106, "a/n": 107, "ipcomp": 108,
	"snp": 109, "compaq-peer": 110, "ipx-in-ip": 111, "vrrp": 112, "carp": 112, "pgm": 113,
	"l2tp": 115, "ddx": 116, "iatp": 117, "stp": 118, "srp": 119, "uti": 120, "smp": 121,
	"sm": 122, "ptp": 123, "isis": 124, "fire": 125, "crtp": 126, "crudp": 127,
	"sscopmce": 128, "iplt": 129, "sps": 130, "pipe": 131, "sctp": 132, "fc": 133,
	"rsvp-e2e-ignore": 134, "mobility-header": 135, "udplite": 136, "udp-lite": 136,
	"mpls-in-ip": 137, "manet": 138, "hip": 139, "shim6": 140, "wesp": 141, "rohc": 142,
	"ethernet": 143, "aggfrag": 144, "nsh": 145, "homa": 146, "bit-emu": 147,
}

// Numbers of the protocols that the package treats by name.
const (
	protoICMP    = 1
	protoIGMP    = 2
	protoTCP     = 6
	protoIGRP    = 9
	protoUDP     = 17
	protoDCCP    = 33
	protoGRE     = 47
	protoESP     = 50
	protoAH      = 51
	protoICMP6   = 58
	protoPIM     = 103
	protoVRRP    = 112
	protoSCTP    = 132
	protoUDPLite = 136
)

// protocolNumber gives the number of a protocol by name, in any case: IANA's names
// first, then /etc/protocols.
func protocolNumber(name string) (uint8, bool) {
	name = strings.ToLower(name)
	if n, ok := ianaProtocols[name]; ok {
		return n, true
	}
	n, ok := etcProtocols().numbers[name]
	return n, ok
}

// ProtocolName gives the name that /etc/protocols has for a protocol, which is the one
// that nft prints; without one it gives the number.
func ProtocolName(number uint8) string {
	if name, ok := etcProtocols().names[number]; ok {
		return name
	}
	return strconv.Itoa(int(number))
}

// protocolTable is what a protocols file says.
type protocolTable struct {
	numbers map[string]uint8 // by name and alias in lower case
	names   map[uint8]string // official names; the first line of a number wins
}

// etcProtocols reads /etc/protocols once; where it cannot be read, the table is empty.
var etcProtocols = sync.OnceValue(func() protocolTable {
	f, err := os.Open("/etc/protocols")
	if err != nil {
		return protocolTable{}
	}
	defer f.Close()
	return readProtocols(f)
})

// readProtocols reads the format of protocols(5); lines that are not in it are skipped.
func readProtocols(r io.Reader) protocolTable {
	t := protocolTable{numbers: map[string]uint8{}, names: map[uint8]string{}}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseUint(fields[1], 10, 8)
		if err != nil {
			continue
		}
		if _, ok := t.names[uint8(n)]; !ok {
			t.names[uint8(n)] = fields[0]
		}
		for i, name := range fields {
			if i != 1 {
				t.numbers[strings.ToLower(name)] = uint8(n)
			}
		}
	}
	return t
}

// services is what a services file says: ports by name.
type services struct{ tcp, udp map[string]uint16 }

// etcServices reads /etc/services once; where it cannot be read, the table is empty.
var etcServices = sync.OnceValue(func() services {
	f, err := os.Open("/etc/services")
	if err != nil {
		return services{}
	}
	defer f.Close()
	return readServices(f)
})

// readServices reads the format of services(5); lines that are not in it are skipped.
func readServices(r io.Reader) services {
	s := services{tcp: map[string]uint16{}, udp: map[string]uint16{}}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		text, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(text)
		if len(fields) < 2 {
			continue
		}
		number, proto, _ := strings.Cut(fields[1], "/")
		n, err := strconv.ParseUint(number, 10, 16)
		table := map[string]map[string]uint16{"tcp": s.tcp, "udp": s.udp}[proto]
		if err != nil || table == nil {
			continue
		}
		for i, name := range fields {
			if _, ok := table[name]; !ok && i != 1 {
				table[name] = uint16(n)
			}
		}
	}
	return s
}

// lookup gives a port by name as libpcap does: with the protocol that has the name, or
// Any where TCP and UDP have it with the same port; otherwise TCP's.
func (s services) lookup(name string) (Proto, uint16, bool) {
	tcp, isTCP := s.tcp[name]
	udp, isUDP := s.udp[name]
	switch {
	case isTCP && isUDP && tcp == udp:
		return Any, tcp, true
	case isTCP:
		return TCP, tcp, true
	case isUDP:
		return UDP, udp, true
	}
	return Any, 0, false
}

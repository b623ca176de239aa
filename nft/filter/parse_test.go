package filter

import (
	"errors"
	"strings"
	"testing"
)

// What is written is read as libpcap reads it; String gives it in full.
func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "",
		" \t\n":                                  "",
		"tcp port 443 and host 192.0.2.7":        "tcp port 443 and host 192.0.2.7",
		"port 80 or 443":                         "port 80 or port 443",
		"port (80 or 443)":                       "port 80 or port 443",
		"host 10.0.0.1 or (src net 10.9) or ::1": "host 10.0.0.1 or src net 10.9.0.0/16 or host ::1",
		"port 80 or (tcp) or 53":                 "port 80 or tcp or port 53",
		"tcp src or dst port 80":                 "tcp port 80",
		"host 192.0.2.7 or not ::1":              "host 192.0.2.7 or not (host ::1)",
		"src and dst 192.0.2.7":                  "src and dst host 192.0.2.7",
		"net 10":                                 "net 10.0.0.0/8",
		"net 10.9":                               "net 10.9.0.0/16",
		"host 10.9":                              "net 10.9.0.0/16",
		"net 10.0.0.0 mask 255.0.255.0":          "net 10.0.0.0 mask 255.0.255.0",
		"ip or tcp and udp":                      "(ip or tcp) and udp",
		"ip or (tcp and udp)":                    "ip or (tcp and udp)",
		"not tcp port 80 and udp":                "not (tcp port 80) and udp",
		"portrange 90-80":                        "portrange 80-90",
		"tcp[tcpflags] & (tcp-syn|tcp-fin) != 0": "(tcp[13] & (2 | 1)) != 0",
		"ip[0] = 1 | 1 ^ 1":                      "ip[0] = (1 | (1 ^ 1))",
		"ip[0] = 7 % 4 * 2":                      "ip[0] = (7 % (4 * 2))",
		"ip[0] = 2 * 7 % 4 + 1":                  "ip[0] = (2 * (7 % (4 + 1)))",
		"ip[0] = 5 - 3 - 1":                      "ip[0] = ((5 - 3) - 1)",
		"(5) == ip[0:2]":                         "5 = ip[0:2]",
		"less 64":                                "len <= 64",
		"greater 64":                             "len >= 64",
		"vlan 5 && vlan":                         "vlan 5 and vlan",
		"ip proto \\tcp":                         "ip proto 6",
		"ip proto tcp or udp":                    "ip proto 6 or udp",
		"proto ospf":                             "proto 89",
		"gre":                                    "gre",
		"ether proto \\arp":                      "ether proto 2054",
		"ether host 0:0:5E:0:53:1":               "ether host 00:00:5e:00:53:01",
		"ether src 00-00-5e-00-53-01":            "ether src host 00:00:5e:00:53:01",
		"ether dst 0000.5e00.5301":               "ether dst host 00:00:5e:00:53:01",
		"broadcast or ether multicast":           "ether broadcast or ether multicast",
		"ip6 multicast":                          "ip6 multicast",
		"ifname eth0 and inbound":                "ifname eth0 and inbound",
		"port domain":                            "port 53",
		"port ssh":                               "tcp port 22",
		"portrange ssh-domain":                   "portrange 22-53",
		"!(icmp)":                                "not (icmp)",
		"mpls 100 and mpls":                      "mpls 100 and mpls",
		"pppoes 0x27 and ip":                     "pppoes 39 and ip",
		"llc or llc rnr or llc i":                "llc or llc rnr or llc i",
		"iso proto \\isis or es-is or l1":        "iso proto 131 or esis or l1",
		"ether proto \\stp or ipx":               "ether proto 66 or ipx",
		`ifname \a;b{} and tcp`:                  `ifname \a;b{} and tcp`,
		"ifname ether or on ip":                  "ifname ether or ifname ip",
		`ifname br-lan.7 and on \eth0_`:          `ifname br-lan.7 and ifname \eth0_`,
		"on eth0 and igrp":                       "ifname eth0 and igrp",
		"(vlan (5)) or mpls (7)":                 "vlan 5 or mpls 7",
	} {
		f, err := Parse(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if f.String() != want {
			t.Errorf("%q is read as %q, want %q", text, f, want)
		}
	}
}

// Mistakes are pointed at, and what is not supported is refused with what to write
// instead.
func TestParseMistakes(t *testing.T) {
	for _, c := range []struct {
		text   string
		column int
		part   string // of message or hint
	}{
		{"tcp port", 9, "a port's number or name"},
		{"tcp port 70000", 10, "65535"},
		{"tcp port 80 80", 13, "and, or, or the end"},
		{"tcp or 80", 8, "stands alone"},
		{"(port 80) or 53", 14, "stands alone"},
		{"portrange ssh", 11, "port ssh"},
		{"port 80 or (443 or tcp)", 20, "list of ids"},
		{"host 10.0.0.1 or (not 10.9.0.2 and port 53)", 36, "list of ids"},
		{"less (64)", 6, "length in bytes"},
		{"192.0.2.7", 1, "host"},
		{"host example.com", 6, "--resolve"},
		{"host 192.0.2.7/24", 15, "net"},
		{"net 192.0.2.7/24", 5, "192.0.2.0"},
		{"net 192.0.2.0/33", 15, "0 to 32"},
		{"net 10/8", 7, "10.0/LENGTH"},
		{"net 300.1", 5, "255"},
		{"net 2001:db8::1/64", 5, "2001:db8::/64"},
		{"icmp host 1.2.3.4", 11, "icmp and host"},
		{"ip host ::1", 9, "leave ip out"},
		{"ip6 host 1.2.3.4", 10, "leave ip6 out"},
		{"udp port ssh", 10, "tcp"},
		{"port nosuchport", 6, "/etc/services"},
		{"proto nosuchproto", 7, "/etc/protocols"},
		{"icmp port 5", 11, "no ports"},
		{"ip protochain 6", 4, "loop"},
		{"gateway foo", 1, "not supported"},
		{"ip broadcast", 4, "netmask"},
		{"mpls 1048576", 6, "1048575"},
		{"pppoes 65536", 8, "65535"},
		{"llc foo", 5, "sabme"},
		{"decnet host 10.15", 13, "DECnet addresses"},
		{"iso proto tcp", 11, "clnp"},
		{"stp[0] = 1", 1, "ether[14]"},
		{"vxlan", 1, "4789"},
		{"geneve 5", 1, "6081"},
		{"wlan host 1:2:3:4:5:6", 1, "kinds of links"},
		{"host 00:00:5e:00:53:01", 6, "ether host"},
		{"ether host 1.2.3.4", 12, "Ethernet address"},
		{"ip[0:3] = 1", 6, "1, 2 or 4"},
		{"ip[0", 5, "]"},
		{"ip[0]", 1, "comparison"},
		{"(ip[0]) and tcp", 1, "comparison"},
		{"ip[0] = 1 / 0", 11, "zero"},
		{"ip[0] << 33 = 1", 7, "32"},
		{"ip[0] = 4294967296", 9, "32 bits"},
		{"ip[0] = 08", 9, "32 bits"},
		{"esp[0] = 1", 1, "ip[20]"},
		{"vlan 4096", 6, "4095"},
		{"tcp and (udp", 13, ")"},
		{"and tcp", 1, "primitive"},
		{"tcp and", 8, "primitive"},
		{"tcp $ udp", 5, "$"},
		{"tcp ü udp", 5, "ü"},
		{"src proto 6", 5, "host, net, port or portrange"},
		{"port icmp", 6, "port"},
		{"tcp[2-1] = 3", 5, "number"},
		{"ifname averyveryverylongname", 8, "interface"},
		{"host \\", 6, "backslash"},
		{`ifname \a"b`, 8, "printable"},
		{"ifname \\a\x1bb", 8, "printable"},
		{"ifname ! tcp", 8, "interface"},
		{"ifname && tcp", 8, "interface"},
		{strings.Repeat("(", 1000), 101, "levels"},
		{strings.Repeat("not ", 1000) + "tcp", 401, "levels"},
		{strings.Repeat("tcp or ", 50000), 0, "bytes"},
	} {
		_, err := Parse(c.text)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.40q: got %v", c.text, err)
			continue
		}
		if e.Field != "filter" || e.Column != c.column || !strings.Contains(e.Message+" "+e.Hint, c.part) {
			t.Errorf("%.40q: got column %d: %s (hint: %s), want column %d and %q", c.text, e.Column, e.Message, e.Hint, c.column, c.part)
		}
	}
}

// Without a link-layer header there is nothing to say of it.
func TestNeedsEthernet(t *testing.T) {
	for text, column := range map[string]int{
		"arp": 1, "tcp or rarp": 8, "ether host 0:0:0:0:0:1": 12, "vlan 5": 1, "broadcast": 1, "ip and ether[0] = 1": 8,
		"arp host 1.2.3.4": 10, "ether proto 0x88cc": 13, "arp[0] = 1": 1,
	} {
		f, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Compile(LinkEthernet); err != nil {
			t.Errorf("%q on Ethernet: %v", text, err)
		}
		_, err = f.Compile(LinkRaw)
		var e *Error
		if !errors.As(err, &e) || e.Column != column || !strings.Contains(e.Hint, "ingress") {
			t.Errorf("%q without link layer: %v", text, err)
		}
		if _, err := f.Matcher(LinkRaw); err == nil {
			t.Errorf("%q without link layer has a matcher", text)
		}
	}
}

// What cannot be looked at behind labels, or inside a session, is refused where it stands.
func TestOrderOfLayers(t *testing.T) {
	for text, column := range map[string]int{
		"mpls and arp": 10, "mpls and vlan": 10, "mpls 5 and pppoes": 12, "mpls and ether proto 0x88cc": 22, "mpls and stp": 10,
		"mpls and arp host 1.2.3.4": 19, "mpls and isis": 10, "mpls and decnet[0] = 1": 10, "pppoes and vlan": 12, "pppoes and llc": 12,
		"pppoes and ether host 0:0:0:0:0:1": 23, "pppoes and multicast": 12, "pppoes and ether[0] = 1": 12,
	} {
		f, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Compile(LinkEthernet)
		var e *Error
		if !errors.As(err, &e) || e.Column != column || e.Hint == "" || !strings.Contains(e.Message, "stands after") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// A filter_v1 beside a text is the kernel's business; what stands beside the packet is
// looked at.
func TestMatcherParts(t *testing.T) {
	v, err := FromV1(V1{Protocol: "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := Parse("(ifname eth0 or ifname eth1) and inbound and not outbound and ip[0] & 0xf0 = 0x40")
	if err != nil {
		t.Fatal(err)
	}
	m, err := And(v, f).Matcher(LinkRaw)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    Packet
		want bool
	}{
		{Packet{Body: []byte{0x45}, In: "eth0", Inbound: true}, true},
		{Packet{Body: []byte{0x45}, Out: "eth1", Inbound: true}, true},
		{Packet{Body: []byte{0x45}, Out: "eth1", Outbound: true}, false},
		{Packet{Body: []byte{0x45}, In: "eth2", Inbound: true}, false},
		{Packet{Body: []byte{0x60}, In: "eth0", Inbound: true}, false},
		{Packet{In: "eth0", Inbound: true}, false},
	} {
		if got := m.Match(&c.p); got != c.want {
			t.Errorf("%+v: %v", c.p, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { m.Match(&Packet{Body: []byte{0x45}, In: "eth0", Inbound: true}) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// No text makes the parser, the compiler or a matcher panic; what is accepted is written
// so that it is read again.
func FuzzParse(f *testing.F) {
	for _, text := range []string{"tcp port 443 and host 192.0.2.7", "ip[2:2] - ((ip[0] & 0xf) << 2) > 20", "vlan 5 or not (arp)", "port (80 or 443)", "net 10.0.0.0 mask 255.0.255.0", "ether src 00:00:5e:00:53:01", "ip6 net 2001:db8::/32", "portrange ssh-http"} {
		f.Add(text, []byte{0x45, 0, 0, 20})
	}
	f.Fuzz(func(t *testing.T, text string, packet []byte) {
		got, err := Parse(text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Message == "" || e.Column > len(text)+1 {
				t.Errorf("%q: %#v", text, err)
			}
			return
		}
		again, err := Parse(got.String())
		if err != nil && (strings.Contains(err.Error(), "levels") || len(got.String()) > maxText) {
			return // written in full it has more parentheses
		}
		if err != nil || again.String() != got.String() {
			t.Errorf("%q is written %q: %v", text, got, err)
		}
		for _, link := range []Link{LinkRaw, LinkEthernet} {
			if _, err := got.Compile(link); err != nil {
				continue
			}
			m, err := got.Matcher(link)
			if err != nil {
				t.Errorf("%q: %v", text, err)
				continue
			}
			m.Match(&Packet{Body: packet, Length: uint32(len(packet))})
		}
	})
}

package filter

import (
	"errors"
	"strings"
	"testing"
)

// What people bring from Wireshark, iptables, nft and the shell, and what they mistype, is
// answered with what to write instead, at the place where it stands.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		text   string
		column int
		hint   string
	}{
		{"ip.addr == 1.2.3.4", 1, "write host ADDRESS;"},
		{"tcp and udp.dstport==53", 9, "write udp dst port NUMBER;"},
		{"tcp.flags.syn == 1", 1, "write tcp[tcpflags] & tcp-syn != 0;"},
		{"http.request", 1, "display filters"},
		{"http", 1, "write port http"},
		{"dns", 1, "write port 53"},
		{"ospf", 1, "write proto ospf"},
		{"lldp", 1, "write ether proto 0x88cc"},
		{"TCP", 1, "small letters: tcp"},
		{"tcp AND udp", 5, "small letters: and"},
		{"any", 1, "every packet"},
		{"eth0", 1, "ifname eth0"},
		{"www.example.com", 1, "write host"},
		{"tpc port 80", 1, "write tcp,"},
		{"tcp poort 80", 5, "write port,"},
		{"src hots 10.0.0.1", 5, "write host,"},
		{"prot 80", 1, "write port or proto,"},
		{"brodcast", 1, "write broadcast,"},
		{"gatewy x", 1, "write what it is"},
		{strings.Repeat("x", 70000), 1, "write what it is"},
		{"tcp dport 80", 5, "write dst port"},
		{"ip saddr 10.0.0.1", 4, "write src host"},
		{"--dport 80", 3, "dst port"},
		{"tcp port 80 -w x", 13, "outside the filter's quotes"},
		{"tcp 443", 5, "write tcp port 443"},
		{"tcp http", 5, "write tcp port http"},
		{"icmp echo", 6, "write icmp[icmptype] = icmp-echo"},
		{"icmp type 8", 6, "write icmp[icmptype] = NUMBER"},
		{"tcp syn", 5, "write tcp[tcpflags] & tcp-syn != 0"},
		{"tcp-syn", 1, "write tcp[tcpflags] & tcp-syn != 0"},
		{"tcp[tcpflags] = syn", 17, "write tcp-syn"},
		{"tcp[flags] = 2", 5, "write tcpflags"},
		{"tcp[tcpflags] & tcp-syn", 1, "write != 0 after it"},
		{"len 100", 1, "greater 100"},
		{"ip[12:4] = 10.0.0.1", 12, "src host 10.0.0.1"},
		{"tcp[13] =< 2", 10, "write <="},
		{"udp[8-10] = 1", 5, "[OFFSET:SIZE]"},
		{"src 10.0.0.1:80", 13, "write host 10.0.0.1 and port 80"},
		{"host [::1]:80", 6, "without brackets"},
		{"host ::1::2", 6, "which ::1::2 is not"},
		{"host 10.0.0.*", 6, "net 192.0.2"},
		{"host 10.0.0.1 port 80", 15, `join with "and" or "or"`},
		{"host 10.0.0.1, 10.0.0.2", 14, "join with or"},
		{"host 00:00:5e:00:53:01", 6, "write ether host 00:00:5e:00:53:01"},
		{"dst 00:00:5e:00:53:01", 5, "write ether dst host 00:00:5e:00:53:01"},
		{"net 10.0.0.1/24", 5, "write net 10.0.0.0/24 for the network, host 10.0.0.1"},
		{"net 10.0.0.0/255.0.0.0", 14, "mask 255.0.0.0"},
		{"net 10.0.0.0 255.0.0.0", 14, "mask 255.0.0.0"},
		{"port 80,443", 8, "port 80 or 443"},
		{"port [80,443]", 6, "port (80 or 443)"},
		{"port 80-443", 6, "write portrange 80-443"},
		{"port 80/tcp", 8, "port 80 or 443"},
		{"port = 80", 6, "only numbers are compared"},
		{"port HTTP", 6, "or http"},
		{"portrange 80:90", 13, "write a range with a hyphen, as in portrange 80-90"},
		{"portrange 80 - 90", 14, "without spaces"},
		{"vlan 5-10", 6, "only portrange"},
		{"tcp &&& udp", 7, "write && or ||"},
		{"tcp and and udp", 9, "write one of them"},
		{"tcp)", 4, "no ( that it closes"},
		{"\"tcp port 80\"", 1, "for the shell"},
		{"tcp port $PORT", 10, "double quotes"},
		{"tcp port 80 # web", 13, "no comments"},
	} {
		_, err := Parse(c.text)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%.40q: got %v", c.text, err)
			continue
		}
		if e.Column != c.column || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%.40q: got column %d: %s (hint: %s), want column %d and %q", c.text, e.Column, e.Message, e.Hint, c.column, c.hint)
		}
	}
}

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"capd/testbed"
)

// A datagram in fragments: which hook sees the pieces and which the whole, and so what a
// filter for a port finds. docs/filters.md tells it to people.
func TestFragmentsByHook(t *testing.T) {
	pair := testbed.NewPair(t)
	a, b := openIn(t, pair.A), openIn(t, pair.B)
	// Connection tracking puts fragments together at prerouting, behind capd's chain.
	testbed.RunIn(t, pair.B, "nft", `table inet firewall { chain in { type filter hook input priority filter; ct state invalid drop; }; }`)
	type place struct {
		table *Table
		hook  string
	}
	cases := []struct {
		place
		text string
		want uint64 // of one UDP datagram of 3000 bytes in three pieces
	}{
		{place{a, "output"}, "udp", 1},
		{place{a, "postrouting"}, "udp dst port 4242", 1}, // the kernel cuts behind it
		{place{a, "egress"}, "udp", 3},
		{place{a, "egress"}, "udp dst port 4242", 1}, // the first has the ports, as in tcpdump
		{place{b, "ingress"}, "udp", 3},
		{place{b, "prerouting"}, "udp", 3},
		{place{b, "prerouting"}, "udp dst port 4242", 1},
		{place{b, "prerouting"}, "ip[6:2] & 0x1fff != 0", 2},
		{place{b, "prerouting"}, "udp dst port 4242 or (udp and ip[6:2] & 0x1fff != 0)", 3},
		{place{b, "input"}, "udp", 1},
		{place{b, "input"}, "udp dst port 4242 and greater 3000", 1},
		{place{b, "input"}, "ip[6:2] & 0x1fff != 0", 0},
	}
	for i, c := range cases {
		s := defaultSpec(fmt.Sprintf("%08x", i))
		s.Once, s.Hooks, s.Filter = false, []string{c.hook}, parse(t, c.text)
		if Framed(s.Hooks) {
			s.Interfaces = []string{map[*Table]string{a: "va", b: "vb"}[c.table]}
		}
		install(t, c.table, s)
	}
	_, err := testbed.SendUDP(testbed.Stream{From: pair.A, To: pair.B, Source: netip.AddrPortFrom(testbed.A4, 0),
		Destination: netip.AddrPortFrom(testbed.B4, 4242), Count: 1, Size: 3000})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range cases {
		if got := total(t, c.table, fmt.Sprintf("%08x", i)); got.Seen != c.want {
			t.Errorf("%q at %s: counted %d, want %d", c.text, c.hook, got.Seen, c.want)
		}
	}
}

// Frames that are no IP, or have tags, come by at ingress and egress, and a padded packet
// has its padding there and nowhere else.
func TestFramesByHook(t *testing.T) {
	pair := testbed.NewPair(t)
	table := openIn(t, pair.B)
	ether := func(tags ...byte) []byte {
		return append([]byte{255, 255, 255, 255, 255, 255, 0, 0, 0x5e, 0, 0x53, 1}, tags...)
	}
	udp := []byte{0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2, 0, 80, 16, 146, 0, 9, 0, 0, 'x'}
	binary.BigEndian.PutUint16(udp[10:], checksum(udp[:20]))
	padded := append(append(ether(8, 0), udp...), make([]byte, 60-14-len(udp))...)
	lldp := append([]byte{1, 0x80, 0xc2, 0, 0, 0x0e, 0, 0, 0x5e, 0, 0x53, 1, 0x88, 0xcc}, 2, 7, 4, 0, 0, 0x5e, 0, 0x53, 1, 0, 0)
	vlan := append(ether(0x81, 0, 0x20, 5, 8, 0), udp...)
	qinq := append(ether(0x88, 0xa8, 0, 100, 0x81, 0, 0, 200, 8, 0), udp...)
	mpls := append(ether(0x88, 0x47, 0x18, 0x6a, 0x01, 64), udp...)
	stp := append([]byte{1, 0x80, 0xc2, 0, 0, 0, 0, 0, 0x5e, 0, 0x53, 1, 0, 38}, append([]byte{0x42, 0x42, 3}, make([]byte, 43)...)...)
	frames := [][]byte{padded, lldp, vlan, qinq, mpls, stp}
	cases := []struct {
		hook, text string
		want       uint64
	}{
		{"ingress", "ether proto 0x88cc", 1},
		{"ingress", "vlan", 2},
		{"ingress", "vlan 5 and host 10.9.0.1", 1},
		{"ingress", "vlan 100 and vlan 200 and udp", 1},
		{"ingress", "mpls 100000 and host 10.9.0.2", 1},
		{"ingress", "stp", 1},
		{"ingress", "llc ui", 1},
		{"ingress", "udp", 1}, // behind a tag or a label it is not: vlan and mpls look there
		{"ingress", "ether src 00:00:5e:00:53:01", 6},
		{"prerouting", "src host 10.9.0.1", 1},
		{"prerouting", "less 29 and udp", 1}, // from the IP header on, and without padding
	}
	for i, c := range cases {
		s := defaultSpec(fmt.Sprintf("%08x", i))
		s.Once, s.Hooks, s.Interfaces, s.Filter = false, []string{c.hook}, []string{"vb"}, parse(t, c.text)
		install(t, table, s)
	}
	testbed.In(t, pair.A, func() error { return sendFrames("va", frames) })
	for i, c := range cases {
		settle(t, table, fmt.Sprintf("%08x", i), c.want)
		if got := total(t, table, fmt.Sprintf("%08x", i)); got.Seen != c.want {
			t.Errorf("%q at %s: counted %d, want %d", c.text, c.hook, got.Seen, c.want)
		}
	}
	// Links of other kinds and hooks without one say what would help.
	s := defaultSpec("0f8c1234")
	s.Filter = parse(t, "vlan 5")
	if err := table.Install(s); err == nil || !strings.Contains(err.Error(), "link-layer") {
		t.Errorf("vlan at prerouting: %v", err)
	}
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

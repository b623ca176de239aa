package ring

import (
	"bytes"
	"slices"
	"testing"
)

// ip4 is an IPv4 header with options for the protocol and what follows.
func ip4(t testing.TB, protocol byte, options, rest string) []byte {
	o, r := unhex(t, options), unhex(t, rest)
	b := append([]byte{byte(0x45 + len(o)/4), 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, o...)
	b = append(b, r...)
	be.PutUint16(b[2:], uint16(len(b)))
	return b
}

func ip6(t testing.TB, next byte, rest string) []byte {
	r := unhex(t, rest)
	b := make([]byte, 40, 40+len(r))
	b[0], b[6] = 0x60, next
	be.PutUint16(b[4:], uint16(len(r)))
	return append(b, r...)
}

const payloadBytes = "aaaaaaaa bbbbbbbb cccccccc dddddddd eeeeeeee ffffffff aaaaaaaa bbbbbbbb cccccccc dddddddd eeeeeeee"

// The payload begins where each protocol's own specification says.
func TestPayload(t *testing.T) {
	const tcp20, tcp32 = "0fa0 01bb 00000001 00000002 5018 ffff 0000 0000", "0fa0 01bb 00000001 00000002 8018 ffff 0000 0000 0101080a 00000001 00000002"
	const udp = "0fa0 01bb 0030 0000"
	tag := func(b []byte, ethertype uint16) []byte {
		return append(be.AppendUint16([]byte{0, 7}, ethertype), b...)
	}
	for name, c := range map[string]struct {
		ethertype uint16
		packet    []byte
		want      int
	}{
		"tcp":                  {etherIPv4, ip4(t, 6, "", tcp20+payloadBytes), 40},
		"tcp with options":     {etherIPv4, ip4(t, 6, "", tcp32+payloadBytes), 52},
		"ip options, tcp":      {etherIPv4, ip4(t, 6, "94040000 01010101", tcp32+payloadBytes), 60},
		"udp":                  {etherIPv4, ip4(t, 17, "", udp+payloadBytes), 28},
		"udp-lite":             {etherIPv4, ip4(t, 136, "", udp+payloadBytes), 28},
		"sctp":                 {etherIPv4, ip4(t, 132, "", "0fa0 01bb 00000001 00000002"+payloadBytes), 32},
		"dccp":                 {etherIPv4, ip4(t, 33, "", "0fa0 01bb 04 00 0000 00 000000 00000001"+payloadBytes), 36},
		"icmp echo":            {etherIPv4, ip4(t, 1, "", "0800 0000 0001 0001"+payloadBytes), 28},
		"igmp":                 {etherIPv4, ip4(t, 2, "", "1600 0000 e0000001"), 28},
		"gre":                  {etherIPv4, ip4(t, 47, "", "0000 0800"+payloadBytes), 24},
		"gre, key and number":  {etherIPv4, ip4(t, 47, "", "b000 0800 00000000 00000001 00000002"+payloadBytes), 36},
		"pptp":                 {etherIPv4, ip4(t, 47, "", "3081 880b 00100001 00000002 00000003"+payloadBytes), 36},
		"esp":                  {etherIPv4, ip4(t, 50, "", "00000001 00000002"+payloadBytes), 28},
		"ah, tcp":              {etherIPv4, ip4(t, 51, "", "06 04 0000 00000001 00000001 aaaaaaaa bbbbbbbb cccccccc"+tcp20+payloadBytes), 20 + 24 + 20},
		"unknown protocol":     {etherIPv4, ip4(t, 253, "", payloadBytes), 20},
		"later fragment":       {etherIPv4, slices.Replace(ip4(t, 17, "", udp+payloadBytes), 6, 8, 0, 3), 20},
		"first fragment":       {etherIPv4, slices.Replace(ip4(t, 17, "", udp+payloadBytes), 6, 8, 0x20, 0), 28},
		"padding":              {etherIPv4, append(ip4(t, 17, "", udp), make([]byte, 18)...), 28},
		"padding, no payload":  {etherIPv4, append(ip4(t, 2, "", "1600 0000 e0000001"), make([]byte, 18)...), 28},
		"cut in tcp":           {etherIPv4, ip4(t, 6, "", tcp32+payloadBytes)[:33], 33},
		"cut in ip":            {etherIPv4, ip4(t, 6, "", tcp32)[:13], 13},
		"tcp of nonsense":      {etherIPv4, ip4(t, 6, "", "0fa0 01bb 00000001 00000002 1018 ffff 0000 0000"+payloadBytes), 40},
		"big tcp":              {etherIPv4, slices.Replace(ip4(t, 6, "", tcp20+payloadBytes), 2, 4, 0, 0), 40},
		"ip6, tcp":             {etherIPv6, ip6(t, 6, tcp32+payloadBytes), 72},
		"ip6, extensions, udp": {etherIPv6, ip6(t, 0, "3c000104 00000000 11000104 00000000"+udp+payloadBytes), 64},
		"ip6, routing, tcp":    {etherIPv6, ip6(t, 43, "06 02 04 00 00000000 20010db8000000000000000000000001"+tcp20+payloadBytes), 40 + 24 + 20},
		"ip6, first fragment":  {etherIPv6, ip6(t, 44, "1100 0001 00000001"+udp+payloadBytes), 56},
		"ip6, later fragment":  {etherIPv6, ip6(t, 44, "1100 00f1 00000001"+payloadBytes), 48},
		"ip6, ah, udp":         {etherIPv6, ip6(t, 51, "11 04 0000 00000001 00000001 aaaaaaaa bbbbbbbb cccccccc"+udp+payloadBytes), 40 + 24 + 8},
		"icmp6 echo":           {etherIPv6, ip6(t, 58, "8000 0000 0001 0001"+payloadBytes), 48},
		"icmp6 neighbour":      {etherIPv6, ip6(t, 58, "8700 0000 00000000 20010db8000000000000000000000001 0101 020000000001"), 72},
		"ip6, nothing next":    {etherIPv6, ip6(t, 59, payloadBytes), 40},
		"arp":                  {etherARP, append(unhex(t, "0001 0800 06 04 0001 020000000001 0a090001 000000000000 0a090002"), make([]byte, 18)...), 28},
		"tag, udp":             {etherVLAN, tag(ip4(t, 17, "", udp+payloadBytes), etherIPv4), 32},
		"two tags, tcp":        {etherQinQ, tag(tag(ip6(t, 6, tcp20+payloadBytes), etherIPv6), etherVLAN), 68},
		"lldp":                 {0x88cc, unhex(t, payloadBytes), 0},
		"llc":                  {4, unhex(t, payloadBytes), 0},
		"ip6 said to be ip":    {etherIPv4, ip6(t, 6, tcp20+payloadBytes), 0},
	} {
		t.Run(name, func(t *testing.T) {
			if got := FindHeaders(c.ethertype, c.packet).Payload(c.packet); got != c.want {
				t.Errorf("the payload begins at %d, want %d of %d bytes", got, c.want, len(c.packet))
			}
		})
	}
}

// FuzzPayload: the answer is within the packet, what is cut off does not change it, and
// what lies behind it was not looked at to find it.
func FuzzPayload(f *testing.F) {
	for _, b := range [][]byte{
		ip4(f, 6, "94040000", "0fa0 01bb 00000001 00000002 8018 ffff 0000 0000 0101080a 00000001 00000002"+payloadBytes),
		ip6(f, 0, "3c000104 00000000 2c000104 00000000 1100 0001 00000001 0fa0 01bb 0030 0000"+payloadBytes),
		ip4(f, 47, "", "b000 0800 00000000 00000001 00000002"+payloadBytes),
		unhex(f, "0001 0800 06 04 0001 020000000001 0a090001 000000000000 0a090002 0000"),
	} {
		for _, e := range []uint16{etherIPv4, etherIPv6, etherARP, etherVLAN} {
			f.Add(e, b)
		}
	}
	f.Fuzz(func(t *testing.T, ethertype uint16, b []byte) {
		h := FindHeaders(ethertype, b)
		n := h.Payload(b)
		if n < 0 || n > len(b) || h.Network > h.Next || h.Next > len(b) || h.End > len(b) {
			t.Fatalf("%+v, payload at %d of %d bytes", h, n, len(b))
		}
		if _, _, ok := h.Ports(b); ok && h.Next+4 > len(b) {
			t.Fatalf("%+v: ports beyond %d bytes", h, len(b))
		}
		if again := FindHeaders(ethertype, b[:n]).Payload(b[:n]); again != n {
			t.Fatalf("cut at %d, the payload begins at %d", n, again)
		}
		other := append(bytes.Clone(b[:n]), bytes.Repeat([]byte{0x5a}, len(b)-n)...)
		if again := FindHeaders(ethertype, other).Payload(other); again != n {
			t.Fatalf("the payload begins at %d, with another payload at %d", n, again)
		}
		for _, link := range []LinkType{LinkRaw, LinkEthernet, LinkSLL2} {
			p := Packet{Family: FamilyNetdev, Hook: HookNetdevEgress, Protocol: ethertype, Payload: b, L2Header: make([]byte, 14)}
			p.HeadersOnly(link, p.Network())
		}
	})
}

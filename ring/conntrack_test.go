package ring

import (
	"net/netip"
	"testing"
)

// nest is a nested attribute, as nla_nest_start makes it.
func nest(kind uint16, attrs ...attr) attr {
	var v []byte
	for _, a := range attrs {
		v = putAttr(v, a)
	}
	return attr{kind | 0x8000, v}
}

// conntrackAttr is NFULA_CT as __ctnetlink_glue_build writes it
// (net/netfilter/nf_conntrack_netlink.c): both tuples, id, status, timeout, mark.
func conntrackAttr(v6 bool, protocol uint8) attr {
	tuple := func(kind uint16, from, to string, sport, dport uint16) attr {
		source, destination := uint16(ctaIPv4Source), uint16(ctaIPv4Dest)
		if v6 {
			source, destination = ctaIPv6Source, ctaIPv6Dest
		}
		ports := []attr{{ctaProtoSPort, u16(sport)}, {ctaProtoDPort, u16(dport)}}
		switch protocol {
		case protoICMP:
			ports = []attr{{ctaICMPID, u16(sport)}, {5, []byte{8}}, {6, []byte{0}}}
		case protoICMPv6:
			ports = []attr{{ctaICMPv6ID, u16(sport)}, {8, []byte{128}}, {9, []byte{0}}}
		}
		return nest(kind,
			nest(ctaTupleIP, attr{source, netip.MustParseAddr(from).AsSlice()}, attr{destination, netip.MustParseAddr(to).AsSlice()}),
			nest(ctaTupleProto, append([]attr{{ctaProtoNum, []byte{protocol}}}, ports...)...))
	}
	a, b, nat := "10.9.0.1", "192.0.2.7", "198.51.100.1"
	if v6 {
		a, b, nat = "fd00:9::1", "2001:db8::7", "2001:db8::1"
	}
	return nest(attrCT, tuple(ctaTupleOrig, a, b, 4000, 443), tuple(2, b, nat, 443, 61000),
		attr{ctaID, u32(0xdeadbeef)}, attr{3, u32(0x18e)}, attr{7, u32(431999)}, attr{8, u32(42)}, attr{ctaZone, u16(7)})
}

// The kernel's conntrack attribute is read for both families and kinds of tuple, in every
// state, and costs no allocation.
func TestConnection(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, protocol := range []uint8{protoTCP, protoUDP, protoICMP, protoICMPv6} {
			for info, want := range map[uint32]struct {
				state string
				reply bool
			}{0: {"established", false}, 1: {"related", false}, 2: {"new", false}, 3: {"established", true}, 4: {"related", true}} {
				s := synth{family: FamilyIPv4, in: 1, out: 2, hook: HookForward, extra: []attr{{attrMark, u32(9)}, conntrackAttr(v6, protocol), {attrCTInfo, u32(info)}}, payload: make([]byte, 40)}
				p, v, _ := decodeOne(t, testDecoder(1000), s.message())
				if v != good {
					t.Fatalf("verdict %d", v)
				}
				var c Conntrack
				var ok bool
				if n := testing.AllocsPerRun(100, func() { c, ok = p.Connection() }); n != 0 {
					t.Errorf("%g allocations", n)
				}
				source := netip.MustParseAddr("10.9.0.1")
				if v6 {
					source = netip.MustParseAddr("fd00:9::1")
				}
				icmp := protocol == protoICMP || protocol == protoICMPv6
				if !ok || c.ID != 0xdeadbeef || c.State.String() != want.state || c.Reply != want.reply || c.Protocol != protocol || c.Zone != 7 ||
					c.Source.Addr() != source || c.HasICMP != icmp || icmp && (c.ICMPID != 4000 || c.Source.Port() != 0) || !icmp && (c.Source.Port() != 4000 || c.Destination.Port() != 443) {
					t.Errorf("protocol %d, info %d: %+v, %t", protocol, info, c, ok)
				}
			}
		}
	}
	for info := range uint32(10) {
		p := Packet{ConntrackInfo: info}
		if _, ok := p.Connection(); ok {
			t.Error("a connection without an attribute")
		}
		p.Conntrack = conntrackAttr(false, protoTCP).value
		if _, ok := p.Connection(); ok != (info <= 5) {
			t.Errorf("info %d: %t", info, ok)
		}
	}
}

// FuzzConnection: nothing in the attribute can do harm.
func FuzzConnection(f *testing.F) {
	for _, v6 := range []bool{false, true} {
		f.Add(conntrackAttr(v6, protoTCP).value, uint32(3))
		f.Add(conntrackAttr(v6, protoICMP).value, uint32(0))
	}
	f.Fuzz(func(t *testing.T, b []byte, info uint32) {
		p := Packet{Conntrack: b, ConntrackInfo: info}
		if c, ok := p.Connection(); ok && (!c.Source.IsValid() || !c.Destination.IsValid() || c.State > StateNew) {
			t.Fatalf("%+v", c)
		}
	})
}

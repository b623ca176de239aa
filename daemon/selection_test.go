package daemon

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"capd/ctl/wire"
	"capd/nft/filter"
	"capd/ring"
	"capd/ring/pcapng"
)

// flowPacket is a packet between the hosts and ports, forth or back.
func flowPacket(v6 bool, protocol byte, n int, back bool) ring.Packet {
	a, b, portA, portB := byte(1), byte(2), uint16(4000+n), uint16(443)
	if back {
		a, b, portA, portB = b, a, portB, portA
	}
	ip := make([]byte, 20)
	p := ring.Packet{Family: ring.FamilyIPv4, Protocol: 0x0800}
	ip[0], ip[8], ip[9], ip[15], ip[19] = 0x45, 64, protocol, a, b
	if v6 {
		ip = make([]byte, 40)
		p = ring.Packet{Family: ring.FamilyIPv6, Protocol: 0x86dd}
		ip[0], ip[6], ip[23], ip[39] = 0x60, protocol, a, b
	}
	transport := make([]byte, 24)
	binary.BigEndian.PutUint16(transport, portA)
	binary.BigEndian.PutUint16(transport[2:], portB)
	p.Payload = append(ip, transport...)
	if v6 {
		binary.BigEndian.PutUint16(p.Payload[4:], 24)
	} else {
		binary.BigEndian.PutUint16(p.Payload[2:], 44)
	}
	return p
}

// A flow's key is that of both directions, of all its fragments, and of no other flow.
func TestFlowKey(t *testing.T) {
	seen := map[[37]byte]string{}
	for _, v6 := range []bool{false, true} {
		for _, protocol := range []byte{6, 17, 132} {
			for n := range 50 {
				name := fmt.Sprint(v6, protocol, n)
				forth, back := flowPacket(v6, protocol, n, false), flowPacket(v6, protocol, n, true)
				key := flowKey(&forth)
				if key != flowKey(&back) {
					t.Errorf("%s: the way back is another flow", name)
				}
				if other, taken := seen[key]; taken {
					t.Errorf("%s and %s are one flow", name, other)
				}
				seen[key] = name
				// At egress, and with a tag, it is the same.
				forth.Family, forth.Hook, forth.L2Header = ring.FamilyNetdev, ring.HookNetdevEgress, make([]byte, 14)
				forth.VLAN = ring.VLAN{Present: true, TCI: 7, Protocol: 0x8100}
				forth.Payload = append(make([]byte, 14), forth.Payload...)
				if key != flowKey(&forth) {
					t.Errorf("%s: at egress it is another flow", name)
				}
			}
		}
	}
	first, later := flowPacket(false, 17, 0, false), flowPacket(false, 17, 9, false)
	first.Payload[6], later.Payload[7] = 0x20, 3
	if flowKey(&first) != flowKey(&later) {
		t.Error("the fragments of one IPv4 datagram are two flows")
	}
	fragment := func(n, offset int) [37]byte {
		p := flowPacket(true, 44, n, false)
		p.Payload = append(append(p.Payload[:40:40], 17, 0, 0, byte(offset<<3|1), 0, 0, 0, 1), p.Payload[40:]...)
		return flowKey(&p)
	}
	if fragment(0, 0) != fragment(9, 3) {
		t.Error("the fragments of one IPv6 datagram are two flows")
	}
	for n := range 60 { // whatever is cut
		for _, v6 := range []bool{false, true} {
			p := flowPacket(v6, 6, 1, false)
			p.Payload = p.Payload[:min(n, len(p.Payload))]
			flowKey(&p)
		}
	}
}

// One in n is what it says, per packet and per flow.
func TestSamplerShare(t *testing.T) {
	for _, n := range []uint32{0, 1, 2, 3, 10, 100} {
		for _, byFlow := range []bool{false, true} {
			s, taken := newSampler(n, byFlow), 0
			const count = 40_000
			for i := range count {
				p := flowPacket(i%2 == 0, 6, i, i%3 == 0)
				if s.takes(&p) {
					taken++
				}
			}
			share := 1 / float64(max(n, 1))
			if off := math.Abs(float64(taken) - count*share); off > 6*math.Sqrt(count*share*(1-share))+0.5 {
				t.Errorf("one in %d (by flow: %t) of %d are %d", n, byFlow, count, taken)
			}
		}
	}
}

// What the kernel cannot decide costs no allocation either, and leaves the account whole.
func TestEngineSelectionAllocatesNothing(t *testing.T) {
	for name, r := range map[string]wire.StartRequest{
		"inet":   {Filter: "udp[4:2] - 8 != 0 or ip[2:2] > ip[4:2]", Sample: ptr(uint32(3)), Snaplen: ptr(uint32(60))},
		"flow":   {Filter: "udp[4:2] - 8 != 0 and not ifname eth1", Sample: ptr(uint32(2)), SampleBy: wire.SampleByFlow},
		"netdev": {Filter: "udp[4:2] - 8 != 0 and ether[0] != ether[1]", Interfaces: []string{"eth0"}, Sample: ptr(uint32(3))},
	} {
		t.Run(name, func(t *testing.T) {
			packets := make([]ring.Packet, 64)
			for i := range packets {
				packets[i] = testPacket(i, 60+i%3*600, i%4 >= 2)
				binary.BigEndian.PutUint16(packets[i].Payload[20:], uint16(i/4)) // a port
				if p := &packets[i]; r.Interfaces != nil {
					p.Family, p.Hook, p.L2Header, p.HasHWType = ring.FamilyNetdev, ring.HookNetdevIngress, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}, false
					p.VLAN = ring.VLAN{Present: i%2 == 0, TCI: 5, Protocol: 0x8100}
				}
			}
			s, allocatesNothing := steady(t, packets, 200_000)
			r.SegmentSize = ptr(wire.Size(1e9))
			o := runEngine(t, r, s, 0)
			allocatesNothing()
			if c := o.engine.count; c.captured == 0 || c.sampledOut == 0 || c.captured+c.sampledOut+c.discarded != uint64(s.packets) {
				t.Errorf("the account: %+v", c)
			}
		})
	}
}

// Fragments, packets cut short and payloads shorter than what the filter reads are judged
// as libpcap does: what reads beyond the end wants nothing.
func TestSelectionShortPackets(t *testing.T) {
	f, err := filter.Parse("udp[4:2] + udp[6:2] >= 0")
	if err != nil {
		t.Fatal(err)
	}
	m, err := f.Matcher(filter.LinkRaw)
	if err != nil {
		t.Fatal(err)
	}
	s := selection{inet: m, links: &links{}}
	for size := range 45 {
		p := flowPacket(false, 17, 0, false)
		p.Payload = p.Payload[:min(size, len(p.Payload))]
		want := refused
		if size >= 28 {
			want = wanted
		}
		if got := s.judge(&p); got != want {
			t.Errorf("%d bytes: %d, want %d", size, got, want)
		}
	}
	later := flowPacket(false, 17, 0, false)
	later.Payload[7] = 3
	if got := s.judge(&later); got != refused {
		t.Errorf("a later fragment: %d", got)
	}
}

// Comments, headers alone and both, in both formats: no allocation, original lengths, and
// no byte of a payload.
func TestEngineHeadersAndComments(t *testing.T) {
	for name, r := range map[string]wire.StartRequest{
		"pcapng": {HeadersOnly: true, Annotate: true}, "raw": {HeadersOnly: true, LinkType: wire.LinkRaw}, "pcap": {HeadersOnly: true, Format: wire.FormatPcap},
	} {
		t.Run(name, func(t *testing.T) {
			packets := make([]ring.Packet, 64)
			for i := range packets {
				p := &packets[i]
				*p = testPacket(i, 100+i%3*600, i%4 >= 2)
				copy(p.Payload[28:], bytes.Repeat([]byte("secret"), 200))
				p.Mark, p.UID, p.GID, p.HasUID = uint32(i%5), 1000, 100, i%2 == 0
			}
			s, allocatesNothing := steady(t, packets, 100_000)
			r.SegmentSize = ptr(wire.Size(1e9))
			o := runEngine(t, r, s, 0)
			allocatesNothing()
			if c := o.engine.count; c.captured != uint64(s.packets) {
				t.Errorf("the account: %+v", c)
			}
			file := o.files[0]
			if bytes.Contains(file, []byte("secret")) {
				t.Error("a payload is in the file")
			}
			if r.Format == wire.FormatPcap {
				return
			}
			if !bytes.Contains(file[:500], []byte("headers_only=true")) || !bytes.Contains(file[:500], []byte("sample=1")) {
				t.Errorf("the section says %q", file[:500])
			}
			if annotated := bytes.Count(file, []byte("capd mark=0x4 uid=1000 gid=100")) > 0; annotated != r.Annotate {
				t.Errorf("annotated: %t", annotated)
			}
			i := 0
			readFile(t, file, func(_ pcapng.Interface, p pcapng.Packet) {
				link := map[string]int{"raw": 0}[name] + map[string]int{"pcapng": 20}[name]
				if len(p.Head)+len(p.Body) != link+28 || int(p.Original) != link+100+i%64%3*600 {
					t.Fatalf("packet %d: %d of %d bytes", i, len(p.Head)+len(p.Body), p.Original)
				}
				i++
			}, nil)
		})
	}
}

// A comment's values cannot end it early, whatever an interface or a host is called.
func TestCommentGrammar(t *testing.T) {
	l := &links{known: map[uint32]link{1: {"eth0", 1}, 2: {"a=b c%\x1b", 1}}}
	p := ring.Packet{Family: ring.FamilyIPv4, Hook: ring.HookForward, In: 1, Out: 2, Mark: 42, UID: 7, GID: 8, HasUID: true}
	if got, want := newAnnotator(l).comment(&p), "capd mark=0x2a uid=7 gid=8 out=a=b%20c%25%1B"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	p = ring.Packet{Family: ring.FamilyIPv4, Hook: ring.HookPrerouting, In: 1}
	if got := newAnnotator(l).comment(&p); got != "" {
		t.Errorf("of nothing: %q", got)
	}
	r := &wire.StartRequest{Name: "x", Hooks: []string{"ingress", "egress"}, Sample: ptr(uint32(100)), SampleBy: wire.SampleByFlow, Snaplen: ptr(uint32(96)), HeadersOnly: true}
	const want = "capd capture=0123 host=a%20b name=x hooks=ingress,egress sample=100 sample_by=flow snaplen=96 headers_only=true clock=synchronized clock_error_us=1500"
	if got := sectionComment("0123", r, r.Hooks, "a b", wire.ClockState{Synchronized: true, MaxErrorUS: 1500}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

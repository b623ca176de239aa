package daemon

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"testing"

	"capd/ctl/wire"
	"capd/nft/filter"
	"capd/ring"
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
			const warm, count = 10_000, 200_000
			var before, after runtime.MemStats
			s := &fakeSource{packets: warm + count, packet: func(i int) *ring.Packet { return &packets[i%len(packets)] }}
			s.at = func(i int) {
				switch i {
				case warm:
					runtime.ReadMemStats(&before)
				case warm + count - 1:
					runtime.ReadMemStats(&after)
				}
			}
			r.SegmentSize = ptr(wire.Size(1e9))
			o := runEngine(t, r, s, 0)
			if n := after.Mallocs - before.Mallocs; n > count/1000 {
				t.Errorf("%d allocations in %d packets", n, count)
			}
			if c := o.engine.count; c.captured == 0 || c.sampledOut == 0 || c.captured+c.sampledOut+c.discarded != warm+count {
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

package daemon

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"

	"capd/nft/filter"
	"capd/ring"
)

// selection is what is left to decide of a packet that the kernel has logged: the part of
// the filter that rules cannot express and, because it has to come after it, the sample.
// It belongs to the engine's goroutine and allocates nothing per packet. The zero
// selection wants every packet.
type selection struct {
	// Nil where the rules decide alone: at the inet hooks, at ingress and egress.
	inet, netdev *filter.Matcher
	bare         bool // netdev judges packets from the IP header on
	sample       sampler
	links        *links

	packet  filter.Packet // the one at hand
	head    [ring.MaxHead]byte
	in, out named
}

// verdict is what becomes of a packet.
type verdict uint8

const (
	wanted verdict = iota
	refused
	sampledOut
	unroomed // wanted, but the spool has no room: the engine's own verdict
)

// judge takes a packet through filter and sample.
func (s *selection) judge(p *ring.Packet) verdict {
	m := s.inet
	if p.Family == ring.FamilyNetdev {
		m = s.netdev
	}
	if m != nil && !m.Match(s.frame(p)) {
		return refused
	}
	if !s.sample.takes(p) {
		return sampledOut
	}
	return wanted
}

// frame is the packet as a Matcher takes it: at inet hooks from the IP header on, at
// ingress and egress with its Ethernet header. A packet that lacks it there, from a device
// that came later, is given an empty header in its place, so that a filter finds the
// protocols; it does not count in the length.
func (s *selection) frame(p *ring.Packet) *filter.Packet {
	f := &s.packet
	link := ring.LinkRaw
	if p.Family == ring.FamilyNetdev && !s.bare {
		link = ring.LinkEthernet
	}
	var ok bool
	if f.Head, f.Body, f.Length, ok = p.Frame(link, &s.head); !ok {
		f.Head, f.Body, f.Length = nil, p.Network(), p.NetworkLength()
		if link == ring.LinkEthernet {
			f.Head = s.head[:14]
			clear(f.Head)
			binary.BigEndian.PutUint16(f.Head[12:], p.Protocol)
		}
	}
	f.In, f.Out = s.in.of(p.In, s.links), s.out.of(p.Out, s.links)
	d := p.Direction()
	f.Inbound, f.Outbound = d == ring.Inbound, d == ring.Outbound
	return f
}

// named remembers the name of the interface that was asked for last.
type named struct {
	index   uint32
	changes uint32 // links.changes when it was asked
	name    string
}

// of gives an interface's name, "" for none.
func (n *named) of(index uint32, l *links) string {
	if changes := l.changes.Load(); index != n.index || changes != n.changes {
		n.index, n.changes, n.name = index, changes, ""
		if index != 0 {
			n.name = l.get(index).name
		}
	}
	return n.name
}

// sampler keeps one packet in n, or all packets of one flow in n, as the kernel's rules do
// (numgen random, symhash; net/netfilter/nft_numgen.c, nft_hash.c). The zero sampler keeps
// all.
type sampler struct {
	n      uint32
	byFlow bool
	seed   maphash.Seed // of byFlow
}

func newSampler(n uint32, byFlow bool) sampler {
	return sampler{n: n, byFlow: byFlow, seed: maphash.MakeSeed()}
}

// takes tells whether a packet is in the sample.
func (s *sampler) takes(p *ring.Packet) bool {
	switch {
	case s.n <= 1:
		return true
	case !s.byFlow:
		return rand.Uint32N(s.n) == 0
	}
	key := flowKey(p)
	share, _ := bits.Mul64(maphash.Bytes(s.seed, key[:]), uint64(s.n)) // 0 to n-1, evenly
	return share == 0
}

// flowKey is the same for all packets of a flow, in both directions: addresses, ports and
// protocol, the lower end first. Fragments have no ports, the first of them included, so
// that those of one datagram are kept together. What is not IP is one flow for each
// ethertype; a tunnel is one flow, whatever is inside.
func flowKey(p *ring.Packet) (key [37]byte) {
	b := p.Network()
	h := ring.FindHeaders(p.Protocol, b)
	l3 := b[h.Network:]
	var from, to netip.AddrPort
	sourcePort, destinationPort, _ := h.Ports(b)
	if h.Fragment {
		sourcePort, destinationPort = 0, 0
	}
	switch {
	case h.Next == h.Network: // no IP
		binary.BigEndian.PutUint16(key[:], h.Ethertype)
		return key
	case h.Ethertype == unix.ETH_P_IP:
		from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(l3[12:])), sourcePort)
		to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(l3[16:])), destinationPort)
		key[36] = l3[9]
	default:
		from = netip.AddrPortFrom(netip.AddrFrom16([16]byte(l3[8:])), sourcePort)
		to = netip.AddrPortFrom(netip.AddrFrom16([16]byte(l3[24:])), destinationPort)
		if key[36] = h.Protocol; h.Fragment {
			key[36] = unix.IPPROTO_FRAGMENT // only the first fragment tells what it carries
		}
	}
	if to.Compare(from) < 0 {
		from, to = to, from
	}
	for i, end := range [...]netip.AddrPort{from, to} {
		addr := end.Addr().As16()
		copy(key[i*18:], addr[:])
		binary.BigEndian.PutUint16(key[i*18+16:], end.Port())
	}
	return key
}

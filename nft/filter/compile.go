package filter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
)

// Link says what stands before the network header where a program runs.
type Link uint8

// Links.
const (
	LinkRaw      Link = iota // inet hooks: packets begin with the IP header
	LinkEthernet             // netdev hooks of Ethernet devices
)

// Compile gives the kernel's part of the filter. Its errors are *Error and say what of the
// filter has no meaning at such a link.
func (f *Filter) Compile(link Link) (*Program, error) {
	c, err := f.meaning(link)
	if err != nil {
		return nil, err
	}
	exact := true
	form := numbers{}.number(kernelForm(c, false, link, &exact))
	g := graph{exact: exact}
	start := g.add(form, hit, miss)
	if len(g.tests) > maxTests {
		return &Program{Chains: looseRules(form)}, nil
	}
	start = g.simplify(start)
	switch start {
	case hit:
		return &Program{Exact: exact}, nil
	case miss:
		return nil, &Error{Field: "filter", Value: f.String(), Message: "no packet can match " + f.String(),
			Hint: "leave out what contradicts itself"}
	}
	chains := g.rules(start)
	if tooDeep(chains) {
		return &Program{Chains: looseRules(form)}, nil
	}
	return &Program{Chains: chains, Exact: exact}, nil
}

// maxTests bounds the graphs that are written exactly; a thousand hosts are four tests, a
// thousand pairs of host and port ten thousand.
const maxTests = 4000

func (m Match) equal(other Match) bool { return reflect.DeepEqual(m, other) }

// leaf gives the matches of a tree's smallest part.
func leaf(n Node, link Link) ([]Match, error) {
	switch n := n.(type) {
	case Address:
		address := addressMatch(n.Side, n.Prefix, link)
		if link == LinkEthernet {
			return []Match{address}, nil
		}
		return []Match{familyMatch(n.Prefix.Addr().Is4(), link), address}, nil // against another part's family
	case Transport:
		return []Match{{Key: L4Proto, Values: []Span{{Lo: []byte{n.Protocol}}}}}, nil
	case TransportPort:
		return portMatches(n.Side, n.Protocol, n.Port), nil
	}
	return nil, fmt.Errorf("filter: %s cannot be compiled", n)
}

// Values of NFProto: NFPROTO_IPV4 and NFPROTO_IPV6 of linux/netfilter.h.
const afInet, afInet6 = 2, 10

// familyMatch compares a packet's IP version.
func familyMatch(is4 bool, link Link) Match {
	switch {
	case link == LinkEthernet && is4:
		return Match{Key: EthType, Values: []Span{{Lo: []byte{0x08, 0x00}}}}
	case link == LinkEthernet:
		return Match{Key: EthType, Values: []Span{{Lo: []byte{0x86, 0xdd}}}}
	case is4:
		return Match{Key: NFProto, Values: []Span{{Lo: []byte{afInet}}}}
	}
	return Match{Key: NFProto, Values: []Span{{Lo: []byte{afInet6}}}}
}

// addressMatch compares an address of the IP header with a prefix.
func addressMatch(side Side, p netip.Prefix, link Link) Match {
	if p.Bits() == 0 {
		return familyMatch(p.Addr().Is4(), link)
	}
	key := IPSaddr
	switch is4 := p.Addr().Is4(); {
	case is4 && side == Destination:
		key = IPDaddr
	case !is4 && side == Source:
		key = IP6Saddr
	case !is4:
		key = IP6Daddr
	}
	return Match{Key: key, Values: []Span{prefixSpan(p)}}
}

// prefixSpan gives the addresses of a prefix.
func prefixSpan(p netip.Prefix) Span {
	lo := p.Masked().Addr().AsSlice()
	if p.IsSingleIP() {
		return Span{Lo: lo}
	}
	hi := p.Masked().Addr().AsSlice()
	for bit := p.Bits(); bit < len(hi)*8; bit++ {
		hi[bit/8] |= 0x80 >> (bit % 8)
	}
	return Span{Lo: lo, Hi: hi}
}

// portKeys are the keys of ports by protocol; those of protocol 0 need a match of the
// protocol beside them.
var portKeys = map[uint8][2]Key{
	0:            {ThSport, ThDport},
	protoTCP:     {TCPSport, TCPDport},
	protoUDP:     {UDPSport, UDPDport},
	protoDCCP:    {DCCPSport, DCCPDport},
	protoSCTP:    {SCTPSport, SCTPDport},
	protoUDPLite: {UDPLiteSport, UDPLiteDport},
}

// portMatches compares a port; with protocol 0, one of any protocol that has ports.
func portMatches(side Side, protocol uint8, port uint16) []Match {
	value := Match{
		Key:    portKeys[protocol][side],
		Values: []Span{{Lo: binary.BigEndian.AppendUint16(nil, port)}},
	}
	if protocol != 0 {
		return []Match{value}
	}
	return []Match{anyPorts(), value}
}

// anyPorts compares the protocol with all that have ports.
func anyPorts() Match {
	m := Match{Key: L4Proto, Op: In}
	for _, p := range portProtocols {
		m.Values = append(m.Values, Span{Lo: []byte{p}})
	}
	return m
}

// Rules gives the flow's matches: a packet of the flow, in either direction, is one for
// which all matches of at least one of the lists hold.
func (f Flow) Rules(link Link) ([][]Match, error) {
	f.Source, f.Destination = f.Source.Unmap().WithZone(""), f.Destination.Unmap().WithZone("")
	if f == (Flow{}) {
		return nil, errors.New("a flow without addresses and ports is every packet")
	}
	if f.Source.IsValid() && f.Destination.IsValid() && f.Source.Is4() != f.Destination.Is4() {
		return nil, fmt.Errorf("the ends of flow %s are of different families", f)
	}
	forth := f.matches(link)
	back := Flow{f.Destination, f.DestinationPort, f.Source, f.SourcePort}
	if back == f {
		return [][]Match{forth}, nil
	}
	return [][]Match{forth, back.matches(link)}, nil
}

// matches gives the matches of one direction.
func (f Flow) matches(link Link) []Match {
	var m []Match
	if f.Source.IsValid() {
		m = append(m, addressMatch(Source, netip.PrefixFrom(f.Source, f.Source.BitLen()), link))
	}
	if f.Destination.IsValid() {
		m = append(m, addressMatch(Destination, netip.PrefixFrom(f.Destination, f.Destination.BitLen()), link))
	}
	if f.SourcePort != 0 || f.DestinationPort != 0 {
		m = append(m, anyPorts())
	}
	if f.SourcePort != 0 {
		m = append(m, portMatches(Source, 0, f.SourcePort)[1])
	}
	if f.DestinationPort != 0 {
		m = append(m, portMatches(Destination, 0, f.DestinationPort)[1])
	}
	return m
}

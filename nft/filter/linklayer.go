package filter

import (
	"fmt"
)

// This file gives the primitives their meaning that need more of the link layer than its
// type: 802.2 LLC and what it carries, MPLS labels, and PPPoE sessions. As all meanings it
// is that of libpcap's gencode.c.

// LLC wants 802.3 frames with an LLC header, but no raw NetWare ones; with a Type only
// those of that kind.
type LLC struct {
	Type   string // of llcTypes; "" = any
	Column int
}

// MPLS wants packets with a label, and makes what stands after it look behind the label.
// After the first, it is the next label down the stack.
type MPLS struct {
	Label  int // 0 to 1048575; -1 = any
	Column int
}

// PPPoE wants frames of PPPoE sessions, and makes what stands after it look inside.
type PPPoE struct {
	Session int // 0 to 65535; -1 = any
	Column  int
}

func (LLC) node()   {}
func (MPLS) node()  {}
func (PPPoE) node() {}

func (n LLC) String() string { return words("llc", n.Type) }

func (n MPLS) String() string {
	if n.Label < 0 {
		return "mpls"
	}
	return fmt.Sprintf("mpls %d", n.Label)
}

func (n PPPoE) String() string {
	if n.Session < 0 {
		return "pppoes"
	}
	return fmt.Sprintf("pppoes %d", n.Session)
}

// llcTypes are the kinds of LLC frame by the bits of the control field that tell them
// (IEEE 802.2, 5.4).
var llcTypes = map[string]struct{ value, mask uint32 }{
	"i": {0x00, 0x01}, "s": {0x01, 0x03}, "u": {0x03, 0x03},
	"rr": {0x01, 0x0f}, "rnr": {0x05, 0x0f}, "rej": {0x09, 0x0f},
	"ui": {0x03, 0xef}, "ua": {0x63, 0xef}, "disc": {0x43, 0xef}, "sabme": {0x6f, 0xef},
	"test": {0xe3, 0xef}, "xid": {0xaf, 0xef}, "frmr": {0x87, 0xef},
}

// Numbers of the protocols that have meanings of their own: LLC service access points,
// which share their numbers with ethertypes below 1501, and ethertypes.
const (
	sapISO     = 0xfe
	sapIP      = 0x06
	sapNetBEUI = 0xf0
	sapIPX     = 0xe0
	sapSTP     = 0x42

	etherATalk  = 0x809b
	etherAARP   = 0x80f3
	etherIPX    = 0x8137
	etherDECnet = 0x6003
	etherNS     = 0x0600
	etherMPLS   = 0x8847
	etherPPPoED = 0x8863
	etherPPPoES = 0x8864

	maxLength = 1500 // of 802.3's length field; what is larger is an ethertype
)

// linkProtos are the link layer's protocols that have keywords.
var linkProtos = map[Proto]uint32{
	ARP: etherARP, RARP: etherRARP, DECnet: etherDECnet, LAT: 0x6004, SCA: 0x6007, MOPRC: 0x6002, MOPDL: 0x6001,
	ATalk: etherATalk, AARP: etherAARP, ISO: sapISO, STP: sapSTP, IPX: sapIPX, NetBEUI: sapNetBEUI, PPPoED: etherPPPoED,
}

// isoProtos are the protocols inside ISO's, by their first byte.
var isoProtos = map[Proto]uint32{CLNP: 0x81, ESIS: 0x82, ISIS: 0x83}

// isisTypes are the kinds of IS-IS packet that have keywords.
var isisTypes = map[string][]uint32{
	"l1": {26, 24, 18, 15, 17}, "l2": {27, 25, 20, 16, 17}, "iih": {17, 15, 16}, "lsp": {18, 20},
	"snp": {27, 26, 24, 25}, "csnp": {24, 25}, "psnp": {26, 27},
}

// pppTypes are PPP's numbers for ethertypes; others are taken as they are.
var pppTypes = map[uint32]uint32{
	etherIP: 0x21, etherIP6: 0x57, etherDECnet: 0x27, etherATalk: 0x29, etherNS: 0x25, sapISO: 0x23, sapSTP: 0x31,
	sapIPX: 0x2b, etherMPLS: 0x0281,
}

// typed refuses what compares the type of what a frame carries where there is none.
func (m *meaning) typed(column int, what interface{ String() string }) error {
	if err := m.needsEthernet(column, what); err != nil {
		return err
	}
	if m.labels > 0 {
		return &Error{Field: "filter", Value: what.String(), Column: column,
			Message: what.String() + " stands after mpls, behind whose labels only IP can be told", Hint: "write it before mpls, or leave it out"}
	}
	return nil
}

// framed refuses what looks at the Ethernet header where offsets count from behind
// another.
func (m *meaning) framed(column int, what interface{ String() string }) error {
	if err := m.needsEthernet(column, what); err != nil {
		return err
	}
	if m.ppp {
		return &Error{Field: "filter", Value: what.String(), Column: column,
			Message: what.String() + " stands after pppoes, inside of which there is no Ethernet header", Hint: "write it before pppoes"}
	}
	return nil
}

// payload is the offset of what follows the type, where LLC has its header.
func (m *meaning) payload() uint32 { return m.network - 4*m.labels }

// is8023 wants frames with a length where others have a type.
func (m *meaning) is8023() cond {
	return condNot{m.safe(&condTest{op: opGreater, left: at(m.typeAt, 2), right: constant(maxLength)})}
}

// snap wants an LLC header with a SNAP header behind it.
func (m *meaning) snap(org, number uint32) cond {
	return condAnd{
		equal(at(m.payload()+4, 4), org<<16|number),
		equal(at(m.payload(), 4), 0xaaaa0300|org>>16),
	}
}

// carriesType compares the type of what an Ethernet frame, a label stack or a PPP session
// carries.
func (m *meaning) carriesType(n uint32) cond {
	switch {
	case m.labels > 0:
		version := map[uint32]uint32{etherIP: 0x40, etherIP6: 0x60}[n]
		if version == 0 {
			return condConst(false)
		}
		return condAnd{masked(at(m.network-2, 1), 1, 1), masked(at(m.network, 1), version, 0xf0)}
	case m.ppp:
		if ppp, ok := pppTypes[n]; ok {
			n = ppp
		}
		return equal(at(m.typeAt, 2), n)
	}
	is := m.safe(equal(at(m.typeAt, 2), n))
	switch n {
	case sapISO, sapIP, sapNetBEUI:
		return condAnd{m.is8023(), equal(at(m.payload(), 2), n<<8|n)}
	case sapIPX:
		return condOr{m.safe(equal(at(m.typeAt, 2), etherIPX)), condAnd{m.is8023(), condOr{
			m.snap(0, etherIPX), equal(at(m.payload(), 1), n), equal(at(m.payload(), 2), 0xffff)}}}
	case etherATalk:
		return condOr{is, condAnd{m.is8023(), m.snap(0x080007, n)}}
	case etherAARP:
		return condOr{is, condAnd{m.is8023(), m.snap(0, n)}}
	}
	if n <= maxLength {
		return condAnd{m.is8023(), equal(at(m.payload(), 1), n)}
	}
	return is
}

// iso wants ISO packets whose byte at offset has a number.
func (m *meaning) iso(column int, what interface{ String() string }, numbers ...uint32) (cond, error) {
	if err := m.typed(column, what); err != nil {
		return nil, err
	}
	all := condAnd{m.carriesType(sapISO)}
	offset := m.payload() + 3
	if m.ppp {
		offset = m.payload() // without LLC's three bytes
	}
	for i, n := range numbers {
		all = append(all, equal(at(offset+4*uint32(i), 1), n))
	}
	return all, nil
}

// isisType wants IS-IS packets of one of several kinds.
func (m *meaning) isisType(n ISISType) (cond, error) {
	var either condOr
	for _, kind := range isisTypes[n.Type] {
		c, err := m.iso(n.Column, n, isoProtos[ISIS], kind)
		if err != nil {
			return nil, err
		}
		either = append(either, c)
	}
	return either, nil
}

// ISISType wants IS-IS packets of the kinds that a keyword stands for.
type ISISType struct {
	Type   string // of isisTypes
	Column int
}

func (ISISType) node() {}

func (n ISISType) String() string { return n.Type }

func (m *meaning) llc(n LLC) (cond, error) {
	if err := m.framed(n.Column, n); err != nil {
		return nil, err
	}
	all := condAnd{m.is8023(), condNot{equal(at(m.payload(), 2), 0xffff)}}
	if n.Type != "" {
		t := llcTypes[n.Type]
		all = append(all, masked(at(m.payload()+2, 1), t.value, t.mask))
	}
	return all, nil
}

func (m *meaning) mpls(n MPLS) (cond, error) {
	if err := m.needsEthernet(n.Column, n); err != nil {
		return nil, err
	}
	var all condAnd
	if m.labels == 0 {
		all = append(all, m.carriesType(etherMPLS))
	} else {
		all = append(all, masked(at(m.network-2, 1), 0, 1)) // not the bottom of the stack
	}
	if n.Label >= 0 {
		all = append(all, masked(at(m.network, 4), uint32(n.Label)<<12, 0xfffff000))
	}
	m.labels++
	m.network += 4
	return all, nil
}

func (m *meaning) pppoe(n PPPoE) (cond, error) {
	if err := m.typed(n.Column, n); err != nil {
		return nil, err
	}
	all := condAnd{m.carriesType(etherPPPoES)}
	if n.Session >= 0 {
		all = append(all, masked(at(m.network, 4), uint32(n.Session), 0xffff))
	}
	// Behind six bytes of PPPoE stand two of PPP, its protocol (RFC 2516, 4).
	m.typeAt, m.network, m.ppp = m.network+6, m.network+8, true
	return all, nil
}

// linkLoad is the place of a link-layer protocol's first byte, for bytes counted from it.
func (m *meaning) linkLoad(e Load, l load) (load, cond, error) {
	if err := m.typed(e.Column, e); err != nil {
		return l, nil, err
	}
	l.offset += m.payload()
	return l, m.carriesType(linkProtos[e.Proto]), nil
}

// hasBytes are the link-layer protocols whose bytes can be counted from their beginning.
var hasBytes = map[Proto]bool{DECnet: true, LAT: true, SCA: true, MOPRC: true, MOPDL: true, ATalk: true}

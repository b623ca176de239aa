package filter

import (
	"net/netip"
	"strconv"
	"strings"
)

// Node is a part of a filter's syntax tree. The tree says what is wanted and nothing of
// how it is matched; that is Compile's business.
type Node interface {
	// String gives the node as text for people, without loss.
	String() string
	node()
}

// What combines nodes.
type (
	// AllOf wants what all its parts want.
	AllOf []Node
	// AnyOf wants what at least one of its parts wants.
	AnyOf []Node
	// Not wants what its part does not want.
	Not struct{ X Node }
)

// Side is the end of a packet that an address or a port belongs to.
type Side uint8

// Sides.
const (
	Source Side = iota
	Destination
)

func (s Side) String() string {
	if s == Destination {
		return "dst"
	}
	return "src"
}

// Address is the source or destination address in the IP header. A prefix of length 0
// is any address of its family.
type Address struct {
	Side   Side
	Prefix netip.Prefix // masked
}

// Transport is the protocol that an IP packet carries, after IPv4 options and IPv6
// extension headers.
type Transport struct{ Protocol uint8 }

// TransportPort is the port of a packet of one of the protocols in portProtocols. Fragments
// other than the first have no ports.
type TransportPort struct {
	Side     Side
	Protocol uint8 // 0 = any that has ports
	Port     uint16
}

// portProtocols are the protocols that begin with source and destination port, in
// numeric order.
var portProtocols = []uint8{protoTCP, protoUDP, protoDCCP, protoSCTP, protoUDPLite}

func (AllOf) node()         {}
func (AnyOf) node()         {}
func (Not) node()           {}
func (Address) node()       {}
func (Transport) node()     {}
func (TransportPort) node() {}

func (n AllOf) String() string { return join(n, " and ") }
func (n AnyOf) String() string { return join(n, " or ") }
func (n Not) String() string   { return "not (" + n.X.String() + ")" }

// join puts parts that are alternatives or sequences themselves into parentheses.
func join(parts []Node, word string) string {
	texts := make([]string, len(parts))
	for i, p := range parts {
		texts[i] = p.String()
		switch p.(type) {
		case AllOf, AnyOf:
			texts[i] = "(" + texts[i] + ")"
		}
	}
	return strings.Join(texts, word)
}

func (n Address) String() string {
	family := "ip6"
	if n.Prefix.Addr().Is4() {
		family = "ip"
	}
	if n.Prefix.IsSingleIP() {
		return family + " " + n.Side.String() + " host " + n.Prefix.Addr().String()
	}
	return family + " " + n.Side.String() + " net " + n.Prefix.String()
}

func (n Transport) String() string { return "transport " + strconv.Itoa(int(n.Protocol)) }

func (n TransportPort) String() string {
	text := "transport "
	if n.Protocol != 0 {
		text += strconv.Itoa(int(n.Protocol)) + " "
	}
	return text + n.Side.String() + " port " + strconv.Itoa(int(n.Port))
}

// all joins trees of which every one must match; it keeps no AllOf inside an AllOf.
func all(parts ...Node) Node {
	var flat AllOf
	for _, p := range parts {
		if inner, ok := p.(AllOf); ok {
			flat = append(flat, inner...)
		} else if p != nil {
			flat = append(flat, p)
		}
	}
	switch len(flat) {
	case 0:
		return nil
	case 1:
		return flat[0]
	}
	return flat
}

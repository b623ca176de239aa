// Package filter turns what a person says about packets into what nftables can match.
//
// A filter is read from the model API's filter_v1 (FromV1) or from pcap-filter(7) text
// (Parse), and becomes a syntax tree. Compile turns the tree into a Program: matches and
// chains in nftables' own vocabulary, without any knowledge of netlink. Package nft puts
// a Program between its own rules and writes it to the kernel, or prints it.
//
// The package is pure: it opens nothing but /etc/protocols and /etc/services, for names,
// and keeps no state.
package filter

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Filter says which packets are wanted. The nil Filter and the zero Filter want every
// packet. A Filter is immutable: it may be used from several goroutines.
type Filter struct {
	root Node // nil: every packet
}

// New makes a filter of a syntax tree. A nil tree wants every packet.
func New(root Node) *Filter { return &Filter{root: root} }

// Tree gives the filter's syntax tree; nil means every packet. The tree belongs to the
// filter: do not change it.
func (f *Filter) Tree() Node {
	if f == nil {
		return nil
	}
	return f.root
}

// All tells whether the filter wants every packet.
func (f *Filter) All() bool { return f.Tree() == nil }

// And wants what both filters want. Either may be nil.
func And(a, b *Filter) *Filter {
	switch {
	case a.All() && b.All():
		return &Filter{}
	case a.All():
		return b
	case b.All():
		return a
	}
	return &Filter{root: all(a.root, b.root)}
}

// String gives the filter in words for people, without loss; it is empty for a filter
// that wants every packet.
func (f *Filter) String() string {
	if f.All() {
		return ""
	}
	return f.root.String()
}

// Flow is one transport flow, matched in both directions. A zero address or port is
// any.
type Flow struct {
	Source          netip.Addr
	SourcePort      uint16
	Destination     netip.Addr
	DestinationPort uint16
}

// String gives the flow as source -> destination.
func (f Flow) String() string {
	end := func(a netip.Addr, port uint16) string {
		switch {
		case !a.IsValid() && port == 0:
			return "any"
		case !a.IsValid():
			return fmt.Sprintf("any:%d", port)
		case port == 0:
			return a.String()
		}
		return netip.AddrPortFrom(a, port).String()
	}
	return end(f.Source, f.SourcePort) + " -> " + end(f.Destination, f.DestinationPort)
}

// Error is what is wrong with a filter. It names the place, either a request's field or
// a column of the text, and how to mend it.
type Error struct {
	Field   string // of the request: "filter", "filter_v1.source_address"
	Value   string // what stood there
	Column  int    // 1 is the first byte of the text; 0 = the error has no column
	Message string // what is wrong, lower case, without the field's name
	Hint    string // what to write instead; may be empty
	cause   error
}

// ErrNoLinkLayer is in errors about a primitive that needs the link-layer header, where
// packets have none.
var ErrNoLinkLayer = errors.New("no link-layer header")

// Unwrap gives what the error came from: that of a lookup (Resolve), ErrNoLinkLayer, or nil.
func (e *Error) Unwrap() error { return e.cause }

// Error gives field, column, value and message on one line; the hint is separate.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Field)
	if e.Column > 0 {
		fmt.Fprintf(&b, ": column %d", e.Column)
	}
	fmt.Fprintf(&b, ": %s", e.Message)
	return b.String()
}

// AsksLength tells whether the filter asks for the packet's length, which Ethernet padding
// adds to where it is still there.
func (f *Filter) AsksLength() bool {
	c, err := f.meaning(LinkRaw)
	return err == nil && asksLength(c)
}

func asksLength(c cond) bool {
	switch c := c.(type) {
	case condNot:
		return asksLength(c.x)
	case condHint:
		return asksLength(c.x)
	case condAnd:
		return slices.ContainsFunc(c, asksLength)
	case condOr:
		return slices.ContainsFunc(c, asksLength)
	case *condTest:
		return countsLength(c.left) || countsLength(c.right)
	}
	return false
}

func countsLength(v value) bool {
	switch v := v.(type) {
	case length:
		return true
	case load:
		return v.index != nil && countsLength(v.index)
	case *binary32:
		return countsLength(v.x) || countsLength(v.y)
	}
	return false
}

// NamesHosts tells whether the filter asks for addresses of the IP header.
func (f *Filter) NamesHosts() bool { return namesHosts(f.Tree()) }

func namesHosts(n Node) bool {
	switch n := n.(type) {
	case AllOf:
		return slices.ContainsFunc(n, namesHosts)
	case AnyOf:
		return slices.ContainsFunc(n, namesHosts)
	case Not:
		return namesHosts(n.X)
	case Host, Address:
		return true
	}
	return false
}

package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// literal is a test that the kernel can make.
type literal struct {
	match Match
	safe  bool
	// Where it reads, for tests that can look beyond the end: up to which byte of which
	// header. A test that reads further from the same header looks beyond the end too.
	header string
	end    uint32

	// Numbers that tell whether two literals have the same subject, and whether they are
	// the same; the graph gives them out (graph.number).
	subject, id int
}

var opposites = [...]Op{Equal: NotEqual, NotEqual: Equal, Less: GreaterEqual, GreaterEqual: Less,
	Greater: LessEqual, LessEqual: Greater, In: NotIn, NotIn: In}

// negation is the opposite of the literal, for packets that are long enough.
func (l literal) negation() literal {
	l.match.Op = opposites[l.match.Op]
	l.id = -l.id
	// There are two IP versions at hooks that see IP packets only.
	if m := l.match; m.Key == NFProto && m.Op == NotEqual {
		l.match = familyMatch(m.Values[0].Lo[0] != afInet, LinkRaw)
	}
	return l
}

// subject names what a match looks at.
func (m Match) subject() string { return string(m.Key) + string(m.Mask) }

// holds tells whether the match holds of a value.
func (m Match) holds(v []byte) bool {
	in := func(s Span) bool {
		hi := s.Hi
		if hi == nil {
			hi = s.Lo
		}
		return bytes.Compare(v, s.Lo) >= 0 && bytes.Compare(v, hi) <= 0
	}
	switch m.Op {
	case Equal, In:
		return slices.ContainsFunc(m.Values, in)
	case NotEqual, NotIn:
		return !slices.ContainsFunc(m.Values, in)
	}
	c := bytes.Compare(v, m.Values[0].Lo)
	switch m.Op {
	case Less:
		return c < 0
	case Greater:
		return c > 0
	case LessEqual:
		return c <= 0
	}
	return c >= 0
}

// fact is a literal that is known to hold, or not to.
type fact struct {
	literal
	holds bool
}

// facts are what the way to a test says of the packet.
type facts []fact

// decide tells whether a literal follows from the facts, or its opposite.
func (f facts) decide(l literal) (holds, known bool) {
	for _, have := range f {
		if have.subject != l.subject {
			continue
		}
		if have.id == l.id {
			return have.holds, true
		}
		h := have.match
		if !have.holds {
			h = have.negation().match
		}
		switch {
		case h.Op == Equal && h.Values[0].Hi == nil:
			return l.match.holds(h.Values[0].Lo), true
		case h.Op == In && !hasRange(h.Values):
			// Known only to be one of some values: decided if it is the same for all.
			first := l.match.holds(h.Values[0].Lo)
			if !slices.ContainsFunc(h.Values, func(s Span) bool { return l.match.holds(s.Lo) != first }) {
				return first, true
			}
		case (h.Op == NotEqual || h.Op == NotIn) && l.match.Op == Equal && l.match.Values[0].Hi == nil:
			if !h.holds(l.match.Values[0].Lo) {
				return false, true
			}
		}
	}
	return false, false
}

func hasRange(values []Span) bool {
	return slices.ContainsFunc(values, func(s Span) bool { return s.Hi != nil })
}

// ends tells whether a packet that was too short for one literal is so for another.
func (l literal) ends(short literal) bool {
	return !l.safe && l.header == short.header && l.end >= short.end
}

// Raw names bytes that nft has no word for: base is ll, nh or th, the numbers are bytes.
// Of the Ethernet header that is all: nft has words for its fields, but they begin with a
// test of the device that a packet came in by, which there is none of at egress.
func Raw(base string, offset, length uint32) Key {
	return Key(fmt.Sprintf("@%s,%d,%d", base, offset*8, length*8))
}

// headerKeys are nft's words for whole fields of headers, by offset and length.
var headerKeys = map[Proto]map[[2]uint32]Key{
	IP:  {{2, 2}: IPLength, {4, 2}: IPID, {6, 2}: IPFragOff, {8, 1}: IPTTL, {9, 1}: IPProtocol, {12, 4}: IPSaddr, {16, 4}: IPDaddr},
	ARP: {{14, 4}: ARPSaddr, {24, 4}: ARPDaddr},
	IP6: {{4, 2}: IP6Length, {6, 1}: IP6NextHdr, {7, 1}: IP6HopLimit},
}

// maxKernelOffset bounds the places that rules look at, counted from the beginning of a
// header: most kernels keep them in 8 bits and refuse what is larger (net/netfilter/nft_payload.c).
const maxKernelOffset = 255

// literal gives the kernel's form of a test; ok is false where it has none.
func (t *condTest) literal(link Link) (l literal, ok bool) {
	if _, isLength := t.left.(length); isLength && link == LinkRaw {
		n, ok := t.right.(constant)
		return literal{match: Match{Key: Length, Op: matchOps[t.op], Values: number(uint32(n), 4)}, safe: true}, ok
	}
	from, mask, n, ok := t.simple()
	if !ok {
		return l, false
	}
	full := ^uint32(0) >> (32 - 8*uint32(from.size))
	mask &= full
	l = literal{safe: t.safe, match: Match{Op: matchOps[t.op]}}
	offset, size := from.offset, uint32(from.size)
	switch {
	case link == LinkRaw && from.base == frame && offset == 0 && size == 1 && mask == 0xf0 && t.op == opEqual && (n == 0x40 || n == 0x60):
		l.match = familyMatch(n == 0x40, link)
		return l, true
	case from.base == transport && (from.of != IP || link == LinkEthernet && from.header != ethernetHeader):
		return l, false // behind a VLAN tag nft may not have found it
	case from.base == transport:
		offset -= from.header
		l.header, l.match.Key = "th", Raw("th", offset, size)
		if size == 2 && offset == 0 {
			l.match.Key = ThSport
		} else if size == 2 && offset == 2 {
			l.match.Key = ThDport
		}
	case link == LinkRaw || from.of != Any && from.header == ethernetHeader:
		if from.of != Any {
			offset -= from.header
		}
		l.header, l.match.Key = "nh", Raw("nh", offset, size)
		if key, ok := headerKeys[from.of][[2]uint32{offset, size}]; ok {
			l.match.Key = key
		}
	default:
		l.header, l.match.Key = "ll", Raw("ll", offset, size)
	}
	if offset > maxKernelOffset {
		return l, false
	}
	l.end = offset + size
	if mask != full {
		l.match.Mask = bytesOf(mask, size)
	}
	if n > full { // no bytes are larger than all ones
		n, l.match.Op = full, Greater
	}
	l.match.Values = number(n, size)
	if p, ok := addressPrefix(l.match); ok {
		l.match = p
	}
	return l, true
}

var matchOps = map[condOp]Op{opEqual: Equal, opGreater: Greater, opGreaterEqual: GreaterEqual}

func bytesOf(n, size uint32) []byte {
	return binary.BigEndian.AppendUint32(nil, n)[4-size:]
}

func number(n, size uint32) []Span { return []Span{{Lo: bytesOf(n, size)}} }

// addressPrefix writes a comparison of an address under a mask as one with a prefix.
func addressPrefix(m Match) (Match, bool) {
	if !slices.Contains([]Key{IPSaddr, IPDaddr, ARPSaddr, ARPDaddr}, m.Key) || m.Mask == nil || m.Op != Equal {
		return m, false
	}
	mask, n := binary.BigEndian.Uint32(m.Mask), binary.BigEndian.Uint32(m.Values[0].Lo)
	if mask == 0 || ^mask&(^mask+1) != 0 || n&^mask != 0 {
		return m, false
	}
	return Match{Key: m.Key, Values: []Span{{Lo: m.Values[0].Lo, Hi: bytesOf(n|^mask, 4)}}}, true
}

// isTransport tells keys of the transport header.
func (k Key) isTransport() bool {
	return k == ThSport || k == ThDport || strings.HasPrefix(string(k), "@th,")
}

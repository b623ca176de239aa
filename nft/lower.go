package nft

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"capd/nft/filter"
)

const numgenRandom = unix.NFT_NG_RANDOM

// lowerer turns rules into netlink messages of a transaction that conn collects.
type lowerer struct {
	conn  *nftables.Conn
	table *nftables.Table
	fam   family
	sets  map[string]*nftables.Set // named sets of this transaction and of the table
	err   error                    // the first one
}

// rule gives a rule's expressions. As nft does, it adds what a match takes for granted:
// the IP version before an address, the protocol before a port.
func (l *lowerer) rule(r rule) []expr.Any {
	var out []expr.Any
	known := map[filter.Key][]byte{} // what matches before have made sure of
	for _, m := range r.matches {
		k := keyOf(m.Key)
		for _, dep := range l.needs(k) {
			if !bytes.Equal(known[dep.Key], dep.Values[0].Lo) {
				out = append(out, l.match(dep)...)
				known[dep.Key] = dep.Values[0].Lo
			}
		}
		out = append(out, l.match(m)...)
		if m.Op == filter.Equal && m.Mask == nil && m.Values[0].Hi == nil {
			known[m.Key] = m.Values[0].Lo
		}
	}
	if r.own != nil {
		out = append(out, l.own(r.own)...)
	}
	if r.byCPU != nil {
		out = append(out, l.byCPU(r.byCPU)...)
	}
	if r.rate != "" {
		out = append(out, &expr.Objref{Type: int(nftables.ObjTypeLimit), Name: r.rate})
	}
	if r.count != countNothing {
		out = append(out, &expr.Counter{})
	}
	if r.log != nil {
		out = append(out, logExpr(r.log))
	}
	switch r.verdict {
	case doReturn:
		out = append(out, &expr.Verdict{Kind: expr.VerdictReturn})
	case doJump:
		out = append(out, &expr.Verdict{Kind: expr.VerdictJump, Chain: r.target})
	case doGoto:
		out = append(out, &expr.Verdict{Kind: expr.VerdictGoto, Chain: r.target})
	}
	return out
}

// needs gives the matches that a key takes for granted.
func (l *lowerer) needs(k key) []filter.Match {
	var out []filter.Match
	is := func(key filter.Key, value ...byte) {
		out = append(out, filter.Match{Key: key, Values: []filter.Span{{Lo: value}}})
	}
	switch {
	case k.needs == ip4 && l.fam == inet:
		is(filter.NFProto, unix.NFPROTO_IPV4)
	case k.needs == ip6 && l.fam == inet:
		is(filter.NFProto, unix.NFPROTO_IPV6)
	case k.needs == ip4:
		is(filter.EthType, 0x08, 0x00)
	case k.needs == ip6:
		is(filter.EthType, 0x86, 0xdd)
	case k.needs == arp:
		is(filter.EthType, 0x08, 0x06)
	case k.needs == ethernet:
		is(keyIIfType, nativeUint16(unix.ARPHRD_ETHER)...)
	}
	if k.needsL != 0 {
		is(filter.L4Proto, k.needsL)
	}
	return out
}

// match loads and compares.
func (l *lowerer) match(m filter.Match) []expr.Any {
	k := keyOf(m.Key)
	if k.typ.Name == nftables.TypeIFName.Name && m.Set == "" {
		// Names are compared with their end, or without it for a prefix.
		name, prefix := bytes.CutSuffix(m.Values[0].Lo, []byte("*"))
		if !prefix {
			name = append(slices.Clone(name), make([]byte, unix.IFNAMSIZ-len(name))...)
		}
		return []expr.Any{k.load, &expr.Cmp{Op: cmpOps[m.Op], Register: 1, Data: name}}
	}
	out := []expr.Any{k.load}
	if m.Key == filter.Length {
		return l.length(m)
	}
	if m.Mask != nil {
		size := uint32(len(m.Mask))
		out = append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: m.Mask, Xor: make([]byte, size)})
	}
	if m.Set != "" || m.Op == filter.In || m.Op == filter.NotIn {
		set := l.sets[m.Set]
		if m.Set == "" {
			set = &nftables.Set{Table: l.table, Anonymous: true, Constant: true, KeyType: k.typ, Interval: hasRange(m.Values)}
			l.add(set, elements(m.Values))
		}
		return append(out, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: m.Op == filter.NotIn})
	}
	v := m.Values[0]
	switch bits, isPrefix := prefixLength(v); {
	case v.Hi == nil:
		return append(out, &expr.Cmp{Op: cmpOps[m.Op], Register: 1, Data: v.Lo})
	case isPrefix && k.isAddress() && bits%8 == 0:
		return []expr.Any{shorter(k.load, uint32(bits/8)), &expr.Cmp{Op: cmpOps[m.Op], Register: 1, Data: v.Lo[:bits/8]}}
	case isPrefix && k.isAddress():
		mask := make([]byte, len(v.Lo))
		for i := range mask {
			mask[i] = ^(v.Lo[i] ^ v.Hi[i])
		}
		size := uint32(len(mask))
		return append(out, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
			&expr.Cmp{Op: cmpOps[m.Op], Register: 1, Data: v.Lo})
	case m.Op == filter.NotEqual:
		return append(out, &expr.Range{Op: expr.CmpOpNeq, Register: 1, FromData: v.Lo, ToData: v.Hi})
	}
	return append(out, &expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: v.Lo}, &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: v.Hi})
}

// length compares the packet's length, which comes in the processor's byte order: for an
// order of values, and for sets of ranges, it is turned into network order as nft does.
func (l *lowerer) length(m filter.Match) []expr.Any {
	k := keyOf(m.Key)
	if m.Op == filter.Equal || m.Op == filter.NotEqual {
		n := binary.BigEndian.Uint32(m.Values[0].Lo)
		return []expr.Any{k.load, &expr.Cmp{Op: cmpOps[m.Op], Register: 1, Data: nativeUint32(n)}}
	}
	out := []expr.Any{k.load, &expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4}}
	if m.Op != filter.In && m.Op != filter.NotIn {
		return append(out, &expr.Cmp{Op: cmpOps[m.Op], Register: 1, Data: m.Values[0].Lo})
	}
	set := &nftables.Set{Table: l.table, Anonymous: true, Constant: true, KeyType: k.typ, Interval: true}
	l.add(set, intervals(m.Values))
	return append(out, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: m.Op == filter.NotIn})
}

// shorter loads only the first bytes, as nft does for prefixes of whole bytes.
func shorter(load expr.Any, length uint32) expr.Any {
	p := *load.(*expr.Payload)
	p.Len = length
	return &p
}

var cmpOps = map[filter.Op]expr.CmpOp{
	filter.Equal: expr.CmpOpEq, filter.NotEqual: expr.CmpOpNeq, filter.Less: expr.CmpOpLt,
	filter.Greater: expr.CmpOpGt, filter.LessEqual: expr.CmpOpLte, filter.GreaterEqual: expr.CmpOpGte,
}

// add puts a set into the transaction.
func (l *lowerer) add(s *nftables.Set, e []nftables.SetElement) {
	if err := l.conn.AddSet(s, e); err != nil && l.err == nil {
		l.err = err
	}
}

// namedSet puts a filter's set into the transaction.
func (l *lowerer) namedSet(s filter.Set) *nftables.Set {
	set := &nftables.Set{Table: l.table, Name: s.Name, Constant: true, KeyType: keyOf(s.Key).typ, Interval: hasRange(s.Values)}
	l.add(set, elements(s.Values))
	l.sets[s.Name] = set
	return set
}

// elements gives a set's elements; in a set with ranges each value is a range that ends
// before the next element.
func elements(values []filter.Span) []nftables.SetElement {
	if hasRange(values) {
		return intervals(values)
	}
	var out []nftables.SetElement
	for _, v := range values {
		out = append(out, nftables.SetElement{Key: v.Lo})
	}
	return out
}

func intervals(values []filter.Span) []nftables.SetElement {
	var out []nftables.SetElement
	for _, v := range values {
		out = append(out, nftables.SetElement{Key: v.Lo})
		end := slices.Clone(v.Hi)
		if end == nil {
			end = slices.Clone(v.Lo)
		}
		if !increment(end) {
			out[len(out)-1].IntervalOpen = true
			continue
		}
		out = append(out, nftables.SetElement{Key: end, IntervalEnd: true})
	}
	return out
}

// increment adds one to a number in network order; it fails where there is none larger.
func increment(n []byte) bool {
	for i := len(n) - 1; i >= 0; i-- {
		n[i]++
		if n[i] != 0 {
			return true
		}
	}
	return false
}

// byCPU goes to a chain by the CPU's number. The map holds ranges of one number each:
// google/nftables stores the keys of anonymous maps in network order only, which is
// right for ranges alone.
func (l *lowerer) byCPU(targets []string) []expr.Any {
	set := &nftables.Set{Table: l.table, Anonymous: true, Constant: true, Interval: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: nftables.TypeVerdict}
	var e []nftables.SetElement
	for cpu, target := range targets {
		e = append(e,
			nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(cpu)),
				VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: target}},
			nftables.SetElement{Key: binary.BigEndian.AppendUint32(nil, uint32(cpu+1)), IntervalEnd: true})
	}
	l.add(set, e)
	return []expr.Any{
		meta(expr.MetaKeyCPU),
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Lookup{SourceRegister: 1, IsDestRegSet: true, SetName: set.Name, SetID: set.ID},
	}
}

func logExpr(g *logging) expr.Any {
	e := &expr.Log{Key: 1 << unix.NFTA_LOG_GROUP, Group: g.group}
	if g.prefix != "" {
		e.Key |= 1 << unix.NFTA_LOG_PREFIX
		e.Data = []byte(g.prefix)
	}
	// A snaplen of 0 would mean no payload at all: without the attribute it is whole.
	if g.snaplen != 0 {
		e.Key |= 1 << unix.NFTA_LOG_SNAPLEN
		e.Snaplen = g.snaplen
	}
	if g.threshold != 0 {
		e.Key |= 1 << unix.NFTA_LOG_QTHRESHOLD
		e.QThreshold = g.threshold
	}
	return e
}

// newAlive describes the set of the dead-man switch. One element is enough: packets are
// looked up by their mark with no bit of it left, which is the same for every packet.
func newAlive(t *nftables.Table) *nftables.Set {
	return &nftables.Set{Table: t, Name: aliveSet, HasTimeout: true, KeyType: nftables.TypeMark,
		KeyByteOrder: binaryutil.NativeEndian, Comment: aliveComment}
}

func aliveElements() []nftables.SetElement {
	return []nftables.SetElement{{Key: nativeUint32(0), Timeout: RenewTimeout}}
}

// commentData is a rule's comment as nft keeps it.
func commentData(text string) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, text)
}

// fitChainName spells a base chain's name, which has a device's name in it, so that nft
// can read it back.
func fitChainName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("_-./", r):
			return r
		}
		return '_'
	}, name)
}

package filter

import "fmt"

// relation compares two numbers, once the packet is of the protocols that their bytes
// are taken from.
func (m *meaning) relation(n Relation) (cond, error) {
	left, guard, err := m.number(n.Left)
	if err != nil {
		return nil, err
	}
	right, rightGuard, err := m.number(n.Right)
	if err != nil {
		return nil, err
	}
	var test cond
	op := map[string]condOp{"=": opEqual, "!=": opEqual, ">": opGreater, "<=": opGreater, ">=": opGreaterEqual, "<": opGreaterEqual}[n.Op]
	l, leftConst := left.(constant)
	r, rightConst := right.(constant)
	if leftConst && rightConst {
		test = condConst(compare(op, uint32(l), uint32(r)))
	} else {
		test = &condTest{op: op, left: left, right: right, safe: m.within(n.Left) && m.within(n.Right)}
	}
	switch n.Op {
	case "!=", "<=", "<":
		test = condNot{test}
	}
	return append(append(guard, rightGuard...), test), nil
}

// within tells whether a number that has been guarded needs nothing beyond the fixed
// part of an IP or Ethernet header.
func (m *meaning) within(e Expr) bool {
	if b, ok := e.(Binary); ok {
		if _, ok := b.Y.(Number); ok { // the right side of an operator is not guarded
			return m.within(b.X)
		}
		return false
	}
	l, ok := e.(Load)
	if !ok {
		return e == PacketLength{} || isNumberNode(e)
	}
	index, ok := l.Index.(Number)
	header := map[Proto]uint32{IP: ip4Header, IP6: ip6Header, ARP: arpHeader, RARP: arpHeader, LinkLayer: ethernetHeader}[l.Proto]
	return ok && (!m.tagged() || l.Proto == LinkLayer) && uint32(index) <= header && uint32(index)+uint32(l.Size) <= header
}

func isNumberNode(e Expr) bool {
	_, ok := e.(Number)
	return ok
}

func compare(op condOp, a, b uint32) bool {
	switch op {
	case opGreater:
		return a > b
	case opGreaterEqual:
		return a >= b
	}
	return a == b
}

// number gives a number's meaning, and the conditions under which it has one.
func (m *meaning) number(e Expr) (value, condAnd, error) {
	switch e := e.(type) {
	case Number:
		return constant(e), nil, nil
	case PacketLength:
		return length{}, nil, nil
	case Negative:
		x, guard, err := m.number(e.X)
		return calculate("-", constant(0), x), guard, err
	case Binary:
		x, guard, err := m.number(e.X)
		if err != nil {
			return nil, nil, err
		}
		// As in gencode.c, gen_arth: only the left side's conditions are kept.
		y, _, err := m.number(e.Y)
		return calculate(e.Op, x, y), guard, err
	case Load:
		return m.load(e)
	}
	return nil, nil, fmt.Errorf("filter: %s cannot be calculated", e)
}

// maxIndex bounds constant offsets: no packet is longer.
const maxIndex = 65535

func (m *meaning) load(e Load) (value, condAnd, error) {
	index, guard, err := m.number(e.Index)
	if err != nil {
		return nil, nil, err
	}
	l := load{base: frame, index: index, size: uint8(e.Size)}
	if c, ok := index.(constant); ok {
		if c > maxIndex {
			return nil, nil, &Error{Field: "filter", Value: e.String(), Column: e.Column,
				Message: fmt.Sprintf("%s counts to byte %d", e, int32(c)), Hint: fmt.Sprintf("bytes are counted from 0 to %d", maxIndex)}
		}
		l.offset, l.index = uint32(c), nil
	}
	switch e.Proto {
	case LinkLayer:
		return l, guard, m.framed(e.Column, e)
	case IP, IP6, ARP, RARP:
		is, err := m.is(Is{e.Proto, e.Column})
		l.offset, l.header, l.of = l.offset+m.network, m.network, e.Proto
		return l, append(guard, is), err
	case ICMP6:
		l.offset, l.header, l.of = l.offset+m.network+ip6Header, m.network, IP6
		next := m.safe(equal(m.net(IP6, 6, 1), protoICMP6))
		return l, append(append(guard, m.etherType(etherIP6)), next), nil
	}
	if hasBytes[e.Proto] {
		l, is, err := m.linkLoad(e, l)
		return l, append(guard, is), err
	}
	l.base, l.offset, l.header, l.of = transport, l.offset+m.network, m.network, IP
	all := condAnd{m.etherType(etherIP)}
	all = append(all, guard...)
	return l, append(all, m.abbreviation(e.Proto), m.notFragment()), nil
}

// calculate folds constants.
func calculate(op string, x, y value) value {
	a, aConst := x.(constant)
	b, bConst := y.(constant)
	if aConst && bConst {
		if n, ok := arithmetic32(op, uint32(a), uint32(b)); ok {
			return constant(n)
		}
	}
	return &binary32{op, x, y}
}

// arithmetic32 calculates modulo 2^32. It fails for a division by zero.
func arithmetic32(op string, x, y uint32) (uint32, bool) {
	switch op {
	case "+":
		return x + y, true
	case "-":
		return x - y, true
	case "*":
		return x * y, true
	case "/":
		if y == 0 {
			return 0, false
		}
		return x / y, true
	case "%":
		if y == 0 {
			return 0, false
		}
		return x % y, true
	case "&":
		return x & y, true
	case "|":
		return x | y, true
	case "^":
		return x ^ y, true
	case "<<":
		return x << y, true // 0 for 32 and more, as in libpcap
	}
	return x >> y, true
}

package filter

import (
	"encoding/binary"
	"errors"
)

// Packet is what a Matcher judges. The bytes are those that NFLOG brought, so that a
// packet cut short by a snaplen is judged by what is left of it: filter first, cut then.
type Packet struct {
	Head, Body []byte // the frame in two parts: a rebuilt link-layer header and the rest
	Length     uint32 // of the whole frame on the wire, in bytes
	In, Out    string // names of the interfaces, "" where there is none
	Inbound    bool   // seen by prerouting, input or ingress
	Outbound   bool   // seen by output, postrouting or egress
}

// Matcher judges packets exactly as libpcap would. It is immutable: it may be used from
// several goroutines.
type Matcher struct {
	nodes []judge
	start int32
}

// judge is one test and where to go on after it.
type judge struct {
	test    cond // *condTest, condIfName or condDirection
	offset  int  // of a simple test, a load from the frame compared with a number; -1 = another
	size    uint8
	op      condOp
	mask, n uint32
	yes, no int32
}

// Where to go on when all is said.
const (
	accept int32 = -1
	reject int32 = -2
)

// Matcher makes the judge of packets for the whole filter but its filter_v1 parts, which
// the kernel decides exactly. It is needed where the Program for the same link is not
// Exact. Its errors are those of Compile.
func (f *Filter) Matcher(link Link) (*Matcher, error) {
	c, err := f.meaning(link)
	if err != nil {
		return nil, err
	}
	c, err = withoutKernel(c)
	if err != nil {
		return nil, err
	}
	m := &Matcher{}
	start := m.add(c, accept, reject)
	m.start = start
	return m, nil
}

// meaning gives the condition of the whole filter.
func (f *Filter) meaning(link Link) (cond, error) {
	if f.All() {
		return condConst(true), nil
	}
	return newMeaning(link).node(f.root)
}

// withoutKernel takes the parts out that the kernel decides. They stand beside the rest,
// never inside it: And is the only way to join filter_v1 with text.
func withoutKernel(c cond) (cond, error) {
	switch c := c.(type) {
	case condKernel:
		return condConst(true), nil
	case condAnd:
		var rest condAnd
		for _, part := range c {
			part, err := withoutKernel(part)
			if err != nil {
				return nil, err
			}
			rest = append(rest, part)
		}
		return rest, nil
	case condOr:
		for _, part := range c {
			if hasKernel(part) {
				return nil, errors.New("filter: filter_v1 inside an alternative")
			}
		}
	case condNot:
		if hasKernel(c.x) {
			return nil, errors.New("filter: filter_v1 inside a negation")
		}
	}
	return c, nil
}

func hasKernel(c cond) bool {
	switch c := c.(type) {
	case condKernel:
		return true
	case condNot:
		return hasKernel(c.x)
	case condAnd:
		for _, part := range c {
			if hasKernel(part) {
				return true
			}
		}
	case condOr:
		for _, part := range c {
			if hasKernel(part) {
				return true
			}
		}
	}
	return false
}

// add appends the tests of a condition and gives the first one's place, or one of yes
// and no where there is nothing to test.
func (m *Matcher) add(c cond, yes, no int32) int32 {
	switch c := c.(type) {
	case condConst:
		if c {
			return yes
		}
		return no
	case condNot:
		return m.add(c.x, no, yes)
	case condHint:
		return m.add(c.x, yes, no)
	case condAnd:
		for i := len(c) - 1; i >= 0; i-- {
			yes = m.add(c[i], yes, no)
		}
		return yes
	case condOr:
		for i := len(c) - 1; i >= 0; i-- {
			no = m.add(c[i], yes, no)
		}
		return no
	}
	j := judge{test: c, offset: -1, yes: yes, no: no}
	if t, ok := c.(*condTest); ok {
		if l, mask, n, ok := t.simple(); ok && l.base == frame {
			j.offset, j.size, j.op, j.mask, j.n = int(l.offset), l.size, t.op, mask, n
		}
	}
	m.nodes = append(m.nodes, j)
	return int32(len(m.nodes) - 1)
}

// simple tells whether a test compares bytes at a fixed place, under a mask, with a
// number.
func (t *condTest) simple() (l load, mask, n uint32, ok bool) {
	right, ok := t.right.(constant)
	if !ok {
		return l, 0, 0, false
	}
	mask = ^uint32(0)
	left := t.left
	if b, isBinary := left.(*binary32); isBinary && b.op == "&" {
		c, isConst := b.y.(constant)
		if !isConst {
			return l, 0, 0, false
		}
		left, mask = b.x, uint32(c)
	}
	l, ok = left.(load)
	return l, mask, uint32(right), ok && l.index == nil
}

// Match tells whether a packet is wanted. It allocates nothing.
func (m *Matcher) Match(p *Packet) bool {
	wanted, _ := m.match(p)
	return wanted
}

// match tells also whether the packet had all the bytes that were looked at.
func (m *Matcher) match(p *Packet) (wanted, whole bool) {
	at := m.start
	for at >= 0 {
		j := &m.nodes[at]
		var yes, ok bool
		if j.offset >= 0 {
			var n uint32
			if n, ok = p.bytes(j.offset, j.size); ok {
				yes = compare(j.op, n&j.mask, j.n)
			}
		} else {
			yes, ok = p.judge(j.test)
		}
		switch {
		case !ok:
			return false, false
		case yes:
			at = j.yes
		default:
			at = j.no
		}
	}
	return at == accept, true
}

// judge runs a test that is not simple; ok is false where the packet is too short.
func (p *Packet) judge(c cond) (yes, ok bool) {
	switch c := c.(type) {
	case *condTest:
		left, ok := p.number(c.left)
		if !ok {
			return false, false
		}
		right, ok := p.number(c.right)
		return compare(c.op, left, right), ok
	case condIfName:
		return p.In == string(c) || p.Out == string(c), true
	case condDirection:
		if c.outbound {
			return p.Outbound, true
		}
		return p.Inbound, true
	}
	return false, true
}

// maxOffset is beyond every packet, and small enough to be added to.
const maxOffset = 1 << 24

// number calculates; ok is false where the packet is too short, or a division is by 0.
func (p *Packet) number(v value) (n uint32, ok bool) {
	switch v := v.(type) {
	case constant:
		return uint32(v), true
	case length:
		return p.Length, true
	case load:
		var index uint32
		if v.index != nil {
			var ok bool
			if index, ok = p.number(v.index); !ok {
				return 0, false
			}
		}
		if v.base == transport {
			first, ok := p.bytes(int(v.header), 1)
			if !ok {
				return 0, false
			}
			index += (first & 0x0f) * 4 // modulo 2^32: udp[-1] is the IP header's last byte
		}
		if index > maxOffset {
			return 0, false
		}
		offset := int(v.offset) + int(index)
		return p.bytes(offset, v.size)
	case *binary32:
		x, ok := p.number(v.x)
		if !ok {
			return 0, false
		}
		y, ok := p.number(v.y)
		if !ok {
			return 0, false
		}
		return arithmetic32(v.op, x, y)
	}
	return 0, false
}

// bytes reads a number at an offset into the frame.
func (p *Packet) bytes(offset int, size uint8) (uint32, bool) {
	b := p.Head
	if offset >= len(p.Head) {
		b, offset = p.Body, offset-len(p.Head)
	} else if offset+int(size) > len(p.Head) {
		return p.across(offset, size)
	}
	if offset < 0 || offset > len(b)-int(size) {
		return 0, false
	}
	switch size {
	case 1:
		return uint32(b[offset]), true
	case 2:
		return uint32(binary.BigEndian.Uint16(b[offset:])), true
	}
	return binary.BigEndian.Uint32(b[offset:]), true
}

// across reads a number that stands half in the head and half in the body.
func (p *Packet) across(offset int, size uint8) (uint32, bool) {
	if offset+int(size) > len(p.Head)+len(p.Body) {
		return 0, false
	}
	var n uint32
	for i := range int(size) {
		at := offset + i
		if at < len(p.Head) {
			n = n<<8 | uint32(p.Head[at])
		} else {
			n = n<<8 | uint32(p.Body[at-len(p.Head)])
		}
	}
	return n, true
}

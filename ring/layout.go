package ring

// The messages of one rule are alike: the same attributes at the same places, with a few
// values that differ. A layout remembers one such form. A message whose every attribute
// header and constant value is where the layout has it needs no walk from attribute to
// attribute: its differing values are at known places. That takes a quarter of the time,
// and gives what the walk would give (FuzzDecode compares them).
type layout struct {
	chunks     int // to compare: the message up to the payload's attribute header, and what of the payload fills the last
	want, mask [layoutChunks]chunk
	packet     Packet // the message read last: the constant fields stay
	hwType     uint16 // as learned: a user of the packet may have set another
	hasHWType  bool
	payload    int // where the payload's attribute header stands

	// Where differing values stand, 0 = not in this form.
	time, seq, in, out, mark int
	hwAddr, hwHeader, l2     span
}

// chunk is what fits compares in one go.
type chunk [chunkSize / 8]uint64

// span is a part of a message.
type span struct{ from, to int }

const (
	// layoutChunks bounds the length of a message's part before the payload: 320 bytes.
	layoutChunks = 10
	chunkSize    = 32
	// layouts is how many forms are remembered: IPv4 and IPv6, with and without a mark.
	layouts = 4
	// relearn is how many messages of unknown form pass before another is learned, once
	// layouts are.
	relearn = 256
)

// layoutCache is what a decoder knows of forms.
type layoutCache struct {
	known  [layouts]layout
	recent *layout // the form of the last message that had one
	misses int
}

// find gives the layout that a message has, or nil.
func (c *layoutCache) find(b []byte) *layout {
	if c.recent == nil || c.recent.fits(b) {
		return c.recent
	}
	for i := range c.known {
		if l := &c.known[i]; l != c.recent && l.chunks > 0 && l.fits(b) {
			c.recent = l
			return l
		}
	}
	return nil
}

// fits compares all that a message must have in common with the layout.
func (l *layout) fits(b []byte) bool {
	n := l.chunks
	if n > layoutChunks || len(b) < n*chunkSize {
		return false
	}
	want, mask := l.want[:n], l.mask[:n]
	var differ uint64
	for i := range want {
		part := (*[chunkSize]byte)(b[i*chunkSize:])
		w, m := &want[i], &mask[i]
		differ |= (host.Uint64(part[0:])^w[0])&m[0] | (host.Uint64(part[8:])^w[1])&m[1] |
			(host.Uint64(part[16:])^w[2])&m[2] | (host.Uint64(part[24:])^w[3])&m[3]
	}
	return differ == 0
}

// decode reads a message that fits into l.packet; without a kernel stamp its Time is
// clock. It gives false, and leaves the packet as it was, where the walk has to judge.
func (l *layout) decode(b []byte, clock int64, limit int) (seq uint32, ok bool) {
	at := l.payload
	size := int(host.Uint16(b[at:]))
	end := at + size
	if size < attrHeader || end > len(b) || (size+3)&^3 < len(b)-at {
		return 0, false
	}
	if l.time != 0 {
		sec, usec := be.Uint64(b[l.time:]), be.Uint64(b[l.time+8:])
		if sec >= 1<<33 || usec >= 1e6 {
			return 0, false
		}
		clock = int64(sec)*1e9 + int64(usec)*1e3
	}
	p := &l.packet
	p.Time = clock
	p.HWType, p.HasHWType = l.hwType, l.hasHWType
	p.Payload = b[at+attrHeader : end : end]
	p.Cut = size-attrHeader >= limit
	p.Protocol = be.Uint16(b[layoutProtocol:])
	if l.in != 0 {
		p.In = be.Uint32(b[l.in:])
	}
	if l.out != 0 {
		p.Out = be.Uint32(b[l.out:])
	}
	if l.mark != 0 {
		p.Mark = be.Uint32(b[l.mark:])
	}
	if l.hwAddr.to != 0 {
		p.HWAddr = b[l.hwAddr.from:l.hwAddr.to:l.hwAddr.to]
	}
	if l.hwHeader.to != 0 {
		p.HWHeader = b[l.hwHeader.from:l.hwHeader.to:l.hwHeader.to]
	}
	if l.l2.to != 0 {
		p.L2Header = b[l.l2.from:l.l2.to:l.l2.to]
	}
	return be.Uint32(b[l.seq:]), true
}

// layoutProtocol is where the ethertype stands: PACKET_HDR comes first.
const layoutProtocol = nfgenHeader + attrHeader

// learn remembers the form of a message that the walk read as the packet p.
func (c *layoutCache) learn(b []byte, p *Packet) {
	c.misses++
	slot := -1
	for i := range c.known {
		if c.known[i].chunks == 0 {
			slot = i
			break
		}
	}
	if slot < 0 {
		if c.misses%relearn != 0 {
			return
		}
		slot = c.misses / relearn % layouts
	}
	l := &c.known[slot]
	if l.learn(b, p) {
		c.recent = l
	} else {
		*l = layout{}
		if c.recent == l {
			c.recent = nil
		}
	}
}

// learn makes the layout that of message b. It gives false where the message is of a kind
// that layouts do not cover: they want PACKET_HDR first and the payload last.
func (l *layout) learn(b []byte, p *Packet) bool {
	*l = layout{packet: *p, hwType: p.HWType, hasHWType: p.HasHWType}
	if p.Conntrack != nil {
		return false
	}
	var mask [layoutChunks * chunkSize]byte
	constant := func(from, to int) {
		for i := from; i < to; i++ {
			mask[i] = 0xff
		}
	}
	var seen uint64
	constant(0, 1) // the family; version and resource id do not matter
	for at := nfgenHeader; ; {
		if at+attrHeader > len(b) || at+2*attrHeader > len(mask) {
			return false
		}
		size := int(host.Uint16(b[at:]))
		kind := host.Uint16(b[at+2:]) & attrTypeMask
		value, end := at+attrHeader, at+size
		if kind > attrL2Header || seen>>kind&1 != 0 {
			return false
		}
		seen |= 1 << kind
		if kind == attrPayload {
			constant(at+2, at+4)
			l.payload = at
			break
		}
		if end > len(mask) {
			return false
		}
		constant(at, value)
		switch kind {
		case attrPacketHeader:
			if at != nfgenHeader {
				return false
			}
			constant(value+2, value+3)
		case attrTimestamp:
			l.time = value
			if !p.KernelTime {
				return false
			}
		case attrSeq:
			l.seq = value
		case attrIn:
			l.in = value
		case attrOut:
			l.out = value
		case attrMark:
			l.mark = value
		case attrHWAddr:
			constant(value, value+2)
			if p.HWAddr != nil {
				l.hwAddr = span{value + 4, value + 4 + len(p.HWAddr)}
			}
		case attrHWHeader:
			if p.HWHeader != nil {
				l.hwHeader = span{value, value + len(p.HWHeader)}
			}
		case attrL2Header:
			l.l2 = span{value, end}
		default: // a constant: another value is another form
			constant(value, end)
		}
		at += (size + 3) &^ 3
	}
	n := (l.payload + attrHeader + chunkSize - 1) / chunkSize
	if l.seq == 0 || n > layoutChunks || len(b) < n*chunkSize {
		return false
	}
	l.chunks = n
	for i := range n {
		for w := range chunkSize / 8 {
			at := i*chunkSize + w*8
			l.want[i][w], l.mask[i][w] = host.Uint64(b[at:]), host.Uint64(mask[at:])
		}
	}
	return true
}

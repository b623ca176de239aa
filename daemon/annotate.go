package daemon

import (
	"fmt"
	"net/netip"
	"strconv"
	"unsafe"

	"capd/ctl/wire"
	"capd/ring"
)

// What files say beside the packets has one grammar, for people and programs alike:
// docs/annotations.md describes it, and tells each key.
//
//	comment = "capd" *( " " key "=" value )

// field appends one key and its value to a comment. Bytes that would end the value early,
// or harm a terminal, are written %XX.
func field[S string | []byte](b []byte, key string, value S) []byte {
	b = append(append(append(b, ' '), key...), '=')
	for i := range len(value) {
		if c := value[i]; c <= ' ' || c == '%' || c == 0x7f {
			const hex = "0123456789ABCDEF"
			b = append(b, '%', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

func number(b []byte, key string, value uint64) []byte {
	b = append(append(append(b, ' '), key...), '=')
	return strconv.AppendUint(b, value, 10)
}

func hexadecimal(b []byte, key string, value uint32) []byte {
	b = append(append(append(b, ' '), key...), "=0x"...)
	return strconv.AppendUint(b, uint64(value), 16)
}

const commentStart = "capd"

// sectionComment is what a reader of the file alone should know of the capture.
func sectionComment(id string, r *wire.StartRequest, hooks []string, host string, clock wire.ClockState) string {
	b := field([]byte(commentStart), "capture", id)
	b = field(b, "host", host)
	if r.Name != "" {
		b = field(b, "name", r.Name)
	}
	for i, h := range hooks {
		if i == 0 {
			b = field(b, "hooks", h)
		} else {
			b = append(append(b, ','), h...)
		}
	}
	b = number(b, "sample", uint64(*r.Sample))
	if *r.Sample > 1 {
		b = field(b, "sample_by", r.SampleBy)
	}
	if *r.Snaplen > 0 {
		b = number(b, "snaplen", uint64(*r.Snaplen))
	}
	if r.HeadersOnly {
		b = field(b, "headers_only", "true")
	}
	// For files that no manifest follows: as the clock was when the capture began.
	if !clock.Synchronized { // the kernel's bound then means nothing
		return string(field(b, "clock", "unsynchronized"))
	}
	b = field(b, "clock", "synchronized")
	return string(number(b, "clock_error_us", uint64(max(0, clock.MaxErrorUS))))
}

// annotator writes what only the firewall knows of a packet. It belongs to the engine's
// goroutine and allocates nothing per packet.
type annotator struct {
	links *links
	buf   []byte
}

func newAnnotator(l *links) *annotator { return &annotator{links: l, buf: make([]byte, 0, 1024)} }

// comment is what is known of a packet, "" for nothing. It is valid until the next call.
func (a *annotator) comment(p *ring.Packet) string {
	b := append(a.buf[:0], commentStart...)
	if p.Mark != 0 {
		b = hexadecimal(b, "mark", p.Mark)
	}
	if p.HasUID {
		b = number(b, "uid", uint64(p.UID))
		b = number(b, "gid", uint64(p.GID))
	}
	for _, d := range [...]struct {
		key   string
		index uint32
	}{{"in", p.In}, {"out", p.Out}, {"physin", p.PhysIn}, {"physout", p.PhysOut}} {
		// The interface that the packet is filed under need not be told again.
		if d.index != 0 && d.index != p.Interface() {
			b = field(b, d.key, a.links.get(d.index).name)
		}
	}
	if c, ok := p.Connection(); ok {
		b = a.connection(b, &c)
	}
	a.buf = b
	if len(b) == len(commentStart) {
		return ""
	}
	return unsafe.String(&b[0], len(b))
}

func (a *annotator) connection(b []byte, c *ring.Conntrack) []byte {
	b = hexadecimal(b, "ct.id", c.ID)
	b = field(b, "ct.state", c.State.String())
	direction := "original"
	if c.Reply {
		direction = "reply"
	}
	b = field(b, "ct.dir", direction)
	if c.Zone != 0 {
		b = number(b, "ct.zone", uint64(c.Zone))
	}
	b = number(b, "ct.proto", uint64(c.Protocol))
	for _, end := range [...]struct {
		addr, port string
		at         netip.AddrPort
	}{{" ct.src=", "ct.sport", c.Source}, {" ct.dst=", "ct.dport", c.Destination}} {
		b = end.at.Addr().AppendTo(append(b, end.addr...))
		if end.at.Port() != 0 {
			b = number(b, end.port, uint64(end.at.Port()))
		}
	}
	if c.HasICMP {
		b = number(b, "ct.icmp_id", uint64(c.ICMPID))
	}
	return b
}

// tracked tells whether connection tracking has seen packets at one of the hooks: our
// chains at the others stand before it (priority -200, at prerouting and output).
func tracked(hooks []string) bool {
	for _, h := range hooks {
		switch h {
		case wire.HookInput, wire.HookForward, wire.HookPostrouting, wire.HookEgress:
			return true
		}
	}
	return false
}

// annotationWarnings says what of a packet's annotations will be missing.
func (p *plan) annotationWarnings(conntrack bool) []wire.Warning {
	const code = "annotate_conntrack"
	switch {
	case !p.request.Annotate:
		return nil
	case !conntrack:
		return []wire.Warning{{Code: code, Message: "this kernel gives NFLOG nothing of conntrack: annotations tell the rest (conntrack's part needs the module nf_conntrack_netlink and a kernel with CONFIG_NETFILTER_NETLINK_GLUE_CT)"}}
	case !tracked(p.request.Hooks):
		return []wire.Warning{{Code: code, Message: fmt.Sprintf(
			"at the hooks %v packets come by before conntrack has seen them: annotations tell of their connections only at input, forward, postrouting and egress", p.request.Hooks)}}
	}
	return nil
}

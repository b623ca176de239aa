package daemon

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/nft"
	"capd/nft/filter"
)

// fileSnaplen is the snaplen that a file states when packets are kept whole: tcpdump's.
const fileSnaplen = 262144

// Defaults of a request that are no limits of the box.
const (
	defaultSegmentSize = 64 * 1000 * 1000
)

// plan is a request made whole: every default filled in, checked against the box's
// limits, its filter compiled. Making one changes nothing on the box.
type plan struct {
	request wire.StartRequest // as in force
	filter  *filter.Filter
	exclude []filter.Flow
	stream  bool // no files: it goes to whoever asked, and ends with the connection
	// unframed names an interface without Ethernet headers, and one with (links.unframed).
	unframed     func(interfaces []string) (bare, framed string, err error)
	bare, framed string // what it named
	once         bool   // no hooks or interfaces asked for: each packet once
	anywhere     bool   // the same, and of a simple capture too, which sees what enters
	// offloaded names interfaces of which packets are taken at ingress instead of prerouting,
	// because a flowtable leads some of them past it (nft.Spec.Offloaded).
	offloaded []string
	// What the rules decide of the filter only in part, they leave to these, along with
	// sample and snaplen: nil where they decide alone.
	inet, netdev *filter.Matcher
}

// newPlan fills in and checks a request whose form the api room has already checked.
func newPlan(req wire.StartRequest, cfg *config.Config, l *links) (*plan, error) {
	p := &plan{request: req, unframed: l.unframed}
	r := &p.request
	for _, step := range []func(*plan, *config.Config) *wire.Error{
		(*plan).fillType, (*plan).fillHooks, (*plan).fillRing, (*plan).fillLimits, (*plan).fillFormat, (*plan).compile, (*plan).checkDestination,
	} {
		if err := step(p, cfg); err != nil {
			return nil, err
		}
	}
	if r.Check == nil {
		r.Check = ptr(true)
	}
	return p, nil
}

func (p *plan) fillType(*config.Config) *wire.Error {
	r := &p.request
	if r.Type == "" {
		r.Type = wire.TypeFull
	}
	sample, snaplen := uint32(1), uint32(0)
	if r.Type == wire.TypeSimple {
		sample, snaplen = nft.SimpleSample, nft.SimpleSnaplen
	}
	if r.Sample == nil {
		r.Sample = &sample
	}
	if r.Snaplen == nil {
		r.Snaplen = &snaplen
	}
	if r.SampleBy == "" {
		r.SampleBy = wire.SampleByPacket
	}
	if r.OnOverload == "" {
		r.OnOverload = wire.OverloadSample
	}
	return nil
}

func (p *plan) fillHooks(*config.Config) *wire.Error {
	r := &p.request
	if len(r.Hooks) == 0 {
		p.anywhere = len(r.Interfaces) == 0
		r.Hooks, p.once = nft.DefaultHooks(r.Interfaces, r.Type == wire.TypeSimple)
	}
	return nil
}

func (p *plan) fillLimits(cfg *config.Config) *wire.Error {
	r, lim := &p.request, &cfg.Limits
	if r.TimeLimit == nil || *r.TimeLimit == 0 {
		r.TimeLimit = ptr(lim.DefaultTimeLimit)
	}
	if *r.TimeLimit > lim.MaxTimeLimit {
		return beyond("time_limit", fmt.Sprintf("%s is more than this box allows (limits.max_time_limit = %s)", *r.TimeLimit, lim.MaxTimeLimit),
			"ask for less, or raise limits.max_time_limit")
	}
	if r.ByteLimit == nil || *r.ByteLimit == 0 {
		r.ByteLimit = ptr(min(lim.DefaultByteLimit, lim.MaxByteLimit))
	}
	if *r.ByteLimit > lim.MaxByteLimit {
		return beyond("byte_limit", fmt.Sprintf("%s is more than this box allows (limits.max_byte_limit = %s)", *r.ByteLimit, lim.MaxByteLimit),
			"ask for less, or raise limits.max_byte_limit")
	}
	if r.PacketLimit == nil {
		r.PacketLimit = ptr(uint64(0))
	}
	return nil
}

// fillRing chooses segment_size and byte_limit so that a ring fits: with a ring, byte_limit
// bounds the files that are kept at a time, and ends no capture.
func (p *plan) fillRing(cfg *config.Config) *wire.Error {
	r := &p.request
	if r.SegmentSize == nil || *r.SegmentSize == 0 {
		// A destination that is not there is refused by checkDestination.
		if size := cfg.Destinations[r.Destination].SegmentSize; size > 0 {
			r.SegmentSize = &size
		}
	}
	if r.Ring == nil {
		r.Ring = ptr(uint32(0))
	}
	n := wire.Size(*r.Ring)
	if n == 0 {
		return nil
	}
	sized := r.SegmentSize != nil && *r.SegmentSize != 0
	size := wire.Size(defaultSegmentSize)
	if sized {
		size = min(*r.SegmentSize, wire.MaxSegmentSize)
	}
	if r.ByteLimit == nil || *r.ByteLimit == 0 {
		if n*size > cfg.Limits.MaxByteLimit {
			return beyond("ring", fmt.Sprintf("%d segments of %s are more than this box allows (limits.max_byte_limit = %s)", n, size, cfg.Limits.MaxByteLimit),
				"ask for fewer, or smaller ones (segment_size)")
		}
		r.ByteLimit = ptr(n * size)
	} else if n*size > *r.ByteLimit {
		size = *r.ByteLimit / n
		if sized || size < minRingSegment {
			return invalid("ring", fmt.Sprintf("%d segments do not fit into the byte_limit of %s, which bounds what a ring keeps", n, *r.ByteLimit),
				"ask for fewer or smaller segments (segment_size), or a higher byte_limit")
		}
	}
	r.SegmentSize = &size
	return nil
}

// minRingSegment is the least segment that a ring is cut into, in bytes: one packet of any
// length fits.
const minRingSegment = 128 << 10

func (p *plan) fillFormat(*config.Config) *wire.Error {
	r := &p.request
	if r.Format == "" {
		r.Format = wire.FormatPcapng
	}
	if p.atNetdev() {
		var err error
		if p.bare, p.framed, err = p.unframed(r.Interfaces); err != nil {
			return &wire.Error{Status: http.StatusInternalServerError, Code: wire.CodeInternal, Message: err.Error()}
		}
	}
	framed := nft.Framed(r.Hooks) && p.bare == ""
	switch r.LinkType {
	case "", wire.LinkAuto:
		switch {
		case framed:
			r.LinkType = wire.LinkEthernet
		case r.Format == wire.FormatPcap:
			r.LinkType = wire.LinkRaw
		default:
			r.LinkType = wire.LinkSLL2
		}
	case wire.LinkEthernet:
		if p.bare != "" {
			return invalid("link_type", "ethernet needs each packet's own Ethernet header, which those of "+p.bare+" have not", "use link_type sll2 or raw, or auto")
		}
		if !framed {
			return invalid("link_type", "ethernet needs each packet's own Ethernet header, which only the hooks ingress and egress have",
				"use --hook ingress,egress with -i, or link_type sll2 or raw")
		}
	}
	if r.SegmentSize == nil || *r.SegmentSize == 0 {
		r.SegmentSize = ptr(wire.Size(defaultSegmentSize))
	}
	if *r.SegmentSize > wire.MaxSegmentSize {
		return invalid("segment_size", fmt.Sprintf("%s is more than a segment may have (1gb)", *r.SegmentSize), "ask for 1gb or less")
	}
	if r.SegmentTime == nil {
		r.SegmentTime = ptr(wire.Seconds(0))
	}
	return nil
}

func (p *plan) compile(*config.Config) *wire.Error {
	r := &p.request
	if r.Filter != "" {
		f, err := filter.Parse(r.Filter)
		if err != nil {
			return filterError(err)
		}
		p.filter = f
	}
	if v := r.FilterV1; v != nil {
		f, err := filter.FromV1(filter.V1{
			SourceAddress: v.SourceAddress, SourcePort: uint16(v.SourcePort),
			DestinationAddress: v.DestinationAddress, DestinationPort: uint16(v.DestinationPort),
			Protocol: string(v.Protocol),
		})
		if err != nil {
			return filterError(err)
		}
		p.filter = filter.And(p.filter, f)
	}
	if err := p.divide(); err != nil {
		refused := filterError(err)
		if p.bare != "" && errors.Is(err, filter.ErrNoLinkLayer) { // it cannot say which device has none
			refused.Hint = fmt.Sprintf("%s has no Ethernet header: capture at other interfaces, without it", p.bare)
		}
		return refused
	}
	for _, x := range r.Exclude {
		// The api room has seen to it that these are addresses, or empty.
		source, _ := netip.ParseAddr(x.Source)
		destination, _ := netip.ParseAddr(x.Destination)
		p.exclude = append(p.exclude, filter.Flow{Source: source, SourcePort: uint16(x.SourcePort), Destination: destination, DestinationPort: uint16(x.DestinationPort)})
	}
	return nil
}

// divide finds out what of the filter the kernel can decide at the hooks asked for, and
// makes judges for the rest.
func (p *plan) divide() error {
	judge := func(asked bool, link filter.Link) (*filter.Matcher, error) {
		if !asked {
			return nil, nil
		}
		program, err := p.filter.Compile(link)
		if err != nil || program.Exact {
			return nil, err
		}
		return p.filter.Matcher(link)
	}
	link := filter.LinkEthernet
	if p.bare != "" {
		link = filter.LinkRaw
	}
	var err error
	if p.inet, err = judge(!nft.Framed(p.request.Hooks), filter.LinkRaw); err != nil {
		return err
	}
	p.netdev, err = judge(p.atNetdev(), link)
	return err
}

// plan is newPlan for this box, as it is now.
func (d *Daemon) plan(req wire.StartRequest) (*plan, error) {
	p, err := newPlan(req, d.config(), &d.links)
	if err != nil {
		return nil, err
	}
	// At ingress a packet's length has its Ethernet padding in it.
	if !p.anywhere || p.filter.AsksLength() {
		return p, nil
	}
	offloaded, err := d.table.Offloaded()
	if err != nil {
		d.log.Warn("cannot look for flowtables", "err", err)
	}
	p.seePast(offloaded)
	return p, nil
}

// seePast takes the packets of such interfaces at ingress. There they are judged as at
// prerouting, from the IP header on.
func (p *plan) seePast(offloaded []string) {
	if len(offloaded) > 0 {
		p.offloaded, p.netdev = offloaded, p.inet
	}
}

// seenAt is the hooks at which packets are seen, in the order asked for.
func (p *plan) seenAt() []string {
	if len(p.offloaded) == 0 {
		return p.request.Hooks
	}
	return append(slices.Clone(p.request.Hooks), wire.HookIngress)
}

func (p *plan) atNetdev() bool {
	return slices.Contains(p.request.Hooks, wire.HookIngress) || slices.Contains(p.request.Hooks, wire.HookEgress)
}

// kernelDecides tells whether the rules need no help: then they sample and cut too.
func (p *plan) kernelDecides() bool { return p.inet == nil && p.netdev == nil }

// selection is what is left to the engine.
func (p *plan) selection(l *links) selection {
	s := selection{inet: p.inet, netdev: p.netdev, bare: p.bare != "" || len(p.offloaded) > 0, links: l}
	if !p.kernelDecides() {
		s.sample = newSampler(*p.request.Sample, p.request.SampleBy == wire.SampleByFlow)
	}
	return s
}

func (p *plan) checkDestination(cfg *config.Config) *wire.Error {
	name := p.request.Destination
	if name == "" {
		return nil
	}
	if _, ok := cfg.Destinations[name]; !ok {
		return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeNoSuchDestination, Field: "destination",
			Message: fmt.Sprintf("there is no destination %q on this box", name), Hint: "see capctl destination list"}
	}
	return nil
}

// filterError carries a filter's complaint to the wire.
func filterError(err error) *wire.Error {
	var fe *filter.Error
	if errors.As(err, &fe) {
		return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeInvalid, Field: fe.Field, Message: fe.Error(), Hint: fe.Hint}
	}
	return invalid("filter", err.Error(), "")
}

func invalid(field, message, hint string) *wire.Error {
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeInvalid, Field: field, Message: field + ": " + message, Hint: hint}
}

// beyond is a value that makes sense, and is more than this box allows.
func beyond(field, message, hint string) *wire.Error {
	return &wire.Error{Status: http.StatusUnprocessableEntity, Code: wire.CodeLimit, Field: field, Message: field + ": " + message, Hint: hint}
}

func ptr[T any](v T) *T { return &v }

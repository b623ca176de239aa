package daemon

import (
	"fmt"
	"runtime"
	"strings"
	"time"

	"capd/ctl/wire"
	"capd/ring"
	"capd/ring/pcapng"
)

// encoder turns packets into the records of one capture's files. It belongs to the
// engine's goroutine. Per packet: prepare, then encode into as many bytes as prepare
// asked for.
type encoder struct {
	classic bool
	link    ring.LinkType
	snaplen uint32     // 0 = whole
	headers bool       // cut where the payload begins
	notes   *annotator // nil: packets have no comments
	links   *links
	// hooks is set where one interface stands for all: libpcap opens no pcapng file that
	// describes two of raw IP (sf-pcapng.c takes their type for another than the first's).
	hooks   string
	section pcapng.Section
	filter  string

	changes uint32  // links.changes when the interfaces' names were looked at
	ifaces  []iface // described in the current segment, in the order of their numbers
	current int     // the interface of the prepared packet
	fresh   bool    // its description is not in the segment yet
	opened  int64   // when the segment was begun, nanoseconds since the epoch
	// unplaced is loss that no packet of the file follows.
	unplaced uint64

	packet pcapng.Packet
	head   [ring.MaxHead]byte
}

// iface is one interface at one hook, with packets that have the kernel's stamps or with
// such that have none: what pcapng calls an interface.
type iface struct {
	index        uint32
	family, hook uint8
	stamped      bool
	renamed      bool // what comes now has another name
	hwType       uint16
	description  pcapng.Interface
	captured     uint64
	lost         uint64
}

func newEncoder(id string, p *plan, d *Daemon) *encoder {
	r := &p.request
	e := &encoder{
		classic: r.Format == wire.FormatPcap, snaplen: *r.Snaplen, headers: r.HeadersOnly, links: &d.links, filter: fileFilter(p),
		section: pcapng.Section{Hardware: runtime.GOARCH, OS: d.kernel, Application: "capd " + d.version, Comment: sectionComment(id, r, p.seenAt(), d.host, readClock())},
		ifaces:  make([]iface, 0, 64),
	}
	if r.Annotate {
		e.notes = newAnnotator(&d.links)
	}
	switch r.LinkType {
	case wire.LinkEthernet:
		e.link = ring.LinkEthernet
	case wire.LinkRaw:
		e.link = ring.LinkRaw
		if !e.classic {
			e.hooks = strings.Join(p.seenAt(), ",")
		}
	default:
		e.link = ring.LinkSLL2
	}
	return e
}

// maxFileFilter is how many bytes of a filter's text stand with each interface of each
// file. The byte limit, which counts them too, can be as low as 4096; record and manifest
// hold the whole.
const maxFileFilter = 1000

// fileFilter is the filter as files tell it: as it was written if it is text alone.
func fileFilter(p *plan) string {
	text := p.filter.String()
	if p.request.FilterV1 == nil {
		text = strings.Join(strings.Fields(p.request.Filter), " ")
	}
	if len(text) <= maxFileFilter {
		return text
	}
	const more = " … (the manifest has the rest)"
	return strings.ToValidUTF8(text[:maxFileFilter-len(more)], "") + more
}

// stateSnaplen is the snaplen that the file states.
func (e *encoder) stateSnaplen() uint32 {
	if e.snaplen == 0 {
		return fileSnaplen
	}
	return e.snaplen
}

// header is the length of what stands at the head of each file.
func (e *encoder) header() int {
	if e.classic {
		return pcapng.ClassicHeaderSize
	}
	return e.section.Size()
}

// begin writes the head of a new file into b, which is header bytes long.
func (e *encoder) begin(b []byte) {
	e.ifaces, e.opened = e.ifaces[:0], time.Now().UnixNano()
	if e.classic {
		pcapng.AppendClassicHeader(b[:0], uint16(e.link), e.stateSnaplen())
		return
	}
	e.section.Append(b[:0])
}

// prepare makes a packet ready to be encoded and gives the length of its record, with
// that of the interface's description where the file lacks it. It is not ok where the
// packet cannot be told in the file's link type.
func (e *encoder) prepare(p *ring.Packet) (size int, ok bool) {
	e.describe(p)
	i := &e.ifaces[e.current]
	if !p.HasHWType {
		p.HWType, p.HasHWType = i.hwType, true
	}
	head, body, original, ok := p.Frame(e.link, &e.head)
	if !ok {
		e.undescribe()
		return 0, false
	}
	if e.headers {
		body = p.HeadersOnly(e.link, body)
	}
	if e.snaplen > 0 && len(head)+len(body) > int(e.snaplen) {
		head = head[:min(len(head), int(e.snaplen))]
		body = body[:int(e.snaplen)-len(head)]
	}
	e.packet.Time, e.packet.Head, e.packet.Body, e.packet.Original = p.Time, head, body, original
	if e.classic {
		return e.packet.ClassicSize(), true
	}
	e.packet.Interface, e.packet.Flags, e.packet.Dropped = uint32(e.current), uint32(p.Direction()), p.Dropped
	if e.notes != nil {
		e.packet.Comment = e.notes.comment(p)
	}
	size = e.packet.Size()
	if e.fresh {
		size += i.description.Size()
	}
	return size, true
}

// encode writes the prepared packet into b, which is as long as prepare asked, and gives
// the number of the packet's own bytes that it kept.
func (e *encoder) encode(b []byte) int {
	i := &e.ifaces[e.current]
	if e.classic {
		e.packet.PutClassic(b)
	} else {
		if e.fresh {
			b = b[len(i.description.Append(b[:0])):]
		}
		e.packet.Fill(b)
	}
	e.fresh = false
	i.captured++
	i.lost += e.packet.Dropped
	return len(e.packet.Head) + len(e.packet.Body)
}

// describe finds the packet's interface and hook among those of the segment, or adds it.
func (e *encoder) describe(p *ring.Packet) {
	if e.fresh {
		e.undescribe()
	}
	index := p.Interface()
	if e.hooks != "" && len(e.ifaces) > 0 {
		e.current = 0
		return
	}
	if changes := e.links.changes.Load(); changes != e.changes {
		e.changes = changes
		for n := range e.ifaces {
			e.ifaces[n].renamed = e.ifaces[n].description.Name != e.links.get(e.ifaces[n].index).name
		}
	}
	if e.current < len(e.ifaces) && e.ifaces[e.current].is(index, p) {
		return
	}
	for n := range e.ifaces {
		if e.ifaces[n].is(index, p) {
			e.current = n
			return
		}
	}
	e.current, e.fresh = len(e.ifaces), true
	e.ifaces = append(e.ifaces, e.newIface(index, p))
}

// undescribe takes back an interface whose first packet did not make it into the file.
func (e *encoder) undescribe() {
	if e.fresh {
		e.ifaces, e.current, e.fresh = e.ifaces[:len(e.ifaces)-1], 0, false
	}
}

func (i *iface) is(index uint32, p *ring.Packet) bool {
	return i.index == index && !i.renamed && i.hook == p.Hook && i.stamped == p.KernelTime && (i.family == p.Family || i.family != ring.FamilyNetdev && p.Family != ring.FamilyNetdev)
}

func (e *encoder) newIface(index uint32, p *ring.Packet) iface {
	if e.hooks != "" {
		d := e.nobody()
		d.Description, d.Comment = e.hooks, "all interfaces: a file of raw IP does not tell them apart"
		return iface{description: d}
	}
	l := e.links.get(index)
	return iface{index: index, family: p.Family, hook: p.Hook, stamped: p.KernelTime, hwType: l.hwType, description: pcapng.Interface{
		LinkType: uint16(e.link), Snaplen: e.stateSnaplen(), Name: l.name, Description: hookName(p), Filter: e.filter, Comment: stampComment(p),
	}}
}

// hookName is the contract's name of the hook that saw the packet.
func hookName(p *ring.Packet) string {
	if p.Family == ring.FamilyNetdev {
		if p.Hook == ring.HookNetdevEgress {
			return wire.HookEgress
		}
		return wire.HookIngress
	}
	switch p.Hook {
	case ring.HookPrerouting:
		return wire.HookPrerouting
	case ring.HookInput:
		return wire.HookInput
	case ring.HookForward:
		return wire.HookForward
	case ring.HookOutput:
		return wire.HookOutput
	case ring.HookPostrouting:
		return wire.HookPostrouting
	}
	return fmt.Sprintf("hook %d", p.Hook)
}

// stampComment says where the interface's timestamps come from, and how far they can be
// from the truth. The bounds of the reader's clock are ring's: of Clocked groups, and where
// a kernel gives no stamp to a Stamped group's packet, of those.
func stampComment(p *ring.Packet) string {
	switch {
	case p.KernelTime:
		return "timestamps: the kernel's receive stamps"
	case p.Family == ring.FamilyNetdev || p.Hook < ring.HookOutput:
		return "timestamps: the reader's clock, late by up to 20 ms and in another order where packets came in on several CPUs; the kernel gave these no stamp"
	}
	return "timestamps: the reader's clock, late by up to 1 ms below 1000 packets/s and up to 10 ms above; the kernel has none at this hook"
}

// statistics is the length of one interface statistics block as conclude writes it.
func (e *encoder) statistics(n int, now int64) pcapng.Statistics {
	i := &e.ifaces[n]
	return pcapng.Statistics{
		Interface: uint32(n), Time: now, Start: e.opened, End: now,
		Received: i.captured + i.lost, Dropped: i.lost, FilterAccepted: i.captured + i.lost, OSDropped: i.lost, Delivered: i.captured,
	}
}

// closing is the length of what stands at the end of the current file, the prepared
// packet's interface included.
func (e *encoder) closing() int {
	if e.classic {
		return 0
	}
	if len(e.ifaces) == 0 {
		d := e.nobody()
		return d.Size() + statisticsSize
	}
	return len(e.ifaces) * statisticsSize
}

// alone is the length of a file that holds nothing but the prepared packet.
func (e *encoder) alone() int {
	if e.classic {
		return e.header() + e.packet.ClassicSize()
	}
	return e.header() + e.ifaces[e.current].description.Size() + e.packet.Size() + statisticsSize
}

// empty is the length of a file without packets.
func (e *encoder) empty() int {
	if e.classic {
		return e.header()
	}
	d := e.nobody()
	return e.header() + d.Size() + statisticsSize
}

// statisticsSize is the length of what statistics makes: every count, both times.
var statisticsSize = func() int {
	s := pcapng.Statistics{Start: 1, End: 1}
	return s.Size()
}()

// nobody describes an interface for a file without packets: tcpdump refuses a file that
// describes none.
func (e *encoder) nobody() pcapng.Interface {
	return pcapng.Interface{LinkType: uint16(e.link), Snaplen: e.stateSnaplen(), Name: "any", Filter: e.filter, Comment: "no packet"}
}

// conclude appends what stands at the end of a file to b: how much each interface
// captured and lost. Loss that no packet follows is put to the last interface. The
// counts stand in both isb_ifdrop, which Wireshark shows, and isb_osdrop, which is what
// they are: packets that the kernel had no room for.
func (e *encoder) conclude(b []byte, f finalCounts) []byte {
	if e.classic {
		return b
	}
	if len(e.ifaces) == 0 {
		d := e.nobody()
		b = d.Append(b)
		e.ifaces = append(e.ifaces, iface{description: d})
	}
	e.ifaces[len(e.ifaces)-1].lost += f.tail + e.unplaced
	e.unplaced = 0
	now := time.Now().UnixNano()
	for n := range e.ifaces {
		s := e.statistics(n, now)
		b = s.Append(b)
	}
	return b
}

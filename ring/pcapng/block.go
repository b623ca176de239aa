// Package pcapng writes capture file blocks into memory of the caller's, without
// allocating, and reads and repairs capture files.
//
// Format: draft-ietf-opsawg-pcapng ("PCAP Now Generic (pcapng) Capture File Format"),
// section numbers below are its; classic pcap: draft-ietf-opsawg-pcap. Blocks are written
// little-endian. Padding is zeros, always.
package pcapng

import (
	"encoding/binary"
	"math"
)

// Block types, section 11.1.
const (
	TypeSection    = 0x0a0d0d0a
	TypeInterface  = 1
	TypeOldPacket  = 2 // obsolete, appendix A
	TypeSimple     = 3
	TypeNames      = 4
	TypeStatistics = 5
	TypePacket     = 6
	TypeJournal    = 9
	TypeSecrets    = 10

	TypeCustom      = 0x0bad
	TypeCustomFixed = 0x40000bad // not to be copied by programs that change a file
)

// Option codes.
const (
	optEnd     = 0 // section 3.5
	optComment = 1

	optHardware = 2 // section 4.1
	optOS       = 3
	optUserAppl = 4

	optIfName        = 2 // section 4.2
	optIfDescription = 3
	optIfTSResol     = 9
	optIfFilter      = 11
	optIfTSOffset    = 14
	optIfHardware    = 15

	optFlags     = 2 // section 4.3
	optDropCount = 4

	optStart        = 2 // section 4.6
	optEndTime      = 3
	optReceived     = 4
	optDropped      = 5
	optFilterAccept = 6
	optOSDrop       = 7
	optDelivered    = 8
)

const (
	byteOrderMagic = 0x1a2b3c4d
	nanoseconds    = 9 // if_tsresol: 10^-9 s
	maxOption      = math.MaxUint16
)

// Bounds of a well-formed file, to tell it from noise.
const (
	// MaxBlock is the longest block that is written or read, in bytes.
	MaxBlock = 16 << 20
	minBlock = 12
)

var le = binary.LittleEndian

// Section is what a section header says of the whole file. Empty texts are left out; a
// text is cut to 65535 bytes.
type Section struct {
	Hardware, OS, Application string
	Comment                   string
	More                      string // further options, as Further gives them; a Reader leaves it empty
}

// Interface describes one interface of a section. Its timestamps have nanosecond
// resolution.
type Interface struct {
	LinkType    uint16
	Snaplen     uint32 // 0 = no limit
	Name        string
	Description string
	Filter      string // capture filter as text
	Comment     string
	More        string // further options, as Further gives them
}

// Packet is one packet. Its bytes are Head and then Body.
type Packet struct {
	Interface  uint32 // number of the interface description in its section, from 0
	Time       int64  // nanoseconds since the Unix epoch
	Head, Body []byte
	Original   uint32 // length on the wire, including Head's part of it
	Flags      uint32 // epb_flags; 0 = option left out
	Dropped    uint64 // packets lost between this and the one before on the interface; 0 = option left out
	Comment    string
}

// Values of Packet.Flags: direction, bits 0 and 1.
const (
	FlagInbound  = 1
	FlagOutbound = 2
)

// Absent is a count that a Statistics block leaves out.
const Absent = math.MaxUint64

// Statistics is the account of one interface at the time Time. Times are nanoseconds
// since the Unix epoch; Start and End of 0 are left out.
type Statistics struct {
	Interface      uint32
	Time           int64
	Start, End     int64
	Received       uint64 // packets received from the interface
	Dropped        uint64 // of these, lost by the interface for lack of resources
	FilterAccepted uint64 // packets that passed the filter
	OSDropped      uint64 // of these, lost by the operating system
	Delivered      uint64 // packets handed to the user
	Comment        string
}

// pad rounds up to a multiple of four.
func pad(n int) int { return (n + 3) &^ 3 }

// textSize is the size of an option that holds s, 0 for none.
func textSize(s string) int {
	if s == "" {
		return 0
	}
	return 4 + pad(min(len(s), maxOption))
}

// countSize is the size of an option that holds a 64-bit count.
func countSize(n uint64) int {
	if n == Absent {
		return 0
	}
	return 12
}

// optionsSize adds the end-of-options mark, which stands only behind options.
func optionsSize(n int) int {
	if n == 0 {
		return 0
	}
	return n + 4
}

// extend makes b longer by n bytes, within its capacity where that suffices, and gives
// the new bytes, whose contents are unknown.
func extend(b []byte, n int) (all, added []byte) {
	if len(b)+n > cap(b) {
		b = append(b, make([]byte, n)...)[:len(b)]
	}
	all = b[:len(b)+n]
	return all, all[len(b):]
}

// begin and finish write what every block begins and ends with.
func begin(b []byte, blockType uint32) {
	le.PutUint32(b, blockType)
	le.PutUint32(b[4:], uint32(len(b)))
}

func finish(b []byte) { le.PutUint32(b[len(b)-4:], uint32(len(b))) }

// putText writes an option and gives the rest of b.
func putText(b []byte, code uint16, s string) []byte {
	if s == "" {
		return b
	}
	n := copy(b[4:], s[:min(len(s), maxOption)])
	le.PutUint16(b, code)
	le.PutUint16(b[2:], uint16(n))
	clear(b[4+n : 4+pad(n)])
	return b[4+pad(n):]
}

func putCount(b []byte, code uint16, n uint64) []byte {
	if n == Absent {
		return b
	}
	le.PutUint16(b, code)
	le.PutUint16(b[2:], 8)
	le.PutUint64(b[4:], n)
	return b[12:]
}

// putTime writes a timestamp option: high half first (section 4.6).
func putTime(b []byte, code uint16, ns int64) []byte {
	if ns == 0 {
		return b
	}
	le.PutUint16(b, code)
	le.PutUint16(b[2:], 8)
	le.PutUint32(b[4:], uint32(uint64(ns)>>32))
	le.PutUint32(b[8:], uint32(ns))
	return b[12:]
}

func putEnd(b []byte) { le.PutUint32(b, optEnd) }

func (s *Section) options() int {
	return optionsSize(textSize(s.Comment) + textSize(s.Hardware) + textSize(s.OS) + textSize(s.Application) + len(s.More))
}

// Size is the length of the section header block in bytes.
func (s *Section) Size() int { return 28 + s.options() }

// Append adds a section header block of unknown section length to b (section 4.1).
func (s *Section) Append(b []byte) []byte {
	b, block := extend(b, s.Size())
	begin(block, TypeSection)
	le.PutUint32(block[8:], byteOrderMagic)
	le.PutUint16(block[12:], 1) // version 1.0
	le.PutUint16(block[14:], 0)
	le.PutUint64(block[16:], math.MaxUint64)
	if s.options() > 0 {
		o := putText(block[24:], optComment, s.Comment)
		o = putText(o, optHardware, s.Hardware)
		o = putText(o, optOS, s.OS)
		o = putText(o, optUserAppl, s.Application)
		putEnd(o[copy(o, s.More):])
	}
	finish(block)
	return b
}

// Size is the length of the interface description block in bytes.
func (i *Interface) Size() int {
	return 20 + optionsSize(8+textSize(i.Name)+textSize(i.Description)+textSize(i.Filter)+textSize(i.Comment)+i.filterKind()+len(i.More))
}

// filterKind is the extra byte that if_filter begins with, after rounding.
func (i *Interface) filterKind() int {
	if i.Filter == "" {
		return 0
	}
	n := min(len(i.Filter), maxOption-1)
	return 4 + pad(n+1) - textSize(i.Filter)
}

// Append adds an interface description block to b (section 4.2).
func (i *Interface) Append(b []byte) []byte {
	b, block := extend(b, i.Size())
	begin(block, TypeInterface)
	le.PutUint16(block[8:], i.LinkType)
	le.PutUint16(block[10:], 0)
	le.PutUint32(block[12:], i.Snaplen)
	o := putText(block[16:], optComment, i.Comment)
	o = putText(o, optIfName, i.Name)
	o = putText(o, optIfDescription, i.Description)
	le.PutUint16(o, optIfTSResol)
	le.PutUint16(o[2:], 1)
	le.PutUint32(o[4:], nanoseconds)
	o = o[8:]
	if i.Filter != "" {
		n := copy(o[5:], i.Filter[:min(len(i.Filter), maxOption-1)]) + 1
		le.PutUint16(o, optIfFilter)
		le.PutUint16(o[2:], uint16(n))
		o[4] = 0 // a text as libpcap takes it
		clear(o[4+n : 4+pad(n)])
		o = o[4+pad(n):]
	}
	putEnd(o[copy(o, i.More):])
	finish(block)
	return b
}

// packetHeader is the length of an enhanced packet block before its data.
const (
	packetHeader = 28
	sll2Length   = 20 // of a Linux cooked v2 header
)

// Size is the length of the enhanced packet block in bytes.
func (p *Packet) Size() int {
	n := packetHeader + pad(len(p.Head)+len(p.Body)) + 4
	if p.Flags == 0 && p.Dropped == 0 && p.Comment == "" {
		return n
	}
	n += 4 // the end of the options
	if p.Flags != 0 {
		n += 8
	}
	if p.Dropped != 0 {
		n += 12
	}
	if p.Comment != "" {
		n += textSize(p.Comment)
	}
	return n
}

// Append adds an enhanced packet block to b (section 4.3).
func (p *Packet) Append(b []byte) []byte {
	b, block := extend(b, p.Size())
	p.Fill(block)
	return b
}

// Put writes the enhanced packet block to the first Size bytes of b, which must be there,
// and gives that number.
func (p *Packet) Put(b []byte) int {
	n := p.Size()
	p.Fill(b[:n:n])
	return n
}

// Fill writes the enhanced packet block to block, which must be Size bytes long: what Put
// does, for one who has asked for the size already.
func (p *Packet) Fill(block []byte) {
	n := len(p.Head) + len(p.Body)
	// The padding first: what stands before it is written over.
	le.PutUint32(block[packetHeader+pad(n)-4:], 0)
	le.PutUint32(block[0:], TypePacket)
	le.PutUint32(block[4:], uint32(len(block)))
	le.PutUint32(block[8:], p.Interface)
	le.PutUint32(block[12:], uint32(uint64(p.Time)>>32))
	le.PutUint32(block[16:], uint32(p.Time))
	le.PutUint32(block[20:], uint32(n))
	le.PutUint32(block[24:], p.Original)
	o := block[packetHeader+pad(n):]
	if len(p.Head) == sll2Length && len(block) >= packetHeader+sll2Length {
		// The length that nearly all have: copied without a call.
		*(*[sll2Length]byte)(block[packetHeader:]) = [sll2Length]byte(p.Head)
	} else {
		copy(block[packetHeader:], p.Head)
	}
	copy(block[packetHeader+len(p.Head):], p.Body)
	if p.Flags == 0 && p.Dropped == 0 && p.Comment == "" {
		le.PutUint32(o, uint32(len(block)))
		return
	}
	if p.Flags != 0 {
		le.PutUint32(o, optFlags|4<<16)
		le.PutUint32(o[4:], p.Flags)
		o = o[8:]
	}
	if p.Dropped != 0 {
		o = putCount(o, optDropCount, p.Dropped)
	}
	if p.Comment != "" {
		o = putText(o, optComment, p.Comment)
	}
	putEnd(o)
	le.PutUint32(o[4:], uint32(len(block)))
}

// Size is the length of the interface statistics block in bytes.
func (s *Statistics) Size() int {
	n := countSize(s.Received) + countSize(s.Dropped) + countSize(s.FilterAccepted) + countSize(s.OSDropped) + countSize(s.Delivered)
	for _, t := range [...]int64{s.Start, s.End} {
		if t != 0 {
			n += 12
		}
	}
	return 24 + optionsSize(n+textSize(s.Comment))
}

// Append adds an interface statistics block to b (section 4.6).
func (s *Statistics) Append(b []byte) []byte {
	b, block := extend(b, s.Size())
	begin(block, TypeStatistics)
	le.PutUint32(block[8:], s.Interface)
	le.PutUint32(block[12:], uint32(uint64(s.Time)>>32))
	le.PutUint32(block[16:], uint32(s.Time))
	if s.Size() > 24 {
		o := putText(block[20:], optComment, s.Comment)
		o = putTime(o, optStart, s.Start)
		o = putTime(o, optEndTime, s.End)
		o = putCount(o, optReceived, s.Received)
		o = putCount(o, optDropped, s.Dropped)
		o = putCount(o, optFilterAccept, s.FilterAccepted)
		o = putCount(o, optOSDrop, s.OSDropped)
		putEnd(putCount(o, optDelivered, s.Delivered))
	}
	finish(block)
	return b
}

package pcapng

// Classic pcap with nanosecond timestamps (draft-ietf-opsawg-pcap).

const (
	pcapMicroseconds = 0xa1b2c3d4
	pcapNanoseconds  = 0xa1b23c4d
)

// Sizes of classic pcap in bytes.
const (
	ClassicHeaderSize = 24
	ClassicRecordSize = 16 // before the packet's own bytes
)

// MaxSnaplen is the snapshot length that stands for "no limit" in a classic header, as
// tcpdump writes it (libpcap, MAXIMUM_SNAPLEN).
const MaxSnaplen = 262144

// AppendClassicHeader adds the header of a classic pcap file with nanosecond timestamps.
// A snaplen of 0 means no limit.
func AppendClassicHeader(b []byte, linkType uint16, snaplen uint32) []byte {
	if snaplen == 0 {
		snaplen = MaxSnaplen
	}
	b, h := extend(b, ClassicHeaderSize)
	le.PutUint32(h, pcapNanoseconds)
	le.PutUint16(h[4:], 2)
	le.PutUint16(h[6:], 4)
	le.PutUint64(h[8:], 0)
	le.PutUint32(h[16:], snaplen)
	le.PutUint32(h[20:], uint32(linkType))
	return b
}

// ClassicSize is the length of the packet's classic record in bytes.
func (p *Packet) ClassicSize() int { return ClassicRecordSize + len(p.Head) + len(p.Body) }

// AppendClassic adds the packet as a classic record: its time, lengths and bytes. Flags,
// drop count and comment have no place there.
func (p *Packet) AppendClassic(b []byte) []byte {
	b, r := extend(b, p.ClassicSize())
	p.putClassic(r)
	return b
}

// PutClassic writes the classic record to the first ClassicSize bytes of b, which must be
// there, and gives that number.
func (p *Packet) PutClassic(b []byte) int {
	n := p.ClassicSize()
	p.putClassic(b[:n:n])
	return n
}

func (p *Packet) putClassic(r []byte) {
	le.PutUint32(r, uint32(p.Time/1e9))
	le.PutUint32(r[4:], uint32(p.Time%1e9))
	le.PutUint32(r[8:], uint32(len(p.Head)+len(p.Body)))
	le.PutUint32(r[12:], p.Original)
	copy(r[ClassicRecordSize:], p.Head)
	copy(r[ClassicRecordSize+len(p.Head):], p.Body)
}

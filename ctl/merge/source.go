package merge

import (
	"bufio"
	"container/heap"
	"errors"
	"fmt"
	"io"
	"slices"

	"capd/ring/pcapng"
)

// Lookahead of one input: packets that stand out of order by no more than that come out
// in order. Capture files are in order but for a few packets, since several CPUs write
// them.
const (
	lookaheadPackets = 1024
	lookaheadBytes   = 1 << 20
)

// packet is one packet in memory of its own.
type packet struct {
	pcapng.Packet
	host  string
	iface pcapng.Interface // as its file describes it
	more  []byte           // options that Packet has no field for
	order uint64           // in its file: keeps equal times in order
}

// source reads one input through its lookahead.
type source struct {
	in     *Input
	index  int
	closer io.Closer
	next   func() (bool, error) // reads one block into p, and whether that is a packet
	p      packet

	said   string // the host, as the file says
	window window
	bytes  int
	free   [][]byte
	read   uint64 // packets
	last   int64  // time of the packet before
	first  int64  // time of the first packet, while not open
	stats  map[pcapng.Interface]pcapng.Statistics
	err    error // why it ended, io.EOF where that is right

	sections []pcapng.Section // those that New came upon
	begun    bool             // New is through
	blocks   [][]byte         // to be carried over, before the packets in the lookahead
	left     map[string]uint64
}

// open starts reading and fills the lookahead.
func (s *source) open() error {
	r, err := s.in.Open()
	if err != nil {
		return err
	}
	s.closer, s.read, s.last, s.err = r, 0, 0, nil
	s.window, s.bytes = s.window[:0], 0
	s.stats, s.left = map[pcapng.Interface]pcapng.Statistics{}, map[string]uint64{}
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(4)
	switch {
	case len(head) < 4 && errors.Is(err, io.EOF):
		s.err = fmt.Errorf("%w: it has %d bytes", pcapng.ErrFormat, len(head))
	case len(head) < 4:
		s.err = err
	case string(head) == "\x0a\x0d\x0d\x0a":
		s.next = s.reading(pcapng.NewReader(in))
	default:
		c, err := pcapng.NewClassicReader(in)
		if err != nil {
			s.err = err
			break
		}
		s.next = s.records(c)
	}
	s.fill()
	if s.read == 0 && s.err != nil && !errors.Is(s.err, io.EOF) {
		s.close()
		return s.err
	}
	return nil
}

// close gives back what reading holds; open starts anew.
func (s *source) close() {
	if s.closer != nil {
		s.closer.Close()
		s.closer = nil
	}
	s.window, s.free, s.bytes = nil, nil, 0
}

// host is the name of the box that the packets are from.
func (s *source) host() string {
	if s.in.Host != "" {
		return s.in.Host
	}
	if s.said != "" {
		return s.said
	}
	return s.in.Fallback
}

// reading reads pcapng.
func (s *source) reading(r *pcapng.Reader) func() (bool, error) {
	return func() (bool, error) {
		b, err := r.Next()
		if err != nil {
			return false, err
		}
		switch b.Type {
		case pcapng.TypeSection:
			section, err := b.Section()
			if err != nil {
				return false, err
			}
			s.said = hostOf(section)
			return false, s.section(&b, section)
		case pcapng.TypeInterface:
			_, left, err := b.Further()
			s.leave(leftOption, left)
			return false, err
		case pcapng.TypePacket, pcapng.TypeOldPacket, pcapng.TypeSimple:
			if s.p.Packet, err = b.Packet(); err != nil {
				return false, err
			}
			left := 0
			if s.p.more, left, err = b.Further(); err != nil {
				return false, err
			}
			s.leave(leftOption, left)
			if b.Type == pcapng.TypeSimple { // has no time
				s.p.Time = s.last
			}
			s.p.iface = r.Interfaces()[s.p.Interface]
			return true, nil
		case pcapng.TypeStatistics:
			st, err := b.Statistics()
			if err != nil {
				return false, err
			}
			i := r.Interfaces()[st.Interface]
			s.stats[i] = addStatistics(s.stats[i], st)
		default:
			if block, ok, err := b.Carry(); ok && err == nil {
				s.blocks = append(s.blocks, block)
			} else {
				s.leave(fmt.Sprintf("block of type %#x", b.Type), 1)
			}
		}
		return false, nil
	}
}

// What may be left out, beside blocks.
const (
	leftOption  = "option"
	leftSection = "description of a further section"
)

func (s *source) leave(what string, n int) {
	if n > 0 {
		s.left[what] += uint64(n)
	}
}

// section takes note of what a section header says: the merged file has one header alone.
func (s *source) section(b *pcapng.Block, section pcapng.Section) error {
	more, left, err := b.Further()
	if err != nil {
		return err
	}
	s.leave(leftOption, left)
	section.More = string(more)
	switch {
	case slices.Contains(s.sections, section):
	case s.begun || len(s.sections) == maxSections:
		s.leave(leftSection, 1)
	default:
		s.sections = append(s.sections, section)
	}
	return nil
}

// maxSections bounds what a file can make the merged one say at its beginning.
const maxSections = 100

// records reads classic pcap.
func (s *source) records(r *pcapng.ClassicReader) func() (bool, error) {
	i := pcapng.Interface{LinkType: r.LinkType, Snaplen: r.Snaplen}
	return func() (bool, error) {
		var err error
		s.p.Packet, err = r.Next()
		s.p.iface = i
		return err == nil, err
	}
}

// fill reads ahead as far as the lookahead goes.
func (s *source) fill() {
	for s.err == nil && len(s.window) < lookaheadPackets && s.bytes < lookaheadBytes {
		isPacket, err := s.next()
		if err != nil {
			s.err = err
			return
		}
		if !isPacket {
			continue
		}
		p := s.p
		p.Time += s.in.Shift.Nanoseconds()
		p.host, p.order = s.host(), s.read
		p.Body = append(s.buffer(), p.Body...)
		s.read++
		s.last = s.p.Time
		s.bytes += len(p.Body)
		heap.Push(&s.window, p)
	}
}

// buffer gives memory for a packet's bytes.
func (s *source) buffer() []byte {
	if n := len(s.free); n > 0 {
		b := s.free[n-1]
		s.free = s.free[:n-1]
		return b[:0]
	}
	return nil
}

// head is the time of the next packet; it is not ok at the end.
func (s *source) head() (int64, bool) {
	if s.closer == nil {
		return s.first, true // waits to be opened
	}
	if len(s.window) == 0 {
		return 0, false
	}
	return s.window[0].Time, true
}

// pop takes the next packet. Its bytes are valid until they are handed back with done.
func (s *source) pop() packet {
	p := heap.Pop(&s.window).(packet)
	s.bytes -= len(p.Body)
	return p
}

func (s *source) done(p packet) {
	s.free = append(s.free, p.Body)
	s.fill()
}

// window is a heap of packets by time.
type window []packet

func (w window) Len() int { return len(w) }
func (w window) Less(i, j int) bool {
	return w[i].Time < w[j].Time || w[i].Time == w[j].Time && w[i].order < w[j].order
}
func (w window) Swap(i, j int) { w[i], w[j] = w[j], w[i] }

// Push implements heap.Interface.
func (w *window) Push(x any) { *w = append(*w, x.(packet)) }

// Pop implements heap.Interface.
func (w *window) Pop() any {
	n := len(*w) - 1
	p := (*w)[n]
	(*w)[n] = packet{}
	*w = (*w)[:n]
	return p
}

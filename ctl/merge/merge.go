// Package merge joins capture files, also of several boxes, into one pcapng file in the
// order of time, in bounded memory: each input is read through a lookahead of about a
// megabyte, and of many inputs only those are open whose time has come. Interfaces are
// named host/interface.
package merge

import (
	"bufio"
	"container/heap"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"slices"
	"strings"
	"time"

	"capd/ring/pcapng"
)

// Input is one capture file, pcapng or classic pcap.
type Input struct {
	Name     string                        // for messages
	Host     string                        // the box's name; "": as the file says
	Fallback string                        // the box's name where the file does not say
	Shift    time.Duration                 // added to each time, to set a clock right
	Open     func() (io.ReadCloser, error) // may be called again after Close, unless Once
	Once     bool                          // it can be opened only once (a pipe)
}

// openAtOnce is how many inputs are kept open from the start; with more, each is opened
// when the time of its first packet has come.
const openAtOnce = 128

// Result tells what was merged.
type Result struct {
	Packets    uint64
	Hosts      []string // in the order of the inputs
	Interfaces int
	Unordered  uint64   // packets that stood further out of order than the lookahead
	Ended      []*Ended // inputs that were read up to a fault
	// LeftOut counts what could not be carried over, by what it is: options and blocks that
	// forbid to be copied, or hold numbers at places that are not known.
	LeftOut map[string]uint64
}

// Ended says that an input was read only up to a fault in it.
type Ended struct {
	Name    string
	Packets uint64 // before the fault
	Err     error
}

// Error implements error.
func (e *Ended) Error() string {
	return fmt.Sprintf("%s: after %d packets: %v", e.Name, e.Packets, e.Err)
}

// Unwrap gives the fault.
func (e *Ended) Unwrap() error { return e.Err }

// hostOf gives the host that a file of capd's says it is from, or "".
func hostOf(s pcapng.Section) string { return WordOf(s, "host") }

// WordOf gives a word of the comment that capd's files begin with, or "". It is "capd
// capture=ID host=NAME …", with what would part the words written as %20.
func WordOf(s pcapng.Section, key string) string {
	words := strings.Fields(s.Comment)
	if len(words) == 0 || words[0] != "capd" {
		return ""
	}
	for _, word := range words[1:] {
		if value, ok := strings.CutPrefix(word, key+"="); ok {
			if text, err := url.PathUnescape(value); err == nil {
				return text
			}
		}
	}
	return ""
}

// Merger merges some inputs.
type Merger struct {
	sources []*source
	queue   queue
	result  Result
	ids     map[described]uint32
	out     []described
	stats   []pcapng.Statistics
	w       *bufio.Writer
	buf     []byte
	last    int64
	carried map[[sha256.Size]byte]bool // blocks that the merged file has
	about   func(host string) string   // what an interface's comment says of its host; may be nil

	current    described // the last packet's interface, and its number
	currentID  uint32
	hasCurrent bool
}

// described is an interface of the merged file.
type described struct {
	host string
	pcapng.Interface
}

// New opens the inputs and reads up to their first packets. An input that holds no
// capture at all is an error. The caller closes the Merger.
func New(inputs []Input) (*Merger, error) {
	m := &Merger{ids: map[described]uint32{}, carried: map[[sha256.Size]byte]bool{}}
	seen := map[string]bool{}
	for n := range inputs {
		s := &source{in: &inputs[n], index: n}
		if err := s.open(); err != nil {
			m.Close()
			return nil, fmt.Errorf("%s: %w", inputs[n].Name, err)
		}
		m.sources = append(m.sources, s)
		s.begun = true
		if host := s.host(); !seen[host] {
			seen[host] = true
			m.result.Hosts = append(m.result.Hosts, host)
		}
		if first, ok := s.head(); ok && len(inputs) > openAtOnce && !inputs[n].Once {
			s.close()
			s.first = first
		}
	}
	return m, nil
}

// About has the comment of each interface say something of its host.
func (m *Merger) About(about func(host string) string) { m.about = about }

// Hosts are the boxes that the inputs are from, in the order of the inputs.
func (m *Merger) Hosts() []string { return m.result.Hosts }

// SectionOf is what a file says of itself as a whole.
type SectionOf struct {
	Host string
	pcapng.Section
}

// Sections are the descriptions of the files that were read so far, each once.
func (m *Merger) Sections() []SectionOf {
	var all []SectionOf
	seen := map[SectionOf]bool{}
	for _, s := range m.sources {
		for _, section := range s.sections {
			if one := (SectionOf{s.host(), section}); !seen[one] {
				seen[one] = true
				all = append(all, one)
			}
		}
	}
	return all
}

// Close closes the inputs.
func (m *Merger) Close() {
	for _, s := range m.sources {
		s.close()
	}
}

// Write writes the merged file. Faults of inputs are in the result, not in the error,
// which is one of writing or of opening an input again.
func (m *Merger) Write(w io.Writer, section pcapng.Section) (Result, error) {
	m.w = bufio.NewWriterSize(w, 256<<10)
	if err := m.put(section.Append(m.buf[:0])); err != nil {
		return m.result, err
	}
	// Secrets and names first: packets of another file may need them.
	for _, s := range m.sources {
		if err := m.carryOf(s); err != nil {
			return m.result, err
		}
	}
	for _, s := range m.sources {
		if _, ok := s.head(); ok {
			m.queue = append(m.queue, s)
		} else if err := m.end(s); err != nil {
			return m.result, err
		}
	}
	heap.Init(&m.queue)
	for len(m.queue) > 0 {
		if err := m.step(m.queue[0]); err != nil {
			return m.result, err
		}
	}
	return m.finish()
}

// finish writes what stands at the end: the accounts of the interfaces.
func (m *Merger) finish() (Result, error) {
	if len(m.out) == 0 { // readers want one
		if _, err := m.describe(described{Interface: pcapng.Interface{LinkType: 1, Name: "none", Comment: "no packet"}}); err != nil {
			return m.result, err
		}
	}
	for n, s := range m.stats {
		if s == (pcapng.Statistics{}) {
			continue
		}
		s.Interface, s.Time = uint32(n), m.last
		if err := m.put(s.Append(m.buf[:0])); err != nil {
			return m.result, err
		}
	}
	m.result.Interfaces = len(m.out)
	return m.result, m.w.Flush()
}

// step writes the first source's next packet.
func (m *Merger) step(s *source) error {
	if s.closer == nil {
		if err := s.open(); err != nil {
			return fmt.Errorf("%s: %w", s.in.Name, err)
		}
		heap.Fix(&m.queue, 0)
		return nil
	}
	if err := m.carryOf(s); err != nil {
		return err
	}
	p := s.pop()
	if err := m.write(p); err != nil {
		return err
	}
	s.done(p)
	if _, ok := s.head(); ok {
		heap.Fix(&m.queue, 0)
		return nil
	}
	heap.Pop(&m.queue)
	return m.end(s)
}

// carryOf writes the blocks that a source has read and that belong to no packet.
func (m *Merger) carryOf(s *source) error {
	blocks := s.blocks
	s.blocks = nil
	return m.carry(blocks)
}

// carry writes blocks, each once however many files have it.
func (m *Merger) carry(blocks [][]byte) error {
	for _, b := range blocks {
		sum := sha256.Sum256(b)
		if m.carried[sum] {
			continue
		}
		m.carried[sum] = true
		if _, err := m.w.Write(b); err != nil {
			return err
		}
	}
	return nil
}

// write writes a packet.
func (m *Merger) write(p packet) error {
	d := described{p.host, p.iface}
	if !m.hasCurrent || m.current != d {
		id, err := m.describe(d)
		if err != nil {
			return err
		}
		m.current, m.currentID, m.hasCurrent = d, id, true
	}
	if p.Time < m.last {
		m.result.Unordered++
	}
	m.last = max(m.last, p.Time)
	p.Interface = m.currentID
	if err := m.put(p.AppendWith(m.buf[:0], p.more)); err != nil {
		return err
	}
	m.result.Packets++
	return nil
}

// end takes up a source's counts and why it ended.
func (m *Merger) end(s *source) error {
	if !errors.Is(s.err, io.EOF) {
		m.result.Ended = append(m.result.Ended, &Ended{s.in.Name, s.read, s.err})
	}
	for what, n := range s.left {
		if m.result.LeftOut == nil {
			m.result.LeftOut = map[string]uint64{}
		}
		m.result.LeftOut[what] += n
	}
	if err := m.carryOf(s); err != nil {
		return err
	}
	for i, st := range s.stats {
		id, err := m.describe(described{s.host(), i})
		if err != nil {
			return err
		}
		for _, t := range []*int64{&st.Start, &st.End} {
			if *t != 0 {
				*t += s.in.Shift.Nanoseconds()
			}
		}
		m.stats[id] = addStatistics(m.stats[id], st)
	}
	s.close()
	return nil
}

// describe gives the number of an interface, and describes it at its first use.
func (m *Merger) describe(d described) (uint32, error) {
	if id, ok := m.ids[d]; ok {
		return id, nil
	}
	id := uint32(len(m.out))
	m.ids[d] = id
	m.out, m.stats = append(m.out, d), append(m.stats, pcapng.Statistics{})
	i := d.Interface
	if m.about != nil {
		i.Comment = strings.TrimPrefix(i.Comment+"\n"+m.about(d.host), "\n")
	}
	if d.host != "" {
		if i.Name == "" {
			i.Name = "any"
		}
		i.Name = d.host + "/" + i.Name
	}
	return id, m.put(i.Append(m.buf[:0]))
}

func (m *Merger) put(block []byte) error {
	m.buf = block[:0]
	_, err := m.w.Write(block)
	return err
}

// addStatistics adds the accounts of two files of one interface.
func addStatistics(a, b pcapng.Statistics) pcapng.Statistics {
	if a == (pcapng.Statistics{}) {
		return b
	}
	for _, n := range []struct{ to, from *uint64 }{
		{&a.Received, &b.Received}, {&a.Dropped, &b.Dropped}, {&a.FilterAccepted, &b.FilterAccepted},
		{&a.OSDropped, &b.OSDropped}, {&a.Delivered, &b.Delivered},
	} {
		if *n.to == pcapng.Absent || *n.from == pcapng.Absent {
			*n.to = pcapng.Absent // a sum without one of its parts would be wrong
		} else {
			*n.to += min(*n.from, math.MaxUint64-1-*n.to)
		}
	}
	if a.Start == 0 || b.Start != 0 && b.Start < a.Start {
		a.Start = b.Start
	}
	a.End = max(a.End, b.End)
	if a.Comment == "" || len(a.Comment) > math.MaxUint16 {
		a.Comment = b.Comment
	} else if b.Comment != "" && !slices.Contains(strings.Split(a.Comment, "\n"), b.Comment) {
		a.Comment += "\n" + b.Comment
	}
	return a
}

// queue is a heap of sources by the time of their next packet.
type queue []*source

func (q queue) Len() int { return len(q) }
func (q queue) Less(i, j int) bool {
	a, _ := q[i].head()
	b, _ := q[j].head()
	return a < b || a == b && q[i].index < q[j].index
}
func (q queue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }

// Push implements heap.Interface.
func (q *queue) Push(x any) { *q = append(*q, x.(*source)) }

// Pop implements heap.Interface.
func (q *queue) Pop() any {
	n := len(*q) - 1
	s := (*q)[n]
	*q = (*q)[:n]
	return s
}

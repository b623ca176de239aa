package ring

import (
	"math"
	"sync/atomic"
)

// group is one NFLOG group with its socket and what has been read from it.
type group struct {
	Group
	index  int
	socket socket

	// Slots that were read and not decoded to their end, oldest first; -1 = none.
	first, last int32
	data        []byte // what is left of slot first
	clock       int64  // slot first's wall-clock time
	packets     int    // messages decoded of slot first

	// head is the next packet, decoded ahead, while the group stands in the heap.
	head Packet

	// horizon: on the monotonic clock, everything that was logged before it has been read.
	horizon int64
	state   groupState
	unbind  unbinding
	tuning  tuning

	account account
	public  published
	dirty   bool // account has changed since it was published
}

type groupState uint8

const (
	bound     groupState = iota
	leaving              // UNBIND was sent
	lingering            // UNBIND was refused: what remains comes with the flush timer
	closed               // nothing comes any more
)

// account counts packets by their sequence numbers: the kernel numbers all that it logs
// to a group, from 0 at BIND, modulo 2^32. At any time
//
//	received + foreign + malformed + gaps = last number + 1.
type account struct {
	expect    uint32 // the next number
	dropped   uint64 // lost since the last packet that was passed on
	unsettled uint64 // unreadable messages that have or have not taken a number: the next number tells

	received, foreign, malformed, gaps, garbage, cut, datagrams, bytes uint64
}

// settle takes note of a message, and tells whether it is a packet to pass on.
func (a *account) settle(v verdict, n numbered) bool {
	if !n.ok {
		a.unsettled++
		return false
	}
	gap := n.seq - a.expect
	if gap|uint32(min(a.unsettled, 1)) != 0 {
		if gap >= 1<<31 {
			a.garbage++ // a number that was before: not the kernel's
			return false
		}
		took := min(uint64(gap), a.unsettled)
		a.malformed += took
		a.garbage += a.unsettled - took
		a.gaps += uint64(gap) - took
		a.dropped += uint64(gap)
		a.unsettled = 0
	}
	a.expect = n.seq + 1
	switch v {
	case good:
		a.received++
		return true
	case foreign:
		a.foreign++
	default:
		a.malformed++
		a.dropped++
	}
	return false
}

// finish is called when nothing more comes: what then has no number never had one that
// shows.
func (a *account) finish() {
	a.garbage += a.unsettled
	a.unsettled = 0
}

// published is the account for other goroutines.
type published struct {
	received, foreign, malformed, gaps, garbage, cut, datagrams, bytes atomic.Uint64
}

func (g *group) publish() {
	if !g.dirty {
		return
	}
	g.dirty = false
	a, p := &g.account, &g.public
	p.received.Store(a.received)
	p.foreign.Store(a.foreign)
	p.malformed.Store(a.malformed)
	p.gaps.Store(a.gaps)
	p.garbage.Store(a.garbage)
	p.cut.Store(a.cut)
	p.datagrams.Store(a.datagrams)
	p.bytes.Store(a.bytes)
}

func (g *group) stats() GroupStats {
	p := &g.public
	return GroupStats{
		Group: g.Group, Received: p.received.Load(), Foreign: p.foreign.Load(), Malformed: p.malformed.Load(),
		Gaps: p.gaps.Load(), Garbage: p.garbage.Load(), Cut: p.cut.Load(),
		Datagrams: p.datagrams.Load(), Bytes: p.bytes.Load(), ReceiveBuffer: g.socket.receiveBuffer,
	}
}

// decode reads the next packet of the current slot into p. It gives false at the slot's
// end.
func (g *group) decode(d *decoder, p *Packet) bool {
	for len(g.data) > 0 {
		kind, _, body, rest, ok := cutMessage(g.data)
		g.data = rest
		if !ok {
			g.account.settle(malformed, numbered{})
			return false
		}
		if kind != ulogPacket {
			continue // NLMSG_DONE ends a batch
		}
		g.packets++
		p.Time = g.clock
		v, n := d.decode(body, p)
		if g.account.settle(v, n) {
			p.Group = g.index
			p.Dropped = g.account.dropped
			g.account.dropped = 0
			return true
		}
	}
	g.dirty = true // the slot's packets are in the account now
	return false
}

// heap holds the groups that have a packet ready, the earliest first.
type heap []entry

type entry struct {
	time int64
	g    *group
}

// earliest is the time of the first packet, MaxInt64 where there is none.
func (h heap) earliest() int64 {
	if len(h) == 0 {
		return math.MaxInt64
	}
	return h[0].time
}

// before orders packets by time, and those of the same time by group.
func (e entry) before(o entry) bool {
	return e.time < o.time || e.time == o.time && e.g.index < o.g.index
}

// push adds a group by its head. The capacity is there from the start.
func (h *heap) push(g *group) {
	*h = append(*h, entry{g.head.Time, g})
	s := *h
	for i := len(s) - 1; i > 0; {
		up := (i - 1) / 2
		if !s[i].before(s[up]) {
			return
		}
		s[i], s[up] = s[up], s[i]
		i = up
	}
}

// remove takes entry i out; 0 is the earliest.
func (h *heap) remove(i int) *group {
	s := *h
	g := s[i].g
	last := len(s) - 1
	s[i] = s[last]
	s[last] = entry{}
	s = s[:last]
	*h = s
	if i == last {
		return g
	}
	for i > 0 && s[i].before(s[(i-1)/2]) {
		s[i], s[(i-1)/2] = s[(i-1)/2], s[i]
		i = (i - 1) / 2
	}
	for {
		down := 2*i + 1
		if down >= last {
			return g
		}
		if right := down + 1; right < last && s[right].before(s[down]) {
			down = right
		}
		if !s[down].before(s[i]) {
			return g
		}
		s[i], s[down] = s[down], s[i]
		i = down
	}
}

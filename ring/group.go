package ring

import (
	"math"
	"math/bits"
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

	decoder decoder
	// head is the next packet, decoded ahead, while the group stands in the heap.
	head *Packet

	horizon instant // everything that was logged before it has been read
	state   groupState
	unbind  unbinding
	tuning  tuning

	account account
	public  published
	dirty   bool // account has changed since it was published
}

// instant is a moment on both clocks: the monotonic one counts from Open, the wall clock
// from the Unix epoch, both in nanoseconds.
type instant struct{ monotonic, wall int64 }

// forever is after everything.
var forever = instant{math.MaxInt64, math.MaxInt64}

func (i instant) before(ns int64) instant { return instant{i.monotonic - ns, i.wall - ns} }

func (i instant) min(o instant) instant {
	return instant{min(i.monotonic, o.monotonic), min(i.wall, o.wall)}
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

	batches [BatchSizes]atomic.Uint64
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
	s := GroupStats{
		Group: g.Group, Received: p.received.Load(), Foreign: p.foreign.Load(), Malformed: p.malformed.Load(),
		Gaps: p.gaps.Load(), Garbage: p.garbage.Load(), Cut: p.cut.Load(),
		Datagrams: p.datagrams.Load(), Bytes: p.bytes.Load(), ReceiveBuffer: g.socket.receiveBuffer,
	}
	for i := range p.batches {
		s.Batches[i] = p.batches[i].Load()
	}
	return s
}

// batch counts a datagram in which so many packets were.
func (p *published) batch(packets int) {
	if packets > 0 {
		p.batches[min(bits.Len(uint(packets-1)), BatchSizes-1)].Add(1)
	}
}

// decode gives the next packet of the current slot, nil at the slot's end. It holds until
// the next call.
func (g *group) decode() *Packet {
	for len(g.data) > 0 {
		kind, _, body, rest, ok := cutMessage(g.data)
		g.data = rest
		if !ok {
			g.account.settle(malformed, numbered{})
			return nil
		}
		if kind != ulogPacket {
			continue // NLMSG_DONE ends a batch
		}
		g.packets++
		p, v, n := g.decoder.decode(body, g.clock)
		if g.account.settle(v, n) {
			p.Group = g.index
			p.Dropped = g.account.dropped
			g.account.dropped = 0
			return p
		}
	}
	g.dirty = true // the slot's packets are in the account now
	return nil
}

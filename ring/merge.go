package ring

import (
	"io"
	"math"
)

// Next gives the next packet, waiting for it if need be. The packet and what its slices
// point to hold until the next call; until then the caller may set its HWType and
// Dropped, no other field. It allocates nothing. Errors: os.ErrDeadlineExceeded at the deadline,
// ErrWoken after Wake (both leave everything as it was, and packets can be overtaken by
// them for no longer than it takes to read a few datagrams), io.EOF when everything was
// read after Drain, ErrClosed, or what made reading impossible.
func (r *Reader) Next() (*Packet, error) {
	if g := r.run; g != nil {
		if p := g.decode(); p == nil {
			r.advance(g)
		} else if p.Time <= r.until {
			return p, nil
		} else {
			g.head = p
			r.heap.push(g)
		}
		r.run = nil
	}
	return r.choose()
}

// advance goes on to the group's next packet in its next slot, or marks it silent.
func (r *Reader) advance(g *group) {
	for g.first >= 0 {
		if len(g.data) > 0 {
			if g.head = g.decode(); g.head != nil {
				r.heap.push(g)
				return
			}
		}
		done := g.first
		s := &r.arena.slots[done]
		g.tuning.read(g.packets, s.length)
		g.public.batch(g.packets)
		g.packets = 0
		g.data = nil
		g.first = s.next
		r.arena.release(done)
		if g.first >= 0 {
			r.start(g)
		}
	}
	g.last = -1
	r.silent(g)
}

// start begins to decode the group's first slot.
func (r *Reader) start(g *group) {
	g.data = r.arena.bytes(g.first)
	g.clock = r.arena.slots[g.first].clock
	r.started++
}

// silent notes that a group has no packet at hand.
func (r *Reader) silent(g *group) {
	if g.Class == Stamped && g.state != closed {
		r.horizon = r.horizon.min(g.horizon)
	}
}

// choose finds the group whose turn it is, reading the sockets as needed.
func (r *Reader) choose() (*Packet, error) {
	if r.started > perRound {
		// Packets are at hand, but deadlines and silent groups must not wait for their end.
		if _, err := r.read(false); err != nil {
			return nil, err
		}
	}
	for looked := false; ; {
		if i := r.ready(); i >= 0 {
			g := r.heap.remove(i)
			r.run, r.until = g, r.heap.earliest()
			if s := &r.arena.slots[g.first]; s.received > r.horizon.monotonic && !s.hurried {
				r.until = min(r.until, r.horizon.wall)
			}
			return g.head, nil
		}
		if looked {
			if r.draining && r.over() {
				return nil, io.EOF
			}
			if err := r.wait(); err != nil {
				return nil, err
			}
		}
		got, err := r.read(true)
		if err != nil {
			return nil, err
		}
		looked = got == 0
	}
}

// ready gives the place in the heap of the packet that may be handed over now, -1 where
// there is none: the earliest, if the silent groups can have nothing before it. That is
// known by its timestamp, or, should the wall clock have been set meanwhile, by when it
// was read.
func (r *Reader) ready() int {
	if len(r.heap) == 0 {
		return -1
	}
	i := 0
	if r.urgent != nil {
		i = r.heap.find(r.urgent)
		r.urgent = nil
	}
	e := r.heap[i]
	s := &r.arena.slots[e.g.first]
	if e.time > r.horizon.wall && s.received > r.horizon.monotonic {
		if !r.full && i == 0 {
			return -1
		}
		if !s.hurried {
			s.hurried = true
			r.hurried.Add(1)
		}
	}
	return i
}

// find gives the place of a group, 0 if it is not there.
func (h heap) find(g *group) int {
	for i := range h {
		if h[i].g == g {
			return i
		}
	}
	return 0
}

// owner finds the group whose current slot this is.
func (r *Reader) owner(slot int32) *group {
	for i := range r.groups {
		if g := &r.groups[i]; g.first == slot {
			return g
		}
	}
	return nil
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

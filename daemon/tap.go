package daemon

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"capd/ring"
)

// tapSize is how many bytes of a live stream wait for its reader at most: at 10 MB/s
// nearly half a second.
const tapSize = 4 << 20

// tapPiece is how much a reader is given at once at most, so that what a slow one has
// taken makes room for new packets before all of it is taken.
const tapPiece = 128 << 10

// tap is a live copy of a capture's packets on its way to one reader. The engine encodes
// each packet that it keeps once more, into memory of the tap's own. What finds no room
// there is lost to this reader alone, and told to it: in the drop count of the next packet
// that does, and in the statistics at the end. The engine never waits for a reader.
//
// The memory is a ring of whole records for one producer, the engine, and one consumer,
// the reader. Positions count on from lap to lap; a record that would cross the end of the
// memory stands at its beginning instead.
type tap struct {
	memory *ring.Memory
	wake   chan struct{} // holds one token: something was published

	published atomic.Uint64 // records before this position are whole
	edge      atomic.Uint64 // where the records of the last finished lap end
	taken     atomic.Uint64 // the reader has no use for what is before this position

	gone     atomic.Bool   // the reader wants no more
	released chan struct{} // closed when the engine does not touch the tap any more
	ended    chan struct{} // closed when everything is published, and last is set
	last     []byte        // what stands at the end of the stream

	// The engine's.
	buf    []byte
	enc    *encoder
	head   uint64 // where the next record goes
	seen   uint64 // taken, as the engine saw it last
	missed uint64 // packets lost that no record tells of yet

	// The reader's.
	given uint64 // bytes that the last next gave
}

// newTap makes a tap for an engine to be joined to. Its memory is given back by close.
func newTap(enc *encoder) (*tap, error) {
	memory, err := ring.Alloc(tapSize)
	if err != nil {
		return nil, fmt.Errorf("allocate the buffer of a live stream: %w", err)
	}
	return &tap{
		memory: memory, buf: memory.Bytes(), enc: enc,
		wake: make(chan struct{}, 1), released: make(chan struct{}), ended: make(chan struct{}),
	}, nil
}

// reserve gives n bytes in one piece for the next record, or nil where there is no room.
func (t *tap) reserve(n int) []byte {
	size := uint64(len(t.buf))
	at, skip := t.head%size, uint64(0)
	if at+uint64(n) > size {
		at, skip = 0, size-at
	}
	if t.head+skip+uint64(n)-t.seen > size {
		if t.seen = t.taken.Load(); t.head+skip+uint64(n)-t.seen > size {
			return nil
		}
	}
	if skip > 0 {
		t.edge.Store(t.head)
		t.head += skip
	}
	return t.buf[at : at+uint64(n) : at+uint64(n)]
}

// commit makes the reserved record part of the stream.
func (t *tap) commit(n int) {
	t.head += uint64(n)
	if t.head%uint64(len(t.buf)) == 0 {
		t.edge.Store(t.head)
	}
}

// publish shows the reader what was committed.
func (t *tap) publish() {
	if t.published.Load() == t.head {
		return
	}
	t.published.Store(t.head)
	select {
	case t.wake <- struct{}{}:
	default: // the reader has not seen the last token yet
	}
}

// begin writes the head of the stream, with the interfaces that the capture has met so far.
func (t *tap) begin(known []iface) {
	n := t.enc.header()
	t.enc.begin(t.reserve(n))
	t.commit(n)
	for i := range known {
		next := iface{index: known[i].index, family: known[i].family, hook: known[i].hook, hwType: known[i].hwType, description: known[i].description}
		b := t.reserve(next.description.Size())
		if b == nil {
			break // thousands of interfaces: they come with their packets
		}
		next.description.Append(b[:0])
		t.commit(len(b))
		t.enc.ifaces = append(t.enc.ifaces, next)
	}
	t.publish()
}

// put adds a packet to the stream, or counts it as lost to the reader.
func (t *tap) put(p *ring.Packet) {
	before := p.Dropped
	p.Dropped += t.missed
	size, ok := t.enc.prepare(p)
	p.Dropped = before
	if ok {
		if b := t.reserve(size); b != nil {
			t.enc.encode(b)
			t.commit(size)
			t.missed = 0
			return
		}
		t.enc.undescribe()
	}
	t.missed += before + 1
}

// conclude ends the stream.
func (t *tap) conclude(f finalCounts) {
	t.enc.undescribe()
	t.enc.unplaced = t.missed
	t.last = t.enc.conclude(nil, f)
	t.publish()
	close(t.ended)
}

// next waits for more of the stream; what it gives is valid until the next call. It gives
// io.EOF at the stream's end. Only the reader calls it.
func (t *tap) next(ctx context.Context) ([]byte, error) {
	t.taken.Add(t.given)
	t.given = 0
	for {
		if b := t.ready(); b != nil {
			t.given = uint64(len(b))
			return b, nil
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-t.ended:
			if b := t.ready(); b != nil {
				t.given = uint64(len(b))
				return b, nil
			}
			if b := t.last; b != nil {
				t.last = nil
				return b, nil
			}
			return nil, io.EOF
		}
	}
}

// ready gives what is published and not taken, in one piece, or nil.
func (t *tap) ready() []byte {
	size, from, to := uint64(len(t.buf)), t.taken.Load(), t.published.Load()
	if lap := from - from%size + size; to >= lap {
		// The record that begins the next lap is published, so edge is this lap's: it is
		// not moved before this lap's memory is taken.
		if to = t.edge.Load(); from == to {
			t.taken.Store(lap)
			return t.ready()
		}
	}
	if from == to {
		return nil
	}
	return t.buf[from%size:][:min(to-from, tapPiece)]
}

// taps is what an engine and those who want to read along share.
type taps struct {
	mu      sync.Mutex
	joining []*tap
	closed  bool // the engine has ended
}

// join has the engine copy packets to a tap from soon on, or from its first packet where
// it does not run yet. It is false where the engine has ended. Any goroutine.
func (e *engine) join(t *tap) bool {
	e.taps.mu.Lock()
	defer e.taps.mu.Unlock()
	if e.taps.closed {
		return false
	}
	e.taps.joining = append(e.taps.joining, t)
	e.source.Wake()
	return true
}

// leave ends a tap that was joined, and waits until the engine has let go of it. Any
// goroutine.
func (e *engine) leave(t *tap) {
	t.gone.Store(true)
	e.source.Wake()
	<-t.released
	t.memory.Free()
}

// admitTaps takes in the taps that were joined, and lets go of those whose readers left.
func (e *engine) admitTaps() {
	e.taps.mu.Lock()
	joining := e.taps.joining
	e.taps.joining = nil
	e.taps.mu.Unlock()
	for _, t := range joining {
		t.begin(e.enc.ifaces)
	}
	e.tapped = slices.DeleteFunc(append(e.tapped, joining...), func(t *tap) bool {
		if t.gone.Load() {
			close(t.released)
			return true
		}
		return false
	})
}

// tap gives the packet that was just kept to those who read along.
func (e *engine) tap(p *ring.Packet) {
	for _, t := range e.tapped {
		t.put(p)
	}
}

// untold has those who read along be told of packets that were lost before one that is
// discarded.
func (e *engine) untold(lost uint64) {
	for _, t := range e.tapped {
		t.missed += lost
	}
}

// publishTaps shows the readers what was added.
func (e *engine) publishTaps() {
	for _, t := range e.tapped {
		t.publish()
	}
}

// endTaps ends every stream.
func (e *engine) endTaps(f finalCounts) {
	e.admitTaps()
	e.taps.mu.Lock()
	e.taps.closed = true
	late := e.taps.joining
	e.taps.mu.Unlock()
	for _, t := range late {
		t.begin(e.enc.ifaces)
	}
	for _, t := range append(e.tapped, late...) {
		t.conclude(f)
		close(t.released)
	}
	e.tapped = nil
}

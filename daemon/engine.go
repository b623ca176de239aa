package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"capd/ctl/wire"
	"capd/daemon/spool"
	"capd/ring"
)

// source is where an engine's packets come from: a ring.Reader.
type source interface {
	Next() (*ring.Packet, error)
	SetDeadline(time.Time)
	Wake()
	Drain()
}

var _ source = (*ring.Reader)(nil)

// engine is the one loop that every packet of a capture goes through: ring slot → filter
// and sample, as far as the kernel could not apply them → limits → encoder, which cuts →
// write block. It runs on a thread of its own, allocates nothing per
// packet, and never touches the rules: when a limit is reached it says so and goes on
// reading, so that what still arrives is counted as discarded.
type engine struct {
	source source
	out    *spool.Writer
	enc    *encoder
	sel    selection

	packetLimit uint64 // 0 = none
	byteLimit   int64
	ring        int64 // segments kept, which byteLimit is for; 0 = all
	segmentSize int64
	segmentTime time.Duration             // 0 = by size only
	timeLimit   atomic.Pointer[time.Time] // when the time is up; nil until limitTime

	// stop receives why the capture must end, at most once; it never blocks.
	stop chan<- stopping
	// opened is told of each segment that is begun.
	opened func(name string)
	// final gives what only the kernel's counters know, after everything was read.
	final <-chan finalCounts

	taps   taps
	tapped []*tap // those who read along

	live    liveCounts
	drained chan struct{} // closed when the source is at its end

	draining  atomic.Bool
	drainSent bool
	ended     bool  // a limit was reached: what comes now is discarded
	closed    int64 // bytes in segments that are finished
	easy      int64 // bytes of records that the current segment may take without looking for room
	count     counts
	published uint64    // packets seen when live was last brought up to date
	tick      time.Time // when to flush and to look at the segment's age; zero = nothing to
}

// stopping is why a capture ends.
type stopping struct {
	reason string
	err    error
}

// counts is the engine's own account, in packets and bytes.
type counts struct {
	captured   uint64
	discarded  uint64
	sampledOut uint64 // by the selection, not by the kernel
	lost       uint64 // the spool had no room
	bytes      uint64 // captured bytes of packets
}

// packets is how many packets have come.
func (c *counts) packets() uint64 { return c.captured + c.discarded + c.sampledOut + c.lost }

// liveCounts is counts for other goroutines, plus the file length.
type liveCounts struct {
	captured, discarded, sampledOut, lost, bytes, written, filePackets atomic.Uint64

	beats atomic.Uint64 // rounds of the loop, at least one every beatEvery
}

// finalCounts is loss that is known only at the end.
type finalCounts struct {
	tail uint64
}

const (
	// tickEvery is how often a busy engine looks at its clocks.
	tickEvery = time.Second
	// publishEvery is the number of packets between two updates of the live counts.
	publishEvery = 256
	// publishWithin bounds how long a slow packet waits for that update.
	publishWithin = 10 * time.Millisecond
	// publishLive is the same where somebody reads along.
	publishLive = 2 * time.Millisecond
)

// run reads until the source ends, then closes the last segment and returns why writing
// failed, or nil.
func (e *engine) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer takeShortSlices()()
	e.begin()
	e.admitTaps()
	e.schedule(time.Now())
	for {
		switch p, err := e.source.Next(); {
		case err == nil:
			e.packet(p)
		case errors.Is(err, os.ErrDeadlineExceeded):
			e.clocks(time.Now())
		case errors.Is(err, ring.ErrWoken):
			e.admitTaps()
			e.schedule(time.Now())
			if e.draining.Load() && !e.drainSent {
				e.drainSent = true
				e.source.Drain()
			}
		case errors.Is(err, io.EOF):
			e.publish()
			close(e.drained)
			return e.finish()
		default:
			e.end(stopping{wire.StopError, fmt.Errorf("read packets: %w", err)})
			e.publish()
			close(e.drained)
			return e.finish()
		}
	}
}

// drain makes the engine read what is left and come to its end. Any goroutine.
func (e *engine) drain() {
	e.draining.Store(true)
	e.source.Wake()
}

// limitTime says when the time is up. Any goroutine.
func (e *engine) limitTime(at time.Time) {
	e.timeLimit.Store(&at)
	e.source.Wake()
}

// packet takes one packet to its file, or counts it as sampled out, discarded or lost.
func (e *engine) packet(p *ring.Packet) {
	fate := refused // what comes after a limit
	if !e.ended {
		if fate = e.sel.judge(p); fate == wanted {
			fate = e.keep(p)
		}
	}
	if fate != wanted {
		e.leaveOut(p, fate)
	}
	if come := e.count.packets() - e.published; come >= publishEvery {
		e.publish()
	} else if come == 1 {
		e.schedule(time.Now())
		e.publishTaps() // the first after a pause is seen at once
	}
}

// leaveOut counts a packet that is not in the file.
func (e *engine) leaveOut(p *ring.Packet, why verdict) {
	switch why {
	case refused:
		e.count.discarded++
	case sampledOut:
		e.count.sampledOut++
	case unroomed:
		e.count.lost++
		e.enc.unplaced++
	}
	e.enc.unplaced += p.Dropped
	e.untold(p.Dropped)
}

// keep encodes a packet into the current segment, after making room for it. What the
// link type cannot express, and what comes when a limit is reached, is refused.
func (e *engine) keep(p *ring.Packet) verdict {
	size, ok := e.enc.prepare(p)
	if !ok {
		return refused
	}
	if int64(size) > e.easy || e.enc.fresh {
		var v verdict
		if size, v = e.makeRoom(p, size); v != wanted {
			return v
		}
	}
	e.easy -= int64(size)
	n := e.enc.encode(e.out.Reserve(size))
	e.out.CommitPacket(p.Time, n)
	e.count.captured++
	e.count.bytes += uint64(n)
	if len(e.tapped) > 0 {
		e.tap(p)
	}
	if e.count.captured == e.packetLimit {
		e.end(stopping{reason: wire.StopPacketLimit})
	}
	return wanted
}

// makeRoom sees to it that the prepared packet, whose record is size bytes long, can be
// committed, by rotating and asking the spool, and sets what is easy from there on. It
// gives the record's length in the segment that it goes into.
func (e *engine) makeRoom(p *ring.Packet, size int) (int, verdict) {
	if err := e.out.Err(); err != nil {
		e.end(writeFailure(err))
		return 0, refused
	}
	if e.out.Packets() > 0 && e.out.Size()+int64(size+e.enc.closing()) > e.segmentSize {
		if !e.mayRotate(e.enc.alone()) {
			e.end(stopping{reason: wire.StopByteLimit})
			return 0, refused
		}
		e.rotate()
		size, _ = e.enc.prepare(p)
	}
	need := size + e.enc.closing()
	if e.out.Size()+int64(need) > e.room() {
		if e.ring == 0 {
			e.end(stopping{reason: wire.StopByteLimit})
		} // else it alone is larger than a segment of this ring may be
		return 0, refused
	}
	if err := e.out.Room(need); err != nil {
		if !errors.Is(err, errNoRoomNow) {
			e.end(writeFailure(err))
			return 0, refused
		}
		if e.out.Packets() > 0 && e.mayRotate(e.enc.alone()) {
			e.rotate() // what is there can go out, and make room
		}
		return 0, unroomed
	}
	left := min(e.segmentSize, e.room(), e.out.Granted()) - e.out.Size() - int64(e.enc.closing())
	e.easy = max(left, int64(size)) // a segment's first packet may be larger than segments are
	return size, wanted
}

// room is how long the current segment may become, in bytes.
func (e *engine) room() int64 {
	if e.ring > 0 {
		return e.byteLimit / e.ring
	}
	return e.byteLimit - e.closed
}

// end asks for the capture's end, once; from here on packets are discarded.
func (e *engine) end(why stopping) {
	if e.ended {
		return
	}
	e.ended = true
	select {
	case e.stop <- why:
	default: // the capture is being stopped for another reason already
	}
}

// writeFailure tells a full disk from a broken one.
func writeFailure(err error) stopping {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return stopping{wire.StopNoSpace, err}
	}
	return stopping{wire.StopError, err}
}

// clocks does what is due by time.
func (e *engine) clocks(now time.Time) {
	e.live.beats.Add(1)
	if up := e.timeLimit.Load(); up != nil && !e.ended && !now.Before(*up) {
		e.end(stopping{reason: wire.StopTimeLimit})
	}
	if err := e.out.Err(); err != nil {
		e.end(writeFailure(err))
	}
	e.publish()
	if !e.tick.IsZero() && !now.Before(e.tick) {
		e.tick = time.Time{}
		if e.segmentTime > 0 && !e.ended && e.out.Packets() > 0 && now.Sub(e.out.Opened()) >= e.segmentTime && e.mayRotate(e.enc.empty()) {
			e.rotate()
		}
		e.out.Flush()
	}
	e.schedule(now)
}

// schedule sets when clocks runs next: soon if live counts are stale, within a second
// while there is something to flush or rotate, else when the time is up or a sign of life
// is due.
func (e *engine) schedule(now time.Time) {
	at := now.Add(beatEvery)
	if up := e.timeLimit.Load(); up != nil && !e.ended {
		at = earlier(at, *up)
	}
	if e.out.Dirty() || (e.segmentTime > 0 && e.out.Packets() > 0) {
		if e.tick.IsZero() {
			e.tick = now.Add(tickEvery)
		}
		at = earlier(at, e.tick)
	}
	if e.count.packets() != e.published {
		within := publishWithin
		if len(e.tapped) > 0 {
			within = publishLive
		}
		at = earlier(at, now.Add(within))
	}
	e.source.SetDeadline(at)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// publish brings the live counts up to date.
func (e *engine) publish() {
	e.published = e.count.packets()
	e.live.captured.Store(e.count.captured)
	e.live.discarded.Store(e.count.discarded)
	e.live.sampledOut.Store(e.count.sampledOut)
	e.live.lost.Store(e.count.lost)
	e.live.bytes.Store(e.count.bytes)
	e.live.written.Store(uint64(e.closed + e.out.Size()))
	e.live.filePackets.Store(e.out.Packets())
	e.publishTaps()
}

// begin starts a segment: whatever stands at the head of each file.
func (e *engine) begin() {
	e.enc.begin(e.out.Reserve(e.enc.header()))
	e.out.Commit()
	e.opened(e.out.Name())
}

// conclude writes what stands at the end of each file.
func (e *engine) conclude(f finalCounts) {
	e.enc.undescribe() // of a packet that did not fit
	if n := e.enc.closing(); n > 0 {
		e.out.CommitN(len(e.enc.conclude(e.out.Reserve(n)[:0], f)))
	}
}

// mayRotate tells whether the byte limit has room for another segment of so many bytes.
func (e *engine) mayRotate(size int) bool {
	e.enc.undescribe() // what is prepared goes into the other segment, if anywhere
	return e.ring > 0 || e.out.Size()+int64(e.enc.closing()+size) <= e.room()
}

func (e *engine) rotate() {
	e.easy = 0
	e.conclude(finalCounts{})
	e.closed += e.out.Size()
	e.out.Rotate()
	e.begin()
}

// finish waits for the kernel's last word, so that the last segment can state the loss
// at the tail, and closes it.
func (e *engine) finish() error {
	final := <-e.final
	e.endTaps(final)
	e.conclude(final)
	e.publish()
	return e.out.Close()
}

package ring

import (
	"os"
	"time"
)

// tuning fits a group's batches to its traffic. Large batches make packets cheap, small
// ones make them prompt:
//
//   - A Stamped group has full batches (threshold just below what the buffer holds, for
//     packets of the size that was seen), handed over after 10 ms at the latest. When the
//     reader is busy with other groups and has only to wait for this one, which is quiet,
//     each packet is handed over at once, so that the others are held back for a short
//     while only.
//   - A Clocked group hands over each packet at once below promptBelow, because
//     the reader's clock is its packets' timestamp, and the packets of batchTime above.
type tuning struct {
	class     Class
	limit     int    // copy limit
	threshold uint32 // QTHRESH as set
	prompt    bool   // threshold 1 and the small buffer
	since     int64  // monotonic time since when prompt holds
	needed    int64  // monotonic time at which other groups were busy, for a Stamped group
	fixed     bool   // the kernel takes no settings any more

	windowStart int64 // of the rate's measurement
	arrived     int   // bytes read since then
	packets     int   // decoded since then
	bytes       int   // in their datagrams
	rate        int   // packets/s in the window before
	average     int   // bytes of a message
}

const (
	// promptBelow is the rate in packets/s below which Clocked groups are prompt. A packet
	// by itself costs the sender about 1.8 µs more than one in a batch, so this costs a CPU
	// 4 % at most; in return only faster traffic can leave a batch that the kernel holds
	// until its next tick (see clockedTicks), and whose stamps are as late.
	promptBelow = 20_000
	// quietBelow is the rate below which a Stamped group is quiet.
	quietBelow = 1000
	batchTime  = 2 * time.Millisecond
	// maxClocked bounds batches whose timestamps are taken when they are read.
	maxClocked = 230
	// otherwise quiet Stamped groups are prompt when the others together have this rate.
	busyRate = 10_000
	// windowShort and windowLong are how long a rate is measured: the short one suffices
	// once windowPackets have come.
	windowShort   = int64(time.Millisecond)
	windowLong    = int64(100 * time.Millisecond)
	windowPackets = 16
	// quietAfter is how long a flood may pause and still count as one.
	quietAfter = 3 * windowLong
)

// begin is the state in which a group is set up.
func (t *tuning) begin(class Class, limit int) {
	*t = tuning{class: class, limit: limit, average: metadata + min(limit, 1500), since: never, needed: -quietAfter, prompt: class == Clocked}
	t.threshold = 1
	if class == Stamped {
		t.threshold = t.fullBatch()
	}
}

// fullBatch is the threshold that leaves little of the buffer unused. The kernel hands a
// batch over early where the next packet might not fit (CVE-2026-31416: a batch that was
// filled by size could be dropped), so that the threshold should be what ends it.
func (t *tuning) fullBatch() uint32 {
	return uint32(max(1, (bufferFull-bufferFull/16)/max(t.average, 1)))
}

// lag is how long before the time now a packet may have been stamped and still not be in
// the socket.
func (t *tuning) lag(now int64) int64 {
	if t.prompt && !t.fixed && now-t.since >= int64(flushTimeout) {
		return int64(settle)
	}
	return int64(flushTimeout + settle)
}

// fix gives up changing settings.
func (t *tuning) fix() { t.fixed = true }

// read takes note of a datagram that was decoded.
func (t *tuning) read(packets, bytes int) {
	t.packets += packets
	t.bytes += bytes
}

// measure ends the window where it is long enough, and tells whether it did. The rate is
// of what has arrived, whether it was decoded yet or is being held back.
func (t *tuning) measure(now int64) bool {
	length := now - t.windowStart
	if length < windowShort {
		return false
	}
	average := t.average
	if t.packets > 0 {
		average = max(nlmsgHeader, t.bytes/t.packets)
	}
	packets := t.arrived / average
	if length < windowLong && packets < windowPackets {
		return false
	}
	t.rate = int(int64(packets) * int64(time.Second) / length)
	t.average = average
	t.windowStart, t.arrived, t.packets, t.bytes = now, 0, 0, 0
	return true
}

// want is the threshold that the group should have, and whether it should be prompt.
// others is the rate of the reader's other groups.
func (t *tuning) want(others int, now int64) (threshold uint32, prompt bool) {
	below := promptBelow
	if t.class == Stamped {
		below = quietBelow
	}
	if t.prompt {
		below += below / 4 // do not change over and over at the border
	}
	quiet := t.rate < below
	if t.class == Stamped {
		if others > busyRate {
			t.needed = now
		}
		if quiet && now-t.needed < quietAfter {
			return 1, true
		}
		return t.fullBatch(), false
	}
	if quiet {
		return 1, true
	}
	n := t.rate * int(batchTime/time.Microsecond) / int(time.Second/time.Microsecond)
	return min(uint32(max(1, n)), maxClocked, t.fullBatch()), false
}

// resting tells whether the group may stay as it is while nothing comes.
func (t *tuning) resting() bool { return t.fixed || t.prompt == (t.class == Clocked) }

// tune measures the groups' rates and changes settings that do not fit.
func (r *Reader) tune(now int64) {
	measured := false
	total := 0
	for i := range r.groups {
		t := &r.groups[i].tuning
		measured = t.measure(now) || measured
		total += t.rate
	}
	if !measured || r.draining {
		return
	}
	for i := range r.groups {
		g := &r.groups[i]
		t := &g.tuning
		if t.fixed {
			continue
		}
		threshold, prompt := t.want(total-t.rate, now)
		// A change of an eighth is not worth a system call.
		if prompt == t.prompt && max(threshold, t.threshold)-min(threshold, t.threshold) <= t.threshold/8 {
			continue
		}
		was := t.prompt
		t.threshold, t.prompt = threshold, prompt
		if prompt && !was {
			t.since = now
		}
		if err := t.apply(g, prompt != was); err != nil {
			r.log.Warn("change a group's batching", "group", g.Number, "err", err)
			t.fix()
		}
	}
}

// apply tells the kernel. The order keeps batches from being cut by size in between.
func (t *tuning) apply(g *group, size bool) error {
	if !size {
		return g.socket.tell(g.Number, configThresh, t.threshold)
	}
	if t.prompt {
		if err := g.socket.tell(g.Number, configThresh, t.threshold); err != nil {
			return err
		}
		return g.socket.tell(g.Number, configBuffer, smallBuffer())
	}
	if err := g.socket.tell(g.Number, configBuffer, bufferFull); err != nil {
		return err
	}
	return g.socket.tell(g.Number, configThresh, t.threshold)
}

func smallBuffer() uint32 {
	if os.Getpagesize() > 4096 {
		return bufferSmallBigPages
	}
	return bufferSmall
}

// wakeup is when tuning wants to look again although nothing comes, or UNBIND has to be
// sent again.
func (r *Reader) wakeup(now int64) int64 {
	if r.draining {
		return now + resendUnbind/2
	}
	for i := range r.groups {
		if !r.groups[i].tuning.resting() {
			return now + windowLong
		}
	}
	return never
}

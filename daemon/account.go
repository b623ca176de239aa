package daemon

import (
	"fmt"

	"capd/ctl/wire"
	"capd/nft"
	"capd/ring"
)

// settle computes the final counts. Every group has a rule of its own with a counter:
// what it counted and the reader neither received nor saw a gap for was lost at the
// tail. Packets that the engine's own sample left out have passed the log rules: they are
// taken out of matched and put to sampled_out, so that both sums of the contract hold as
// they do where the kernel samples. Without the counters nobody knows the loss at the tail:
// Lost is nil, and LostBy what is known of it.
func settle(kernel nft.Counters, known bool, groups []ring.GroupStats, live *liveCounts) (wire.Packets, []wire.Warning) {
	p := wire.Packets{Captured: live.captured.Load(), Discarded: ptr(live.discarded.Load())}
	var matched, foreign uint64
	reset := kernel.Reset
	for _, g := range groups {
		foreign += g.Foreign
		counted := kernel.Matched[g.Number]
		by := groupLoss(counted, known && !kernel.Reset, g)
		told := g.Received + by.Sequence + by.Decode
		reset = reset || counted < told
		if counted > told {
			by.Tail = counted - told
		}
		matched += max(counted, told)
		p.LostBy.Sequence += by.Sequence
		p.LostBy.Decode += by.Decode
		p.LostBy.Tail += by.Tail
	}
	p.LostBy.Spool = live.lost.Load()
	var warnings []wire.Warning
	warn := func(code, message string) { warnings = append(warnings, wire.Warning{Code: code, Message: message}) }
	if foreign > 0 {
		warn("foreign_packets", fmt.Sprintf("another rule logs to this capture's NFLOG groups: %d packets of it arrived and are left out; drop counts in the files may be of that rule's packets, the capture's own loss is by its rules' counters", foreign))
	}
	if !known {
		warn("counters_unknown", "the kernel's counters could not be read at the stop: what was matched and lost at the tail is not known")
		return p, warnings
	}
	p.Lost = ptr(p.LostBy.Sequence + p.LostBy.Tail + p.LostBy.Decode + p.LostBy.Spool)
	fillSeen(&p, matched, kernel, live.sampledOut.Load())
	if reset {
		warn("counters_reset", "somebody reset the kernel's counters while the capture ran: matched is what arrived and what is known to be lost")
	}
	return p, warnings
}

// groupLoss is what is known to be lost of one group before its last number: gaps in the
// numbers and messages that could not be read. A group's numbers are common to all rules
// that log to it. Where another rule's packets have come, too, a gap may be theirs, and
// the log rule's own counter (where it can be trusted) bounds what is this capture's.
func groupLoss(counted uint64, trusted bool, g ring.GroupStats) wire.LostBy {
	by := wire.LostBy{Sequence: g.Gaps, Decode: g.Malformed}
	if g.Foreign > 0 && trusted && counted >= g.Received {
		most := counted - g.Received
		by.Decode = min(by.Decode, most)
		by.Sequence = min(by.Sequence, most-by.Decode)
	}
	return by
}

// arrivedLoss is the loss that is known while a capture runs: that at the tail, and of
// packets still on their way, is not.
func arrivedLoss(kernel nft.Counters, known bool, groups []ring.GroupStats) wire.LostBy {
	var sum wire.LostBy
	for _, g := range groups {
		by := groupLoss(kernel.Matched[g.Number], known && !kernel.Reset, g)
		sum.Sequence += by.Sequence
		sum.Decode += by.Decode
	}
	return sum
}

// fillArrived sets what is known while a capture runs, without the kernel's counters.
func fillArrived(p *wire.Packets, by wire.LostBy, live *liveCounts) {
	by.Spool = live.lost.Load()
	p.LostBy, p.Lost = by, ptr(by.Sequence+by.Decode+by.Spool)
	p.Captured, p.Discarded = live.captured.Load(), ptr(live.discarded.Load())
}

// fillSeen sets what the kernel's counters tell. Of what the log rules have matched, the
// engine's own sample has left out that many.
func fillSeen(p *wire.Packets, matched uint64, kernel nft.Counters, leftOut uint64) {
	leftOut = min(leftOut, matched) // counters can be set back
	p.Seen = ptr(matched + kernel.SampledOut + kernel.Limited)
	p.Matched, p.SampledOut, p.Limited = ptr(matched-leftOut), ptr(kernel.SampledOut+leftOut), ptr(kernel.Limited)
}

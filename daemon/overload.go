package daemon

import (
	"capd/ctl/wire"
	"capd/nft"
)

// Codes of the warnings about packets that the rules held back.
const (
	codeOverload = "overload"
	codeStalled  = "stalled"
)

// applyRate puts the configuration's max_packet_rate in force for the captures that run.
func (d *Daemon) applyRate() {
	rate := d.config().Limits.MaxPacketRate
	unlimited, err := d.table.SetRate(rate)
	if err != nil {
		d.log.Error("running captures keep the limits.max_packet_rate of their start", "err", err)
	} else if unlimited > 0 {
		d.log.Warn("captures that began without a limit go on without: limits.max_packet_rate is for those that start from now on", "unlimited", unlimited, "max_packet_rate", rate)
	}
}

// heldBack says why packets were held back by the rules, if any were.
func heldBack(k nft.Counters) (out []wire.Warning) {
	if k.Limited > k.Stalled {
		out = append(out, wire.Warning{Code: codeOverload, Message: "more packets matched than this capture's share of the box's rate (limits.max_packet_rate, " +
			"divided among the running captures): those beyond it are counted as limited and are not in the files"})
	}
	if k.Stalled > 0 {
		out = append(out, wire.Warning{Code: codeStalled, Message: "capd did not answer for some seconds, and the kernel stopped logging by itself: " +
			"the packets of that time are counted as limited and are not in the files"})
	}
	return out
}

// watchLoad looks whether packets of running captures are held back, and ends those that
// are to end then.
func (d *Daemon) watchLoad(captures []*capture) {
	for _, c := range captures {
		r := c.runningNow()
		if r == nil {
			continue
		}
		kernel, err := d.table.Counters(c.id)
		if err != nil {
			continue // it is ending: settle tells
		}
		c.mu.Lock()
		c.warnHeldBackLocked(kernel)
		stop := kernel.Limited > kernel.Stalled && c.record.Capture.OnOverload == wire.OverloadStop
		c.mu.Unlock()
		if stop {
			r.end(stopping{reason: wire.StopOverload})
		}
	}
}

// warnHeldBackLocked notes in the record why packets are missing, once for each reason.
func (c *capture) warnHeldBackLocked(kernel nft.Counters) {
	for _, w := range heldBack(kernel) {
		if !c.warnedLocked(w.Code) {
			c.log.Warn("packets are held back", "code", w.Code, "limited", kernel.Limited)
			c.warnLocked(w)
		}
	}
}

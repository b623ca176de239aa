package daemon

import (
	"context"
	"errors"

	"capd/ctl/wire"
	"capd/nft"
)

// end asks for the capture's end. Who asks first gives the reason.
func (r *running) end(why stopping) {
	select {
	case r.stop <- why:
	default: // it is ending already
	}
}

// runningNow is nil where the capture does not run.
func (c *capture) runningNow() *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

// stopNow asks a running capture to end and waits until it has.
func (c *capture) stopNow(ctx context.Context, reason string) error {
	r := c.runningNow()
	if r == nil {
		return nil
	}
	r.end(stopping{reason: reason})
	select {
	case <-c.halted:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ending is what a capture's end has come to.
type ending struct {
	why      stopping
	problem  error      // all that went wrong; nil = it ended as it was asked to
	stopped  *wire.Time // no packet is counted after it
	kernel   nft.Counters
	counts   wire.Packets
	warnings []wire.Warning
	arrived  batches
}

// supervise waits for the capture's end and carries it out.
func (c *capture) supervise(r *running) {
	e := ending{why: <-r.stop}
	c.log.Info("capture ends", "reason", e.why.reason)
	c.takeDown(r, &e)
	c.recordEnd(r, &e)
	c.saveOrLog()
	close(c.halted)
	c.d.captureHalted(c)
}

// takeDown gives back all that the capture holds. Its counts are final then.
func (c *capture) takeDown(r *running, e *ending) {
	e.problem = e.why.err
	note := func(err error) {
		if err != nil {
			c.log.Error("stop capture", "err", err)
			e.problem = errors.Join(e.problem, err)
		}
	}
	// The exact stop: no rule leads here any more; no packet is still in the old rules;
	// everything that was logged is read; then the kernel's counters are final.
	note(c.d.table.Unhook(c.id))
	graceperiod()
	r.engine.drain()
	<-r.engine.drained
	var err error
	e.kernel, err = c.d.table.Counters(c.id)
	note(err)
	e.counts, e.warnings = settle(e.kernel, err == nil, r.reader.Stats().Groups, &r.engine.live)
	r.final <- finalCounts{tail: e.counts.LostBy.Tail}
	note(c.d.table.Remove(c.id))
	c.d.own.detach(c)
	e.stopped = now()
	if err := <-r.ended; err != nil {
		if e.why.err == nil || e.why.reason == wire.StopNoSpace {
			e.why = writeFailure(err)
		}
		note(err)
	}
	e.arrived = batchesOf(r.reader.Stats())
	note(r.reader.Close())
	c.d.shares.give(r.share)
	c.trimming.Wait()
}

// recordEnd brings the record up to date, and tells of it.
func (c *capture) recordEnd(r *running, e *ending) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := &c.record.Capture
	c.running, c.open, c.batches = nil, nil, e.arrived
	lost := rec.Packets.LostBy.Write // segmentFinished has noted it there
	rec.Packets = e.counts
	rec.Packets.Captured -= lost
	rec.Packets.LostBy.Write = lost
	if rec.Packets.Lost != nil {
		*rec.Packets.Lost += lost
	}
	rec.Bytes.Written = 0 // segmentFinished has summed up Captured
	for f := range filesHere(rec) {
		rec.Bytes.Written += f.Bytes
	}
	if rec.Removed != nil {
		rec.Bytes.Written += rec.Removed.Bytes
	}
	rec.Stopped, rec.StopReason = e.stopped, e.why.reason
	c.d.meter.halted(e.why.reason) // with the record, so that the two never disagree
	if rec.Stream {
		rec.Bytes.Captured, rec.Bytes.Written = r.engine.live.bytes.Load(), r.engine.live.written.Load()
	}
	for _, w := range e.warnings {
		c.warnLocked(w)
	}
	c.warnHeldBackLocked(e.kernel)
	if e.problem != nil {
		rec.Error = stopProblem(e.why, e.problem)
	}
	if rec.Destination != "" {
		rec.Status = wire.StatusDelivering
	} else {
		c.finishLocked()
	}
	c.tellLocked(wire.EventStopped, nil)
	c.tellEndLocked()
}

// stopProblem tells why a capture ended otherwise than it was asked to.
func stopProblem(why stopping, err error) *wire.Problem {
	if why.reason == wire.StopNoSpace {
		return &wire.Problem{Code: wire.CodeNoSpace, Message: err.Error(), Hint: noSpaceHint}
	}
	return &wire.Problem{Code: wire.CodeInternal, Message: err.Error()}
}

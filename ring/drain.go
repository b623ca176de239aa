package ring

import (
	"syscall"
	"time"
)

// unbinding is how far a group has come in leaving.
type unbinding struct {
	seq    uint32 // of the UNBIND that waits for its answer
	sentAt int64
	since  int // bytes read since Drain
}

const (
	// resendUnbind is how long an answer is waited for: it is lost where the receive buffer
	// was full when the kernel gave it.
	resendUnbind = int64(20 * time.Millisecond)
	// drainAtMost is how much is read before UNBIND from a group that will not run dry,
	// because a rule of somebody else's floods it, in receive buffers.
	drainAtMost = 2
)

// Drain begins the end, when no rule logs to the groups any more: Next hands over
// everything that the kernel and the ring still hold, in order, and then returns io.EOF.
// Each group is read until it is empty, then unbound, which makes the kernel hand over its
// last batch, and read until the kernel has confirmed that (KERNEL: the batch comes
// before the answer, net/netfilter/nfnetlink_log.c, __instance_destroy). From io.EOF on
// Stats is exact, and what a rule's counter has beyond a group's Received + Malformed +
// Gaps was lost at the tail.
func (r *Reader) Drain() {
	r.draining = true
	for i := range r.groups {
		r.groups[i].unbind.since = 0
	}
}

// leave goes on with unbinding a group whose socket is empty at the time now.
func (r *Reader) leave(g *group, now int64) error {
	switch g.state {
	case bound:
		return r.sendUnbind(g, now)
	case leaving:
		if now-g.unbind.sentAt >= resendUnbind {
			return r.sendUnbind(g, now)
		}
	case lingering:
		if now-g.unbind.sentAt >= int64(flushTimeout+settle) {
			r.closeGroup(g)
		}
	}
	return nil
}

func (r *Reader) sendUnbind(g *group, now int64) error {
	s := &g.socket
	s.seq++
	g.state, g.unbind.seq, g.unbind.sentAt = leaving, s.seq, now
	return s.conn.send(s.message.build(g.Number, nlmFlagAck, s.seq, configCmd, []byte{cmdUnbind}))
}

// answered takes an answer of the kernel to a configuration message.
func (r *Reader) answered(g *group, seq uint32, errno syscall.Errno) {
	switch {
	case g.state == leaving && seq == g.unbind.seq:
		if errno == syscall.EPERM {
			// Rights were given up since Open: the last batch comes when its time is up.
			g.state = lingering
			return
		}
		r.closeGroup(g) // unbound now, or by an earlier try whose answer was lost
	case errno != 0:
		// A setting was refused: no more are tried, and none is relied on.
		if !g.tuning.fixed {
			r.log.Warn("the kernel refuses to change a group's batching", "group", g.Number, "err", errno)
		}
		g.tuning.fix()
	}
}

func (r *Reader) closeGroup(g *group) {
	g.state = closed
	g.account.finish()
	g.dirty = true
}

// over tells whether everything has been read and handed over.
func (r *Reader) over() bool {
	if len(r.heap) > 0 || r.run != nil {
		return false
	}
	for i := range r.groups {
		if r.groups[i].state != closed {
			return false
		}
	}
	for i := range r.groups {
		r.groups[i].account.finish()
		r.groups[i].publish()
	}
	return true
}

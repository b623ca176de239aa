package ring

import (
	"testing"
	"time"
)

// TestTuning watches the settings that a group gets as its rate changes.
func TestTuning(t *testing.T) {
	setting := func(c *fakeConn, attr uint16) (last uint32) {
		for _, s := range c.sent {
			if s.attr == attr {
				last = s.value
			}
		}
		return last
	}
	run := func(r *Reader, f *fakeTime, c *fakeConn, seq *uint32, rate, milliseconds int, make func(n int, seq uint32) []byte) {
		var p Packet
		for range milliseconds {
			if n := rate / 1000; n > 0 {
				c.queue = append(c.queue, make(n, *seq))
				*seq += uint32(n)
			}
			r.SetDeadline(r.base.Add(time.Duration(f.now) + time.Millisecond))
			for next(r, &p) == nil {
			}
		}
	}
	t.Run("clocked", func(t *testing.T) {
		r, conns, f := newFake(t, Config{Clocked: 1})
		batch := func(n int, seq uint32) []byte {
			var m [][]byte
			for i := range n {
				m = append(m, clocked(seq+uint32(i), "payload of a clocked packet"))
			}
			return datagram(m...)
		}
		var seq uint32
		if tn := &r.groups[0].tuning; !tn.prompt || tn.threshold != 1 {
			t.Errorf("a clocked group begins with %+v", tn)
		}
		run(r, f, conns[0], &seq, 5000, 300, batch)
		if tn := &r.groups[0].tuning; !tn.prompt || tn.threshold != 1 {
			t.Errorf("at 5000/s: %+v", tn)
		}
		run(r, f, conns[0], &seq, 40_000, 300, batch)
		if got := setting(conns[0], configThresh); got < 60 || got > 100 {
			t.Errorf("at 40000/s the threshold is %d, want about 80", got)
		}
		if got := setting(conns[0], configBuffer); got != bufferFull {
			t.Errorf("at 40000/s the buffer is %d", got)
		}
		run(r, f, conns[0], &seq, 200_000, 100, batch)
		if got := setting(conns[0], configThresh); got < maxClocked*7/8 || got > maxClocked {
			t.Errorf("at 200000/s the threshold is %d, want about %d", got, maxClocked)
		}
		run(r, f, conns[0], &seq, 0, 500, nil)
		if got := setting(conns[0], configThresh); got != 1 {
			t.Errorf("when all is quiet the threshold is %d, want 1", got)
		}
		if got := setting(conns[0], configBuffer); got != smallBuffer() {
			t.Errorf("when all is quiet the buffer is %d", got)
		}
	})
	t.Run("stamped", func(t *testing.T) {
		r, conns, f := newFake(t, Config{Stamped: 2})
		batch := func(n int, seq uint32) []byte { return synthBatch(n, seq, f.wall, 60) }
		var seq uint32
		run(r, f, conns[0], &seq, 200_000, 200, batch)
		full := setting(conns[0], configThresh)
		if full < 250 || full > 340 {
			t.Errorf("for 60-byte frames the threshold is %d", full)
		}
		if got := setting(conns[1], configThresh); got != 1 || !r.groups[1].tuning.prompt {
			t.Errorf("the silent group has threshold %d", got)
		}
		run(r, f, conns[0], &seq, 0, 500, nil)
		if got := setting(conns[1], configThresh); got < 30 {
			t.Errorf("after the flood the other group still has threshold %d", got)
		}
		// Rights given up: an error comes back, and nothing is relied on any more.
		conns[1].queue = append(conns[1].queue, netlinkMessage(nlmsgError, 999, host.AppendUint32(nil, uint32(0xffffffff))))
		run(r, f, conns[0], &seq, 200_000, 100, batch)
		if tn := &r.groups[1].tuning; !tn.fixed || tn.lag(f.now) < int64(flushTimeout) {
			t.Errorf("after a refusal: %+v", tn)
		}
	})
}

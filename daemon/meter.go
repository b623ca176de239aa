package daemon

import (
	"sync"
	"time"

	"capd/ctl/wire"
	"capd/daemon/deliver"
	"capd/daemon/metrics"
	"capd/ring"
)

// meter keeps what the metrics say of the time since the daemon started and no capture
// can tell any more. The zero value is ready.
type meter struct {
	mu           sync.Mutex
	forgotten    totals                    // of captures that were removed
	ended        map[string]uint64         // captures by stop reason
	destinations map[string]*deliveryMeter // by name
	sending      map[sendingKey]time.Time  // attempts under way, since when
}

type sendingKey struct{ capture, file string }

// deliveryMeter counts attempts to deliver files to one destination.
type deliveryMeter struct {
	attempts, failures, files, bytes uint64
	seconds                          *metrics.Histogram // of attempts that succeeded
}

// deliverySeconds are the bounds of that histogram, in seconds: from a small file on the
// local network to a full segment over a slow line.
func deliverySeconds() *metrics.Histogram {
	return metrics.NewHistogram(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
}

// destination gives the meter of a destination, under mu.
func (m *meter) destination(name string) *deliveryMeter {
	if m.destinations == nil {
		m.destinations = map[string]*deliveryMeter{}
	}
	dm := m.destinations[name]
	if dm == nil {
		dm = &deliveryMeter{seconds: deliverySeconds()}
		m.destinations[name] = dm
	}
	return dm
}

// delivery counts what became of one attempt.
func (m *meter) delivery(destination, capture, file string, u deliver.Update) {
	m.mu.Lock()
	defer m.mu.Unlock()
	dm, key := m.destination(destination), sendingKey{capture, file}
	begun, underWay := m.sending[key]
	switch u.State {
	case deliver.StateSending:
		if m.sending == nil {
			m.sending = map[sendingKey]time.Time{}
		}
		m.sending[key] = time.Now()
		dm.attempts++
		return
	case deliver.StateDelivered:
		dm.files++
		dm.bytes += uint64(u.Result.Bytes)
		if underWay {
			dm.seconds.Observe(time.Since(begun).Seconds())
		}
	case deliver.StateWaiting, deliver.StateFailed:
		dm.failures++
	}
	delete(m.sending, key)
}

// halted counts a capture that has ended.
func (m *meter) halted(reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ended == nil {
		m.ended = map[string]uint64{}
	}
	m.ended[reason]++
}

// forget keeps the counts of a capture that is removed.
func (m *meter) forget(c wire.Capture, b batches) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten.add(c, b)
}

// batches is how packets arrived: in datagrams, each a batch of the kernel's.
type batches struct {
	packets uint64
	sizes   [ring.BatchSizes]uint64 // datagrams by how many packets they held
}

func batchesOf(s ring.Stats) (b batches) {
	for _, g := range s.Groups {
		b.packets += g.Received + g.Foreign + g.Malformed
		for i, n := range g.Batches {
			b.sizes[i] += n
		}
	}
	return b
}

// batchBounds are the upper bounds of the sizes that ring tells apart: powers of two.
func batchBounds() []float64 {
	bounds := make([]float64, ring.BatchSizes-1)
	for i := range bounds {
		bounds[i] = float64(uint64(1) << i)
	}
	return bounds
}

// totals is what captures have counted together.
type totals struct {
	seen, sampledOut, limited, matched, captured, discarded uint64
	lost                                                    wire.LostBy
	bytes, files                                            uint64
	batches                                                 batches
}

func (t *totals) add(c wire.Capture, b batches) {
	p := c.Packets
	for _, n := range []struct {
		to   *uint64
		from *uint64
	}{{&t.seen, p.Seen}, {&t.sampledOut, p.SampledOut}, {&t.limited, p.Limited}, {&t.matched, p.Matched}, {&t.discarded, p.Discarded}} {
		if n.from != nil {
			*n.to += *n.from
		}
	}
	t.captured += p.Captured
	t.lost.Sequence += p.LostBy.Sequence
	t.lost.Tail += p.LostBy.Tail
	t.lost.Decode += p.LostBy.Decode
	t.lost.Write += p.LostBy.Write
	t.lost.Spool += p.LostBy.Spool
	t.bytes += c.Bytes.Captured
	for _, f := range c.Files {
		if f.Status != wire.FileOpen && f.Status != wire.FileRemoved {
			t.files += f.Bytes
		}
	}
	if c.Removed != nil {
		t.files += c.Removed.Bytes
	}
	t.batches.packets += b.packets
	for i, n := range b.sizes {
		t.batches.sizes[i] += n
	}
}

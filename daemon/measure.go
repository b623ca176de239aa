package daemon

import (
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"capd/ctl/wire"
	"capd/daemon/metrics"
)

// Metrics gives everything that is measured, in Prometheus' text format (api.Daemon).
// Counters count since this daemon started, over captures that are removed, too. They are
// of the box as a whole: a capture's own counts are in its record, where no label grows
// with the number of captures.
func (d *Daemon) Metrics() []byte {
	d.mu.Lock()
	captures := d.allLocked()
	d.meter.mu.Lock()
	sum := d.meter.forgotten // with the list, so that none is counted twice or not at all
	d.meter.mu.Unlock()
	d.mu.Unlock()

	states := map[string]uint64{wire.StatusPending: 0, wire.StatusRunning: 0, wire.StatusDelivering: 0, wire.StatusComplete: 0, wire.StatusFailed: 0}
	waiting := map[string]uint64{}
	var held, memory int
	for _, c := range captures {
		snap := c.snapshot()
		states[snap.Status]++
		for _, f := range snap.Files {
			if snap.Destination != "" && here(&f) {
				waiting[snap.Destination]++
			}
		}
		batches, used, size := c.measured()
		held, memory = held+used, memory+size
		if c.began {
			sum.add(snap, batches)
		}
	}

	p := new(metrics.Page)
	p.Family("capd_build_info", metrics.Gauge, "Version of capd, Go and the kernel; always 1.")
	p.Count(1, "version", d.version, "goversion", runtime.Version(), "kernel", d.kernel)
	p.Family("capd_captures", metrics.Gauge, "Captures on this box by status.")
	for _, state := range slices.Sorted(maps.Keys(states)) {
		p.Count(states[state], "status", state)
	}
	d.measureEnds(p)
	measurePackets(p, &sum)
	p.One("capd_ring_used_bytes", metrics.Gauge, "Ring memory of running captures that holds packets now.", float64(held))
	p.One("capd_ring_size_bytes", metrics.Gauge, "Ring memory of running captures.", float64(memory))
	d.measureSpool(p)
	d.measureDeliveries(p, waiting)
	measureProcess(p)
	return p.Bytes()
}

// measured gives how a capture's packets arrived and, while it runs, how much of its ring
// is in use, in bytes.
func (c *capture) measured() (b batches, held, memory int) {
	c.mu.Lock()
	r, b := c.running, c.batches
	c.mu.Unlock()
	if r == nil {
		return b, 0, 0
	}
	stats := r.reader.Stats()
	return batchesOf(stats), stats.Held, stats.Memory
}

func (d *Daemon) measureEnds(p *metrics.Page) {
	d.meter.mu.Lock()
	ended := maps.Clone(d.meter.ended)
	d.meter.mu.Unlock()
	p.Family("capd_captures_ended_total", metrics.Counter, "Captures that ended, by the reason why.")
	for _, reason := range []string{wire.StopTimeLimit, wire.StopPacketLimit, wire.StopByteLimit, wire.StopRequested, wire.StopOverload,
		wire.StopNoSpace, wire.StopShutdown, wire.StopInterrupted, wire.StopError} {
		p.Count(ended[reason], "reason", reason)
	}
}

func measurePackets(p *metrics.Page, sum *totals) {
	for _, m := range []struct {
		name, help string
		value      uint64
	}{
		{"capd_packets_seen_total", "Packets that matched a capture's filter.", sum.seen},
		{"capd_packets_sampled_out_total", "Packets left out by sampling.", sum.sampledOut},
		{"capd_packets_limited_total", "Packets held back by the rate guard or the dead-man switch.", sum.limited},
		{"capd_packets_matched_total", "Packets that log rules handed over, by the kernel's counters.", sum.matched},
		{"capd_packets_captured_total", "Packets in files and streams.", sum.captured},
		{"capd_packets_discarded_total", "Packets that arrived after a limit was reached, or that user space refused.", sum.discarded},
	} {
		p.One(m.name, metrics.Counter, m.help, float64(m.value))
	}
	p.Family("capd_packets_lost_total", metrics.Counter, "Packets lost: gaps in the kernel's numbering, after the last number, malformed, not written, no room in memory.")
	for _, m := range []struct {
		cause string
		value uint64
	}{{"sequence", sum.lost.Sequence}, {"tail", sum.lost.Tail}, {"decode", sum.lost.Decode}, {"write", sum.lost.Write}, {"spool", sum.lost.Spool}} {
		p.Count(m.value, "cause", m.cause)
	}
	p.One("capd_captured_bytes_total", metrics.Counter, "Bytes of captured packets.", float64(sum.bytes))
	p.One("capd_file_bytes_total", metrics.Counter, "Bytes of finished files, as they are delivered.", float64(sum.files))
	p.HistogramFamily("capd_batch_packets", "Packets in each datagram that the kernel handed over.")
	p.Buckets(batchBounds(), sum.batches.sizes[:], float64(sum.batches.packets))
}

func (d *Daemon) measureSpool(p *metrics.Page) {
	p.One("capd_spool_used_bytes", metrics.Gauge, "Bytes of the spool that are in use or granted to running captures.", float64(d.spool.Used()))
	total, free, err := d.spool.Space()
	if err != nil {
		d.log.Warn("the spool's file system cannot be measured", "err", err)
		return
	}
	p.One("capd_spool_size_bytes", metrics.Gauge, "Bytes that the spool may take (limits.spool_size).", float64(d.config().Limits.SpoolSize.Of(wire.Size(total))))
	p.One("capd_spool_filesystem_free_bytes", metrics.Gauge, "Bytes free in the spool's file system.", float64(free))
}

// measureDeliveries writes of each destination that is configured or was used.
func (d *Daemon) measureDeliveries(p *metrics.Page, waiting map[string]uint64) {
	configured := destinationNames(d.config())
	d.meter.mu.Lock()
	defer d.meter.mu.Unlock()
	for _, name := range configured {
		d.meter.destination(name)
	}
	names := slices.Sorted(maps.Keys(d.meter.destinations))
	for _, m := range []struct {
		name, help string
		kind       metrics.Kind
		value      func(string, *deliveryMeter) uint64
	}{
		{"capd_delivery_attempts_total", "Attempts to deliver a file.", metrics.Counter, func(_ string, m *deliveryMeter) uint64 { return m.attempts }},
		{"capd_delivery_failures_total", "Attempts to deliver a file that failed.", metrics.Counter, func(_ string, m *deliveryMeter) uint64 { return m.failures }},
		{"capd_delivered_files_total", "Files delivered and verified.", metrics.Counter, func(_ string, m *deliveryMeter) uint64 { return m.files }},
		{"capd_delivered_bytes_total", "Bytes of files delivered and verified.", metrics.Counter, func(_ string, m *deliveryMeter) uint64 { return m.bytes }},
		{"capd_delivery_pending_files", "Finished files that are not delivered yet.", metrics.Gauge, func(name string, _ *deliveryMeter) uint64 { return waiting[name] }},
	} {
		p.Family(m.name, m.kind, m.help)
		for _, name := range names {
			p.Count(m.value(name, d.meter.destinations[name]), "destination", name)
		}
	}
	p.HistogramFamily("capd_delivery_duration_seconds", "Time of an attempt that delivered and verified its file.")
	for _, name := range names {
		p.Histogram(d.meter.destinations[name].seconds, "destination", name)
	}
}

// measureProcess writes the metrics that every process has, under the names that every
// client library gives them. What /proc does not tell is left out.
func measureProcess(p *metrics.Page) {
	var usage unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &usage) == nil {
		seconds := float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
		p.One("process_cpu_seconds_total", metrics.Counter, "Total user and system CPU time spent in seconds.", seconds)
	}
	if text, err := os.ReadFile("/proc/self/statm"); err == nil {
		if fields := strings.Fields(string(text)); len(fields) > 1 {
			if pages, err := strconv.ParseUint(fields[1], 10, 64); err == nil {
				p.One("process_resident_memory_bytes", metrics.Gauge, "Resident memory size in bytes.", float64(pages)*float64(os.Getpagesize()))
			}
		}
	}
	if open, err := os.ReadDir("/proc/self/fd"); err == nil {
		p.One("process_open_fds", metrics.Gauge, "Number of open file descriptors.", float64(len(open)-1)) // without the folder itself
	}
	p.One("go_goroutines", metrics.Gauge, "Number of goroutines that currently exist.", float64(runtime.NumGoroutine()))
}

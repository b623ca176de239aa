package daemon

import (
	"math/rand/v2"
	"slices"
	"testing"

	"capd/ctl/wire"
	"capd/ring"
)

// A packet costs no allocation between ring and disk, neither in the engine nor in the
// spool's goroutine.
func TestEngineAllocatesNothingPerPacket(t *testing.T) {
	packets := make([]ring.Packet, 64)
	for i := range packets {
		packets[i] = testPacket(i, 60+i%3*600, i%4 >= 2)
		if i%7 == 0 {
			packets[i].Dropped = 3
		}
	}
	for _, format := range []string{wire.FormatPcapng, wire.FormatPcap} {
		t.Run(format, func(t *testing.T) {
			s, allocatesNothing := steady(t, packets, 250_000)
			runEngine(t, wire.StartRequest{Format: format, SegmentSize: ptr(wire.Size(1e9))}, s, 0)
			allocatesNothing()
		})
	}
}

// mixed makes packets of many sizes on both interfaces and in both classes, so that new
// interfaces appear along the way.
func mixed(count int) []ring.Packet {
	rnd := rand.New(rand.NewPCG(3, 4))
	packets := make([]ring.Packet, count)
	for i := range packets {
		packets[i] = testPacket(i, minPacket+rnd.IntN(1500), i > count/3 && i%3 == 0)
		if i < count/2 {
			packets[i].In &^= 2 // the second interface comes late
			if packets[i].In == 0 && packets[i].Out == 0 {
				packets[i].In = 1
			}
		}
		packets[i].Group = i % 4
		if rnd.IntN(5) == 0 {
			packets[i].Dropped = uint64(rnd.IntN(100))
		}
	}
	return packets
}

// lengths gives, for each number of packets, the length of a file that holds the first so
// many: what the limits are held against.
func lengths(t *testing.T, format string, packets []ring.Packet) []int64 {
	t.Helper()
	out := make([]int64, len(packets)+1)
	for n := range out {
		o := runEngine(t, wire.StartRequest{Format: format}, listOf(packets[:n]), 0)
		if len(o.sizes) != 1 || o.why != "" {
			t.Fatalf("%d files, %s", len(o.sizes), o.why)
		}
		out[n] = o.sizes[0]
	}
	return out
}

func firstNumbers(n int) []uint64 {
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(i)
	}
	return out
}

// Limits hold to the packet and to the byte.
func TestEngineLimitsAreExact(t *testing.T) {
	const all = 24
	packets := mixed(all)
	for _, format := range []string{wire.FormatPcapng, wire.FormatPcap} {
		length := lengths(t, format, packets)
		t.Run(format+" packets", func(t *testing.T) {
			for _, limit := range []uint64{1, 2, all / 2, all - 1, all, all + 1} {
				o := runEngine(t, wire.StartRequest{Format: format, PacketLimit: &limit}, listOf(packets), 0)
				want := int(min(limit, all))
				if got := readBack(t, o, format); !slices.Equal(got.numbers, firstNumbers(want)) || (o.why == wire.StopPacketLimit) != (limit <= all) {
					t.Errorf("limit %d: packets %v, %s", limit, got.numbers, o.why)
				}
				if o.bytes != length[want] {
					t.Errorf("limit %d: %d bytes, want %d", limit, o.bytes, length[want])
				}
			}
		})
		t.Run(format+" bytes", func(t *testing.T) {
			for n := 1; n <= len(packets); n++ {
				for _, off := range []int64{-1, 0, 1} {
					limit := wire.Size(length[n] + off)
					want := n
					if off < 0 {
						want--
					}
					o := runEngine(t, wire.StartRequest{Format: format, ByteLimit: &limit}, listOf(packets), 0)
					got := readBack(t, o, format)
					if !slices.Equal(got.numbers, firstNumbers(want)) || o.bytes != length[want] {
						t.Errorf("limit %d: packets %v in %d bytes, want %d in %d", limit, got.numbers, o.bytes, want, length[want])
					}
					if (o.why == wire.StopByteLimit) != (want < len(packets)) {
						t.Errorf("limit %d with %d packets: %q", limit, want, o.why)
					}
				}
			}
		})
		t.Run(format+" rotation", func(t *testing.T) {
			for n := 1; n < len(packets); n++ {
				for _, off := range []int64{-1, 0, 1} {
					size := wire.Size(length[n] + off)
					first := n
					if off < 0 {
						first = max(1, n-1) // one packet stands in a file even if it is too long for it
					}
					o := runEngine(t, wire.StartRequest{Format: format, SegmentSize: &size}, listOf(packets), 7)
					got := readBack(t, o, format)
					if !slices.Equal(got.numbers, firstNumbers(len(packets))) || got.perFile[0] != uint64(first) || o.why != "" {
						t.Errorf("segments of %d: packets %v, %v in the files, want %d in the first", size, got.numbers, got.perFile, first)
					}
					for i, bytes := range o.sizes {
						if bytes > int64(size) && got.perFile[i] > 1 {
							t.Errorf("segments of %d: file %d has %d bytes", size, i, bytes)
						}
					}
				}
			}
		})
		// Both at once: never more bytes than allowed, and none less than the next packet and
		// what belongs to a new file need.
		t.Run(format+" bytes over segments", func(t *testing.T) {
			for _, size := range []wire.Size{3000, 7_777} {
				whole := runEngine(t, wire.StartRequest{Format: format, SegmentSize: &size}, listOf(packets), 0)
				for limit := wire.Size(4096); int64(limit) < whole.bytes+500; limit += 197 {
					o := runEngine(t, wire.StartRequest{Format: format, SegmentSize: &size, ByteLimit: &limit}, listOf(packets), 0)
					got := readBack(t, o, format)
					if o.bytes > int64(limit) || !slices.Equal(got.numbers, firstNumbers(len(got.numbers))) {
						t.Errorf("limit %d, segments of %d: %d bytes, packets %v", limit, size, o.bytes, got.numbers)
					}
					for i, bytes := range o.sizes {
						if bytes > int64(size) && got.perFile[i] > 1 {
							t.Errorf("limit %d, segments of %d: file %d has %d bytes", limit, size, i, bytes)
						}
					}
					if int64(limit) >= whole.bytes && (len(got.numbers) < len(packets) || o.why != "") {
						t.Errorf("limit %d, segments of %d: %d packets, %s, although all need %d bytes", limit, size, len(got.numbers), o.why, whole.bytes)
					}
					if o.why == wire.StopByteLimit && o.bytes < int64(limit)-int64(len(packets[len(got.numbers)].Payload))-1500 {
						t.Errorf("limit %d, segments of %d: ended at %d", limit, size, o.bytes)
					}
				}
			}
		})
	}
}

// What was lost stands in the files' statistics, whatever became of the packet after it.
func TestEngineForgetsNoLoss(t *testing.T) {
	list := func(n int, dropped map[int]uint64) []ring.Packet {
		out := make([]ring.Packet, n)
		for i := range out {
			out[i] = testPacket(i, 500, i%4 == 3)
			out[i].Dropped = dropped[i]
		}
		return out
	}
	raw := wire.StartRequest{LinkType: wire.LinkRaw}
	with := func(r wire.StartRequest, f func(*wire.StartRequest)) wire.StartRequest { f(&r); return r }
	for name, c := range map[string]struct {
		request  wire.StartRequest
		packets  []ring.Packet
		tail     uint64
		captured int
		lost     uint64
		told     uint64 // epb_dropcount, where it happened
	}{
		"none":             {packets: list(10, nil), captured: 10},
		"no packet at all": {},
		"only the tail":    {tail: 9, lost: 9},
		"on packets":       {packets: list(10, map[int]uint64{0: 1, 5: 20, 9: 300}), captured: 10, lost: 321, told: 321},
		"and at the tail":  {packets: list(10, map[int]uint64{3: 5}), tail: 1 << 40, captured: 10, lost: 1<<40 + 5, told: 5},
		"before a packet that the link type cannot tell": {request: raw, packets: slices.Concat(list(3, nil), []ring.Packet{arp(7)}, list(2, nil)),
			captured: 5, lost: 7},
		"only before such a packet": {request: raw, packets: []ring.Packet{arp(7), arp(8)}, tail: 2, lost: 17},
		"before such a packet at the end": {request: raw, packets: slices.Concat(list(3, map[int]uint64{2: 1}), []ring.Packet{arp(7)}),
			captured: 3, lost: 8, told: 1},
		"behind the packet limit": {request: wire.StartRequest{PacketLimit: ptr(uint64(4))}, packets: list(10, map[int]uint64{1: 1, 4: 10, 9: 100}),
			tail: 1000, captured: 4, lost: 1111, told: 1},
		"on the packet that reaches the limit": {request: wire.StartRequest{PacketLimit: ptr(uint64(4))}, packets: list(10, map[int]uint64{3: 10}),
			captured: 4, lost: 10, told: 10},
		"on the packet that does not fit": {request: wire.StartRequest{ByteLimit: ptr(wire.Size(2500))}, packets: list(10, map[int]uint64{0: 1, 2: 5, 3: 9, 4: 9, 5: 9, 6: 9}),
			captured: -1, lost: 42, told: 0},
		"at a new segment": {request: wire.StartRequest{SegmentSize: ptr(wire.Size(1500))}, packets: list(20, map[int]uint64{0: 1, 1: 2, 2: 4, 3: 8, 10: 100, 19: 1000}),
			tail: 5, captured: 20, lost: 1120, told: 1115},
		"before a discarded packet and a new segment": {request: with(raw, func(r *wire.StartRequest) { r.SegmentSize = ptr(wire.Size(1500)) }),
			packets:  slices.Concat(list(1, nil), []ring.Packet{arp(7)}, list(2, nil), []ring.Packet{arp(9)}, list(8, nil), []ring.Packet{arp(11)}),
			captured: 11, lost: 27},
	} {
		t.Run(name, func(t *testing.T) {
			o := runEngine(t, c.request, listOf(c.packets), c.tail)
			got := readBack(t, o, wire.FormatPcapng)
			if c.captured < 0 {
				c.captured = len(got.numbers)
				for _, p := range c.packets[:c.captured] {
					c.told += p.Dropped
				}
				if c.captured == 0 || c.captured == len(c.packets) {
					t.Errorf("%d packets fit", c.captured)
				}
			}
			if len(got.numbers) != c.captured || o.engine.count.captured != uint64(c.captured) {
				t.Errorf("%d packets are in the files, the engine says %d, want %d", len(got.numbers), o.engine.count.captured, c.captured)
			}
			if got.ifDropped != c.lost || got.osDropped != c.lost || got.received != c.lost+uint64(c.captured) {
				t.Errorf("the statistics tell of %d and %d lost of %d received, want %d of %d", got.ifDropped, got.osDropped, got.received, c.lost, c.lost+uint64(c.captured))
			}
			if got.dropped != c.told {
				t.Errorf("packets tell of %d lost before them, want %d", got.dropped, c.told)
			}
		})
	}
}

// A capture with nothing in it is a file that every reader takes.
func TestEngineEmptyFiles(t *testing.T) {
	for _, format := range []string{wire.FormatPcapng, wire.FormatPcap} {
		o := runEngine(t, wire.StartRequest{Format: format}, listOf(nil), 3)
		got := readBack(t, o, format)
		if len(o.files) != 1 || len(got.numbers) != 0 || (format == wire.FormatPcapng && got.osDropped != 3) {
			t.Errorf("%s: %d files, %+v", format, len(o.files), got)
		}
	}
}

// When the time is up, what was read until then is in the file and the rest is counted.
func TestEngineTimeLimit(t *testing.T) {
	packets := mixed(3000)
	s := listOf(packets)
	s.at = func(i int) {
		if s.deadline.IsZero() {
			t.Fatal("the source was given no deadline")
		}
	}
	o := runEngine(t, wire.StartRequest{TimeLimit: ptr(wire.Seconds(1))}, s, 0) // runs out in the past: see runEngine
	got := readBack(t, o, wire.FormatPcapng)
	// The fake source says that the deadline has come before packets 500, 1500 and 2500.
	if o.why != wire.StopTimeLimit || !slices.Equal(got.numbers, firstNumbers(500)) || o.engine.count.discarded != 2500 {
		t.Errorf("%q with %d packets, %d discarded", o.why, len(got.numbers), o.engine.count.discarded)
	}
}

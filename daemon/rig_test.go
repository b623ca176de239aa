package daemon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"capd/ctl/wire"
	"capd/daemon/config"
	"capd/daemon/spool"
	"capd/ring"
	"capd/ring/pcapng"
)

// fakeSource hands out packets that were made beforehand and then ends, as a drained
// ring.Reader does. In between it says that the deadline has come, and that it was woken.
type fakeSource struct {
	packets  int // how many to hand out
	packet   func(i int) *ring.Packet
	at       func(i int)                           // told before each packet
	begin    func(e *engine, live func() *encoder) // told before the engine runs
	next     int
	deadline time.Time
	idle     bool // the deadline was told before this packet
	woken    bool

	packetAtHand ring.Packet
}

var _ source = (*fakeSource)(nil)

func (s *fakeSource) Next() (*ring.Packet, error) {
	switch {
	case s.next%1000 == 500 && !s.idle:
		s.idle = true
		return nil, os.ErrDeadlineExceeded
	case s.next%1000 == 700 && !s.woken:
		s.woken = true
		return nil, ring.ErrWoken
	case s.next == s.packets:
		return nil, io.EOF
	}
	s.idle, s.woken = false, false
	if s.at != nil {
		s.at(s.next)
	}
	s.packetAtHand = *s.packet(s.next)
	s.next++
	return &s.packetAtHand, nil
}

func (s *fakeSource) SetDeadline(t time.Time) { s.deadline = t }
func (s *fakeSource) Wake()                   {}
func (s *fakeSource) Drain()                  {}

func listOf(packets []ring.Packet) *fakeSource {
	return &fakeSource{packets: len(packets), packet: func(i int) *ring.Packet { return &packets[i] }}
}

// steady gives a source of the packets over and over: some to warm up, then count more. Once
// it has run, allocatesNothing holds these to no allocation each.
func steady(t *testing.T, packets []ring.Packet, count int) (s *fakeSource, allocatesNothing func()) {
	const warm = 10_000
	var before, after runtime.MemStats
	s = &fakeSource{packets: warm + count, packet: func(i int) *ring.Packet { return &packets[i%len(packets)] }}
	s.at = func(i int) {
		switch i {
		case warm:
			runtime.ReadMemStats(&before)
		case warm + count - 1:
			runtime.ReadMemStats(&after)
		}
	}
	return s, func() {
		t.Helper()
		// Flushing once a second, and Go's own housekeeping, may allocate now and then.
		if n := after.Mallocs - before.Mallocs; n > uint64(count)/1000 {
			t.Errorf("%d allocations in %d packets", n, count)
		}
	}
}

// testPacket makes packet number i: UDP over IPv4 with size bytes from the IP header on,
// which came in at prerouting by interface 1 or 2 (Stamped groups), or goes out at output
// by one of them (Clocked groups). Its number stands in its last eight bytes.
func testPacket(i, size int, out bool) ring.Packet {
	b := make([]byte, size)
	b[0], b[8], b[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(b[2:], uint16(size))
	binary.BigEndian.PutUint64(b[size-8:], uint64(i))
	p := ring.Packet{Time: 1_700_000_000_000_000_000 + int64(i)*1000, Payload: b, Family: ring.FamilyIPv4, Protocol: 0x0800}
	device := uint32(1 + i%2)
	if out {
		p.Hook, p.Out, p.Group = ring.HookOutput, device, 2+i%2
		return p
	}
	p.Hook, p.In, p.Group, p.KernelTime = ring.HookPrerouting, device, i%2, true
	p.HWHeader, p.HWType, p.HasHWType = []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}, 1, true
	return p
}

const minPacket = 28 + 8

// arp is what a file of raw IP cannot hold.
func arp(dropped uint64) ring.Packet {
	return ring.Packet{Time: 1_700_000_000_000_000_000, Payload: make([]byte, 28), Family: ring.FamilyNetdev, Hook: ring.HookNetdevIngress,
		Protocol: 0x0806, In: 1, KernelTime: true, Dropped: dropped}
}

// outcome is what became of a capture by the engine alone.
type outcome struct {
	engine *engine
	why    string // "" = nothing asked for its end
	files  [][]byte
	sizes  []int64
	bytes  int64
}

// rig is an engine with what drives it.
type rig struct {
	*engine
	stop  <-chan stopping
	final chan<- finalCounts
	along func() *encoder // a new one for who reads along
}

// newEngine makes an engine with a real encoder for packets from s. options are the spool
// writer's, but for what follows from the request; the memory is as large as it says.
func newEngine(t testing.TB, req wire.StartRequest, s source, memory int, options spool.Options) rig {
	t.Helper()
	cfg := config.Default()
	cfg.Limits.DefaultByteLimit = 10e9
	if req.ByteLimit != nil {
		cfg.Limits.MaxByteLimit = max(cfg.Limits.MaxByteLimit, *req.ByteLimit)
	}
	p, err := newPlan(req, cfg, &links{})
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{kernel: "Linux test", version: "test", host: "box"}
	d.links.known = map[uint32]link{1: {"eth0", 1}, 2: {"eth1", 1}}
	blocks, err := ring.Alloc(memory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(blocks.Free)
	options.Segment, options.Memory, options.SegmentSize = segments(nil, p.request.Format), blocks.Bytes(), int64(*p.request.SegmentSize)
	options.Finished, options.Repair = func(spool.Segment) {}, repairer(p.request.Format)
	out, err := spool.NewWriter(options)
	if err != nil {
		t.Fatal(err)
	}
	const id = "0123456789abcdef0123456789abcdef"
	stop, final := make(chan stopping, 1), make(chan finalCounts, 1)
	e := &engine{
		source: s, out: out, enc: newEncoder(id, p, d), sel: p.selection(&d.links),
		packetLimit: *p.request.PacketLimit, byteLimit: int64(*p.request.ByteLimit),
		segmentSize: int64(*p.request.SegmentSize), segmentTime: p.request.SegmentTime.Duration(),
		stop: stop, opened: func(string) {}, final: final, drained: make(chan struct{}),
	}
	return rig{e, stop, final, func() *encoder { return newStreamEncoder(id, p, d) }}
}

// runEngine sends packets through an engine with a real encoder and a real spool writer.
func runEngine(t *testing.T, req wire.StartRequest, s *fakeSource, tail uint64) outcome {
	t.Helper()
	dir := t.TempDir()
	var names []string
	r := newEngine(t, req, s, 512<<10, spool.Options{Create: spool.InFolder(dir)}) // small blocks, which records cross
	e := r.engine
	e.opened = func(name string) { names = append(names, name) }
	if req.TimeLimit != nil {
		e.timeLimit.Store(ptr(time.Now())) // an engine that is asked for a time limit has reached it
	}
	r.final <- finalCounts{tail: tail}
	if s.begin != nil {
		s.begin(e, r.along)
	}
	if err := e.run(); err != nil {
		t.Fatal(err)
	}
	o := outcome{engine: e}
	select {
	case why := <-r.stop:
		if o.why = why.reason; why.err != nil {
			t.Fatal(why.err)
		}
	default:
	}
	for _, name := range names {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		o.files, o.sizes = append(o.files, data), append(o.sizes, int64(len(data)))
		o.bytes += int64(len(data))
	}
	if live := &e.live; live.captured.Load()+live.discarded.Load()+live.sampledOut.Load() != uint64(s.packets) || live.written.Load() != uint64(o.bytes) {
		t.Errorf("%d packets came; the engine tells of %d captured, %d discarded, %d bytes of %d in the files",
			s.packets, live.captured.Load(), live.discarded.Load(), live.written.Load(), o.bytes)
	}
	return o
}

// told is what a capture's files say of themselves.
type told struct {
	numbers []uint64 // of the packets, in the files' order
	perFile []uint64 // packets in each
	dropped uint64   // sum of epb_dropcount
	// Sums over the interface statistics.
	received, ifDropped, osDropped, delivered uint64
}

func readBack(t *testing.T, o outcome, format string) (all told) {
	t.Helper()
	for n, data := range o.files {
		packets := uint64(0)
		note := func(p pcapng.Packet) {
			packets++
			all.numbers = append(all.numbers, binary.BigEndian.Uint64(p.Body[len(p.Body)-8:]))
			all.dropped += p.Dropped
		}
		if format == wire.FormatPcap {
			r, err := pcapng.NewClassicReader(bytes.NewReader(data))
			for err == nil {
				var p pcapng.Packet
				if p, err = r.Next(); err == nil {
					note(p)
				}
			}
			if !errors.Is(err, io.EOF) {
				t.Fatalf("file %d: %v", n, err)
			}
		} else {
			delivered := uint64(0)
			readFile(t, data, func(_ pcapng.Interface, p pcapng.Packet) { note(p) }, func(s pcapng.Statistics) {
				all.received += s.Received
				all.ifDropped += s.Dropped
				all.osDropped += s.OSDropped
				delivered += s.Delivered
			})
			if delivered != packets {
				t.Errorf("file %d: the statistics tell of %d packets, it holds %d", n, delivered, packets)
			}
			all.delivered += delivered
		}
		all.perFile = append(all.perFile, packets)
	}
	return all
}

// readFile tells of a pcapng file's packets, with the interface of each, and of its
// statistics (where a test asks for them), in their order. It gives the interfaces; the
// file must be whole.
func readFile(t *testing.T, data []byte, packet func(pcapng.Interface, pcapng.Packet), statistics func(pcapng.Statistics)) []pcapng.Interface {
	t.Helper()
	r := pcapng.NewReader(bytes.NewReader(data))
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			return r.Interfaces()
		}
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case b.Type == pcapng.TypePacket:
			p, err := b.Packet()
			if err != nil {
				t.Fatal(err)
			}
			packet(r.Interfaces()[p.Interface], p)
		case b.Type == pcapng.TypeStatistics && statistics != nil:
			s, err := b.Statistics()
			if err != nil {
				t.Fatal(err)
			}
			statistics(s)
		}
	}
}

package ring

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"
)

// next copies what Next gives.
func next(r *Reader, p *Packet) error {
	got, err := r.Next()
	if err == nil {
		*p = *got
	}
	return err
}

// one is a datagram of one packet whose payload tells it from others.
func one(seq uint32, at int64, name string) []byte {
	return synth{seq: seq, time: at, in: 1, payload: []byte(name)}.message()
}

// clocked is one from a hook without stamps.
func clocked(seq uint32, name string) []byte {
	return synth{seq: seq, hook: HookOutput, out: 1, payload: []byte(name)}.message()
}

// all reads until io.EOF.
func all(t *testing.T, r *Reader) (names []string) {
	t.Helper()
	var p Packet
	for {
		switch err := next(r, &p); {
		case err == nil:
			names = append(names, string(p.Payload))
		case errors.Is(err, io.EOF):
			return names
		default:
			t.Fatal(err)
		}
	}
}

func wantNames(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestMerge gives two groups packets that interleave.
func TestMerge(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 2})
	at := f.wall
	conns[0].queue = [][]byte{datagram(one(0, at+1000, "a1"), one(1, at+4000, "a4"), one(2, at+4000, "a4b")), one(3, at+9000, "a9")}
	conns[1].queue = [][]byte{one(0, at+2000, "b2"), datagram(one(1, at+3000, "b3"), one(2, at+4000, "b4"), one(3, at+10000, "b10"))}
	r.Drain()
	wantNames(t, all(t, r), "a1", "b2", "b3", "b4", "a4", "a4b", "a9", "b10") // at 4000 the order is free
}

// TestMergeHolds has a packet wait until the silent group has said everything older.
func TestMergeHolds(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 2})
	start := f.now
	at := f.wall
	conns[0].queue = [][]byte{one(0, at+5000, "late")}
	f.onSleep = func() {
		if f.now-start > int64(8*time.Millisecond) && conns[1].queue == nil {
			conns[1].queue = [][]byte{one(0, at+1000, "early")} // its batch was flushed now
		}
	}
	var p Packet
	for _, want := range []string{"early", "late"} {
		if err := next(r, &p); err != nil || string(p.Payload) != want {
			t.Fatalf("got %q, %v, want %q", p.Payload, err, want)
		}
	}
	if waited := time.Duration(f.now - start); waited < flushTimeout || waited > flushTimeout+20*time.Millisecond {
		t.Errorf("the packet was held for %v", waited)
	}
	if n := r.Stats().Hurried; n != 0 {
		t.Errorf("%d packets hurried", n)
	}
}

// TestSingleGroupNeverWaits has one Stamped group, with and without a silent Clocked one.
func TestSingleGroupNeverWaits(t *testing.T) {
	for clockedGroups := range 2 {
		r, conns, f := newFake(t, Config{Stamped: 1, Clocked: clockedGroups})
		conns[0].queue = [][]byte{one(0, f.wall, "x")}
		var p Packet
		if err := next(r, &p); err != nil || f.slept != 0 {
			t.Errorf("slept %d times, %v", f.slept, err)
		}
	}
}

// TestClockedTime gives packets without a stamp the time of the read, never falling.
func TestClockedTime(t *testing.T) {
	r, conns, f := newFake(t, Config{Clocked: 1})
	conns[0].queue = [][]byte{datagram(clocked(0, "a"), clocked(1, "b")), clocked(2, "c")}
	before := f.wall
	var p Packet
	last := before
	for range 3 {
		if err := next(r, &p); err != nil {
			t.Fatal(err)
		}
		if p.KernelTime || p.Time < last || p.Time > f.wall {
			t.Errorf("%s: time %d after %d, now %d", p.Payload, p.Time, last, f.wall)
		}
		last = p.Time
	}
}

// TestClockedMerges has a Clocked packet wait for a Stamped one that is older.
func TestClockedMerges(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 1, Clocked: 1})
	at := f.wall
	conns[1].queue = [][]byte{clocked(0, "out")}
	once := false
	f.onSleep = func() {
		if !once {
			once = true
			conns[0].queue = [][]byte{one(0, at-1000, "in")}
		}
	}
	var p Packet
	for _, want := range []string{"in", "out"} {
		if err := next(r, &p); err != nil || string(p.Payload) != want {
			t.Fatalf("got %q, %v, want %q", p.Payload, err, want)
		}
	}
}

// TestClockStep sets the wall clock back: the packet from the future is overtaken for a
// second at most.
func TestClockStep(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 2})
	conns[0].queue = [][]byte{one(0, f.wall+int64(time.Hour), "future")}
	start := f.now
	seq := uint32(0)
	feed := func() { // the other group never falls silent
		conns[1].queue = append(conns[1].queue, one(seq, f.wall, "now"))
		seq++
		f.now += int64(time.Millisecond)
		f.wall += int64(time.Millisecond)
	}
	f.onSleep = feed
	feed()
	var p Packet
	for string(p.Payload) != "future" {
		if err := next(r, &p); err != nil {
			t.Fatal(err)
		}
		feed()
		if f.now-start > int64(5*time.Second) {
			t.Fatal("a packet from before the step never came")
		}
	}
}

// TestFullRing sees that held packets go on when the ring is full, and none is lost.
func TestFullRing(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 2, Memory: MinMemory})
	const batches = 100
	for i := range batches {
		conns[0].queue = append(conns[0].queue, synthBatch(40, uint32(i*40), f.wall+int64(i)*40_000, 1400))
	}
	var p Packet
	for i := range batches * 40 {
		if err := next(r, &p); err != nil || p.Dropped != 0 {
			t.Fatalf("packet %d: %v, %d dropped", i, err, p.Dropped)
		}
		if _, packet := synthUDP(1400); !bytes.Equal(p.Payload, packet) {
			t.Fatalf("packet %d was overwritten", i)
		}
	}
	s := r.Stats()
	if s.Hurried == 0 {
		t.Error("60 MB went through 1 MiB without hurry")
	}
	if s.Groups[0].Gaps != 0 {
		t.Errorf("gaps: %+v", s.Groups[0])
	}
}

// TestJumbo has datagrams as large as the kernel makes them, next to tiny ones, and one
// that is too large.
func TestJumbo(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 1, Memory: MinMemory})
	jumbo := bytes.Repeat([]byte("0123456789abcdef"), 4096)[:maxCopy]
	seq := uint32(0)
	for range 30 {
		conns[0].queue = append(conns[0].queue,
			datagram(one(seq, f.wall, "small"), synth{seq: seq + 1, time: f.wall, payload: jumbo}.message(), synth{seq: seq + 2, time: f.wall, payload: jumbo[:64000]}.message()),
			one(seq+3, f.wall, "small"))
		seq += 4
	}
	r.Drain()
	var p Packet
	for i := range int(seq) {
		if err := next(r, &p); err != nil {
			t.Fatal(err)
		}
		want := [][]byte{[]byte("small"), jumbo, jumbo[:64000], []byte("small")}[i%4]
		if !bytes.Equal(p.Payload, want) || p.Cut != (len(want) == maxCopy) {
			t.Fatalf("packet %d has %d bytes, want %d; cut %v", i, len(p.Payload), len(want), p.Cut)
		}
	}
	// Larger than the ring's window: MSG_TRUNC. The first message is whole, the third is cut.
	r, conns, f = newFake(t, Config{Stamped: 1, Memory: MinMemory})
	conns[0].queue = [][]byte{
		datagram(one(0, f.wall, "first"), synth{seq: 1, time: f.wall, payload: jumbo}.message(), synth{seq: 2, time: f.wall, payload: jumbo}.message()),
		one(3, f.wall, "after"),
	}
	r.Drain()
	names := all(t, r)
	if len(names) != 3 || names[0] != "first" || names[2] != "after" {
		t.Errorf("%d packets", len(names))
	}
	if s := r.Stats().Groups[0]; s.Cut != 1 || s.Malformed != 1 || s.Received != 3 {
		t.Errorf("account %+v", s)
	}
}

// TestManyTiny fills the ring with datagrams of one packet.
func TestManyTiny(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 2, Memory: MinMemory})
	for i := range 20_000 {
		conns[0].queue = append(conns[0].queue, one(uint32(i), f.wall+int64(i)*1000, "tiny"))
	}
	var p Packet
	for i := range 20_000 {
		if err := next(r, &p); err != nil || p.Dropped != 0 || string(p.Payload) != "tiny" {
			t.Fatalf("packet %d: %v %+v", i, err, p)
		}
	}
}

func TestDeadlineAndWake(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 1})
	r.base = time.Now().Add(-time.Second)
	var p Packet
	r.SetDeadline(r.base.Add(time.Duration(f.now) + 30*time.Millisecond))
	if err := next(r, &p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("at the deadline: %v", err)
	}
	if err := next(r, &p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
	r.SetDeadline(time.Time{})
	conns[0].queue = [][]byte{one(0, f.wall, "x")}
	r.Wake()
	r.Wake()
	if err := next(r, &p); !errors.Is(err, ErrWoken) {
		t.Errorf("after Wake: %v", err)
	}
	if err := next(r, &p); err != nil || string(p.Payload) != "x" {
		t.Errorf("two calls of Wake wake once, but: %v", err)
	}
	// Under a flood both must come through.
	conns[0].queue = nil
	for i := range 1000 {
		conns[0].queue = append(conns[0].queue, one(uint32(1+i), f.wall, "flood"))
	}
	if err := next(r, &p); err != nil {
		t.Fatal(err)
	}
	r.Wake()
	packets := 0
	for ; packets < 100; packets++ {
		if err := next(r, &p); err != nil {
			if !errors.Is(err, ErrWoken) {
				t.Fatal(err)
			}
			break
		}
	}
	if packets > perRound*2 {
		t.Errorf("Wake came through after %d datagrams", packets)
	}
}

// TestDrain reads what the kernel still has, in order, through every mishap.
func TestDrain(t *testing.T) {
	for name, prepare := range map[string]func(*fakeConn){
		"answered":            func(*fakeConn) {},
		"answers are lost":    func(c *fakeConn) { c.ignore = 3 },
		"unbound before":      func(c *fakeConn) { c.ignore, c.refuse = 1, syscall.ENOENT },
		"rights are given up": func(c *fakeConn) { c.refuse = syscall.EPERM },
	} {
		t.Run(name, func(t *testing.T) {
			r, conns, f := newFake(t, Config{Stamped: 2})
			prepare(conns[0])
			conns[0].queue = [][]byte{one(0, f.wall, "a0")}
			conns[0].last = [][]byte{datagram(one(1, f.wall+2000, "a2"), one(2, f.wall+9000, "a9"))}
			conns[1].queue = [][]byte{one(0, f.wall+1000, "b1")}
			conns[1].last = [][]byte{one(1, f.wall+3000, "b3")}
			r.Drain()
			wantNames(t, all(t, r), "a0", "b1", "a2", "b3", "a9")
			var p Packet
			if err := next(r, &p); !errors.Is(err, io.EOF) {
				t.Errorf("after the end: %v", err)
			}
		})
	}
}

// TestDrainFlood drains a group that a rule of somebody else's never lets run dry.
func TestDrainFlood(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 1})
	r.groups[0].socket.receiveBuffer = 100_000
	flood := &floodConn{fakeConn: conns[0], f: f}
	r.groups[0].socket.conn = flood
	r.Drain()
	var p Packet
	for range 1_000_000 {
		if err := next(r, &p); err != nil {
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
			return
		}
	}
	t.Error("Drain never ends")
}

// floodConn always has a datagram until it is unbound.
type floodConn struct {
	*fakeConn
	f    *fakeTime
	seq  uint32
	done bool
}

func (c *floodConn) send(b []byte) error {
	c.done = true
	return c.fakeConn.send(b)
}

func (c *floodConn) receive(b []byte) (int, bool, bool, error) {
	if c.done {
		return c.fakeConn.receive(b)
	}
	c.seq++
	return copy(b, one(c.seq-1, c.f.wall, "flood")), true, true, nil
}

// TestForgedDatagrams are those that another process sends to the socket.
func TestForgedDatagrams(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 1})
	conns[0].foreign = true
	conns[0].queue = [][]byte{one(0, f.wall, "forged")}
	r.SetDeadline(r.base.Add(time.Duration(f.now) + time.Second))
	var p Packet
	if err := next(r, &p); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %q, %v", p.Payload, err)
	}
	if s := r.Stats().Groups[0]; s.Garbage != 1 || s.Received != 0 {
		t.Errorf("account %+v", s)
	}
}

// TestReadError ends reading.
func TestReadError(t *testing.T) {
	r, conns, _ := newFake(t, Config{Stamped: 1})
	conns[0].fail = syscall.EBADF
	var p Packet
	for range 2 {
		if err := next(r, &p); !errors.Is(err, syscall.EBADF) {
			t.Errorf("got %v", err)
		}
	}
}

// TestClosed keeps everything callable after Close.
func TestClosed(t *testing.T) {
	r, conns, f := newFake(t, Config{Stamped: 1})
	conns[0].queue = [][]byte{synthBatch(10, 0, f.wall, 60)}
	var p Packet
	if err := next(r, &p); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := next(r, &p); !errors.Is(err, ErrClosed) {
		t.Errorf("Next: %v", err)
	}
	r.Wake()
	_ = r.Stats()
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []Config{{}, {Stamped: 17}, {Clocked: -1, Stamped: 1}} {
		if _, err := Open(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}

// TestUnstamped has Stamped groups whose packets come without NFULA_TIMESTAMP, as kernels
// before Linux 6.6 may send them: they have the time of the read, marked as such, are held
// for the other groups no longer than stamped ones, and a stamp that comes later is taken,
// whatever form was learned before.
func TestUnstamped(t *testing.T) {
	bare := func(seq uint32, name string) []byte {
		return synth{seq: seq, in: 1, payload: []byte(name)}.message()
	}
	r, conns, f := newFake(t, Config{Stamped: 2})
	begin, wall := f.now, f.wall
	conns[0].queue = [][]byte{datagram(bare(0, "a0"), bare(1, "a1"), bare(2, "a2"))}
	var p Packet
	last := wall
	for i, want := range []string{"a0", "a1", "a2"} {
		if err := next(r, &p); err != nil || string(p.Payload) != want {
			t.Fatalf("got %q, %v, want %q", p.Payload, err, want)
		}
		if p.KernelTime || p.Time < last || p.Time > f.wall {
			t.Errorf("packet %d: time %d after %d, now %d; the kernel's: %v", i, p.Time, last, f.wall, p.KernelTime)
		}
		last = p.Time
	}
	if held := time.Duration(f.now - begin); held > 2*flushTimeout {
		t.Errorf("held for %v", held)
	}
	stamp := f.wall - f.wall%1000
	conns[0].queue = [][]byte{one(3, stamp, "a3"), bare(4, "a4")}
	for i, want := range []string{"a3", "a4"} {
		if err := next(r, &p); err != nil || string(p.Payload) != want {
			t.Fatalf("got %q, %v, want %q", p.Payload, err, want)
		}
		if p.KernelTime != (i == 0) || i == 0 && p.Time != stamp || i == 1 && p.Time < stamp {
			t.Errorf("%s: time %d, stamped %d; the kernel's: %v", want, p.Time, stamp, p.KernelTime)
		}
	}
	if n := r.Stats().Hurried; n != 0 {
		t.Errorf("%d datagrams hurried", n)
	}
	checkAccount(t, r, 0, 4)
}

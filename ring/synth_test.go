package ring

import (
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Messages and datagrams as nfnetlink_log builds them (net/netfilter/nfnetlink_log.c,
// __build_packet_message), attribute by attribute in its order.

type attr struct {
	kind  uint16
	value []byte
}

func putAttr(b []byte, a attr) []byte {
	b = host.AppendUint16(b, uint16(attrHeader+len(a.value)))
	b = host.AppendUint16(b, a.kind)
	b = append(b, a.value...)
	for len(b)%4 != 0 {
		b = append(b, 0xee) // stale bytes: must never be seen again
	}
	return b
}

func netlinkMessage(kind uint16, seq uint32, body []byte) []byte {
	b := host.AppendUint32(nil, uint32(nlmsgHeader+len(body)))
	b = host.AppendUint16(b, kind)
	b = host.AppendUint16(b, 0)
	b = host.AppendUint32(b, seq)
	b = host.AppendUint32(b, 0)
	b = append(b, body...)
	for len(b)%4 != 0 {
		b = append(b, 0xee)
	}
	return b
}

func u32(v uint32) []byte { return be.AppendUint32(nil, v) }
func u16(v uint16) []byte { return be.AppendUint16(nil, v) }

const testPrefix = "capd:0123abcd"

// synth describes a message; fields that are zero are left out as the kernel would.
type synth struct {
	seq              uint32
	time             int64 // ns; 0 = no stamp
	family, hook     uint8
	protocol         uint16
	prefix           string // "" = testPrefix
	in, out          uint32
	hwHeader         []byte
	extra            []attr
	payload          []byte
	noHeader, noSeq  bool
	truncatedPayload bool // the payload attribute claims more than is there
}

func (s synth) message() []byte {
	if s.prefix == "" {
		s.prefix = testPrefix
	}
	if s.family == 0 {
		s.family = FamilyIPv4
	}
	if s.protocol == 0 {
		s.protocol = etherIPv4
	}
	b := []byte{s.family, 0, 0, 1}
	if !s.noHeader {
		b = putAttr(b, attr{attrPacketHeader, append(u16(s.protocol), s.hook, 0)})
	}
	b = putAttr(b, attr{attrPrefix, append([]byte(s.prefix), 0)})
	if s.in != 0 {
		b = putAttr(b, attr{attrIn, u32(s.in)})
	}
	if s.out != 0 {
		b = putAttr(b, attr{attrOut, u32(s.out)})
	}
	if s.hwHeader != nil {
		b = putAttr(b, attr{attrHWAddr, append([]byte{0, 6, 0, 0}, append(slices.Clone(s.hwHeader[6:12]), 0, 0)...)})
		b = putAttr(b, attr{attrHWType, u16(hwEther)})
		b = putAttr(b, attr{attrHWLen, u16(uint16(len(s.hwHeader)))})
		b = putAttr(b, attr{attrHWHeader, s.hwHeader})
	}
	if s.time != 0 {
		b = putAttr(b, attr{attrTimestamp, be.AppendUint64(be.AppendUint64(nil, uint64(s.time/1e9)), uint64(s.time%1e9/1e3))})
	}
	if !s.noSeq {
		b = putAttr(b, attr{attrSeq, u32(s.seq)})
	}
	for _, a := range s.extra {
		b = putAttr(b, a)
	}
	at := len(b)
	b = putAttr(b, attr{attrPayload, s.payload})
	if s.truncatedPayload {
		host.PutUint16(b[at:], uint16(attrHeader+len(s.payload)+400))
	}
	return netlinkMessage(ulogPacket, 0, b)
}

// datagram joins messages and ends them as the kernel ends a batch of several.
func datagram(messages ...[]byte) []byte {
	b := slices.Concat(messages...)
	if len(messages) > 1 {
		b = append(b, netlinkMessage(3, 0, make([]byte, 4))...)
	}
	return b
}

// synthUDP is a 60-byte or longer frame's IPv4 packet and its Ethernet header.
func synthUDP(length int) (header, packet []byte) {
	header = []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0}
	packet = make([]byte, length-etherHeader)
	for i := range packet {
		packet[i] = byte(i)
	}
	packet[0] = 0x45
	be.PutUint16(packet[2:], uint16(len(packet)))
	copy(packet[12:], []byte{10, 9, 0, 1, 10, 9, 0, 2})
	return header, packet
}

// synthBatch is a datagram of n packets of frames of the given length, numbered from seq
// on, with stamps from at on, a microsecond apart.
func synthBatch(n int, seq uint32, at int64, frame int) []byte {
	header, packet := synthUDP(frame)
	var m [][]byte
	for i := range n {
		m = append(m, synth{seq: seq + uint32(i), time: at + int64(i)*1000, in: 7, hwHeader: header, payload: packet}.message())
	}
	return datagram(m...)
}

// fakeConn is a kernel of the tests' own: datagrams come out in the order they were put
// in, and UNBIND is answered.
type fakeConn struct {
	queue   [][]byte
	sent    []fakeConfig
	ignore  int           // UNBINDs that are not answered
	refuse  syscall.Errno // the answer to UNBIND
	last    [][]byte      // comes before the answer to UNBIND
	foreign bool          // datagrams come from a process, not from the kernel
	fail    error
}

type fakeConfig struct {
	attr  uint16
	value uint32
}

var _ conn = (*fakeConn)(nil)

func (c *fakeConn) receive(b []byte) (int, bool, bool, error) {
	if c.fail != nil {
		return 0, false, false, c.fail
	}
	if len(c.queue) == 0 {
		return 0, false, false, nil
	}
	d := c.queue[0]
	c.queue = c.queue[1:]
	copy(b, d)
	return len(d), !c.foreign, true, nil
}

func (c *fakeConn) send(b []byte) error {
	_, seq, body, _, ok := cutMessage(b)
	if !ok {
		return errors.New("malformed configuration message")
	}
	kind, value := host.Uint16(body[6:]), body[8:]
	if kind != configCmd {
		c.sent = append(c.sent, fakeConfig{kind, be.Uint32(value)})
		return nil
	}
	c.sent = append(c.sent, fakeConfig{kind, uint32(value[0])})
	c.queue = append(c.queue, c.last...)
	c.last = nil
	if c.ignore > 0 {
		c.ignore--
		return nil
	}
	c.queue = append(c.queue, netlinkMessage(nlmsgError, seq, append(host.AppendUint32(nil, uint32(-int32(c.refuse))), make([]byte, 16)...)))
	return nil
}

func (c *fakeConn) readable(time.Duration) error { return nil }
func (c *fakeConn) close() error                 { return nil }

// fakeTime is both clocks. Sleeping moves it; it stops the test from sleeping for ever.
type fakeTime struct {
	t         testing.TB
	now, wall int64
	slept     int
	onSleep   func() // what happens meanwhile
}

func (f *fakeTime) clock() instant {
	f.now += 100
	f.wall += 100
	return instant{f.now, f.wall}
}

func (f *fakeTime) sleep(_ bool, wait int64) error {
	if f.slept++; f.slept > 10_000 {
		return errors.New("the reader sleeps on and on")
	}
	wait = min(wait, int64(5*time.Millisecond))
	f.now += wait
	f.wall += wait
	if f.onSleep != nil {
		f.onSleep()
	}
	return nil
}

const fakeEpoch = int64(1_700_000_000_000_000_000)

// newFake makes a Reader over fake connections and a fake clock.
func newFake(t testing.TB, c Config) (*Reader, []*fakeConn, *fakeTime) {
	t.Helper()
	memory, err := Alloc(max(c.Memory, MinMemory))
	if err != nil {
		t.Fatal(err)
	}
	if c.Prefix == "" {
		c.Prefix = testPrefix
	}
	r := newReader(c, memory)
	conns := make([]*fakeConn, len(r.groups))
	for i := range conns {
		conns[i] = new(fakeConn)
		r.groups[i].socket.conn = conns[i]
		r.groups[i].socket.receiveBuffer = 16 << 20
	}
	f := &fakeTime{t: t, now: int64(time.Second), wall: fakeEpoch}
	r.clock, r.sleep = f.clock, f.sleep
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, conns, f
}

// checkAccount verifies what GroupStats promises.
func checkAccount(t testing.TB, r *Reader, g int, highest uint32) {
	t.Helper()
	s := r.Stats().Groups[g]
	if got := s.Received + s.Foreign + s.Malformed + s.Gaps; got != uint64(highest)+1 {
		t.Errorf("group %d: received %d + foreign %d + malformed %d + gaps %d = %d, want the highest number + 1 = %d",
			g, s.Received, s.Foreign, s.Malformed, s.Gaps, got, uint64(highest)+1)
	}
}

func mincore(b, present []byte) error {
	_, _, errno := syscall.Syscall(syscall.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&present[0])))
	if errno != 0 {
		return errno
	}
	return nil
}

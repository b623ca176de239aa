package ring

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"slices"
	"testing"
)

func testDecoder(limit int) *decoder {
	return &decoder{prefix: append([]byte(testPrefix), 0), limit: limit}
}

func decodeOne(t *testing.T, d *decoder, m []byte) (Packet, verdict, numbered) {
	t.Helper()
	kind, _, body, rest, ok := cutMessage(m)
	if !ok || kind != ulogPacket || len(rest) != 0 {
		t.Fatalf("message of type %d, ok %v, %d bytes behind", kind, ok, len(rest))
	}
	d.walked = Packet{Time: 41, Payload: []byte("old"), Mark: 7, VLAN: VLAN{Present: true}, HWAddr: []byte{1}}
	p, v, n := d.decode(body, 42)
	out := *p
	p.HWType, p.HasHWType = 99, true // which a user may
	return out, v, n
}

// TestDecodeAll reads a message with every attribute, each once by walking and once by
// its layout.
func TestDecodeAll(t *testing.T) {
	header, packet := synthUDP(60)
	m := synth{seq: 0x01020304, time: 1_700_000_000_123_456_000, in: 3, out: 4, hwHeader: header, payload: packet[:45], extra: []attr{
		{attrMark, u32(0xabcd)}, {attrUID, u32(1000)}, {attrGID, u32(100)}, {attrPhysIn, u32(5)}, {attrPhysOut, u32(6)},
		{13, u32(99)}, // NFULA_SEQ_GLOBAL: not of interest
		{attrL2Header | 0x4000, header},
		{attrVLAN | 0x8000, putAttr(putAttr(nil, attr{attrVLANTCI, u16(0x6064)}), attr{attrVLANProtocol, u16(etherVLAN)})},
	}}.message()
	want := Packet{
		Time: 1_700_000_000_123_456_000, KernelTime: true, Payload: packet[:45], L2Header: header, HWHeader: header, HWAddr: header[6:12],
		In: 3, Out: 4, PhysIn: 5, PhysOut: 6, Mark: 0xabcd, UID: 1000, GID: 100, HasUID: true, Protocol: etherIPv4,
		HWType: hwEther, HasHWType: true, Family: FamilyIPv4, Hook: HookPrerouting, VLAN: VLAN{true, 0x6064, etherVLAN},
	}
	d := testDecoder(1000)
	for _, way := range []string{"walk", "layout"} {
		p, v, n := decodeOne(t, d, m)
		if v != good || n != (numbered{0x01020304, true}) || !reflect.DeepEqual(p, want) {
			t.Errorf("%s: verdict %d, %+v\n%+v, want\n%+v", way, v, n, p, want)
		}
		if cap(p.Payload) != len(p.Payload) {
			t.Errorf("%s: behind the payload %d bytes of padding can be reached", way, cap(p.Payload)-len(p.Payload))
		}
		if d.cache.recent == nil {
			t.Fatal("no layout was learnt")
		}
	}
}

// TestDecodeHooks sees what depends on the hook.
func TestDecodeHooks(t *testing.T) {
	header, packet := synthUDP(60)
	for _, c := range []struct {
		family, hook uint8
		arrival      bool // the link-layer attributes are those of the arrival, and left out
	}{
		{FamilyIPv4, HookPrerouting, false}, {FamilyIPv4, HookInput, false}, {FamilyIPv6, HookForward, false},
		{FamilyIPv4, HookOutput, true}, {FamilyIPv6, HookPostrouting, true}, {FamilyBridge, HookPostrouting, false},
		{FamilyNetdev, HookNetdevEgress, false}, {FamilyIPv4, HookInetIngress, false},
	} {
		p, v, _ := decodeOne(t, testDecoder(len(packet)), synth{family: c.family, hook: c.hook, hwHeader: header, payload: packet}.message())
		if v != good || p.Family != c.family || p.Hook != c.hook {
			t.Fatalf("family %d hook %d: %+v", c.family, c.hook, p)
		}
		if left := p.HWHeader == nil && p.HWAddr == nil && !p.HasHWType; left != c.arrival {
			t.Errorf("family %d hook %d: link layer %+v", c.family, c.hook, p)
		}
		if p.KernelTime || p.Time != 42 {
			t.Errorf("family %d hook %d: without a stamp the time became %d", c.family, c.hook, p.Time)
		}
		if !p.Cut {
			t.Errorf("a payload as long as the limit counts as whole")
		}
	}
}

// TestDecodeMalformed lists what must be refused, and whether the number survives.
func TestDecodeMalformed(t *testing.T) {
	header, packet := synthUDP(60)
	whole := synth{seq: 5, time: fakeEpoch, in: 1, hwHeader: header, payload: packet}.message()
	short := func(kind uint16, n int) []byte {
		return synth{seq: 5, payload: packet, extra: []attr{{kind, make([]byte, n)}}}.message()
	}
	for name, c := range map[string]struct {
		message []byte
		number  bool
	}{
		"no packet header":           {synth{seq: 5, noHeader: true, payload: packet}.message(), true},
		"no sequence number":         {synth{noSeq: true, payload: packet}.message(), false},
		"payload longer than it is":  {synth{seq: 5, truncatedPayload: true, payload: packet}.message(), true},
		"short packet header":        {synth{seq: 5, noHeader: true, payload: packet, extra: []attr{{attrPacketHeader, []byte{8}}}}.message(), true},
		"short mark":                 {short(attrMark, 3), true},
		"short interface":            {short(attrIn, 0), true},
		"short timestamp":            {short(attrTimestamp, 15), true},
		"short hardware address":     {short(attrHWAddr, 11), true},
		"short hardware type":        {short(attrHWType, 1), true},
		"short VLAN":                 {short(attrVLAN, 3), true},
		"only the generic header":    {netlinkMessage(ulogPacket, 0, make([]byte, 4)), false},
		"less than that":             {netlinkMessage(ulogPacket, 0, make([]byte, 3)), false},
		"zero-length attribute":      {netlinkMessage(ulogPacket, 0, make([]byte, 12)), false},
		"attributes end in between":  {netlinkMessage(ulogPacket, 0, append(slices.Clone(whole[16:]), 1)), true},
		"a header of three bytes":    {netlinkMessage(ulogPacket, 0, append(slices.Clone(whole[16:]), 8, 0, 9)), true},
		"attribute length too large": {netlinkMessage(ulogPacket, 0, append(slices.Clone(whole[16:]), 0xff, 0xff, 9, 0)), true},
	} {
		d := testDecoder(1000)
		decodeOne(t, d, whole) // so that a layout is known
		_, v, n := decodeOne(t, d, c.message)
		if v != malformed || n.ok != c.number || n.ok && n.seq != 5 {
			t.Errorf("%s: verdict %d, number %+v", name, v, n)
		}
	}
}

func TestDecodeForeign(t *testing.T) {
	d := testDecoder(1000)
	for _, prefix := range []string{"capd:0123abce", "capd:0123abcdX", "capd:0123abc", "\x00"} {
		if _, v, n := decodeOne(t, d, synth{seq: 9, prefix: prefix}.message()); v != foreign || n != (numbered{9, true}) {
			t.Errorf("prefix %q: verdict %d, %+v", prefix, v, n)
		}
	}
	d.prefix = nil
	if _, v, _ := decodeOne(t, d, synth{prefix: "anything"}.message()); v != good {
		t.Errorf("without a prefix every packet is ours, not %d", v)
	}
}

// TestDecodeTimestamps sees that nonsense is no stamp.
func TestDecodeTimestamps(t *testing.T) {
	stamp := func(sec, usec uint64) attr {
		return attr{attrTimestamp, be.AppendUint64(be.AppendUint64(nil, sec), usec)}
	}
	d := testDecoder(1000)
	decodeOne(t, d, synth{extra: []attr{stamp(1, 0)}, payload: make([]byte, 40)}.message())
	for _, a := range []attr{stamp(1<<40, 0), stamp(1, 1_000_000), stamp(1<<63, 5)} {
		if p, v, _ := decodeOne(t, d, synth{extra: []attr{a}, payload: make([]byte, 40)}.message()); v != good || p.KernelTime || p.Time != 42 {
			t.Errorf("%x became %d, verdict %d", a.value, p.Time, v)
		}
	}
}

// TestLayoutForms changes between more forms than are remembered.
func TestLayoutForms(t *testing.T) {
	header, packet := synthUDP(100)
	d := testDecoder(1000)
	for round := range 2000 {
		form := round % 7
		s := synth{seq: uint32(round), time: fakeEpoch + int64(round)*1000, in: uint32(round), payload: packet}
		if form&1 != 0 {
			s.hwHeader = header
		}
		if form&2 != 0 {
			s.extra = append(s.extra, attr{attrMark, u32(uint32(round))})
		}
		if form&4 != 0 {
			s.extra = append(s.extra, attr{attrUID, u32(uint32(round))})
		}
		p, v, n := decodeOne(t, d, s.message())
		q := Packet{Time: 42}
		_, _, body, _, _ := cutMessage(s.message())
		w, m := d.walk(body, &q)
		if v != w || n != m || !reflect.DeepEqual(p, q) {
			t.Fatalf("form %d: %+v, walking gives %+v", form, p, q)
		}
	}
}

// FuzzDecode compares layouts with the walk: the first message teaches a layout, the
// second is read with it.
func FuzzDecode(f *testing.F) {
	header, packet := synthUDP(60)
	a := synth{seq: 1, time: fakeEpoch, in: 3, hwHeader: header, payload: packet}.message()[nlmsgHeader:]
	b := synth{seq: 2, time: fakeEpoch, in: 4, hwHeader: header, payload: packet[:41]}.message()[nlmsgHeader:]
	c := synth{seq: 2, hook: HookOutput, out: 4, payload: packet[:41], extra: []attr{{attrMark, u32(1)}, {attrUID, u32(2)}}}.message()[nlmsgHeader:]
	f.Add(a, b)
	f.Add(c, c)
	f.Add(a, a[:80])
	f.Fuzz(func(t *testing.T, first, second []byte) {
		d := testDecoder(50)
		d.decode(first, 1)
		for _, m := range [][]byte{first, second} {
			m = slices.Clip(m)
			q := Packet{Time: 1}
			p, v, n := d.decode(m, 1)
			w, o := d.walk(m, &q)
			if v != w || n != o || v == good && !reflect.DeepEqual(*p, q) {
				t.Fatalf("decode: %d %+v %+v\nwalk: %d %+v %+v", v, n, *p, w, o, q)
			}
		}
	})
}

// FuzzDatagram gives whole datagrams to a Reader. Whatever they hold, the account must
// add up, and packets must lie inside the datagram.
func FuzzDatagram(f *testing.F) {
	header, packet := synthUDP(60)
	ok := synth{seq: 0, time: fakeEpoch, in: 3, hwHeader: header, payload: packet}
	f.Add(datagram(ok.message()))
	f.Add(synthBatch(3, 0, fakeEpoch, 60))
	f.Add(append(ok.message(), netlinkMessage(ulogPacket, 0, []byte{2, 0, 0, 1})...))
	f.Add(synthBatch(3, 5, fakeEpoch, 60)[:300])
	f.Add(append(ok.message(), 1, 2, 3))
	f.Add(make([]byte, 64))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, conns, _ := newFake(t, Config{Stamped: 1})
		last := synth{seq: 1 << 30, payload: packet}.message()
		conns[0].queue = [][]byte{b, b, last}
		r.Drain()
		packets := uint64(0)
		var p Packet
		for {
			err := next(r, &p)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			packets++
			for _, s := range [][]byte{p.Payload, p.HWHeader, p.HWAddr, p.L2Header, p.Conntrack} {
				if len(s) > 0 && !bytes.Contains(b, s) && !bytes.Contains(last, s) {
					t.Fatalf("%x is not from the datagram", s)
				}
			}
			var scratch [MaxHead]byte
			for _, link := range []LinkType{LinkSLL2, LinkEthernet, LinkRaw} {
				if head, body, original, ok := p.Frame(link, &scratch); ok && int(original) < len(head)+len(body) {
					t.Fatalf("original length %d of a frame with %d bytes", original, len(head)+len(body))
				}
			}
		}
		if s := r.Stats().Groups[0]; s.Received != packets {
			t.Fatalf("%d packets, but %d received", packets, s.Received)
		}
		a := &r.groups[0].account
		if got := a.received + a.foreign + a.malformed + a.gaps; uint32(got) != a.expect || got > 1<<32 {
			t.Fatalf("the account %+v does not add up", a)
		}
	})
}

func ExampleClass() {
	fmt.Println(Stamped, Clocked)
	// Output: stamped clocked
}

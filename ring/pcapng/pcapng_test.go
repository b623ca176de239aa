package pcapng

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"capd/testbed"
)

const epoch = int64(1_700_000_000_123_456_789)

// udp is an IPv4 packet with a UDP payload of n bytes.
func udp(n int, fill byte) []byte {
	b := []byte{0x45, 0, byte((28 + n) >> 8), byte(28 + n), 0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2,
		0x0f, 0xa0, 0, 9, byte((8 + n) >> 8), byte(8 + n), 0, 0}
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = ^(sum&0xffff + sum>>16)
	b[10], b[11] = byte(sum>>8), byte(sum)
	return append(b, bytes.Repeat([]byte{fill}, n)...)
}

var sll2 = []byte{8, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0}

type sample struct {
	section    Section
	interfaces []Interface
	packets    []Packet
	statistics []Statistics
}

func newSample() sample {
	s := sample{
		section:    Section{Hardware: "amd64", OS: "Linux 6.18", Application: "capd 0.1", Comment: "capture 0f8c: a comment with UTF-8: ü"},
		interfaces: []Interface{{LinkType: 276, Snaplen: 65535, Name: "eth0", Description: "prerouting", Filter: "udp port 9", Comment: "kernel stamps"}, {LinkType: 276, Snaplen: 65535, Name: "eth1"}},
	}
	for i := range 40 {
		p := Packet{Interface: uint32(i % 2), Time: epoch + int64(i)*1001, Head: sll2, Body: udp(i, byte(i)), Flags: uint32(i % 3)}
		p.Original = uint32(len(p.Head) + len(p.Body))
		if i%7 == 3 {
			p.Dropped = uint64(i) << 32
		}
		if i%11 == 5 {
			p.Comment = strings.Repeat("x", i)
		}
		if i%10 == 9 { // cut by a snaplen
			p.Body = p.Body[:28]
		}
		s.packets = append(s.packets, p)
	}
	s.statistics = []Statistics{
		{Interface: 0, Time: epoch + 1e9, Start: epoch, End: epoch + 5e8, Received: 25, Dropped: 5, FilterAccepted: 25, OSDropped: 5, Delivered: 20, Comment: "five lost"},
		{Interface: 1, Time: epoch + 1e9, Received: 20, Dropped: Absent, FilterAccepted: Absent, OSDropped: Absent, Delivered: Absent},
	}
	return s
}

// file is the sample as a pcapng file; sizes are checked on the way.
func (s sample) file(t testing.TB) []byte {
	var b []byte
	grow := func(after []byte, size int) {
		if len(after) != len(b)+size {
			t.Errorf("a block of %d bytes has size %d", len(after)-len(b), size)
		}
		b = after
	}
	grow(s.section.Append(b), s.section.Size())
	for i := range s.interfaces {
		grow(s.interfaces[i].Append(b), s.interfaces[i].Size())
	}
	for i := range s.packets {
		grow(s.packets[i].Append(b), s.packets[i].Size())
	}
	for i := range s.statistics {
		grow(s.statistics[i].Append(b), s.statistics[i].Size())
	}
	return b
}

func (s sample) classic() []byte {
	b := AppendClassicHeader(nil, 276, 0)
	for i := range s.packets {
		b = s.packets[i].AppendClassic(b)
	}
	return b
}

func write(t testing.TB, name string, b []byte) string {
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestJudges has every reader that people use read what is written here.
func TestJudges(t *testing.T) {
	s := newSample()
	for name, b := range map[string][]byte{"a.pcapng": s.file(t), "a.pcap": s.classic()} {
		t.Run(name, func(t *testing.T) {
			path := write(t, name, b)
			pcapng := strings.HasSuffix(name, "ng")
			got := testbed.TsharkPackets(t, path, "")
			if len(got) != len(s.packets) {
				t.Fatalf("tshark reads %d packets, want %d", len(got), len(s.packets))
			}
			for i, g := range got {
				w := s.packets[i]
				if want := fmt.Sprintf("%d.%09d", w.Time/1e9, w.Time%1e9); g.Time != want {
					t.Errorf("packet %d: time %s, want %s", i, g.Time, want)
				}
				if g.Length != int(w.Original) || g.Captured != len(w.Head)+len(w.Body) {
					t.Errorf("packet %d: %d of %d bytes, want %d of %d", i, g.Captured, g.Length, len(w.Head)+len(w.Body), w.Original)
				}
				if want := w.Body[28:]; !bytes.Equal(g.Payload, want) && i%10 != 9 {
					t.Errorf("packet %d: payload %x, want %x", i, g.Payload, want)
				}
				if !pcapng {
					continue
				}
				if want := s.interfaces[w.Interface].Name; g.Interface != want {
					t.Errorf("packet %d: interface %q, want %q", i, g.Interface, want)
				}
				if want := strings.Trim(fmt.Sprint(w.Flags), "0"); g.Direction != want {
					t.Errorf("packet %d: direction %q, want %q", i, g.Direction, want)
				}
				if want := strings.TrimSuffix(fmt.Sprint(w.Dropped), "\x00"); w.Dropped != 0 && g.Dropped != want {
					t.Errorf("packet %d: %q dropped, want %s", i, g.Dropped, want)
				}
				if g.Comment != w.Comment {
					t.Errorf("packet %d: comment %q, want %q", i, g.Comment, w.Comment)
				}
			}
			info := testbed.Capinfos(t, path)
			if info.Packets != len(s.packets) || info.Encapsulation != "linux-sll2" || !info.Ordered {
				t.Errorf("capinfos says %+v", info)
			}
			if n := len(testbed.Tcpdump(t, path)); n != len(s.packets) {
				t.Errorf("tcpdump reads %d packets, want %d", n, len(s.packets))
			}
		})
	}
}

// TestGopacket reads a file with gopacket's reader, bytes and times.
func TestGopacket(t *testing.T) {
	s := newSample()
	r, err := pcapgo.NewNgReader(bytes.NewReader(s.file(t)), pcapgo.NgReaderOptions{ErrorOnMismatchingLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	if info := r.SectionInfo(); info.OS != s.section.OS || info.Hardware != s.section.Hardware || info.Application != s.section.Application || info.Comment != s.section.Comment {
		t.Errorf("section %+v", info)
	}
	for i, w := range s.packets {
		data, info, err := r.ReadPacketData()
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if want := append(bytes.Clone(w.Head), w.Body...); !bytes.Equal(data, want) || info.Length != int(w.Original) ||
			info.InterfaceIndex != int(w.Interface) || info.Timestamp.UnixNano() != w.Time {
			t.Errorf("packet %d: %x %+v, want %x %+v", i, data, info, want, w)
		}
	}
	if _, _, err := r.ReadPacketData(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last packet: %v", err)
	}
	for i := range s.interfaces {
		in, err := r.Interface(i)
		if err != nil || in.Name != s.interfaces[i].Name || in.Filter != s.interfaces[i].Filter || in.Description != s.interfaces[i].Description {
			t.Errorf("interface %d: %+v, %v", i, in, err)
		}
	}
	if in, _ := r.Interface(0); in.Statistics.PacketsReceived != 25 || in.Statistics.PacketsDropped != 5 || in.Statistics.StartTime.UnixNano() != epoch {
		t.Errorf("statistics %+v", in.Statistics)
	}
}

// parse reads a file into a sample, as far as it goes.
func parse(b []byte) (s sample, err error) {
	r := NewReader(bytes.NewReader(b))
	for {
		block, err := r.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return s, err
		}
		switch block.Type {
		case TypeSection:
			if s.section, err = block.Section(); err != nil {
				return s, err
			}
		case TypeInterface:
			i, err := block.Interface()
			if err != nil {
				return s, err
			}
			s.interfaces = append(s.interfaces, i)
		case TypePacket, TypeSimple:
			p, err := block.Packet()
			if err != nil {
				return s, err
			}
			p.Body = bytes.Clone(p.Body)
			s.packets = append(s.packets, p)
		case TypeStatistics:
			st, err := block.Statistics()
			if err != nil {
				return s, err
			}
			s.statistics = append(s.statistics, st)
		}
	}
}

// TestRoundTrip reads back everything that was written.
func TestRoundTrip(t *testing.T) {
	want := newSample()
	got, err := parse(want.file(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range want.packets {
		p := &want.packets[i]
		p.Head, p.Body = nil, append(bytes.Clone(p.Head), p.Body...)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v\nwrote %+v", got, want)
	}
}

// TestPadding fills the memory with a pattern first: none of it may be left, and padding
// is zeros.
func TestPadding(t *testing.T) {
	s := newSample()
	clean := s.file(t)
	dirty := bytes.Repeat([]byte{0xa5}, len(clean)+64)
	b := s.section.Append(dirty[:0])
	for i := range s.interfaces {
		b = s.interfaces[i].Append(b)
	}
	for i := range s.packets {
		n := s.packets[i].Put(dirty[len(b):])
		b = dirty[:len(b)+n]
	}
	for i := range s.statistics {
		b = s.statistics[i].Append(b)
	}
	if !bytes.Equal(b, clean) {
		t.Error("what was in memory before shows in the file")
	}
	for n := range 9 {
		p := Packet{Body: bytes.Repeat([]byte{0xff}, n), Original: 77}
		block := p.Append(bytes.Repeat([]byte{0xa5}, 64)[:0])
		if padding := block[packetHeader+n : len(block)-4]; !bytes.Equal(padding, make([]byte, len(padding))) || le.Uint32(block[24:]) != 77 {
			t.Errorf("%d bytes: %x", n, block)
		}
	}
}

// TestLongTexts cuts what does not fit an option.
func TestLongTexts(t *testing.T) {
	long := strings.Repeat("0123456789", 10_000)
	s := sample{section: Section{Comment: long}, interfaces: []Interface{{LinkType: 1, Name: long, Filter: long}},
		packets: []Packet{{Body: []byte{1}, Original: 1, Comment: long}}}
	got, err := parse(s.file(t))
	if err != nil {
		t.Fatal(err)
	}
	if got.section.Comment != long[:maxOption] || got.interfaces[0].Filter != long[:maxOption-1] || got.packets[0].Comment != long[:maxOption] {
		t.Error("a text that was too long is not cut to what fits")
	}
}

// TestEmpty writes blocks without any option.
func TestEmpty(t *testing.T) {
	s := sample{interfaces: []Interface{{LinkType: 1}}, packets: []Packet{{Interface: 0}}, statistics: []Statistics{{
		Received: Absent, Dropped: Absent, FilterAccepted: Absent, OSDropped: Absent, Delivered: Absent,
	}}}
	path := write(t, "empty.pcapng", s.file(t))
	if n := testbed.Capinfos(t, path).Packets; n != 1 {
		t.Errorf("capinfos counts %d packets", n)
	}
}

func TestNoAllocations(t *testing.T) {
	s := newSample()
	b := make([]byte, 0, 1<<16)
	p := &s.packets[3]
	for name, f := range map[string]func(){
		"packet":     func() { p.Append(b) },
		"put":        func() { p.Put(b[:cap(b)]) },
		"classic":    func() { p.AppendClassic(b) },
		"section":    func() { s.section.Append(b) },
		"interface":  func() { s.interfaces[0].Append(b) },
		"statistics": func() { s.statistics[0].Append(b) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

// TestRepair cuts files at every byte, with nothing and with zeros behind.
func TestRepair(t *testing.T) {
	s := newSample()
	for name, b := range map[string][]byte{"pcapng": s.file(t), "pcap": s.classic()} {
		t.Run(name, func(t *testing.T) {
			ends := map[int]int{} // where blocks end → packets before
			repair := Repair
			if name == "pcap" {
				repair = RepairClassic
				ends[ClassicHeaderSize] = 0
				for i, at := 0, ClassicHeaderSize; i < len(s.packets); i++ {
					at += s.packets[i].ClassicSize()
					ends[at] = i + 1
				}
			} else {
				r, n := NewReader(bytes.NewReader(b)), 0
				for {
					block, err := r.Next()
					if err != nil {
						break
					}
					if block.Type == TypePacket {
						n++
					}
					ends[int(r.Offset())] = n
				}
			}
			whole, packets := 0, 0
			for cut := 0; cut <= len(b); cut++ {
				if n, ok := ends[cut]; ok {
					whole, packets = cut, n
				}
				for _, zeros := range []int{0, 100} {
					_, one := ends[cut+1]
					_, two := ends[cut+2]
					_, three := ends[cut+3]
					if zeros > 0 && (name == "pcap" || cut < 12 || one || two || three) {
						continue // zeros complete what was cut: a length, or data that nothing marks
					}
					file := append(bytes.Clone(b[:cut]), make([]byte, zeros)...)
					got, err := repair(bytes.NewReader(file), int64(len(file)))
					if err != nil || int(got.Bytes) != whole || int(got.Packets) != packets {
						t.Fatalf("cut at %d, %d zeros behind: %+v, %v, want %d bytes and %d packets", cut, zeros, got, err, whole, packets)
					}
				}
			}
			got, _ := repair(bytes.NewReader(b), int64(len(b)))
			captured := int64(0)
			for _, p := range s.packets {
				captured += int64(len(p.Head) + len(p.Body))
			}
			if got.First != epoch || got.Last != s.packets[len(s.packets)-1].Time || got.Captured != captured {
				t.Errorf("found %+v", got)
			}
			if _, err := repair(brokenDisk{}, 100); !errors.Is(err, os.ErrPermission) {
				t.Errorf("a read error came as %v", err)
			}
			if _, err := repair(strings.NewReader("no capture file at all, but text"), 32); !errors.Is(err, ErrNotOurs) {
				t.Errorf("text: %v", err)
			}
		})
	}
}

type brokenDisk struct{}

func (brokenDisk) ReadAt([]byte, int64) (int, error) { return 0, os.ErrPermission }

// TestForeign reads files of other writers: big-endian, microseconds, powers of two, an
// offset, several sections, simple packets.
func TestForeign(t *testing.T) {
	be := func(parts ...any) []byte {
		var b []byte
		for _, p := range parts {
			switch v := p.(type) {
			case uint16:
				b = append(b, byte(v>>8), byte(v))
			case uint32:
				b = append(b, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
			case []byte:
				b = append(b, v...)
			}
		}
		return b
	}
	u := func(n uint32) uint32 { return n }
	file := be(
		u(TypeSection), u(28), u(byteOrderMagic), uint16(1), uint16(2), u(0xffffffff), u(0xffffffff), u(28),
		u(TypeInterface), u(20), uint16(1), uint16(0), u(4), u(20), // microseconds
		u(TypeInterface), u(44), uint16(1), uint16(0), u(0),
		uint16(9), uint16(1), []byte{0x80 | 10, 0, 0, 0}, uint16(14), uint16(8), u(0), u(1_700_000_000), u(0), u(44),
		u(TypePacket), u(36), u(0), u(0x60a3f), u(0x3b7d6f80), u(3), u(60), []byte{1, 2, 3, 0}, u(36),
		u(TypePacket), u(36), u(1), u(0), u(512), u(4), u(4), []byte{1, 2, 3, 4}, u(36),
		u(TypeSimple), u(20), u(60), []byte{9, 8, 7, 6}, u(20),
	)
	s, err := parse(append(file, newSample().file(t)...))
	if err != nil {
		t.Fatal(err)
	}
	if len(s.packets) != 43 {
		t.Fatalf("%d packets, want 43", len(s.packets))
	}
	if p := s.packets[0]; p.Time != (0x60a3f<<32|0x3b7d6f80)*1000 || !bytes.Equal(p.Body, []byte{1, 2, 3}) || p.Original != 60 {
		t.Errorf("microseconds: %+v", p)
	}
	if p := s.packets[1]; p.Time != 1_700_000_000_500_000_000 {
		t.Errorf("2^-10 s: %+v", p)
	}
	if p := s.packets[2]; !bytes.Equal(p.Body, []byte{9, 8, 7, 6}) || p.Original != 60 {
		t.Errorf("simple: %+v", p)
	}
	if !reflect.DeepEqual(s.section, newSample().section) {
		t.Errorf("second section: %+v", s.section)
	}
}

// TestClassicForeign reads the other three kinds of classic header.
func TestClassicForeign(t *testing.T) {
	for _, h := range [][]byte{
		{0xa1, 0xb2, 0xc3, 0xd4, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 9, 0xfe},
		{0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 0xfe},
		{0xa1, 0xb2, 0x3c, 0x4d, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0x13, 0x88, 0, 0, 0, 1, 0, 0, 0, 9, 0xfe},
	} {
		r, err := NewClassicReader(bytes.NewReader(h))
		if err != nil {
			t.Fatal(err)
		}
		p, err := r.Next()
		if err != nil || p.Time != 7_000_005_000 || p.Original != 9 || !bytes.Equal(p.Body, []byte{0xfe}) || r.LinkType != 1 || r.Snaplen != 256 {
			t.Errorf("%x: %+v, %v", h[:4], p, err)
		}
		if _, err := r.Next(); !errors.Is(err, io.EOF) {
			t.Errorf("at the end: %v", err)
		}
	}
}

// FuzzReader parses anything, writes what it understood, and must read the same again.
func FuzzReader(f *testing.F) {
	whole := newSample().file(f)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(newSample().classic())
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, repair := range []func(io.ReaderAt, int64) (Repaired, error){Repair, RepairClassic} {
			one, err := repair(bytes.NewReader(b), int64(len(b)))
			if err != nil && !errors.Is(err, ErrNotOurs) || one.Bytes > int64(len(b)) {
				t.Fatalf("repair of %d bytes: %+v, %v", len(b), one, err)
			}
			if err != nil {
				continue
			}
			if two, err := repair(bytes.NewReader(b), one.Bytes); err != nil || two != one {
				t.Fatalf("repaired to %+v, and then to %+v, %v", one, two, err)
			}
		}
		s, err := parse(b)
		if err != nil || len(s.interfaces) > 100 {
			return
		}
		// Packets of several sections may name interfaces that the first lacks.
		for _, p := range s.packets {
			if int(p.Interface) >= len(s.interfaces) || p.Time < 0 {
				return
			}
		}
		for i := range s.statistics {
			if st := &s.statistics[i]; int(st.Interface) >= len(s.interfaces) || st.Time < 0 || st.Start < 0 || st.End < 0 {
				return
			}
		}
		for i := range s.packets {
			s.packets[i].Head = nil
		}
		again, err := parse(s.file(t))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v", err)
		}
		if len(again.packets) == 0 && len(s.packets) == 0 {
			again.packets = s.packets
		}
		if !reflect.DeepEqual(s, again) {
			t.Fatalf("read %+v, wrote and read %+v", s, again)
		}
	})
}

func BenchmarkPut(b *testing.B) {
	for _, n := range []int{46, 1386} {
		p := Packet{Time: epoch, Head: sll2, Body: make([]byte, n), Original: uint32(n + 20), Flags: FlagInbound}
		block := make([]byte, 2048)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(n))
			for b.Loop() {
				p.Put(block)
			}
		})
	}
}

func BenchmarkReader(b *testing.B) {
	file := newSample().file(b)
	b.SetBytes(int64(len(file)))
	for b.Loop() {
		r := NewReader(bytes.NewReader(file))
		for {
			block, err := r.Next()
			if err != nil {
				break
			}
			if block.Type == TypePacket {
				if _, err := block.Packet(); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
}

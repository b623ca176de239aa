package pcapng

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"

	"github.com/gopacket/gopacket/pcapgo"

	"capd/testbed"
)

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

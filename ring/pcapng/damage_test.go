package pcapng

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
)

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

package pcapng

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
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

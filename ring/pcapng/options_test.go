package pcapng

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"capd/testbed"
)

// foreign builds blocks in big-endian order.
type foreign []byte

func (f *foreign) u16(v uint16)           { *f = append(*f, byte(v>>8), byte(v)) }
func (f *foreign) u32(v uint32)           { f.u16(uint16(v >> 16)); f.u16(uint16(v)) }
func (f *foreign) bytes(b string)         { *f = append(*f, b+strings.Repeat("\x00", pad(len(b))-len(b))...) }
func (f *foreign) option(c int, v string) { f.u16(uint16(c)); f.u16(uint16(len(v))); f.bytes(v) }

func (f *foreign) block(kind uint32, body foreign) {
	f.u32(kind)
	f.u32(uint32(len(body) + 12))
	*f = append(*f, body...)
	f.u32(uint32(len(body) + 12))
}

// What other programs write beside packets comes over into a little-endian file, and
// Wireshark reads it there; what must not is counted.
func TestCarry(t *testing.T) {
	var file, section, iface, packet, old, names, secrets, custom foreign
	section.u32(byteOrderMagic)
	section.u32(1 << 16)
	section.u32(0xffffffff)
	section.u32(0xffffffff)
	section.option(optComment, "one")
	section.option(optComment, "two")
	file.block(TypeSection, section)

	iface.u32(1 << 16) // Ethernet
	iface.u32(0)
	iface.option(optIfName, "eth0")
	iface.option(4, "\xc0\x00\x02\x01\xff\xff\xff\x00")
	iface.option(8, "\x00\x00\x00\x00\x3b\x9a\xca\x00") // 1 Gbit/s
	iface.option(13, "\x04")                            // an FCS of 4 bytes
	file.block(TypeInterface, iface)

	names.u16(1)
	names.u16(12)
	names.bytes("\xc0\x00\x02\x07gateway\x00"[:12])
	names.u32(0)
	names.option(2, "resolver")
	file.block(TypeNames, names)

	secrets.u32(0x544c534b) // a TLS key log
	secrets.u32(13)
	secrets.bytes("CLIENT_RANDOM")
	file.block(TypeSecrets, secrets)

	body := string(append([]byte{1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6, 0x88, 0xb5}, make([]byte, 50)...))
	packet.u32(0)
	packet.u32(0x60a3f)
	packet.u32(0x3b7d6f80)
	packet.u32(64)
	packet.u32(64)
	packet.bytes(body)
	packet.option(optComment, "first")
	packet.option(optFlags, "\x00\x00\x00\x02")
	packet.option(optComment, "second")
	packet.option(6, "\x00\x00\x00\x07") // queue
	packet.option(optCustomText, "\x00\x00\x80\x01text")
	packet.option(optCustomBytes, "\x00\x00\x80\x01\x01")
	packet.option(optCustomTextFixed, "\x00\x00\x80\x01fixed")
	file.block(TypePacket, packet)

	old.u32(5) // interface 0, five lost before
	old.u32(0x60a3f)
	old.u32(0x3b7d6f81)
	old.u32(64)
	old.u32(64)
	old.bytes(body)
	file.block(TypeOldPacket, old)

	custom.u32(32769)
	file.block(TypeCustom, custom)

	r := NewReader(bytes.NewReader(file))
	var out, further []byte
	left, refused := 0, 0
	for {
		b, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		more, n, err := b.Further()
		if err != nil {
			t.Fatal(err)
		}
		left += n
		switch b.Type {
		case TypeSection:
			s, err := b.Section()
			if err != nil {
				t.Fatal(err)
			}
			s.More = string(more)
			out = s.Append(out)
		case TypeInterface:
			i := r.Interfaces()[0]
			out = i.Append(out)
		case TypePacket, TypeOldPacket:
			p, err := b.Packet()
			if err != nil {
				t.Fatal(err)
			}
			if b.Type == TypeOldPacket && p.Dropped != 5 {
				t.Errorf("of the obsolete packet: %+v", p)
			}
			out, further = p.AppendWith(out, more), append(further, more...)
		default:
			block, ok, err := b.Carry()
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				refused++
			}
			out = append(out, block...)
		}
	}
	if left != 2 || refused != 1 {
		t.Errorf("left out are %d options and %d blocks, want the custom ones: 2 and 1", left, refused)
	}
	for _, want := range []string{"\x01\x00\x06\x00second", "\x06\x00\x04\x00\x07\x00\x00\x00", "\xac\x0b\x08\x00\x01\x80\x00\x00text"} {
		if !bytes.Contains(further, []byte(want)) {
			t.Errorf("no %q in %q", want, further)
		}
	}
	path := write(t, "carried.pcapng", out)
	info := testbed.Run(t, "capinfos", path)
	for _, want := range []string{"Capture comment:     one", "Capture comment:     two", "Speed = 1000000000", "Number of resolved IPv4 addresses in file: 1", "Number of decryption secrets in file: 1", "FCS length = 4"} {
		if !strings.Contains(info, want) {
			t.Errorf("capinfos does not say %q:\n%s", want, info)
		}
	}
	rows := testbed.Tshark(t, path, "", "frame.comment", "frame.packet_flags_direction", "frame.interface_queue")
	if len(rows) != 2 || strings.Join(rows[0], " ") != "first,second 0x00000002 7" {
		t.Errorf("%q", rows)
	}
	if hosts := testbed.Run(t, "tshark", "-q", "-z", "hosts", "-r", path); !strings.Contains(hosts, "192.0.2.7\tgateway") {
		t.Errorf("no name: %s", hosts)
	}
	// Once more it is the same, now from little-endian.
	again := NewReader(bytes.NewReader(out))
	for {
		b, err := again.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if b.Type == TypeNames || b.Type == TypeSecrets {
			if block, ok, err := b.Carry(); !ok || err != nil || !bytes.Equal(block, b.Raw) {
				t.Errorf("%v %v: %x, was %x", ok, err, block, b.Raw)
			}
		}
	}
}

// FuzzCarry carries over whatever a file has, and reads the result.
func FuzzCarry(f *testing.F) {
	f.Add(newSample().file(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewReader(bytes.NewReader(data))
		var out []byte
		for {
			b, err := r.Next()
			if err != nil {
				break
			}
			options, _, err := b.Further()
			if err != nil {
				continue
			}
			out = (&Section{More: string(options)}).Append(out)
			if block, ok, err := b.Carry(); ok && err == nil {
				out = append(out, block...)
			}
		}
		again := NewReader(bytes.NewReader(out))
		for {
			b, err := again.Next()
			if err == nil && b.Type == TypeSection {
				_, err = b.Section()
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("%x: %v", out, err)
			}
		}
	})
}

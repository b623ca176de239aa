package pcapng

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
)

// ErrFormat is wrapped by every error that says that a file is damaged or is no capture
// file. A file that ends in the middle of a block gives io.ErrUnexpectedEOF instead.
var ErrFormat = errors.New("not a valid capture file")

func damaged(offset int64, format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrFormat, offset, fmt.Sprintf(format, args...))
}

// Reader reads the blocks of a pcapng file of any writer, of either byte order, of
// several sections.
type Reader struct {
	in         *bufio.Reader
	buf        []byte
	offset     int64 // of the next block
	order      binary.ByteOrder
	interfaces []Interface
	units      []units
	begun      bool
}

// units is how an interface counts time.
type units struct {
	perSecond uint64
	offset    int64 // seconds
}

// maxInterfaces bounds what a hostile file can make a Reader remember.
const maxInterfaces = 1 << 16

// NewReader reads from r, in large pieces.
func NewReader(r io.Reader) *Reader {
	return &Reader{in: bufio.NewReaderSize(r, 256<<10), order: le}
}

// Block is one block of a file. Raw and what is decoded from it are valid until the next
// call of Next.
type Block struct {
	Type   uint32
	Offset int64  // of its first byte in the file
	Raw    []byte // all of it

	reader *Reader
}

// Next gives the next block. It returns io.EOF at the end of a whole file,
// io.ErrUnexpectedEOF (wrapped) where the file is cut inside a block, ErrFormat (wrapped)
// where what follows is no block.
func (r *Reader) Next() (Block, error) {
	var b Block
	h, err := r.in.Peek(minBlock)
	if len(h) == 0 && errors.Is(err, io.EOF) {
		return b, io.EOF
	}
	if err != nil {
		return b, r.cut(err)
	}
	kind := r.order.Uint32(h)
	if kind == TypeSection { // the same in either byte order
		switch binary.BigEndian.Uint32(h[8:]) {
		case byteOrderMagic:
			r.order = binary.BigEndian
		case bits.ReverseBytes32(byteOrderMagic):
			r.order = le
		default:
			return b, damaged(r.offset, "a section header without its magic number")
		}
	} else if !r.begun {
		return b, damaged(r.offset, "the first block is no section header")
	}
	size := r.order.Uint32(h[4:])
	if size < minBlock || size%4 != 0 || size > MaxBlock {
		return b, damaged(r.offset, "a block of %d bytes", size)
	}
	if cap(r.buf) < int(size) {
		r.buf = make([]byte, max(int(size), 64<<10))
	}
	raw := r.buf[:size]
	if _, err := io.ReadFull(r.in, raw); err != nil {
		return b, r.cut(err)
	}
	if again := r.order.Uint32(raw[size-4:]); again != size {
		return b, damaged(r.offset, "a block says that it has %d bytes, and at its end %d", size, again)
	}
	b = Block{Type: kind, Offset: r.offset, Raw: raw, reader: r}
	if err := r.note(&b); err != nil {
		return Block{}, err
	}
	r.offset += int64(size)
	return b, nil
}

func (r *Reader) cut(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read capture file at byte %d: %w", r.offset, err)
}

// note remembers what later blocks refer to.
func (r *Reader) note(b *Block) error {
	switch b.Type {
	case TypeSection:
		if len(b.Raw) < 28 {
			return damaged(b.Offset, "a section header of %d bytes", len(b.Raw))
		}
		if major := r.order.Uint16(b.Raw[12:]); major != 1 {
			return damaged(b.Offset, "pcapng version %d, only 1 is known", major)
		}
		r.begun, r.interfaces, r.units = true, r.interfaces[:0], r.units[:0]
	case TypeInterface:
		i, u, err := b.parseInterface()
		if err != nil {
			return err
		}
		if len(r.interfaces) == maxInterfaces {
			return damaged(b.Offset, "more than %d interfaces", maxInterfaces)
		}
		r.interfaces, r.units = append(r.interfaces, i), append(r.units, u)
	}
	return nil
}

// Offset is the number of bytes of whole blocks that were read.
func (r *Reader) Offset() int64 { return r.offset }

// Interfaces are those that the current section has described so far. They belong to the
// Reader.
func (r *Reader) Interfaces() []Interface { return r.interfaces }

// options calls f for each option in the block from offset at on, in order.
func (b *Block) options(at int, f func(code uint16, value []byte) error) error {
	o := b.Raw[at : len(b.Raw)-4]
	for len(o) >= 4 {
		code, n := b.reader.order.Uint16(o), int(b.reader.order.Uint16(o[2:]))
		if code == optEnd {
			return nil
		}
		if 4+n > len(o) {
			return damaged(b.Offset, "option %d of %d bytes in a block that has %d left", code, n, len(o)-4)
		}
		if err := f(code, o[4:4+n]); err != nil {
			return err
		}
		o = o[min(4+pad(n), len(o)):]
	}
	if len(o) != 0 {
		return damaged(b.Offset, "%d bytes behind the options", len(o))
	}
	return nil
}

func (b *Block) is(kind uint32, size int) error {
	if b.Type != kind {
		return fmt.Errorf("block at byte %d is of type %d, not %d", b.Offset, b.Type, kind)
	}
	if len(b.Raw) < size {
		return damaged(b.Offset, "a block of type %d with %d bytes", kind, len(b.Raw))
	}
	return nil
}

// first sets a text if it is not set: of an option that may be repeated the first is kept.
func first(text *string, value []byte) {
	if *text == "" {
		*text = string(value)
	}
}

// Section reads a section header block.
func (b *Block) Section() (s Section, err error) {
	if err := b.is(TypeSection, 28); err != nil {
		return s, err
	}
	err = b.options(24, func(code uint16, v []byte) error {
		switch code {
		case optComment:
			first(&s.Comment, v)
		case optHardware:
			first(&s.Hardware, v)
		case optOS:
			first(&s.OS, v)
		case optUserAppl:
			first(&s.Application, v)
		}
		return nil
	})
	return s, err
}

// Interface reads an interface description block.
func (b *Block) Interface() (Interface, error) {
	i, _, err := b.parseInterface()
	return i, err
}

func (b *Block) parseInterface() (i Interface, u units, err error) {
	if err := b.is(TypeInterface, 20); err != nil {
		return i, u, err
	}
	u.perSecond = 1e6
	i.LinkType, i.Snaplen = b.reader.order.Uint16(b.Raw[8:]), b.reader.order.Uint32(b.Raw[12:])
	err = b.options(16, func(code uint16, v []byte) error {
		switch {
		case code == optComment:
			first(&i.Comment, v)
		case code == optIfName:
			first(&i.Name, v)
		case code == optIfDescription:
			first(&i.Description, v)
		case code == optIfFilter && len(v) > 1 && v[0] == 0:
			first(&i.Filter, v[1:])
		case code == optIfTSResol && len(v) == 1:
			if u.perSecond = perSecond(v[0]); u.perSecond == 0 {
				return damaged(b.Offset, "a timestamp resolution of %#x", v[0])
			}
		case code == optIfTSOffset && len(v) == 8:
			u.offset = int64(b.reader.order.Uint64(v))
		}
		return nil
	})
	if err != nil {
		return i, u, err
	}
	more, _, err := b.Further()
	i.More = string(more)
	return i, u, err
}

// perSecond is the number of units in a second that if_tsresol means (section 4.2), 0
// where it does not fit 64 bits.
func perSecond(resolution byte) uint64 {
	n := uint64(1)
	if resolution&0x80 != 0 {
		return n << (resolution & 0x7f)
	}
	for range resolution {
		high, low := bits.Mul64(n, 10)
		if high != 0 {
			return 0
		}
		n = low
	}
	return n
}

// nanoseconds turns a timestamp of the interface into nanoseconds since the epoch. It is
// not ok where that does not fit.
func (u units) nanoseconds(ticks uint64) (int64, bool) {
	const limit = 1<<63/1_000_000_000 - 1
	seconds, rest := ticks/u.perSecond, ticks%u.perSecond
	if seconds > limit || u.offset > limit || u.offset < -limit {
		return 0, false
	}
	total := int64(seconds) + u.offset
	if total > limit || total < -limit {
		return 0, false
	}
	high, low := bits.Mul64(rest, 1e9)
	fraction, _ := bits.Div64(high, low, u.perSecond) // high < perSecond, as rest is
	return total*1e9 + int64(fraction), true
}

// time reads a timestamp at the given place of a block.
func (b *Block) time(number uint32, v []byte) (int64, error) {
	if int64(number) >= int64(len(b.reader.units)) {
		return 0, damaged(b.Offset, "interface %d of %d", number, len(b.reader.units))
	}
	ns, ok := b.reader.units[number].nanoseconds(uint64(b.reader.order.Uint32(v))<<32 | uint64(b.reader.order.Uint32(v[4:])))
	if !ok {
		return 0, damaged(b.Offset, "a timestamp out of range")
	}
	return ns, nil
}

// Packet reads an enhanced packet block, an obsolete one or a simple one (which has no
// time). Its bytes are in Body, and Head is empty.
func (b *Block) Packet() (p Packet, err error) {
	order := b.reader.order
	if b.Type == TypeSimple {
		if len(b.reader.interfaces) == 0 {
			return p, damaged(b.Offset, "a simple packet without an interface")
		}
		if err := b.is(TypeSimple, 16); err != nil {
			return p, err
		}
		p.Original = order.Uint32(b.Raw[8:])
		n := min(uint64(p.Original), uint64(len(b.Raw)-16))
		if snaplen := b.reader.interfaces[0].Snaplen; snaplen > 0 {
			n = min(n, uint64(snaplen))
		}
		p.Body = b.Raw[12 : 12+n : 12+n]
		return p, nil
	}
	kind := uint32(TypePacket)
	if b.Type == TypeOldPacket {
		kind = TypeOldPacket
	}
	if err := b.is(kind, packetHeader+4); err != nil {
		return p, err
	}
	p.Interface, p.Original = order.Uint32(b.Raw[8:]), order.Uint32(b.Raw[24:])
	if kind == TypeOldPacket {
		p.Interface = uint32(order.Uint16(b.Raw[8:]))
		if n := order.Uint16(b.Raw[10:]); n != math.MaxUint16 { // which is: not known
			p.Dropped = uint64(n)
		}
	}
	if p.Time, err = b.time(p.Interface, b.Raw[12:]); err != nil {
		return p, err
	}
	n := uint64(order.Uint32(b.Raw[20:]))
	if n > uint64(len(b.Raw)-packetHeader-4) {
		return p, damaged(b.Offset, "a packet of %d bytes in a block of %d", n, len(b.Raw))
	}
	p.Body = b.Raw[packetHeader : packetHeader+n : packetHeader+n]
	err = b.options(packetHeader+pad(int(n)), func(code uint16, v []byte) error {
		switch {
		case code == optComment:
			first(&p.Comment, v)
		case code == optFlags && len(v) == 4:
			p.Flags = order.Uint32(v)
		case code == optDropCount && len(v) == 8:
			p.Dropped = order.Uint64(v)
		}
		return nil
	})
	return p, err
}

// Statistics reads an interface statistics block.
func (b *Block) Statistics() (s Statistics, err error) {
	if err := b.is(TypeStatistics, 24); err != nil {
		return s, err
	}
	order := b.reader.order
	s = Statistics{Interface: order.Uint32(b.Raw[8:]), Received: Absent, Dropped: Absent, FilterAccepted: Absent, OSDropped: Absent, Delivered: Absent}
	if s.Time, err = b.time(s.Interface, b.Raw[12:]); err != nil {
		return s, err
	}
	counts := map[uint16]*uint64{
		optReceived: &s.Received, optDropped: &s.Dropped, optFilterAccept: &s.FilterAccepted, optOSDrop: &s.OSDropped, optDelivered: &s.Delivered,
	}
	err = b.options(20, func(code uint16, v []byte) (err error) {
		switch count := counts[code]; {
		case code == optComment:
			first(&s.Comment, v)
		case len(v) != 8:
		case code == optStart:
			s.Start, err = b.time(s.Interface, v)
		case code == optEndTime:
			s.End, err = b.time(s.Interface, v)
		case count != nil:
			*count = order.Uint64(v)
		}
		return err
	})
	return s, err
}

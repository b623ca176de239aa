package pcapng

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// ClassicReader reads the packets of a classic pcap file of either byte order and either
// resolution.
type ClassicReader struct {
	LinkType uint16
	Snaplen  uint32

	in     *bufio.Reader
	order  binary.ByteOrder
	unit   int64 // nanoseconds
	buf    []byte
	offset int64
}

// maxClassic is the longest record that is taken for one, in bytes.
const maxClassic = 1 << 20

// NewClassicReader reads the header of a classic pcap file.
func NewClassicReader(r io.Reader) (*ClassicReader, error) {
	c := &ClassicReader{in: bufio.NewReaderSize(r, 256<<10)}
	var h [ClassicHeaderSize]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return nil, c.cut(err)
	}
	switch magic := le.Uint32(h[:]); magic {
	case pcapNanoseconds:
		c.order, c.unit = le, 1
	case pcapMicroseconds:
		c.order, c.unit = le, 1000
	case bits.ReverseBytes32(pcapNanoseconds):
		c.order, c.unit = binary.BigEndian, 1
	case bits.ReverseBytes32(pcapMicroseconds):
		c.order, c.unit = binary.BigEndian, 1000
	default:
		return nil, damaged(0, "magic number %#x", magic)
	}
	c.Snaplen, c.LinkType = c.order.Uint32(h[16:]), uint16(c.order.Uint32(h[20:]))
	c.offset = ClassicHeaderSize
	return c, nil
}

// Offset is the number of bytes of header and whole records that were read.
func (c *ClassicReader) Offset() int64 { return c.offset }

// Next gives the next packet, its bytes in Body, valid until the next call. Errors are
// those of Reader.Next.
func (c *ClassicReader) Next() (p Packet, err error) {
	h, err := c.in.Peek(ClassicRecordSize)
	if len(h) == 0 && errors.Is(err, io.EOF) {
		return p, io.EOF
	}
	if err != nil {
		return p, c.cut(err)
	}
	fraction, n := int64(c.order.Uint32(h[4:])), c.order.Uint32(h[8:])
	if n > maxClassic || fraction*c.unit >= 1e9 {
		return p, damaged(c.offset, "a record of %d bytes with %d as its fraction of a second", n, fraction)
	}
	p.Time = int64(c.order.Uint32(h))*1e9 + fraction*c.unit
	p.Original = c.order.Uint32(h[12:])
	if cap(c.buf) < ClassicRecordSize+int(n) {
		c.buf = make([]byte, max(ClassicRecordSize+int(n), 64<<10))
	}
	record := c.buf[:ClassicRecordSize+n]
	if _, err := io.ReadFull(c.in, record); err != nil {
		return Packet{}, c.cut(err)
	}
	p.Body = record[ClassicRecordSize:]
	c.offset += int64(len(record))
	return p, nil
}

func (c *ClassicReader) cut(err error) error {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read capture file at byte %d: %w", c.offset, err)
}

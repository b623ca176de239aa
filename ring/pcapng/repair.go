package pcapng

import (
	"errors"
	"fmt"
	"io"
)

// Repaired tells how much of a capture file is whole.
type Repaired struct {
	Bytes       int64  // up to the end of the last whole block or record
	Packets     uint64 // in those bytes
	Captured    int64  // bytes of those packets, as captured
	First, Last int64  // earliest and latest timestamp, nanoseconds since the Unix epoch; 0 without packets
}

// note counts a packet of which n bytes were captured.
func (r *Repaired) note(ns, n int64) {
	if r.Packets == 0 {
		r.First, r.Last = ns, ns
	}
	r.Packets++
	r.Captured += n
	r.First, r.Last = min(r.First, ns), max(r.Last, ns)
}

// ErrNotOurs is what Repair and RepairClassic give for a file that does not begin as the
// ones written here do.
var ErrNotOurs = errors.New("not a capture file of this program")

// Repair finds the end of the last whole block among the first size bytes of a pcapng
// file written by this package: one section, little-endian, nanosecond timestamps. What
// follows (a block cut by a kill, the zeros of a preallocated tail) is not looked at. An
// empty file, or one cut within its section header, has 0 whole bytes. Errors are those of
// reading, and ErrNotOurs.
func Repair(f io.ReaderAt, size int64) (Repaired, error) {
	var out Repaired
	w := window{f: f, size: size}
	for {
		h, err := w.peek(out.Bytes, 28)
		if err != nil {
			return out, err
		}
		if len(h) < minBlock {
			return out, nil
		}
		kind, length := le.Uint32(h), int64(le.Uint32(h[4:]))
		if out.Bytes == 0 {
			if allZero(h) {
				return out, nil
			}
			if kind != TypeSection || le.Uint32(h[8:]) != byteOrderMagic {
				return out, ErrNotOurs
			}
		} else if kind == 0 || kind == TypeSection {
			return out, nil
		}
		if length < minBlock || length > MaxBlock || length%4 != 0 || out.Bytes+length > size {
			return out, nil
		}
		tail, err := w.read(out.Bytes+length-4, 4)
		if err != nil {
			return out, err
		}
		if int64(le.Uint32(tail)) != length {
			return out, nil
		}
		if kind == TypePacket {
			if length < packetHeader+4 || len(h) < packetHeader || int64(le.Uint32(h[20:])) > length-packetHeader-4 {
				return out, nil
			}
			out.note(int64(uint64(le.Uint32(h[12:]))<<32|uint64(le.Uint32(h[16:]))), int64(le.Uint32(h[20:])))
		}
		out.Bytes += length
	}
}

// RepairClassic is Repair for a classic pcap file with nanosecond timestamps. As records
// have no mark of their end, a record of zeros (no bytes, at the epoch) ends the file too.
func RepairClassic(f io.ReaderAt, size int64) (Repaired, error) {
	var out Repaired
	w := window{f: f, size: size}
	h, err := w.peek(0, ClassicHeaderSize)
	if err != nil || len(h) < ClassicHeaderSize || allZero(h) {
		return out, err
	}
	if le.Uint32(h) != pcapNanoseconds {
		return out, ErrNotOurs
	}
	snaplen := max(le.Uint32(h[16:]), MaxSnaplen)
	out.Bytes = ClassicHeaderSize
	for {
		h, err := w.peek(out.Bytes, ClassicRecordSize)
		if err != nil {
			return out, err
		}
		if len(h) < ClassicRecordSize || allZero(h) {
			return out, nil
		}
		seconds, nanos, length := le.Uint32(h), le.Uint32(h[4:]), le.Uint32(h[8:])
		end := out.Bytes + ClassicRecordSize + int64(length)
		if nanos >= 1e9 || length > snaplen || length > le.Uint32(h[12:]) || end > size {
			return out, nil
		}
		out.note(int64(seconds)*1e9+int64(nanos), int64(length))
		out.Bytes = end
	}
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// window reads a file in large pieces.
type window struct {
	f     io.ReaderAt
	size  int64
	start int64 // of data in the file
	data  []byte
	buf   []byte
}

// peek gives up to n bytes from offset at; fewer only where the file ends.
func (w *window) peek(at int64, n int) ([]byte, error) {
	if at >= w.size {
		return nil, nil
	}
	return w.read(at, int(min(int64(n), w.size-at)))
}

// read gives n bytes from offset at, all within the file.
func (w *window) read(at int64, n int) ([]byte, error) {
	if at < w.start || at+int64(n) > w.start+int64(len(w.data)) {
		if w.buf == nil {
			w.buf = make([]byte, 1<<20)
		}
		piece := w.buf[:min(int64(len(w.buf)), w.size-at)]
		got, err := w.f.ReadAt(piece, at)
		if got < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, fmt.Errorf("read capture file at %d: %w", at, err)
		}
		w.start, w.data = at, piece[:got]
	}
	return w.data[at-w.start : at-w.start+int64(n)], nil
}

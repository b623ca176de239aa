package spool

import "fmt"

// sinkSize is how many encoded bytes are gathered for one write.
const sinkSize = 1 << 20

// sink gathers a segment's encoded bytes, which come in any length, into writes that
// O_DIRECT takes. Its memory is shared by a Writer's segments, one after the other.
type sink struct {
	seg    *segment
	buf    []byte // aligned, sinkSize long
	fill   int    // bytes in buf
	offset int64  // of buf's first byte in the file, a multiple of sector
}

// written is the length of the encoded segment so far.
func (s *sink) written() int64 { return s.offset + int64(s.fill) }

// Write implements io.Writer.
func (s *sink) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := copy(s.buf[s.fill:], p)
		p, s.fill = p[n:], s.fill+n
		if s.fill == len(s.buf) {
			if err := s.seg.write(s.buf, s.offset); err != nil {
				return total - len(p), err
			}
			s.offset, s.fill = s.offset+int64(len(s.buf)), 0
		}
	}
	return total, nil
}

// sync writes what was gathered and cuts the file to its length. The last, unfinished
// sector is written again with what comes after it.
func (s *sink) sync() error {
	end := (s.fill + sector - 1) &^ (sector - 1)
	clear(s.buf[s.fill:end])
	if end > 0 {
		if err := s.seg.write(s.buf[:end], s.offset); err != nil {
			return err
		}
	}
	if err := s.seg.file.Truncate(s.written()); err != nil {
		return fmt.Errorf("cut segment %s to its length: %w", s.seg.Name, err)
	}
	whole := s.fill &^ (sector - 1)
	copy(s.buf, s.buf[whole:s.fill])
	s.offset, s.fill = s.offset+int64(whole), s.fill-whole
	return nil
}

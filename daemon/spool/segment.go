package spool

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// segment is one file under way. The producer counts; the disk goroutine owns the file.
type segment struct {
	Segment
	admitted        int64 // bytes that Admit has granted; the producer's until the segment is finished
	firstNS, lastNS int64 // timestamps so far, nanoseconds since the epoch

	make      func(name string) (*os.File, error)
	file      *os.File
	direct    bool
	allocated bool  // the whole segment's room, before its first large write
	onDisk    int64 // bytes below this offset were written without an error
	settled   int64 // bytes of admitted that Options.Written knows of
	err       error

	encode  Encode // nil: as it is
	encoder Encoder
	hurried bool
	sink    sink
	plain   hash.Hash // of what went into encoder
	passed  int64     // bytes of it
}

// certain is how many of the segment's bytes, before they are encoded, need no more room
// than its file has.
func (s *segment) certain() int64 {
	if s.encode == nil {
		return s.onDisk
	}
	return max(0, s.passed-2*sinkSize) // the sink and the encoder hold less than that
}

// create makes the segment's file, once.
func (s *segment) create() error {
	if s.file != nil {
		return nil
	}
	f, err := s.make(s.Name)
	if err != nil {
		return fmt.Errorf("create segment: %w", err)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	s.direct = err == nil && flags&unix.O_DIRECT != 0
	s.file = f
	return nil
}

// write puts data at offset. Data is sector aligned in address, length and offset.
func (s *segment) write(data []byte, offset int64) error {
	for len(data) > 0 {
		n, err := unix.Pwrite(int(s.file.Fd()), data, offset)
		switch {
		case err == nil && n > 0:
			data, offset = data[n:], offset+int64(n)
			if len(data) > 0 && s.direct && n%sector != 0 {
				s.pageCache()
			}
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EINVAL) && s.direct:
			s.pageCache()
		case err == nil:
			return fmt.Errorf("write segment %s: wrote nothing", s.Name)
		default:
			return fmt.Errorf("write segment %s: %w", s.Name, err)
		}
	}
	return nil
}

// pageCache goes on without O_DIRECT.
func (s *segment) pageCache() {
	s.direct = false
	if flags, err := unix.FcntlInt(s.file.Fd(), unix.F_GETFL, 0); err == nil {
		_, _ = unix.FcntlInt(s.file.Fd(), unix.F_SETFL, flags&^unix.O_DIRECT)
	}
}

// close cuts the file to its length, or to its last whole packet where writing failed,
// and makes it durable.
func (s *segment) close(length int64, repair RepairFunc) Segment {
	out := s.Segment
	out.Bytes, out.PlainBytes, out.Err = length, length, s.err
	if s.encoder != nil {
		out.Bytes, out.PlainSHA256 = s.sink.written(), hex.EncodeToString(s.plain.Sum(nil))
	}
	if out.Packets > 0 {
		out.First, out.Last = time.Unix(0, s.firstNS), time.Unix(0, s.lastNS)
	}
	if s.file == nil {
		out.Bytes, out.LostPackets, out.Packets, out.Captured = 0, out.Packets, 0, 0
		return out
	}
	defer s.file.Close()
	if s.err != nil && s.encoder != nil {
		// What an encoding was cut in cannot be repaired here. It ends where it ends.
		s.pageCache()
		out.Bytes, out.PlainBytes, out.PlainSHA256 = s.sink.offset, 0, ""
		out.LostPackets, out.Packets, out.Captured = out.Packets, 0, 0
	} else if s.err != nil {
		s.pageCache()
		found, err := repair(s.file, s.onDisk)
		if err != nil {
			found = Repaired{}
		}
		out.Bytes, out.LostPackets = found.Bytes, out.Packets-min(out.Packets, found.Packets)
		out.Packets, out.Captured, out.First, out.Last = found.Packets, found.Captured, found.First, found.Last
	}
	if err := s.file.Truncate(out.Bytes); err != nil && out.Err == nil {
		out.Err = fmt.Errorf("cut segment %s to its length: %w", s.Name, err)
	}
	if err := s.file.Sync(); err != nil && out.Err == nil {
		out.Err = fmt.Errorf("sync segment %s: %w", s.Name, err)
	}
	return out
}

package spool

import (
	"crypto/sha256"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Encode begins the encoding (compression, sealing) of one segment, whose encoded bytes
// are written to dst.
type Encode func(dst io.Writer) (Encoder, error)

// Encoder is a segment's encoding under way.
type Encoder interface {
	io.Writer
	// Flush passes on as much of what was written as the encoding allows.
	Flush() error
	// Hurry is called at most once, when encoding or the disk does not keep up: the rest of
	// the segment is to be encoded without what is costly.
	Hurry() error
	// Close passes on everything and ends the encoding; it does not close the file.
	Close() error
}

// pass puts an op's bytes through the segment's encoding.
func (w *Writer) pass(o op) error {
	s := o.seg
	if s.encoder == nil {
		if w.sinkMemory == nil {
			m, err := unix.Mmap(-1, 0, sinkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
			if err != nil {
				return fmt.Errorf("allocate encoding buffer: %w", err)
			}
			w.sinkMemory = m
		}
		s.sink = sink{seg: s, buf: w.sinkMemory}
		encoder, err := s.encode(&s.sink)
		if err != nil {
			return fmt.Errorf("encode segment %s: %w", s.Name, err)
		}
		s.encoder, s.plain = encoder, sha256.New()
	}
	if !s.hurried && w.Behind() {
		if err := s.encoder.Hurry(); err != nil {
			return fmt.Errorf("encode segment %s: %w", s.Name, err)
		}
		s.hurried = true
	}
	if s.hurried {
		s.Hurried += int64(len(o.data))
	}
	s.plain.Write(o.data)
	s.passed += int64(len(o.data))
	if _, err := s.encoder.Write(o.data); err != nil {
		return fmt.Errorf("encode segment %s: %w", s.Name, err)
	}
	switch o.kind {
	case opFlush:
		if err := s.encoder.Flush(); err != nil {
			return fmt.Errorf("encode segment %s: %w", s.Name, err)
		}
		return s.sink.sync()
	case opFinish:
		if err := s.encoder.Close(); err != nil {
			return fmt.Errorf("encode segment %s: %w", s.Name, err)
		}
		return s.sink.sync()
	}
	return nil
}

package sftp

import (
	"bufio"
	"net"
	"sync"
)

// streamBuffer is how many bytes a stream holds in each direction, about.
const streamBuffer = 256 << 10

// stream is a connection in large pieces. x/crypto/ssh reads and writes through buffers of
// 4 KiB and flushes after each packet: two system calls for each 32 KiB packet, and as many
// segments on the link. Here one goroutine writes what has gathered while it wrote before,
// so nothing waits for more to come.
type stream struct {
	net.Conn
	in *bufio.Reader

	mu      sync.Mutex
	changed sync.Cond // something gathered, was taken, or the stream has ended
	out     []byte    // gathered
	err     error     // of the writer; what follows fails with it
	ended   chan struct{}

	left  int64  // bytes to read before alarm
	alarm func() // nil: none
}

// newStream makes a stream of a connection, which it then owns.
func newStream(conn net.Conn) *stream {
	s := &stream{Conn: conn, in: bufio.NewReaderSize(conn, streamBuffer), ended: make(chan struct{})}
	s.changed.L = &s.mu
	go s.write()
	return s
}

// Read implements net.Conn.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.in.Read(b)
	s.mu.Lock()
	s.left -= int64(n)
	alarm := s.alarm
	if alarm != nil && s.left < 0 {
		s.alarm = nil
	} else {
		alarm = nil
	}
	s.mu.Unlock()
	if alarm != nil {
		alarm()
	}
	return n, err
}

// after has f called, once, when n more bytes have been read, in place of what was asked
// for before; nil is nothing.
func (s *stream) after(n int64, f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.left, s.alarm = n, f
}

// Write takes b, which is sent soon: an error may be that of an earlier Write.
func (s *stream) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.out) >= streamBuffer && s.err == nil {
		s.changed.Wait()
	}
	if s.err != nil {
		return 0, s.err
	}
	s.out = append(s.out, b...)
	s.changed.Broadcast()
	return len(b), nil
}

func (s *stream) write() {
	defer close(s.ended)
	var spare []byte
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil {
		if len(s.out) == 0 {
			s.changed.Wait()
			continue
		}
		batch := s.out
		s.out = spare[:0]
		s.changed.Broadcast()
		s.mu.Unlock()
		_, err := s.Conn.Write(batch)
		s.mu.Lock()
		spare = batch
		if err != nil && s.err == nil {
			s.err = err
		}
	}
	s.changed.Broadcast()
}

// Close ends the connection, with what was not sent yet, and waits for its goroutine.
func (s *stream) Close() error {
	s.mu.Lock()
	if s.err == nil {
		s.err = net.ErrClosed
	}
	s.changed.Broadcast()
	s.mu.Unlock()
	err := s.Conn.Close()
	<-s.ended
	return err
}

package sftp

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"
)

// pair is both ends of a TCP connection on loopback.
func pair(t *testing.T) (ours, theirs net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	return ours, theirs
}

func TestAStreamKeepsEveryByteInItsOrder(t *testing.T) {
	ours, theirs := pair(t)
	s := newStream(ours)
	defer s.Close()
	want := make([]byte, 5<<20)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(want)
	sizes := rand.New(random)
	go func() {
		for rest := want; len(rest) > 0; {
			n := min(len(rest), 1+sizes.IntN(40_000))
			if _, err := s.Write(rest[:n]); err != nil {
				t.Error(err)
				return
			}
			rest = rest[n:]
		}
	}()
	go io.Copy(theirs, theirs) // back to where it came from
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what came back is not what was written (%v)", err)
	}
}

func TestAStreamThatIsCutFailsWritersAndReaders(t *testing.T) {
	ours, theirs := pair(t)
	s := newStream(ours)
	theirs.Close()
	piece := make([]byte, 64<<10)
	var err error
	for range 10_000 { // the first are gathered, and sent into nothing
		if _, err = s.Write(piece); err != nil {
			break
		}
	}
	if err == nil {
		t.Error("writing to a connection that is gone goes on")
	}
	if _, err := s.Read(piece); err == nil {
		t.Error("reading from a connection that is gone goes on")
	}
	s.Close()
}

func TestClosingAStreamEndsAWriteThatWaits(t *testing.T) {
	ours, _ := pair(t) // nobody reads at the other end
	s := newStream(ours)
	failed := make(chan error, 1)
	go func() {
		piece := make([]byte, 64<<10)
		for {
			if _, err := s.Write(piece); err != nil {
				failed <- err
				return
			}
		}
	}()
	for full := false; !full; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		full = len(s.out) >= streamBuffer
		s.mu.Unlock()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := <-failed; err == nil {
		t.Error("no error")
	}
}
